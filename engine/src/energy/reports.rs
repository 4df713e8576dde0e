//! What the state says to those who ask.

use std::time::Duration;

use super::{
    core::Core,
    report::{Accounts, DomainEnergy, DomainState, ModelEnergy, RequestEnergy, Snapshot, Status, Ticket},
    requests::Account,
    track::Track,
    types::{Basis, Nanos, Unavailable},
};

/// Share of a request's time that must be measured for its energy to count as measured, and as known at all.
const MEASURED: f64 = 0.95;
const KNOWN: f64 = 0.5;
/// Share of the busy CPU time from which this process counts as the only one.
const ALONE: f64 = 0.9;

impl Core {
    /// What the requests behind `tickets` have used; `None` if none of them is known.
    pub(crate) fn request(&self, tickets: &[Ticket], now: Nanos) -> Option<RequestEnergy> {
        let accounts: Vec<&Account> = tickets.iter().filter_map(|ticket| self.requests.get(*ticket)).collect();
        let first = accounts.first()?;
        let scheduled = accounts.iter().filter_map(|account| account.scheduled).min();
        // While one of them runs, none of the call is over.
        let finished: Option<Vec<Nanos>> = accounts.iter().map(|account| account.finished()).collect();
        let finished = finished.and_then(|all| all.into_iter().max());
        let is_final = accounts.iter().all(|account| account.is_final);
        let asked = Asked { core: self, accounts: &accounts, now, is_final };
        let basis: Vec<usize> =
            (0..self.tracks.len()).filter(|index| self.tracks[*index].domain.bases.contains(&self.basis)).collect();
        let coverage = basis.iter().map(|index| asked.coverage(*index)).reduce(f64::min);
        let status = match (accounts.len() == tickets.len(), first.failed) {
            (false, _) => Status::Unavailable(Unavailable::Stale),
            (true, Some(reason)) => Status::Unavailable(reason),
            (true, None) => self.status_of(&asked, &basis, coverage),
        };
        let known = !matches!(status, Status::Unavailable(_));
        let sum = |of: &dyn Fn(usize) -> u64| known.then(|| basis.iter().map(|index| of(*index)).sum());
        let idle_watts: Option<f64> = basis.iter().map(|index| self.tracks[*index].baseline.watts()).sum();
        let idle_watts = idle_watts.filter(|_| known);
        let net = |index: &usize| {
            let track = &self.tracks[*index];
            Some(asked.total(*index) as f64 * 1e-6 - track.baseline.watts()? * asked.seconds(*index))
        };
        let (seconds, weighted) =
            accounts.iter().fold((0.0, 0.0), |(s, w), account| (s + account.steps.0, w + account.steps.1));
        let active = finished.or(Some(now)).zip(scheduled).map_or(Duration::ZERO, |(end, begin)| end.since(begin));
        Some(RequestEnergy {
            status,
            is_final,
            basis: self.basis,
            energy_uj: sum(&|index| asked.total(index)),
            prefill_uj: sum(&|index| asked.phase(index, 0)),
            decode_uj: sum(&|index| asked.phase(index, 1)),
            net_joules: if known { basis.iter().map(net).sum() } else { None },
            window_joules: if known { basis.iter().map(|index| asked.window_joules(*index)).sum() } else { None },
            idle_watts,
            domains: self.domains_of(&asked),
            policy: self.policy.name(),
            mean_concurrency: (seconds > 0.0).then(|| weighted / seconds),
            max_concurrency: accounts.iter().map(|account| account.max_concurrency).max().unwrap_or(0),
            coverage,
            resolution_limited: basis.iter().any(|index| active < 2 * self.tracks[*index].resolution()),
            exclusive: self.is_exclusive(&basis).filter(|_| known),
            active,
        })
    }

    fn status_of(&self, asked: &Asked<'_>, basis: &[usize], coverage: Option<f64>) -> Status {
        if let Some(missing) = self.missing.iter().find(|missing| missing.bases.contains(&self.basis)) {
            return Status::Unavailable(missing.reason);
        }
        let Some(coverage) = coverage else { return Status::Unavailable(self.nothing) };
        if self.lacks_work() {
            return Status::Unavailable(Unavailable::NotSupported);
        }
        if let Some(reason) = basis.iter().find_map(|index| asked.unknown(*index)) {
            return Status::Unavailable(reason);
        }
        if coverage >= MEASURED { Status::Measured } else { Status::Partial }
    }

    fn domains_of(&self, asked: &Asked<'_>) -> Vec<DomainEnergy> {
        let wanted = |track: &Track| track.domain.exclusive || track.domain.bases.contains(&self.basis);
        let read = self.tracks.iter().enumerate().filter(|(_, track)| wanted(track)).map(|(index, track)| {
            let reason = asked.unknown(index);
            DomainEnergy {
                domain: track.domain.id.clone(),
                source: track.domain.source,
                method: reason.is_none().then(|| track.domain.class.name()),
                energy_uj: reason.is_none().then(|| asked.total(index)),
                prefill_uj: reason.is_none().then(|| asked.phase(index, 0)),
                decode_uj: reason.is_none().then(|| asked.phase(index, 1)),
                update_period: track.domain.update_period,
                reason,
            }
        });
        let missing = self.missing.iter().filter(|missing| missing.bases.contains(&self.basis));
        let missing = missing.map(|missing| DomainEnergy {
            domain: missing.domain.clone(),
            source: missing.source,
            method: None,
            energy_uj: None,
            prefill_uj: None,
            decode_uj: None,
            update_period: None,
            reason: Some(missing.reason),
        });
        read.chain(missing).collect()
    }

    /// Whether nothing else uses the rails, as far as can be told.
    fn is_exclusive(&self, basis: &[usize]) -> Option<bool> {
        if basis.iter().any(|index| self.tracks[*index].domain.shared) {
            return Some(false);
        }
        let alone = self.cpu_share.map(|share| share >= ALONE);
        let no_others = self.foreign_processes().map(|number| number == 0);
        match self.basis {
            Basis::Gpu => no_others,
            Basis::GpuCpu => match (alone, no_others) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Basis::Soc | Basis::Cpu | Basis::Platform | Basis::Battery => alone,
        }
    }

    /// Processes of others on the devices that are read, if any of them tells.
    fn foreign_processes(&self) -> Option<usize> {
        self.tracks.iter().filter_map(|track| track.foreign_processes).reduce(|sum, number| sum + number)
    }

    /// Everything.
    pub(crate) fn snapshot(&self, now: Nanos) -> Snapshot {
        let stale = self.is_stale(now);
        let state = |track: &Track| if stale { Err(Unavailable::Stale) } else { track.state };
        let domain = |track: &Track| DomainState {
            domain: track.domain.id.clone(),
            source: track.domain.source,
            class: Some(track.domain.class.name()),
            status: state(track),
            exclusive: track.domain.exclusive,
            in_basis: track.domain.bases.contains(&self.basis),
            energy_uj: (track.was_read && state(track).is_ok()).then_some(track.measured_uj),
            measured_ns: (track.was_read && state(track).is_ok()).then_some(track.resolved.0),
            watts: track.watts.filter(|_| state(track).is_ok()),
            idle_watts: track.baseline.watts(),
            idle_age: track.baseline.age(now),
            update_period: track.domain.update_period,
            wraps: track.wraps(),
            resets: track.resets(),
            gap: track.gap,
        };
        let missing = self.missing.iter().map(|missing| DomainState {
            domain: missing.domain.clone(),
            source: missing.source,
            class: None,
            status: Err(missing.reason),
            exclusive: false,
            in_basis: missing.bases.contains(&self.basis),
            energy_uj: None,
            measured_ns: None,
            watts: None,
            idle_watts: None,
            idle_age: None,
            update_period: None,
            wraps: 0,
            resets: 0,
            gap: Duration::ZERO,
        });
        let status = if stale { Err(Unavailable::Stale) } else { self.basis_status() };
        Snapshot {
            monotonic_ns: now.0,
            basis: self.basis,
            status,
            domains: self.tracks.iter().map(domain).chain(missing).collect(),
            accounts: self.accounts(),
            models: self.model_energies(status.is_ok()),
            cpu_share: self.cpu_share,
            foreign_gpu_processes: self.foreign_processes(),
            power_supply: self.power_supply,
        }
    }

    fn accounts(&self) -> Accounts {
        let mut accounts = Accounts::default();
        for (index, track) in self.tracks.iter().enumerate().filter(|(_, track)| track.domain.exclusive) {
            accounts.requests_uj += self.models.iter().flat_map(|model| model.used_uj[index]).sum::<u64>();
            accounts.idle_uj += track.system.idle;
            accounts.load_uj += track.system.load;
            accounts.warmup_uj += track.system.warmup;
            accounts.other_uj += track.system.other;
        }
        accounts
    }

    fn model_energies(&self, available: bool) -> Vec<ModelEnergy> {
        let in_basis = |index: &usize| self.tracks[*index].domain.bases.contains(&self.basis);
        let model = |model: &super::core::Model| {
            let phase =
                |phase: usize| (0..self.tracks.len()).filter(in_basis).map(|index| model.used_uj[index][phase]).sum();
            ModelEnergy {
                model: model.name.clone(),
                prefill_uj: available.then(|| phase(0)),
                decode_uj: available.then(|| phase(1)),
                prompt_tokens: model.prompt_tokens,
                completion_tokens: model.completion_tokens,
                requests: model.requests,
            }
        };
        self.models.iter().map(model).collect()
    }
}

/// Requests that are asked for together.
struct Asked<'a> {
    core: &'a Core,
    accounts: &'a [&'a Account],
    now: Nanos,
    is_final: bool,
}

impl Asked<'_> {
    fn coverage(&self, index: usize) -> f64 {
        let resolved = self.core.tracks[index].resolved;
        let each = self.accounts.iter().map(|account| account.coverage(index, resolved, self.now));
        each.fold(1.0, f64::min)
    }

    /// Why nothing is known on this track, if so.
    fn unknown(&self, index: usize) -> Option<Unavailable> {
        let track = &self.core.tracks[index];
        if self.accounts.iter().any(|account| account.failed.is_some())
            || !self.is_final && self.core.is_stale(self.now)
        {
            return Some(Unavailable::Stale);
        }
        let failure = || track.state.err().or(track.last_failure);
        if !track.was_read || self.coverage(index) < KNOWN {
            return Some(failure().unwrap_or(Unavailable::ReadFailed));
        }
        // Nothing has been read since the first step: zero would be a guess.
        let unread = |account: &&&Account| account.scheduled.is_some_and(|scheduled| track.resolved <= scheduled);
        self.accounts.iter().find(unread).map(|_| failure().unwrap_or(Unavailable::Stale))
    }

    fn total(&self, index: usize) -> u64 {
        self.accounts.iter().map(|account| account.used[index].total_uj()).sum()
    }

    fn phase(&self, index: usize, phase: usize) -> u64 {
        self.accounts.iter().map(|account| account.used[index].uj[phase]).sum()
    }

    fn seconds(&self, index: usize) -> f64 {
        self.accounts.iter().map(|account| account.used[index].seconds).sum()
    }

    fn window_joules(&self, index: usize) -> Option<f64> {
        let measured = self.core.tracks[index].measured_uj;
        let marks = self.accounts.iter().filter_map(|account| account.used[index].window_uj(measured));
        let (from, to) = marks.reduce(|(from, to), (begin, end)| (from.min(begin), to.max(end)))?;
        Some(((to - from) * 1e-6).max(0.0))
    }
}
