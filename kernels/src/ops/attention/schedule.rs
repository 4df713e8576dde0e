//! Which thread computes which queries. The schedule never changes a result: a query's partitions are always the same
//! and are always merged in ascending order.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    AttentionPlan,
    partition::{PARTITION_LEN, Partials, Partition, QUERY_TILE, Scratch},
    reference::HeadShape,
};
use crate::{
    arch::CpuLevel,
    cpu::{LANES, SharedSlice, dispatch},
};

/// Most queries that share the keys and values of a tile, if a row has not more of its own.
const MAX_TILE_QUERIES: usize = 32;
/// Products below which a second thread costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// One call of attention.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) plan: &'a AttentionPlan,
    pub(super) shape: HeadShape,
    pub(super) scale: f32,
    pub(super) level: CpuLevel,
    pub(super) q: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Consecutive rows of one page table, for one key-value head.
#[derive(Debug, Clone)]
struct Tile {
    rows: Range<usize>,
    kv_head: usize,
    /// One past the last position that any of the rows sees.
    visible_end: usize,
}

impl Tile {
    fn num_partitions(&self) -> usize {
        self.visible_end.div_ceil(PARTITION_LEN)
    }
}

impl Call<'_> {
    /// Fills `out`, `[rows, heads, head_dim]`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let tiles = self.tiles();
        let out = SharedSlice::new(out);
        let num_threads = rayon::current_num_threads();
        let products: usize = tiles.iter().map(|tile| self.products(tile)).sum();
        if num_threads == 1 || products < PARALLEL_PRODUCTS {
            let mut scratch = Scratch::default();
            for tile in &tiles {
                self.whole_tile(tile, &mut scratch, out);
            }
        } else if tiles.len() >= 4 * num_threads {
            tiles.par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, tile| {
                self.whole_tile(tile, scratch, out);
            });
        } else {
            // Too few tiles to go round: the partitions go to the threads instead.
            let pieces: Vec<(&Tile, usize)> =
                tiles.iter().flat_map(|tile| (0..tile.num_partitions()).map(move |at| (tile, at))).collect();
            let found: Vec<Partials> = pieces
                .into_par_iter()
                .with_max_len(1)
                .map_init(Scratch::default, |scratch, (tile, at)| {
                    let mut partials = self.nothing(tile);
                    self.partition(tile, &self.queries(tile), at, scratch, &mut partials);
                    partials
                })
                .collect();
            let mut found = found.into_iter();
            for tile in &tiles {
                let mut total = self.nothing(tile);
                for (at, partials) in found.by_ref().take(tile.num_partitions()).enumerate() {
                    self.merge(tile, &mut total, partials, at);
                }
                self.finish(tile, &total, out);
            }
        }
    }

    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    /// Vectors per head.
    fn vectors(&self) -> usize {
        self.shape.head_dim.div_ceil(LANES)
    }

    fn products(&self, tile: &Tile) -> usize {
        tile.rows.len() * self.group() * tile.visible_end * self.shape.head_dim * 2
    }

    fn nothing(&self, tile: &Tile) -> Partials {
        Partials::new((tile.rows.len() * self.group()).next_multiple_of(QUERY_TILE), self.vectors())
    }

    fn tiles(&self) -> Vec<Tile> {
        let max_rows = (MAX_TILE_QUERIES / self.group()).max(1);
        let rows = self.plan.rows();
        let mut tiles = Vec::new();
        let mut start = 0;
        while start < rows.len() {
            let table = rows[start].table;
            let count = rows[start..].iter().take(max_rows).take_while(|row| row.table == table).count();
            let range = start..start + count;
            let visible_end = rows[range.clone()].iter().map(|row| row.visible_end).max().unwrap_or(0);
            for kv_head in 0..self.shape.num_kv_heads {
                tiles.push(Tile { rows: range.clone(), kv_head, visible_end });
            }
            start += count;
        }
        tiles
    }

    /// The scaled queries of a tile, `[rows * group, padded head_dim]`, padded to whole query tiles.
    fn queries(&self, tile: &Tile) -> Vec<f32> {
        let HeadShape { num_heads, head_dim, .. } = self.shape;
        let (group, dim) = (self.group(), self.vectors() * LANES);
        let mut queries = vec![0.0; (tile.rows.len() * group).next_multiple_of(QUERY_TILE) * dim];
        for (at, query) in queries.chunks_exact_mut(dim).take(tile.rows.len() * group).enumerate() {
            let (row, head) = (tile.rows.start + at / group, tile.kv_head * group + at % group);
            let from = &self.q[(row * num_heads + head) * head_dim..][..head_dim];
            for (query, &value) in query.iter_mut().zip(from) {
                *query = value * self.scale;
            }
        }
        queries
    }

    /// Positions of partition `at` that each query of the tile sees.
    fn visible(&self, tile: &Tile, at: usize) -> impl Iterator<Item = usize> {
        let group = self.group();
        self.plan.rows()[tile.rows.clone()]
            .iter()
            .map(move |row| row.visible_end.saturating_sub(at * PARTITION_LEN).min(PARTITION_LEN))
            .flat_map(move |visible| std::iter::repeat_n(visible, group))
    }

    fn partition(&self, tile: &Tile, queries: &[f32], at: usize, scratch: &mut Scratch, out: &mut Partials) {
        let HeadShape { num_kv_heads, head_dim, .. } = self.shape;
        let mut visible: Vec<usize> = self.visible(tile, at).collect();
        visible.resize(visible.len().next_multiple_of(QUERY_TILE), 0);
        let page_len = self.plan.page_len();
        let pages = self.plan.pages(&self.plan.rows()[tile.rows.start]);
        let start = at * PARTITION_LEN;
        let offsets: Vec<usize> = (start..tile.visible_end.min(start + PARTITION_LEN))
            .map(|position| {
                let page = pages[position / page_len] as usize;
                ((page * num_kv_heads + tile.kv_head) * page_len + position % page_len) * head_dim
            })
            .collect();
        let (keys, values) = (self.keys, self.values);
        let partition =
            Partition { queries, visible: &visible, offsets: &offsets, keys, values, head_dim, scratch, out };
        dispatch(self.level, partition);
    }

    fn merge(&self, tile: &Tile, total: &mut Partials, later: Partials, at: usize) {
        if at == 0 {
            // Every row sees at least position 0.
            *total = later;
        } else {
            let seen = self.visible(tile, at).enumerate().filter(|(_, visible)| *visible > 0).map(|(query, _)| query);
            total.merge(&later, seen);
        }
    }

    fn whole_tile(&self, tile: &Tile, scratch: &mut Scratch, out: SharedSlice<'_, f32>) {
        let queries = self.queries(tile);
        let mut total = self.nothing(tile);
        for at in 0..tile.num_partitions() {
            let mut partials = self.nothing(tile);
            self.partition(tile, &queries, at, scratch, &mut partials);
            self.merge(tile, &mut total, partials, at);
        }
        self.finish(tile, &total, out);
    }

    /// Divides by the sums and writes the heads of the tile.
    fn finish(&self, tile: &Tile, total: &Partials, out: SharedSlice<'_, f32>) {
        let HeadShape { num_heads, head_dim, .. } = self.shape;
        let (group, vectors) = (self.group(), self.vectors());
        for at in 0..tile.rows.len() * group {
            let (row, head) = (tile.rows.start + at / group, tile.kv_head * group + at % group);
            // SAFETY: each row and head belongs to one tile, and each tile is finished once.
            let out = unsafe { out.part((row * num_heads + head) * head_dim, head_dim) };
            let inverse = 1.0 / total.sum[at];
            for (out, value) in out.iter_mut().zip(total.values[at * vectors..][..vectors].as_flattened()) {
                *out = value * inverse;
            }
        }
    }
}
