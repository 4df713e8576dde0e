//! Expected values of a dense solver in f64; the files and their tolerances are those of the CPU kernels.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use kernels::{LlaPlan, LlaRow, device::ElementType};
use serde_json::Value;

use crate::{
    case::{Case, WAYS, assert_within, shape, vector_error, wide},
    skipped,
};

/// One vector; tensors are `[heads, rows, dim]` in the file.
struct Golden {
    manifest: Value,
    tensors: HashMap<String, Tensor>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/lla")
}

fn names() -> Vec<String> {
    let index: Value = serde_json::from_str(&std::fs::read_to_string(folder().join("index.json")).unwrap()).unwrap();
    index.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

impl Golden {
    fn load(name: &str) -> Self {
        let manifest = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let tensors =
            candle_core::safetensors::load(folder().join(format!("{name}.safetensors")), &Device::Cpu).unwrap();
        Self { manifest: serde_json::from_str(&manifest).unwrap(), tensors }
    }

    fn size(&self, key: &str) -> usize {
        self.manifest[key].as_u64().unwrap() as usize
    }

    /// A tensor `[heads, rows, ..]` as `[rows, heads, ..]`.
    fn by_row(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensors[name].to_dtype(DType::F64).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn flat(&self, name: &str) -> Vec<f32> {
        self.tensors[name].to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// What each row sees: with a mask, pages of one position and a table for each row; else a range.
    fn plan(&self) -> (LlaPlan, usize) {
        let (rows, keys) = (self.size("n_q"), self.size("n_k"));
        let Some(mask) = self.tensors.get("mask") else {
            let offset = self.size("q_offset");
            let row = |row: usize| LlaRow { table: 0, visible_start: 0, visible_end: (row + offset + 1).min(keys) };
            return (LlaPlan::new(vec![vec![0]], (0..rows).map(row).collect(), keys).unwrap(), 1);
        };
        let mask: Vec<Vec<u8>> = mask.to_vec2().unwrap();
        let tables: Vec<Vec<u32>> =
            mask.iter().map(|row| (0..keys as u32).filter(|&key| row[key as usize] == 1).collect()).collect();
        let seen = |(table, seen): (usize, &Vec<u32>)| LlaRow { table, visible_start: 0, visible_end: seen.len() };
        (LlaPlan::new(tables.clone(), tables.iter().enumerate().map(seen).collect(), 1).unwrap(), keys)
    }

    fn case(&self) -> Case {
        let narrow = |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|value| value as f32).collect() };
        let (plan, num_pages) = self.plan();
        Case {
            shape: shape(self.size("heads_q"), self.size("heads_kv"), self.size("d"), self.size("d_v")),
            plan,
            num_pages,
            q: narrow(self.by_row("q")),
            keys: self.flat("k"),
            values: self.flat("v"),
            probe: None,
            ridge: narrow(self.by_row("lam")),
            scale: self.manifest["scale"].as_f64().unwrap() as f32,
            rounds: None,
            output_stride: None,
        }
    }

    fn tolerance(&self, element_type: ElementType) -> Option<f64> {
        let key = if element_type == ElementType::F32 { "float32" } else { "half_io_refined_or_split" };
        self.manifest["tolerance"][key].as_f64()
    }
}

/// Both ways, all vectors.
fn meet_the_golden_vectors(element_type: ElementType) {
    if skipped() {
        return;
    }
    let names = names();
    assert_eq!(names.len(), 28);
    for name in names {
        let golden = Golden::load(&name);
        let (case, expected) = (golden.case(), golden.by_row("o"));
        // Inputs are exact in every type.
        assert_eq!(case.rounded(element_type).keys, case.keys, "{name}");
        for way in WAYS {
            let found = case.run(way, element_type);
            let error = vector_error(&wide(&found.output), &expected, case.shape.value_dim);
            let tolerance = golden.tolerance(element_type);
            println!("{name} {element_type:?} {way:?}: {error:.1e} of {tolerance:?}, {:?}", found.counters);
            let what = format!("{name}, {element_type:?}, {way:?}");
            assert!(found.output.iter().all(|x| x.is_finite()), "{what}: not finite");
            if let Some(tolerance) = tolerance {
                assert_within(error, tolerance, &what);
            }
            assert_eq!(found.counters.num_fallbacks, 0, "{what}");
            assert_eq!(found.counters.num_wide, 0, "{what}");
        }
    }
}

// A test for each type, so that they share the time among threads.

#[test]
fn golden_vectors_in_f32() {
    meet_the_golden_vectors(ElementType::F32);
}

#[test]
fn golden_vectors_in_f16() {
    meet_the_golden_vectors(ElementType::F16);
}

#[test]
fn golden_vectors_in_bf16() {
    meet_the_golden_vectors(ElementType::BF16);
}

#[test]
fn a_given_probe_does_what_the_solution_does() {
    if skipped() {
        return;
    }
    for name in ["03_n33_d16_grads", "07_gqa_4q_2kv", "11_qk_rmsnorm_d128", "21_shifted_keys"] {
        let golden = Golden::load(name);
        let mut case = golden.case();
        case.probe = Some(golden.by_row("x").into_iter().map(|value| value as f32).collect());
        for way in WAYS {
            let found = case.run(way, ElementType::F32);
            let error = vector_error(&wide(&found.output), &golden.by_row("o"), case.shape.value_dim);
            println!("{name} {way:?}: {error:.1e}");
            assert_within(error, 1e-4, name);
        }
    }
}
