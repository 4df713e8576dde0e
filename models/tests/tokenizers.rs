//! The bytes of tokens against what the `tokenizers` crate decodes, for each way that vocabularies spell bytes.

mod common;

use std::{env, fs};

use common::{Meta, gguf, metadata, weights};
use models::{
    LoadOptions, ModelSource, TokenId, Tokenizer,
    loader::FileBytes,
    source::{
        gguf::{GgufFile, tokenizer},
        load,
    },
};
use serde_json::{Value, json};

const TEXTS: [&str; 6] = [
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces,\ttabs\n\nand 12345 digits, isn't it?",
    "naïve café – “quotes” … 漢字かな 한국어 עברית",
    "emoji 👩‍👩‍👧 and 🦀, control \u{1}",
    "fn main() { println!(\"{}\", 1 << 3); }\n",
    "",
];

/// Asserts that the bytes of the tokens of each text are the text.
fn bytes_are_the_text(tokenizer: &Tokenizer, prefix: &str) {
    for text in TEXTS {
        let tokens = tokenizer.encode(text, false).expect("encodes");
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| tokenizer.token_bytes(*token)).copied().collect();
        let expected = if text.is_empty() { String::new() } else { format!("{prefix}{text}") };
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
        assert_eq!(tokenizer.decode(&tokens), text);
    }
}

#[test]
fn byte_level_tokens_are_bytes() {
    let tokenizer = Tokenizer::from_json(common::tokenizer().to_string().as_bytes(), "tiny").expect("valid");
    bytes_are_the_text(&tokenizer, "");
    let tokens = tokenizer.encode("<|im_start|>the <think>", false).expect("encodes");
    assert_eq!(tokens, [258, 262, 32, 260].map(TokenId));
    assert!(tokenizer.is_special(tokens[0]) && !tokenizer.is_special(tokens[3]));
    assert_eq!(tokenizer.token_bytes(tokens[0]), b"");
    assert_eq!(tokenizer.token_text(tokens[0]), "<|im_start|>");
    assert_eq!(tokenizer.token_bytes(tokens[3]), b"<think>", "shown, because it is not special");
    assert_eq!(tokenizer.decode(&tokens), "the <think>");
    assert_eq!(tokenizer.token_bytes(TokenId(9999)), b"");
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("<|end|>")), (264, Some(TokenId(257))));
}

/// A small SentencePiece vocabulary in GGUF metadata: control tokens, the 256 bytes, letters and words.
fn sentence_piece() -> Vec<(String, Meta)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    types.extend([6; 256]);
    let words = ["▁", "t", "h", "e", "q", "u", "é", "th", "▁th", "▁the", "he", "qu", "▁▁"];
    tokens.extend(words.map(String::from));
    types.extend([1; 13]);
    let scores: Vec<f32> = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { -(id as f32) }).collect();
    let mut metadata = metadata();
    metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
    for (key, value) in [
        ("tokenizer.ggml.model", Meta::Text("llama".into())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type", Meta::I32s(types)),
        ("tokenizer.ggml.scores", Meta::F32s(scores)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
    ] {
        metadata.push((key.into(), value));
    }
    metadata
}

#[test]
fn sentence_piece_tokens_are_bytes_with_a_space_in_front() {
    let bytes = FileBytes::Owned(gguf(&sentence_piece(), &weights()).into());
    let tokenizer = tokenizer(&GgufFile::parse(bytes, "spm").expect("valid")).expect("a tokenizer");
    bytes_are_the_text(&tokenizer, " ");
    let id = |spelling: &str| tokenizer.token_id(spelling).expect("in the vocabulary");
    assert_eq!(tokenizer.encode("the é", true).expect("encodes"), [id("<s>"), id("▁the"), id("▁"), id("é")]);
    // `th` has a better score than `he`, and `▁th` a better one than `▁the` reached by another way.
    assert_eq!(tokenizer.encode("quthe", false).expect("encodes"), [id("▁"), id("qu"), id("th"), id("e")]);
    assert_eq!(tokenizer.encode_chat("<s>the").expect("encodes"), [id("<s>"), id("▁the")], "one start, not two");
    assert_eq!(tokenizer.encode_chat("the").expect("encodes"), [id("<s>"), id("▁the")]);
    assert_eq!(tokenizer.token_bytes(id("<0x0A>")), b"\n");
    assert_eq!(tokenizer.token_bytes(id("▁the")), b" the");
    assert_eq!(tokenizer.token_bytes(id("<s>")), b"");
}

#[test]
fn a_vocabulary_in_files_of_its_own_is_read_as_qwen2_does() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    common::write_folder(folder.path());
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("writable");
    fs::remove_file(folder.path().join("tokenizer.json")).expect("it is there");
    let refused = |cause: &str| {
        let source = ModelSource::Folder(folder.path().into());
        let message = load(&source, &LoadOptions::default()).expect_err(cause).to_string();
        assert!(message.contains(cause), "{message}");
    };
    refused("has no tokenizer.json");
    // All but the added tokens, which the config or a file of their own has.
    let vocab: serde_json::Map<String, Value> = common::tokens()
        .into_iter()
        .zip(0..)
        .filter(|(_, id)| !(256..=260).contains(id))
        .map(|(token, id)| (token, json!(id)))
        .collect();
    write("vocab.json", Value::Object(vocab).to_string());
    write("merges.txt", "#version: 0.2\nt h\nth e\nĠ the\n".into());
    refused("has no tokenizer.json");
    write("tokenizer_config.json", json!({ "tokenizer_class": "OtherTokenizer" }).to_string());
    refused("has no tokenizer.json");
    let decoder = json!({
        "258": { "content": "<|im_start|>", "special": true }, "256": { "content": "<|bos|>", "special": true },
        "260": { "content": "<think>", "special": false }, "257": { "content": "<|end|>", "special": true },
    });
    let config = json!({ "tokenizer_class": "DreamTokenizer", "added_tokens_decoder": decoder });
    write("tokenizer_config.json", config.to_string());
    write("added_tokens.json", json!({ "<|im_end|>": 259, "<|bos|>": 256 }).to_string());
    let model = load(&ModelSource::Folder(folder.path().into()), &LoadOptions::default()).expect("it loads");

    let mut as_gguf = metadata();
    as_gguf.retain(|(key, _)| key != "tokenizer.ggml.pre");
    as_gguf.push(("tokenizer.ggml.pre".into(), Meta::Text("qwen2".into())));
    let bytes = FileBytes::Owned(gguf(&as_gguf, &weights()).into());
    let expected = tokenizer(&GgufFile::parse(bytes, "qwen2").expect("valid")).expect("a tokenizer");
    bytes_are_the_text(&model.tokenizer, "");
    for text in TEXTS.into_iter().chain(["<|im_start|>the<think> then<|im_end|>", "e\u{301} 1234 the's\r\n\n x"]) {
        let tokens = model.tokenizer.encode(text, true).expect("encodes");
        assert_eq!(tokens, expected.encode(text, true).expect("encodes"), "{text:?}");
    }
    let special = |id| model.tokenizer.is_special(TokenId(id));
    assert_eq!([256, 257, 258, 259, 260].map(special), [true, true, true, true, false]);
}

/// Asserts that nothing spells the token any more, although its place and its name stay.
fn is_out_of_reach(tokenizer: Tokenizer, mask: &str, text: &str) {
    let id = tokenizer.token_id(mask).expect("in the vocabulary");
    assert!(tokenizer.encode(text, false).expect("encodes").contains(&id), "within reach before");
    let vocab_size = tokenizer.vocab_size();
    let tokenizer = tokenizer.with_mask(id, "hidden").expect("a mask");
    let tokens = tokenizer.encode(text, false).expect("encodes");
    assert!(!tokens.contains(&id), "{tokens:?}");
    assert_eq!(tokenizer.decode(&tokens), text);
    assert_eq!((&*tokenizer.token_text(id), tokenizer.token_bytes(id)), (mask, b"".as_slice()));
    assert_eq!((tokenizer.token_id(mask), tokenizer.vocab_size()), (Some(id), vocab_size));
}

#[test]
fn a_mask_is_out_of_reach_in_every_kind_of_vocabulary() {
    let bytes = FileBytes::Owned(gguf(&sentence_piece(), &weights()).into());
    let spm = || tokenizer(&GgufFile::parse(bytes.clone(), "spm").expect("valid")).expect("a tokenizer");
    is_out_of_reach(spm(), "</s>", "the </s> qu");
    let error = spm().with_mask(TokenId(1), "spm").expect_err("`<s>` starts every text");
    assert!(error.to_string().contains("it is added to every text"), "{error}");
    is_out_of_reach(spm(), "▁the", "the quthe");
    let error = spm().with_mask(TokenId(3 + 65), "spm").expect_err("`A` is spelled with its byte");
    assert!(error.to_string().contains("`<0x41>`, which ordinary text is spelled with"), "{error}");

    let byte_level = || Tokenizer::from_json(common::tokenizer().to_string().as_bytes(), "tiny").expect("valid");
    is_out_of_reach(byte_level(), "<|im_start|>", "a<|im_start|>b<|im_start|>");
    is_out_of_reach(byte_level(), "<think>", "<think> more");
    is_out_of_reach(byte_level(), "the", "then");

    let piece = |text: &str, score: f32| json!([text, score]);
    let unigram = json!({
        "version": "1.0", "normalizer": null, "post_processor": null,
        "added_tokens": [{ "id": 1, "content": "<m>", "special": true,
                           "single_word": false, "lstrip": false, "rstrip": false, "normalized": false }],
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false },
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false },
        "model": { "type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [
            piece("<unk>", 0.0), piece("<m>", 0.0), piece("▁", -3.0), piece("a", -3.0), piece("b", -3.0),
            piece("ab", -1.0), piece("<", -3.0), piece("m", -3.0), piece(">", -3.0),
        ]},
    });
    let unigram = || Tokenizer::from_json(unigram.to_string().as_bytes(), "unigram").expect("valid");
    is_out_of_reach(unigram(), "<m>", "ab <m> ba");
    is_out_of_reach(unigram(), "ab", "ab <m> ba".replace("<m>", "b").as_str());
}

#[test]
fn other_kinds_of_tokenizers_are_refused() {
    let refused = |edit: fn(&mut Value)| {
        let mut json = common::tokenizer();
        edit(&mut json);
        Tokenizer::from_json(json.to_string().as_bytes(), "odd").expect_err("not supported").to_string()
    };
    let message = refused(|json| json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
    assert!(message.contains("supported: ByteLevel"), "{message}");
    let message = refused(|json| json["model"] = json!({"type": "BPE", "vocab": {}, "merges": ["a b"]}));
    assert!(message.starts_with("odd: "), "{message}");
}

#[test]
fn smollm2_tokenizes_as_published() {
    let Ok(path) = env::var("LEAPFROG_SMOLLM2") else {
        println!("skipped: LEAPFROG_SMOLLM2 is not set");
        return;
    };
    let golden = fs::read_to_string("tests/golden/smollm2_tokens.json").expect("beside this test");
    let golden: Vec<(String, Vec<u32>)> = serde_json::from_str(&golden).expect("pairs of text and ids");
    let file = GgufFile::parse(FileBytes::map(path.as_ref()).expect("readable"), &path).expect("valid");
    let tokenizer = tokenizer(&file).expect("a tokenizer");
    bytes_are_the_text(&tokenizer, "");
    for (text, expected) in golden {
        let ids: Vec<u32> = tokenizer.encode(&text, true).expect("encodes").iter().map(|token| token.0).collect();
        assert_eq!(ids, expected, "{text:?}");
    }
    let model = load(&ModelSource::Gguf(path.into()), &LoadOptions::default()).expect("it loads");
    assert_eq!(model.stop_ids, [TokenId(0), TokenId(2)]);
    assert_eq!(model.backbone.spec().kv.num_layers, 30);
}
