//! Bodies of requests.

use anyhow::{bail, ensure};
use serde_json::{Map, Value, json};

use super::{
    prompts::{Content, PromptSet},
    synthetic::Synthetic,
};

/// Which route is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Endpoint {
    /// /v1/chat/completions.
    #[default]
    Chat,
    /// /v1/completions.
    Completions,
}

impl Endpoint {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// Where prompts come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// In their order; from the beginning again when they are used up.
    Set(PromptSet),
    Synthetic(Synthetic),
}

/// Makes the body of every request.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    source: Source,
    endpoint: Endpoint,
    /// What all bodies have, `max_tokens` too if prompts do not say their own.
    fields: Map<String, Value>,
    /// A number in front of every prompt, so that no two begin alike.
    numbered: bool,
}

impl Requests {
    /// Fields that are `null` are left out, so that a user can take away what is there by default.
    pub(crate) fn new(
        source: Source,
        endpoint: Endpoint,
        fields: Map<String, Value>,
        numbered: bool,
    ) -> anyhow::Result<Self> {
        if let Source::Set(set) = &source {
            ensure!(!set.prompts.is_empty(), "no prompts");
            let has_messages = set.prompts.iter().any(|prompt| matches!(prompt.content, Content::Messages(_)));
            if endpoint == Endpoint::Completions && has_messages {
                bail!("--prompts {}: there are messages in it, which only --endpoint chat takes", set.name);
            }
        }
        let fields = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Ok(Self { source, endpoint, fields, numbered })
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Place of the prompt in its set, and the body of request `index`.
    pub(crate) fn body(&self, index: u64) -> anyhow::Result<(usize, Vec<u8>)> {
        let (prompt, content, max_tokens) = match &self.source {
            Source::Set(set) => {
                let prompt = (index % set.prompts.len() as u64) as usize;
                (prompt, set.prompts[prompt].content.clone(), set.prompts[prompt].max_tokens)
            }
            Source::Synthetic(synthetic) => {
                let (text, output) = synthetic.prompt(index)?;
                (index as usize, Content::Text(text), output)
            }
        };
        let content = if self.numbered { numbered(content, index) } else { content };
        let mut body = self.fields.clone();
        match (self.endpoint, content) {
            (Endpoint::Chat, Content::Text(text)) => {
                body.insert("messages".into(), json!([{"role": "user", "content": text}]));
            }
            (Endpoint::Chat, Content::Messages(messages)) => {
                body.insert("messages".into(), messages);
            }
            (Endpoint::Completions, Content::Text(text)) => {
                body.insert("prompt".into(), text.into());
            }
            (Endpoint::Completions, Content::Messages(_)) => bail!("messages are for --endpoint chat"),
        }
        if let Some(max_tokens) = max_tokens {
            body.insert("max_tokens".into(), max_tokens.into());
        }
        Ok((prompt, serde_json::to_vec(&body)?))
    }
}

/// The number in front of the first text.
fn numbered(content: Content, index: u64) -> Content {
    match content {
        Content::Text(text) => Content::Text(format!("({index}) {text}")),
        Content::Messages(mut messages) => {
            if let Some(text) = messages.pointer_mut("/0/content")
                && let Some(old) = text.as_str()
            {
                *text = format!("({index}) {old}").into();
            }
            Content::Messages(messages)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::prompts::Prompt;

    fn set(contents: &[Content]) -> Source {
        let prompt = |content: &Content| Prompt { content: content.clone(), max_tokens: None };
        let mut prompts: Vec<Prompt> = contents.iter().map(prompt).collect();
        prompts[0].max_tokens = Some(3);
        Source::Set(PromptSet { name: "s".into(), prompts, sha256: String::new(), notes: Vec::new() })
    }

    fn body(requests: &Requests, index: u64) -> Value {
        serde_json::from_slice(&requests.body(index).unwrap().1).unwrap()
    }

    #[test]
    fn bodies() {
        let fields = json!({"model": "m", "max_tokens": 9, "seed": null, "stream": true});
        let contents = [Content::Text("a".into()), Content::Messages(json!([{"role": "user", "content": "b"}]))];
        let fields = fields.as_object().unwrap();
        let requests = Requests::new(set(&contents), Endpoint::Chat, fields.clone(), false).unwrap();
        let messages = json!([{"role": "user", "content": "a"}]);
        let first = json!({"model": "m", "max_tokens": 3, "stream": true, "messages": messages});
        assert_eq!(body(&requests, 0), first);
        assert_eq!(body(&requests, 2), first, "from the beginning again");
        assert_eq!(body(&requests, 1)["max_tokens"], 9);
        let requests = Requests::new(set(&contents), Endpoint::Chat, fields.clone(), true).unwrap();
        assert_eq!(body(&requests, 2)["messages"][0]["content"], "(2) a");
        assert_eq!(body(&requests, 1)["messages"][0]["content"], "(1) b");
        let refused = Requests::new(set(&contents), Endpoint::Completions, fields.clone(), false).unwrap_err();
        assert!(refused.to_string().contains("--endpoint chat"));
        let requests = Requests::new(set(&contents[..1]), Endpoint::Completions, fields.clone(), false).unwrap();
        assert_eq!(body(&requests, 0)["prompt"], "a");
    }
}
