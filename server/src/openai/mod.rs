//! The OpenAI-compatible routes: what they read, what they write, and how a request travels between.
//!
//! | module | holds |
//! |---|---|
//! | `fields` | reading a JSON body field by field |
//! | `params`, `messages`, `prompt` | fields to engine requests |
//! | `types`, `logprobs` | what is written |
//! | `generate`, `stream` | submitting, and the whole or streamed reply |
//! | `chat`, `completions`, `models`, `tokens` | one module an endpoint |

pub(crate) mod chat;
pub(crate) mod completions;
mod fields;
mod generate;
mod logprobs;
mod messages;
pub(crate) mod models;
mod params;
mod prompt;
mod stream;
pub(crate) mod tokens;
mod types;
