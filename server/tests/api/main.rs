//! The API over scripted models: everything but weights.

mod errors;
mod load;
mod replies;
mod streams;
mod support;
