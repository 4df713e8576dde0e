//! What an engine tells the monitor.

use std::sync::Arc;

use super::{
    core::{Arithmetic, Positions},
    monitor::{EnergyMonitor, Shared},
    report::Ticket,
    steps::Share,
};

/// Work that runs; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
    id: u64,
}

impl Running {
    /// `None` if there is no sensor that could tell.
    pub(crate) fn begin(shared: &Arc<Shared>, accelerators: &[usize], shares: &[Share]) -> Option<Self> {
        let (id, wakes) = {
            let mut core = shared.core();
            if core.tracks.is_empty() {
                return None;
            }
            // Taken under the lock, so that no reading of a later time has been divided before.
            core.begin_step(shared.clock.now(), accelerators, shares)
        };
        if wakes {
            shared.waker.hurry();
        }
        Some(Self { shared: shared.clone(), id })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        core.end_step(self.shared.clock.now(), self.id);
    }
}

/// The meter of one engine.
#[derive(Debug, Clone)]
pub(crate) struct EngineMeter {
    shared: Arc<Shared>,
    model: usize,
    arithmetic: Arithmetic,
    /// The accelerator that its passes run on, if there is a sensor for it.
    accelerator: Option<usize>,
}

impl EngineMeter {
    /// For the model that clients call `name`, whose passes run on the GPU with this UUID, or on the processor.
    pub(crate) fn new(monitor: &EnergyMonitor, name: &str, arithmetic: Arithmetic, gpu: Option<&str>) -> Self {
        let (model, accelerator) = {
            let mut core = monitor.0.core();
            (core.add_model(name), gpu.and_then(|uuid| core.accelerator(uuid)))
        };
        Self { shared: monitor.0.clone(), model, arithmetic, accelerator }
    }

    /// A request gets its slot.
    pub(crate) fn open(&self) -> Ticket {
        self.shared.core().open(self.model)
    }

    /// A pass begins that computes these positions.
    pub(crate) fn begin(&self, positions: impl Iterator<Item = Positions>) -> Option<Running> {
        let policy = {
            let core = self.shared.core();
            if core.tracks.is_empty() {
                return None;
            }
            core.policy
        };
        let shares: Vec<Share> = positions.flat_map(|positions| positions.shares(policy, self.arithmetic)).collect();
        Running::begin(&self.shared, self.accelerator.as_slice(), &shares)
    }

    /// A request gives its slot back.
    pub(crate) fn close(&self, ticket: Ticket, prompt_tokens: usize, completion_tokens: usize) {
        {
            let mut core = self.shared.core();
            core.close(self.shared.clock.now(), ticket, prompt_tokens as u64, completion_tokens as u64);
            if core.tracks.is_empty() {
                return;
            }
        }
        self.shared.waker.hurry();
    }
}
