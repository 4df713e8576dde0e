//! Problems of five tasks, each with an answer and an exact checker.
//!
//! A problem is a function of `(task, split, seed, index)`. Which split a problem belongs to depends on a hash of the
//! values that its answer depends on ([`Problem::key`]), never on the seed, so the splits cannot meet.

mod chain;
mod chat;
mod draw;
mod json;
mod json_schemas;
mod math;
mod math_families;
mod math_story;
mod sql;
mod sql_tables;
#[cfg(test)]
mod tests;
mod words;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use draw::Draw;

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

/// Why an output is not an answer to its problem.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// The output has no line with the result.
    #[error("no line `#### number` at the end")]
    NoResult,
    /// The result is another number.
    #[error("the result is {got}, not {expected}")]
    Result {
        /// The right number.
        expected: String,
        /// The number of the output.
        got: String,
    },
    /// An equation does not hold, or is not of the form `a+b=c`.
    #[error("`{0}` is not a true equation")]
    Equation(String),
    /// The output is not one JSON object.
    #[error("not one JSON object: {0}")]
    Json(#[source] serde_json::Error),
    /// The output says something else.
    #[error("expected `{expected}`, got `{got}`")]
    Text {
        /// The right answer.
        expected: String,
        /// The output, without the white space around it.
        got: String,
    },
}

impl Wrong {
    fn text(expected: &str, got: &str) -> Self {
        Self::Text { expected: expected.into(), got: got.trim().into() }
    }
}

/// What a task's generator draws: the last turn, its answer, and the values that the answer depends on.
#[derive(Debug)]
struct Draft {
    question: String,
    answer: String,
    key: String,
}

impl Split {
    /// The split of all problems with this key.
    fn of(key: &str) -> Self {
        match draw::hash(key) % 100 {
            0..5 => Self::Test,
            5..10 => Self::Validation,
            _ => Self::Train,
        }
    }
}

/// Drafts until one falls in the split. Every task has many keys in every split, so this ends.
fn draft_in(task: Task, split: Split, draw: &mut Draw) -> Draft {
    loop {
        let draft = match task {
            Task::Math => math::draft(draw),
            Task::Json => json::draft(draw),
            Task::Sql => sql::draft(draw),
            Task::Chat => chat::draft(draw),
            Task::Chain => chain::draft(draw),
        };
        if Split::of(&draft.key) == split {
            return draft;
        }
    }
}

impl Task {
    /// Problem `index` of those that `seed` gives for a split. The same arguments give the same problem everywhere.
    pub fn problem(self, split: Split, seed: u64, index: u64) -> Problem {
        let mut draw = Draw::new([self as u64, split as u64, seed, index]);
        let Draft { question, answer, key } = draft_in(self, split, &mut draw);
        let mut messages = match self {
            Self::Chat => chat::before_chat(&mut draw, split),
            _ => chat::before_problem(&mut draw),
        };
        messages.push(Message { role: Role::User, content: question });
        Problem { task: self, messages, answer, key }
    }
}

impl Problem {
    /// Whether an output answers the problem, and if not, why. Any text may be given.
    pub fn check(&self, output: &str) -> Result<(), Wrong> {
        match self.task {
            Task::Math => math::check(&self.answer, output),
            Task::Json => json::check(&self.answer, output),
            Task::Sql => sql::check(&self.answer, output),
            Task::Chat => chat::check(&self.answer, output),
            Task::Chain => chain::check(&self.answer, output),
        }
    }
}

/// How many phrases a task's questions have before their slots are filled, counted from its tables.
pub fn num_templates(task: Task) -> u64 {
    match task {
        Task::Math => math::num_templates(),
        Task::Json => json::num_templates(),
        Task::Sql => sql::num_templates(),
        Task::Chat => chat::num_templates(),
        Task::Chain => chain::num_templates(),
    }
}
