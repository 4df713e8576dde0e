//! The object `decoding`: which decoder runs a request, and how. Types are checked here, ranges by the engine.

use engine::{DecodingOptions, DiffusionOptions};
use serde_json::Value;

use super::fields::{Fields, kind_of, read};
use crate::error::ApiError;

const KNOWN: &str = "`strategy`, `preset`; for `jacobi` `width`, `adaptive`, `window`, `guess`; for `diffusion` `policy`, \
    `remasking`, `steps`, `block_length`, `gen_length`, `threshold`, `relaxed_threshold`, `radius`, `factor`, \
    `edit_threshold`, `max_post_steps`, `cache`, `early_stop`, `suppress_eos`";

/// Reads the field `decoding` of a body: an object, or a preset by its name.
pub(super) fn take(fields: &mut Fields) -> Result<DecodingOptions, ApiError> {
    let path = fields.path("decoding");
    let mut options = match fields.value("decoding") {
        None => return Ok(DecodingOptions::default()),
        Some(name @ Value::String(_)) => {
            let diffusion = DiffusionOptions { preset: Some(read(&path, name)?), ..DiffusionOptions::default() };
            return Ok(DecodingOptions { diffusion, ..DecodingOptions::default() });
        }
        Some(object @ Value::Object(_)) => Fields::new(path, object)?,
        Some(other) => {
            let message = format!("expected an object or the name of a preset, got {}", kind_of(&other));
            return Err(ApiError::wrong_type(path, message));
        }
    };
    let decoding = DecodingOptions {
        strategy: options.take("strategy")?.unwrap_or_default(),
        width: options.take("width")?,
        adaptive: options.take("adaptive")?,
        window: options.take("window")?,
        guess: options.take("guess")?,
        diffusion: diffusion(&mut options)?,
    };
    options.finish(KNOWN)?;
    Ok(decoding)
}

fn diffusion(options: &mut Fields) -> Result<DiffusionOptions, ApiError> {
    Ok(DiffusionOptions {
        preset: options.take("preset")?,
        policy: options.take("policy")?,
        remasking: options.take("remasking")?,
        steps: options.take("steps")?,
        block_length: options.take("block_length")?,
        gen_length: options.take("gen_length")?,
        threshold: options.take("threshold")?,
        relaxed_threshold: options.take("relaxed_threshold")?,
        radius: options.take("radius")?,
        factor: options.take("factor")?,
        edit_threshold: options.take("edit_threshold")?,
        max_post_steps: options.take("max_post_steps")?,
        cache: options.take("cache")?,
        early_stop: options.take("early_stop")?,
        suppress_eos: options.take("suppress_eos")?,
    })
}

#[cfg(test)]
mod tests {
    use engine::{CacheMode, EarlyStop, GuessRule, Policy, Preset, Remasking, Strategy, SuppressEos, WindowPolicy};
    use serde_json::json;

    use super::*;

    fn parse(decoding: Value) -> Result<DecodingOptions, ApiError> {
        take(&mut Fields::new("", json!({ "decoding": decoding })).unwrap())
    }

    #[test]
    fn every_key_reaches_the_engine() {
        let given = json!({
            "strategy": "diffusion", "width": 4, "adaptive": false, "window": "shrinking", "guess": "lookup",
            "preset": "quality", "policy": "local_leap", "remasking": "margin", "steps": 64, "block_length": 32,
            "gen_length": 128, "threshold": 0.5, "relaxed_threshold": 0.25, "radius": 3, "factor": 1.5,
            "edit_threshold": 0.75, "max_post_steps": 2, "cache": "dual", "early_stop": "block",
            "suppress_eos": "confidence",
        });
        let expected = DecodingOptions {
            strategy: Strategy::Diffusion,
            width: Some(4),
            adaptive: Some(false),
            window: Some(WindowPolicy::Shrinking),
            guess: Some(GuessRule::Lookup),
            diffusion: DiffusionOptions {
                preset: Some(Preset::Quality),
                policy: Some(Policy::LocalLeap),
                remasking: Some(Remasking::Margin),
                steps: Some(64),
                block_length: Some(32),
                gen_length: Some(128),
                threshold: Some(0.5),
                relaxed_threshold: Some(0.25),
                radius: Some(3),
                factor: Some(1.5),
                edit_threshold: Some(0.75),
                max_post_steps: Some(2),
                cache: Some(CacheMode::Dual),
                early_stop: Some(EarlyStop::Block),
                suppress_eos: Some(SuppressEos::Confidence),
            },
        };
        assert_eq!(parse(given).unwrap(), expected);
    }

    #[test]
    fn a_name_is_a_preset() {
        assert_eq!(parse(json!("fast")).unwrap(), parse(json!({"preset": "fast"})).unwrap());
        assert_eq!(parse(json!("fast")).unwrap().diffusion.preset, Some(Preset::Fast));
        assert_eq!(parse(Value::Null).unwrap(), DecodingOptions::default());
    }

    #[test]
    fn errors_name_the_key() {
        for (decoding, param, code) in [
            (json!("fats"), "decoding", "invalid_value"),
            (json!(["fast"]), "decoding", "invalid_type"),
            (json!({"strategy": "magic"}), "decoding.strategy", "invalid_value"),
            (json!({"width": "wide"}), "decoding.width", "invalid_type"),
            (json!({"policy": "localleap"}), "decoding.policy", "invalid_value"),
            (json!({"steps": 1.5}), "decoding.steps", "invalid_type"),
            (json!({"radius": -1}), "decoding.radius", "invalid_value"),
            (json!({"threshold": "high"}), "decoding.threshold", "invalid_type"),
            (json!({"cache": true}), "decoding.cache", "invalid_type"),
            (json!({"depth": 1}), "decoding.depth", "unknown_parameter"),
        ] {
            let error = serde_json::to_value(parse(decoding.clone()).unwrap_err().body()).unwrap();
            assert_eq!(
                (&error["error"]["param"], &error["error"]["code"]),
                (&json!(param), &json!(code)),
                "{decoding}"
            );
        }
    }
}
