//! Local linear attention on a device: uploads, checks, launches. `device` says what the kernels are told.

use std::sync::Arc;

use super::{
    LlaPlan, OP, Ridge, check_length, check_number,
    device::{LlaAddresses, LlaCounters, LlaDevicePlan, LlaProbe, LlaRounds},
    launches::LlaLaunch,
};
use crate::{
    KernelError,
    cuda::{self, CudaSlice, CudaStream, DeviceElement, DeviceKernels, Use},
    device::{LlaTile, LlaVisible},
    reference::LlaShape,
};

/// A plan on a device, for one shape.
#[derive(Debug)]
pub struct LlaUploadedPlan {
    plan: LlaDevicePlan,
    tiles: CudaSlice<LlaTile>,
    visible: CudaSlice<LlaVisible>,
    pages: CudaSlice<u32>,
    table_starts: CudaSlice<u32>,
}

impl LlaUploadedPlan {
    /// Cuts a plan into tiles and copies it.
    ///
    /// # Errors
    /// Those of [`LlaDevicePlan::new`] and of the driver.
    pub fn new(stream: &Arc<CudaStream>, plan: &LlaPlan, shape: LlaShape) -> Result<Self, KernelError> {
        let plan = LlaDevicePlan::new(plan, shape)?;
        Ok(Self {
            tiles: cuda::upload(stream, plan.tiles())?,
            visible: cuda::upload(stream, plan.visible())?,
            pages: cuda::upload(stream, plan.pages())?,
            table_starts: cuda::upload(stream, plan.table_starts())?,
            plan,
        })
    }
}

/// Ridges on a device, checked before they were copied.
#[derive(Debug)]
pub struct LlaUploadedRidge {
    values: CudaSlice<f32>,
    len: usize,
    per_row: bool,
}

impl LlaUploadedRidge {
    /// Copies ridges.
    ///
    /// # Errors
    /// If one is not finite and above zero, or the driver refuses.
    pub fn new(stream: &Arc<CudaStream>, ridge: Ridge<'_>) -> Result<Self, KernelError> {
        let (values, per_row) = match ridge {
            Ridge::PerHead(values) => (values, false),
            Ridge::PerRow(values) => (values, true),
        };
        check_number(OP, "ridge", values, "finite and above zero", |x| x > 0.0)?;
        Ok(Self { values: cuda::upload(stream, values)?, len: values.len(), per_row })
    }
}

/// Tensors of a call, in the shapes of [`lla`](crate::lla); slices may be longer.
#[derive(Debug)]
pub struct LlaTensors<'a, T> {
    /// `[rows, heads, key_dim]`
    pub q: &'a CudaSlice<T>,
    /// `[pages, kv_heads, page_len, key_dim]`
    pub keys: &'a CudaSlice<T>,
    /// `[pages, kv_heads, page_len, value_dim]`
    pub values: &'a CudaSlice<T>,
    /// `[rows, heads * value_dim]`, written.
    pub output: &'a mut CudaSlice<T>,
}

/// Where the slopes of a call come from.
#[derive(Debug)]
pub enum LlaSlope<'a, T> {
    /// Local linear attention.
    Solve(&'a LlaUploadedRidge, LlaRounds),
    /// Parallax, with probes `[rows, heads, key_dim]`.
    Given(&'a CudaSlice<T>),
}

/// Memory that calls on one stream share: work space, which grows as needed, and what the kernels count.
#[derive(Debug)]
pub struct LlaWork {
    marks: CudaSlice<u32>,
    records: CudaSlice<f32>,
    solutions: CudaSlice<f32>,
    counters: CudaSlice<LlaCounters>,
}

impl LlaWork {
    /// Work space of no length, counters at zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, KernelError> {
        Ok(Self {
            marks: cuda::reserve(stream, 0)?,
            records: cuda::reserve(stream, 0)?,
            solutions: cuda::reserve(stream, 0)?,
            counters: cuda::upload(stream, &[LlaCounters::default()])?,
        })
    }

    /// What the calls since the start or the last time have counted. Waits for them.
    ///
    /// # Errors
    /// If the driver refuses, or a call before has failed.
    pub fn take_counters(&mut self, stream: &Arc<CudaStream>) -> Result<LlaCounters, KernelError> {
        let counters = cuda::download(stream, &self.counters)?;
        self.counters = cuda::upload(stream, &[LlaCounters::default()])?;
        Ok(counters.first().copied().unwrap_or_default())
    }
}

/// Which kernels a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LlaWay {
    /// Iterates over the keys for tiles of rows; for many rows.
    Prefill,
    /// Sums second moments of the keys for every row; for few rows of long sequences.
    Decode,
}

/// Gives local linear attention, or Parallax, to a stream. Does not wait.
///
/// # Errors
/// If slices are too short, a number is outside its domain, or the driver refuses.
pub fn launch_lla<T: DeviceElement>(
    kernels: &DeviceKernels,
    stream: &Arc<CudaStream>,
    (way, plan, scale): (LlaWay, &LlaUploadedPlan, f32),
    tensors: LlaTensors<'_, T>,
    (slope, work): (&LlaSlope<'_, T>, &mut LlaWork),
) -> Result<(), KernelError> {
    let sizes = plan.plan.decode_sizes();
    let [q_len, keys_len, values_len, output_len] = plan.plan.tensor_lens();
    check_number(OP, "scale", &[scale], "finite", |_| true)?;
    at_least("q", tensors.q, q_len)?;
    at_least("keys", tensors.keys, keys_len)?;
    at_least("values", tensors.values, values_len)?;
    at_least("output", tensors.output, output_len)?;
    match slope {
        LlaSlope::Given(probe) => at_least("probe", probe, q_len)?,
        LlaSlope::Solve(ridge, rounds) => {
            let num_heads = plan.plan.shape().num_heads;
            let expected = if ridge.per_row { plan.plan.visible().len() * num_heads } else { num_heads };
            check_length(OP, "ridge", ridge.len, expected)?;
            check_number(OP, "tolerance", &[rounds.tolerance], "finite and not negative", |x| x >= 0.0)?;
        }
    }
    match way {
        LlaWay::Prefill => grow(stream, &mut work.marks, plan.plan.prefill_marks())?,
        LlaWay::Decode => {
            grow(stream, &mut work.marks, sizes.marks)?;
            grow(stream, &mut work.records, sizes.records)?;
            grow(stream, &mut work.solutions, sizes.solutions)?;
        }
    }

    // The guards end the use of each slice once the launches have been given to the stream.
    let (q, _q) = cuda::read(tensors.q, stream);
    let (keys, _keys) = cuda::read(tensors.keys, stream);
    let (values, _values) = cuda::read(tensors.values, stream);
    let (output, _output) = cuda::write(tensors.output, stream);
    let (tiles, _tiles) = cuda::read(&plan.tiles, stream);
    let (visible, _visible) = cuda::read(&plan.visible, stream);
    let (pages, _pages) = cuda::read(&plan.pages, stream);
    let (table_starts, _table_starts) = cuda::read(&plan.table_starts, stream);
    let (marks, _marks) = cuda::write(&mut work.marks, stream);
    let (counters, _counters) = cuda::write(&mut work.counters, stream);
    let (records, _records) = cuda::write(&mut work.records, stream);
    let (solutions, _solutions) = cuda::write(&mut work.solutions, stream);
    let addresses = LlaAddresses {
        q,
        keys,
        values,
        output,
        tiles,
        visible,
        pages,
        table_starts,
        marks,
        counters,
        records,
        solutions,
    };
    let (probe, _probe): (LlaProbe, Use<'_>) = match slope {
        LlaSlope::Given(probe) => {
            let (probe, until) = cuda::read(probe, stream);
            (LlaProbe::Given(probe), until)
        }
        LlaSlope::Solve(ridge, solver) => {
            let (address, until) = cuda::read(&ridge.values, stream);
            (LlaProbe::Solve { ridge: address, ridge_per_row: ridge.per_row, solver: *solver }, until)
        }
    };
    let launches: Vec<LlaLaunch> = match way {
        LlaWay::Prefill => plan.plan.prefill(T::ELEMENT_TYPE, scale, probe, &addresses),
        LlaWay::Decode => plan.plan.decode(T::ELEMENT_TYPE, scale, probe, &addresses),
    };
    for launch in &launches {
        // SAFETY: the lengths of all slices were checked or made above against the plan that the launches come from, the
        // ridges when they were uploaded; allocations of the driver are aligned to 256 bytes, and the guards live on.
        unsafe { kernels.launch(stream, launch) }?;
    }
    Ok(())
}

/// Refuses a slice that is too short.
fn at_least<T>(what: &'static str, slice: &CudaSlice<T>, expected: usize) -> Result<(), KernelError> {
    let got = cuda::len(slice);
    if got < expected { Err(KernelError::Length { op: OP, what, expected, got }) } else { Ok(()) }
}

/// Replaces work space that is too short.
fn grow<T: cuda::DeviceRepr>(
    stream: &Arc<CudaStream>,
    slice: &mut CudaSlice<T>,
    len: usize,
) -> Result<(), KernelError> {
    if cuda::len(slice) < len {
        *slice = cuda::reserve(stream, len)?;
    }
    Ok(())
}
