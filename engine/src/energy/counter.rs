//! Energy counters that start again at their end, are set back, or fall silent.

use std::time::Duration;

use super::types::Nanos;

/// How long a counter that does not move keeps its interval open.
const HOLD: Duration = Duration::from_millis(500);
/// Step of the coarsest counter, in microjoules: NVML counts millijoules.
const RESOLUTION_UJ: f64 = 1000.0;

/// What a reading says of the time since the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// Nothing: it is the first.
    First,
    /// Nothing yet: the counter has not moved, and the interval stays open.
    Open,
    /// Microjoules.
    Energy(u64),
    /// It cannot be known.
    Gap,
}

/// One counter.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    /// Largest value, in microjoules; `None` is a counter that never starts again.
    range_uj: Option<u64>,
    max_watts: f64,
    last: Option<(u64, Nanos)>,
    pub(crate) wraps: u64,
    pub(crate) resets: u64,
}

impl Counter {
    pub(crate) fn new(range_uj: Option<u64>, max_watts: f64) -> Self {
        Self { range_uj, max_watts, last: None, wraps: 0, resets: 0 }
    }

    /// Forgets the last reading: whatever happens until the next one stays unknown.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Takes the value `energy_uj`, read at `at`.
    pub(crate) fn advance(&mut self, energy_uj: u64, at: Nanos) -> Advance {
        let Some((before, since)) = self.last else {
            self.last = Some((energy_uj, at));
            return Advance::First;
        };
        let elapsed = at.since(since);
        let most_uj = self.max_watts * elapsed.as_secs_f64() * 1e6;
        if energy_uj == before && elapsed < HOLD {
            return Advance::Open;
        }
        self.last = Some((energy_uj, at));
        if self.range_uj.is_some_and(|range| most_uj >= range as f64) {
            // It may have gone round more than once.
            return Advance::Gap;
        }
        let (delta, wrapped) = match self.range_uj {
            _ if energy_uj >= before => (energy_uj - before, false),
            Some(range) if before <= range => ((range - before).saturating_add(energy_uj), true),
            _ => {
                self.resets += 1;
                return Advance::Gap;
            }
        };
        if delta as f64 > most_uj + RESOLUTION_UJ {
            self.resets += 1;
            return Advance::Gap;
        }
        self.wraps += u64::from(wrapped);
        Advance::Energy(delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn after(range_uj: Option<u64>, first: u64, second: u64, millis: u64) -> (Advance, Counter) {
        let mut counter = Counter::new(range_uj, 1000.0);
        assert_eq!(counter.advance(first, Nanos(0)), Advance::First);
        (counter.advance(second, Nanos(millis * MS)), counter)
    }

    #[test]
    fn a_wrap_is_energy_and_a_fall_is_not() {
        // A rail of 10 W cannot go round twice in 50 ms.
        let mut small = Counter::new(Some(1_000_000), 10.0);
        small.advance(999_000, Nanos(0));
        assert_eq!(small.advance(500, Nanos(50 * MS)), Advance::Energy(1500));
        assert_eq!((small.wraps, small.resets), (1, 0));
        // 5.2 MW: somebody has set it back.
        let (fallen, counter) = after(Some(262_143_328_850), 5_000_000, 100, 50);
        assert_eq!((fallen, counter.wraps, counter.resets), (Advance::Gap, 0, 1));
        let (fallen, counter) = after(None, 5_000_000, 100, 50);
        assert_eq!((fallen, counter.resets), (Advance::Gap, 1));
        // The value before was beyond the range, so the range cannot be right.
        assert_eq!(after(Some(1_000_000), 2_000_000, 100, 50).0, Advance::Gap);
    }

    #[test]
    fn a_gap_leaves_no_trace_in_the_next_interval() {
        let (_, mut counter) = after(None, 5_000_000, 100, 50);
        assert_eq!(counter.advance(600, Nanos(60 * MS)), Advance::Energy(500));
        counter.forget();
        assert_eq!(counter.advance(10_000, Nanos(70 * MS)), Advance::First);
        assert_eq!(counter.advance(10_010, Nanos(80 * MS)), Advance::Energy(10));
    }

    #[test]
    fn more_than_the_rail_can_draw_is_a_reset() {
        // 50 J in 50 ms are 1000 W, the most.
        assert_eq!(after(None, 0, 50_000_000, 50).0, Advance::Energy(50_000_000));
        let (jump, counter) = after(None, 0, 50_001_001, 50);
        assert_eq!((jump, counter.resets), (Advance::Gap, 1));
    }

    #[test]
    fn an_interval_in_which_it_may_go_round_twice_is_a_gap() {
        // 1 J of range at 1000 W: one millisecond.
        let (gap, counter) = after(Some(1_000_000), 1000, 2000, 1);
        assert_eq!((gap, counter.resets), (Advance::Gap, 0));
    }

    #[test]
    fn a_counter_that_holds_keeps_its_interval_open() {
        let mut counter = Counter::new(None, 1000.0);
        counter.advance(1000, Nanos(0));
        assert_eq!(counter.advance(1000, Nanos(20 * MS)), Advance::Open);
        assert_eq!(counter.advance(3000, Nanos(100 * MS)), Advance::Energy(2000));
        assert_eq!(counter.advance(3000, Nanos(599 * MS)), Advance::Open);
        // A rail that is really off: zero is what was measured.
        assert_eq!(counter.advance(3000, Nanos(600 * MS)), Advance::Energy(0));
    }
}
