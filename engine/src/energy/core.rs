//! All state of metering, behind one lock: readings and steps go in, accounts come out. No clock and no sensor is touched
//! here, so the same calls give the same accounts.

use std::{collections::BTreeSet, time::Duration};

use super::{
    attribution::{Division, Interval, divide},
    baseline::QUIET,
    counts::Counts,
    evaluations::Evaluations,
    monitor::SystemCause,
    report::Ticket,
    requests::Requests,
    settings::{Attribution, EnergySettings},
    steps::{Account, Phase, Share, StepLog},
    track::{Outcome, Track},
    types::{Basis, Missing, Nanos, Rail, Raw, Unavailable},
};

/// How long readings stay frequent after the last step.
const LINGER: Duration = Duration::from_secs(2);
/// Time between readings without work.
const IDLE_PERIOD: Duration = Duration::from_secs(1);
/// Silence of the sampler after which its values are not believed.
const STALE: Duration = Duration::from_secs(2);

/// What a model has used.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// Microjoules by domain and phase.
    pub(crate) used_uj: Vec<[u64; 2]>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) requests: u64,
}

/// The state.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) basis: Basis,
    pub(crate) policy: Attribution,
    /// Time between readings that is asked for.
    pub(crate) interval: Duration,
    retention: Duration,
    pub(crate) tracks: Vec<Track>,
    pub(crate) missing: Vec<Missing>,
    /// Why there is nothing at all.
    pub(crate) nothing: Unavailable,
    pub(crate) models: Vec<Model>,
    pub(crate) requests: Requests,
    pub(crate) counts: Counts,
    pub(crate) evaluations: Evaluations,
    steps: StepLog,
    /// Accelerators that steps have run on.
    accelerators: BTreeSet<usize>,
    /// End of the last step.
    last_step: Option<Nanos>,
    /// When the sampler last came by.
    pub(crate) last_tick: Nanos,
    pub(crate) sampler_cpu: Duration,
    pub(crate) cpu_share: Option<f64>,
    pub(crate) power_supply: Option<&'static str>,
}

impl Core {
    /// `nothing` says why there are no tracks, if there are none.
    pub(crate) fn new(
        settings: &EnergySettings,
        basis: Basis,
        tracks: Vec<Track>,
        missing: Vec<Missing>,
        nothing: Unavailable,
    ) -> Self {
        Self {
            basis,
            policy: settings.attribution,
            interval: settings.interval,
            retention: settings.retention,
            tracks,
            missing,
            nothing,
            models: Vec::new(),
            requests: Requests::default(),
            counts: Counts::new(),
            evaluations: Evaluations::default(),
            steps: StepLog::default(),
            accelerators: BTreeSet::new(),
            last_step: None,
            last_tick: Nanos(0),
            sampler_cpu: Duration::ZERO,
            cpu_share: None,
            power_supply: None,
        }
    }

    /// A model begins to serve; its index. One that has served before goes on with its sums.
    pub(crate) fn add_model(&mut self, name: &str) -> usize {
        if let Some(index) = self.models.iter().position(|model| model.name == name) {
            return index;
        }
        let used_uj = vec![[0; 2]; self.tracks.len()];
        self.models.push(Model { name: name.into(), used_uj, prompt_tokens: 0, completion_tokens: 0, requests: 0 });
        self.models.len() - 1
    }

    /// The index of the accelerator with this UUID, as NVIDIA's driver spells it.
    pub(crate) fn accelerator(&self, uuid: &str) -> Option<usize> {
        let is_it = |track: &&Track| track.domain.id.strip_prefix("nvml:") == Some(uuid);
        match self.tracks.iter().find(is_it)?.domain.rail {
            Rail::Accelerator(index) => Some(index),
            Rail::Host => None,
        }
    }

    /// Whether readings should be frequent.
    pub(crate) fn is_busy(&self, now: Nanos) -> bool {
        self.steps.is_busy()
            || self.requests.any_settles()
            || self.last_step.is_some_and(|last| now.since(last) < LINGER)
    }

    /// Time between two readings of a track now.
    pub(crate) fn period(&self, track: usize, now: Nanos) -> Duration {
        if !self.is_busy(now) {
            return IDLE_PERIOD;
        }
        self.tracks[track].busy_period(self.interval)
    }

    /// Whether the sampler has been silent for too long.
    pub(crate) fn is_stale(&self, now: Nanos) -> bool {
        !self.tracks.is_empty() && now.since(self.last_tick) > STALE
    }

    /// A step begins now. Its id, and whether the sampler should look at once.
    pub(crate) fn begin_step(&mut self, now: Nanos, accelerators: &[usize], shares: &[Share]) -> (u64, bool) {
        self.accelerators.extend(accelerators);
        let wakes = !self.is_busy(now);
        let (id, forgotten) = self.steps.begin(now, accelerators, shares);
        if forgotten.is_some() {
            // What the meters say next includes steps that nobody remembers.
            self.tracks.iter_mut().for_each(Track::forget);
        }
        let tickets = self.steps.steps().last().map_or_else(Vec::new, |step| step.tickets());
        self.requests.step_began(&tickets, now);
        (id, wakes)
    }

    /// The step ends now.
    pub(crate) fn end_step(&mut self, now: Nanos, id: u64) {
        let Some(step) = self.steps.end(id, now) else { return };
        let (tickets, began) = (step.tickets(), step.begin);
        self.requests.step_ended(&tickets, began, now);
        self.last_step = Some(now);
        if self.tracks.is_empty() {
            self.steps.forget(now);
        }
    }

    /// A request of a model gets its slot.
    pub(crate) fn open(&mut self, model: usize) -> Ticket {
        self.requests.open(model, self.tracks.len())
    }

    /// It gives the slot back.
    pub(crate) fn close(&mut self, now: Nanos, ticket: Ticket, prompt_tokens: u64, completion_tokens: u64) {
        self.requests.close(ticket, now, prompt_tokens, completion_tokens);
        if let Some(account) = self.requests.get_mut(ticket) {
            let model = &mut self.models[account.model];
            model.requests += 1;
            model.prompt_tokens += prompt_tokens;
            model.completion_tokens += completion_tokens;
        }
        if self.is_stale(now) {
            // Nobody will come to read, for this one or for those that wait.
            self.requests.fail_ended(Unavailable::Stale);
            self.settle(now, Nanos(u64::MAX));
        } else {
            self.settle(now, self.settled());
        }
    }

    /// Takes a reading of a track.
    pub(crate) fn read(&mut self, index: usize, at: Nanos, reading: Result<Raw, Unavailable>) {
        let period = self.period(index, at);
        if let Outcome::Closed(energy_uj) = self.tracks[index].read(at, reading, period) {
            self.advance(index, at, energy_uj);
        }
    }

    /// The track is known up to `to`: so many microjoules, or a gap.
    fn advance(&mut self, index: usize, to: Nanos, energy_uj: Option<u64>) {
        let track = &mut self.tracks[index];
        let from = std::mem::replace(&mut track.resolved, to);
        let before_uj = track.measured_uj;
        match energy_uj {
            None => {
                track.gap += to.since(from);
                track.baseline.disturb();
                track.watts = None;
            }
            Some(energy_uj) => {
                let idle_watts = track.baseline.watts();
                let interval = Interval { from, to, energy_uj };
                let division = divide(interval, &track.domain.rail, idle_watts, self.steps.steps());
                track.measured_uj += energy_uj;
                track.watts = Some(energy_uj as f64 * 1e-6 / to.since(from).as_secs_f64()).filter(|w| w.is_finite());
                self.charge(index, &division);
                self.watch_idle(interval, index);
            }
        }
        self.requests.resolve(index, from, to, before_uj, energy_uj);
        let settled = self.settled();
        self.steps.forget(self.tracks.iter().map(|track| track.resolved).min().unwrap_or(settled));
        self.settle(to, settled);
    }

    fn charge(&mut self, index: usize, division: &Division) {
        let track = &mut self.tracks[index];
        track.system.idle += division.idle_uj;
        for part in &division.parts {
            match part.account {
                Account::System(cause) => track.system.charge(cause, part.energy_uj),
                Account::Request(ticket, phase) => match self.requests.get(ticket) {
                    Some(account) => {
                        self.models[account.model].used_uj[index][phase as usize] += part.energy_uj;
                        self.requests.charge(ticket, index, phase, part.energy_uj, part.seconds);
                    }
                    // A slow domain outside the basis may be read after the request is forgotten.
                    None => track.system.charge(SystemCause::Other, part.energy_uj),
                },
            }
        }
    }

    /// Gives a closed interval to the measurement of idle power, if nothing ran in it or shortly before.
    fn watch_idle(&mut self, Interval { from, to, energy_uj }: Interval, index: usize) {
        let rests = !self.steps.is_busy()
            && !self.requests.any_runs()
            && !self.models.is_empty()
            && self.last_step.is_some_and(|last| from.since(last) >= QUIET && from > last);
        let baseline = &mut self.tracks[index].baseline;
        if rests {
            baseline.observe(from, to, energy_uj);
        } else {
            baseline.disturb();
        }
    }

    /// Up to when all tracks of the basis are known.
    fn settled(&self) -> Nanos {
        let resolved = self.in_basis().map(|track| track.resolved);
        resolved.min().unwrap_or(Nanos(u64::MAX))
    }

    /// The tracks of the basis.
    pub(crate) fn in_basis(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter().filter(|track| track.domain.bases.contains(&self.basis))
    }

    /// Whether all rails of the basis can be read, or why not.
    pub(crate) fn basis_status(&self) -> Result<(), Unavailable> {
        if let Some(missing) = self.missing.iter().find(|missing| missing.bases.contains(&self.basis)) {
            return Err(missing.reason);
        }
        let mut tracks = self.in_basis().peekable();
        if tracks.peek().is_none() {
            return Err(self.nothing);
        }
        if self.lacks_work() {
            return Err(Unavailable::NotSupported);
        }
        tracks.try_for_each(|track| track.state)
    }

    /// Whether the basis is of an accelerator on which no pass has run: nothing but zero could be said of requests.
    pub(crate) fn lacks_work(&self) -> bool {
        let is_unused = |track: &Track| match track.domain.rail {
            Rail::Host => false,
            Rail::Accelerator(index) => !self.accelerators.contains(&index),
        };
        matches!(self.basis, Basis::Gpu | Basis::GpuCpu) && self.in_basis().any(is_unused)
    }

    fn settle(&mut self, now: Nanos, settled: Nanos) {
        let measured: Vec<u64> = self.tracks.iter().map(|track| track.measured_uj).collect();
        for ticket in self.requests.settle(settled, &measured) {
            self.finished(now, ticket);
        }
        self.requests.forget(Nanos(now.0.saturating_sub(self.retention.as_nanos() as u64)));
    }

    /// The figures of a request are final: they are counted.
    fn finished(&mut self, now: Nanos, ticket: Ticket) {
        let Some(account) = self.requests.get(ticket) else { return };
        let Some(ended) = account.ended else { return };
        let model = self.models[account.model].name.clone();
        let Some(energy) = self.request(&[ticket], now) else { return };
        self.counts.observe(&model, &energy, ended.prompt_tokens, ended.completion_tokens);
        let mut evaluations = std::mem::take(&mut self.evaluations);
        evaluations.settle(|tickets| self.request(tickets, now));
        self.evaluations = evaluations;
    }

    /// Sums by domain: measured, and given to models and to the system. They are equal.
    #[cfg(test)]
    pub(crate) fn sums(&self) -> Vec<(u64, u64)> {
        let given = |index: usize, track: &Track| {
            self.models.iter().map(|model| model.used_uj[index].iter().sum::<u64>()).sum::<u64>() + track.system.sum()
        };
        self.tracks.iter().enumerate().map(|(index, track)| (track.measured_uj, given(index, track))).collect()
    }
}

/// What a step computes for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) ticket: Ticket,
    /// First position.
    pub(crate) start: usize,
    /// Number of positions.
    pub(crate) len: usize,
    /// How many of them are of the prompt and computed for the first time; they come first or, on a canvas, are the
    /// prompt.
    pub(crate) prefill: usize,
    /// Whether each position sees all others instead of those before it.
    pub(crate) sees_all: bool,
}

/// What the rule `flops` knows of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    /// Parameters that a position goes through.
    pub(crate) params: u64,
    /// Layers times the width of attention.
    pub(crate) attention: u64,
}

impl Positions {
    /// Shares by phase.
    pub(crate) fn shares(self, policy: Attribution, arithmetic: Arithmetic) -> impl Iterator<Item = Share> {
        let Self { ticket, start, len, prefill, sees_all } = self;
        let weight = move |from: usize, len: usize| {
            let (from, len) = (from as u64, len as u64);
            match policy {
                Attribution::Tokens => len,
                // One for each request, whatever its phases.
                Attribution::Equal => ((len << 20) / (self.len as u64).max(1)).max(1),
                Attribution::Flops => {
                    let whole = (start as u64).saturating_add(self.len as u64);
                    // Position p sees p + 1 positions, or all of them.
                    let seen = if sees_all { len * whole } else { len * (from + 1) + len * len.saturating_sub(1) / 2 };
                    let arithmetic =
                        [arithmetic.params.saturating_mul(2 * len), (4 * arithmetic.attention).saturating_mul(seen)];
                    arithmetic[0].saturating_add(arithmetic[1])
                }
            }
        };
        let parts = [(Phase::Prefill, start, prefill), (Phase::Decode, start + prefill, len - prefill)];
        parts.into_iter().filter(|(.., len)| *len > 0).map(move |(phase, from, len)| Share {
            account: Account::Request(ticket, phase),
            weight: weight(from, len),
        })
    }
}

#[cfg(test)]
mod tests;
