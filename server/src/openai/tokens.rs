//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use engine::{ModelError, TokenId, Tokenizer};
use serde::Serialize;

use super::fields::JsonBody;
use crate::{error::ApiError, state::AppState};

/// A text as tokens.
#[derive(Debug, Serialize)]
pub(crate) struct Tokens {
    tokens: Vec<TokenId>,
    count: usize,
}

/// Tokens as text.
#[derive(Debug, Serialize)]
pub(crate) struct Content {
    content: String,
}

/// Runs `work` with the tokenizer on a thread that may be busy for a while: a text of megabytes takes seconds.
pub(super) async fn tokenize<T: Send + 'static>(
    tokenizer: Arc<Tokenizer>,
    work: impl FnOnce(&Tokenizer) -> Result<T, ModelError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(move || work(&tokenizer)).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => {
            tracing::error!(%error, "tokenizing failed");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "tokenizing failed").code("internal_error"))
        }
    }
}

/// Text to tokens. This route is no part of the OpenAI API, so a field that is not known is always an error:
/// `{"content" or "prompt": text, "add_special": bool}`.
pub(crate) async fn encode(
    State(state): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Tokens>, ApiError> {
    let models = state.models()?;
    let (served, _) = models.find(fields.take("model")?)?;
    let content: Option<String> = fields.take("content")?;
    let name = if content.is_some() { "content" } else { "prompt" };
    let prompt = if content.is_some() { None } else { fields.take("prompt")? };
    let text: String = content.or(prompt).ok_or_else(|| ApiError::missing("content"))?;
    let add_special = fields.take("add_special")?.unwrap_or(false);
    fields.finish("`model`, `content` or `prompt`, `add_special`")?;
    let tokenizer = served.engine.model().tokenizer.clone();
    let tokens = tokenize(tokenizer, move |tokenizer| tokenizer.encode(&text, add_special));
    let tokens = tokens.await.map_err(|error| error.rename_param("prompt", name))?;
    Ok(Json(Tokens { count: tokens.len(), tokens }))
}

/// Tokens to text: `{"tokens": [ids]}`. Special tokens have no text.
pub(crate) async fn decode(
    State(state): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Content>, ApiError> {
    let models = state.models()?;
    let (served, _) = models.find(fields.take("model")?)?;
    let tokens: Vec<TokenId> = fields.take("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
    fields.finish("`model`, `tokens`")?;
    let info = served.engine.model();
    if let Some(index) = tokens.iter().position(|token| token.0 as usize >= info.vocab_size) {
        let message = format!("token id {} is outside the vocabulary of {}", tokens[index].0, info.vocab_size);
        return Err(ApiError::invalid(format!("tokens[{index}]"), message));
    }
    let content = tokenize(info.tokenizer.clone(), move |tokenizer| Ok(tokenizer.decode(&tokens))).await?;
    Ok(Json(Content { content }))
}
