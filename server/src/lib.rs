//! Leapfrog's HTTP server: an OpenAI-compatible API in front of [`engine`].
//!
//! [`router`] is the whole API without a socket; [`run`] adds the socket, the models and the signals.
//! The API is described in `docs/api.md`.

#![forbid(unsafe_code)]

pub mod args;
pub mod bench;
mod energy;
pub mod error;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod middleware;
mod openai;
mod routes;
mod run;
pub mod runtime;
pub mod settings;
mod shutdown;
pub mod state;
pub mod terminal;
mod welcome;

pub use routes::router;
pub use run::{RunError, run};
