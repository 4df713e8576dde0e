//! Levels of load one after the other, and where more load stops to pay.

use std::path::Path;

use super::{
    args::Level,
    level::{Bench, Measured},
};
use crate::load::Ended;

/// Gain of throughput below which a doubling was in vain.
const GAIN: f64 = 1.05;
/// Doublings in vain that end the search.
const IN_VAIN: usize = 2;
/// Share of failures that ends it.
const FAILURES: f64 = 0.05;
/// Share of what is offered that an open loop must reach to go on.
const KEPT_UP: f64 = 0.9;
/// Most doublings.
const DOUBLINGS: usize = 16;

/// What a level comes down to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Clients, or requests a second.
    pub(super) strength: f64,
    /// Output tokens a second if they are known at every level, else requests a second.
    pub(super) throughput: f64,
    /// Mean end-to-end time in milliseconds.
    pub(super) latency_ms: f64,
}

impl Measured {
    /// `None` if nothing was answered.
    pub(super) fn point(&self, by_tokens: bool) -> Option<Point> {
        let rates = &self.summary.rates;
        Some(Point {
            strength: self.strength,
            throughput: if by_tokens { rates.output_tokens } else { rates.requests }?,
            latency_ms: self.summary.e2e_ms?.mean,
        })
    }

    fn failed_share(&self) -> f64 {
        self.summary.failed as f64 / (self.summary.sent.max(1)) as f64
    }

    /// Whether more load makes no sense.
    fn is_overloaded(&self) -> bool {
        let fell_behind =
            self.offered.zip(self.summary.rates.requests).is_some_and(|(offered, got)| got < KEPT_UP * offered);
        self.ended != Ended::Done || self.failed_share() > FAILURES || fell_behind || self.summary.ok == 0
    }
}

/// Whether tokens are known at every level that was answered.
pub(super) fn by_tokens(levels: &[Measured]) -> bool {
    levels.iter().filter(|level| level.summary.ok > 0).all(|level| level.summary.rates.output_tokens.is_some())
}

/// The knee: the level with the most "power", throughput over time (Kleinrock 1979, "Power and deterministic rules of
/// thumb for probabilistic problems in computer communications"). Below it the server has room, above it requests wait for
/// each other. `None` without points.
pub(super) fn knee(points: &[Point]) -> Option<Point> {
    points.iter().copied().max_by(|a, b| (a.throughput / a.latency_ms).total_cmp(&(b.throughput / b.latency_ms)))
}

impl Bench<'_> {
    /// Measures the given levels, or looks for the knee. A level that was interrupted is the last.
    pub(super) async fn sweep(&self, out: Option<&Path>) -> anyhow::Result<Vec<Measured>> {
        let mut levels = Vec::new();
        for level in self.args.levels() {
            levels.push(self.step(level, out).await?);
            if self.stop.is_cancelled() {
                return Ok(levels);
            }
        }
        if self.args.sweep {
            self.double(&mut levels, out).await?;
            self.refine(&mut levels, out).await?;
        }
        levels.sort_by(|a, b| a.strength.total_cmp(&b.strength));
        Ok(levels)
    }

    async fn step(&self, level: Level, out: Option<&Path>) -> anyhow::Result<Measured> {
        let measured = self.measure(level, out.map(|out| out.join(level.folder())).as_deref()).await?;
        eprintln!("{}", super::report::line(&measured));
        Ok(measured)
    }

    /// Doubles the load until throughput no longer grows.
    async fn double(&self, levels: &mut Vec<Measured>, out: Option<&Path>) -> anyhow::Result<()> {
        let mut best = 0.0f64;
        let mut in_vain = 0;
        let throughput =
            |level: &Measured| level.point(by_tokens(std::slice::from_ref(level))).map_or(0.0, |p| p.throughput);
        for level in levels.iter() {
            best = best.max(throughput(level));
        }
        for _ in 0..DOUBLINGS {
            let Some(last) = levels.last() else { return Ok(()) };
            if in_vain >= IN_VAIN || last.is_overloaded() || self.stop.is_cancelled() {
                return Ok(());
            }
            let next = match last.level {
                Level::Clients(count) => Level::Clients((2 * count).min(65_536)),
                Level::Rate(rate) => Level::Rate(2.0 * rate),
                Level::Recorded => return Ok(()),
            };
            let measured = self.step(next, out).await?;
            let got = throughput(&measured);
            in_vain = if got > GAIN * best { 0 } else { in_vain + 1 };
            best = best.max(got);
            levels.push(measured);
        }
        Ok(())
    }

    /// Measures half-way between the knee and its neighbours.
    async fn refine(&self, levels: &mut Vec<Measured>, out: Option<&Path>) -> anyhow::Result<()> {
        let by_tokens = by_tokens(levels);
        let points: Vec<Point> = levels.iter().filter_map(|level| level.point(by_tokens)).collect();
        let Some(found) = knee(&points) else { return Ok(()) };
        for neighbour in [found.strength / 2.0, found.strength * 2.0] {
            let between = (found.strength * neighbour).sqrt();
            let is_between_known = levels.iter().any(|level| level.strength == neighbour);
            let level = match levels.first().map(|level| level.level) {
                Some(Level::Clients(_)) => Level::Clients(between.round() as usize),
                Some(Level::Rate(_)) => Level::Rate((between * 1000.0).round() / 1000.0),
                _ => return Ok(()),
            };
            let is_new = levels.iter().all(|known| known.strength != level.strength());
            if is_between_known && is_new && level.strength() > 0.0 && !self.stop.is_cancelled() {
                levels.push(self.step(level, out).await?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(strength: f64, throughput: f64, latency_ms: f64) -> Point {
        Point { strength, throughput, latency_ms }
    }

    #[test]
    fn the_knee_is_where_waiting_begins() {
        // Room for eight: throughput grows with the clients up to there, time from there on.
        let levels = [1.0f64, 2.0, 4.0, 8.0, 16.0, 32.0];
        let points: Vec<Point> =
            levels.iter().map(|&n| point(n, 10.0 * n.min(8.0), 100.0 * (n / 8.0).max(1.0))).collect();
        assert_eq!(knee(&points).unwrap().strength, 8.0);
        // One at a time: more clients only wait.
        let points: Vec<Point> = levels.iter().map(|&n| point(n, 10.0, 100.0 * n)).collect();
        assert_eq!(knee(&points).unwrap().strength, 1.0);
        assert_eq!(knee(&[]), None);
    }
}
