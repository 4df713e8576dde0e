//! The thread that reads the sensors.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use super::{
    clock::thread_time,
    host::HostProbe,
    monitor::Shared,
    types::{EnergyProvider, Nanos},
};

/// Shortest time between two readings of a domain, however many requests end.
const SPACING: Duration = Duration::from_millis(2);
/// Longest time between two signs of life.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Difference of the clocks from which the machine counts as having slept.
const SLEPT: Duration = Duration::from_millis(100);
/// Time between two looks at what else the machine does.
const LOOK: Duration = Duration::from_secs(1);

/// How the sampler is woken.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    call: Mutex<Call>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Call {
    hurry: bool,
    stop: bool,
}

impl Waker {
    /// Asks for a reading at once.
    pub(crate) fn hurry(&self) {
        self.call.lock().unwrap_or_else(PoisonError::into_inner).hurry = true;
        self.changed.notify_one();
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.call.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_one();
    }

    fn wait(&self, longest: Duration) -> Call {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |call: &mut Call| *call == Call::default();
        let (mut call, _) =
            self.changed.wait_timeout_while(call, longest, idle).unwrap_or_else(PoisonError::into_inner);
        let taken = *call;
        call.hurry = false;
        taken
    }
}

/// Owns the providers.
pub(crate) struct Sampler {
    shared: Weak<Shared>,
    providers: Vec<Box<dyn EnergyProvider>>,
    /// For each track its provider and its id.
    sources: Vec<(usize, String)>,
    last_read: Vec<Option<Nanos>>,
    suspended: Duration,
    host: HostProbe,
    last_look: Option<Nanos>,
    /// A reading that was asked for came too soon after one and is still to be taken.
    owed: bool,
}

impl fmt::Debug for Sampler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sampler").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl Sampler {
    /// `sources` has the provider and the id of each track.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        providers: Vec<Box<dyn EnergyProvider>>,
        sources: Vec<(usize, String)>,
        host: HostProbe,
    ) -> Self {
        let last_read = vec![None; sources.len()];
        let suspended = shared.clock.suspended();
        Self {
            shared: Arc::downgrade(shared),
            providers,
            sources,
            last_read,
            suspended,
            host,
            last_look: None,
            owed: false,
        }
    }

    /// Reads all that is due, or everything if `hurry`. How long nothing more will be; `None` if nobody listens any more.
    pub(crate) fn tick(&mut self, hurry: bool) -> Option<Duration> {
        let shared = self.shared.upgrade()?;
        let suspended = shared.clock.suspended();
        if suspended.saturating_sub(self.suspended) > SLEPT {
            shared.core().tracks.iter_mut().for_each(super::track::Track::forget);
        }
        self.suspended = suspended;
        let hurry = hurry || std::mem::take(&mut self.owed);
        for (index, (provider, id)) in self.sources.iter().enumerate() {
            let now = shared.clock.now();
            let period = if hurry { SPACING } else { shared.core().period(index, now) };
            if self.last_read[index].is_some_and(|last| now.since(last) < period) {
                self.owed |= hurry;
                continue;
            }
            let reading = self.providers[*provider].read(id);
            // The value is from some moment of the call.
            let at = Nanos(u64::midpoint(now.0, shared.clock.now().0));
            self.last_read[index] = Some(at);
            shared.core().read(index, at, reading);
        }
        let now = shared.clock.now();
        self.look(&shared, now);
        let wait = {
            let mut core = shared.core();
            core.last_tick = now;
            if let Some(time) = thread_time() {
                core.sampler_cpu = time;
            }
            let due = |(index, last): (usize, &Option<Nanos>)| {
                core.period(index, now).saturating_sub(last.map_or(Duration::MAX, |last| now.since(last)))
            };
            self.last_read.iter().enumerate().map(due).min().unwrap_or(HEARTBEAT)
        };
        shared.settled.notify_waiters();
        Some(wait.min(if self.owed { SPACING } else { HEARTBEAT }))
    }

    /// Sees what else happens on the machine.
    fn look(&mut self, shared: &Shared, now: Nanos) {
        if self.last_look.is_some_and(|last| now.since(last) < LOOK) {
            return;
        }
        self.last_look = Some(now);
        let foreign = self.sources.iter().map(|(provider, id)| self.providers[*provider].foreign_processes(id));
        let foreign: Vec<Option<usize>> = foreign.collect();
        let (cpu_share, power_supply) = (self.host.cpu_share(), self.host.power_supply());
        let mut core = shared.core();
        for (track, foreign) in core.tracks.iter_mut().zip(foreign) {
            track.foreign_processes = foreign;
        }
        // While little runs there is no share; the last one still tells who else was there.
        core.cpu_share = cpu_share.or(core.cpu_share);
        core.power_supply = power_supply;
    }

    /// Starts the thread.
    pub(crate) fn spawn(mut self, waker: Arc<Waker>) -> std::io::Result<()> {
        let run = move || {
            let mut hurry = false;
            while let Some(longest) = self.tick(hurry) {
                let call = waker.wait(longest);
                if call.stop {
                    return;
                }
                hurry = call.hurry;
            }
        };
        thread::Builder::new().name("leapfrog-energy".into()).spawn(move || {
            // A sensor's library may fail in any way: the server goes on, and what is known of energy grows stale.
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                tracing::error!("the thread that reads the energy sensors ended in a bug; energy is unavailable");
            }
        })?;
        Ok(())
    }
}
