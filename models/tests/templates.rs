//! Chat templates against what transformers makes of them. `golden/templates/make.py` wrote the expectations.

use models::{ChatTemplate, ModelError};
use serde_json::{Map, Value};

#[test]
fn templates_render_as_in_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/templates/golden.json")).expect("valid JSON");
    let renderings = golden["renderings"].as_array().expect("a list");
    assert_eq!(renderings.len(), 28);
    for (index, rendering) in renderings.iter().enumerate() {
        let name = rendering["template"].as_str().expect("a name");
        let source = golden["templates"][name].as_str().expect("a template");
        let template = ChatTemplate::new(source, Some("<s>".into()), Some("</s>".into())).expect("it compiles");
        let case = &rendering["case"];
        let empty = Map::new();
        let rendered = template.render(
            &case["messages"],
            case.get("tools"),
            case["add_generation_prompt"] == true,
            case["extra"].as_object().unwrap_or(&empty),
        );
        match (rendered, rendering["text"].as_str()) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}, rendering {index}"),
            (Err(ModelError::TemplateRefused { message }), None) => assert_eq!(rendering["error"], message),
            (other, expected) => panic!("{name}, rendering {index}: {other:?}, expected {expected:?}"),
        }
    }
}
