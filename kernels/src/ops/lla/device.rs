//! What the device kernels of local linear attention are told: tiles of queries, page tables and parameters; `launches`
//! has the launches of a call. No device is needed to build any of it, and the tests run the same launches on the host.
//!
//! # Choices
//!
//! *Prefill is one launch.* The loop over the steps of the solver is inside the kernel, with the systems of a tile in
//! shared memory, so the host waits for nothing and a tile stops when its last query has finished. Sixteen queries of 128
//! dimensions (32 up to 64) fit into the 64 KiB of the smallest architecture; four warps share the keys of a tile of keys
//! so that the block is still busy. Query heads that read one key-value head share tiles.
//!
//! *Two arithmetics.* fp16 operands with sums in f32 serve 16-bit tensors; plain f32 serves f32 tensors, and what fp16
//! cannot hold. The kernels find out themselves: they mark a block, and a second launch computes marked blocks only.
//!
//! *Decoding sums second moments* of the keys instead of iterating over them, since every iteration would end in an
//! agreement of the whole grid.

use crate::{KernelError, device::ElementType, device::Params, reference::LlaShape};

use super::{LlaPlan, LlaSolver};

const OP: &str = "lla on the device";
/// Positions of a split when decoding; `kSplitLen` in `decode.cuh`.
pub(super) const SPLIT_LEN: usize = 256;
/// Head sizes that there are kernels for, the multiples of 32; others are padded with zeros.
pub(super) const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];
/// The most splits of a query: blocks along the second axis of a grid.
const MOST_SPLITS: usize = 65535;

/// Positions `start..end` that a row sees through page table `table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LlaVisible {
    /// Index of the table.
    pub table: u32,
    /// First position.
    pub start: u32,
    /// One past the last position.
    pub end: u32,
}

/// Consecutive queries of one table that share a block. Query `i` is head `i % group` of a group of heads, those that
/// read one key-value head, in row `i / group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LlaTile {
    /// The first query.
    pub first_query: u32,
    /// Queries.
    pub num_queries: u32,
    /// The table, and the positions that some query of the tile sees.
    pub visible: LlaVisible,
}

/// What solving took, summed over queries. The kernels add to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LlaCounters {
    /// Steps of all queries.
    pub iterations: u64,
    /// Most steps of a query.
    pub largest_iterations: u32,
    /// Queries that returned softmax attention because their probe, or its output, was not finite.
    pub num_fallbacks: u32,
    /// Queries that ran out of steps.
    pub num_capped: u32,
    /// Blocks that were computed in f32 because fp16 could not hold their inputs.
    pub num_wide: u32,
}

/// Parameters of a kernel; the fields are explained in `params.cuh`. Pointers are device addresses, 0 for none.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LlaParams {
    pub(super) q: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) probe: u64,
    pub(super) output: u64,
    pub(super) ridge: u64,
    pub(super) tiles: u64,
    pub(super) visible: u64,
    pub(super) pages: u64,
    pub(super) table_starts: u64,
    pub(super) marks: u64,
    pub(super) counters: u64,
    pub(super) records: u64,
    pub(super) solutions: u64,
    pub(super) held: u64,
    pub(super) element_type: u32,
    pub(super) num_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) key_dim: u32,
    pub(super) value_dim: u32,
    pub(super) page_len: u32,
    pub(super) ridge_per_row: u32,
    pub(super) only_marked: u32,
    pub(super) split_len: u32,
    pub(super) num_splits: u32,
    pub(super) output_stride: u32,
    pub(super) num_rows: u32,
    pub(super) max_steps: u32,
    pub(super) num_rounds: u32,
    pub(super) tolerance: f32,
    pub(super) scale_log2: f32,
}

impl Params for LlaParams {}

const _: () = {
    assert!(size_of::<LlaVisible>() == 12 && size_of::<LlaTile>() == 20 && size_of::<LlaCounters>() == 24);
    assert!(size_of::<LlaParams>() == 15 * 8 + 16 * 4);
};

/// Device addresses of the tensors of a call, aligned to 16 bytes where they hold queries, keys, values or probes.
#[derive(Debug, Clone, Copy, Default)]
pub struct LlaAddresses {
    /// `[rows, heads, key_dim]`
    pub q: u64,
    /// `[pages, kv_heads, page_len, key_dim]`
    pub keys: u64,
    /// `[pages, kv_heads, page_len, value_dim]`
    pub values: u64,
    /// `[rows, output stride]`, written: `heads * value_dim` values, then zeros.
    pub output: u64,
    /// [`LlaDevicePlan::tiles`]
    pub tiles: u64,
    /// [`LlaDevicePlan::visible`]
    pub visible: u64,
    /// [`LlaDevicePlan::pages`]
    pub pages: u64,
    /// [`LlaDevicePlan::table_starts`]
    pub table_starts: u64,
    /// `u32`, as many as [`LlaDevicePlan::prefill_marks`] or [`DecodeSizes::marks`]; need not be set.
    pub marks: u64,
    /// One [`LlaCounters`], added to.
    pub counters: u64,
    /// f32, [`DecodeSizes::records`]; decoding only.
    pub records: u64,
    /// f32, [`DecodeSizes::solutions`]; decoding only.
    pub solutions: u64,
}

/// Where the slope of a query comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LlaProbe {
    /// Solve for it: local linear attention.
    Solve {
        /// Device address of the ridges in f32, all finite and above zero: `[heads]`, or `[rows, heads]`.
        ridge: u64,
        /// Which of the two.
        ridge_per_row: bool,
        /// When to stop.
        solver: LlaRounds,
    },
    /// Parallax: the device address of the probes, `[rows, heads, key_dim]`, of the type of the queries.
    Given(u64),
}

/// When the device solver stops: each round starts from the residual as it is, computed anew, and ends when that has
/// become small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LlaRounds {
    /// Norm of the residual at which a round ends, relative to its start. Zero asks for as many steps as rounding allows.
    pub tolerance: f32,
    /// Steps of a round at most.
    pub max_steps: u32,
    /// Rounds.
    pub num_rounds: u32,
}

impl LlaRounds {
    /// For prefill. With 16-bit tensors two rounds of steps with single fp16 operands reach what a 16-bit output can
    /// show; f32 asks for more.
    pub fn prefill(element_type: ElementType) -> Self {
        match element_type {
            ElementType::F16 | ElementType::BF16 => Self { tolerance: 3e-2, max_steps: 64, num_rounds: 2 },
            _ => Self { tolerance: 1e-4, max_steps: 256, num_rounds: 2 },
        }
    }

    /// For decoding, whose solver is f32 for all types and cheap.
    pub fn decode() -> Self {
        Self { tolerance: 1e-4, max_steps: 256, num_rounds: 2 }
    }
}

impl From<LlaSolver> for LlaRounds {
    /// What the solver of [`lla`](crate::lla) is asked for: one round, so that a query stops at the same residual, and
    /// after as many steps, as there.
    fn from(solver: LlaSolver) -> Self {
        // More steps than 32 bits count are never taken.
        let max_steps = u32::try_from(solver.max_iterations).unwrap_or(u32::MAX);
        Self { tolerance: solver.tolerance, max_steps, num_rounds: 1 }
    }
}

/// A [`LlaPlan`] as the kernels read it, for one shape. Arrays are to be copied to the device as they are.
#[derive(Debug, Clone)]
pub struct LlaDevicePlan {
    pub(super) sizes: CallSizes,
    /// Longest first, so that none starts late and ends last.
    tiles: Vec<LlaTile>,
    visible: Vec<LlaVisible>,
    pages: Vec<u32>,
    table_starts: Vec<u32>,
    page_end: usize,
}

/// What the launches of a call have in common beside addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallSizes {
    pub(super) shape: LlaShape,
    /// The head size of the kernels.
    pub(super) dim: usize,
    pub(super) page_len: usize,
    /// Splits of the longest row.
    pub(super) num_splits: usize,
    /// Values from one row of the output to the next.
    pub(super) output_stride: usize,
}

impl CallSizes {
    /// Checks the heads. Outputs have no gaps.
    pub(super) fn new(shape: LlaShape, page_len: usize, num_splits: usize) -> Result<Self, KernelError> {
        let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = shape;
        if num_kv_heads == 0 || num_heads == 0 || num_heads % num_kv_heads != 0 {
            return Err(KernelError::HeadGroups { heads: num_heads, kv_heads: num_kv_heads });
        }
        for (what, size) in [("key_dim", key_dim), ("value_dim", value_dim)] {
            if size == 0 {
                return Err(KernelError::Zero { op: OP, what });
            }
        }
        let largest = key_dim.max(value_dim);
        let dim = HEAD_DIMS.into_iter().find(|dim| *dim >= largest).ok_or(KernelError::OutOfRange {
            op: OP,
            what: "head size",
            index: largest,
            len: HEAD_DIMS[HEAD_DIMS.len() - 1] + 1,
        })?;
        if num_splits > MOST_SPLITS {
            return Err(KernelError::OutOfRange { op: OP, what: "split", index: num_splits, len: MOST_SPLITS + 1 });
        }
        let width = num_heads.checked_mul(value_dim).ok_or(KernelError::Overflow { op: OP, what: "output" })?;
        Self { shape, dim, page_len, num_splits, output_stride: 0 }.with_output_stride(width)
    }

    /// The same with other rows of the output.
    pub(super) fn with_output_stride(self, output_stride: usize) -> Result<Self, KernelError> {
        let width = self.shape.num_heads * self.shape.value_dim;
        if output_stride < width {
            let (expected, got) = (width, output_stride);
            return Err(KernelError::Length { op: OP, what: "row of the output, at least", expected, got });
        }
        narrow(output_stride)?;
        Ok(Self { output_stride, ..self })
    }

    /// Refuses caches whose vectors do not count in 31 bits.
    pub(super) fn check_cache(&self, num_pages: usize) -> Result<(), KernelError> {
        let heads = num_pages.checked_mul(self.shape.num_kv_heads);
        countable("keys", heads.and_then(|heads| heads.checked_mul(self.page_len)))
    }

    /// Refuses queries that do not count in 31 bits.
    pub(super) fn check_queries(&self, num_rows: usize) -> Result<(), KernelError> {
        countable("q", num_rows.checked_mul(self.shape.num_heads))
    }

    /// Lengths of the work space of decoding, for so many rows.
    pub(super) fn decode_sizes(&self, num_rows: usize) -> DecodeSizes {
        let queries = num_rows.saturating_mul(self.shape.num_heads);
        let marks = queries.saturating_mul(self.num_splits);
        let (record, solution) = (self.dim * self.dim + self.dim + 4, self.dim + 4);
        let (records, solutions) = (marks.saturating_mul(record), queries.saturating_mul(solution));
        DecodeSizes { marks, records, solutions }
    }
}

/// Refuses counts that kernels cannot keep in an `int`.
fn countable(what: &'static str, count: Option<usize>) -> Result<(), KernelError> {
    match count {
        Some(count) if i32::try_from(count).is_ok() => Ok(()),
        _ => Err(KernelError::Overflow { op: OP, what }),
    }
}

/// Lengths of the work space of decoding, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeSizes {
    /// For [`LlaAddresses::marks`].
    pub marks: usize,
    /// For [`LlaAddresses::records`].
    pub records: usize,
    /// For [`LlaAddresses::solutions`].
    pub solutions: usize,
}

impl LlaDevicePlan {
    /// Cuts `plan` into tiles for heads of `shape`.
    ///
    /// # Errors
    /// If the heads are larger than the kernels are made for, do not divide into groups, or the sizes exceed 32 bits.
    pub fn new(plan: &LlaPlan, shape: LlaShape) -> Result<Self, KernelError> {
        let longest = plan.rows().iter().map(|row| row.visible_end - row.visible_start).max().unwrap_or(0);
        let sizes = CallSizes::new(shape, plan.page_len(), longest.div_ceil(SPLIT_LEN).max(1))?;
        sizes.check_cache(plan.page_end())?;
        sizes.check_queries(plan.num_rows())?;
        let mut visible = Vec::with_capacity(plan.num_rows());
        for row in plan.rows() {
            let (table, start, end) = (row.table, row.visible_start, row.visible_end);
            visible.push(LlaVisible { table: narrow(table)?, start: narrow(start)?, end: narrow(end)? });
        }
        let mut table_starts = Vec::with_capacity(plan.tables().len());
        let mut pages = Vec::new();
        for table in plan.tables() {
            table_starts.push(narrow(pages.len())?);
            pages.extend_from_slice(table);
        }
        let tiles = tiles(&visible, shape.num_heads / shape.num_kv_heads, tile_rows(sizes.dim));
        Ok(Self { sizes, tiles, visible, pages, table_starts, page_end: plan.page_end() })
    }

    /// The same for an output whose rows start `output_stride` values apart, where they follow each other without gaps
    /// otherwise. Kernels fill the gaps with zeros.
    ///
    /// # Errors
    /// If a row has more values than that, or the stride exceeds 32 bits.
    pub fn with_output_stride(self, output_stride: usize) -> Result<Self, KernelError> {
        Ok(Self { sizes: self.sizes.with_output_stride(output_stride)?, ..self })
    }

    /// Tiles of queries, `[tiles]`.
    pub fn tiles(&self) -> &[LlaTile] {
        &self.tiles
    }

    /// What each row sees, `[rows]`.
    pub fn visible(&self) -> &[LlaVisible] {
        &self.visible
    }

    /// The pages of all tables, one table after the other.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Where each table starts in [`Self::pages`].
    pub fn table_starts(&self) -> &[u32] {
        &self.table_starts
    }

    /// The sizes that the plan was made for.
    pub fn shape(&self) -> LlaShape {
        self.sizes.shape
    }

    /// Values of queries or probes, of the keys and of the values that a call reads at least, and of the outputs.
    pub fn tensor_lens(&self) -> [usize; 4] {
        let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = self.sizes.shape;
        let (rows, slots) = (self.visible.len(), self.page_end * num_kv_heads * self.sizes.page_len);
        [rows * num_heads * key_dim, slots * key_dim, slots * value_dim, rows * self.sizes.output_stride]
    }

    /// Length of [`LlaAddresses::marks`] for [`Self::prefill`].
    pub fn prefill_marks(&self) -> usize {
        self.tiles.len() * self.sizes.shape.num_kv_heads
    }

    /// Lengths of the work space of [`Self::decode`].
    pub fn decode_sizes(&self) -> DecodeSizes {
        self.sizes.decode_sizes(self.visible.len())
    }
}

/// Queries of a tile; `PrefillLayout::kRows`.
pub(super) fn tile_rows(dim: usize) -> usize {
    if dim <= 64 { 32 } else { 16 }
}

/// Runs of rows of one table, cut into tiles of `tile_rows` queries.
fn tiles(visible: &[LlaVisible], group: usize, tile_rows: usize) -> Vec<LlaTile> {
    let mut tiles = Vec::new();
    let mut first_row = 0;
    for run in visible.chunk_by(|a, b| a.table == b.table) {
        let queries = first_row * group..(first_row + run.len()) * group;
        for first in queries.clone().step_by(tile_rows) {
            let end = (first + tile_rows).min(queries.end);
            let rows = &visible[first / group..(end - 1) / group + 1];
            let seen = || rows.iter().filter(|row| row.start < row.end);
            let start = seen().map(|row| row.start).min().unwrap_or(0);
            let positions =
                LlaVisible { table: run[0].table, start, end: seen().map(|row| row.end).max().unwrap_or(start) };
            tiles.push(LlaTile { first_query: first as u32, num_queries: (end - first) as u32, visible: positions });
        }
        first_row += run.len();
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile.visible.end - tile.visible.start));
    tiles
}

/// A size that the kernels keep in 32 bits.
pub(super) fn narrow(size: usize) -> Result<u32, KernelError> {
    u32::try_from(size).map_err(|_| KernelError::Overflow { op: OP, what: "plan" })
}
