//! Local linear attention on a device: uploads, checks, launches. `device` says what the kernels are told.

use std::sync::Arc;

use super::{
    LlaPlan, OP, Ridge, check_length, check_number,
    device::{LlaAddresses, LlaCounters, LlaDevicePlan, LlaProbe, LlaRounds},
};
use crate::{
    KernelError,
    device::{Array, Device, ElementType, Launch},
    reference::LlaShape,
};

/// A plan on a device, for one shape.
#[derive(Debug)]
pub struct LlaUploadedPlan {
    plan: LlaDevicePlan,
    tiles: Array,
    visible: Array,
    pages: Array,
    table_starts: Array,
}

impl LlaUploadedPlan {
    /// Cuts a plan into tiles and copies it.
    ///
    /// # Errors
    /// Those of [`LlaDevicePlan::new`] and of the driver.
    pub fn new(device: &Arc<dyn Device>, plan: &LlaPlan, shape: LlaShape) -> Result<Self, KernelError> {
        let plan = LlaDevicePlan::new(plan, shape)?;
        Ok(Self {
            tiles: Array::from_slice::<u8>(device, bytemuck::cast_slice(plan.tiles()))?,
            visible: Array::from_slice::<u8>(device, bytemuck::cast_slice(plan.visible()))?,
            pages: Array::from_slice(device, plan.pages())?,
            table_starts: Array::from_slice(device, plan.table_starts())?,
            plan,
        })
    }
}

/// Ridges on a device, checked before they were copied.
#[derive(Debug)]
pub struct LlaUploadedRidge {
    values: Array,
    per_row: bool,
}

impl LlaUploadedRidge {
    /// Copies ridges.
    ///
    /// # Errors
    /// If one is not finite and above zero, or the driver refuses.
    pub fn new(device: &Arc<dyn Device>, ridge: Ridge<'_>) -> Result<Self, KernelError> {
        let (values, per_row) = match ridge {
            Ridge::PerHead(values) => (values, false),
            Ridge::PerRow(values) => (values, true),
        };
        check_number(OP, "ridge", values, "finite and above zero", |x| x > 0.0)?;
        Ok(Self { values: Array::from_slice(device, values)?, per_row })
    }

    /// f32, `[heads]` or `[rows, heads]`.
    pub(super) fn values(&self) -> &Array {
        &self.values
    }

    /// Refuses ridges of rows, and of another number of heads.
    pub(super) fn check_per_head(&self, op: &'static str, num_heads: usize) -> Result<(), KernelError> {
        if self.per_row {
            let (got, supported) = ("one for each row and head".to_owned(), "one for each head");
            return Err(KernelError::NoKernelFor { op, what: "ridge", got, supported });
        }
        check_length(op, "ridge", self.values.len(), num_heads)
    }
}

/// Tensors of a call, in the shapes of [`lla`](crate::lla) and all of one type; arrays may be longer.
#[derive(Debug, Clone, Copy)]
pub struct LlaTensors<'a> {
    /// `[rows, heads, key_dim]`
    pub q: &'a Array,
    /// `[pages, kv_heads, page_len, key_dim]`
    pub keys: &'a Array,
    /// `[pages, kv_heads, page_len, value_dim]`
    pub values: &'a Array,
    /// `[rows, output stride]`, written: `heads * value_dim` values, then zeros.
    pub output: &'a Array,
}

/// Where the slopes of a call come from.
#[derive(Debug, Clone, Copy)]
pub enum LlaSlope<'a> {
    /// Local linear attention.
    Solve(&'a LlaUploadedRidge, LlaRounds),
    /// Parallax, with probes `[rows, heads, key_dim]`.
    Given(&'a Array),
}

/// Memory that calls on one device share: work space, which grows as needed, and what the kernels count.
#[derive(Debug)]
pub struct LlaWork {
    marks: Array,
    records: Array,
    solutions: Array,
    counters: Array,
}

impl LlaWork {
    /// Work space of no length, counters at zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self, KernelError> {
        Ok(Self {
            marks: Array::new(device, ElementType::U32, 0)?,
            records: Array::new(device, ElementType::F32, 0)?,
            solutions: Array::new(device, ElementType::F32, 0)?,
            counters: Array::zeros(device, ElementType::U8, size_of::<LlaCounters>())?,
        })
    }

    /// What the calls since the start or the last time have counted. Waits for them.
    ///
    /// # Errors
    /// If the driver refuses, or a call before has failed.
    pub fn take_counters(&mut self) -> Result<LlaCounters, KernelError> {
        let mut counters = LlaCounters::default();
        self.counters.read_bytes(bytemuck::bytes_of_mut(&mut counters))?;
        self.counters.clear()?;
        Ok(counters)
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

/// The launches of local linear attention, or of Parallax.
///
/// # Errors
/// If arrays are too short or of another type, a number is outside its domain, or there is no memory for work space.
pub fn lla_launches(
    (way, plan, scale): (LlaWay, &LlaUploadedPlan, f32),
    tensors: LlaTensors<'_>,
    (slope, work): (LlaSlope<'_>, &mut LlaWork),
) -> Result<Vec<Launch>, KernelError> {
    let sizes = plan.plan.decode_sizes();
    let [q_len, keys_len, values_len, output_len] = plan.plan.tensor_lens();
    let element = tensors.q.element();
    if !element.is_half() && element != ElementType::F32 {
        let got = element.to_string();
        return Err(KernelError::NoKernelFor { op: OP, what: "q", got, supported: "f32, f16, bf16" });
    }
    check_number(OP, "scale", &[scale], "finite", |_| true)?;
    tensors.q.expect("q", element, q_len)?;
    tensors.keys.expect("keys", element, keys_len)?;
    tensors.values.expect("values", element, values_len)?;
    tensors.output.expect("output", element, output_len)?;
    let (probe, slopes) = match slope {
        LlaSlope::Given(probe) => {
            probe.expect("probe", element, q_len)?;
            (LlaProbe::Given(probe.address()), probe)
        }
        LlaSlope::Solve(ridge, solver) => {
            let num_heads = plan.plan.shape().num_heads;
            let expected = if ridge.per_row { plan.plan.visible().len() * num_heads } else { num_heads };
            check_length(OP, "ridge", ridge.values.len(), expected)?;
            check_number(OP, "tolerance", &[solver.tolerance], "finite and not negative", |x| x >= 0.0)?;
            let (ridge, ridge_per_row) = (&ridge.values, ridge.per_row);
            (LlaProbe::Solve { ridge: ridge.address(), ridge_per_row, solver }, ridge)
        }
    };
    match way {
        LlaWay::Prefill => grow(&mut work.marks, plan.plan.prefill_marks())?,
        LlaWay::Decode => {
            grow(&mut work.marks, sizes.marks)?;
            grow(&mut work.records, sizes.records)?;
            grow(&mut work.solutions, sizes.solutions)?;
        }
    }
    let addresses = LlaAddresses {
        q: tensors.q.address(),
        keys: tensors.keys.address(),
        values: tensors.values.address(),
        output: tensors.output.address(),
        tiles: plan.tiles.address(),
        visible: plan.visible.address(),
        pages: plan.pages.address(),
        table_starts: plan.table_starts.address(),
        marks: work.marks.address(),
        counters: work.counters.address(),
        records: work.records.address(),
        solutions: work.solutions.address(),
    };
    let launches = match way {
        LlaWay::Prefill => plan.plan.prefill(element, scale, probe, &addresses),
        LlaWay::Decode => plan.plan.decode(element, scale, probe, &addresses),
    };
    let LlaTensors { q, keys, values, output } = tensors;
    let LlaUploadedPlan { tiles, visible, pages, table_starts, .. } = plan;
    let LlaWork { marks, records, solutions, counters } = &*work;
    let arrays =
        [q, keys, values, output, tiles, visible, pages, table_starts, marks, records, solutions, counters, slopes];
    Ok(launches.iter().map(|launch| launch.on(&arrays)).collect())
}

/// Replaces work space that is too short.
fn grow(array: &mut Array, len: usize) -> Result<(), KernelError> {
    if array.len() < len {
        *array = Array::new(array.device(), array.element(), len)?;
    }
    Ok(())
}
