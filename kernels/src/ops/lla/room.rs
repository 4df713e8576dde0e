//! Local linear attention of one step after the other: a plan on the device that is written anew each step, work space
//! that is there from the start, and launches that follow from the shape of a step.
//!
//! # Choices
//!
//! *One way for all rows.* Every query sums the second moments of its keys, whether its row comes alone, in a block or in
//! a prompt. In that way queries share nothing: no tile, no range check, no count of steps, and splits start at the first
//! position that the row itself sees. So a row has the same bits in every step. Tiles of rows, the other way, would give a
//! row other bits than this one, and what a tile takes in fp16 depends on all of its rows. The price: for each key a tile
//! takes three vectors' worth of products a step, the moments as many vectors' worth as a head has values. A prompt whose
//! systems need fewer steps than a third of the head size is dearer this way.
//!
//! *Rows in turns.* The moments of a query and a split are a matrix, so those of all rows of a prompt would not fit. A
//! step with more rows than the work space holds takes them in turns, each with launches of its own.
//!
//! *Counters in the upload.* They lie beside the plan and become zero when a step is written.

use std::sync::Arc;

use super::{
    LlaPlan, check_number,
    device::{CallSizes, LlaAddresses, LlaCounters, LlaParams, LlaProbe, LlaRounds, LlaVisible, SPLIT_LEN, narrow},
    launch::LlaUploadedRidge,
};
use crate::{
    KernelError,
    device::{Array, Device, ElementType, Launch, PlanLimits},
    ops::partials::{check_array, check_half, padded},
    reference::LlaShape,
};

const OP: &str = "lla room";

/// What steps may need at most, and what they have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlaLimits {
    /// Rows, pages and positions.
    pub plan: PlanLimits,
    /// Heads.
    pub shape: LlaShape,
    /// f32 values of the moments of the rows that are taken at a time. Room for one row is there in any case, and never
    /// more than for all.
    pub most_records: usize,
}

/// What fixes the launches of a step: two steps of one shape take the same ones. Mirrored in `params.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LlaStepShape {
    num_rows: u32,
    num_splits: u32,
}

const _: () = assert!(size_of::<LlaStepShape>() == 8);

impl LlaStepShape {
    /// Rows, those that only fill the shape among them.
    pub fn num_rows(&self) -> usize {
        self.num_rows as usize
    }

    /// Splits of the longest row; a power of two.
    pub fn num_splits(&self) -> usize {
        self.num_splits as usize
    }
}

/// A plan as the kernels read it, to be written to a [`LlaRoom`].
#[derive(Debug, Clone)]
pub struct LlaStep {
    limits: LlaLimits,
    shape: LlaStepShape,
    visible: Vec<LlaVisible>,
    /// Where the pages of each table start, as many as rows.
    table_starts: Vec<u32>,
    pages: Vec<u32>,
}

impl LlaStep {
    /// The shape whose launches run it.
    pub fn shape(&self) -> LlaStepShape {
        self.shape
    }
}

/// Device memory for one step at a time.
#[derive(Debug)]
pub struct LlaRoom {
    limits: LlaLimits,
    /// For the longest rows.
    sizes: CallSizes,
    plan: Array,
    marks: Array,
    records: Array,
    solutions: Array,
}

/// A call of [`LlaRoom::launches`]; arrays may be longer.
#[derive(Debug, Clone, Copy)]
pub struct LlaCall<'a> {
    /// f16 or bf16, `[rows, heads, key_dim]`.
    pub q: &'a Array,
    /// Of the type of `q`, `[pages, kv_heads, page_len, key_dim]`.
    pub keys: &'a Array,
    /// Of the type of `q`, `[pages, kv_heads, page_len, value_dim]`.
    pub values: &'a Array,
    /// Of the type of `q`, `[rows, padded]` with `padded` the width `heads * value_dim` rounded up to a multiple of 64;
    /// written, with zeros past the width.
    pub output: &'a Array,
    /// Ridges of the heads.
    pub ridge: &'a LlaUploadedRidge,
    /// When to stop.
    pub rounds: LlaRounds,
    /// Factor of the scores.
    pub scale: f32,
}

impl LlaLimits {
    /// Sizes of calls with the longest rows.
    fn largest(&self) -> Result<CallSizes, KernelError> {
        let PlanLimits { max_rows, max_pages, max_positions, num_pages, page_len, group, .. } = self.plan;
        let LlaShape { num_heads, num_kv_heads, .. } = self.shape;
        if num_heads != num_kv_heads.saturating_mul(group) {
            return Err(KernelError::HeadGroups { heads: num_heads, kv_heads: num_kv_heads });
        }
        for (what, size) in [
            ("max_rows", max_rows),
            ("max_pages", max_pages),
            ("max_positions", max_positions),
            ("num_pages", num_pages),
            ("page_len", page_len),
        ] {
            if size == 0 {
                return Err(KernelError::Zero { op: OP, what });
            }
            narrow(size)?;
        }
        let sizes = CallSizes::new(self.shape, page_len, splits(max_positions))?;
        sizes.check_cache(num_pages)?;
        sizes.check_queries(max_rows)?;
        sizes.with_output_stride(padded(sizes.output_stride))
    }

    /// The plan, marks, records and solutions.
    fn arrays(&self, sizes: &CallSizes) -> [(ElementType, usize); 4] {
        let one_row = sizes.decode_sizes(1).records;
        // Rows of short steps are many for the same records.
        let (least, all) = (CallSizes { num_splits: 1, ..*sizes }, sizes.decode_sizes(self.plan.max_rows).records);
        let records = self.most_records.clamp(one_row, all.max(one_row));
        let rows = (records / least.decode_sizes(1).records).min(self.plan.max_rows);
        let largest = LlaStepShape { num_rows: self.plan.max_rows as u32, num_splits: 1 };
        [
            (ElementType::U8, Array::carved_bytes(&self.parts(largest))),
            (ElementType::U32, records / (least.decode_sizes(1).records / self.shape.num_heads)),
            (ElementType::F32, records),
            (ElementType::F32, sizes.decode_sizes(rows).solutions),
        ]
    }

    /// The shape that is held, counters, what rows see, starts of tables, pages.
    fn parts(&self, shape: LlaStepShape) -> [(ElementType, usize); 5] {
        let rows = shape.num_rows();
        [
            (ElementType::U8, size_of::<LlaStepShape>()),
            (ElementType::U8, size_of::<LlaCounters>()),
            (ElementType::U8, rows.saturating_mul(size_of::<LlaVisible>())),
            (ElementType::U32, rows),
            (ElementType::U32, self.plan.max_pages),
        ]
    }

    /// Device memory of a room, in bytes; the largest number if that overflows.
    ///
    /// # Errors
    /// As [`LlaRoom::new`], but for memory.
    pub fn bytes(&self) -> Result<usize, KernelError> {
        let arrays = self.arrays(&self.largest()?);
        Ok(arrays.iter().fold(0, |sum: usize, array| sum.saturating_add(Array::carved_bytes(&[*array]))))
    }
}

/// Splits of a row that sees `positions`, in a power of two so that there are few shapes.
fn splits(positions: usize) -> usize {
    positions.div_ceil(SPLIT_LEN).max(1).next_power_of_two()
}

impl LlaRoom {
    /// Memory for steps within `limits`. Until the first step is written it holds one without rows.
    ///
    /// # Errors
    /// If a limit is zero or exceeds 32 bits, there are no kernels for the heads, or there is not enough memory.
    pub fn new(device: &Arc<dyn Device>, limits: LlaLimits) -> Result<Self, KernelError> {
        let sizes = limits.largest()?;
        let [plan, marks, records, solutions] = limits.arrays(&sizes);
        Ok(Self {
            limits,
            sizes,
            plan: Array::zeros(device, plan.0, plan.1)?,
            marks: Array::new(device, marks.0, marks.1)?,
            records: Array::new(device, records.0, records.1)?,
            solutions: Array::new(device, solutions.0, solutions.1)?,
        })
    }

    /// What it was made for.
    pub fn limits(&self) -> LlaLimits {
        self.limits
    }

    /// Takes a plan into the smallest shape that has `num_rows` rows. Rows past those of the plan only fill the shape: they
    /// see nothing and get zeros, and are not counted.
    ///
    /// # Errors
    /// If the plan exceeds the limits, has more rows than `num_rows` or another page length.
    pub fn step(&self, plan: &LlaPlan, num_rows: usize) -> Result<LlaStep, KernelError> {
        let limits = self.limits;
        check_plan(plan, num_rows, limits.plan)?;
        let mut indices = vec![None; plan.tables().len()];
        let (mut visible, mut table_starts, mut pages) = (Vec::with_capacity(num_rows), Vec::new(), Vec::new());
        for row in plan.rows() {
            let table = *indices[row.table].get_or_insert_with(|| {
                table_starts.push(pages.len() as u32);
                pages.extend_from_slice(&plan.tables()[row.table]);
                table_starts.len() as u32 - 1
            });
            visible.push(LlaVisible { table, start: row.visible_start as u32, end: row.visible_end as u32 });
        }
        if pages.len() > limits.plan.max_pages {
            let (expected, got) = (limits.plan.max_pages, pages.len());
            return Err(KernelError::Length { op: OP, what: "pages of all tables, at most", expected, got });
        }
        let longest = plan.rows().iter().map(|row| row.visible_end - row.visible_start).max().unwrap_or(0);
        visible.resize(num_rows, LlaVisible { table: 0, start: 0, end: 0 });
        table_starts.resize(num_rows, 0);
        let shape = LlaStepShape { num_rows: num_rows as u32, num_splits: splits(longest) as u32 };
        Ok(LlaStep { limits, shape, visible, table_starts, pages })
    }

    /// Copies a step to the device, in one piece, with counters at zero.
    ///
    /// # Errors
    /// If the step was made for other limits, or the driver refuses.
    pub fn write(&self, step: &LlaStep) -> Result<(), KernelError> {
        if step.limits != self.limits {
            return Err(KernelError::ForeignStep);
        }
        let parts = self.limits.parts(step.shape);
        let counters = LlaCounters::default();
        let contents: [&[u8]; 5] = [
            bytemuck::bytes_of(&step.shape),
            bytemuck::bytes_of(&counters),
            bytemuck::cast_slice(&step.visible),
            bytemuck::cast_slice(&step.table_starts),
            bytemuck::cast_slice(&step.pages),
        ];
        let mut bytes = Vec::with_capacity(Array::carved_bytes(&parts[..4]) + contents[4].len());
        for (index, content) in contents.into_iter().enumerate() {
            bytes.resize(Array::carved_bytes(&parts[..index]), 0);
            bytes.extend_from_slice(content);
        }
        self.plan.write_bytes(0, &bytes)
    }

    /// What the launches since the last [`LlaRoom::write`] have counted. Waits for them.
    ///
    /// # Errors
    /// If the driver refuses, or a launch before has failed.
    pub fn counters(&self) -> Result<LlaCounters, KernelError> {
        let start = Array::carved_bytes(&[(ElementType::U8, size_of::<LlaStepShape>())]);
        let mut counters = LlaCounters::default();
        let array = self.plan.slice(start..start + size_of::<LlaCounters>())?;
        array.read_bytes(bytemuck::bytes_of_mut(&mut counters))?;
        Ok(counters)
    }

    /// [`lla`](crate::lla) of a step of this shape, with the solution of every query in f32. Layers may follow one another
    /// in one room. They do nothing while the room holds a step of another shape.
    ///
    /// # Errors
    /// If an array is too short or of another type, a number is outside its domain, or the shape is beyond the limits.
    pub fn launches(&self, shape: LlaStepShape, call: &LlaCall<'_>) -> Result<Vec<Launch>, KernelError> {
        let &LlaCall { q, keys, values, output, ridge, rounds, scale } = call;
        self.check_call(shape, call)?;
        let sizes = CallSizes { num_splits: shape.num_splits(), ..self.sizes };
        let LlaShape { num_heads, key_dim, .. } = sizes.shape;
        let parts = self.plan.carve(&self.limits.parts(shape))?;
        let (q_width, width) = (num_heads * key_dim, sizes.output_stride);
        let turn = (self.records.len() / sizes.decode_sizes(1).records).max(1);
        let mut launches = Vec::new();
        for first in (0..shape.num_rows()).step_by(turn) {
            let rows = first..(first + turn).min(shape.num_rows());
            let addresses = LlaAddresses {
                q: q.slice(rows.start * q_width..rows.end * q_width)?.address(),
                keys: keys.address(),
                values: values.address(),
                output: output.slice(rows.start * width..rows.end * width)?.address(),
                tiles: 0,
                visible: parts[2].address() + (first * size_of::<LlaVisible>()) as u64,
                pages: parts[4].address(),
                table_starts: parts[3].address(),
                marks: self.marks.address(),
                counters: parts[1].address(),
                records: self.records.address(),
                solutions: self.solutions.address(),
            };
            let probe = LlaProbe::Solve { ridge: ridge.values().address(), ridge_per_row: false, solver: rounds };
            let params = sizes.params(q.element(), scale, probe, &addresses);
            let params = LlaParams { held: parts[0].address(), num_rows: shape.num_rows, ..params };
            let arrays =
                [q, keys, values, output, ridge.values(), &self.plan, &self.marks, &self.records, &self.solutions];
            launches.extend(sizes.decode(rows.len(), params).iter().map(|launch| launch.on(&arrays)));
        }
        Ok(launches)
    }

    fn check_call(&self, shape: LlaStepShape, call: &LlaCall<'_>) -> Result<(), KernelError> {
        let &LlaCall { q, keys, values, output, ridge, rounds, scale } = call;
        let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = self.sizes.shape;
        let PlanLimits { max_rows, num_pages, page_len, .. } = self.limits.plan;
        at_most("number of rows", shape.num_rows(), max_rows + 1)?;
        at_most("split", shape.num_splits(), self.sizes.num_splits + 1)?;
        check_half(OP, "q", q)?;
        let slots = num_pages * num_kv_heads * page_len;
        for (what, array, len) in [
            ("q", q, shape.num_rows() * num_heads * key_dim),
            ("keys", keys, slots * key_dim),
            ("values", values, slots * value_dim),
            ("output", output, shape.num_rows() * self.sizes.output_stride),
        ] {
            check_array(OP, what, array, (q.element(), len))?;
        }
        ridge.check_per_head(OP, num_heads)?;
        check_number(OP, "scale", &[scale], "finite", |_| true)?;
        check_number(OP, "tolerance", &[rounds.tolerance], "finite and not negative", |x| x >= 0.0)
    }
}

fn at_most(what: &'static str, index: usize, len: usize) -> Result<(), KernelError> {
    if index < len { Ok(()) } else { Err(KernelError::OutOfRange { op: OP, what, index, len }) }
}

fn check_plan(plan: &LlaPlan, num_rows: usize, limits: PlanLimits) -> Result<(), KernelError> {
    at_most("number of rows", num_rows, limits.max_rows + 1)?;
    at_most("row", plan.num_rows().saturating_sub(1), num_rows.max(1))?;
    if plan.page_len() != limits.page_len {
        return Err(KernelError::Length { op: OP, what: "page", expected: limits.page_len, got: plan.page_len() });
    }
    at_most("page", plan.page_end().saturating_sub(1), limits.num_pages)?;
    plan.rows().iter().try_for_each(|row| at_most("visible position", row.visible_end, limits.max_positions + 1))
}
