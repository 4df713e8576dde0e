//! Energy from readings of power.

use std::time::Duration;

use super::{counter::Advance, types::Nanos};

/// One sensor of power.
#[derive(Debug, Clone)]
pub(crate) struct Power {
    /// Whether a reading is the mean since the one before; otherwise it is the power at that moment.
    is_mean: bool,
    max_watts: f64,
    last: Option<(f64, Nanos)>,
    /// Part of a microjoule that is not given out yet.
    rest_uj: f64,
}

/// A reading that cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Implausible;

impl Power {
    pub(crate) fn new(is_mean: bool, max_watts: f64) -> Self {
        Self { is_mean, max_watts, last: None, rest_uj: 0.0 }
    }

    /// Forgets the last reading: whatever happens until the next one stays unknown.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Takes `watts`, read at `at`; longer than `limit` after the last good reading the time between is a gap.
    pub(crate) fn advance(&mut self, watts: f64, at: Nanos, limit: Duration) -> Result<Advance, Implausible> {
        if !(0.0..=self.max_watts).contains(&watts) {
            return Err(Implausible);
        }
        let Some((before, since)) = self.last.replace((watts, at)) else { return Ok(Advance::First) };
        let elapsed = at.since(since);
        if elapsed > limit {
            return Ok(Advance::Gap);
        }
        let mean = if self.is_mean { watts } else { f64::midpoint(before, watts) };
        let exact = mean * elapsed.as_secs_f64() * 1e6 + self.rest_uj;
        self.rest_uj = exact.fract();
        Ok(Advance::Energy(exact as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const MS: u64 = 1_000_000;

    #[test]
    fn moments_are_joined_by_trapezoids() {
        let mut power = Power::new(false, 1000.0);
        assert_eq!(power.advance(10.0, Nanos(0), LIMIT), Ok(Advance::First));
        assert_eq!(power.advance(20.0, Nanos(100 * MS), LIMIT), Ok(Advance::Energy(1_500_000)));
        assert_eq!(power.advance(30.0, Nanos(300 * MS), LIMIT), Ok(Advance::Energy(5_000_000)));
    }

    #[test]
    fn means_count_for_their_interval() {
        let mut power = Power::new(true, 1000.0);
        power.advance(10.0, Nanos(0), LIMIT).unwrap();
        assert_eq!(power.advance(20.0, Nanos(100 * MS), LIMIT), Ok(Advance::Energy(2_000_000)));
    }

    #[test]
    fn nothing_is_lost_by_rounding() {
        let mut power = Power::new(false, 1000.0);
        power.advance(1.0 / 3.0, Nanos(0), LIMIT).unwrap();
        let mut total = 0;
        for tick in 1..=3000 {
            match power.advance(1.0 / 3.0, Nanos(tick * MS), LIMIT) {
                Ok(Advance::Energy(uj)) => total += uj,
                other => panic!("{other:?}"),
            }
        }
        assert!((999_999..=1_000_000).contains(&total), "{total}");
    }

    #[test]
    fn what_cannot_be_true_is_dropped_and_silence_is_a_gap() {
        let mut power = Power::new(false, 1000.0);
        power.advance(10.0, Nanos(0), LIMIT).unwrap();
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1000.5] {
            assert_eq!(power.advance(bad, Nanos(100 * MS), LIMIT), Err(Implausible));
        }
        assert_eq!(power.advance(10.0, Nanos(200 * MS), LIMIT), Ok(Advance::Energy(2_000_000)));
        assert_eq!(power.advance(10.0, Nanos(1300 * MS), LIMIT), Ok(Advance::Gap));
        assert_eq!(power.advance(10.0, Nanos(1400 * MS), LIMIT), Ok(Advance::Energy(1_000_000)));
    }
}
