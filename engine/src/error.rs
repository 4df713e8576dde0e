//! Error kinds, free of HTTP.

use std::time::Duration;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] models::ModelError),
    /// A setting out of range.
    #[error("setting `{setting}`: {message}")]
    InvalidSetting {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The operating system refused a thread.
    #[error("cannot start the device thread: {0}")]
    Thread(std::io::Error),
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Prompt plus at least one token do not fit the context.
    #[error("the prompt has {len} tokens; the context holds {context_len}, and at least one must be left to generate")]
    PromptTooLong {
        /// Tokens of the prompt.
        len: usize,
        /// Context length in force.
        context_len: usize,
    },
    /// A parameter out of range.
    #[error("{message}")]
    InvalidParameter {
        /// Name of the field.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The queue is full.
    #[error("the queue is full ({max_queue} requests wait)")]
    QueueFull {
        /// Length of the queue.
        max_queue: usize,
        /// When it may be worth trying again, from the recent rate of completions.
        retry_after: Duration,
    },
    /// The engine drains or has stopped.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a running request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The forward pass failed.
    #[error("the forward pass failed: {0}")]
    Forward(String),
    /// A decoder broke one of its laws.
    #[error("the decoder failed: {0}")]
    Decode(String),
    /// The client did not read its events.
    #[error("the client is too slow: its event queue is full")]
    SlowClient,
    /// The engine stopped before the request was done.
    #[error("the server is shutting down")]
    ShuttingDown,
}
