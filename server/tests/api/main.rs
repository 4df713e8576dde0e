//! The API over scripted models: everything but weights.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod diffusion;
mod energy;
mod errors;
mod load;
mod metered;
mod replies;
mod sensors;
mod several;
mod streams;
mod support;
