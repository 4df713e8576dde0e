//! `POST /infill`: fills holes in a text. The fields are llama.cpp's, so that editors find what they know; `input` is
//! our own and holds a text with several holes.

use std::sync::Arc;

use axum::{Extension, extract::State, response::Response};
use engine::{Commit, Finish, FinishReason, ModelInfo, Request, TokenRecord};
use serde::Serialize;
use serde_json::Value;

use super::{
    fields::{Fields, JsonBody, read},
    generate::{Envelope, Extras, Outcome, Wire, answer, num_given},
    holes::{Encoded, HoledText, check_infill},
    params::Params,
    tokens::tokenize,
    types::Report,
};
use crate::{
    energy::{meter::Asker, usage::EnergyReport},
    error::ApiError,
    middleware::observe::RequestLog,
    state::AppState,
};

/// Tokens of the hole if the request names no number, or -1.
const DEFAULT_SLOTS: usize = 32;
/// Fields of llama.cpp's own clients that change nothing about the answer of this server.
const HARMLESS: [&str; 7] = [
    "id_slot",
    "cache_prompt",
    "t_max_prompt_ms",
    "timings_per_token",
    "return_progress",
    "response_fields",
    "sse_ping_interval",
];

/// Fills a text in.
pub(crate) async fn infill(
    State(state): State<AppState>,
    Extension(log): Extension<Arc<RequestLog>>,
    asker: Asker,
    JsonBody(mut fields): JsonBody,
) -> Result<Response, ApiError> {
    let models = state.models()?;
    let (served, model) = models.find(fields.take("model")?)?;
    let info = served.engine.model();
    llama_names(&mut fields);
    let params = Params::take(&mut fields, &info.generation)?;
    refuse_unsupported(&mut fields, &params)?;
    let several = fields.value("input");
    let is_list = several.is_some();
    let text = match several {
        Some(list) => read_list(&mut fields, list, &params)?,
        None => read_gap(&mut fields, params.max_tokens)?,
    };
    params.check(info)?;
    check_infill(info, if is_list { "input" } else { "input_suffix" })?;
    let meter = asker.meter(&state, params.energy)?;
    let ignored = params.ignored(fields, state.settings().strict)?;

    let first = if is_list { "input" } else { "input_prefix" };
    let in_text = |error: ApiError| error.rename_param("prompt", first).rename_param("suffix", first);
    let request = encode(info, &text, &params).await.map_err(in_text)?;
    let wire = InfillWire { text: is_list.then_some(text), tokens_evaluated: num_given(&request) };
    let reply = answer(served, log, wire, params.job(model, ignored, meter), vec![request]).await;
    reply.map_err(|error| in_text(error).rename_param("max_tokens", "n_predict"))
}

/// Respells what llama.cpp calls otherwise.
fn llama_names(fields: &mut Fields) {
    fields.accept(&HARMLESS);
    fields.rename("repeat_penalty", "repetition_penalty");
    // Ours would be a seed like any other.
    if fields.peek("seed").and_then(Value::as_i64) == Some(-1) {
        fields.accept(&["seed"]);
    }
}

/// Refuses what would change the answer and is not done here.
fn refuse_unsupported(fields: &mut Fields, params: &Params) -> Result<(), ApiError> {
    if params.n != 1 {
        return Err(ApiError::unsupported("n", "a text is filled in once; send the request again for another"));
    }
    if params.stream_options.include_usage {
        let message = "the last event of this stream holds the numbers";
        return Err(ApiError::unsupported("stream_options.include_usage", message));
    }
    let is_zero = |value: &Value| value.as_f64() == Some(0.0);
    for name in ["n_probs", "mirostat", "n_indent"] {
        fields.refuse(name, is_zero)?;
    }
    fields.refuse("n_cmpl", |count| *count == 1)?;
    fields.refuse("logprobs", |value| *value == Value::Bool(false) || is_zero(value))?;
    for name in ["grammar", "json_schema", "suffix"] {
        fields.refuse(name, |value| *value == "")?;
    }
    fields.refuse("lora", |list| list.as_array().is_some_and(Vec::is_empty))
}

/// Our own form: a text with holes where they belong.
fn read_list(fields: &mut Fields, list: Value, params: &Params) -> Result<HoledText, ApiError> {
    for name in ["input_prefix", "input_suffix", "input_extra", "prompt", "n_predict"] {
        if fields.value(name).is_some() {
            return Err(ApiError::invalid(name, "`input` holds the whole text and the sizes of its holes"));
        }
    }
    if params.max_tokens.is_some() {
        return Err(ApiError::invalid("max_tokens", "the holes in `input` say how many tokens they take"));
    }
    let text = HoledText::read("input", list)?;
    if text.num_holes() > 1 && !params.stop.strings.is_empty() {
        return Err(ApiError::invalid("stop", "a text with several holes has no end that a string could mark"));
    }
    Ok(text)
}

/// llama.cpp's form: one hole between a prefix and a suffix.
fn read_gap(fields: &mut Fields, max_tokens: Option<usize>) -> Result<HoledText, ApiError> {
    let slots = match (fields.take::<i64>("n_predict")?, max_tokens) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("n_predict", "`n_predict` and `max_tokens` are the same; give one of them"));
        }
        (None | Some(-1), max_tokens) => max_tokens.unwrap_or(DEFAULT_SLOTS),
        (Some(count), None) => {
            usize::try_from(count).map_err(|_| ApiError::invalid("n_predict", format!("{count} is below -1")))?
        }
    };
    let mut before = extra(fields)?;
    for name in ["input_prefix", "prompt"] {
        before.push_str(&fields.take::<String>(name)?.unwrap_or_default());
    }
    let suffix = fields.take("input_suffix")?.unwrap_or_default();
    HoledText::between(before, slots, suffix)
}

/// The texts of other files, each from the start of a line.
fn extra(fields: &mut Fields) -> Result<String, ApiError> {
    let list: Vec<Value> = fields.take("input_extra")?.unwrap_or_default();
    let mut texts = String::new();
    for (index, value) in list.into_iter().enumerate() {
        let mut file = Fields::new(format!("input_extra[{index}]"), value)?;
        let path = file.path("text");
        let text = file.value("text").ok_or_else(|| ApiError::missing(&path))?;
        texts.push_str(&read::<String>(&path, text)?);
        if !texts.is_empty() && !texts.ends_with('\n') {
            texts.push('\n');
        }
        // A name means nothing to a model without tokens that set it off.
        file.accept(&["filename"]);
        file.finish("`filename`, `text`")?;
    }
    Ok(texts)
}

async fn encode(info: &ModelInfo, text: &HoledText, params: &Params) -> Result<Request, ApiError> {
    let owned = text.clone();
    let Encoded { prompt, infill } = tokenize(info.tokenizer.clone(), move |tokenizer| owned.encode(tokenizer)).await?;
    if prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "this model needs at least one token before the first hole"));
    }
    let mut requests = params.requests(vec![prompt], None, None)?;
    let mut request = requests.swap_remove(0);
    request.infill = infill;
    request.max_tokens = Some(text.num_slots());
    Ok(request)
}

struct InfillWire {
    /// The text to fill, if it was given as such; otherwise only what fills the hole is returned.
    text: Option<HoledText>,
    tokens_evaluated: usize,
}

/// A reply, or an event of a stream.
#[derive(Debug, Default, Serialize)]
struct Piece {
    content: String,
    /// The hole that `content` belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    hole: Option<usize>,
    /// What fills each hole.
    #[serde(skip_serializing_if = "Option::is_none")]
    holes: Option<Vec<String>>,
    stop: bool,
    #[serde(flatten)]
    end: Option<End>,
}

/// What is known at the end.
#[derive(Debug, Serialize)]
struct End {
    stop_type: &'static str,
    stopping_word: String,
    tokens_predicted: usize,
    tokens_evaluated: usize,
    tokens_cached: usize,
}

/// A [`Piece`] with what only the reply knows.
#[derive(Debug, Serialize)]
struct Whole {
    #[serde(flatten)]
    piece: Piece,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leapfrog: Option<Report>,
    /// What the energy is known by later.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    energy: Option<Box<EnergyReport>>,
}

impl InfillWire {
    fn end(&self, finish: &Finish) -> End {
        let stop_type = match (finish.reason, &finish.stop_string) {
            (FinishReason::Length, _) => "limit",
            (FinishReason::Stop, None) => "eos",
            (FinishReason::Stop, Some(_)) => "word",
        };
        End {
            stop_type,
            stopping_word: finish.stop_string.clone().unwrap_or_default(),
            tokens_predicted: finish.completion_tokens,
            tokens_evaluated: self.tokens_evaluated,
            tokens_cached: finish.stats.cached_tokens,
        }
    }

    fn wrap(&self, envelope: &Envelope, pieces: Vec<Piece>, extras: Extras) -> Whole {
        let piece = pieces.into_iter().next().unwrap_or_default();
        let model = piece.stop.then(|| envelope.model().to_owned());
        let energy = extras.usage.flatten().and_then(|usage| usage.energy);
        let id = energy.is_some().then(|| envelope.id().to_owned());
        Whole { piece, model, leapfrog: extras.leapfrog, id, energy }
    }
}

impl Wire for InfillWire {
    type Delta = Piece;
    type Choice = Piece;
    const ID_PREFIX: &'static str = "infill-";
    const SAYS_DONE: bool = false;
    const HAS_USAGE_CHUNK: bool = false;

    fn open(&mut self, _index: usize) -> Option<Piece> {
        None
    }

    fn prompt(&mut self, _index: usize, _records: &[TokenRecord]) -> Option<Piece> {
        None
    }

    fn commit(&mut self, _index: usize, commit: Commit) -> Option<Piece> {
        let hole = self.text.as_ref().map(|_| commit.hole);
        (!commit.text.is_empty()).then(|| Piece { content: commit.text, hole, ..Piece::default() })
    }

    fn frame(&mut self, _index: usize) -> Piece {
        Piece::default()
    }

    fn close(&mut self, _index: usize, finish: &Finish) -> Piece {
        Piece { stop: true, end: Some(self.end(finish)), ..Piece::default() }
    }

    fn whole(&mut self, _index: usize, outcome: Outcome) -> Piece {
        let end = Some(self.end(&outcome.finish));
        let Some(text) = &self.text else {
            return Piece { content: outcome.text(), stop: true, end, ..Piece::default() };
        };
        let mut holes = outcome.holes;
        holes.resize_with(text.num_holes(), String::new);
        Piece { content: text.fill(&holes), holes: Some(holes), stop: true, end, ..Piece::default() }
    }

    fn chunk(&self, envelope: &Envelope, choices: Vec<Piece>, extras: Extras) -> impl Serialize {
        self.wrap(envelope, choices, extras)
    }

    fn reply(&self, envelope: &Envelope, choices: Vec<Piece>, extras: Extras) -> impl Serialize {
        self.wrap(envelope, choices, extras)
    }
}

#[cfg(test)]
mod tests {
    use engine::GenerationDefaults;
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<HoledText, ApiError> {
        let mut fields = Fields::new("", body)?;
        llama_names(&mut fields);
        let params = Params::take(&mut fields, &GenerationDefaults::default())?;
        refuse_unsupported(&mut fields, &params)?;
        let text = match fields.value("input") {
            Some(list) => read_list(&mut fields, list, &params),
            None => read_gap(&mut fields, params.max_tokens),
        }?;
        assert_eq!(fields.unread(), [""; 0]);
        Ok(text)
    }

    fn between(prefix: &str, slots: usize, suffix: &str) -> HoledText {
        HoledText::between(prefix.into(), slots, suffix.into()).unwrap()
    }

    #[test]
    fn extra_prefix_and_prompt_stand_before_the_hole() {
        let body = json!({
            "input_prefix": "c", "input_suffix": "e", "prompt": "d", "n_predict": 5, "seed": -1, "n_probs": 0,
            "input_extra": [{"filename": "x.rs", "text": "a"}, {"text": "b\n"}], "cache_prompt": true,
            "repeat_penalty": 1.1,
        });
        assert_eq!(parse(body).unwrap(), between("a\nb\ncd", 5, "e"));
    }

    #[test]
    fn the_hole_has_a_default_size() {
        for body in [json!({"input_prefix": "a"}), json!({"input_prefix": "a", "n_predict": -1})] {
            assert_eq!(parse(body).unwrap(), between("a", DEFAULT_SLOTS, ""));
        }
        assert_eq!(parse(json!({"input_prefix": "a", "max_tokens": 3})).unwrap(), between("a", 3, ""));
        assert_eq!(parse(json!({"input_prefix": "a", "n_predict": 0})).unwrap(), between("a", 0, ""));
    }

    #[test]
    fn errors_name_the_field() {
        let holes = json!([{"text": "a"}, {"hole": 1}, {"hole": 1}]);
        for (body, param) in [
            (json!({"input_prefix": 5}), "input_prefix"),
            (json!({"input_suffix": ["a"]}), "input_suffix"),
            (json!({"prompt": [1]}), "prompt"),
            (json!({"n_predict": -2}), "n_predict"),
            (json!({"n_predict": 4097}), "n_predict"),
            (json!({"n_predict": 1, "max_tokens": 1}), "n_predict"),
            (json!({"input_extra": {}}), "input_extra"),
            (json!({"input_extra": [{"text": "a"}, {"filename": "b"}]}), "input_extra[1].text"),
            (json!({"input_extra": [{"text": 1}]}), "input_extra[0].text"),
            (json!({"n_probs": 3}), "n_probs"),
            (json!({"n": 2}), "n"),
            (json!({"grammar": "root ::= x"}), "grammar"),
            (json!({"input": holes, "input_prefix": "a"}), "input_prefix"),
            (json!({"input": holes, "n_predict": 4}), "n_predict"),
            (json!({"input": holes, "max_tokens": 4}), "max_tokens"),
            (json!({"input": holes, "stop": "x"}), "stop"),
            (json!({"input": [{"hole": 0}]}), "input[0].hole"),
        ] {
            let error = parse(body.clone()).unwrap_err();
            assert_eq!(serde_json::to_value(error.body()).unwrap()["error"]["param"], param, "{body}");
        }
    }
}
