//! What single requests have used.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    report::Ticket,
    steps::Phase,
    types::{Nanos, Unavailable},
};

/// Requests whose figures are kept at most, whatever the retention says.
const CAPACITY: usize = 1 << 16;

/// What a request has used on one domain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    /// Microjoules, by phase.
    pub(crate) uj: [u64; 2],
    /// Its share of the time in which steps ran, in seconds.
    pub(crate) seconds: f64,
    /// What the domain had measured in all when the request was scheduled, and when it ended, in microjoules.
    window: [Option<f64>; 2],
    /// Time from its first step on that lies in gaps.
    gap: Duration,
}

impl Used {
    pub(crate) fn total_uj(&self) -> u64 {
        self.uj.iter().sum()
    }

    /// What the domain had measured at the first step and at the end, or by now where that is not known yet, in
    /// microjoules.
    pub(crate) fn window_uj(&self, measured_uj: u64) -> Option<(f64, f64)> {
        let [from, to] = self.window;
        Some((from?, to.unwrap_or(measured_uj as f64)))
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// Index of its model.
    pub(crate) model: usize,
    /// Begin of its first step.
    pub(crate) scheduled: Option<Nanos>,
    /// End of its last step so far.
    last_step: Option<Nanos>,
    /// When it was over, and how many tokens it had read and made.
    pub(crate) ended: Option<Ended>,
    /// By domain.
    pub(crate) used: Vec<Used>,
    /// Time of its steps in seconds, and the same times the number of requests in them, itself included.
    pub(crate) steps: (f64, f64),
    pub(crate) max_concurrency: usize,
    pub(crate) is_final: bool,
    /// Why nothing is known of it, if the sensors failed it as a whole.
    pub(crate) failed: Option<Unavailable>,
}

/// The end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// When it gave its slot back.
    at: Nanos,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

impl Account {
    /// End of its last step once it is over.
    pub(crate) fn finished(&self) -> Option<Nanos> {
        self.ended.map(|ended| self.last_step.unwrap_or(ended.at))
    }

    /// Share of its time, as far as `resolved`, in which the domain was measured.
    pub(crate) fn coverage(&self, domain: usize, resolved: Nanos, now: Nanos) -> f64 {
        let end = self.finished().unwrap_or(now);
        let Some(scheduled) = self.scheduled else { return 1.0 };
        let (total, known) = (end.since(scheduled), resolved.min(end).since(scheduled));
        // What no reading has covered yet will be; once all is final, nothing of that is left.
        if total.is_zero() || known.is_zero() {
            return 1.0;
        }
        // A gap may also lie behind the last step, while the request waits for a slot again.
        (1.0 - self.used[domain].gap.as_secs_f64() / total.as_secs_f64()).max(0.0)
    }

    /// The domain is known from `from` to `to`: it had measured `before_uj` and has used `energy_uj`, or nobody knows.
    pub(crate) fn resolve(&mut self, domain: usize, from: Nanos, to: Nanos, before_uj: u64, energy_uj: Option<u64>) {
        let Some(scheduled) = self.scheduled else { return };
        let finished = self.finished();
        let used = &mut self.used[domain];
        let length = to.since(from).as_secs_f64();
        let at = |mark: Nanos| {
            let part = if length > 0.0 { mark.since(from).as_secs_f64() / length } else { 0.0 };
            before_uj as f64 + energy_uj.unwrap_or(0) as f64 * part.min(1.0)
        };
        if used.window[0].is_none() && scheduled <= to {
            used.window[0] = Some(at(scheduled));
        }
        if let Some(finished) = finished
            && used.window[1].is_none()
            && finished <= to
        {
            used.window[1] = Some(at(finished));
        }
        if energy_uj.is_none() {
            used.gap += finished.map_or(to, |finished| finished.min(to)).since(from.max(scheduled));
        }
    }
}

/// All requests that can be asked for.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    accounts: BTreeMap<Ticket, Account>,
    next: u64,
    /// Those whose figures may still change.
    live: Vec<Ticket>,
    /// The others, in the order in which they became final.
    done: VecDeque<Ticket>,
}

impl Requests {
    /// A request of `model` begins, on a machine with `num_domains`.
    pub(crate) fn open(&mut self, model: usize, num_domains: usize) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.live.push(ticket);
        let used = vec![Used::default(); num_domains];
        let account = Account {
            model,
            scheduled: None,
            last_step: None,
            ended: None,
            used,
            steps: (0.0, 0.0),
            max_concurrency: 0,
            is_final: false,
            failed: None,
        };
        self.accounts.insert(ticket, account);
        ticket
    }

    pub(crate) fn get(&self, ticket: Ticket) -> Option<&Account> {
        self.accounts.get(&ticket)
    }

    pub(crate) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Account> {
        self.accounts.get_mut(&ticket)
    }

    /// Whether any has not ended.
    pub(crate) fn any_runs(&self) -> bool {
        self.live.iter().filter_map(|ticket| self.get(*ticket)).any(|account| account.ended.is_none())
    }

    /// Whether any waits for a last reading.
    pub(crate) fn any_settles(&self) -> bool {
        self.live.iter().filter_map(|ticket| self.get(*ticket)).any(|account| account.ended.is_some())
    }

    /// A step with these requests began.
    pub(crate) fn step_began(&mut self, tickets: &[Ticket], at: Nanos) {
        for ticket in tickets {
            if let Some(account) = self.accounts.get_mut(ticket) {
                account.scheduled.get_or_insert(at);
                account.max_concurrency = account.max_concurrency.max(tickets.len());
            }
        }
    }

    /// It ended.
    pub(crate) fn step_ended(&mut self, tickets: &[Ticket], began: Nanos, at: Nanos) {
        let seconds = at.since(began).as_secs_f64();
        for ticket in tickets {
            if let Some(account) = self.accounts.get_mut(ticket) {
                account.last_step = Some(at);
                account.steps.0 += seconds;
                account.steps.1 += seconds * tickets.len() as f64;
            }
        }
    }

    /// Energy of a step.
    pub(crate) fn charge(&mut self, ticket: Ticket, domain: usize, phase: Phase, energy_uj: u64, seconds: f64) {
        if let Some(account) = self.accounts.get_mut(&ticket) {
            let used = &mut account.used[domain];
            used.uj[phase as usize] += energy_uj;
            used.seconds += seconds;
        }
    }

    /// A request is over.
    pub(crate) fn close(&mut self, ticket: Ticket, at: Nanos, prompt_tokens: u64, completion_tokens: u64) {
        if let Some(account) = self.accounts.get_mut(&ticket) {
            account.ended = Some(Ended { at, prompt_tokens, completion_tokens });
        }
    }

    /// Nothing more will be known of the requests that wait for a reading.
    pub(crate) fn fail_ended(&mut self, reason: Unavailable) {
        for ticket in &self.live {
            if let Some(account) = self.accounts.get_mut(ticket).filter(|account| account.ended.is_some()) {
                account.failed = Some(reason);
            }
        }
    }

    /// Tells every request whose figures may change that the domain is known up to `to`.
    pub(crate) fn resolve(&mut self, domain: usize, from: Nanos, to: Nanos, before_uj: u64, energy_uj: Option<u64>) {
        for ticket in &self.live {
            if let Some(account) = self.accounts.get_mut(ticket) {
                account.resolve(domain, from, to, before_uj, energy_uj);
            }
        }
    }

    /// Takes the requests that ended by `settled` as final, and returns them. `measured_uj` is what each domain has
    /// measured so far.
    pub(crate) fn settle(&mut self, settled: Nanos, measured_uj: &[u64]) -> Vec<Ticket> {
        let Self { accounts, live, .. } = self;
        let mut settled_now = Vec::new();
        live.retain(|ticket| {
            let Some(account) = accounts.get_mut(ticket) else { return false };
            account.is_final = account.finished().is_some_and(|finished| finished <= settled);
            if account.is_final {
                // The last reading may have come between its last step and its end.
                for (used, measured_uj) in account.used.iter_mut().zip(measured_uj) {
                    used.window[1].get_or_insert(*measured_uj as f64);
                }
                settled_now.push(*ticket);
            }
            !account.is_final
        });
        self.done.extend(&settled_now);
        settled_now
    }

    /// Forgets what ended before `before`, and the oldest if there are too many. Their energy stays in the sums of their
    /// models.
    pub(crate) fn forget(&mut self, before: Nanos) {
        while let Some(ticket) = self.done.front() {
            let ended = self.accounts.get(ticket).and_then(Account::finished);
            let is_kept = ended.is_some_and(|ended| ended >= before);
            if is_kept && self.done.len() <= CAPACITY {
                return;
            }
            self.accounts.remove(ticket);
            self.done.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn one() -> (Requests, Ticket) {
        let mut requests = Requests::default();
        let ticket = requests.open(0, 1);
        (requests, ticket)
    }

    #[test]
    fn the_window_is_cut_at_the_first_step_and_at_the_end() {
        let (mut requests, ticket) = one();
        requests.step_began(&[ticket], Nanos(50 * MS));
        requests.resolve(0, Nanos(0), Nanos(100 * MS), 1000, Some(400));
        requests.step_ended(&[ticket], Nanos(50 * MS), Nanos(125 * MS));
        requests.close(ticket, Nanos(130 * MS), 3, 4);
        requests.resolve(0, Nanos(100 * MS), Nanos(200 * MS), 1400, Some(800));
        let account = requests.get(ticket).unwrap();
        assert_eq!(account.used[0].window_uj(2200), Some((1200.0, 1600.0)));
        assert_eq!(account.finished(), Some(Nanos(125 * MS)));
        assert_eq!(account.coverage(0, Nanos(200 * MS), Nanos(900 * MS)), 1.0);
    }

    #[test]
    fn gaps_cost_coverage() {
        let (mut requests, ticket) = one();
        requests.step_began(&[ticket], Nanos(50 * MS));
        requests.step_ended(&[ticket], Nanos(50 * MS), Nanos(150 * MS));
        requests.close(ticket, Nanos(150 * MS), 3, 4);
        requests.resolve(0, Nanos(0), Nanos(80 * MS), 0, None);
        requests.resolve(0, Nanos(80 * MS), Nanos(200 * MS), 0, Some(5));
        let account = requests.get(ticket).unwrap();
        assert!((account.coverage(0, Nanos(200 * MS), Nanos(900 * MS)) - 0.7).abs() < 1e-9);
    }

    #[test]
    fn requests_are_final_when_they_are_known_to_their_end_and_forgotten_later() {
        let (mut requests, ticket) = one();
        let other = requests.open(0, 1);
        requests.step_began(&[ticket, other], Nanos(0));
        requests.step_ended(&[ticket, other], Nanos(0), Nanos(100 * MS));
        assert_eq!(requests.settle(Nanos(500 * MS), &[0]), [], "nobody has ended");
        requests.close(ticket, Nanos(110 * MS), 3, 4);
        assert_eq!(requests.settle(Nanos(99 * MS), &[0]), []);
        assert!(requests.any_settles() && requests.any_runs());
        assert_eq!(requests.settle(Nanos(100 * MS), &[0]), [ticket]);
        assert!(!requests.any_settles());
        assert_eq!(requests.get(ticket).unwrap().steps, (0.1, 0.2));
        requests.forget(Nanos(100 * MS));
        assert!(requests.get(ticket).is_some());
        requests.forget(Nanos(101 * MS));
        assert!(requests.get(ticket).is_none() && requests.get(other).is_some());
    }
}
