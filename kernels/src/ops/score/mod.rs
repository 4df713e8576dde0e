//! From rows of logits to one small record a row: the chosen token, how sure the row is of it, log-probabilities.
//!
//! The choice is that of the engine's sampler: bias, penalties and forbidden tokens, then the likeliest token, or
//! temperature, top-k, top-p, min-p and the Gumbel-max choice with counter-based noise. Ties go to the lowest token. The
//! logits are read where they are and never copied to the host. `reference.rs` says what a record holds; the kernels
//! differ from it by rounding, and by what `filter.cuh` says of weights that are equal. The engine adds `1e-10` inside the
//! logarithm of an entropy, which is not done here: at most `1e-10` nats a token.

mod pack;
mod params;
mod query;

pub(crate) mod launch;
pub(crate) mod reference;

pub use launch::{ScoreBatch, ScoreShape, ScoreSizes};
pub use query::{ScoreAdjustments, ScoreConfidence, ScoreConfidenceKind, ScoreQuery, ScoreResult};

const OP: &str = "score on the device";
