//! What is typed, and what it means.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

/// Arguments of `ipw`.
#[derive(Debug, Args)]
pub(crate) struct IpwArgs {
    /// Address of the server, with or without /v1.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    /// API key; an admin key if scores are to be posted to a server with keys.
    #[arg(long, env = "LEAPFROG_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,
    /// Model of all strategies that name none; the server's first if left out.
    #[arg(long)]
    pub(super) model: Option<String>,
    /// Built-in data sets: arith, math, json, sql, chat, chain, or zoo for the last five.
    #[arg(long, value_delimiter = ',')]
    pub(super) dataset: Vec<String>,
    /// Files of data sets: GSM8K (jsonl), SVAMP (json), HumanEval (jsonl or jsonl.gz), BIG-Bench Hard (json).
    #[arg(long)]
    pub(super) dataset_file: Vec<PathBuf>,
    /// Queries of each data set, chosen by the seed.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(super) limit: u64,
    /// Seed of the choice of queries, of sampling, and of resampling.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// A strategy, `NAME`, `NAME={JSON}` or `NAME=key=value,key=value`; keys are those of `decoding`, and `model`. Repeat it
    /// to compare; all run on the same queries, in turns. The first is what the others are compared with.
    #[arg(long)]
    pub(super) strategy: Vec<String>,
    /// Sampling, token budget and repeats.
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(super) preset: Preset,
    /// Most tokens of an answer; the preset's if left out.
    #[arg(long)]
    pub(super) max_tokens: Option<u32>,
    /// How often each query is asked in a run; the preset's if left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) repeats: Option<u32>,
    /// Whole passes over all queries.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// Requests at a time. Above 1 the energy of a query is its share, not that of the device.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) concurrency: u16,
    /// Measure accuracy and latency alone if the server cannot measure energy.
    #[arg(long)]
    pub(super) allow_no_energy: bool,
    /// Run programs that the model wrote (HumanEval) on this machine.
    #[arg(long)]
    pub(super) allow_code: bool,
    /// Do not tell the server the scores.
    #[arg(long)]
    pub(super) no_post: bool,
    /// Seconds without requests before the measurement, for idle power; 0 for none.
    #[arg(long, default_value_t = 10)]
    pub(super) idle_seconds: u64,
    /// Most seconds of warming up; 0 for none.
    #[arg(long, default_value_t = 60)]
    pub(super) warmup_seconds: u64,
    /// Longest wait for one answer, in seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout_seconds: u64,
    /// Folder for the report.
    #[arg(long)]
    pub(super) output: PathBuf,
}

/// A set of sampling settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// Greedy, at most 1024 tokens, once.
    Default,
    /// Temperature 0.6, top-p 0.95, top-k 20, min-p 0, at most 32768 tokens, ten times.
    Paper,
}

impl Preset {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Paper => "paper",
        }
    }

    pub(super) fn repeats(self) -> u32 {
        match self {
            Self::Default => 1,
            Self::Paper => 10,
        }
    }

    /// Fields of a request.
    pub(super) fn sampling(self, max_tokens: Option<u32>) -> Map<String, Value> {
        let (mut fields, budget) = match self {
            Self::Default => (json!({"temperature": 0.0}), 1024),
            Self::Paper => (json!({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}), 32_768),
        };
        fields["max_tokens"] = json!(max_tokens.unwrap_or(budget));
        fields.as_object().cloned().unwrap_or_default()
    }
}

/// A strategy on a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    pub(super) name: String,
    /// Name of its folder.
    pub(super) slug: String,
    pub(super) model: String,
    /// `decoding` of requests; `None` leaves it to the server.
    pub(super) decoding: Option<Value>,
}

/// The arms of a command line; `model` is that of arms that name none.
pub(super) fn arms(typed: &[String], model: &str) -> anyhow::Result<Vec<Arm>> {
    if typed.is_empty() {
        return Ok(vec![Arm { name: "default".into(), slug: "default".into(), model: model.into(), decoding: None }]);
    }
    let mut arms: Vec<Arm> = Vec::new();
    for text in typed {
        let arm = arm(text, model).with_context(|| format!("--strategy `{text}`"))?;
        ensure!(arms.iter().all(|other| other.slug != arm.slug), "--strategy `{text}`: two strategies share this name");
        arms.push(arm);
    }
    Ok(arms)
}

fn arm(text: &str, model: &str) -> anyhow::Result<Arm> {
    let (name, mut options) = named_options(text)?;
    let slug = slug(name)?;
    let model = match options.remove("model") {
        None => model.to_owned(),
        Some(Value::String(name)) => name,
        Some(other) => bail!("`model` is a name, not {other}"),
    };
    let decoding = (!options.is_empty()).then_some(Value::Object(options));
    Ok(Arm { name: name.into(), slug, model, decoding })
}

/// A name and the options it stands for: `NAME`, `NAME={JSON}` or `NAME=key=value,key=value`.
pub(crate) fn named_options(text: &str) -> anyhow::Result<(&str, Map<String, Value>)> {
    Ok(match text.split_once('=') {
        Some((name, options)) => (name.trim(), fields(options.trim())?),
        None => (text.trim(), by_name(text.trim())?),
    })
}

/// A name as that of a file.
pub(crate) fn slug(name: &str) -> anyhow::Result<String> {
    let slug: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    ensure!(slug.chars().any(|c| c.is_ascii_alphanumeric()), "the name needs a letter or a digit");
    Ok(slug)
}

/// What a name means by itself.
fn by_name(name: &str) -> anyhow::Result<Map<String, Value>> {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    let options = match lower.as_str() {
        "ar" | "jacobi" | "diffusion" | "auto" => json!({"strategy": lower}),
        "local_leap" | "localleap" => json!({"policy": "local_leap"}),
        "quota" | "threshold" | "factor" | "dynamic" | "editing" => json!({"policy": lower}),
        "quality" | "balanced" | "fast" => json!({"preset": lower}),
        _ => bail!(
            "a name without options is one of ar, jacobi, diffusion, auto, local_leap, quota, threshold, factor, dynamic, \
             editing, quality, balanced, fast"
        ),
    };
    Ok(options.as_object().cloned().unwrap_or_default())
}

/// Options as a JSON object or as `key=value,key=value`; values that are not JSON are text.
fn fields(text: &str) -> anyhow::Result<Map<String, Value>> {
    if text.starts_with('{') {
        return serde_json::from_str(text).context("not a JSON object");
    }
    if !text.contains('=') {
        return by_name(text);
    }
    let field = |part: &str| -> anyhow::Result<(String, Value)> {
        let (key, value) = part.split_once('=').with_context(|| format!("`{part}` is not key=value"))?;
        let value = value.trim();
        Ok((key.trim().into(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
    };
    text.split(',').map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_in_all_spellings() {
        let typed = [
            "AR",
            "Jacobi 8={\"strategy\": \"jacobi\", \"width\": 8}",
            "LL=model=leapfrog-diffusion,policy=local_leap,threshold=0.9",
            "quick=fast",
        ];
        let arms = arms(&typed.map(String::from), "m").unwrap();
        assert_eq!(arms[0].decoding, Some(json!({"strategy": "ar"})));
        assert_eq!(
            (arms[1].slug.as_str(), arms[1].decoding.clone()),
            ("jacobi-8", Some(json!({"strategy": "jacobi", "width": 8})))
        );
        assert_eq!(arms[2].model, "leapfrog-diffusion");
        assert_eq!(arms[2].decoding, Some(json!({"policy": "local_leap", "threshold": 0.9})));
        assert_eq!(arms[3].decoding, Some(json!({"preset": "fast"})));
        assert_eq!(arms[3].model, "m");
    }

    #[test]
    fn what_is_no_strategy() {
        for typed in [&["magic"][..], &["a=b=c", "A=b=d"], &["=x=1"], &["x={"], &["x=model=3"]] {
            let typed: Vec<String> = typed.iter().map(|text| (*text).to_owned()).collect();
            assert!(arms(&typed, "m").is_err(), "{typed:?}");
        }
    }

    #[test]
    fn presets_are_those_of_the_paper() {
        let paper = Preset::Paper.sampling(None);
        assert_eq!(paper["max_tokens"], 32_768);
        assert_eq!(paper["top_k"], 20);
        assert_eq!(Preset::Paper.repeats(), 10);
        assert_eq!(
            Preset::Default.sampling(Some(7)),
            *json!({"temperature": 0.0, "max_tokens": 7}).as_object().unwrap()
        );
    }
}
