//! GGUF files. The parser believes no length in the file: each is checked against the bytes that are left before
//! anything is reserved or skipped. Arrays stay in the file until somebody asks for them.

mod config;
mod experts;
mod names;
mod tokenizer;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use kernels::GgmlType;

pub(in crate::source) use self::tokenizer::qwen2_json;
pub use self::tokenizer::tokenizer;
pub(crate) use self::tokenizer::{end_of_turn_ids, named_token};

use crate::{
    ModelConfig, ModelError, Quantize, WeightStore,
    loader::{self, FileBytes, Interleaved, TensorEntry},
};

const MAGIC: &[u8; 4] = b"GGUF";
/// Fewest bytes that a metadata entry or the description of a tensor takes.
const MIN_ENTRY_BYTES: u64 = 13;
/// Most axes of a tensor.
const MAX_AXES: u32 = 4;
/// Multiple that the offsets of tensors keep unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// What the loader reads.
const SUPPORTED_TYPES: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

/// A parsed GGUF file over bytes that it shares.
#[derive(Debug)]
pub struct GgufFile {
    origin: String,
    bytes: FileBytes,
    metadata: BTreeMap<String, MetaValue>,
    tensors: HashMap<String, TensorEntry>,
}

/// A metadata value. Integers of every width are one kind, and so are both floats.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MetaValue {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Elements still in the file.
    Array {
        kind: ValueKind,
        count: usize,
        bytes: Range<usize>,
    },
}

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueKind {
    fn from_code(code: u32) -> Option<Self> {
        const KINDS: [ValueKind; 13] = [
            ValueKind::U8,
            ValueKind::I8,
            ValueKind::U16,
            ValueKind::I16,
            ValueKind::U32,
            ValueKind::I32,
            ValueKind::F32,
            ValueKind::Bool,
            ValueKind::Text,
            ValueKind::Array,
            ValueKind::U64,
            ValueKind::I64,
            ValueKind::F64,
        ];
        KINDS.get(code as usize).copied()
    }
}

impl GgufFile {
    /// Parses header, metadata and tensor descriptions. `origin` is for messages.
    pub fn parse(bytes: FileBytes, origin: &str) -> Result<Self, ModelError> {
        let corrupt = |reason: String| ModelError::Corrupt { origin: origin.into(), format: "GGUF", reason };
        let mut cursor = Cursor { bytes: &bytes, at: 0, origin };
        if cursor.take(4)? != MAGIC {
            return Err(corrupt("it does not start with `GGUF`".into()));
        }
        let version = cursor.u32()?;
        if !matches!(version, 2 | 3) {
            let order = if version.swap_bytes() < 16 { " in big-endian order" } else { "" };
            return Err(ModelError::Unsupported {
                origin: origin.into(),
                field: "GGUF version".into(),
                value: format!("{version:#x}{order}"),
                supported: "2 and 3, little-endian".into(),
            });
        }
        let num_tensors = cursor.count()?;
        let num_entries = cursor.count()?;

        let mut metadata = BTreeMap::new();
        for _ in 0..num_entries {
            let key = cursor.text()?;
            let value = cursor.value()?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(corrupt(format!("the metadata has `{key}` twice")));
            }
        }
        if let Some(MetaValue::Int(parts)) = metadata.get("split.count")
            && *parts > 1
        {
            return Err(ModelError::Unsupported {
                origin: origin.into(),
                field: "split.count".into(),
                value: parts.to_string(),
                supported: "one file that holds all tensors; join the parts with `llama-gguf-split --merge`".into(),
            });
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(MetaValue::Int(value)) if (8..=1 << 20).contains(value) && value.count_ones() == 1 => *value as u64,
            Some(other) => return Err(corrupt(format!("general.alignment is {other:?}"))),
        };

        let mut described = Vec::new();
        for _ in 0..num_tensors {
            described.push(cursor.tensor(alignment)?);
        }
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let mut tensors = HashMap::new();
        for Described { name, stored, shape, offset, len } in described {
            let start = data_start.checked_add(offset);
            let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= bytes.len() as u64);
            let (Some(start), Some(end)) = (start, end) else {
                return Err(corrupt(format!(
                    "tensor `{name}` needs {len} bytes at offset {offset}, the file has {} bytes; is the download \
                     complete?",
                    bytes.len()
                )));
            };
            let entry = TensorEntry { file: 0, stored, shape, bytes: start as usize..end as usize };
            let name = names::hugging_face_name(&name).unwrap_or(name);
            let parts = experts::split(&name, &entry).unwrap_or_else(|| vec![(name, entry)]);
            for (name, entry) in parts {
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(corrupt(format!("tensor `{name}` is there twice")));
                }
            }
        }
        Ok(Self { origin: origin.into(), bytes, metadata, tensors })
    }

    /// The weights, for a config that came out of the same file.
    pub fn weights(self, config: &ModelConfig, quantize: Option<Quantize>) -> WeightStore {
        // What the converters permute for llama.cpp; Qwen, Dream and LLaDA-MoE files keep the order of their checkpoints.
        let is_interleaved = matches!(self.text("general.architecture"), Some("llama" | "llada"));
        let store = WeightStore::new(self.origin, vec![self.bytes], self.tensors, config, quantize);
        match is_interleaved {
            true => {
                store.with_interleaved(Interleaved { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads })
            }
            false => store,
        }
    }

    /// What messages call the file.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// A text of the metadata.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(MetaValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A switch of the metadata.
    pub(crate) fn switch(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key) {
            Some(MetaValue::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// An integer of the metadata. A value of another type, or out of range, is an error; absence is not.
    pub(crate) fn integer<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Int(value)) => {
                T::try_from(*value).map(Some).map_err(|_| self.bad(format!("`{key}` is {value}")))
            }
            // Some models give one number a layer; one number is supported, so all must be the same.
            Some(MetaValue::Array { .. }) => {
                let values = self.integers(key)?.unwrap_or_default();
                match values.first() {
                    Some(first) if values.iter().all(|value| value == first) => {
                        T::try_from(*first).map(Some).map_err(|_| self.bad(format!("`{key}` is {first}")))
                    }
                    _ => Err(ModelError::Unsupported {
                        origin: self.origin.clone(),
                        field: key.into(),
                        value: "different from layer to layer".into(),
                        supported: "the same number in every layer".into(),
                    }),
                }
            }
            Some(other) => Err(self.bad(format!("`{key}` is {other:?}, it must be an integer"))),
        }
    }

    /// A float of the metadata.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Float(value)) => Ok(Some(*value)),
            Some(other) => Err(self.bad(format!("`{key}` is {other:?}, it must be a float"))),
        }
    }

    /// An array of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        self.array(key, |kind| kind == ValueKind::Text, |cursor| cursor.text())
    }

    /// An array of floats.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        self.array(key, |kind| kind == ValueKind::F32, |cursor| cursor.f32())
    }

    /// An array of integers of 32 bits.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i128>>, ModelError> {
        self.array(key, |kind| matches!(kind, ValueKind::I32 | ValueKind::U32), |cursor| cursor.u32().map(i128::from))
    }

    /// The dimensions of a tensor, by its Hugging Face name.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The values of an f32 vector, by its Hugging Face name.
    pub(crate) fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        match self.tensors.get(name) {
            Some(entry) if entry.shape.len() == 1 => {
                loader::to_f32(entry.stored, &self.bytes[entry.bytes.clone()]).map(Some)
            }
            Some(entry) => Err(self.bad(format!("`{name}` has shape {:?}, it must be a vector", entry.shape))),
            None => Ok(None),
        }
    }

    /// An error about the metadata.
    pub(crate) fn bad(&self, reason: String) -> ModelError {
        ModelError::BadConfig { origin: self.origin.clone(), reason }
    }

    fn array<T>(
        &self,
        key: &str,
        is_kind: impl Fn(ValueKind) -> bool,
        read: impl Fn(&mut Cursor<'_>) -> Result<T, ModelError>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Array { kind, count, bytes }) if is_kind(*kind) => {
                let mut cursor = Cursor { bytes: &self.bytes[..bytes.end], at: bytes.start, origin: &self.origin };
                (0..*count).map(|_| read(&mut cursor)).collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(self.bad(format!("`{key}` is {other:?}, it must be an array of another type"))),
        }
    }
}

/// A tensor before its offset is checked.
struct Described {
    name: String,
    stored: GgmlType,
    shape: Vec<usize>,
    offset: u64,
    len: u64,
}

/// Reads forward; every read is checked against the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    origin: &'a str,
}

impl<'a> Cursor<'a> {
    fn corrupt(&self, reason: String) -> ModelError {
        ModelError::Corrupt { origin: self.origin.into(), format: "GGUF", reason }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], ModelError> {
        let left = &self.bytes[self.at..];
        match usize::try_from(len).ok().and_then(|len| left.get(..len)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.corrupt(format!("it ends within the header, {len} bytes are asked for at {}", self.at))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let taken = self.take(N as u64)?;
        // `take` returned exactly N bytes.
        let mut bytes = [0; N];
        bytes.copy_from_slice(taken);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        self.array().map(u64::from_le_bytes)
    }

    fn f32(&mut self) -> Result<f32, ModelError> {
        self.array().map(f32::from_le_bytes)
    }

    /// A number of entries that the rest of the file can hold.
    fn count(&mut self) -> Result<u64, ModelError> {
        let count = self.u64()?;
        let left = (self.bytes.len() - self.at) as u64;
        if count > left / MIN_ENTRY_BYTES {
            return Err(self.corrupt(format!("the header announces {count} entries in {left} bytes")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, ModelError> {
        let len = self.u64()?;
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(self.corrupt(format!("the text that ends at {} is not UTF-8", self.at))),
        }
    }

    fn kind(&mut self) -> Result<ValueKind, ModelError> {
        let code = self.u32()?;
        ValueKind::from_code(code).ok_or_else(|| self.corrupt(format!("unknown value type {code}")))
    }

    fn value(&mut self) -> Result<MetaValue, ModelError> {
        let kind = self.kind()?;
        self.value_of(kind)
    }

    fn value_of(&mut self, kind: ValueKind) -> Result<MetaValue, ModelError> {
        Ok(match kind {
            ValueKind::U8 => MetaValue::Int(i128::from(u8::from_le_bytes(self.array()?))),
            ValueKind::I8 => MetaValue::Int(i128::from(i8::from_le_bytes(self.array()?))),
            ValueKind::U16 => MetaValue::Int(i128::from(u16::from_le_bytes(self.array()?))),
            ValueKind::I16 => MetaValue::Int(i128::from(i16::from_le_bytes(self.array()?))),
            ValueKind::U32 => MetaValue::Int(i128::from(self.u32()?)),
            ValueKind::I32 => MetaValue::Int(i128::from(i32::from_le_bytes(self.array()?))),
            ValueKind::U64 => MetaValue::Int(i128::from(self.u64()?)),
            ValueKind::I64 => MetaValue::Int(i128::from(i64::from_le_bytes(self.array()?))),
            ValueKind::F32 => MetaValue::Float(f64::from(self.f32()?)),
            ValueKind::F64 => MetaValue::Float(f64::from_le_bytes(self.array()?)),
            ValueKind::Bool => MetaValue::Bool(u8::from_le_bytes(self.array()?) != 0),
            ValueKind::Text => MetaValue::Text(self.text()?),
            ValueKind::Array => self.skip_array()?,
        })
    }

    /// Checks an array and steps over it.
    fn skip_array(&mut self) -> Result<MetaValue, ModelError> {
        let kind = self.kind()?;
        let count = self.u64()?;
        let start = self.at;
        let element_len: u64 = match kind {
            ValueKind::U8 | ValueKind::I8 | ValueKind::Bool => 1,
            ValueKind::U16 | ValueKind::I16 => 2,
            ValueKind::U32 | ValueKind::I32 | ValueKind::F32 => 4,
            ValueKind::U64 | ValueKind::I64 | ValueKind::F64 => 8,
            ValueKind::Text => 0,
            ValueKind::Array => return Err(self.corrupt("it has an array of arrays".into())),
        };
        if kind == ValueKind::Text {
            // Each text takes at least the 8 bytes of its length, so that a huge count ends with the file.
            for _ in 0..count {
                let len = self.u64()?;
                self.take(len)?;
            }
        } else {
            self.take(count.saturating_mul(element_len))?;
        }
        let count = usize::try_from(count).map_err(|_| self.corrupt(format!("an array has {count} elements")))?;
        Ok(MetaValue::Array { kind, count, bytes: start..self.at })
    }

    fn tensor(&mut self, alignment: u64) -> Result<Described, ModelError> {
        let name = self.text()?;
        let num_axes = self.u32()?;
        if !(1..=MAX_AXES).contains(&num_axes) {
            return Err(self.corrupt(format!("tensor `{name}` has {num_axes} axes")));
        }
        let mut shape = Vec::new();
        for _ in 0..num_axes {
            shape.push(self.u64()?);
        }
        let code = self.u32()?;
        let offset = self.u64()?;
        let stored = GgmlType::from_code(code).map_err(|_| ModelError::Unsupported {
            origin: self.origin.into(),
            field: format!("type of tensor `{name}`"),
            value: format!("ggml type {code}"),
            supported: SUPPORTED_TYPES.into(),
        })?;
        if !offset.is_multiple_of(alignment) {
            return Err(self.corrupt(format!("tensor `{name}` starts at {offset}, not a multiple of {alignment}")));
        }
        // The file has the fastest axis first.
        let shape: Vec<usize> = shape.iter().rev().filter_map(|len| usize::try_from(*len).ok()).collect();
        let row_bytes = shape.last().and_then(|len| loader::row_bytes(stored, *len));
        let len = row_bytes.and_then(|row_bytes| {
            shape.iter().rev().skip(1).try_fold(row_bytes as u64, |bytes, len| bytes.checked_mul(*len as u64))
        });
        match len.filter(|len| *len > 0 && shape.len() == num_axes as usize) {
            Some(len) => Ok(Described { name, stored, shape, offset, len }),
            None => Err(self.corrupt(format!("tensor `{name}` of type {} cannot have shape {shape:?}", stored.name()))),
        }
    }
}
