//! Logits of every family against Hugging Face transformers, or a reference in f64 where that has none, on tiny random
//! checkpoints (`golden/README.md`); and of one family against candle-transformers.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

mod common;

use candle_core::{DType, Device, IndexOp, Tensor};
use common::passes::{self, PAGE_LEN, TOLERANCE, golden, largest_error};
use models::{
    Backbone, ForwardBatch, KvCache, LoadOptions, ModelSource, PageId, Quantize, Segment, TokenId, Visibility,
    source::load,
};

const FOLDERS: [&str; 10] = [
    "llama-gqa-tied",
    "llama-mha-bias",
    "llama-untied-linear-rope",
    "llama3-rope",
    "llama3-rope-tied",
    "qwen2",
    "qwen3",
    "qwen3-untied",
    "lla/tied",
    "lla/window",
];

fn backbone(name: &str, quantize: Option<Quantize>) -> Box<dyn Backbone> {
    let tokenizer = Some(golden("tokenizer.json"));
    let options = LoadOptions { quantize, tokenizer, ..LoadOptions::default() };
    load(&ModelSource::Folder(golden(name)), &options).unwrap_or_else(|error| panic!("{name}: {error}")).backbone
}

/// Logits of all rows, fed in chunks of the given lengths.
fn logits(model: &mut dyn Backbone, tokens: &[TokenId], chunks: &[usize]) -> Vec<Vec<f32>> {
    passes::logits(model, tokens, chunks, Visibility::Causal)
}

fn prompts(name: &str) -> Vec<(String, Vec<TokenId>)> {
    let text = std::fs::read_to_string(golden(name).join("prompts.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let prompt = |entry: &serde_json::Value| {
        let ids = entry["ids"].as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect();
        (entry["logits"].as_str().unwrap().to_owned(), ids)
    };
    json["prompts"].as_array().unwrap().iter().map(prompt).collect()
}

#[test]
fn every_family_matches_its_reference() {
    for name in FOLDERS {
        let mut model = backbone(name, None);
        let expected = candle_core::safetensors::load(golden(name).join("logits.safetensors"), &Device::Cpu).unwrap();
        let prompts = prompts(name);
        assert_eq!(prompts.iter().map(|(_, ids)| ids.len()).collect::<Vec<_>>(), [1, 7, 33]);
        for (key, ids) in prompts {
            let error = largest_error(&logits(model.as_mut(), &ids, &[ids.len()]), &expected[&key]);
            println!("{name} {key}: {error:.1e}");
            assert!(error <= TOLERANCE, "{name}, {} tokens: relative error {error:e}", ids.len());
        }
    }
}

#[test]
fn chunks_and_neighbours_do_not_change_a_bit() {
    for (name, quantize) in [
        ("llama-gqa-tied", None),
        ("qwen3", None),
        ("qwen2", Some(Quantize::Q8_0)),
        ("lla/tied", Some(Quantize::Q8_0)),
        ("lla/window", None),
    ] {
        let mut model = backbone(name, quantize);
        let (_, ids) = prompts(name).pop().unwrap();
        let whole = logits(model.as_mut(), &ids, &[33]);
        for chunks in [vec![1; 33], vec![5, 8, 1, 16, 3], vec![32, 1]] {
            assert_eq!(logits(model.as_mut(), &ids, &chunks), whole, "{name} in chunks of {chunks:?}");
        }
        let mut kv = KvCache::new(model.spec().kv, 16, PAGE_LEN).unwrap();
        let pages: Vec<PageId> = (0..16).map(PageId).collect();
        let part = |tokens, pages| Segment { tokens, start: 0, visibility: Visibility::Causal, scored: 0..7, pages };
        let segments =
            vec![part(&ids[..7], &pages[..4]), part(&ids[9..16], &pages[4..8]), part(&ids[..7], &pages[8..12])];
        let packed = model.forward(&ForwardBatch { segments }, &mut kv).unwrap();
        for (row, expected) in whole[..7].iter().enumerate() {
            assert_eq!(packed.row(row), expected, "{name}, first of three sequences, row {row}");
            assert_eq!(packed.row(14 + row), expected, "{name}, last of three sequences, row {row}");
        }
    }
}

#[test]
fn quantised_weights_stay_near() {
    // Rows of the other checkpoints are no multiple of a block of 32, so they stay f32.
    for name in ["llama-gqa-tied", "llama3-rope", "qwen2", "qwen3"] {
        let (_, ids) = prompts(name).pop().unwrap();
        let exact = logits(backbone(name, None).as_mut(), &ids, &[33]);
        let exact = Tensor::new(exact, &Device::Cpu).unwrap();
        let error = largest_error(&logits(backbone(name, Some(Quantize::Q8_0)).as_mut(), &ids, &[33]), &exact);
        println!("{name} q8_0: {error:.1e}");
        assert!(error > 1e-6, "{name}: the weights were not quantised");
        assert!(error < 0.1, "{name}: relative error {error}");
    }
}

#[test]
fn llama_matches_candle_transformers() {
    use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
    let folder = golden("llama-gqa-tied");
    let config: LlamaConfig =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let config = config.into_config(false);
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let weights = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let theirs = Llama::load(weights, &config).unwrap();
    let mut ours = backbone("llama-gqa-tied", None);
    for (_, ids) in prompts("llama-gqa-tied") {
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        let input = Tensor::new(ids.iter().map(|id| id.0).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let last = theirs.forward(&input.unsqueeze(0).unwrap(), 0, &mut cache).unwrap().i(0).unwrap();
        let got = logits(ours.as_mut(), &ids, &[ids.len()]);
        let error = largest_error(&got[got.len() - 1..], &last.unsqueeze(0).unwrap());
        assert!(error <= TOLERANCE, "{} tokens: {error:e}", ids.len());
    }
}
