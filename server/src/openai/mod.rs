//! The OpenAI-compatible routes: what they read, what they write, and how a request travels between.
//!
//! | module | holds |
//! |---|---|
//! | `fields` | reading a JSON body field by field |
//! | `params`, `decoding`, `messages`, `prompt`, `holes` | fields to engine requests |
//! | `types`, `logprobs` | what is written |
//! | `generate`, `stream`, `frames` | submitting, and the whole or streamed reply |
//! | `chat`, `completions`, `infill`, `models`, `tokens` | one module an endpoint |

pub(crate) mod chat;
pub(crate) mod completions;
mod decoding;
pub(crate) mod fields;
mod frames;
mod generate;
mod holes;
pub(crate) mod infill;
mod logprobs;
mod messages;
pub(crate) mod models;
mod params;
mod prompt;
mod stream;
pub(crate) mod tokens;
mod types;

use engine::{ModelInfo, Request, TokenId};
use serde_json::Value;

use crate::error::ApiError;

/// The engine request that a body with the shared fields asks for, one choice, behind `prompt`: what a request means
/// is the same without HTTP.
pub(crate) fn request(body: Value, info: &ModelInfo, prompt: Vec<TokenId>) -> Result<Request, ApiError> {
    let mut fields = fields::Fields::new("", body)?;
    let params = params::Params::take(&mut fields, &info.generation)?;
    params.check(info)?;
    let mut requests = params.requests(vec![prompt], None, None)?;
    Ok(requests.swap_remove(0))
}
