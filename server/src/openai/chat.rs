//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{Extension, extract::State, response::Response};
use engine::{Commit, Finish, MAX_LOGPROBS, TokenRecord, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    fields::{Fields, JsonBody},
    generate::{Envelope, Extras, Outcome, Wire, answer},
    logprobs::ChatLogprobs,
    messages,
    params::Params,
    tokens::tokenize,
    types::{ChatChoice, ChatDelta, Delta, Message},
};
use crate::{energy::meter::Asker, error::ApiError, middleware::observe::RequestLog, state::AppState};

/// Answers a chat.
pub(crate) async fn chat(
    State(state): State<AppState>,
    Extension(log): Extension<Arc<RequestLog>>,
    asker: Asker,
    JsonBody(mut fields): JsonBody,
) -> Result<Response, ApiError> {
    let models = state.models()?;
    let (served, model) = models.find(fields.take("model")?)?;
    let info = served.engine.model();
    let mut params = Params::take(&mut fields, &info.generation)?;
    params.check(info)?;
    refuse_unsupported(&mut fields)?;
    let logprobs = logprobs(&mut fields)?;
    let variables: Map<String, Value> = fields.take("chat_template_kwargs")?.unwrap_or_default();
    let messages = messages::take(&mut fields, &mut params.unread)?;
    let meter = asker.meter(&state, params.energy)?;
    let ignored = params.ignored(fields, state.settings().strict)?;

    let template = info.chat_template.clone().ok_or_else(|| {
        let message = "this model has no chat template: use /v1/completions, or start with --chat-template";
        ApiError::unsupported("messages", message)
    })?;
    let prompt = tokenize(info.tokenizer.clone(), move |tokenizer| {
        tokenizer.encode_chat(&template.render(&messages, None, true, &variables)?)
    });
    let in_messages = |error: ApiError| error.rename_param("prompt", "messages");
    let prompt = prompt.await.map_err(in_messages)?;
    let requests = params.requests(vec![prompt], logprobs, None)?;
    let wire = ChatWire::new(info.tokenizer.clone(), logprobs.is_some());
    answer(served, log, wire, params.job(model, ignored, meter), requests).await.map_err(in_messages)
}

/// Refuses what would change the answer and is not done here.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let is_none = |value: &Value| value == "none";
    let choice = fields.value("tool_choice");
    // Without calls the tools need not be shown to the model.
    let calls_off = choice.as_ref().is_some_and(is_none);
    fields.refuse("tools", |tools| calls_off || tools.as_array().is_some_and(Vec::is_empty))?;
    if choice.is_some_and(|choice| !is_none(&choice) && choice != "auto") {
        return Err(ApiError::invalid("tool_choice", "there are no tools to choose from"));
    }
    fields.refuse("functions", |functions| functions.as_array().is_some_and(Vec::is_empty))?;
    fields.refuse("function_call", is_none)?;
    fields.refuse("response_format", |format| format.get("type").is_some_and(|kind| kind == "text"))?;
    fields.refuse("modalities", |kinds| *kinds == serde_json::json!(["text"]))?;
    fields.refuse("reasoning_effort", is_none)?;
    fields.refuse("verbosity", |verbosity| verbosity == "medium")?;
    for name in ["audio", "web_search_options", "suffix", "guided_json", "guided_regex", "guided_choice"] {
        fields.refuse(name, |_| false)?;
    }
    Ok(())
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    let top: Option<usize> = fields.take("top_logprobs")?;
    match top {
        Some(top) if top > MAX_LOGPROBS => {
            Err(ApiError::invalid("top_logprobs", format!("{top} is more than {MAX_LOGPROBS}")))
        }
        Some(top) if top > 0 && !wanted => {
            Err(ApiError::invalid("top_logprobs", "`logprobs` must be true for `top_logprobs`"))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

/// How chats are worded.
pub(super) struct ChatWire {
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
}

impl ChatWire {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, logprobs: bool) -> Self {
        Self { tokenizer, logprobs }
    }

    fn logprobs(&self, records: &[TokenRecord]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs::new(&self.tokenizer, records))
    }
}

impl Wire for ChatWire {
    type Delta = ChatDelta;
    type Choice = ChatChoice;
    const ID_PREFIX: &'static str = "chatcmpl-";

    fn open(&mut self, index: usize) -> Option<ChatDelta> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        Some(ChatDelta { index, delta, logprobs: None, finish_reason: None })
    }

    fn prompt(&mut self, _index: usize, _records: &[TokenRecord]) -> Option<ChatDelta> {
        None
    }

    fn commit(&mut self, index: usize, commit: Commit) -> Option<ChatDelta> {
        let shows = !commit.text.is_empty() || (self.logprobs && !commit.tokens.is_empty());
        shows.then(|| ChatDelta {
            index,
            delta: Delta { role: None, content: Some(commit.text) },
            logprobs: self.logprobs(&commit.tokens),
            finish_reason: None,
        })
    }

    fn frame(&mut self, index: usize) -> ChatDelta {
        ChatDelta { index, delta: Delta::default(), logprobs: None, finish_reason: None }
    }

    fn close(&mut self, index: usize, finish: &Finish) -> ChatDelta {
        ChatDelta { index, delta: Delta::default(), logprobs: None, finish_reason: Some(finish.reason) }
    }

    fn whole(&mut self, index: usize, outcome: Outcome) -> ChatChoice {
        ChatChoice {
            index,
            logprobs: self.logprobs(&outcome.tokens),
            message: Message { role: "assistant", content: outcome.text(), refusal: None },
            finish_reason: outcome.finish.reason,
        }
    }

    fn chunk(&self, envelope: &Envelope, choices: Vec<ChatDelta>, extras: Extras) -> impl Serialize {
        envelope.fill("chat.completion.chunk", choices, extras)
    }

    fn reply(&self, envelope: &Envelope, choices: Vec<ChatChoice>, extras: Extras) -> impl Serialize {
        envelope.fill("chat.completion", choices, extras)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(body: Value) -> Option<Value> {
        let error = refuse_unsupported(&mut Fields::new("", body).unwrap()).err()?;
        let error = serde_json::to_value(error.body()).unwrap()["error"].clone();
        assert_eq!(error["code"], "unsupported_parameter");
        Some(error["param"].clone())
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let tool = json!([{"type": "function", "function": {"name": "f"}}]);
        for (body, param) in [
            (json!({"tools": tool}), "tools"),
            (json!({"tools": tool, "tool_choice": "auto"}), "tools"),
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {}}}), "response_format"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"audio": {"voice": "x"}}), "audio"),
            (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        ] {
            assert_eq!(refused(body.clone()), Some(param.into()), "{body}");
        }
        for body in [
            json!({"tools": tool, "tool_choice": "none"}),
            json!({"tools": [], "tool_choice": "auto"}),
            json!({"tools": null, "response_format": {"type": "text"}, "modalities": ["text"], "audio": null}),
        ] {
            assert_eq!(refused(body.clone()), None, "{body}");
        }
    }

    #[test]
    fn alternatives_need_log_probabilities() {
        let parse = |body: Value| logprobs(&mut Fields::new("", body).unwrap());
        assert_eq!(parse(json!({})).unwrap(), None);
        assert_eq!(parse(json!({"logprobs": true})).unwrap(), Some(0));
        assert_eq!(parse(json!({"logprobs": true, "top_logprobs": 20})).unwrap(), Some(20));
        assert_eq!(parse(json!({"logprobs": false, "top_logprobs": 0})).unwrap(), None);
        for bad in [json!({"top_logprobs": 2}), json!({"logprobs": true, "top_logprobs": 21}), json!({"logprobs": 5})] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }
}
