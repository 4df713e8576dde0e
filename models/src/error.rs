//! Everything that can go wrong between a model's files and its logits.

use std::{ops::Range, path::PathBuf};

use crate::{PageId, TokenId};

/// An error of loading or running a model. Messages name the cause and, where something is not supported, what is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A segment without rows, or scored rows outside it.
    #[error("a segment of {rows} rows cannot score rows {scored:?}")]
    BadSegment {
        /// Rows in the segment.
        rows: usize,
        /// Rows whose logits were asked for.
        scored: Range<usize>,
    },
    /// A row past the model's context length.
    #[error("the batch reaches position {end}, the model's context is {context_len} tokens")]
    ContextExceeded {
        /// One past the last position used.
        end: usize,
        /// The model's limit.
        context_len: usize,
    },
    /// A segment whose pages do not cover its positions.
    #[error("the segment needs {needed} KV pages and has {got}")]
    MissingPages {
        /// Pages needed.
        needed: usize,
        /// Pages given.
        got: usize,
    },
    /// A page id outside the KV cache.
    #[error("page {page:?} is outside the KV cache of {num_pages} pages")]
    PageOutOfRange {
        /// The page.
        page: PageId,
        /// Pages in the cache.
        num_pages: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("token {} is outside the vocabulary of {vocab_size}", token.0)]
    TokenOutOfRange {
        /// The token.
        token: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A buffer of logits that is not a whole number of rows.
    #[error("{len} logits are not a whole number of rows of {vocab_size}")]
    BadLogits {
        /// Values given.
        len: usize,
        /// Width of a row.
        vocab_size: usize,
    },
    /// A file that could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
