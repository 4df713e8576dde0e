//! The ggml block formats: their names and sizes, and what their bytes mean.

use std::fmt;

use half::{bf16, f16};

use crate::KernelError;

/// Most values in one block of any format.
pub(super) const MAX_BLOCK_LEN: usize = 256;
/// Values that share a scale and an offset, except in Q6_K, where half of them share a scale.
pub(super) const GROUP_LEN: usize = 32;

/// A tensor format of GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names that everybody knows")]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    BF16,
    /// 4-bit codes around 8, one scale per 32.
    Q4_0,
    /// 4-bit codes, one scale and one offset per 32.
    Q4_1,
    /// 5-bit codes around 16, one scale per 32.
    Q5_0,
    /// 5-bit codes, one scale and one offset per 32.
    Q5_1,
    /// 8-bit signed codes, one scale per 32.
    Q8_0,
    /// 4-bit codes, 6-bit scales and minima per 32 under two 16-bit floats per 256.
    Q4_K,
    /// 5-bit codes, scales as in Q4_K.
    Q5_K,
    /// 6-bit codes around 32, 8-bit scales per 16 under one 16-bit float per 256.
    Q6_K,
}

impl GgmlType {
    /// All formats that have kernels, by GGUF type code.
    const CODES: [(u32, Self); 11] = [
        (0, Self::F32),
        (1, Self::F16),
        (2, Self::Q4_0),
        (3, Self::Q4_1),
        (6, Self::Q5_0),
        (7, Self::Q5_1),
        (8, Self::Q8_0),
        (12, Self::Q4_K),
        (13, Self::Q5_K),
        (14, Self::Q6_K),
        (30, Self::BF16),
    ];

    /// The format of a GGUF type code.
    pub fn from_code(code: u32) -> Result<Self, KernelError> {
        Self::CODES.iter().find(|(known, _)| *known == code).map(|&(_, ty)| ty).ok_or(KernelError::UnknownGgmlType {
            code,
            supported: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K",
        })
    }

    /// The GGUF type code.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => GROUP_LEN,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => MAX_BLOCK_LEN,
        }
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Whether each value is a float of its own.
    pub(super) fn is_float(self) -> bool {
        self.block_len() == 1
    }

    /// Bytes of `num_values` values.
    pub(super) fn bytes_of(self, num_values: usize) -> Result<usize, KernelError> {
        if !num_values.is_multiple_of(self.block_len()) {
            let (format, block_len) = (self.name(), self.block_len());
            return Err(KernelError::PartialBlock { in_features: num_values, format, block_len });
        }
        (num_values / self.block_len())
            .checked_mul(self.block_bytes())
            .ok_or(KernelError::Overflow { op: "dequantize", what: "values" })
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One quantised block taken apart. A value is `(code - zero) * scale` or `code * scale + offset`, see
/// [`Block::value`].
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// One unsigned code per value.
    pub(crate) codes: [u8; MAX_BLOCK_LEN],
    /// Bits of the block's f16 scale.
    pub(crate) scale: u16,
    /// Bits of the block's second f16: the offset of Q4_1 and Q5_1, the scale of the minima of Q4_K and Q5_K.
    pub(crate) offset: u16,
    /// K formats only: factors of the scale, per 32 values, or per 16 and signed in Q6_K.
    pub(crate) factors: [u8; 16],
    /// Q4_K and Q5_K only: factors of the minima, per 32 values.
    pub(crate) minima: [u8; 8],
}

impl Block {
    /// A block of zero codes under a zero scale.
    pub(crate) const ZERO: Self =
        Self { codes: [0; MAX_BLOCK_LEN], scale: 0, offset: 0, factors: [0; 16], minima: [0; 8] };

    /// Takes `bytes` apart, one block of the quantised format `ty`.
    ///
    /// # Panics
    /// If `bytes` has not the length of a block.
    pub(crate) fn read(&mut self, ty: GgmlType, bytes: &[u8]) {
        assert_eq!(bytes.len(), ty.block_bytes(), "one block of {ty}");
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => unreachable!("floats have no codes"),
            GgmlType::Q8_0 => {
                self.scale = word(0);
                for (code, byte) in self.codes.iter_mut().zip(&bytes[2..]) {
                    *code = byte.wrapping_add(128);
                }
            }
            GgmlType::Q4_0 | GgmlType::Q4_1 => {
                let header = ty.block_bytes() - 16;
                (self.scale, self.offset) = (word(0), if header == 4 { word(2) } else { 0 });
                nibbles(&bytes[header..], &mut self.codes);
            }
            GgmlType::Q5_0 | GgmlType::Q5_1 => {
                let header = ty.block_bytes() - 20;
                (self.scale, self.offset) = (word(0), if header == 4 { word(2) } else { 0 });
                nibbles(&bytes[header + 4..], &mut self.codes);
                for (at, code) in self.codes[..GROUP_LEN].iter_mut().enumerate() {
                    *code |= (bytes[header + at / 8] >> (at % 8) & 1) << 4;
                }
            }
            GgmlType::Q4_K | GgmlType::Q5_K => {
                (self.scale, self.offset) = (word(0), word(2));
                self.read_six_bit_scales(&bytes[4..16]);
                let high = &bytes[16..ty.block_bytes() - 128];
                for (pair, low) in bytes[ty.block_bytes() - 128..].chunks_exact(GROUP_LEN).enumerate() {
                    let codes = &mut self.codes[2 * pair * GROUP_LEN..][..2 * GROUP_LEN];
                    nibbles(low, codes);
                    // Bit g of byte i is the fifth bit of value i of group g; Q4_K has no such bytes.
                    for (at, byte) in high.iter().enumerate() {
                        codes[at] |= (byte >> (2 * pair) & 1) << 4;
                        codes[at + GROUP_LEN] |= (byte >> (2 * pair + 1) & 1) << 4;
                    }
                }
            }
            GgmlType::Q6_K => {
                self.scale = word(208);
                self.factors.copy_from_slice(&bytes[192..208]);
                let (low, high) = (&bytes[..128], &bytes[128..192]);
                for (half, codes) in self.codes.chunks_exact_mut(128).enumerate() {
                    for at in 0..32 {
                        let (a, b, top) = (low[64 * half + at], low[64 * half + at + 32], high[32 * half + at]);
                        codes[at] = a & 15 | (top & 3) << 4;
                        codes[at + 32] = b & 15 | (top >> 2 & 3) << 4;
                        codes[at + 64] = a >> 4 | (top >> 4 & 3) << 4;
                        codes[at + 96] = b >> 4 | (top >> 6) << 4;
                    }
                }
            }
        }
    }

    /// The eight pairs of 6-bit factors of Q4_K and Q5_K: the first four in the low bits of bytes 0..8, the last four
    /// in the nibbles of bytes 8..12, with their top bits in the top bits of bytes 0..8.
    fn read_six_bit_scales(&mut self, bytes: &[u8]) {
        for at in 0..4 {
            self.factors[at] = bytes[at] & 63;
            self.minima[at] = bytes[at + 4] & 63;
            self.factors[at + 4] = bytes[at + 8] & 15 | (bytes[at] >> 6) << 4;
            self.minima[at + 4] = bytes[at + 8] >> 4 | (bytes[at + 4] >> 6) << 4;
        }
    }

    /// Value `at` of a block of format `ty`.
    pub(crate) fn value(&self, ty: GgmlType, at: usize) -> f32 {
        let code = f32::from(self.codes[at]);
        let (scale, offset) = (f16::from_bits(self.scale).to_f32(), f16::from_bits(self.offset).to_f32());
        match ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => unreachable!("floats have no codes"),
            GgmlType::Q8_0 => (code - 128.0) * scale,
            GgmlType::Q4_0 => (code - 8.0) * scale,
            GgmlType::Q5_0 => (code - 16.0) * scale,
            GgmlType::Q4_1 | GgmlType::Q5_1 => code * scale + offset,
            GgmlType::Q4_K | GgmlType::Q5_K => {
                let group = at / GROUP_LEN;
                scale * f32::from(self.factors[group]) * code - offset * f32::from(self.minima[group])
            }
            GgmlType::Q6_K => scale * f32::from(self.factors[at / 16] as i8) * (code - 32.0),
        }
    }
}

/// Low nibbles of `bytes`, then their high nibbles.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The values of `bytes`, blocks of format `ty`, in their exact ggml meaning.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    let expected = ty.bytes_of(out.len())?;
    if bytes.len() != expected {
        return Err(KernelError::Length { op: "dequantize", what: "bytes", expected, got: bytes.len() });
    }
    let blocks = bytes.chunks_exact(ty.block_bytes());
    match ty {
        GgmlType::F32 => {
            for (value, b) in out.iter_mut().zip(blocks) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        GgmlType::F16 => {
            for (value, b) in out.iter_mut().zip(blocks) {
                *value = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        GgmlType::BF16 => {
            for (value, b) in out.iter_mut().zip(blocks) {
                *value = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        _ => {
            let mut block = Block::ZERO;
            for (values, bytes) in out.chunks_exact_mut(ty.block_len()).zip(blocks) {
                block.read(ty, bytes);
                for (at, value) in values.iter_mut().enumerate() {
                    *value = block.value(ty, at);
                }
            }
        }
    }
    Ok(())
}
