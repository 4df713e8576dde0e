//! Logits of the diffusion families against plain PyTorch on tiny random checkpoints (`golden/diffusion`), who sees
//! whom, and that neighbours and chunks change nothing.

mod common;

use std::fs;

use candle_core::Device;
use common::passes::{PAGE_LEN, TOLERANCE, golden, largest_error, logits, tensor};
use models::{
    AttentionKind, Backbone, BlockOrigin, ForwardBatch, KvCache, LoadOptions, LogitAlignment, ModelSource, PageId,
    Quantize, Segment, TokenId, Visibility, source::load,
};

const FOLDERS: [&str; 11] = [
    "llada",
    "llada-gqa",
    "illada",
    "dream",
    "sdar",
    "fast-dllm-v2",
    "a2d-qwen3-mdlm",
    "a2d-qwen3-bd3lm",
    "a2d-qwen2-mdlm",
    "llada-moe",
    "llada2",
];
/// The families whose rows go different ways within a layer.
const MIXTURES: [&str; 2] = ["llada-moe", "llada2"];
/// Folders that lie beside a GGUF file of the same weights.
const CONVERTED: [&str; 3] = ["llada", "dream", "llada-moe"];

/// What a golden says of its model.
struct Golden {
    name: &'static str,
    json: serde_json::Value,
}

impl Golden {
    fn read(name: &'static str) -> Self {
        let path = golden("diffusion").join(name).join("golden.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { name, json: serde_json::from_str(&text).expect("valid JSON") }
    }

    fn mask_id(&self) -> TokenId {
        TokenId(self.json["mask_id"].as_u64().expect("an id") as u32)
    }

    /// What the rows of a sequence of `len` tokens see, for blocks counted from `origin`.
    fn visibility(&self, len: usize, origin: usize) -> Visibility {
        match self.json["block_length"].as_u64() {
            Some(block_len) => Visibility::Blocks { origin, block_len: block_len as usize },
            None => Visibility::Through(len),
        }
    }

    /// Key of the logits, token ids and block origin of each sequence.
    fn sequences(&self) -> Vec<(String, Vec<TokenId>, usize)> {
        let sequences = self.json["logits"].as_array().expect("a list");
        sequences
            .iter()
            .map(|sequence| {
                let ids = sequence["ids"].as_array().expect("a list");
                let ids = ids.iter().map(|id| TokenId(id.as_u64().expect("an id") as u32)).collect();
                let key = sequence["logits"].as_str().expect("a name").to_owned();
                (key, ids, sequence["origin"].as_u64().unwrap_or(0) as usize)
            })
            .collect()
    }

    fn longest(&self) -> (Vec<TokenId>, usize) {
        let sequences = self.sequences().into_iter().map(|(_, ids, origin)| (ids, origin));
        sequences.max_by_key(|(ids, _)| ids.len()).expect("a golden has sequences")
    }

    fn options(&self, quantize: Option<Quantize>) -> LoadOptions {
        let mask_id = (self.json["mask_id_in_config"] == false).then(|| self.mask_id());
        LoadOptions { quantize, mask_id, tokenizer: Some(golden("tokenizer.json")), ..LoadOptions::default() }
    }

    fn load(&self, quantize: Option<Quantize>) -> Box<dyn Backbone> {
        let folder = golden("diffusion").join(self.name);
        let loaded = load(&ModelSource::Folder(folder), &self.options(quantize));
        loaded.unwrap_or_else(|error| panic!("{}: {error}", self.name)).backbone
    }

    fn load_gguf(&self) -> Box<dyn Backbone> {
        let file = golden("diffusion").join(format!("{}.gguf", self.name));
        let options = LoadOptions { mask_id: None, ..self.options(None) };
        let loaded = load(&ModelSource::Gguf(file), &options);
        loaded.unwrap_or_else(|error| panic!("{}.gguf: {error}", self.name)).backbone
    }
}

/// The largest error of any sequence.
fn worst_error(model: &mut dyn Backbone, golden_of: &Golden) -> f32 {
    let path = golden("diffusion").join(golden_of.name).join("logits.safetensors");
    let expected = candle_core::safetensors::load(path, &Device::Cpu).expect("readable");
    let sequences = golden_of.sequences();
    assert!(sequences.len() >= 3, "{}", golden_of.name);
    let errors = sequences.into_iter().map(|(key, ids, origin)| {
        let got = logits(model, &ids, &[ids.len()], golden_of.visibility(ids.len(), origin));
        largest_error(&got, &expected[&key])
    });
    errors.fold(0f32, |worst, error| if error.is_nan() { error } else { worst.max(error) })
}

#[test]
fn every_family_matches_the_reference() {
    for name in FOLDERS {
        let golden = Golden::read(name);
        let error = worst_error(golden.load(None).as_mut(), &golden);
        println!("{name}: {error:.1e}");
        assert!(error <= TOLERANCE, "{name}: relative error {error:e}");
    }
}

#[test]
fn gguf_files_match_the_reference() {
    for name in CONVERTED {
        let golden = Golden::read(name);
        let mut model = golden.load_gguf();
        assert_eq!(model.spec().mask_id, Some(golden.mask_id()), "{name}: the metadata names the mask");
        let error = worst_error(model.as_mut(), &golden);
        println!("{name}.gguf: {error:.1e}");
        assert!(error <= TOLERANCE, "{name}.gguf: relative error {error:e}");
        let folder = golden.load(None);
        let (from_file, from_folder) = (model.spec(), folder.spec());
        assert_eq!(
            (from_file.attention, from_file.alignment),
            (from_folder.attention, from_folder.alignment),
            "{name}"
        );
        assert_eq!((&from_file.family, from_file.num_params), (&from_folder.family, from_folder.num_params), "{name}");
    }
}

#[test]
fn the_spec_says_what_the_family_fixes() {
    let blocks = |block_len, origin| AttentionKind::BlockCausal { block_len, origin };
    let expected = [
        ("llada", "llada", AttentionKind::Full),
        ("llada-gqa", "llada", AttentionKind::Full),
        ("illada", "illada", AttentionKind::Full),
        ("dream", "dream", AttentionKind::Full),
        ("sdar", "sdar", blocks(4, BlockOrigin::Start)),
        ("fast-dllm-v2", "fast_dllm_v2", blocks(8, BlockOrigin::Start)),
        ("a2d-qwen3-mdlm", "a2d", AttentionKind::Full),
        // The config has no block length: the published one.
        ("a2d-qwen3-bd3lm", "a2d", blocks(32, BlockOrigin::PromptEnd)),
        ("a2d-qwen2-mdlm", "a2d", AttentionKind::Full),
        ("llada-moe", "llada_moe", AttentionKind::Full),
        ("llada2", "llada2", blocks(8, BlockOrigin::Start)),
    ];
    assert_eq!(expected.map(|(name, ..)| name), FOLDERS);
    for (name, family, attention) in expected {
        let golden = Golden::read(name);
        let model = golden.load(None);
        let spec = model.spec();
        assert_eq!((spec.family.as_str(), spec.attention), (family, attention), "{name}");
        let alignment = if golden.json["shift"] == true { LogitAlignment::NextSlot } else { LogitAlignment::SameSlot };
        assert_eq!((spec.alignment, spec.mask_id), (alignment, Some(golden.mask_id())), "{name}");
        assert_eq!(spec.context_len, 256, "{name}");
    }
}

#[test]
fn a_canvas_of_masks_has_finite_logits() {
    for name in FOLDERS {
        let golden = Golden::read(name);
        let canvas = [golden.mask_id(); 40];
        let rows = logits(golden.load(None).as_mut(), &canvas, &[40], golden.visibility(40, 0));
        assert!(rows.iter().flatten().all(|value| value.is_finite()), "{name}");
    }
}

/// The last token of a sequence is changed: the rows that see it must change, no others may.
#[test]
fn rows_see_what_their_attention_says() {
    for name in FOLDERS {
        let golden = Golden::read(name);
        let mut model = golden.load(None);
        let block_len = golden.json["block_length"].as_u64().map_or(24, |len| len as usize);
        // Two blocks and a half: the last row shares its block with the rows just before it.
        let len = 2 * block_len + block_len / 2;
        let mut ids: Vec<TokenId> = (0..len as u32).map(|at| TokenId(6 + at * 7 % 90)).collect();
        let visibility = golden.visibility(len, 0);
        let before = logits(model.as_mut(), &ids, &[len], visibility);
        ids[len - 1] = TokenId(99);
        let after = logits(model.as_mut(), &ids, &[len], visibility);
        for row in 0..len {
            let sees = golden.json["attention"] == "full" || row >= 2 * block_len;
            assert_eq!(before[row] != after[row], sees, "{name}, row {row} of {len}");
        }
    }
}

#[test]
fn neighbours_do_not_change_a_bit() {
    for name in FOLDERS {
        for quantize in [None, Some(Quantize::Q8_0)] {
            let golden = Golden::read(name);
            let mut model = golden.load(quantize);
            let (ids, origin) = golden.longest();
            let len = ids.len();
            let visibility = golden.visibility(len, origin);
            let alone = logits(model.as_mut(), &ids, &[len], visibility);
            let others: Vec<TokenId> = ids.iter().rev().copied().collect();
            let pages: Vec<PageId> = (0..64).map(PageId).collect();
            let per_sequence = len.div_ceil(PAGE_LEN);
            let mut kv = KvCache::new(model.spec().kv, 64, PAGE_LEN).expect("a small KV cache");
            let segments = [&ids, &others, &ids].into_iter().enumerate().map(|(index, tokens)| Segment {
                tokens,
                start: 0,
                visibility,
                scored: 0..len,
                pages: &pages[index * per_sequence..][..per_sequence],
            });
            let batch = ForwardBatch { segments: segments.collect() };
            let packed = model.forward(&batch, &mut kv).expect("a forward pass");
            for (row, expected) in alone.iter().enumerate() {
                assert_eq!(packed.row(row), expected, "{name} {quantize:?}, first of three sequences, row {row}");
                assert_eq!(packed.row(2 * len + row), expected, "{name} {quantize:?}, last of three, row {row}");
            }
        }
    }
}

/// Rows of one layer of experts are sorted by expert, computed and put back: a batch of one row must agree.
#[test]
fn rows_of_a_mixture_have_the_same_bits_alone() {
    for name in MIXTURES {
        let golden = Golden::read(name);
        let mut model = golden.load(None);
        let (ids, _) = golden.longest();
        // Causal rows see what was written before them, so they can be fed one by one.
        let whole = logits(model.as_mut(), &ids, &[ids.len()], Visibility::Causal);
        let single = logits(model.as_mut(), &ids, &vec![1; ids.len()], Visibility::Causal);
        assert_eq!(whole, single, "{name}");
    }
}

#[test]
fn blocks_may_be_read_one_by_one_or_together() {
    for name in ["sdar", "fast-dllm-v2", "a2d-qwen3-bd3lm", "llada2"] {
        let golden = Golden::read(name);
        let mut model = golden.load(None);
        for (key, ids, origin) in golden.sequences() {
            let len = ids.len();
            let visibility = golden.visibility(len, origin);
            let Visibility::Blocks { block_len, .. } = visibility else { panic!("{name} attends by blocks") };
            // Until the next border, then whole blocks, then what is left.
            let borders = (origin % block_len..len).step_by(block_len).filter(|border| *border > 0).chain([len]);
            let chunks = |every: usize| {
                let mut start = 0;
                let ends = borders.clone().enumerate().filter(|(at, end)| at % every == every - 1 || *end == len);
                ends.map(|(_, end)| end - std::mem::replace(&mut start, end)).collect::<Vec<_>>()
            };
            let whole = logits(model.as_mut(), &ids, &[len], visibility);
            for every in [1, 2] {
                let chunks = chunks(every);
                assert_eq!(chunks.iter().sum::<usize>(), len);
                assert_eq!(logits(model.as_mut(), &ids, &chunks, visibility), whole, "{name} {key} in {chunks:?}");
            }
        }
    }
}

#[test]
fn quantised_weights_stay_near() {
    // Rows of other widths than 48 or 64 are no multiple of a block of 32, so some stay f32 in every model.
    for name in ["llada", "dream", "llada2"] {
        let golden = Golden::read(name);
        let (ids, origin) = golden.longest();
        let visibility = golden.visibility(ids.len(), origin);
        let exact = tensor(logits(golden.load(None).as_mut(), &ids, &[ids.len()], visibility));
        let near = logits(golden.load(Some(Quantize::Q8_0)).as_mut(), &ids, &[ids.len()], visibility);
        let error = largest_error(&near, &exact);
        println!("{name} q8_0: {error:.1e}");
        assert!(error > 1e-6, "{name}: the weights were not quantised");
        assert!(error < 0.1, "{name}: relative error {error}");
    }
}
