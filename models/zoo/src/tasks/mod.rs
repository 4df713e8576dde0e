//! Problems of five tasks, each with an answer and an exact checker.
//!
//! A problem is a function of `(task, split, seed, index)`. Which split a problem belongs to depends on a hash of the
//! values that its answer depends on ([`Problem::key`]), never on the seed, so the splits cannot meet.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a problem asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A word problem of two to four steps; the answer works them out and ends with `#### number`.
    Math,
    /// A sentence into a JSON record.
    Json,
    /// A question and the columns of a table into a SQL query.
    Sql,
    /// A turn of a dialogue: greetings, help, thanks, and refusals of what the models cannot do.
    Chat,
    /// A chain of operations modulo ten in which every digit needs the one before: the serial control.
    Chain,
}

impl Task {
    /// All tasks, in the order of tables.
    pub const ALL: [Self; 5] = [Self::Math, Self::Json, Self::Sql, Self::Chat, Self::Chain];

    /// As in tables and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Math => "math",
            Self::Json => "json",
            Self::Sql => "sql",
            Self::Chat => "chat",
            Self::Chain => "chain",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a task; the tasks are math, json, sql, chat, chain")]
pub struct UnknownTask(String);

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(text: &str) -> Result<Self, UnknownTask> {
        Self::ALL.into_iter().find(|task| task.name() == text).ok_or_else(|| UnknownTask(text.into()))
    }
}

/// Which part of a task's problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For training: 90 % of the keys.
    Train,
    /// For choosing among checkpoints: 5 % of the keys.
    Validation,
    /// For the published figures: 5 % of the keys.
    Test,
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions before the dialogue.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Whose turn.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A dialogue that waits for the assistant, and what it should say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is asked for.
    pub task: Task,
    /// The dialogue so far; the last turn is the user's.
    pub messages: Vec<Message>,
    /// The right answer, as the models are trained to write it.
    pub answer: String,
    /// The values that the answer depends on; its hash decides the split.
    pub key: String,
}
