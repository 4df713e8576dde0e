//! Weights on a device, as a file has them or as a measurement makes them up.

use std::sync::Arc;

use kernels::{
    GgmlType, KernelError,
    device::{Array, Device, DeviceFormat, DeviceWeight},
};

use super::{Quantize, TensorEntry, WeightStore, quantize_rows};
use crate::{ModelError, Precision};

const MIB: u64 = 1 << 20;

/// Where the weights of a model on a device come from.
pub(crate) trait DeviceSource {
    /// The device.
    fn device(&self) -> &Arc<dyn Device>;

    /// The type that the model computes with.
    fn precision(&self) -> Precision;

    /// The weight of the linear layer `name` (without `.weight`), `[out, inp]`.
    fn weight(&mut self, name: &str, out: usize, inp: usize) -> Result<DeviceWeight, ModelError>;

    /// The 1-D tensor `name` (with its `.weight` or `.bias`), f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<Array, ModelError>;

    /// The refusal of a tensor with a value that cannot be; `value` is that in words.
    fn bad_value(&self, name: &str, value: &str) -> ModelError;
}

/// The tensors of a store.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    store: &'a mut WeightStore,
    device: Arc<dyn Device>,
    precision: Precision,
}

impl<'a> Stored<'a> {
    /// Refuses what the device has no kernels for, and weights that do not fit. `asked` is the precision that the user
    /// wants.
    pub(crate) fn new(
        store: &'a mut WeightStore,
        device: Arc<dyn Device>,
        asked: Option<Precision>,
    ) -> Result<Self, ModelError> {
        if store.quantize == Some(Quantize::F32) {
            let what = "weights in f32 (--quantize f32)".into();
            return Err(ModelError::NotOnDevice { origin: store.origin.clone(), what });
        }
        let precision = store.precision(asked, device.facts().has_bf16())?;
        let (needed, free) = (store.device_bytes(precision), device.free_bytes()? as u64);
        if needed > free {
            return Err(ModelError::DeviceMemory {
                device: device.facts().name.clone(),
                weights_mib: needed.div_ceil(MIB),
                cache_mib: 0,
                workspace_mib: 0,
                available_mib: free / MIB,
            });
        }
        Ok(Self { store, device, precision })
    }
}

impl DeviceSource for Stored<'_> {
    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn weight(&mut self, name: &str, out: usize, inp: usize) -> Result<DeviceWeight, ModelError> {
        let store = &mut *self.store;
        let full_name = format!("{name}.weight");
        let entry = store.take(&full_name, &[out, inp])?;
        let reordered = store.reordered(name, &entry, inp)?;
        let bytes = reordered.as_deref().unwrap_or(&store.files[entry.file][entry.bytes.clone()]);
        let format = store.device_format(entry.stored, inp, self.precision);
        let weight = match ggml_of(format) {
            Some(ggml) if ggml != entry.stored => {
                let blocks = quantize_rows(entry.stored, bytes, inp, ggml)?;
                DeviceWeight::upload(&self.device, format, (ggml, &blocks), (out, inp))
            }
            _ => DeviceWeight::upload(&self.device, format, (entry.stored, bytes), (out, inp)),
        };
        let weight = weight.map_err(|source| match source {
            // The values of a file, not the arguments of a call.
            KernelError::Domain { got, .. } => store
                .bad_value(&full_name, &format!("{got}, which {} cannot hold; use --precision bf16", self.precision)),
            other => other.into(),
        })?;
        store.note_device(entry.stored, format, weight.bytes());
        Ok(weight)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Array, ModelError> {
        let values: Vec<f32> = self.store.vector(name, len)?.to_vec1()?;
        Ok(Array::from_slice(&self.device, &values)?)
    }

    fn bad_value(&self, name: &str, value: &str) -> ModelError {
        self.store.bad_value(name, value)
    }
}

impl WeightStore {
    /// The type to compute with: the one that is asked for, or that of the weights. Quantised weights are multiplied in
    /// f16, which holds their codes and rounds what they are multiplied with eight times finer than bf16.
    fn precision(&self, asked: Option<Precision>, has_bf16: bool) -> Result<Precision, ModelError> {
        let matrices = || self.left.iter().filter(|(name, entry)| entry.shape.len() == 2 && !self.is_double(name));
        let format = |entry: &TensorEntry| self.device_format(entry.stored, entry.shape[1], Precision::F16);
        let is_quantised = matrices().any(|(_, entry)| ggml_of(format(entry)).is_some());
        let refuse = |what: &str| Err(ModelError::NotOnDevice { origin: self.origin.clone(), what: what.into() });
        match asked {
            Some(Precision::BF16) if !has_bf16 => {
                refuse("bf16, which needs compute capability 8.0 (there is --precision f16),")
            }
            Some(Precision::BF16) if is_quantised => {
                refuse("quantised weights with --precision bf16 (they are multiplied in f16)")
            }
            Some(precision) => Ok(precision),
            None if has_bf16 && !is_quantised && matrices().any(|(_, entry)| entry.stored == GgmlType::BF16) => {
                Ok(Precision::BF16)
            }
            None => Ok(Precision::F16),
        }
    }

    /// What a linear weight with rows of `row_len` becomes on a device.
    fn device_format(&self, stored: GgmlType, row_len: usize, precision: Precision) -> DeviceFormat {
        let fits = |ggml: GgmlType| row_len.is_multiple_of(ggml.block_len());
        match (self.quantize, stored) {
            (None, GgmlType::Q8_0) => DeviceFormat::Q8_0,
            (None, GgmlType::Q4_K) => DeviceFormat::Q4_K,
            (Some(Quantize::Q4K), _) if fits(GgmlType::Q4_K) => DeviceFormat::Q4_K,
            (Some(Quantize::Q4K | Quantize::Q8_0), _) if fits(GgmlType::Q8_0) => DeviceFormat::Q8_0,
            _ => match precision {
                Precision::F16 => DeviceFormat::F16,
                Precision::BF16 => DeviceFormat::BF16,
            },
        }
    }

    /// Bytes of all weights that are not yet read, on a device.
    fn device_bytes(&self, precision: Precision) -> u64 {
        let bytes = |(name, entry): (&String, &TensorEntry)| match entry.shape[..] {
            _ if self.is_double(name) => 0,
            [out, inp] => {
                let format = self.device_format(entry.stored, inp, precision);
                DeviceWeight::bytes_of(format, out, inp) as u64
            }
            _ => (entry.shape.iter().product::<usize>() * size_of::<f32>()) as u64,
        };
        self.left.iter().map(bytes).sum()
    }

    fn note_device(&mut self, stored: GgmlType, format: DeviceFormat, bytes: usize) {
        let target = ggml_of(format).unwrap_or(match format {
            DeviceFormat::BF16 => GgmlType::BF16,
            _ => GgmlType::F16,
        });
        if self.quantize == Some(Quantize::Q4K) && target == GgmlType::Q8_0 {
            self.num_fallbacks += 1;
        }
        self.note(stored, target, bytes);
    }
}

/// The ggml type of a quantised format.
fn ggml_of(format: DeviceFormat) -> Option<GgmlType> {
    match format {
        DeviceFormat::Q8_0 => Some(GgmlType::Q8_0),
        DeviceFormat::Q4_K => Some(GgmlType::Q4_K),
        DeviceFormat::F16 | DeviceFormat::BF16 => None,
    }
}

/// Weights of no meaning, of the sizes of a real model: for measurements. Norms are ones.
#[derive(Debug)]
pub(crate) struct MadeUp {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) precision: Precision,
    pub(crate) format: DeviceFormat,
    /// Of the next weight.
    pub(crate) seed: u32,
}

impl DeviceSource for MadeUp {
    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn weight(&mut self, _: &str, out: usize, inp: usize) -> Result<DeviceWeight, ModelError> {
        self.seed += 1;
        Ok(DeviceWeight::random(&self.device, self.format, (out, inp), self.seed)?)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Array, ModelError> {
        let value = if name.ends_with(".bias") { 0.0 } else { 1.0f32 };
        Ok(Array::from_slice(&self.device, &vec![value; len])?)
    }

    fn bad_value(&self, name: &str, value: &str) -> ModelError {
        ModelError::BadConfig { origin: "made-up weights".into(), reason: format!("tensor `{name}` contains {value}") }
    }
}
