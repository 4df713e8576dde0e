//! Random data of an op, in as many copies as make it come from memory.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor, ggml_file::qtensor_from_ggml},
};
use clap::ValueEnum;
use kernels::{GgmlType, PackedLinear};

use super::limits::Caches;
use crate::stats::SplitMix;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// 32-bit floats
    F32,
    /// 8-bit codes, a scale for 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 4-bit codes, a scale for 32
    #[value(name = "q4_0")]
    Q4_0,
    /// 4-bit codes, scales of scales for 256
    #[value(name = "q4_k")]
    Q4K,
    /// 6-bit codes, scales of scales for 256
    #[value(name = "q6_k")]
    Q6K,
}

impl Format {
    /// The name on the command line and in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    pub(super) fn ours(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::Q4K => GgmlType::Q4_K,
            Self::Q6K => GgmlType::Q6_K,
        }
    }

    fn candles(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// Whether rows of `inputs` values are whole blocks.
    pub(super) fn divides(self, inputs: usize) -> bool {
        inputs.is_multiple_of(self.ours().block_len())
    }

    /// Where the 16-bit scales of a block lie.
    fn scales(self) -> std::ops::Range<usize> {
        match self {
            Self::F32 => 0..0,
            Self::Q8_0 | Self::Q4_0 => 0..2,
            Self::Q4K => 0..4,
            Self::Q6K => 208..210,
        }
    }
}

/// Copies of a matrix, ours and candle's, of the same blocks.
pub(super) struct Weights {
    pub(super) ours: Vec<PackedLinear>,
    pub(super) candles: Candles,
    /// Bytes of a row as it is stored in the file format.
    pub(super) row_bytes: usize,
}

/// candle's form of a matrix.
pub(super) enum Candles {
    /// `[outputs, inputs]`
    Floats(Vec<Tensor>),
    /// The same in blocks.
    Blocks(Vec<QTensorPair>),
}

/// A quantised matrix as both of candle's ops take it.
pub(super) struct QTensorPair {
    pub(super) tensor: std::sync::Arc<QTensor>,
    pub(super) matmul: QMatMul,
}

impl Weights {
    /// Random codes under scales near 0.01, or uniform floats. Warm data have one copy.
    pub(super) fn new(
        format: Format,
        (outputs, inputs): (usize, usize),
        cold: Option<Caches>,
        random: &mut SplitMix,
    ) -> anyhow::Result<Self> {
        let ty = format.ours();
        let row_bytes = inputs / ty.block_len() * ty.block_bytes();
        let bytes = blocks(format, outputs * row_bytes, random);
        let num_copies = copies(bytes.len(), cold);
        let ours = (0..num_copies)
            .map(|_| PackedLinear::from_ggml(ty, &bytes, outputs, inputs))
            .collect::<Result<Vec<_>, _>>()?;
        let candles = match format {
            Format::F32 => {
                let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
                let copy = |_| Tensor::from_slice(&values, (outputs, inputs), &Device::Cpu);
                Candles::Floats((0..num_copies).map(copy).collect::<candle_core::Result<_>>()?)
            }
            _ => {
                let copy = |_| {
                    let dims = vec![outputs, inputs];
                    let tensor = qtensor_from_ggml(format.candles(), &bytes, dims, &Device::Cpu)?;
                    let tensor = std::sync::Arc::new(tensor);
                    Ok(QTensorPair { matmul: QMatMul::from_arc(tensor.clone())?, tensor })
                };
                Candles::Blocks((0..num_copies).map(copy).collect::<candle_core::Result<_>>()?)
            }
        };
        Ok(Self { ours, candles, row_bytes })
    }
}

fn blocks(format: Format, num_bytes: usize, random: &mut SplitMix) -> Vec<u8> {
    /// 0.01 as a 16-bit float.
    const SCALE: [u8; 2] = [0x1f, 0x21];
    match format {
        Format::F32 => (0..num_bytes / 4).flat_map(|_| uniform(random).to_le_bytes()).collect(),
        _ => {
            let mut bytes: Vec<u8> =
                (0..num_bytes.div_ceil(2)).flat_map(|_| (random.below(1 << 16) as u16).to_le_bytes()).collect();
            bytes.truncate(num_bytes);
            for block in bytes.chunks_exact_mut(format.ours().block_bytes()) {
                block[format.scales()].as_chunks_mut::<2>().0.iter_mut().for_each(|scale| *scale = SCALE);
            }
            bytes
        }
    }
}

/// From -1 to 1.
fn uniform(random: &mut SplitMix) -> f32 {
    random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
}

/// Copies of `bytes` that together are as large as what comes from memory must be; one of warm data.
pub(super) fn copies(bytes: usize, cold: Option<Caches>) -> usize {
    cold.map_or(1, |caches| caches.cold_bytes().div_ceil(bytes.max(1)))
}

/// Normal numbers.
pub(super) fn normal(shape: &[usize], random: &mut SplitMix) -> candle_core::Result<Tensor> {
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// Several of [`normal`].
pub(super) fn normals(count: usize, shape: &[usize], random: &mut SplitMix) -> candle_core::Result<Vec<Tensor>> {
    (0..count).map(|_| normal(shape, random)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both read the same blocks, and none of them is constant.
    #[test]
    fn ours_and_candles_weights_are_the_same_numbers() {
        let caches = Caches { l2_bytes: 20_000, l3_bytes: None };
        for format in Format::value_variants() {
            let weights = Weights::new(*format, (20, 256), Some(caches), &mut SplitMix(3)).unwrap();
            let mut row = vec![0.0; 256];
            weights.ours[1].row(17, &mut row).unwrap();
            let theirs = match &weights.candles {
                Candles::Floats(all) => all[1].clone(),
                Candles::Blocks(all) => all[1].tensor.dequantize(&Device::Cpu).unwrap(),
            };
            let theirs = theirs.get(17).unwrap().to_vec1::<f32>().unwrap();
            let error = row.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-4, "{}: {error}", format.name());
            assert!(row.iter().any(|x| *x < row[0]) || row.iter().any(|x| *x > row[0]));
        }
    }

    #[test]
    fn copies_fill_twice_the_last_cache() {
        let caches = Caches { l2_bytes: 10, l3_bytes: Some(1000) };
        assert_eq!([copies(300, Some(caches)), copies(5000, Some(caches)), copies(300, None)], [7, 1, 1]);
    }
}
