//! Weights as integer codes, in panels of sixteen outputs, multiplied with integer activations. Products within a group
//! of 32 are exact; their sums are scaled and added as f32, over ascending groups.

use std::{marker::PhantomData, ops::Range};

use rayon::prelude::*;

use super::{
    activations::{Activations, GroupHead, QuadWords},
    coding::{Coding, Line, PanelLayout, Scales},
    ggml::{Block, GROUP_LEN, GgmlType},
    output::Output,
};
use crate::cpu::{Kernel, LANES, SharedSlice, Simd};

/// A quantised weight matrix; outputs past the last have zero scales.
#[derive(Debug)]
pub(super) struct Coded {
    ty: GgmlType,
    layout: PanelLayout,
    groups: usize,
    /// `[panels, groups, lines]`
    lines: Vec<Line>,
    /// `[panels, words]`
    words: Vec<[u16; LANES]>,
    /// `[panels, factors]`
    factors: Vec<[u8; LANES]>,
}

impl Coded {
    /// Packs `bytes`, rows of `row_bytes` bytes in the quantised format `ty`, each `in_features` values.
    pub(super) fn pack(ty: GgmlType, bytes: &[u8], row_bytes: usize, in_features: usize) -> Self {
        let (layout, groups) = (PanelLayout::of(ty), in_features / GROUP_LEN);
        let num_panels = (bytes.len() / row_bytes).div_ceil(LANES);
        let lines_len = groups * layout.lines_per_group();
        let (words_len, factors_len) = (layout.words_per_panel(groups), layout.factors_per_panel(groups));
        let mut lines = vec![Line([0; 64]); num_panels * lines_len];
        let mut words = vec![[0; LANES]; num_panels * words_len];
        let mut factors = vec![[0; LANES]; num_panels * factors_len];
        let shared = (SharedSlice::new(&mut lines), SharedSlice::new(&mut words), SharedSlice::new(&mut factors));
        bytes.par_chunks(LANES * row_bytes).enumerate().for_each(|(panel, rows)| {
            // SAFETY: each panel has its own part of each buffer, and is visited once.
            let lines = unsafe { shared.0.part(panel * lines_len, lines_len) };
            // SAFETY: as above.
            let words = unsafe { shared.1.part(panel * words_len, words_len) };
            // SAFETY: as above.
            let factors = unsafe { shared.2.part(panel * factors_len, factors_len) };
            let mut block = Block::ZERO;
            let groups_per_block = ty.block_len() / GROUP_LEN;
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                for (at, bytes) in row.chunks_exact(ty.block_bytes()).enumerate() {
                    block.read(ty, bytes);
                    layout.put(&block, groups_per_block, (at * groups_per_block, lane), (lines, words, factors));
                }
            }
        });
        Self { ty, layout, groups, lines, words, factors }
    }

    /// The format.
    pub(super) fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Bytes of codes and scales of one panel of rows of `in_features`.
    pub(super) fn panel_bytes(ty: GgmlType, in_features: usize) -> usize {
        let (layout, groups) = (PanelLayout::of(ty), in_features / GROUP_LEN);
        groups * layout.lines_per_group() * size_of::<Line>()
            + layout.words_per_panel(groups) * size_of::<[u16; LANES]>()
            + layout.factors_per_panel(groups) * LANES
    }

    /// Bytes of codes and scales.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice()) + size_of_val(self.words.as_slice()) + size_of_val(self.factors.as_slice())
    }

    /// Writes the weights of output `index`, in the exact meaning of the format.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        let (lines, scales) = self.panel(index / LANES);
        let groups_per_block = self.ty.block_len() / GROUP_LEN;
        let mut block = Block::ZERO;
        for (at, values) in out.chunks_exact_mut(self.ty.block_len()).enumerate() {
            let place = (at * groups_per_block, index % LANES);
            self.layout.get(&mut block, groups_per_block, place, lines, scales);
            for (at, value) in values.iter_mut().enumerate() {
                *value = block.value(self.ty, at);
            }
        }
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> (&[Line], Scales<'_>) {
        let lines = self.groups * self.layout.lines_per_group();
        let (words, factors) = (self.layout.words_per_panel(self.groups), self.layout.factors_per_panel(self.groups));
        let scales = Scales {
            words: &self.words[index * words..][..words],
            factors: &self.factors[index * factors..][..factors],
        };
        (&self.lines[index * lines..][..lines], scales)
    }
}

/// `xs * weight^T` for some panels and all rows, activations in `PLANES` planes.
#[derive(Debug)]
pub(super) struct CodedTask<'a, C, const PLANES: usize> {
    pub(super) weight: &'a Coded,
    pub(super) panels: Range<usize>,
    pub(super) xs: &'a Activations,
    pub(super) rows: usize,
    pub(super) output: Output<'a>,
    pub(super) coding: PhantomData<C>,
}

/// Bytes of activations that stay in the second-level cache while the panels pass by.
const BLOCK_BYTES: usize = 256 << 10;

/// The integers of one group of activations.
type GroupWords = [QuadWords; 8];

/// The bytes of one group of activations: planes of eight quads.
type GroupBytes<const PLANES: usize> = [[[i8; 4]; 8]; PLANES];

impl<C: Coding, const PLANES: usize> Kernel for CodedTask<'_, C, PLANES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let value_bytes = if S::WIDE { size_of::<i16>() } else { PLANES };
        let row_bytes = self.weight.groups * (GROUP_LEN * value_bytes + size_of::<GroupHead>());
        let rows_per_block = (BLOCK_BYTES / row_bytes).next_multiple_of(8);
        for start in (0..self.rows).step_by(rows_per_block) {
            let end = self.rows.min(start + rows_per_block);
            for panel in self.panels.clone() {
                let mut row = start;
                while row < end {
                    let left = end - row;
                    row += if left >= 8 && S::TILE_ROWS >= 8 {
                        self.tile::<S, 8>(simd, panel, row)
                    } else if left >= 4 && S::TILE_ROWS >= 4 {
                        self.tile::<S, 4>(simd, panel, row)
                    } else if left >= 2 {
                        self.tile::<S, 2>(simd, panel, row)
                    } else {
                        self.tile::<S, 1>(simd, panel, row)
                    };
                }
            }
        }
    }
}

impl<C: Coding, const PLANES: usize> CodedTask<'_, C, PLANES> {
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&self, simd: S, panel: usize, row: usize) -> usize {
        let groups = self.weight.groups;
        let (lines, scales) = self.weight.panel(panel);
        let mut bytes: [&[GroupBytes<PLANES>]; ROWS] = [&[]; ROWS];
        let mut words: [&[GroupWords]; ROWS] = [&[]; ROWS];
        let mut heads: [&[GroupHead]; ROWS] = [&[]; ROWS];
        for r in 0..ROWS {
            if S::WIDE {
                words[r] = &self.xs.words(row + r).as_chunks::<8>().0[..groups];
            }
            bytes[r] = &self.xs.bytes(row + r).as_chunks::<4>().0.as_chunks::<8>().0.as_chunks::<PLANES>().0[..groups];
            heads[r] = &self.xs.heads(row + r)[..groups];
        }
        let mut sums = [simd.splat(0.0); ROWS];
        let halves = if C::HALVES { 2 } else { 1 };
        for g in 0..groups {
            let scale = C::scale(simd, scales, g);
            for half in 0..halves {
                let lines = match C::NIBBLES {
                    true => &lines.as_chunks::<4>().0[g] as &[Line],
                    false => &lines.as_chunks::<8>().0[g],
                };
                let exact = match S::WIDE {
                    true => self.wide_products::<S, ROWS>(simd, lines, half, g, &words, &heads),
                    false => self.products::<S, ROWS>(simd, lines, half, g, &bytes, &heads),
                };
                for r in 0..ROWS {
                    let step = simd.mul(scale.scale[half], simd.splat(heads[r][g].scale));
                    sums[r] = simd.fma(simd.to_float(exact[r]), step, sums[r]);
                }
            }
            if C::ZERO_BITS.is_none() {
                for r in 0..ROWS {
                    sums[r] = simd.fma(scale.offset, simd.splat(heads[r][g].scaled_sum), sums[r]);
                }
            }
        }
        let mut values = [0.0; LANES];
        for (r, &sum) in sums.iter().enumerate() {
            simd.store(&mut values, sum);
            // SAFETY: tasks have disjoint ranges of panels, and this one visits each panel and row once.
            unsafe { self.output.write(row + r, panel, &values) };
        }
        ROWS
    }

    /// Sums of `(code - zero) * x` over one group, or over one half of it where halves have their own scale.
    #[inline(always)]
    fn products<S: Simd, const ROWS: usize>(
        &self,
        simd: S,
        lines: &[Line],
        half: usize,
        g: usize,
        bytes: &[&[GroupBytes<PLANES>]; ROWS],
        heads: &[&[GroupHead]; ROWS],
    ) -> [S::I; ROWS] {
        let mut low = Self::zeros::<S, ROWS>(simd, half, g, heads);
        let mut high = [simd.splat_int(0); ROWS];
        for line in Self::lines_of(half) {
            let codes = simd.load_codes(&lines[line].0);
            let (first, second) =
                if C::NIBBLES { (simd.low_codes(codes), simd.high_codes(codes)) } else { (codes, codes) };
            for r in 0..ROWS {
                let x = &bytes[r][g];
                let quad = if C::NIBBLES { 2 * line } else { line };
                low[r] = dot::<S, C>(simd, low[r], first, &x[PLANES - 1][quad]);
                if PLANES == 2 {
                    high[r] = dot::<S, C>(simd, high[r], first, &x[0][quad]);
                }
                if C::NIBBLES {
                    low[r] = dot::<S, C>(simd, low[r], second, &x[PLANES - 1][quad + 1]);
                    if PLANES == 2 {
                        high[r] = dot::<S, C>(simd, high[r], second, &x[0][quad + 1]);
                    }
                }
            }
        }
        if PLANES == 2 {
            for r in 0..ROWS {
                low[r] = simd.add_int(low[r], simd.shl::<8>(high[r]));
            }
        }
        low
    }

    /// The same as [`CodedTask::products`] with whole integers in place of planes of bytes: the sums are equal.
    #[inline(always)]
    fn wide_products<S: Simd, const ROWS: usize>(
        &self,
        simd: S,
        lines: &[Line],
        half: usize,
        g: usize,
        words: &[&[GroupWords]; ROWS],
        heads: &[&[GroupHead]; ROWS],
    ) -> [S::I; ROWS] {
        let mut sums = Self::zeros::<S, ROWS>(simd, half, g, heads);
        for line in Self::lines_of(half) {
            let codes = simd.load_codes(&lines[line].0);
            if C::NIBBLES {
                let (first, second) = (simd.widen(simd.low_codes(codes)), simd.widen(simd.high_codes(codes)));
                for r in 0..ROWS {
                    sums[r] = simd.dot_wide(sums[r], first, &words[r][g][2 * line]);
                    sums[r] = simd.dot_wide(sums[r], second, &words[r][g][2 * line + 1]);
                }
            } else {
                let codes = simd.widen(codes);
                for r in 0..ROWS {
                    sums[r] = simd.dot_wide(sums[r], codes, &words[r][g][line]);
                }
            }
        }
        sums
    }

    /// What the sums of a group, or of a half of it, start from: minus the zero of the codes times the activations.
    #[inline(always)]
    fn zeros<S: Simd, const ROWS: usize>(simd: S, half: usize, g: usize, heads: &[&[GroupHead]; ROWS]) -> [S::I; ROWS] {
        let mut sums = [simd.splat_int(0); ROWS];
        if let Some(bits) = C::ZERO_BITS {
            for r in 0..ROWS {
                let [first, second] = heads[r][g].negative_sums;
                let sum = match (C::HALVES, half) {
                    (false, _) => first + second,
                    (true, 0) => first,
                    (true, _) => second,
                };
                sums[r] = simd.splat_int(sum << bits);
            }
        }
        sums
    }

    /// Lines of a group, or of a half of it where halves have their own scale.
    #[inline(always)]
    fn lines_of(half: usize) -> Range<usize> {
        let lines_per_half = if C::NIBBLES { 2 } else { 4 };
        if C::HALVES { half * lines_per_half..(half + 1) * lines_per_half } else { 0..2 * lines_per_half }
    }
}

#[inline(always)]
fn dot<S: Simd, C: Coding>(simd: S, sum: S::I, codes: S::C, x: &[i8; 4]) -> S::I {
    if C::SMALL { simd.dot::<true>(sum, codes, x) } else { simd.dot::<false>(sum, codes, x) }
}
