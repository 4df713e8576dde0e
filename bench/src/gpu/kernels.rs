//! Kernels of a shape alone: its matrix products, and attention behind its contexts.

use half::{bf16, f16};
use kernels::{
    AttentionPlan, PlanRow,
    device::{
        Array, Attention, DeviceLinear, DevicePlan, DeviceWeight, ElementType, HeadShape, PlanLimits, Recording,
        attention, attention_records, matmul, padded,
    },
};
use models::ModelConfig;

use super::{
    Part, Setup,
    log::{Cell, Log, figure},
    shapes::{Matrix, matrices},
};
use crate::stats::SplitMix;

/// Rows of the matrix products.
const ROWS: [usize; 6] = [1, 8, 32, 64, 128, 512];
/// Rows of attention: a step of AR, and a block.
const ATTENTION_ROWS: [usize; 2] = [1, 32];
const PAGE_LEN: usize = 32;

/// Matrix products and attention of one shape.
pub(super) fn run(setup: &Setup, (name, config): (&str, &ModelConfig), log: &mut Log) -> anyhow::Result<()> {
    log.note(
        Part::Kernels,
        "One layer's products as the engine launches them, and its attention without the cache write. Bytes are the \
         weights, or keys and values, once; operands are random, in as many copies as make them come from memory.",
    );
    let head = Matrix { name: "head", parts: vec![config.vocab_size], inputs: config.hidden_size };
    for matrix in matrices(config).iter().chain([&head]) {
        let linears = setup.guarded(None, || linears(setup, matrix));
        for rows in ROWS.into_iter().filter(|rows| *rows <= setup.most_rows) {
            let cell = Cell { rows: Some(rows), ..Cell::new(Part::Kernels, name, matrix.name) };
            log.add(match &linears {
                Err(reason) => Cell { left_out: Some(reason.clone()), ..cell },
                Ok(linears) => {
                    let cell = cell.of_memory(
                        setup,
                        setup.guarded(None, || product(setup, matrix, linears, rows)),
                        linears[0].bytes() as f64,
                    );
                    let operations = (2 * rows * matrix.parts.iter().sum::<usize>() * matrix.inputs) as f64;
                    let share = cell.median().and_then(|median| setup.facts.matrix_share(operations, median));
                    cell.with_some(figure::MATRIX_SHARE, share)
                }
            })?;
        }
    }
    for &context in &setup.contexts {
        for rows in ATTENTION_ROWS.into_iter().filter(|rows| *rows <= setup.most_rows) {
            let cell = Cell::new(Part::Kernels, name, "attention").at(rows, context);
            let kv = config.num_kv_heads * config.head_dim * 2 * size_of::<u16>();
            let measured = setup.guarded(None, || attend(setup, config, rows, context));
            log.add(cell.of_memory(setup, measured, ((rows + context) * kv) as f64))?;
        }
    }
    Ok(())
}

/// Copies of a matrix.
fn linears(setup: &Setup, matrix: &Matrix) -> anyhow::Result<Vec<DeviceLinear>> {
    let bytes = matrix.parts.iter().map(|out| DeviceWeight::bytes_of(setup.format, *out, matrix.inputs)).sum();
    (0..setup.copies(bytes) as u32)
        .map(|copy| {
            let part = |(index, out): (usize, &usize)| {
                let seed = 100 * copy + index as u32;
                DeviceWeight::random(&setup.device, setup.format, (*out, matrix.inputs), seed)
            };
            let parts = matrix.parts.iter().enumerate().map(part).collect::<Result<_, _>>()?;
            Ok(DeviceLinear::stack(parts)?)
        })
        .collect()
}

fn product(setup: &Setup, matrix: &Matrix, linears: &[DeviceLinear], rows: usize) -> anyhow::Result<Vec<f64>> {
    let linear = &linears[0];
    let width = padded(matrix.inputs);
    let xs = random(setup, linear.activations(), rows * width, |at| at % width < matrix.inputs)?;
    let sums = linear.num_sums(setup.device.facts(), rows);
    let out = Array::new(&setup.device, ElementType::F32, sums * rows * linear.out_features())?;
    let mut launches = Vec::new();
    for linear in linears {
        launches.extend(matmul(linear, &xs, &out, rows)?);
    }
    let millis = setup.replays(&Recording::new(&setup.device, launches)?, linears.len())?;
    let first = out.slice(0..linear.out_features())?.read::<f32>()?;
    anyhow::ensure!(first.iter().all(|value| value.is_finite()), "a product is not finite");
    anyhow::ensure!(first.iter().any(|value| *value != 0.0), "a product is zero");
    Ok(millis)
}

fn attend(setup: &Setup, config: &ModelConfig, rows: usize, context: usize) -> anyhow::Result<Vec<f64>> {
    let heads = HeadShape { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
    let pages_of_row = (rows + context).div_ceil(PAGE_LEN);
    let page_values = config.num_kv_heads * PAGE_LEN * config.head_dim;
    let limits = PlanLimits {
        max_rows: rows,
        max_tables: 1,
        max_pages: pages_of_row,
        max_positions: pages_of_row * PAGE_LEN,
        num_pages: pages_of_row,
        page_len: PAGE_LEN,
        group: config.num_heads / config.num_kv_heads,
    };
    let row = |index: usize| PlanRow { table: 0, position: context + index, visible_end: context + index + 1 };
    let table = (0..pages_of_row as u32).rev().collect();
    let rows_of_plan = AttentionPlan::new(vec![table], (0..rows).map(row).collect(), PAGE_LEN)?;
    let plan = DevicePlan::new(&setup.device, limits)?;
    let step = plan.step(&rows_of_plan, rows)?;
    plan.write(&step)?;
    let (shape, element) = (step.shape(), setup.element());
    let width = heads.num_heads * heads.head_dim;
    let q = random(setup, element, rows * width, |_| true)?;
    let output = Array::new(&setup.device, element, rows * padded(width))?;
    let records = Array::new(&setup.device, ElementType::F32, attention_records(shape, heads))?;
    let scale = 1.0 / (heads.head_dim as f32).sqrt();
    let cold = || {
        let pages = random(setup, element, pages_of_row * page_values, |_| true)?;
        let bytes = 2 * pages.bytes();
        setup.cold(pages, bytes)
    };
    let (keys, values) = (cold()?, cold()?);
    let mut launches = Vec::new();
    for (keys, values) in keys.iter().zip(&values) {
        let (q, output, records, plan) = (&q, &output, &records, &plan);
        launches.extend(attention(&Attention { q, keys, values, output, records, plan, shape, heads, scale })?);
    }
    let millis = setup.replays(&Recording::new(&setup.device, launches)?, keys.len())?;
    let mut bytes = vec![0u8; width * element.size()];
    output.read_bytes(&mut bytes)?;
    anyhow::ensure!(bytes.iter().any(|byte| *byte != 0), "attention gave zeros");
    Ok(millis)
}

/// Normal numbers where `is_there`, zeros elsewhere. They repeat after a while, for making them takes time.
fn random(setup: &Setup, element: ElementType, len: usize, is_there: impl Fn(usize) -> bool) -> anyhow::Result<Array> {
    const PERIOD: usize = 1 << 16;
    let mut source = SplitMix(len as u64);
    let numbers: Vec<f32> = (0..PERIOD.min(len)).map(|_| source.normal()).collect();
    let value = |at: usize| if is_there(at) { numbers[at % numbers.len()] } else { 0.0 };
    Ok(match element {
        ElementType::BF16 => {
            Array::from_slice(&setup.device, &(0..len).map(|at| bf16::from_f32(value(at))).collect::<Vec<_>>())?
        }
        _ => Array::from_slice(&setup.device, &(0..len).map(|at| f16::from_f32(value(at))).collect::<Vec<_>>())?,
    })
}
