//! The object `decoding` of the HTTP API, as the engine takes it. Ranges are the engine's to check.

use engine::{
    CacheMode, DecodingOptions, DiffusionOptions, EarlyStop, GuessRule, Policy, Preset, Remasking, Strategy,
    SuppressEos, WindowPolicy,
};
use serde::Deserialize;
use serde_json::Value;

/// Every key of the object.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wire {
    strategy: Strategy,
    width: Option<usize>,
    adaptive: Option<bool>,
    window: Option<WindowPolicy>,
    guess: Option<GuessRule>,
    preset: Option<Preset>,
    policy: Option<Policy>,
    remasking: Option<Remasking>,
    steps: Option<usize>,
    block_length: Option<usize>,
    gen_length: Option<usize>,
    threshold: Option<f32>,
    relaxed_threshold: Option<f32>,
    radius: Option<usize>,
    factor: Option<f32>,
    edit_threshold: Option<f32>,
    max_post_steps: Option<usize>,
    cache: Option<CacheMode>,
    early_stop: Option<EarlyStop>,
    suppress_eos: Option<SuppressEos>,
}

/// Reads an object, or the name of a preset.
pub(super) fn read(decoding: &Value) -> anyhow::Result<DecodingOptions> {
    let wire = match decoding {
        Value::String(_) => Wire { preset: Some(Preset::deserialize(decoding)?), ..Wire::default() },
        Value::Object(_) => Wire::deserialize(decoding)?,
        other => anyhow::bail!("`{other}` is neither an object nor the name of a preset in quotes"),
    };
    // Without `..`, so that an option that is new to the engine does not compile here until it is read.
    let diffusion = DiffusionOptions {
        preset: wire.preset,
        policy: wire.policy,
        remasking: wire.remasking,
        steps: wire.steps,
        block_length: wire.block_length,
        gen_length: wire.gen_length,
        threshold: wire.threshold,
        relaxed_threshold: wire.relaxed_threshold,
        radius: wire.radius,
        factor: wire.factor,
        edit_threshold: wire.edit_threshold,
        max_post_steps: wire.max_post_steps,
        cache: wire.cache,
        early_stop: wire.early_stop,
        suppress_eos: wire.suppress_eos,
    };
    Ok(DecodingOptions {
        strategy: wire.strategy,
        width: wire.width,
        adaptive: wire.adaptive,
        window: wire.window,
        guess: wire.guess,
        diffusion,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_reach_the_engine() {
        let given = json!({"policy": "local_leap", "threshold": 0.5, "radius": 3, "cache": "dual", "gen_length": 32});
        let diffusion = DiffusionOptions {
            policy: Some(Policy::LocalLeap),
            threshold: Some(0.5),
            radius: Some(3),
            cache: Some(CacheMode::Dual),
            gen_length: Some(32),
            ..DiffusionOptions::default()
        };
        assert_eq!(read(&given).unwrap(), DecodingOptions { diffusion, ..DecodingOptions::default() });
        let jacobi = read(&json!({"strategy": "jacobi", "width": 4, "adaptive": false, "guess": "lookup"})).unwrap();
        assert_eq!((jacobi.strategy, jacobi.width, jacobi.adaptive), (Strategy::Jacobi, Some(4), Some(false)));
        assert_eq!(read(&json!("fast")).unwrap().diffusion.preset, Some(Preset::Fast));
    }

    #[test]
    fn unknown_keys_and_values_are_errors() {
        for (bad, named) in [
            (json!({"depth": 1}), "depth"),
            (json!({"policy": "localleap"}), "local_leap"),
            (json!("fats"), "balanced"),
            (json!([1]), "neither"),
        ] {
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains(named), "{bad}: {error}");
        }
    }
}
