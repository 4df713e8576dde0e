//! The time of a pass on a device: measured without a change to what passes give.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{path::Path, sync::Arc};

use device_tests::{HostDevice, Order};
use kernels::device::{Device, DeviceFormat, ScoreQuery};
use models::{
    Backbone, Capacity, ConfigHints, ForwardBatch, ModelConfig, PageId, Precision, Segment, TokenId, Visibility,
    device::DeviceTransformer,
};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": true, "eos_token_id": 2}"#;

#[test]
fn a_timed_pass_changes_nothing() {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
        return;
    }
    let config = ModelConfig::from_hf_json(CONFIG, Path::new("tiny"), &ConfigHints::default()).unwrap();
    let host = HostDevice::new(1 << 28, Order::Forward);
    let device: Arc<dyn Device> = host.clone();
    let mut model = DeviceTransformer::made_up(&config, &device, (Precision::F16, DeviceFormat::F16), 3).unwrap();
    let mut kv =
        model.reserve(Capacity { max_rows: 8, max_tables: 1, context_len: 32, num_pages: 4, page_len: 8 }).unwrap();
    let tokens: Vec<TokenId> = (0..5).map(|at| TokenId(at * 13 % 80)).collect();
    let pages: Vec<PageId> = [2, 0, 3, 1].map(PageId).to_vec();
    let segment = || Segment { tokens: &tokens, start: 0, visibility: Visibility::Causal, scored: 1..5, pages: &pages };
    let batch = || ForwardBatch { segments: vec![segment()] };
    let before = model.forward(&batch(), &mut kv).unwrap();
    let queries = vec![ScoreQuery::default(); 4];
    let launches = |model: &mut DeviceTransformer, kv: &_, repeats| {
        let start = host.num_launches();
        let millis = model.pass_millis(&batch(), kv, &queries, repeats).unwrap();
        assert!(millis > 0.0);
        host.num_launches() - start
    };
    // Two passes warm up; all have the same launches.
    let (three, six) = (launches(&mut model, &kv, 1), launches(&mut model, &kv, 4));
    assert_eq!(six, 2 * three);
    assert_eq!(model.forward(&batch(), &mut kv).unwrap(), before);
    let refused = model.pass_millis(&batch(), &kv, &queries[1..], 1).unwrap_err();
    assert!(refused.to_string().contains('3') && refused.to_string().contains('4'), "{refused}");
    assert!(model.pass_millis(&batch(), &kv, &queries, 0).is_err());
}
