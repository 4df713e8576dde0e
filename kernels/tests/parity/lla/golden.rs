//! Expected values of a dense solver in f64, made by `golden/lla/make_vectors.py`.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use kernels::{
    LlaPlan, LlaRow, LlaSolver,
    reference::{self, LlaInputs, LlaShape, LlaSolution},
};
use serde_json::Value;

use super::{Case, assert_finite, assert_within, flat, reference_outputs, vector_error, wide};
use crate::{bits, on_every_level};

const NAMES: [&str; 28] = [
    "01_single_key",
    "02_n7_d8",
    "03_n33_d16_grads",
    "04_n64_d64_lambdas",
    "05_n64_d16_small_lambda",
    "06_lambda_per_token",
    "07_gqa_4q_2kv",
    "08_decode_one_query",
    "09_chunked_prefill",
    "10_dv_not_d",
    "11_qk_rmsnorm_d128",
    "12_scale_zero",
    "13_scale_zero_antisymmetric",
    "14_sharp",
    "15_huge_logits",
    "16_identical_keys",
    "17_affine_values_lambda_tiny",
    "18_affine_values_lambda_half",
    "19_lambda_huge",
    "20_rank_one_keys",
    "21_shifted_keys",
    "22_low_rank_keys",
    "23_equal_values",
    "24_mask_with_empty_row",
    "25_sliding_window",
    "26_packed_sequences",
    "27_cg_trace",
    "28_n130_d16",
];

/// One vector. Tensors are `[heads, rows, dim]` in the file and in `tensors`; [`Golden::by_row`] turns them.
struct Golden {
    manifest: Value,
    tensors: HashMap<String, Tensor>,
    shape: LlaShape,
    num_rows: usize,
    num_keys: usize,
}

impl Golden {
    fn load(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lla");
        let manifest = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        let tensors = candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu).unwrap();
        let size = |key: &str| manifest[key].as_u64().unwrap() as usize;
        let shape = super::shape(size("heads_q"), size("heads_kv"), size("d"), size("d_v"));
        let (num_rows, num_keys) = (size("n_q"), size("n_k"));
        Self { shape, num_rows, num_keys, tensors, manifest }
    }

    /// A tensor in f64 as the file has it.
    fn tensor(&self, name: &str) -> Vec<f64> {
        self.tensors[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A tensor `[heads, rows, ..]` as `[rows, heads, ..]`.
    fn by_row(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensors[name].to_dtype(DType::F64).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn tolerance(&self, precision: &str) -> Option<f64> {
        self.manifest["tolerance"][precision].as_f64()
    }

    /// Condition number of the worst system.
    fn condition(&self) -> f64 {
        self.manifest["max_cond_of_C_plus_lambda_I"].as_f64().unwrap()
    }

    /// What each row sees: all ways to say it that apply. A mask becomes a table of pages of one position for each row,
    /// and, where it has no holes, a range of one page.
    fn plans(&self) -> Vec<(LlaPlan, usize)> {
        let (rows, keys) = (self.num_rows, self.num_keys);
        let Some(mask) = self.tensors.get("mask") else {
            let offset = self.manifest["q_offset"].as_u64().unwrap() as usize;
            let row = |row: usize| LlaRow { table: 0, visible_start: 0, visible_end: (row + offset + 1).min(keys) };
            return vec![(LlaPlan::new(vec![vec![0]], (0..rows).map(row).collect(), keys).unwrap(), 1)];
        };
        let mask: Vec<Vec<u8>> = mask.to_vec2().unwrap();
        let tables: Vec<Vec<u32>> =
            mask.iter().map(|row| (0..keys as u32).filter(|&key| row[key as usize] == 1).collect()).collect();
        let seen = |(table, seen): (usize, &Vec<u32>)| LlaRow { table, visible_start: 0, visible_end: seen.len() };
        let as_tables = LlaPlan::new(tables.clone(), tables.iter().enumerate().map(seen).collect(), 1).unwrap();
        let ranges: Option<Vec<LlaRow>> = tables
            .iter()
            .map(|seen| {
                let (start, end) = (*seen.first()? as usize, *seen.last()? as usize + 1);
                (end - start == seen.len()).then_some(LlaRow { table: 0, visible_start: start, visible_end: end })
            })
            .collect();
        let mut plans = vec![(as_tables, keys)];
        plans.extend(ranges.map(|rows| (LlaPlan::new(vec![vec![0]], rows, keys).unwrap(), 1)));
        plans
    }

    fn cases(&self) -> Vec<Case> {
        let narrow = |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|value| value as f32).collect() };
        let case = |(plan, num_pages)| Case {
            shape: self.shape,
            plan,
            num_pages,
            q: narrow(self.by_row("q")),
            // Pages of one position need `[keys, kv_heads, 1, dim]`: the same order, for one key-value head.
            keys: flat(&self.tensors["k"]),
            values: flat(&self.tensors["v"]),
            ridge: narrow(self.by_row("lam")),
            scale: self.manifest["scale"].as_f64().unwrap() as f32,
            solver: LlaSolver::default(),
        };
        self.plans().into_iter().map(case).collect()
    }

    /// Calls `body` with the inputs in f64, ridge and scale included.
    fn in_f64<R>(&self, body: impl FnOnce(&LlaInputs<'_>) -> R) -> R {
        let (q, keys, values) = (self.by_row("q"), self.tensor("k"), self.tensor("v"));
        let (ridge, scale) = (self.by_row("lam"), self.manifest["scale"].as_f64().unwrap());
        body(&LlaInputs { q: &q, keys: &keys, values: &values, ridge: &ridge, scale })
    }
}

fn all() -> impl Iterator<Item = (&'static str, Golden)> {
    NAMES.into_iter().map(|name| (name, Golden::load(name)))
}

/// Largest difference, relative to the largest value expected or to `unit`; both may be infinite in the same places.
fn difference(got: &[f64], expected: &[f64], unit: f64) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().filter(|x| x.is_finite()).fold(unit, |a: f64, b| a.max(b.abs()));
    let pairs = got.iter().zip(expected).filter(|(got, expected)| got != expected);
    pairs.fold(0.0, |worst, (got, expected)| super::error_or_infinity((got - expected).abs() / largest).max(worst))
}

fn all_of(solutions: &[LlaSolution], part: impl Fn(&LlaSolution) -> Vec<f64>) -> Vec<f64> {
    solutions.iter().flat_map(part).collect()
}

#[test]
fn the_list_is_the_folder() {
    let index = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lla/index.json");
    let index: Value = serde_json::from_str(&std::fs::read_to_string(index).unwrap()).unwrap();
    let names: Vec<&str> = index.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
}

#[test]
fn the_reference_meets_the_golden_vectors() {
    for (name, golden) in all() {
        let (tolerance, condition) = (golden.tolerance("float64").unwrap(), golden.condition());
        for (plan, _) in golden.plans() {
            let found = golden.in_f64(|inputs| reference::lla(inputs, &plan, golden.shape)).unwrap();
            let error = vector_error(&reference_outputs(&found), &golden.by_row("o"), golden.shape.value_dim);
            println!("{name}: f64 error {error:.1e}, condition {condition:.0e}");
            assert_within(error, tolerance, name);
            // Means may cancel to zero: their errors are relative to keys and values, which are around 1 or larger.
            let check = |what: &str, part: &dyn Fn(&LlaSolution) -> Vec<f64>, tolerance| {
                let unit = if matches!(what, "x" | "eta") { 1e-30 } else { 1.0 };
                let error = difference(&all_of(&found, part), &golden.by_row(what), unit);
                assert_within(error, tolerance, &format!("{name}, {what}"));
            };
            check("kbar", &|s| s.key_mean.clone(), 1e-12);
            check("lse", &|s| vec![s.lse], 1e-12);
            check("o_softmax", &|s| s.softmax_output.clone(), 1e-12);
            check("x", &|s| s.probe.clone(), 1e-14 * condition.max(1e2));
            check("eta", &|s| vec![s.eta], 1e-14 * condition.max(1e2));
        }
    }
}

#[test]
fn the_kernel_meets_the_golden_vectors_on_every_level() {
    for (name, golden) in all() {
        for case in golden.cases() {
            let results = on_every_level(2, || case.run());
            for (level, out) in &results {
                let got = flat(&out.output);
                let what = format!("{name}, {level}");
                assert_finite(&got, &what);
                assert_eq!(bits(&got), bits(&flat(&results[0].1.output)), "{what} and portable");
                assert_eq!(out.report, results[0].1.report, "{what} and portable");
            }
            let out = &results[0].1;
            let error = vector_error(&wide(&flat(&out.output)), &golden.by_row("o"), golden.shape.value_dim);
            let (report, details) = (&out.report, out.details.as_ref().unwrap());
            println!(
                "{name}: f32 error {error:.1e} of {:?}, steps up to {}, capped {}, frozen {}, weak {}, eta {:.1e}",
                golden.tolerance("float32"),
                report.iterations.len() - 1,
                report.num_capped,
                report.num_frozen,
                report.num_weak_ridges,
                report.largest_eta
            );
            if let Some(tolerance) = golden.tolerance("float32") {
                assert_within(error, tolerance, name);
            }
            assert_eq!(report.num_fallbacks, 0, "{name}");
            let lse = difference(&wide(&details.lse), &golden.by_row("lse"), 1.0);
            let mean = difference(&wide(&details.key_mean), &golden.by_row("kbar"), 1.0);
            let softmax = difference(&wide(&details.softmax_output), &golden.by_row("o_softmax"), 1.0);
            let eta = difference(&wide(&details.eta), &golden.by_row("eta"), 1e-30);
            println!("    lse {lse:.1e}, kbar {mean:.1e}, softmax {softmax:.1e}, eta {eta:.1e}");
            for (what, error) in [("lse", lse), ("kbar", mean), ("o_softmax", softmax)] {
                assert_within(error, 1e-5, &format!("{name}, {what}"));
            }
            // With a condition of 6e7 the vector without a tolerance has none here either.
            if golden.tolerance("float32").is_some() {
                assert_within(eta, 1e-5, &format!("{name}, eta"));
            }
        }
    }
}

#[test]
fn the_solver_follows_the_trace() {
    let golden = Golden::load("27_cg_trace");
    let mut case = golden.cases().remove(0);
    let (steps, x, o) = (golden.tensor("cg_steps"), golden.tensor("cg_x"), golden.tensor("cg_o"));
    for (at, steps) in steps.iter().enumerate() {
        case.solver = LlaSolver { tolerance: 0.0, max_iterations: *steps as usize };
        let out = case.run();
        let (x, o) = (&x[at * 33 * 16..][..33 * 16], &o[at * 33 * 16..][..33 * 16]);
        let error = vector_error(&wide(&flat(&out.output)), o, 16);
        let probe = vector_error(&wide(&out.details.unwrap().probe), x, 16);
        println!("{steps} steps: output {error:.1e}, probe {probe:.1e}");
        // From 8 steps on, rows with about as many keys as steps end their descent, and steps of f32 are no longer
        // orthogonal to one another: rounding nothing but the vectors of an f64 solver to f32 moves the probe of row 16
        // by 4e-3 after 8 steps. The last steps undo it.
        let tolerance = match *steps as usize {
            ..=4 => 2e-5,
            8 => 3e-2,
            _ => 2e-3,
        };
        assert_within(error, tolerance, &format!("output after {steps} steps"));
        assert_within(probe, tolerance, &format!("probe after {steps} steps"));
    }
}

#[test]
fn gradients_meet_the_golden_vector() {
    let golden = Golden::load("03_n33_d16_grads");
    let (plan, _) = golden.plans().remove(0);
    let grad_output = golden.by_row("grad_o");
    let found = golden.in_f64(|inputs| reference::lla_gradients(inputs, &plan, golden.shape, &grad_output)).unwrap();
    for (what, got, expected) in [
        ("q", &found.q, golden.by_row("grad_q")),
        ("keys", &found.keys, golden.tensor("grad_k")),
        ("values", &found.values, golden.tensor("grad_v")),
        ("ridge", &found.ridge, golden.by_row("grad_lam")),
    ] {
        let error = difference(got, &expected, 1e-30);
        println!("gradient of {what}: {error:.1e}");
        assert_within(error, 1e-11, what);
    }
}

#[test]
fn a_scale_of_zero_is_ridge_regression() {
    let golden = Golden::load("13_scale_zero_antisymmetric");
    let out = golden.cases().remove(0).outputs();
    assert_within(vector_error(&wide(&out), &golden.by_row("o_linear_ridge"), 8), 1e-4, "linear attention");
}

#[test]
fn a_vanishing_ridge_recovers_affine_values() {
    let golden = Golden::load("17_affine_values_lambda_tiny");
    let (plan, _) = golden.plans().remove(0);
    let found = golden.in_f64(|inputs| reference::lla(inputs, &plan, golden.shape)).unwrap();
    // With at least one key more than dimensions the slope is determined.
    let skip = golden.shape.key_dim * golden.shape.value_dim;
    let error = vector_error(&reference_outputs(&found)[skip..], &golden.by_row("o_if_lambda_zero")[skip..], 4);
    println!("affine recovery: {error:.1e}");
    assert_within(error, 1e-4, "B q + c");
}
