//! Checkpoints of a run: `state.safetensors` with weights and optimiser, `run.json` with the rest.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{Device, Tensor, safetensors};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::TrainSettings;
use crate::{Net, Optimizer, ZooError};

/// Everything but tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Run<S> {
    recipe: String,
    settings: TrainSettings,
    step: usize,
    states: Vec<S>,
}

/// File of the tensors.
const STATE: &str = "state.safetensors";
/// File of everything else.
const RUN: &str = "run.json";
/// Prefix of the weights among the tensors.
const WEIGHT: &str = "weight.";

/// Writes a checkpoint after `step` steps; the one before it stays until this one is whole.
pub(super) fn save<S: Serialize>(
    folder: &Path,
    recipe: &str,
    settings: &TrainSettings,
    net: &Net,
    optimizer: &Optimizer,
    states: &[S],
    step: usize,
) -> Result<(), ZooError> {
    let weights = net.parameters().iter().map(|(name, var)| (format!("{WEIGHT}{name}"), var.as_tensor().clone()));
    let tensors = weights.chain(optimizer.state()).collect();
    let part = folder.join("state.part");
    safetensors::save(&tensors, &part)?;
    let run = serde_json::json!({ "recipe": recipe, "settings": settings, "step": step, "states": states });
    let run_part = folder.join("run.part");
    fs::write(&run_part, run.to_string()).map_err(|source| ZooError::Io { path: run_part.clone(), source })?;
    for (from, to) in [(part, STATE), (run_part, RUN)] {
        let to = folder.join(to);
        fs::rename(from, &to).map_err(|source| ZooError::Io { path: to, source })?;
    }
    Ok(())
}

type Saved<S> = (Net, Optimizer, Vec<S>, usize);

/// The checkpoint of a folder, if it has one. One of another recipe or with other settings is an error.
pub(super) fn load<S: DeserializeOwned>(
    folder: &Path,
    recipe: &str,
    settings: &TrainSettings,
) -> Result<Option<Saved<S>>, ZooError> {
    let path = folder.join(RUN);
    if !path.exists() {
        return Ok(None);
    }
    let bad = |reason: String| ZooError::BadFile { path: path.clone(), reason };
    let text = fs::read_to_string(&path).map_err(|source| ZooError::Io { path: path.clone(), source })?;
    let run: Run<S> = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if run.recipe != recipe || run.settings != *settings {
        return Err(bad(format!(
            "the folder holds a run of recipe {} with other settings than asked for; continue it with its own \
             ({:?}), or choose another folder",
            run.recipe, run.settings
        )));
    }
    let net = Net::from_weights(settings.shape.clone(), &load_weights(folder)?)?;
    let state = safetensors::load(folder.join(STATE), &Device::Cpu)?.into_iter().collect();
    Ok(Some((net, Optimizer::from_state(&state, run.step), run.states, run.step)))
}

/// The weights of a run's checkpoint, by name.
pub fn load_weights(folder: &Path) -> Result<BTreeMap<String, Tensor>, ZooError> {
    let tensors = safetensors::load(folder.join(STATE), &Device::Cpu)?.into_iter();
    Ok(tensors.filter_map(|(name, tensor)| Some((name.strip_prefix(WEIGHT)?.to_owned(), tensor))).collect())
}

/// Whether a run has come to its last step.
pub fn finished(folder: &Path) -> Result<bool, ZooError> {
    let path = folder.join(RUN);
    if !path.exists() {
        return Ok(false);
    }
    let text = fs::read_to_string(&path).map_err(|source| ZooError::Io { path: path.clone(), source })?;
    let run: Run<serde_json::Value> =
        serde_json::from_str(&text).map_err(|error| ZooError::BadFile { path, reason: error.to_string() })?;
    Ok(run.step == run.settings.steps)
}
