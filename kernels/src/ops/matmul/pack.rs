//! From ggml blocks to the layout of `weight.cuh`.

use half::{bf16, f16};

use super::{
    OP,
    weight::{DeviceFormat, DeviceWeight, TILE_OUTPUTS},
};
use crate::{GgmlType, KernelError, dequantize, ops::linear::Block};

/// Bytes of an output in a slab; `kSlabRow` in `weight.cuh`.
pub(super) const SLAB_ROW: usize = 64;
/// Values that the kernels work on at a time, and that share a scale.
const CHUNK: usize = 32;

/// Packs the rows of one tile, the first of which is row `first_row` of the matrix, into zeroed codes and scales.
pub(super) fn pack_tile(
    weight: &DeviceWeight,
    (stored, bytes, row_bytes): (GgmlType, &[u8], usize),
    first_row: usize,
    (codes, scales): &mut (Vec<u8>, Vec<u8>),
) -> Result<(), KernelError> {
    let mut values = vec![0f32; if weight.format.coded().is_some() { 0 } else { weight.in_features }];
    for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
        match weight.format {
            DeviceFormat::F16 | DeviceFormat::BF16 => {
                dequantize(stored, bytes, &mut values)?;
                pack_dense(weight.format, &values, row, codes).map_err(|at| KernelError::Domain {
                    op: OP,
                    what: "weight",
                    index: (first_row + row) * weight.in_features + at,
                    expected: "within the range of f16",
                    got: values[at],
                })?;
            }
            DeviceFormat::Q8_0 => pack_q8_0(bytes, row, codes, scales),
            DeviceFormat::Q4_K => pack_q4_k(bytes, row, codes, scales),
        }
    }
    Ok(())
}

/// Where the 64 bytes of a row in a slab start.
fn slab_row(slab: usize, row: usize) -> usize {
    (slab * TILE_OUTPUTS + row) * SLAB_ROW
}

/// Fails with the index of a finite value that would become infinite.
fn pack_dense(format: DeviceFormat, values: &[f32], row: usize, codes: &mut [u8]) -> Result<(), usize> {
    for (slab, chunk) in values.chunks(CHUNK).enumerate() {
        let to = &mut codes[slab_row(slab, row)..][..SLAB_ROW];
        for (at, (value, to)) in chunk.iter().zip(to.chunks_exact_mut(2)).enumerate() {
            let bits = if format == DeviceFormat::BF16 {
                bf16::from_f32(*value).to_bits()
            } else {
                let rounded = f16::from_f32(*value);
                if rounded.is_infinite() && value.is_finite() {
                    return Err(slab * CHUNK + at);
                }
                rounded.to_bits()
            };
            to.copy_from_slice(&bits.to_le_bytes());
        }
    }
    Ok(())
}

fn pack_q8_0(bytes: &[u8], row: usize, codes: &mut [u8], scales: &mut [u8]) {
    for (chunk, block) in bytes.chunks_exact(GgmlType::Q8_0.block_bytes()).enumerate() {
        let (slab, in_slab) = (chunk / 2, chunk % 2);
        let record = (slab * TILE_OUTPUTS + row) * 4 + in_slab * 2;
        scales[record..record + 2].copy_from_slice(&block[..2]);
        for (quad, eight) in block[2..].chunks_exact(8).enumerate() {
            codes[slab_row(slab, row) + quad * 16 + in_slab * 8..][..8].copy_from_slice(eight);
        }
    }
}

fn pack_q4_k(bytes: &[u8], row: usize, codes: &mut [u8], scales: &mut [u8]) {
    let mut block = Block::ZERO;
    for (at, bytes) in bytes.chunks_exact(GgmlType::Q4_K.block_bytes()).enumerate() {
        block.read(GgmlType::Q4_K, bytes);
        let mut words = [u32::from(block.scale) | u32::from(block.offset) << 16, 0, 0, 0];
        for (group, codes_of_group) in block.codes.chunks_exact(CHUNK).enumerate() {
            let (factor, minimum) = (u32::from(block.factors[group]), u32::from(block.minima[group]));
            words[1] |= (factor & 15) << (4 * group);
            words[2] |= (minimum & 15) << (4 * group);
            words[3] |= (factor >> 4) << (2 * group) | (minimum >> 4) << (2 * group + 16);
            let (slab, chunk) = (2 * at + group / 4, group % 4);
            for (quad, eight) in codes_of_group.chunks_exact(8).enumerate() {
                let place = |(i, code): (usize, &u8)| u32::from(*code) << (4 * (i / 2) + i % 2 * 16);
                let word: u32 = eight.iter().enumerate().map(place).sum();
                codes[slab_row(slab, row) + quad * 16 + chunk * 4..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
        let record = (at * TILE_OUTPUTS + row) * 16;
        for (word, to) in words.iter().zip(scales[record..record + 16].chunks_exact_mut(4)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
}
