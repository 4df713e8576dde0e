//! The launches of a call: which kernels, with what grids, blocks and shared memory.

use super::device::{
    CallSizes, HEAD_DIMS, LlaAddresses, LlaDevicePlan, LlaParams, LlaProbe, LlaRounds, SPLIT_LEN, tile_rows,
};
use crate::{
    device::{Array, ElementType, Launch},
    reference::LlaShape,
};

/// One launch of a kernel. Grids have two axes, blocks one.
#[derive(Debug, Clone, Copy)]
pub struct LlaLaunch {
    /// Name of the kernel in the module.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub block_dim: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The only argument.
    pub params: LlaParams,
}

impl LlaLaunch {
    /// For a device, with the arrays whose addresses the parameters hold.
    pub(crate) fn on(&self, arrays: &[&Array]) -> Launch {
        Launch::new(self.kernel, (self.grid, self.block_dim, self.shared_bytes), self.params, arrays)
    }
}

impl LlaDevicePlan {
    /// The launches, in order, of a call with many rows.
    pub fn prefill(
        &self,
        element_type: ElementType,
        scale: f32,
        probe: LlaProbe,
        addresses: &LlaAddresses,
    ) -> Vec<LlaLaunch> {
        let (dim, params) = (self.sizes.dim, self.sizes.params(element_type, scale, probe, addresses));
        let blocks = self.prefill_marks() as u32;
        let launch = |arithmetic, params| LlaLaunch {
            kernel: kernel(Family::Prefill(arithmetic), dim),
            grid: [blocks, 1],
            block_dim: (tile_rows(dim) * 8) as u32,
            shared_bytes: prefill_bytes(arithmetic, dim) as u32,
            params,
        };
        if blocks == 0 { Vec::new() } else { in_both(params, launch) }
    }

    /// The launches, in order, of a call with few rows.
    pub fn decode(
        &self,
        element_type: ElementType,
        scale: f32,
        probe: LlaProbe,
        addresses: &LlaAddresses,
    ) -> Vec<LlaLaunch> {
        let params = self.sizes.params(element_type, scale, probe, addresses);
        self.sizes.decode(self.visible().len(), params)
    }
}

impl CallSizes {
    /// The launches that decode `num_rows` rows, in order.
    pub(super) fn decode(&self, num_rows: usize, params: LlaParams) -> Vec<LlaLaunch> {
        let queries = (num_rows * self.shape.num_heads) as u32;
        if queries == 0 {
            return Vec::new();
        }
        let (split, whole) = ([queries, self.num_splits as u32], [queries, 1]);
        let two_a_column = (2 * self.dim) as u32;
        let moments = |arithmetic, params| LlaLaunch {
            kernel: kernel(Family::Moments(arithmetic), self.dim),
            grid: split,
            block_dim: two_a_column,
            shared_bytes: moments_bytes(arithmetic, self.dim) as u32,
            params,
        };
        let mut launches = in_both(params, moments);
        let four_a_row = (4 * self.dim) as u32;
        launches.push(LlaLaunch {
            kernel: kernel(Family::Combine, self.dim),
            grid: whole,
            block_dim: four_a_row,
            shared_bytes: two_a_column * 4 + four_a_row / 32 * 4,
            params,
        });
        launches.push(LlaLaunch {
            kernel: "lla_output",
            grid: split,
            block_dim: 128,
            shared_bytes: ((2 * 128 + 3 * SPLIT_LEN + 2 * 8 * 128) * 4) as u32,
            params,
        });
        launches.push(LlaLaunch { kernel: "lla_merge", grid: whole, block_dim: 128, shared_bytes: 0, params });
        launches
    }

    /// The parameters of a call whose arrays never change.
    pub(super) fn params(
        &self,
        element_type: ElementType,
        scale: f32,
        probe: LlaProbe,
        addresses: &LlaAddresses,
    ) -> LlaParams {
        let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = self.shape;
        let (probe, ridge, ridge_per_row, solver) = match probe {
            LlaProbe::Solve { ridge, ridge_per_row, solver } => (0, ridge, ridge_per_row, solver),
            LlaProbe::Given(probe) => (probe, 0, false, LlaRounds { tolerance: 0.0, max_steps: 0, num_rounds: 0 }),
        };
        LlaParams {
            q: addresses.q,
            keys: addresses.keys,
            values: addresses.values,
            probe,
            output: addresses.output,
            ridge,
            tiles: addresses.tiles,
            visible: addresses.visible,
            pages: addresses.pages,
            table_starts: addresses.table_starts,
            marks: addresses.marks,
            counters: addresses.counters,
            records: addresses.records,
            solutions: addresses.solutions,
            held: 0,
            element_type: element_type as u32,
            num_heads: num_heads as u32,
            num_kv_heads: num_kv_heads as u32,
            key_dim: key_dim as u32,
            value_dim: value_dim as u32,
            page_len: self.page_len as u32,
            ridge_per_row: u32::from(ridge_per_row),
            only_marked: 0,
            split_len: SPLIT_LEN as u32,
            num_splits: self.num_splits as u32,
            output_stride: self.output_stride as u32,
            num_rows: 0,
            max_steps: solver.max_steps,
            num_rounds: solver.num_rounds,
            tolerance: solver.tolerance,
            scale_log2: scale * std::f32::consts::LOG2_E,
        }
    }
}

/// `Half` and `Full` in `arithmetic.cuh`.
#[derive(Clone, Copy)]
enum Arithmetic {
    Half = 0,
    Full = 1,
}

impl Arithmetic {
    /// Bytes of `rows` rows of a tile in shared memory.
    fn tile_bytes(self, rows: usize, dim: usize) -> usize {
        match self {
            Self::Half => rows * (dim + 8) * 2,
            Self::Full => rows * (dim + 4) * 4,
        }
    }
}

/// A launch in fp16 and one in f32 of what the first has marked; for f32 tensors the second alone, of everything.
fn in_both(params: LlaParams, launch: impl Fn(Arithmetic, LlaParams) -> LlaLaunch) -> Vec<LlaLaunch> {
    if params.element_type == ElementType::F32 as u32 {
        return vec![launch(Arithmetic::Full, LlaParams { marks: 0, ..params })];
    }
    let marked = LlaParams { only_marked: 1, ..params };
    vec![launch(Arithmetic::Half, params), launch(Arithmetic::Full, marked)]
}

/// `PrefillLayout::kBytes`
fn prefill_bytes(arithmetic: Arithmetic, dim: usize) -> usize {
    let rows = tile_rows(dim);
    let (operands, keys) = match arithmetic {
        Arithmetic::Half => (3, 64),
        Arithmetic::Full => (1, 32),
    };
    let systems = 4 * rows * (dim + 4) * 4;
    let tiles = operands * arithmetic.tile_bytes(rows, dim) + arithmetic.tile_bytes(keys, dim);
    systems + tiles + 8 * rows * 4 + keys * 4 + 16 + keys
}

/// `MomentsLayout::kBytes`
fn moments_bytes(arithmetic: Arithmetic, dim: usize) -> usize {
    arithmetic.tile_bytes(64, dim) + dim * 4 + SPLIT_LEN * 4 + 64 * 4 + 16 + SPLIT_LEN
}

/// All kernels: four head sizes of each family, then those for every size.
pub(crate) const KERNEL_NAMES: [&str; 22] = [
    "lla_prefill_half_32",
    "lla_prefill_half_64",
    "lla_prefill_half_96",
    "lla_prefill_half_128",
    "lla_prefill_full_32",
    "lla_prefill_full_64",
    "lla_prefill_full_96",
    "lla_prefill_full_128",
    "lla_moments_half_32",
    "lla_moments_half_64",
    "lla_moments_half_96",
    "lla_moments_half_128",
    "lla_moments_full_32",
    "lla_moments_full_64",
    "lla_moments_full_96",
    "lla_moments_full_128",
    "lla_combine_32",
    "lla_combine_64",
    "lla_combine_96",
    "lla_combine_128",
    "lla_output",
    "lla_merge",
];

/// Kernels that are compiled for each head size.
#[derive(Clone, Copy)]
enum Family {
    Prefill(Arithmetic),
    Moments(Arithmetic),
    Combine,
}

/// The name of a kernel for a head size.
fn kernel(family: Family, dim: usize) -> &'static str {
    let family = match family {
        Family::Prefill(arithmetic) => arithmetic as usize,
        Family::Moments(arithmetic) => 2 + arithmetic as usize,
        Family::Combine => 4,
    };
    let sizes = HEAD_DIMS.len();
    KERNEL_NAMES[family * sizes..][..sizes][dim / 32 - 1]
}
