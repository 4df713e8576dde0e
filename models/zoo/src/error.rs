//! What can go wrong in training.

use std::{io, path::PathBuf};

/// Why a model could not be trained, saved or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer could not be trained or used.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] tokenizers::Error),
    /// The loss is not a number any more.
    #[error("the loss of step {step} is {loss}: start again with a lower learning rate")]
    Diverged {
        /// The step, from 0.
        step: usize,
        /// Its loss.
        loss: f32,
    },
    /// A setting that cannot be meant.
    #[error("{0}")]
    Settings(String),
}
