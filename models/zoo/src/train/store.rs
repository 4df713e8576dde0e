//! Checkpoints of a run: `state-STEP.safetensors` with weights and optimiser, `run.json` with the step and the rest.

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

/// File of the tensors after `step` steps.
fn state_file(step: usize) -> String {
    format!("state-{step}.safetensors")
}

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
    safetensors::save(&tensors, folder.join(state_file(step)))?;
    let run = serde_json::json!({ "recipe": recipe, "settings": settings, "step": step, "states": states });
    let (part, path) = (folder.join("run.part"), folder.join(RUN));
    let before = read_run::<serde_json::Value>(folder)?.map(|run| run.step).filter(|before| *before != step);
    fs::write(&part, run.to_string()).map_err(|source| ZooError::Io { path: part.clone(), source })?;
    // From here on the new checkpoint counts.
    fs::rename(&part, &path).map_err(|source| ZooError::Io { path, source })?;
    if let Some(before) = before {
        let old = folder.join(state_file(before));
        fs::remove_file(&old).map_err(|source| ZooError::Io { path: old, source })?;
    }
    Ok(())
}

/// What `run.json` of a folder holds, if there is one.
fn read_run<S: DeserializeOwned>(folder: &Path) -> Result<Option<Run<S>>, ZooError> {
    let path = folder.join(RUN);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(|source| ZooError::Io { path: path.clone(), source })?;
    serde_json::from_str(&text).map(Some).map_err(|error| ZooError::BadFile { path, reason: error.to_string() })
}

type Saved<S> = (Net, Optimizer, Vec<S>, usize);

/// The checkpoint of a folder, if it has one. One of another recipe or with other settings is an error.
pub(super) fn load<S: DeserializeOwned>(
    folder: &Path,
    recipe: &str,
    settings: &TrainSettings,
) -> Result<Option<Saved<S>>, ZooError> {
    let Some(run) = read_run::<S>(folder)? else { return Ok(None) };
    let bad = |reason: String| ZooError::BadFile { path: folder.join(RUN), reason };
    if run.recipe != recipe || run.settings != *settings {
        return Err(bad(format!(
            "the folder holds a run of recipe {} with other settings than asked for; continue it with its own \
             ({:?}), or choose another folder",
            run.recipe, run.settings
        )));
    }
    let tensors = safetensors::load(folder.join(state_file(run.step)), &Device::Cpu)?.into_iter().collect();
    let net = Net::from_weights(settings.shape.clone(), &weights(&tensors))?;
    Ok(Some((net, Optimizer::from_state(&tensors, run.step), run.states, run.step)))
}

/// The weights among the tensors of a checkpoint.
fn weights(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let named = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(WEIGHT)?, tensor)));
    named.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

/// The weights of a run's checkpoint, by name.
pub fn load_weights(folder: &Path) -> Result<BTreeMap<String, Tensor>, ZooError> {
    let run = read_run::<serde_json::Value>(folder)?;
    let run =
        run.ok_or_else(|| ZooError::BadFile { path: folder.join(RUN), reason: "there is no such file".into() })?;
    Ok(weights(&safetensors::load(folder.join(state_file(run.step)), &Device::Cpu)?.into_iter().collect()))
}

/// Whether a run has come to its last step.
pub fn finished(folder: &Path) -> Result<bool, ZooError> {
    Ok(read_run::<serde_json::Value>(folder)?.is_some_and(|run| run.step == run.settings.steps))
}
