//! Chunks and answers, as far as they matter here. What is not listed is ignored; everything may be missing.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::Value;

/// A chunk of a stream, or a whole answer.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(default)]
    pub(super) error: Option<Value>,
    /// How Leapfrog decoded the answer.
    #[serde(default)]
    pub(super) leapfrog: Option<Decoding>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow, default)]
    pub(super) delta: Option<Message<'a>>,
    #[serde(borrow, default)]
    pub(super) message: Option<Message<'a>>,
    #[serde(borrow, default)]
    pub(super) text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) logprobs: Option<Logprobs>,
}

/// What a model writes: its answer, or what it thinks before.
#[derive(Debug, Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
}

/// Probabilities of the tokens of a chunk; only their number matters.
#[derive(Debug, Deserialize)]
pub(super) struct Logprobs {
    /// Of a chat.
    #[serde(default)]
    content: Option<Vec<IgnoredAny>>,
    /// Of a text completion.
    #[serde(default)]
    tokens: Option<Vec<IgnoredAny>>,
}

impl Logprobs {
    pub(super) fn num_tokens(&self) -> Option<usize> {
        self.content.as_ref().or(self.tokens.as_ref()).map(Vec::len)
    }
}

impl Choice<'_> {
    /// What is new.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let messages = self.delta.iter().chain(&self.message);
        messages
            .flat_map(|message| [&message.reasoning_content, &message.reasoning, &message.content])
            .chain([&self.text])
            .filter_map(|text| text.as_deref())
            .filter(|text| !text.is_empty())
    }
}

/// Tokens as the server counts them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    energy: Option<Energy>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Energy {
    status: Option<String>,
    energy_joules: Option<f64>,
}

impl Usage {
    /// Prompt tokens that the server had not to compute.
    pub(crate) fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details.as_ref()?.cached_tokens
    }

    /// Joules of the request, if the server measured them.
    pub(crate) fn joules(&self) -> Option<f64> {
        self.energy.as_ref().filter(|energy| energy.status.as_deref() == Some("measured"))?.energy_joules
    }
}

/// Leapfrog's account of an answer. A frame of a canvas has none of this.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Decoding {
    pub(crate) strategy: Option<String>,
    pub(crate) forward_passes: Option<u64>,
    /// Entry `a - 1` counts the passes that committed `a` tokens.
    #[serde(deserialize_with = "list_or_nothing")]
    pub(crate) acceptance_histogram: Vec<u64>,
    pub(crate) denoising_steps: Option<u64>,
}

fn list_or_nothing<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    Ok(Option::<Vec<u64>>::deserialize(from)?.unwrap_or_default())
}

impl Decoding {
    /// Passes that scored slots, and tokens that they committed.
    pub(crate) fn passes_and_tokens(&self) -> (u64, u64) {
        let passes = self.acceptance_histogram.iter().sum();
        (passes, self.acceptance_histogram.iter().zip(1..).map(|(count, accepted)| count * accepted).sum())
    }
}
