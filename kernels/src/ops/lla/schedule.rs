//! Which thread computes which queries. The schedule never changes a result: nothing that happens to a query depends on
//! the tile that it is in.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::{
    LlaPlan, Ridge,
    reference::LlaShape,
    segment::Lanes,
    strip::Matrix,
    tile::{Found, Probes, Scratch, Tile},
};
use crate::{arch::CpuLevel, cpu::LANES};

/// Most queries that share the keys and values of a tile.
const MAX_TILE_QUERIES: usize = 32;
/// Most weights that a tile keeps, 2 MiB of them; long sequences have smaller tiles.
const MAX_TILE_WEIGHTS: usize = 1 << 19;
/// Products below which a second thread costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 17;
/// Passes over the keys that a query is likely to need; for the estimate of the work alone.
const USUAL_PASSES: usize = 8;

/// One call, checked.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) plan: &'a LlaPlan,
    pub(super) shape: LlaShape,
    pub(super) scale: f32,
    pub(super) probe: ProbeSource<'a>,
    pub(super) level: CpuLevel,
    /// Whether [`Found::details`] is wanted.
    pub(super) details: bool,
    pub(super) q: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Where the probes of a call come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProbeSource<'a> {
    /// The systems of the queries.
    Solve { ridge: Ridge<'a>, tolerance: f32, max_iterations: usize },
    /// The caller, `[rows, heads, key_dim]`.
    Given(&'a [f32]),
}

/// Queries of one key-value head and one page table: `index` counts the heads of a group first, then the rows from
/// `first_row`.
#[derive(Debug, Clone)]
pub(super) struct Queries {
    first_row: usize,
    kv_head: usize,
    group: usize,
    index: Range<usize>,
}

impl Queries {
    /// Row and head of each query.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let Self { first_row, kv_head, group, ref index } = *self;
        index.clone().map(move |index| (first_row + index / group, kv_head * group + index % group))
    }
}

impl Call<'_> {
    /// What the queries end with, tile by tile.
    pub(super) fn run(&self) -> Vec<(Queries, Found)> {
        let num_threads = rayon::current_num_threads();
        let seen = self.plan.rows().iter().map(|row| row.visible_end - row.visible_start);
        let seen = seen.fold(0, usize::saturating_add);
        let per_position = self.shape.num_heads * (self.shape.key_dim + self.shape.value_dim) * USUAL_PASSES;
        let products = seen.saturating_mul(per_position);
        let num_threads = if products < PARALLEL_PRODUCTS { 1 } else { num_threads };
        let tiles = self.tiles(num_threads);
        if num_threads == 1 {
            let mut scratch = Scratch::default();
            return tiles.into_iter().map(|tile| self.tile(tile, false, &mut scratch)).collect();
        }
        // Too few tiles to go round: their segments go to the threads as well.
        let split = tiles.len() < num_threads;
        // As many buffers as threads: `map_init` would make new ones for nearly every tile.
        let spare = Mutex::new(Vec::<Scratch>::new());
        let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        tiles
            .into_par_iter()
            .with_max_len(1)
            .map(|tile| {
                let mut scratch = spare().pop().unwrap_or_default();
                let found = self.tile(tile, split, &mut scratch);
                spare().push(scratch);
                found
            })
            .collect()
    }

    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    fn tiles(&self, num_threads: usize) -> Vec<Queries> {
        let (rows, group) = (self.plan.rows(), self.group());
        // Several tiles for each thread even out their lengths.
        let share =
            if num_threads == 1 { usize::MAX } else { (rows.len() * self.shape.num_heads).div_ceil(4 * num_threads) };
        let mut tiles = Vec::new();
        let mut first_row = 0;
        for run in rows.chunk_by(|a, b| a.table == b.table) {
            let longest = run.iter().map(|row| row.visible_end - row.visible_start).max().unwrap_or(0);
            let fitting = MAX_TILE_WEIGHTS / longest.max(1);
            let most = MAX_TILE_QUERIES.min(fitting).min(share).max(1);
            let count = run.len() * group;
            for kv_head in 0..self.shape.num_kv_heads {
                for start in (0..count).step_by(most) {
                    tiles.push(Queries { first_row, kv_head, group, index: start..count.min(start + most) });
                }
            }
            first_row += run.len();
        }
        tiles
    }

    fn tile(&self, queries: Queries, split: bool, scratch: &mut Scratch) -> (Queries, Found) {
        let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = self.shape;
        let rows = self.plan.rows();
        let probes = match self.probe {
            ProbeSource::Given(probe) => Probes::Given(self.heads(probe, &queries)),
            ProbeSource::Solve { ridge, tolerance, max_iterations } => {
                let at = |(row, head): (usize, usize)| match ridge {
                    Ridge::PerHead(ridge) => ridge[head],
                    Ridge::PerRow(ridge) => ridge[row * num_heads + head],
                };
                Probes::Solve { ridge: queries.places().map(at).collect(), tolerance, max_iterations }
            }
        };
        let tile = Tile {
            level: self.level,
            split,
            details: self.details,
            queries: self.heads(self.q, &queries),
            scale: self.scale,
            probes,
            visible: queries.places().map(|(row, _)| rows[row].visible_start..rows[row].visible_end).collect(),
            keys: Matrix { data: self.keys, dim: key_dim },
            values: Matrix { data: self.values, dim: value_dim },
        };
        let table = rows[queries.first_row].table;
        let kv_head = (queries.kv_head, num_kv_heads);
        let found = tile.run(scratch, |positions| self.plan.run(table, positions, kv_head));
        (queries, found)
    }

    /// The heads of the queries out of `[rows, heads, key_dim]`, each filled up with zeros to whole vectors.
    fn heads(&self, from: &[f32], queries: &Queries) -> Vec<Lanes> {
        let LlaShape { num_heads, key_dim, .. } = self.shape;
        let vectors = key_dim.div_ceil(LANES);
        let mut heads = vec![[0.0; LANES]; queries.index.len() * vectors];
        for (to, (row, head)) in heads.as_flattened_mut().chunks_exact_mut(vectors * LANES).zip(queries.places()) {
            to[..key_dim].copy_from_slice(&from[(row * num_heads + head) * key_dim..][..key_dim]);
        }
        heads
    }
}
