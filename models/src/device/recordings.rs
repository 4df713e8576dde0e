//! Graphs of passes, by the shape of their batch.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use kernels::device::{Device, Launch, Recording, run};

use crate::ModelError;

/// Graphs that are kept. Decoding has few shapes; those of prompts come once and are never recorded.
const MOST_RECORDINGS: usize = 128;
/// Shapes that are remembered as seen.
const MOST_SEEN: usize = 4096;

/// Runs launches one by one when a shape is new, and as a graph from its second time on: making a graph costs more than
/// the launches that it saves.
#[derive(Debug)]
pub(crate) struct Recordings<K> {
    device: Arc<dyn Device>,
    /// With the number of the use that was the last.
    kept: HashMap<K, (Recording, u64)>,
    seen: HashMap<K, u64>,
    num_uses: u64,
    /// Whether the device has refused to record.
    is_refused: bool,
}

impl<K: Copy + Eq + Hash> Recordings<K> {
    pub(crate) fn new(device: &Arc<dyn Device>) -> Self {
        Self { device: Arc::clone(device), kept: HashMap::new(), seen: HashMap::new(), num_uses: 0, is_refused: false }
    }

    /// Gives the launches of a shape to the device; `launches` makes them where no graph is there.
    pub(crate) fn run(
        &mut self,
        shape: K,
        launches: impl FnOnce() -> Result<Vec<Launch>, ModelError>,
    ) -> Result<(), ModelError> {
        self.num_uses += 1;
        if let Some((recording, last)) = self.kept.get_mut(&shape) {
            *last = self.num_uses;
            return Ok(recording.replay()?);
        }
        let launches = launches()?;
        if self.seen.insert(shape, self.num_uses).is_none() {
            forget_oldest(&mut self.seen, MOST_SEEN, |last| *last);
            return Ok(run(&*self.device, &launches)?);
        }
        if self.is_refused {
            return Ok(run(&*self.device, &launches)?);
        }
        match Recording::new(&self.device, launches.clone()) {
            Ok(recording) => {
                recording.replay()?;
                self.kept.insert(shape, (recording, self.num_uses));
                if let Some(oldest) = forget_oldest(&mut self.kept, MOST_RECORDINGS, |(_, last)| *last) {
                    // It may come as rarely as one that is new.
                    self.seen.remove(&oldest);
                }
                Ok(())
            }
            Err(error) => {
                // Slower, but right; a device that is broken refuses the launches too.
                tracing::warn!(%error, "passes are not recorded as graphs any more: each launch is given by itself");
                self.is_refused = true;
                Ok(run(&*self.device, &launches)?)
            }
        }
    }
}

/// Drops the entry that was used longest ago, if there are more than `most`.
fn forget_oldest<K: Copy + Eq + Hash, V>(
    entries: &mut HashMap<K, V>,
    most: usize,
    last: impl Fn(&V) -> u64,
) -> Option<K> {
    if entries.len() <= most {
        return None;
    }
    let oldest = entries.iter().min_by_key(|(_, value)| last(value)).map(|(key, _)| *key)?;
    entries.remove(&oldest);
    Some(oldest)
}
