//! How the codes and scales of each quantised format lie in a panel. The packing loses nothing.

use super::ggml::{Block, GROUP_LEN, GgmlType, MAX_BLOCK_LEN};
use crate::cpu::{LANES, Simd};

/// Groups under one pair of f16 in the K formats.
const GROUPS_PER_BLOCK: usize = MAX_BLOCK_LEN / GROUP_LEN;

/// Scales of one panel. What they are is the [`Coding`]'s business.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales<'a> {
    /// f16 bits, one vector of outputs at a time.
    pub(super) words: &'a [[u16; LANES]],
    /// Byte factors, one vector of outputs at a time.
    pub(super) factors: &'a [[u8; LANES]],
}

/// Scale and offset of one group for sixteen outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupScale<F> {
    /// Scale of values 0..16 and of 16..32.
    pub(super) scale: [F; 2],
    /// What is added to each value.
    pub(super) offset: F,
}

/// Sizes of a panel, and how to fill one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PanelLayout {
    /// Two codes per byte.
    pub(super) nibbles: bool,
    /// f16 vectors per group, as a fraction: this many per `groups_per_word`.
    words: usize,
    groups_per_word: usize,
    /// Byte vectors per group.
    factors: usize,
    /// Added to each code when packing, so that its zero is the one the kernel expects.
    shift: u8,
}

impl PanelLayout {
    /// The layout of a quantised format.
    pub(super) fn of(ty: GgmlType) -> Self {
        let plain = Self { nibbles: false, words: 1, groups_per_word: 1, factors: 0, shift: 0 };
        let k = Self { words: 2, groups_per_word: GROUPS_PER_BLOCK, factors: 2, ..plain };
        match ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => unreachable!("floats have no codes"),
            GgmlType::Q8_0 => plain,
            // Codes around 16 become codes around 128, and the format one with Q8_0.
            GgmlType::Q5_0 => Self { shift: 112, ..plain },
            GgmlType::Q4_0 => Self { nibbles: true, ..plain },
            GgmlType::Q5_1 => Self { words: 2, ..plain },
            GgmlType::Q4_1 => Self { words: 2, nibbles: true, ..plain },
            GgmlType::Q5_K => k,
            GgmlType::Q4_K => Self { nibbles: true, ..k },
            GgmlType::Q6_K => Self { words: 1, ..k },
        }
    }

    /// 64-byte vectors of codes in a group.
    pub(super) fn lines_per_group(self) -> usize {
        if self.nibbles { 4 } else { 8 }
    }

    /// f16 vectors in a panel.
    pub(super) fn words_per_panel(self, groups: usize) -> usize {
        groups / self.groups_per_word * self.words
    }

    /// Byte vectors in a panel.
    pub(super) fn factors_per_panel(self, groups: usize) -> usize {
        groups * self.factors
    }

    /// Writes the block with values from group `group` on of the output in `lane`.
    pub(super) fn put(
        self,
        block: &Block,
        num_groups: usize,
        (group, lane): (usize, usize),
        (lines, words, factors): (&mut [Line], &mut [[u16; LANES]], &mut [[u8; LANES]]),
    ) {
        let words = &mut words[group / self.groups_per_word * self.words..][..self.words];
        for (word, value) in words.iter_mut().zip([block.scale, block.offset]) {
            word[lane] = value;
        }
        for g in 0..num_groups {
            let values = match self.factors {
                0 => continue,
                _ if self.words == 1 => [block.factors[2 * g], block.factors[2 * g + 1]],
                _ => [block.factors[g], block.minima[g]],
            };
            for (factor, value) in factors[(group + g) * 2..].iter_mut().zip(values) {
                factor[lane] = value;
            }
        }
        for (at, &code) in block.codes[..num_groups * GROUP_LEN].iter().enumerate() {
            let (line, byte, high) = self.place(group * GROUP_LEN + at, lane);
            let code = code + self.shift;
            lines[line].0[byte] |= if high { code << 4 } else { code };
        }
    }

    /// The code of value `k` of the output in `lane`, as the format counts it.
    pub(super) fn code(self, lines: &[Line], k: usize, lane: usize) -> u8 {
        let (line, byte, high) = self.place(k, lane);
        let code = lines[line].0[byte];
        match (self.nibbles, high) {
            (false, _) => code - self.shift,
            (true, false) => code & 15,
            (true, true) => code >> 4,
        }
    }

    /// Rebuilds the block that [`PanelLayout::put`] was given.
    pub(super) fn get(
        self,
        block: &mut Block,
        num_groups: usize,
        (group, lane): (usize, usize),
        lines: &[Line],
        scales: Scales<'_>,
    ) {
        let words = &scales.words[group / self.groups_per_word * self.words..];
        block.scale = words[0][lane];
        block.offset = if self.words == 2 { words[1][lane] } else { 0 };
        for g in 0..num_groups {
            if self.factors == 0 {
                continue;
            }
            let [first, second] = [scales.factors[(group + g) * 2][lane], scales.factors[(group + g) * 2 + 1][lane]];
            if self.words == 1 {
                (block.factors[2 * g], block.factors[2 * g + 1]) = (first, second);
            } else {
                (block.factors[g], block.minima[g]) = (first, second);
            }
        }
        for (at, code) in block.codes[..num_groups * GROUP_LEN].iter_mut().enumerate() {
            *code = self.code(lines, group * GROUP_LEN + at, lane);
        }
    }

    /// Line, byte, and whether it is the high nibble, of value `k` in `lane`. A line has four consecutive values of
    /// each output; with nibbles, the next four in the high halves.
    fn place(self, k: usize, lane: usize) -> (usize, usize, bool) {
        let (quad, byte) = (k / 4, 4 * lane + k % 4);
        if self.nibbles { (quad / 2, byte, quad % 2 == 1) } else { (quad, byte, false) }
    }
}

/// Codes that one vector load takes.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// A quantised format as the kernel sees it.
pub(super) trait Coding: Send + Sync {
    /// Two codes per byte.
    const NIBBLES: bool;
    /// Codes are below 128.
    const SMALL: bool;
    /// The two halves of a group have their own scale.
    const HALVES: bool;
    /// Logarithm of the zero code, or none where the zero is an offset.
    const ZERO_BITS: Option<u32>;

    /// Scale and offset of a group.
    fn scale<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F>;
}

/// Q8_0, and Q5_0 with its codes moved.
#[derive(Debug)]
pub(super) struct Byte;
/// Q4_0.
#[derive(Debug)]
pub(super) struct Nibble;
/// Q5_1 and Q4_1.
#[derive(Debug)]
pub(super) struct Offset<const NIBBLES: bool>;
/// Q5_K and Q4_K.
#[derive(Debug)]
pub(super) struct Nested<const NIBBLES: bool>;
/// Q6_K.
#[derive(Debug)]
pub(super) struct NestedHalves;

#[inline(always)]
fn one_word<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F> {
    let scale = simd.load_f16(&scales.words[group]);
    GroupScale { scale: [scale; 2], offset: simd.splat(0.0) }
}

impl Coding for Byte {
    const NIBBLES: bool = false;
    const SMALL: bool = false;
    const HALVES: bool = false;
    const ZERO_BITS: Option<u32> = Some(7);

    #[inline(always)]
    fn scale<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F> {
        one_word(simd, scales, group)
    }
}

impl Coding for Nibble {
    const NIBBLES: bool = true;
    const SMALL: bool = true;
    const HALVES: bool = false;
    const ZERO_BITS: Option<u32> = Some(3);

    #[inline(always)]
    fn scale<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F> {
        one_word(simd, scales, group)
    }
}

impl<const NIBBLES: bool> Coding for Offset<NIBBLES> {
    const NIBBLES: bool = NIBBLES;
    const SMALL: bool = true;
    const HALVES: bool = false;
    const ZERO_BITS: Option<u32> = None;

    #[inline(always)]
    fn scale<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F> {
        let scale = simd.load_f16(&scales.words[2 * group]);
        GroupScale { scale: [scale; 2], offset: simd.load_f16(&scales.words[2 * group + 1]) }
    }
}

impl<const NIBBLES: bool> Coding for Nested<NIBBLES> {
    const NIBBLES: bool = NIBBLES;
    const SMALL: bool = true;
    const HALVES: bool = false;
    const ZERO_BITS: Option<u32> = None;

    #[inline(always)]
    fn scale<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F> {
        let block = group / GROUPS_PER_BLOCK;
        let scale = simd.mul(simd.load_f16(&scales.words[2 * block]), simd.load_u8(&scales.factors[2 * group]));
        let minimum =
            simd.mul(simd.load_f16(&scales.words[2 * block + 1]), simd.load_u8(&scales.factors[2 * group + 1]));
        GroupScale { scale: [scale; 2], offset: simd.sub(simd.splat(0.0), minimum) }
    }
}

impl Coding for NestedHalves {
    const NIBBLES: bool = false;
    const SMALL: bool = true;
    const HALVES: bool = true;
    const ZERO_BITS: Option<u32> = Some(5);

    #[inline(always)]
    fn scale<S: Simd>(simd: S, scales: Scales<'_>, group: usize) -> GroupScale<S::F> {
        let word = simd.load_f16(&scales.words[group / GROUPS_PER_BLOCK]);
        let first = simd.mul(word, simd.load_i8(&scales.factors[2 * group]));
        let second = simd.mul(word, simd.load_i8(&scales.factors[2 * group + 1]));
        GroupScale { scale: [first, second], offset: simd.splat(0.0) }
    }
}
