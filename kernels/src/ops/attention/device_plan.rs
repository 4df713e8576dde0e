//! An [`AttentionPlan`] on a device: arrays that are written anew each step, and the shape that fixes every grid.
//!
//! A recording of launches belongs to a [`PlanShape`]. Steps of the same shape replay it: their rows, tiles and pages lie
//! in arrays at the same addresses, rows and tiles that a step does not need are marked empty, and kernels leave them at
//! once. A kernel first compares the shape of its launch with that of the step that is there, and does nothing if they
//! differ, so a recording that is replayed at the wrong time touches no memory that is not its own.

use std::sync::Arc;

use super::{AttentionPlan, reference::HeadShape};
use crate::{
    KernelError,
    device::{Array, Device, ElementType},
    ops::partials::narrow,
};

const OP: &str = "device plan";
/// Positions of a split; `kSplitLen` in `attention.cuh`.
pub(super) const SPLIT_LEN: usize = 256;
/// Queries of a split tile and of a whole tile; `kSplitQueries` and `kWholeQueries` in `attention.cuh`.
pub(super) const SPLIT_QUERIES: usize = 16;
pub(super) const WHOLE_QUERIES: usize = 64;
/// Queries from which on rows of one table that follow each other take whole tiles: enough blocks to keep a device busy,
/// and each reads the keys once for 64 queries. Both kinds of tiles give the same bits.
const LONG_RUN: usize = 256;
/// Queries of no split tile; `kNoSlot` in `plan.cuh`.
const NO_SLOT: u32 = u32::MAX;
/// Blocks along the second axis of a grid.
const MOST_SPLITS: usize = 65535;

/// What steps may need at most, and what they have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    /// Rows of a step.
    pub max_rows: usize,
    /// Page tables of a step, each of rows that follow each other.
    pub max_tables: usize,
    /// Entries of all page tables of a step together.
    pub max_pages: usize,
    /// One past the largest position; rotary tables are as long.
    pub max_positions: usize,
    /// Pages of the caches.
    pub num_pages: usize,
    /// Positions of a page.
    pub page_len: usize,
    /// Query heads that read one key-value head.
    pub group: usize,
}

/// What fixes the launches of a step: two steps of one shape take the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PlanShape {
    num_rows: u32,
    split_tiles: u32,
    whole_tiles: u32,
    num_splits: u32,
}

impl PlanShape {
    /// Rows, those that only fill the shape among them.
    pub fn num_rows(&self) -> usize {
        self.num_rows as usize
    }

    /// Tiles of queries, each in one block for every key-value head and split; a power of two or the most there can be.
    pub fn split_tiles(&self) -> usize {
        self.split_tiles as usize
    }

    /// Tiles of queries, each in one block for every key-value head; a power of two or the most there can be.
    pub fn whole_tiles(&self) -> usize {
        self.whole_tiles as usize
    }

    /// Splits of the longest row of a split tile; a power of two.
    pub fn num_splits(&self) -> usize {
        self.num_splits as usize
    }
}

/// Mirrored in `plan.cuh`, as are the next two.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct DeviceRow {
    first_page: u32,
    position: u32,
    visible_end: u32,
    slot: u32,
}

#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct DeviceTile {
    first_query: u32,
    num_queries: u32,
    first_page: u32,
    first_slot: u32,
    shortest_end: u32,
    longest_end: u32,
}

#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct PlanParams {
    held: u64,
    rows: u64,
    split_tiles: u64,
    whole_tiles: u64,
    pages: u64,
    shape: PlanShape,
    page_len: u32,
    group: u32,
}

const _: () = assert!(size_of::<PlanShape>() == 16 && size_of::<DeviceRow>() == 16 && size_of::<DeviceTile>() == 24);
const _: () = assert!(size_of::<PlanParams>() == 5 * 8 + 6 * 4);

/// Device memory for the plan of one step at a time.
#[derive(Debug)]
pub struct DevicePlan {
    limits: PlanLimits,
    memory: Array,
}

/// A plan cut into tiles, to be written to a [`DevicePlan`].
#[derive(Debug, Clone)]
pub struct PlanStep {
    limits: PlanLimits,
    shape: PlanShape,
    rows: Vec<DeviceRow>,
    split_tiles: Vec<DeviceTile>,
    whole_tiles: Vec<DeviceTile>,
    pages: Vec<u32>,
}

impl DevicePlan {
    /// Memory for steps within `limits`. Until the first step is written it holds one without rows.
    ///
    /// # Errors
    /// If a limit is zero or exceeds 32 bits, or there is not enough memory.
    pub fn new(device: &Arc<dyn Device>, limits: PlanLimits) -> Result<Self, KernelError> {
        let PlanLimits { max_rows, max_tables, max_pages, max_positions, num_pages, page_len, group } = limits;
        for (what, size) in [
            ("max_rows", max_rows),
            ("max_tables", max_tables),
            ("max_pages", max_pages),
            ("max_positions", max_positions),
            ("num_pages", num_pages),
            ("page_len", page_len),
            ("group", group),
        ] {
            if size == 0 {
                return Err(KernelError::Zero { op: OP, what });
            }
            narrow(OP, what, size)?;
        }
        let bytes = limits.bytes()?;
        Ok(Self { limits, memory: Array::zeros(device, ElementType::U8, bytes)? })
    }

    /// What it was made for.
    pub fn limits(&self) -> PlanLimits {
        self.limits
    }

    /// Cuts a plan into tiles, in the smallest shape that has `num_rows` rows: numbers of tiles and splits are rounded up
    /// to powers of two, so that few shapes are needed. Rows past those of the plan only fill the shape: kernels write
    /// nothing to the caches for them, and attention gives zeros.
    ///
    /// # Errors
    /// If the plan exceeds the limits, has more rows than `num_rows` or another page length.
    pub fn step(&self, plan: &AttentionPlan, num_rows: usize) -> Result<PlanStep, KernelError> {
        let limits = self.limits;
        check_plan(plan, num_rows, limits)?;
        let mut step = PlanStep::cut(plan, limits)?;
        let most = limits.most_tiles(num_rows, SPLIT_QUERIES);
        if step.split_tiles.len() > most {
            let (index, len) = (step.split_tiles.len(), most + 1);
            return Err(KernelError::OutOfRange { op: OP, what: "tile of short runs of rows", index, len });
        }
        let split_rows = step.rows.iter().filter(|row| row.slot != NO_SLOT);
        let longest = split_rows.map(|row| row.visible_end as usize).max().unwrap_or(0);
        step.shape = PlanShape {
            num_rows: num_rows as u32,
            split_tiles: limits.bucket(step.split_tiles.len(), num_rows, SPLIT_QUERIES),
            whole_tiles: limits.bucket(step.whole_tiles.len(), num_rows, WHOLE_QUERIES),
            num_splits: longest.div_ceil(SPLIT_LEN).max(1).next_power_of_two() as u32,
        };
        step.fill();
        Ok(step)
    }

    /// Copies a step to the device, in one piece.
    ///
    /// # Errors
    /// If the step was cut for other limits, or the driver refuses.
    pub fn write(&self, step: &PlanStep) -> Result<(), KernelError> {
        if step.limits != self.limits {
            return Err(KernelError::ForeignStep);
        }
        let parts = self.limits.parts(step.shape);
        let contents: [&[u8]; 5] = [
            bytemuck::bytes_of(&step.shape),
            bytemuck::cast_slice(&step.rows),
            bytemuck::cast_slice(&step.split_tiles),
            bytemuck::cast_slice(&step.whole_tiles),
            bytemuck::cast_slice(&step.pages),
        ];
        let mut bytes = Vec::with_capacity(Array::carved_bytes(&parts[..4]) + contents[4].len());
        for (index, content) in contents.into_iter().enumerate() {
            bytes.resize(Array::carved_bytes(&parts[..index]), 0);
            bytes.extend_from_slice(content);
        }
        self.memory.write_bytes(0, &bytes)
    }

    /// The memory that [`Self::params`] points into.
    pub(crate) fn memory(&self) -> &Array {
        &self.memory
    }

    /// Where kernels find steps of a shape.
    pub(crate) fn params(&self, shape: PlanShape) -> Result<PlanParams, KernelError> {
        let parts = self.memory.carve(&self.limits.parts(shape))?;
        Ok(PlanParams {
            held: parts[0].address(),
            rows: parts[1].address(),
            split_tiles: parts[2].address(),
            whole_tiles: parts[3].address(),
            pages: parts[4].address(),
            shape,
            page_len: self.limits.page_len as u32,
            group: self.limits.group as u32,
        })
    }
}

impl PlanLimits {
    /// Bytes of a [`DevicePlan`].
    ///
    /// # Errors
    /// As [`PlanLimits::largest_shape`].
    pub fn bytes(&self) -> Result<usize, KernelError> {
        Ok(Array::carved_bytes(&self.parts(self.largest_shape()?)))
    }

    /// A shape that asks for as much work space as any.
    ///
    /// # Errors
    /// If its sizes exceed 32 bits.
    pub fn largest_shape(&self) -> Result<PlanShape, KernelError> {
        let num_splits = self.most_splits();
        if num_splits > MOST_SPLITS {
            return Err(KernelError::OutOfRange { op: OP, what: "split", index: num_splits, len: MOST_SPLITS + 1 });
        }
        let queries = self.max_rows.checked_mul(self.group).ok_or(KernelError::Overflow { op: OP, what: "queries" })?;
        narrow(OP, "queries", queries)?;
        Ok(PlanShape {
            num_rows: self.max_rows as u32,
            split_tiles: narrow(OP, "tiles", self.most_tiles(self.max_rows, SPLIT_QUERIES))?,
            whole_tiles: narrow(OP, "tiles", self.most_tiles(self.max_rows, WHOLE_QUERIES))?,
            num_splits: num_splits as u32,
        })
    }

    /// Tiles of `queries` queries that `num_rows` rows need at most: when each has a table of its own. Of split tiles a table
    /// needs no more than a run that is not yet long.
    fn most_tiles(&self, num_rows: usize, queries: usize) -> usize {
        let of_rows = num_rows.saturating_mul(self.group.div_ceil(queries));
        if queries == SPLIT_QUERIES {
            of_rows.min(self.max_tables.saturating_mul(LONG_RUN.div_ceil(queries)))
        } else {
            of_rows
        }
    }

    fn most_splits(&self) -> usize {
        self.max_positions.div_ceil(SPLIT_LEN).next_power_of_two()
    }

    /// `count` tiles rounded up to a power of two, or to the most that there can be.
    fn bucket(&self, count: usize, num_rows: usize, queries: usize) -> u32 {
        let rounded = if count == 0 { 0 } else { count.next_power_of_two() };
        rounded.min(self.most_tiles(num_rows, queries)) as u32
    }

    /// The shape that is held, rows, split tiles, whole tiles, pages.
    fn parts(&self, shape: PlanShape) -> [(ElementType, usize); 5] {
        let of = |count: u32, size: usize| (ElementType::U8, (count as usize).saturating_mul(size));
        [
            of(1, size_of::<PlanShape>()),
            of(shape.num_rows, size_of::<DeviceRow>()),
            of(shape.split_tiles, size_of::<DeviceTile>()),
            of(shape.whole_tiles, size_of::<DeviceTile>()),
            (ElementType::U32, self.max_pages),
        ]
    }
}

fn check_plan(plan: &AttentionPlan, num_rows: usize, limits: PlanLimits) -> Result<(), KernelError> {
    let at_most = |what, index: usize, len: usize| {
        if index < len { Ok(()) } else { Err(KernelError::OutOfRange { op: OP, what, index, len }) }
    };
    at_most("number of rows", num_rows, limits.max_rows + 1)?;
    at_most("row", plan.num_rows().saturating_sub(1), num_rows.max(1))?;
    if plan.page_len() != limits.page_len {
        return Err(KernelError::Length { op: OP, what: "page", expected: limits.page_len, got: plan.page_len() });
    }
    at_most("page", plan.page_end().saturating_sub(1), limits.num_pages)?;
    for row in plan.rows() {
        at_most("position", row.position, limits.max_positions)?;
        at_most("visible position", row.visible_end - 1, limits.max_positions)?;
    }
    Ok(())
}

impl PlanStep {
    /// The shape whose launches run it.
    pub fn shape(&self) -> PlanShape {
        self.shape
    }

    /// Rows, tiles and pages, without what fills the shape.
    fn cut(plan: &AttentionPlan, limits: PlanLimits) -> Result<Self, KernelError> {
        let group = limits.group;
        let mut starts = vec![None; plan.tables().len()];
        let (mut rows, mut pages) = (Vec::with_capacity(plan.num_rows()), Vec::new());
        for row in plan.rows() {
            let first_page = *starts[row.table].get_or_insert_with(|| {
                pages.extend_from_slice(&plan.tables()[row.table]);
                (pages.len() - plan.tables()[row.table].len()) as u32
            });
            let (position, visible_end) = (row.position as u32, row.visible_end as u32);
            rows.push(DeviceRow { first_page, position, visible_end, slot: NO_SLOT });
        }
        if pages.len() > limits.max_pages {
            let (expected, got) = (limits.max_pages, pages.len());
            return Err(KernelError::Length { op: OP, what: "pages of all tables, at most", expected, got });
        }
        let (mut split_tiles, mut whole_tiles) = (Vec::new(), Vec::new());
        let (mut first_row, mut num_slots) = (0, 0);
        for run in plan.rows().chunk_by(|a, b| a.table == b.table) {
            let queries = first_row * group..(first_row + run.len()) * group;
            if run.len() * group < LONG_RUN {
                for (index, row) in rows[first_row..][..run.len()].iter_mut().enumerate() {
                    row.slot = (num_slots + index * group) as u32;
                }
                num_slots += queries.len();
                split_tiles.extend(tiles(&rows, queries, (SPLIT_QUERIES, group)));
            } else {
                whole_tiles.extend(tiles(&rows, queries, (WHOLE_QUERIES, group)));
            }
            first_row += run.len();
        }
        // The longest first, so that none starts late and ends last.
        whole_tiles.sort_by_key(|tile| std::cmp::Reverse(tile.longest_end));
        let shape = PlanShape { num_rows: 0, split_tiles: 0, whole_tiles: 0, num_splits: 0 };
        Ok(Self { limits, shape, rows, split_tiles, whole_tiles, pages })
    }

    /// Adds the empty rows and tiles of the shape.
    fn fill(&mut self) {
        let row = DeviceRow { first_page: 0, position: 0, visible_end: 0, slot: NO_SLOT };
        let tile = DeviceTile {
            first_query: 0,
            num_queries: 0,
            first_page: 0,
            first_slot: NO_SLOT,
            shortest_end: 0,
            longest_end: 0,
        };
        self.rows.resize(self.shape.num_rows(), row);
        self.split_tiles.resize(self.shape.split_tiles(), tile);
        self.whole_tiles.resize(self.shape.whole_tiles(), tile);
    }
}

/// Cuts queries of rows with one page table.
fn tiles(
    rows: &[DeviceRow],
    queries: std::ops::Range<usize>,
    (tile_len, group): (usize, usize),
) -> impl Iterator<Item = DeviceTile> {
    queries.clone().step_by(tile_len).map(move |first| {
        let end = (first + tile_len).min(queries.end);
        let seen = rows[first / group..(end - 1) / group + 1].iter().map(|row| row.visible_end);
        DeviceTile {
            first_query: first as u32,
            num_queries: (end - first) as u32,
            first_page: rows[first / group].first_page,
            first_slot: rows[first / group].slot.saturating_add((first % group) as u32),
            shortest_end: seen.clone().min().unwrap_or(0),
            longest_end: seen.max().unwrap_or(0),
        }
    })
}

/// Lengths of the arrays of a shape, in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLens {
    /// `[rows, heads, head_dim]`
    pub(crate) queries: usize,
    /// `[pages, kv_heads, page_len, head_dim]`
    pub(crate) cache: usize,
}

/// Refuses heads of another group than the plan's, and caches whose vectors do not count in 32 bits.
pub(crate) fn check_heads(
    op: &'static str,
    plan: &DevicePlan,
    shape: PlanShape,
    heads: HeadShape,
) -> Result<HeadLens, KernelError> {
    let (HeadShape { num_heads, num_kv_heads, head_dim }, limits) = (heads, plan.limits());
    if num_kv_heads == 0 || num_heads != num_kv_heads.saturating_mul(limits.group) {
        return Err(KernelError::HeadGroups { heads: num_heads, kv_heads: num_kv_heads });
    }
    let product = |what, sizes: &[usize]| {
        let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        product.ok_or(KernelError::Overflow { op, what })
    };
    let vectors = product("keys", &[limits.num_pages, num_kv_heads, limits.page_len])?;
    narrow(op, "keys", vectors)?;
    Ok(HeadLens {
        queries: product("q", &[shape.num_rows(), num_heads, head_dim])?,
        cache: product("keys", &[vectors, head_dim])?,
    })
}
