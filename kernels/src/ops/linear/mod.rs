//! The linear layer: `y = x W^T`, with the weights packed once for the CPU.

use std::{fmt, marker::PhantomData, ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    KernelError,
    arch::CpuLevel,
    cpu::{LANES, SharedSlice, dispatch},
    tensor::{check_f32, dims2, shape_error, values, wrap},
};

mod activations;
mod coded;
mod coding;
mod dense;
mod ggml;
mod output;
pub(crate) mod reference;

use activations::Activations;
use coded::{Coded, CodedTask};
use coding::{Byte, Coding, Nested, NestedHalves, Nibble, Offset};
use dense::{Dense, DenseTask};
use output::Output;

pub use activations::ActivationBits;
pub(crate) use ggml::Block;
pub use ggml::{GgmlType, dequantize};

const OP: &str = "linear";

/// Products below which a second thread costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 17;
/// Products per thread from which the work is cut finer than one piece per thread, so that a thread that is held up
/// does not hold up the rest.
const BALANCE_PRODUCTS: usize = 1 << 22;

/// The weights of a linear layer without bias, `[out, in]`, or several of them side by side. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    parts: Arc<[Part]>,
    in_features: usize,
    out_features: usize,
    activations: ActivationBits,
}

/// How the weights of a layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// The codes and scales of a quantised ggml format.
    Ggml(GgmlType),
    /// Parts of different formats.
    Mixed,
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::Ggml(ty) => f.write_str(&ty.name().to_lowercase()),
            Self::Mixed => f.write_str("mixed"),
        }
    }
}

/// One weight matrix. Cloning shares it.
#[derive(Debug, Clone)]
struct Part {
    weight: Arc<Weight>,
    out_features: usize,
}

#[derive(Debug)]
enum Weight {
    Dense(Dense),
    Coded(Coded),
}

impl PackedLinear {
    /// Packs `weight`, row-major `[out_features, in_features]`.
    pub fn from_f32(weight: &[f32], out_features: usize, in_features: usize) -> Result<Self, KernelError> {
        let expected = checked_size(out_features, in_features)?;
        if weight.len() != expected {
            return Err(KernelError::Length { op: OP, what: "weight", expected, got: weight.len() });
        }
        Ok(Self::new(Weight::Dense(Dense::pack(weight, in_features)), out_features, in_features))
    }

    /// Packs `bytes`, `out_features` rows of ggml blocks. Quantised formats keep their codes and scales; the 16-bit
    /// floats become f32.
    pub fn from_ggml(ty: GgmlType, bytes: &[u8], out_features: usize, in_features: usize) -> Result<Self, KernelError> {
        let size = checked_size(out_features, in_features)?;
        let row_bytes = ty.bytes_of(in_features)?;
        let expected = row_bytes.checked_mul(out_features).ok_or(KernelError::Overflow { op: OP, what: "weight" })?;
        if bytes.len() != expected {
            return Err(KernelError::Length { op: OP, what: "bytes", expected, got: bytes.len() });
        }
        let weight = if ty.is_float() {
            let mut weight = vec![0.0; size];
            dequantize(ty, bytes, &mut weight)?;
            Weight::Dense(Dense::pack(&weight, in_features))
        } else {
            Weight::Coded(Coded::pack(ty, bytes, row_bytes, in_features))
        };
        Ok(Self::new(weight, out_features, in_features))
    }

    fn new(weight: Weight, out_features: usize, in_features: usize) -> Self {
        let parts = [Part { weight: Arc::new(weight), out_features }];
        Self { parts: Arc::new(parts), in_features, out_features, activations: ActivationBits::default() }
    }

    /// Several weights for one activation; their outputs lie side by side in the order given. Formats may differ, inputs
    /// and activation bits may not.
    pub fn stack(parts: Vec<PackedLinear>) -> Result<Self, KernelError> {
        let first = parts.first().ok_or(KernelError::EmptyStack)?;
        let (in_features, activations) = (first.in_features, first.activations);
        for part in &parts {
            if part.in_features != in_features {
                let (first, other) = (in_features, part.in_features);
                return Err(KernelError::Unstackable { what: "the input width", first, other });
            }
            if part.activations != activations {
                let (first, other) = (8 * activations.planes(), 8 * part.activations.planes());
                return Err(KernelError::Unstackable { what: "the number of activation bits", first, other });
            }
        }
        let out_features = parts.iter().map(|part| part.out_features).sum();
        let parts = parts.iter().flat_map(|part| part.parts.iter().cloned()).collect();
        Ok(Self { parts, in_features, out_features, activations })
    }

    /// The same weights with activations rounded to `bits` where the weights are quantised.
    pub fn with_activations(self, bits: ActivationBits) -> Self {
        Self { activations: bits, ..self }
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes that one pass over the weights reads.
    pub fn weight_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.weight.bytes()).sum()
    }

    /// What [`PackedLinear::weight_bytes`] will be for weights of format `ty`, `[out_features, in_features]`.
    pub fn bytes_of(ty: GgmlType, out_features: usize, in_features: usize) -> usize {
        let num_panels = out_features.div_ceil(LANES);
        match ty.is_float() {
            true => num_panels * in_features * size_of::<[f32; LANES]>(),
            false => num_panels * Coded::panel_bytes(ty, in_features),
        }
    }

    /// How the weights are stored.
    pub fn format(&self) -> WeightFormat {
        let mut formats = self.parts.iter().map(|part| part.weight.format());
        let first = formats.next().unwrap_or(WeightFormat::Mixed);
        if formats.all(|format| format == first) { first } else { WeightFormat::Mixed }
    }

    /// Writes the weights of output `index`, dequantised, `[in_features]`.
    pub fn row(&self, index: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if out.len() != self.in_features {
            return Err(KernelError::Length { op: OP, what: "row", expected: self.in_features, got: out.len() });
        }
        let mut at = index;
        for part in self.parts.iter() {
            if at < part.out_features {
                match &*part.weight {
                    Weight::Dense(weight) => weight.row(at, out),
                    Weight::Coded(weight) => weight.row(at, out),
                }
                return Ok(());
            }
            at -= part.out_features;
        }
        Err(KernelError::OutOfRange { op: OP, what: "output", index, len: self.out_features })
    }

    /// `ys = xs W^T` for `xs`, `[rows, in_features]`, and `ys`, `[rows, out_features]`.
    pub fn forward(&self, xs: &[f32], rows: usize, ys: &mut [f32]) -> Result<(), KernelError> {
        for (what, got, width) in [("xs", xs.len(), self.in_features), ("ys", ys.len(), self.out_features)] {
            let expected = rows.checked_mul(width).ok_or(KernelError::Overflow { op: OP, what })?;
            if got != expected {
                return Err(KernelError::Length { op: OP, what, expected, got });
            }
        }
        if rows == 0 {
            return Ok(());
        }
        let level = CpuLevel::current();
        let coded = self.parts.iter().any(|part| matches!(*part.weight, Weight::Coded(_)));
        let codes = coded.then(|| Activations::new(level, xs, self.in_features, self.activations));
        let call = Call { linear: self, level, xs, rows, codes, ys: SharedSlice::new(ys) };
        let num_panels: usize = self.parts.iter().map(Part::num_panels).sum();
        let products = rows * self.out_features * self.in_features;
        let num_threads = rayon::current_num_threads();
        if num_threads == 1 || products < PARALLEL_PRODUCTS {
            call.run(0..num_panels);
            return Ok(());
        }
        let pieces = if products / num_threads < BALANCE_PRODUCTS { num_threads } else { 4 * num_threads };
        let pieces = pieces.min(num_panels);
        (0..pieces)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|piece| call.run(piece * num_panels / pieces..(piece + 1) * num_panels / pieces));
        Ok(())
    }

    /// [`PackedLinear::forward`] for tensors: `[rows, in_features] -> [rows, out_features]`.
    pub fn apply(&self, xs: &Tensor) -> Result<Tensor, KernelError> {
        check_f32(OP, "xs", xs)?;
        let (_, in_features) = dims2(OP, "xs", "[rows, in]", xs)?;
        if in_features != self.in_features {
            return Err(shape_error(OP, "xs", format!("[rows, {}]", self.in_features), xs));
        }
        Ok(xs.apply_op1_no_bwd(self)?)
    }
}

impl CustomOp1 for PackedLinear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let xs = values(OP, "xs", storage, layout).map_err(wrap)?;
        let rows = xs.len() / self.in_features;
        let mut ys = vec![0.0; rows * self.out_features];
        self.forward(xs, rows, &mut ys).map_err(wrap)?;
        Ok((CpuStorage::F32(ys), Shape::from((rows, self.out_features))))
    }
}

fn checked_size(out_features: usize, in_features: usize) -> Result<usize, KernelError> {
    if out_features == 0 || in_features == 0 {
        return Err(KernelError::EmptyWeight { out_features, in_features });
    }
    out_features.checked_mul(in_features).ok_or(KernelError::Overflow { op: OP, what: "weight" })
}

impl Part {
    fn num_panels(&self) -> usize {
        self.out_features.div_ceil(LANES)
    }
}

impl Weight {
    fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.bytes(),
            Self::Coded(weight) => weight.bytes(),
        }
    }

    fn format(&self) -> WeightFormat {
        match self {
            Self::Dense(_) => WeightFormat::F32,
            Self::Coded(weight) => WeightFormat::Ggml(weight.ty()),
        }
    }
}

/// One call of [`PackedLinear::forward`].
struct Call<'a> {
    linear: &'a PackedLinear,
    level: CpuLevel,
    xs: &'a [f32],
    rows: usize,
    /// Present if any part is quantised.
    codes: Option<Activations>,
    ys: SharedSlice<'a, f32>,
}

impl Call<'_> {
    /// All rows for some panels, counted through all parts.
    fn run(&self, panels: Range<usize>) {
        let (mut first_panel, mut offset) = (0, 0);
        for part in self.linear.parts.iter() {
            let end_panel = first_panel + part.num_panels();
            let (start, end) = (panels.start.max(first_panel), panels.end.min(end_panel));
            if start < end {
                let output = Output { ys: self.ys, stride: self.linear.out_features, offset, width: part.out_features };
                self.part(&part.weight, start - first_panel..end - first_panel, output);
            }
            first_panel = end_panel;
            offset += part.out_features;
        }
    }

    fn part(&self, weight: &Weight, panels: Range<usize>, output: Output<'_>) {
        match (weight, &self.codes) {
            (Weight::Dense(weight), _) => {
                dispatch(self.level, DenseTask { weight, panels, xs: self.xs, output });
            }
            (Weight::Coded(weight), Some(xs)) => match weight.ty() {
                GgmlType::Q8_0 | GgmlType::Q5_0 => self.coded::<Byte>(weight, panels, xs, output),
                GgmlType::Q4_0 => self.coded::<Nibble>(weight, panels, xs, output),
                GgmlType::Q4_1 => self.coded::<Offset<true>>(weight, panels, xs, output),
                GgmlType::Q5_1 => self.coded::<Offset<false>>(weight, panels, xs, output),
                GgmlType::Q4_K => self.coded::<Nested<true>>(weight, panels, xs, output),
                GgmlType::Q5_K => self.coded::<Nested<false>>(weight, panels, xs, output),
                GgmlType::Q6_K => self.coded::<NestedHalves>(weight, panels, xs, output),
                GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => unreachable!("floats are packed as dense weights"),
            },
            (Weight::Coded(_), None) => unreachable!("activations are quantised if any part is"),
        }
    }

    fn coded<C: Coding>(&self, weight: &Coded, panels: Range<usize>, xs: &Activations, output: Output<'_>) {
        let (rows, coding) = (self.rows, PhantomData::<C>);
        match self.linear.activations {
            ActivationBits::Int8 => {
                dispatch(self.level, CodedTask::<C, 1> { weight, panels, xs, rows, output, coding });
            }
            ActivationBits::Int16 => {
                dispatch(self.level, CodedTask::<C, 2> { weight, panels, xs, rows, output, coding });
            }
        }
    }
}
