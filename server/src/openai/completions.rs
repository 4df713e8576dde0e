//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{Extension, extract::State, response::Response};
use engine::{Commit, Finish, InfillPart, MAX_LOGPROBS, ModelInfo, Request, TokenId, TokenRecord, Tokenizer};
use serde::Serialize;

use super::{
    fields::{Fields, JsonBody},
    generate::{Envelope, Extras, Outcome, Wire, answer},
    holes::check_infill,
    logprobs::{CompletionLogprobs, Offsets},
    params::Params,
    prompt::{Prompt, read_prompts},
    tokens::tokenize,
    types::CompletionChoice,
};
use crate::{energy::meter::Asker, error::ApiError, middleware::observe::RequestLog, state::AppState};

/// Tokens that a request generates if it names no number.
const DEFAULT_MAX_TOKENS: usize = 16;
/// `object` of replies and chunks alike.
const OBJECT: &str = "text_completion";

/// Continues texts.
pub(crate) async fn completions(
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
    params.max_tokens = params.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    refuse_unsupported(&mut fields, params.n)?;
    let logprobs = logprobs(&mut fields)?;
    let echo = fields.take("echo")?.unwrap_or(false);
    let suffix: Option<String> = fields.take("suffix")?.filter(|suffix: &String| !suffix.is_empty());
    if suffix.is_some() {
        check_infill(info, "suffix")?;
    }
    if echo && logprobs.is_some() && info.mask_id.is_some() {
        let message = "a diffusion model has no chain of conditional probabilities, so it cannot score a prompt";
        return Err(ApiError::unsupported("echo", message));
    }
    let prompts = read_prompts(fields.value("prompt").ok_or_else(|| ApiError::missing("prompt"))?)?;
    let meter = asker.meter(&state, params.energy)?;
    let ignored = params.ignored(fields, state.settings().strict)?;

    let prompts = encode(info, prompts).await?;
    let echoes = if echo {
        prompts.iter().flat_map(|(text, _)| std::iter::repeat_n(text.clone(), params.n)).collect()
    } else {
        Vec::new()
    };
    let tokens = prompts.into_iter().map(|(_, tokens)| tokens).collect();
    let mut requests = params.requests(tokens, logprobs, logprobs.filter(|_| echo))?;
    if let Some(suffix) = suffix.clone() {
        let suffix = tokenize(info.tokenizer.clone(), move |tokenizer| tokenizer.encode(&suffix, false));
        let suffix = suffix.await.map_err(|error| error.rename_param("prompt", "suffix"))?;
        add_suffix(&mut requests, &suffix);
    }
    let wire = CompletionWire {
        tokenizer: info.tokenizer.clone(),
        logprobs: logprobs.is_some(),
        offsets: requests.iter().map(|_| Offsets::default()).collect(),
        echoes,
        echoed_suffix: suffix.filter(|_| echo).unwrap_or_default(),
    };
    answer(served, log, wire, params.job(model, ignored, meter), requests).await
}

/// Turns the tokens to generate into a hole in front of `suffix`.
fn add_suffix(requests: &mut [Request], suffix: &[TokenId]) {
    for request in requests {
        // Without a token to generate there is no hole.
        if let Some(slots) = request.max_tokens.filter(|slots| *slots > 0) {
            request.infill = vec![InfillPart::Hole(slots), InfillPart::Fixed(suffix.to_vec())];
        }
    }
}

fn refuse_unsupported(fields: &mut Fields, n: usize) -> Result<(), ApiError> {
    // The best of `n` out of `n` are all of them; a larger set would need a ranking.
    fields.refuse("best_of", |best_of| *best_of == n)?;
    fields.refuse("response_format", |format| format.get("type").is_some_and(|kind| kind == "text"))?;
    for name in ["prompt_embeds", "guided_json", "guided_regex", "guided_choice"] {
        fields.refuse(name, |_| false)?;
    }
    Ok(())
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let logprobs: Option<usize> = fields.take("logprobs")?;
    match logprobs {
        Some(k) if k > MAX_LOGPROBS => Err(ApiError::invalid("logprobs", format!("{k} is more than {MAX_LOGPROBS}"))),
        k => Ok(k),
    }
}

/// Text and tokens of every prompt.
async fn encode(info: &ModelInfo, prompts: Vec<Prompt>) -> Result<Vec<(String, Vec<TokenId>)>, ApiError> {
    let (tokenizer, vocab_size) = (info.tokenizer.clone(), info.vocab_size);
    // The engine checks the ids again; decoding an echo comes before that.
    if let Some(token) = prompts.iter().filter_map(Prompt::tokens).flatten().find(|id| id.0 as usize >= vocab_size) {
        let message = format!("token id {} is outside the vocabulary of {vocab_size}", token.0);
        return Err(ApiError::invalid("prompt", message));
    }
    tokenize(tokenizer, move |tokenizer| {
        let encoded = prompts.into_iter().map(|prompt| match prompt {
            Prompt::Text(text) => tokenizer.encode(&text, true).map(|tokens| (text, tokens)),
            Prompt::Tokens(tokens) => Ok((tokenizer.decode(&tokens), tokens)),
        });
        encoded.collect()
    })
    .await
}

struct CompletionWire {
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    /// Where the text of each choice stands.
    offsets: Vec<Offsets>,
    /// Text of the prompt of each choice; empty if nothing is echoed.
    echoes: Vec<String>,
    /// What stands behind the generated text of every choice; empty if nothing is echoed.
    echoed_suffix: String,
}

impl CompletionWire {
    fn logprobs(&mut self, index: usize, records: &[TokenRecord]) -> Option<CompletionLogprobs> {
        self.logprobs.then(|| self.offsets[index].logprobs(&self.tokenizer, records))
    }

    /// The lists of an echoed prompt. What follows it begins where its text ends, however its tokens are spelled.
    fn echo_logprobs(&mut self, index: usize, records: &[TokenRecord]) -> Option<CompletionLogprobs> {
        let logprobs = self.logprobs(index, records);
        self.offsets[index].skip(&self.echoes[index]);
        logprobs
    }
}

impl Wire for CompletionWire {
    type Delta = CompletionChoice;
    type Choice = CompletionChoice;
    const ID_PREFIX: &'static str = "cmpl-";

    fn open(&mut self, index: usize) -> Option<CompletionChoice> {
        // With log-probabilities the echo waits for them.
        if self.logprobs {
            return None;
        }
        let text = self.echoes.get(index)?.clone();
        Some(CompletionChoice { index, text, logprobs: None, finish_reason: None })
    }

    fn prompt(&mut self, index: usize, records: &[TokenRecord]) -> Option<CompletionChoice> {
        let text = self.echoes.get(index)?.clone();
        let logprobs = self.echo_logprobs(index, records);
        Some(CompletionChoice { index, text, logprobs, finish_reason: None })
    }

    fn commit(&mut self, index: usize, commit: Commit) -> Option<CompletionChoice> {
        let shows = !commit.text.is_empty() || (self.logprobs && !commit.tokens.is_empty());
        shows.then(|| {
            let logprobs = self.logprobs(index, &commit.tokens);
            CompletionChoice { index, text: commit.text, logprobs, finish_reason: None }
        })
    }

    fn frame(&mut self, index: usize) -> CompletionChoice {
        CompletionChoice { index, text: String::new(), logprobs: None, finish_reason: None }
    }

    fn close(&mut self, index: usize, finish: &Finish) -> CompletionChoice {
        let text = self.echoed_suffix.clone();
        CompletionChoice { index, text, logprobs: None, finish_reason: Some(finish.reason) }
    }

    fn whole(&mut self, index: usize, outcome: Outcome) -> CompletionChoice {
        let mut text = self.echoes.get(index).cloned().unwrap_or_default();
        text.push_str(&outcome.text());
        text.push_str(&self.echoed_suffix);
        let echoed = outcome.prompt.and_then(|records| self.echo_logprobs(index, &records));
        let generated = self.logprobs(index, &outcome.tokens);
        let logprobs = generated.map(|lists| match echoed {
            Some(echoed) => echoed.followed_by(lists),
            None => lists,
        });
        CompletionChoice { index, text, logprobs, finish_reason: Some(outcome.finish.reason) }
    }

    fn chunk(&self, envelope: &Envelope, choices: Vec<CompletionChoice>, extras: Extras) -> impl Serialize {
        envelope.fill(OBJECT, choices, extras)
    }

    fn reply(&self, envelope: &Envelope, choices: Vec<CompletionChoice>, extras: Extras) -> impl Serialize {
        envelope.fill(OBJECT, choices, extras)
    }
}
