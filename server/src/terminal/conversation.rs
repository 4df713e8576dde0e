//! Turns to engine requests.

use engine::{Engine, ModelInfo, Request};
use serde_json::{Map, Value, json};

use super::OptionError;
use crate::{args::RunArgs, error::ApiError, openai};

/// What was said, and how to answer.
#[derive(Debug)]
pub(super) struct Conversation {
    /// `None`: the model cannot chat, every turn is a text to continue.
    messages: Option<Vec<Value>>,
    /// Messages that [`Self::clear`] keeps.
    num_kept: usize,
    /// The fields of a request as a client of the HTTP API would send them, so that one place gives them a meaning.
    fields: Map<String, Value>,
}

impl Conversation {
    pub(super) fn new(args: &RunArgs, engine: &Engine, frames: bool) -> Result<Self, OptionError> {
        let info = engine.model();
        let system: Vec<_> = args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
        let messages = info.chat_template.is_some().then(|| system.clone());
        if messages.is_none() && !system.is_empty() {
            return Err(OptionError::NoTemplate);
        }
        Ok(Self { messages, num_kept: system.len(), fields: fields(args, info, frames)? })
    }

    pub(super) fn can_chat(&self) -> bool {
        self.messages.is_some()
    }

    /// The request that answers `text` after everything said so far.
    pub(super) fn request(&self, text: &str, info: &ModelInfo) -> Result<Request, ApiError> {
        let prompt = match (&self.messages, &info.chat_template) {
            (Some(messages), Some(template)) => {
                let mut messages = messages.clone();
                messages.push(json!({"role": "user", "content": text}));
                info.tokenizer.encode_chat(&template.render(&Value::Array(messages), None, true, &Map::new())?)?
            }
            _ => info.tokenizer.encode(text, true)?,
        };
        openai::request(Value::Object(self.fields.clone()), info, prompt)
    }

    pub(super) fn remember(&mut self, text: &str, reply: String) {
        if let Some(messages) = &mut self.messages {
            messages.push(json!({"role": "user", "content": text}));
            messages.push(json!({"role": "assistant", "content": reply}));
        }
    }

    /// Forgets everything but the system message.
    pub(super) fn clear(&mut self) {
        if let Some(messages) = &mut self.messages {
            messages.truncate(self.num_kept);
        }
    }
}

fn fields(args: &RunArgs, info: &ModelInfo, frames: bool) -> Result<Map<String, Value>, OptionError> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    if let Some(max_tokens) = args.max_tokens {
        set("max_tokens", max_tokens.into());
    }
    if let Some(seed) = args.seed {
        set("seed", seed.into());
    }
    match (args.temperature, info.generation.temperature) {
        (Some(temperature), _) => {
            set("temperature", temperature.into());
        }
        // Clients of the HTTP API expect 1, people at a terminal the model's best.
        (None, None) => {
            set("temperature", 0.into());
        }
        (None, Some(_)) => {}
    }
    if let Some(decoding) = &args.decoding {
        let decoding = decoding.trim();
        let value = match decoding.starts_with('{') {
            true => serde_json::from_str(decoding).map_err(OptionError::Decoding)?,
            false => decoding.into(),
        };
        set("decoding", value);
    }
    if frames {
        set("stream", true.into());
        set("stream_options", json!({"include_frames": true, "frame_interval_ms": 0}));
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use engine::{
        EngineSettings, Preset, Strategy,
        testing::{Rule, scripted},
    };

    use super::*;

    fn engine(with_template: bool) -> Engine {
        let mut model = scripted(Rule::Successor).unwrap();
        if !with_template {
            model.chat_template = None;
        }
        Engine::start(model, EngineSettings { threads: Some(1), ..EngineSettings::default() }).unwrap()
    }

    fn prompt(conversation: &Conversation, engine: &Engine, text: &str) -> String {
        let request = conversation.request(text, engine.model()).unwrap();
        engine.model().tokenizer.decode(&request.prompt)
    }

    #[test]
    fn a_chat_remembers_until_it_is_cleared() {
        let engine = engine(true);
        let args = RunArgs { system: Some("Be brief.".into()), ..RunArgs::default() };
        let mut chat = Conversation::new(&args, &engine, false).unwrap();
        let first = "system: Be brief.\nuser: Hi\nassistant:";
        assert_eq!(prompt(&chat, &engine, "Hi"), first);
        chat.remember("Hi", "Ho".into());
        let second = "system: Be brief.\nuser: Hi\nassistant: Ho\nuser: Bye\nassistant:";
        assert_eq!(prompt(&chat, &engine, "Bye"), second);
        chat.clear();
        assert_eq!(prompt(&chat, &engine, "Hi"), first);
    }

    #[test]
    fn without_a_template_the_text_is_continued() {
        let engine = engine(false);
        let mut text = Conversation::new(&RunArgs::default(), &engine, false).unwrap();
        assert!(!text.can_chat());
        text.remember("a", "b".into());
        assert_eq!(prompt(&text, &engine, "c"), "c");
        let args = RunArgs { system: Some("x".into()), ..RunArgs::default() };
        assert!(matches!(Conversation::new(&args, &engine, false), Err(OptionError::NoTemplate)));
    }

    #[test]
    fn options_mean_what_they_mean_over_http() {
        let engine = engine(true);
        let request = |args: RunArgs| Conversation::new(&args, &engine, false).unwrap().request("x", engine.model());
        let args = RunArgs {
            max_tokens: Some(7),
            temperature: Some(0.5),
            seed: Some(3),
            decoding: Some(" {\"strategy\": \"ar\"}".into()),
            ..RunArgs::default()
        };
        let given = request(args).unwrap();
        assert_eq!((given.max_tokens, given.sampling.temperature, given.sampling.seed), (Some(7), 0.5, 3));
        assert_eq!(given.decoding.strategy, Strategy::Ar);
        let preset = request(RunArgs { decoding: Some("fast".into()), ..RunArgs::default() }).unwrap();
        assert_eq!(preset.decoding.diffusion.preset, Some(Preset::Fast));
        assert_eq!((preset.max_tokens, preset.sampling.temperature, preset.frames), (None, 0.0, false));
        let error = request(RunArgs { decoding: Some("slow".into()), ..RunArgs::default() }).unwrap_err();
        assert!(error.to_string().contains("`decoding`"), "{error}");
        let bad = RunArgs { decoding: Some("{".into()), ..RunArgs::default() };
        assert!(matches!(Conversation::new(&bad, &engine, false), Err(OptionError::Decoding(_))));
    }
}
