//! The built-in models in this process, on the processor or on a device.

use std::sync::Arc;

use anyhow::Context;
use engine::{
    DecodingOptions, Engine, EngineSettings, Event, Finish, Frame, LoadOptions, ModelInfo, ModelSource, Request,
    StopRules, TokenId,
};
use kernels::device::Device;
use models::source::load_on;
use zoo::tasks::{Split, Task};

/// Requests at a time.
const BATCH: usize = 4;

/// What a request came to.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) tokens: Vec<TokenId>,
    pub(super) frames: Vec<Frame>,
    pub(super) finish: Finish,
}

/// A built-in model with an engine; on the processor without a device.
pub(super) fn start(name: &str, device: Option<&Arc<dyn Device>>) -> anyhow::Result<Engine> {
    let source: ModelSource = name.parse()?;
    let options = LoadOptions::default();
    let model = match device {
        Some(device) => load_on(&source, &options, device)?,
        None => engine::load(&source, &options)?,
    };
    let settings = EngineSettings { max_concurrent: BATCH, ..EngineSettings::default() };
    Ok(Engine::start(model, settings)?)
}

/// Prompts of all tasks that the models were trained for, from the test split.
pub(super) fn prompts(info: &ModelInfo, count: usize) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let template = info.chat_template.as_ref().with_context(|| format!("{} has no chat template", info.id))?;
    let prompt = |index: usize| {
        let problem = Task::ALL[index % Task::ALL.len()].problem(Split::Test, 0, (index / Task::ALL.len()) as u64);
        let messages = serde_json::to_value(&problem.messages)?;
        let text = template.render(&messages, None, true, &serde_json::Map::new())?;
        Ok(info.tokenizer.encode_chat(&text)?)
    };
    (0..count).map(prompt).collect()
}

/// Greedy completions of all prompts, in company.
pub(super) fn complete(
    engine: &Engine,
    prompts: &[Vec<TokenId>],
    decoding: &DecodingOptions,
    (max_tokens, ignore_eos): (usize, bool),
) -> anyhow::Result<Vec<Output>> {
    let request = |prompt: &Vec<TokenId>| Request {
        max_tokens: Some(max_tokens),
        decoding: decoding.clone(),
        stop: StopRules { ignore_eos, ..StopRules::default() },
        frames: engine.model().mask_id.is_some(),
        ..Request::new(prompt.clone())
    };
    let streams = engine.submit(prompts.iter().map(request).collect())?;
    let read = |mut stream: engine::EventStream| {
        let (mut tokens, mut frames) = (Vec::new(), Vec::new());
        loop {
            match stream.next_blocking().context("the engine stopped")? {
                Event::Prompt(_) => {}
                Event::Frame(frame) => frames.push(frame),
                Event::Committed(commit) => tokens.extend(commit.tokens.iter().map(|record| record.id)),
                Event::Finished(finish) => return Ok(Output { tokens, frames, finish }),
                Event::Failed(error) => return Err(error.into()),
            }
        }
    };
    streams.into_iter().map(read).collect()
}
