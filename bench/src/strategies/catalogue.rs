//! The strategies that are known by name.

use anyhow::{Context, ensure};
use engine::{AttentionKind, DecodingOptions};
use serde_json::Value;

use super::decoding;

/// A way to decode, by the option that a client would send.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Contender {
    pub(super) name: String,
    /// The field `decoding` of a request.
    pub(super) decoding: Value,
    pub(super) options: DecodingOptions,
}

/// For causal models; the first is the baseline.
const CAUSAL: [(&str, &str); 7] = [
    ("ar", r#"{"strategy": "ar"}"#),
    ("jacobi", r#"{"strategy": "jacobi"}"#),
    ("jacobi-2", r#"{"strategy": "jacobi", "width": 2, "adaptive": false}"#),
    ("jacobi-4", r#"{"strategy": "jacobi", "width": 4, "adaptive": false}"#),
    ("jacobi-8", r#"{"strategy": "jacobi", "width": 8, "adaptive": false}"#),
    ("jacobi-16", r#"{"strategy": "jacobi", "width": 16, "adaptive": false}"#),
    ("jacobi-32", r#"{"strategy": "jacobi", "width": 32, "adaptive": false}"#),
];

/// For diffusion models; the first is the baseline. A quota without `steps` has as many as there are slots.
const DIFFUSION: [(&str, &str); 13] = [
    ("one-a-pass", r#"{"policy": "quota"}"#),
    ("threshold", r#"{"policy": "threshold", "threshold": 0.9}"#),
    ("factor", r#"{"policy": "factor", "factor": 1.0}"#),
    ("local-leap-published", r#"{"policy": "local_leap", "threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4}"#),
    ("local-leap", r#"{"policy": "local_leap"}"#),
    ("local-leap-prefix", r#"{"policy": "local_leap", "cache": "prefix"}"#),
    ("local-leap-dual", r#"{"policy": "local_leap", "cache": "dual"}"#),
    ("local-leap-no-cache", r#"{"policy": "local_leap", "cache": "none"}"#),
    ("local-leap-block", r#"{"policy": "local_leap", "cache": "block"}"#),
    ("dynamic", r#"{"policy": "dynamic"}"#),
    ("quality", r#"{"preset": "quality"}"#),
    ("balanced", r#"{"preset": "balanced"}"#),
    ("fast", r#"{"preset": "fast"}"#),
];

/// What each family of models decodes with if nothing is asked.
const DEFAULTS: [&str; 2] = ["jacobi", "balanced"];

/// All names.
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    CAUSAL.into_iter().chain(DIFFUSION).map(|(name, _)| name)
}

impl Contender {
    /// `NAME=JSON`.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, json) = text.split_once('=').with_context(|| {
            format!("--decoding {text}: expected NAME=JSON, such as mine={{\"policy\": \"factor\"}}")
        })?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            !name.is_empty() && name.chars().all(is_plain),
            "--decoding {name}: a name has letters, digits, `-`, `_` and `.`"
        );
        Self::new(name, json).with_context(|| format!("--decoding {name}"))
    }

    fn new(name: &str, json: &str) -> anyhow::Result<Self> {
        let decoding: Value = serde_json::from_str(json).with_context(|| format!("`{json}` is not JSON"))?;
        Ok(Self { name: name.into(), options: decoding::read(&decoding)?, decoding })
    }

    /// Whether it is what happens if a request says nothing of decoding.
    pub(super) fn is_default(name: &str) -> bool {
        DEFAULTS.contains(&name)
    }
}

/// What a model of this kind is asked to run, the baseline first: all of its kind, or those of `only`, of whatever kind,
/// and `own`.
pub(super) fn contenders(
    attention: AttentionKind,
    only: &[String],
    own: &[Contender],
) -> anyhow::Result<Vec<Contender>> {
    let is_causal = attention == AttentionKind::Causal;
    let (ours, others) = if is_causal { (&CAUSAL[..], &DIFFUSION[..]) } else { (&DIFFUSION[..], &CAUSAL[..]) };
    let is_asked = |name: &str| only.iter().any(|asked| asked == name);
    // A quota beneath the thresholds is how models that attend block by block are published; under full attention it is
    // no setting of anybody.
    let is_usual = |name: &str| attention != AttentionKind::Full || name != "dynamic";
    let mut chosen = vec![ours[0]];
    chosen.extend(ours[1..].iter().filter(|(name, _)| if only.is_empty() { is_usual(name) } else { is_asked(name) }));
    chosen.extend(others.iter().filter(|(name, _)| is_asked(name)));
    let mut contenders: Vec<Contender> =
        chosen.into_iter().map(|(name, json)| Contender::new(name, json)).collect::<anyhow::Result<_>>()?;
    contenders.extend(own.iter().cloned());
    Ok(contenders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(attention: AttentionKind, only: &[&str]) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|name| (*name).into()).collect();
        contenders(attention, &only, &[]).unwrap().into_iter().map(|contender| contender.name).collect()
    }

    #[test]
    fn the_baseline_comes_first_and_always() {
        assert_eq!(names(AttentionKind::Causal, &[]).len(), CAUSAL.len());
        assert_eq!(names(AttentionKind::Full, &[]).len(), DIFFUSION.len() - 1);
        assert_eq!(names(AttentionKind::Causal, &["jacobi-4"]), ["ar", "jacobi-4"]);
        assert_eq!(names(AttentionKind::Full, &["one-a-pass", "dynamic"]), ["one-a-pass", "dynamic"]);
        assert_eq!(names(AttentionKind::Causal, &["fast"]), ["ar", "fast"], "to be refused by the model");
    }

    #[test]
    fn names_are_unique_and_ones_own_are_read() {
        let mut names: Vec<&str> = known().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CAUSAL.len() + DIFFUSION.len());
        assert!(DEFAULTS.iter().all(|name| names.contains(name)));
        let own = Contender::parse(r#"mine={"policy": "factor", "factor": 2.0}"#).unwrap();
        assert_eq!((own.name.as_str(), own.options.diffusion.factor), ("mine", Some(2.0)));
        for (bad, named) in
            [("mine", "NAME=JSON"), ("=1", "letters"), ("a={", "not JSON"), ("a={\"b\": 1}", "--decoding a")]
        {
            let error = format!("{:#}", Contender::parse(bad).unwrap_err());
            assert!(error.contains(named), "{bad}: {error}");
        }
    }
}
