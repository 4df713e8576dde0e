//! The fields that chat and text completions share, as the engine wants them.

use std::{collections::BTreeMap, time::Duration};

use engine::{DecodingOptions, GenerationDefaults, ModelInfo, Request, Sampling, StopRules, TokenId};
use serde_json::{Number, Value};
use uuid::Uuid;

use super::{
    decoding,
    fields::{Fields, kind_of, read},
    generate::Job,
};
use crate::{energy::meter::Meter, error::ApiError};

/// Most choices of one HTTP request, over all its prompts.
const MAX_CHOICES: usize = 128;
/// Shortest time between two frames of a stream that names none.
const DEFAULT_FRAME_INTERVAL_MS: u64 = 50;
const MAX_FRAME_INTERVAL_MS: u64 = 10_000;
/// Fields that change nothing about the answer of this server.
const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "prediction",
    "parallel_tool_calls",
];

/// What all endpoints read.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) stream: bool,
    pub(super) stream_options: StreamOptions,
    /// Choices per prompt.
    pub(super) n: usize,
    pub(super) max_tokens: Option<usize>,
    /// Whether the body asks what the request costs.
    pub(super) energy: bool,
    /// Fields that nobody reads.
    pub(super) unread: Vec<String>,
    pub(super) stop: StopRules,
    sampling: Sampling,
    decoding: DecodingOptions,
}

/// What a streamed reply has besides its text.
#[derive(Debug, Default)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
    /// Shortest time between two frames; `None` sends none.
    pub(super) frames: Option<Duration>,
}

impl Params {
    /// Reads the shared fields; `defaults` are the model's.
    pub(super) fn take(fields: &mut Fields, defaults: &GenerationDefaults) -> Result<Self, ApiError> {
        fields.accept(&HARMLESS);
        fields.refuse("store", |value| *value == Value::Bool(false))?;
        let mut unread = Vec::new();
        let stream = fields.take("stream")?.unwrap_or(false);
        let stream_options = stream_options(fields, stream, &mut unread)?;
        // Mercury's clients ask for replies that replace their text in every chunk.
        fields.refuse("diffusing", |value| *value == Value::Bool(false))?;
        let n: usize = fields.take("n")?.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&n) {
            return Err(ApiError::invalid("n", format!("{n} is not between 1 and {MAX_CHOICES}")));
        }
        let energy = fields.take("energy")?.unwrap_or(false);
        let max_tokens = max_tokens(fields)?;
        let stop = stop_rules(fields)?;
        if let Some(max_tokens) = max_tokens.filter(|max_tokens| stop.min_tokens > *max_tokens) {
            let message = format!("{} is more than the {max_tokens} tokens that may be generated", stop.min_tokens);
            return Err(ApiError::invalid("min_tokens", message));
        }
        Ok(Self {
            stream,
            stream_options,
            n,
            max_tokens,
            energy,
            unread,
            sampling: sampling(fields, defaults)?,
            stop,
            decoding: decoding::take(fields)?,
        })
    }

    /// Refuses what the model cannot do.
    pub(super) fn check(&self, info: &ModelInfo) -> Result<(), ApiError> {
        if self.stream_options.frames.is_some() && info.mask_id.is_none() {
            let message = "only a diffusion model decides its tokens out of order and has frames to show";
            return Err(ApiError::unsupported("stream_options.include_frames", message));
        }
        Ok(())
    }

    /// What the reply needs besides the events.
    pub(super) fn job(&self, model: String, ignored: Vec<String>, meter: Meter) -> Job {
        Job {
            model,
            n: self.n,
            seed: self.sampling.seed,
            stream: self.stream,
            // Who wants to know the energy wants the chunk that it is in.
            include_usage: self.stream_options.include_usage || meter.wanted(),
            frames: self.stream_options.frames,
            ignored,
            meter,
        }
    }

    /// Names of all fields that nobody read; under `strict` they are an error instead. `fields` is what is left of the
    /// body.
    pub(super) fn ignored(&self, fields: Fields, strict: bool) -> Result<Vec<String>, ApiError> {
        let mut ignored = fields.unread();
        ignored.extend(self.unread.iter().cloned());
        match ignored.first() {
            Some(param) if strict => {
                let message = format!("unknown field `{param}`; this server is strict (`--strict`)");
                Err(ApiError::unknown(param, message))
            }
            _ => Ok(ignored),
        }
    }

    /// `n` engine requests for each prompt, those of a prompt together.
    pub(super) fn requests(
        &self,
        prompts: Vec<Vec<TokenId>>,
        logprobs: Option<usize>,
        prompt_logprobs: Option<usize>,
    ) -> Result<Vec<Request>, ApiError> {
        if prompts.len().saturating_mul(self.n) > MAX_CHOICES {
            let message = format!("{} prompts times n = {} are more than {MAX_CHOICES}", prompts.len(), self.n);
            return Err(ApiError::invalid("prompt", message));
        }
        let choices = prompts.into_iter().flat_map(|prompt| (0..self.n).zip(std::iter::repeat_n(prompt, self.n)));
        let requests = choices.map(|(choice, prompt)| Request {
            prompt,
            choice: choice as u32,
            max_tokens: self.max_tokens,
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            logprobs,
            prompt_logprobs,
            decoding: self.decoding.clone(),
            infill: Vec::new(),
            frames: self.stream_options.frames.is_some(),
        });
        Ok(requests.collect())
    }
}

fn stream_options(fields: &mut Fields, stream: bool, unread: &mut Vec<String>) -> Result<StreamOptions, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(StreamOptions::default()) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "only a streamed request may have stream options"));
    }
    options.accept(&["include_obfuscation"]);
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    let include_frames = options.take("include_frames")?.unwrap_or(false);
    let interval_ms: u64 = options.take("frame_interval_ms")?.unwrap_or(DEFAULT_FRAME_INTERVAL_MS);
    if interval_ms > MAX_FRAME_INTERVAL_MS {
        let message = format!("{interval_ms} is not between 0 and {MAX_FRAME_INTERVAL_MS}");
        return Err(ApiError::invalid(options.path("frame_interval_ms"), message));
    }
    unread.append(&mut options.unread());
    Ok(StreamOptions { include_usage, frames: include_frames.then(|| Duration::from_millis(interval_ms)) })
}

fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let old: Option<usize> = fields.take("max_tokens")?;
    let new: Option<usize> = fields.take("max_completion_tokens")?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message = format!("`max_tokens` is {old} and `max_completion_tokens` is {new}; give one of them");
            Err(ApiError::invalid("max_tokens", message))
        }
        _ => Ok(new.or(old)),
    }
}

fn stop_rules(fields: &mut Fields) -> Result<StopRules, ApiError> {
    let strings = match fields.value("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(list @ Value::Array(_)) => read("stop", list)?,
        Some(other) => {
            let message = format!("expected a string or a list of strings, got {}", kind_of(&other));
            return Err(ApiError::wrong_type("stop", message));
        }
    };
    Ok(StopRules {
        strings,
        token_ids: fields.take("stop_token_ids")?.unwrap_or_default(),
        ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
        min_tokens: fields.take("min_tokens")?.unwrap_or(0),
    })
}

fn sampling(fields: &mut Fields, defaults: &GenerationDefaults) -> Result<Sampling, ApiError> {
    let default_temperature = if defaults.do_sample == Some(false) { 0.0 } else { defaults.temperature.unwrap_or(1.0) };
    Ok(Sampling {
        temperature: fields.take("temperature")?.unwrap_or(default_temperature),
        top_k: match fields.take::<i64>("top_k")? {
            None => defaults.top_k.filter(|k| *k > 0),
            // Two spellings of "all" that clients send.
            Some(-1 | 0) => None,
            Some(k) => Some(usize::try_from(k).map_err(|_| ApiError::invalid("top_k", format!("{k} is below -1")))?),
        },
        top_p: fields.take("top_p")?.or(defaults.top_p).unwrap_or(1.0),
        min_p: fields.take("min_p")?.or(defaults.min_p).unwrap_or(0.0),
        repetition_penalty: fields.take("repetition_penalty")?.or(defaults.repetition_penalty).unwrap_or(1.0),
        presence_penalty: fields.take("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(0.0),
        logit_bias: logit_bias(fields)?,
        seed: match fields.take::<Number>("seed")? {
            None => random_seed(),
            Some(seed) => seed
                .as_u64()
                .or_else(|| seed.as_i64().map(i64::cast_unsigned))
                .ok_or_else(|| ApiError::invalid("seed", format!("{seed} is not a 64-bit integer")))?,
        },
    })
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let biases: BTreeMap<String, f32> = fields.take("logit_bias")?.unwrap_or_default();
    let biases = biases.into_iter().map(|(token, bias)| match token.parse() {
        Ok(id) => Ok((TokenId(id), bias)),
        Err(_) => {
            let message = format!("`{token}` is not a token id");
            Err(ApiError::invalid(format!("logit_bias.{token}"), message))
        }
    });
    biases.collect()
}

/// A seed that also JavaScript reads back exactly.
fn random_seed() -> u64 {
    Uuid::new_v4().as_u64_pair().0 >> 11
}

#[cfg(test)]
mod tests {
    use engine::{DiffusionOptions, Preset};
    use serde_json::json;

    use super::*;

    fn parse_with(body: Value, defaults: &GenerationDefaults) -> Result<(Params, Vec<String>), ApiError> {
        let mut fields = Fields::new("", body)?;
        let params = Params::take(&mut fields, defaults)?;
        let ignored = params.ignored(fields, false)?;
        Ok((params, ignored))
    }

    fn parse(body: Value) -> Result<(Params, Vec<String>), ApiError> {
        parse_with(body, &GenerationDefaults::default())
    }

    fn request(body: Value) -> Request {
        parse(body).unwrap().0.requests(vec![vec![TokenId(1)]], None, None).unwrap().remove(0)
    }

    #[test]
    fn every_field_reaches_the_engine() {
        let request = request(json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "stop": ["a", "b"],
            "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5, "logit_bias": {"5": -100},
            "max_completion_tokens": 9, "min_tokens": 2, "ignore_eos": true, "stop_token_ids": [3],
            "decoding": {"preset": "fast"}, "stream": true, "stream_options": {"include_frames": true},
        }));
        let expected = Request {
            max_tokens: Some(9),
            sampling: Sampling {
                temperature: 0.5,
                top_k: Some(40),
                top_p: 0.9,
                min_p: 0.1,
                repetition_penalty: 1.5,
                presence_penalty: 1.0,
                frequency_penalty: -1.0,
                logit_bias: vec![(TokenId(5), -100.0)],
                seed: 7,
            },
            stop: StopRules {
                strings: vec!["a".into(), "b".into()],
                token_ids: vec![TokenId(3)],
                ignore_eos: true,
                min_tokens: 2,
            },
            decoding: DecodingOptions {
                diffusion: DiffusionOptions { preset: Some(Preset::Fast), ..DiffusionOptions::default() },
                ..DecodingOptions::default()
            },
            frames: true,
            ..Request::new(vec![TokenId(1)])
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn what_is_left_out_or_null_is_the_models_choice_then_openais() {
        let nulls = json!({"temperature": null, "top_p": null, "top_k": null, "seed": null, "stop": null,
            "logit_bias": null, "decoding": null, "n": null, "stream": null, "stream_options": null});
        let request = request(nulls.clone());
        assert_eq!((request.sampling.temperature, request.sampling.top_p, request.sampling.top_k), (1.0, 1.0, None));
        assert!(request.sampling.seed < 1 << 53);
        let defaults =
            GenerationDefaults { temperature: Some(0.6), top_p: Some(0.95), top_k: Some(20), ..Default::default() };
        let sampling = parse_with(nulls, &defaults).unwrap().0.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.6, 0.95, Some(20)));
        let greedy = GenerationDefaults { do_sample: Some(false), temperature: Some(0.6), ..Default::default() };
        assert_eq!(parse_with(json!({}), &greedy).unwrap().0.sampling.temperature, 0.0);
        assert_eq!(parse_with(json!({"top_k": -1}), &defaults).unwrap().0.sampling.top_k, None);
    }

    #[test]
    fn negative_seeds_are_seeds() {
        assert_eq!(request(json!({"seed": -1})).sampling.seed, u64::MAX);
        assert_eq!(request(json!({"seed": u64::MAX})).sampling.seed, u64::MAX);
    }

    #[test]
    fn errors_name_the_field() {
        for (body, param) in [
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"stop": 3}), "stop"),
            (json!({"stop": ["a", 3]}), "stop[1]"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"5": "y"}}), "logit_bias.5"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
            (json!({"max_tokens": 3, "min_tokens": 4}), "min_tokens"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"store": true}), "store"),
            (json!({"stream_options": {"include_frames": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"include_frames": 1}}), "stream_options.include_frames"),
            (
                json!({"stream": true, "stream_options": {"frame_interval_ms": 10001}}),
                "stream_options.frame_interval_ms",
            ),
            (json!({"diffusing": true}), "diffusing"),
            (json!({"decoding": "slow"}), "decoding"),
            (json!({"decoding": {"depth": 1}}), "decoding.depth"),
        ] {
            let error = parse(body.clone()).unwrap_err();
            assert_eq!(serde_json::to_value(error.body()).unwrap()["error"]["param"], param, "{body}");
        }
    }

    #[test]
    fn frames_have_an_interval() {
        let frames = |options: Value| {
            parse(json!({"stream": true, "diffusing": false, "stream_options": options}))
                .unwrap()
                .0
                .stream_options
                .frames
        };
        assert_eq!(frames(json!({})), None);
        assert_eq!(frames(json!({"include_frames": false, "frame_interval_ms": 7})), None);
        assert_eq!(frames(json!({"include_frames": true})), Some(Duration::from_millis(50)));
        assert_eq!(frames(json!({"include_frames": true, "frame_interval_ms": 0})), Some(Duration::ZERO));
    }

    #[test]
    fn unknown_fields_are_listed_and_harmless_ones_are_not() {
        let (_, unread) = parse(json!({"user": "u", "metadata": {}, "store": false, "zip": 1, "stream": true,
            "stream_options": {"include_usage": true, "zap": 2}}))
        .unwrap();
        assert_eq!(unread, ["zip", "stream_options.zap"]);
    }

    #[test]
    fn choices_of_a_prompt_are_neighbours() {
        let params = parse(json!({"n": 2})).unwrap().0;
        let requests = params.requests(vec![vec![TokenId(1)], vec![TokenId(2)]], Some(1), None).unwrap();
        let order: Vec<_> = requests.iter().map(|request| (request.prompt[0].0, request.choice)).collect();
        assert_eq!(order, [(1, 0), (1, 1), (2, 0), (2, 1)]);
        assert!(params.requests(vec![vec![TokenId(1)]; 65], None, None).is_err());
    }
}
