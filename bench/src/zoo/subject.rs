//! A built-in model, loaded.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use anyhow::{Context, ensure};
use engine::{Activations, Engine, EngineSettings, LoadOptions, ModelSource, Quantize, TokenId};
use sha2::{Digest, Sha256};
use zoo::tasks::Problem;

/// Requests that may wait: all that a part asks at once.
const MAX_QUEUE: usize = 1 << 19;

/// How models are loaded and run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) quantize: Option<Quantize>,
    pub(super) activations: Activations,
    pub(super) threads: Option<usize>,
    /// Requests at a time.
    pub(super) batch: usize,
}

/// A running model.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) engine: Engine,
    /// SHA-256 of its files by name.
    pub(super) hashes: BTreeMap<String, String>,
}

impl Subject {
    pub(super) fn load(models: &Path, name: &'static str, settings: Settings) -> anyhow::Result<Self> {
        let folder = models.join(name);
        ensure!(
            folder.is_dir(),
            "there is no folder `{name}` in {}; `--only` can leave out the parts that need it",
            models.display()
        );
        let began = Instant::now();
        let options =
            LoadOptions { quantize: settings.quantize, activations: settings.activations, ..LoadOptions::default() };
        let model = engine::load(&ModelSource::Folder(folder.clone()), &options)?;
        let limits = EngineSettings {
            threads: settings.threads,
            max_concurrent: settings.batch,
            max_queue: MAX_QUEUE,
            ..EngineSettings::default()
        };
        let engine = Engine::start(model, limits)?;
        ensure!(engine.model().chat_template.is_some(), "`{name}` has no chat template");
        eprintln!("{name}: loaded in {:.1} s", began.elapsed().as_secs_f64());
        Ok(Self { name, engine, hashes: hashes(&folder)? })
    }

    /// The dialogue of a problem as the model's own template writes it, up to where the model goes on.
    pub(super) fn prompt(&self, problem: &Problem) -> anyhow::Result<Vec<TokenId>> {
        let info = self.engine.model();
        let template = info.chat_template.as_ref().context("no chat template")?;
        let messages = serde_json::to_value(&problem.messages)?;
        let text = template.render(&messages, None, true, &serde_json::Map::new())?;
        Ok(info.tokenizer.encode_chat(&text)?)
    }
}

/// SHA-256 of every file that says what the model is.
fn hashes(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_wanted = path.extension().is_some_and(|ext| ["safetensors", "json", "jinja"].iter().any(|e| ext == *e));
        if let Some(name) = path.file_name().filter(|_| is_wanted) {
            let digest = Sha256::digest(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
            let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            hashes.insert(name.to_string_lossy().into_owned(), hex);
        }
    }
    Ok(hashes)
}
