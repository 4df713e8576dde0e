//! Calls that have ended, by the id of their reply: what `/v1/energy/requests/{id}` and evaluations look up.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use engine::energy::Ticket;

use super::usage::Work;
use crate::middleware::auth::Caller;

/// Most calls that are remembered, whatever the retention; the oldest go first.
const MAX_CALLS: usize = 1 << 16;

/// One call that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Whose it was.
    pub(crate) caller: Caller,
    /// Id of its model, whatever name the client used.
    pub(crate) model: String,
    /// One for each choice; none if nobody meters.
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) work: Work,
}

/// The calls of the last minutes.
#[derive(Debug)]
pub(crate) struct Calls {
    retention: Duration,
    ended: Mutex<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    calls: HashMap<Arc<str>, Arc<Call>>,
    order: VecDeque<(Instant, Arc<str>)>,
}

impl Calls {
    /// Remembers calls for `retention`.
    pub(crate) fn new(retention: Duration) -> Self {
        Self { retention, ended: Mutex::default() }
    }

    /// Remembers a call that ended at `now`. Ids are made by this server and differ.
    pub(crate) fn insert(&self, id: &str, call: Arc<Call>, now: Instant) {
        let mut ended = self.lock(now);
        while ended.order.len() >= MAX_CALLS {
            ended.forget_oldest();
        }
        let id: Arc<str> = id.into();
        ended.order.push_back((now, id.clone()));
        ended.calls.insert(id, call);
    }

    /// The call whose reply had this id, if it ended less than the retention before `now`.
    pub(crate) fn get(&self, id: &str, now: Instant) -> Option<Arc<Call>> {
        self.lock(now).calls.get(id).cloned()
    }

    /// How long a call is remembered.
    pub(crate) fn retention(&self) -> Duration {
        self.retention
    }

    fn lock(&self, now: Instant) -> MutexGuard<'_, Ended> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while ended.order.front().is_some_and(|(then, _)| now.duration_since(*then) >= self.retention) {
            ended.forget_oldest();
        }
        ended
    }
}

impl Ended {
    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.order.pop_front() {
            self.calls.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Arc<Call> {
        Arc::new(Call { caller: Caller::Anyone, model: "m".into(), tickets: Vec::new(), work: Work::default() })
    }

    #[test]
    fn calls_are_forgotten_in_time() {
        let (calls, start) = (Calls::new(Duration::from_secs(10)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        calls.insert("a", call(), start);
        calls.insert("b", call(), at(5));
        assert!(calls.get("a", at(9)).is_some());
        assert!(calls.get("a", at(10)).is_none() && calls.get("b", at(10)).is_some());
        assert!(calls.get("b", at(15)).is_none() && calls.get("never", start).is_none());
    }

    #[test]
    fn the_number_of_calls_is_bounded() {
        let (calls, now) = (Calls::new(Duration::from_secs(10)), Instant::now());
        for id in 0..=MAX_CALLS {
            calls.insert(&id.to_string(), call(), now);
        }
        assert!(calls.get("0", now).is_none() && calls.get("1", now).is_some());
        assert!(calls.get(&MAX_CALLS.to_string(), now).is_some());
    }
}
