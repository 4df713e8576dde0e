//! Weights by name: one view over safetensors shards or a GGUF file, with the names that Hugging Face gives them.
//!
//! Linear layers come out packed for the kernels, in f32 or in the ggml type of the file, or quantised on the way if
//! the caller asks for it. Every tensor is checked against the shape that the config implies.

pub(crate) mod device;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    ops::{Deref, Range},
    path::Path,
    str::FromStr,
    sync::Arc,
};

use candle_core::{Device, Tensor, quantized::GgmlDType, quantized::QTensor};
use kernels::{ActivationBits, GgmlType, PackedLinear};
use memmap2::Mmap;
use rayon::prelude::*;

use crate::{
    ModelConfig, ModelError,
    config::{Names, is_router},
    source::memory,
};

/// Rows that one task quantises; small enough to share out, large enough to amortise the call.
const QUANTIZE_ROWS: usize = 64;

/// Bytes of a weight file. Cloning shares them.
#[derive(Debug, Clone)]
pub enum FileBytes {
    /// A file, mapped.
    Mapped(Arc<Mmap>),
    /// Bytes that are part of the program.
    Embedded(&'static [u8]),
    /// Bytes in memory.
    Owned(Arc<[u8]>),
}

impl FileBytes {
    /// Maps a file.
    pub fn map(path: &Path) -> Result<Self, ModelError> {
        let failed = |source| ModelError::Io { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("it is not a regular file")));
        }
        // SAFETY: the mapping is private and read-only, and every offset into it is checked against its length when
        // the header is parsed (`WeightStore::from_safetensors`, `GgufFile::parse`). What cannot be checked: nobody
        // may cut the file short while it is loaded; the store, and the mapping with it, is dropped after loading.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self::Mapped(Arc::new(map)))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// What linear weights become at load, whatever the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// f32; quantised weights are expanded.
    F32,
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight; rows that are not a multiple of 256 long become `Q8_0`.
    Q4K,
}

impl FromStr for Quantize {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "f32" => Ok(Self::F32),
            "q8_0" => Ok(Self::Q8_0),
            "q4_k" => Ok(Self::Q4K),
            other => Err(ModelError::Unsupported {
                origin: "quantize".into(),
                field: "type".into(),
                value: format!("`{other}`"),
                supported: "f32, q8_0, q4_k".into(),
            }),
        }
    }
}

/// How finely layers with quantised weights round their inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// 8 bits, as llama.cpp does: half the products, and an error of the size of that of `Q8_0` weights.
    Int8,
    /// 16 bits: next to the error of the weights there is none.
    #[default]
    Int16,
}

impl FromStr for Activations {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "int8" => Ok(Self::Int8),
            "int16" => Ok(Self::Int16),
            other => Err(ModelError::Unsupported {
                origin: "activations".into(),
                field: "type".into(),
                value: format!("`{other}`"),
                supported: "int8, int16".into(),
            }),
        }
    }
}

/// Bytes of a row of `len` values, or `None` if a row is not a whole number of blocks or too long to count.
pub(crate) fn row_bytes(stored: GgmlType, len: usize) -> Option<usize> {
    let num_blocks = len.is_multiple_of(stored.block_len()).then_some(len / stored.block_len())?;
    num_blocks.checked_mul(stored.block_bytes())
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    /// Index into the store's files.
    pub(crate) file: usize,
    pub(crate) stored: GgmlType,
    /// Outermost axis first: `[out, in]` or `[len]`.
    pub(crate) shape: Vec<usize>,
    /// Bytes within the file; checked against its length.
    pub(crate) bytes: Range<usize>,
}

/// Heads of the rows that a GGUF file holds in interleaved order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interleaved {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
}

/// The weights of a model, by Hugging Face name. Each is read once; [`WeightStore::finish`] reports what is left.
#[derive(Debug)]
pub struct WeightStore {
    origin: String,
    files: Vec<FileBytes>,
    /// Tensors not yet read.
    left: HashMap<String, TensorEntry>,
    quantize: Option<Quantize>,
    activations: Activations,
    interleaved: Option<Interleaved>,
    family: &'static str,
    names: &'static Names,
    tied: bool,
    num_fallbacks: usize,
    formats: BTreeMap<String, FormatUse>,
}

/// Tensors of one format in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FormatUse {
    /// How many tensors.
    pub num_tensors: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// What was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadSummary {
    /// By format, `from -> to` where the two differ.
    pub formats: BTreeMap<String, FormatUse>,
    /// Bytes of all weights.
    pub bytes: usize,
}

impl WeightStore {
    /// A store over tensors that are already checked against their files.
    pub(crate) fn new(
        origin: String,
        files: Vec<FileBytes>,
        tensors: HashMap<String, TensorEntry>,
        config: &ModelConfig,
        quantize: Option<Quantize>,
    ) -> Self {
        Self {
            origin,
            files,
            left: tensors,
            quantize,
            activations: Activations::default(),
            interleaved: None,
            family: config.family.name(),
            names: config.names,
            tied: config.tie_embeddings,
            num_fallbacks: 0,
            formats: BTreeMap::new(),
        }
    }

    /// Declares that the rows of q and k lie in interleaved order.
    pub(crate) fn with_interleaved(mut self, heads: Interleaved) -> Self {
        self.interleaved = Some(heads);
        self
    }

    /// Chooses how finely the layers round their inputs.
    pub(crate) fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// Whether a tensor of this full name is there and not yet read.
    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// The weight of the linear layer `name` (without `.weight`), `[out, inp]`.
    pub fn linear(&mut self, name: &str, out: usize, inp: usize) -> Result<PackedLinear, ModelError> {
        let full_name = format!("{name}.weight");
        let entry = self.take(&full_name, &[out, inp])?;
        let reordered = self.reordered(name, &entry, inp)?;
        let bytes = reordered.as_deref().unwrap_or(&self.files[entry.file][entry.bytes.clone()]);
        let target = self.target(&full_name, entry.stored, inp);
        let packed = match target {
            _ if target == entry.stored => PackedLinear::from_ggml(target, bytes, out, inp)?,
            GgmlType::F32 => PackedLinear::from_f32(&to_f32(entry.stored, bytes)?, out, inp)?,
            _ => PackedLinear::from_ggml(target, &quantize_rows(entry.stored, bytes, inp, target)?, out, inp)?,
        };
        if self.quantize == Some(Quantize::Q4K) && target == GgmlType::Q8_0 {
            self.num_fallbacks += 1;
        }
        self.note(entry.stored, target, packed.weight_bytes());
        Ok(packed.with_activations(match self.activations {
            Activations::Int8 => ActivationBits::Int8,
            Activations::Int16 => ActivationBits::Int16,
        }))
    }

    /// The 1-D tensor `name` (with its `.weight` or `.bias`), f32 on the CPU.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, ModelError> {
        let entry = self.take(name, &[len])?;
        let reordered = match name.strip_suffix(".bias") {
            Some(layer) => self.reordered(layer, &entry, 1)?,
            None => None,
        };
        let bytes = reordered.as_deref().unwrap_or(&self.files[entry.file][entry.bytes.clone()]);
        let values = to_f32(entry.stored, bytes)?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(self.bad_value(name, &value.to_string()));
        }
        self.note(entry.stored, GgmlType::F32, len * size_of::<f32>());
        Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
    }

    /// The refusal of a tensor because of a value in it.
    pub(crate) fn bad_value(&self, name: &str, value: &str) -> ModelError {
        ModelError::BadConfig { origin: self.origin.clone(), reason: format!("tensor `{name}` contains {value}") }
    }

    /// Refuses tensors that nobody read, and logs what was loaded.
    pub fn finish(self) -> Result<LoadSummary, ModelError> {
        let is_expected = |name: &&str| is_derived(name) || self.is_double(name);
        let mut unused: Vec<&str> = self.left.keys().map(String::as_str).filter(|name| !is_expected(name)).collect();
        if !unused.is_empty() {
            unused.sort_unstable();
            return Err(ModelError::UnusedTensors {
                origin: self.origin,
                count: unused.len(),
                family: self.family,
                examples: unused.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
            });
        }
        for (format, used) in &self.formats {
            tracing::info!(format, tensors = used.num_tensors, mib = used.bytes >> 20, "weights loaded");
        }
        if self.num_fallbacks > 0 {
            tracing::info!(
                tensors = self.num_fallbacks,
                "rows that are not a multiple of 256 long were quantised to Q8_0 instead of Q4_K"
            );
        }
        let bytes = self.formats.values().map(|used| used.bytes).sum();
        Ok(LoadSummary { formats: self.formats, bytes })
    }

    /// Refuses to start reading weights that cannot fit. Silent where the system does not say how much is free.
    pub fn check_memory(&self) -> Result<(), ModelError> {
        match memory::available_bytes() {
            Some(available) => memory::check(self.needed_bytes(), available),
            None => Ok(()),
        }
    }

    /// Bytes of the packed weights plus the most that the conversion of one tensor needs beside them. Tensors are read
    /// one after the other out of a mapped file, which needs no memory of its own.
    pub fn needed_bytes(&self) -> u64 {
        let mut packed = 0u64;
        let mut scratch = 0u64;
        for (name, entry) in self.left.iter().filter(|(name, _)| !self.is_double(name)) {
            let row_len = entry.shape.last().copied().unwrap_or(0);
            let num_rows = entry.shape.iter().rev().skip(1).fold(1, |rows: usize, len| rows.saturating_mul(*len));
            if entry.shape.len() == 1 {
                packed += (row_len * size_of::<f32>()) as u64;
                continue;
            }
            let target = self.target(name, entry.stored, row_len);
            packed += PackedLinear::bytes_of(target, num_rows, row_len) as u64;
            let converted = match target {
                GgmlType::F32 => packed_bytes(target, row_len) * num_rows,
                _ if target == entry.stored => 0,
                _ => packed_bytes(target, row_len) * num_rows,
            };
            let is_moved = name.strip_suffix(".weight").and_then(|layer| self.heads_to_reorder(layer)).is_some();
            let moved = if is_moved { entry.bytes.len() } else { 0 };
            scratch = scratch.max((converted + moved) as u64);
        }
        packed + scratch
    }

    /// Whether there is a head of its own although the config says that the embeddings are the head. From then on it
    /// counts as a tensor that the layers use. A mere copy of the embeddings is none.
    pub(crate) fn takes_separate_head(&mut self) -> bool {
        let entry = |name: &str| self.left.get(&format!("{name}.weight"));
        let bytes = |entry: &TensorEntry| &self.files[entry.file][entry.bytes.clone()];
        let is_separate = match (entry(self.names.head), entry(self.names.embedding)) {
            (Some(head), Some(embedding)) => head.stored != embedding.stored || bytes(head) != bytes(embedding),
            (head, _) => head.is_some(),
        };
        let takes = self.tied && is_separate;
        self.tied &= !takes;
        takes
    }

    /// Whether a tensor is a second copy of the embeddings, which the layers share instead.
    fn is_double(&self, name: &str) -> bool {
        self.tied && name.strip_suffix(".weight") == Some(self.names.head)
    }

    /// Takes a tensor out of the store after checking its shape.
    fn take(&mut self, name: &str, expected: &[usize]) -> Result<TensorEntry, ModelError> {
        let Some(entry) = self.left.remove(name) else {
            return Err(ModelError::MissingTensor { origin: self.origin.clone(), name: name.into() });
        };
        if entry.shape != expected {
            return Err(ModelError::WrongShape { name: name.into(), expected: expected.to_vec(), got: entry.shape });
        }
        Ok(entry)
    }

    /// What a linear weight with rows of `row_len` becomes.
    fn target(&self, name: &str, stored: GgmlType, row_len: usize) -> GgmlType {
        let fits = |ggml: GgmlType| row_len.is_multiple_of(ggml.block_len());
        if is_router(name) {
            return GgmlType::F32;
        }
        match (self.quantize, stored) {
            (Some(Quantize::F32), _) | (None, GgmlType::F16 | GgmlType::BF16) => GgmlType::F32,
            (None, stored) => stored,
            (Some(Quantize::Q4K), _) if fits(GgmlType::Q4_K) => GgmlType::Q4_K,
            (Some(Quantize::Q4K | Quantize::Q8_0), _) if fits(GgmlType::Q8_0) => GgmlType::Q8_0,
            (Some(_), _) => GgmlType::F32,
        }
    }

    /// The bytes of a q or k projection in half-split order, if the file has them interleaved.
    ///
    /// Within a head the file holds row `2j + s` where RoPE over halves wants row `s * head_dim / 2 + j`. Rows are
    /// independent in every stored type, so they move as bytes.
    fn reordered(&self, layer: &str, entry: &TensorEntry, row_len: usize) -> Result<Option<Vec<u8>>, ModelError> {
        let Some(num_heads) = self.heads_to_reorder(layer) else { return Ok(None) };
        let source = &self.files[entry.file][entry.bytes.clone()];
        let half = entry.shape[0] / num_heads / 2;
        let row_bytes = row_bytes(entry.stored, row_len).filter(|bytes| num_heads * half * 2 * bytes == source.len());
        let Some(row_bytes) = row_bytes else {
            return Err(ModelError::BadConfig {
                origin: self.origin.clone(),
                reason: format!("`{layer}` does not consist of {num_heads} heads of even width"),
            });
        };
        let mut target = Vec::with_capacity(source.len());
        for head in source.chunks_exact(half * 2 * row_bytes) {
            for parity in 0..2 {
                for pair in 0..half {
                    let row = (2 * pair + parity) * row_bytes;
                    target.extend_from_slice(&head[row..row + row_bytes]);
                }
            }
        }
        Ok(Some(target))
    }

    /// The heads of a projection whose rows the file has interleaved.
    fn heads_to_reorder(&self, layer: &str) -> Option<usize> {
        let heads = self.interleaved?;
        match layer.rsplit('.').next() {
            Some("q_proj") => Some(heads.num_heads),
            Some("k_proj") => Some(heads.num_kv_heads),
            _ => None,
        }
    }

    fn note(&mut self, stored: GgmlType, target: GgmlType, bytes: usize) {
        let format = match stored == target {
            true => stored.name().to_string(),
            false => format!("{} -> {}", stored.name(), target.name()),
        };
        let used = self.formats.entry(format).or_default();
        used.num_tensors += 1;
        used.bytes += bytes;
    }
}

/// Bytes of a row of `len` values, a multiple of the block.
fn packed_bytes(ggml: GgmlType, len: usize) -> usize {
    len / ggml.block_len() * ggml.block_bytes()
}

/// Whether a tensor is no weight but follows from the config, or has done its duty there.
pub(crate) fn is_derived(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn.masked_bias") || name == "rope_freqs.weight"
}

/// Expands stored values to f32; `bytes` is a whole number of blocks.
pub(crate) fn to_f32(stored: GgmlType, bytes: &[u8]) -> Result<Vec<f32>, ModelError> {
    let mut values = vec![0.0; bytes.len() / stored.block_bytes() * stored.block_len()];
    kernels::dequantize(stored, bytes, &mut values)?;
    Ok(values)
}

/// Quantises rows of `row_len`, a multiple of the block, into consecutive blocks. Only a few rows at a time are
/// expanded to f32, so that a large tensor costs no more than its blocks.
fn quantize_rows(stored: GgmlType, bytes: &[u8], row_len: usize, to: GgmlType) -> Result<Vec<u8>, ModelError> {
    let dtype = match to {
        GgmlType::Q4_K => GgmlDType::Q4K,
        _ => GgmlDType::Q8_0,
    };
    let (from_bytes, to_bytes) = (packed_bytes(stored, row_len), packed_bytes(to, row_len));
    let mut blocks = vec![0; bytes.len() / from_bytes * to_bytes];
    let parts = blocks.par_chunks_mut(to_bytes * QUANTIZE_ROWS).zip(bytes.par_chunks(from_bytes * QUANTIZE_ROWS));
    parts.try_for_each(|(blocks, bytes)| {
        let rows = Tensor::from_vec(to_f32(stored, bytes)?, (bytes.len() / from_bytes, row_len), &Device::Cpu)?;
        blocks.copy_from_slice(&QTensor::quantize(&rows, dtype)?.data()?);
        Ok::<_, ModelError>(())
    })?;
    Ok(blocks)
}
