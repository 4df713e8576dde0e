//! When requests are due.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::stats::SplitMix;

/// Who decides when the next request is sent.
#[derive(Debug, Clone)]
pub(crate) enum Arrivals {
    /// So many clients, each of which sends its next request when its last one has ended. A server that stalls is sent
    /// nothing meanwhile.
    Closed { concurrency: usize },
    /// The clock. Requests are sent when they are due, however many are not answered yet.
    Open(Schedule),
}

/// Moments of an open loop.
#[derive(Debug, Clone)]
pub(crate) enum Schedule {
    /// Requests a second, at random: independent users.
    Poisson { rate: f64, seed: u64 },
    /// Requests a second, evenly.
    Constant { rate: f64 },
    /// Seconds after the start, ascending.
    Recorded(Vec<f64>),
}

impl Schedule {
    /// Moments after the start, ascending; without end unless recorded.
    pub(crate) fn moments(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        match self.clone() {
            Self::Poisson { rate, seed } => {
                let mut random = SplitMix(seed);
                let mut at = 0.0;
                Box::new(std::iter::repeat_with(move || {
                    at -= random.uniform().ln() / rate;
                    Duration::from_secs_f64(at)
                }))
            }
            Self::Constant { rate } => {
                Box::new((0u64..).map(move |index| Duration::from_secs_f64(index as f64 / rate)))
            }
            Self::Recorded(moments) => Box::new(moments.into_iter().map(Duration::from_secs_f64)),
        }
    }
}

/// Reads recorded arrivals: a number of seconds in each line, or an object with `timestamp` in milliseconds (the traces of
/// Mooncake), or `due_s` or `sent_s` (our own raw events). They are moved so that the first is at 0, and divided by `speedup`.
pub(crate) fn read(path: &Path, speedup: f64) -> anyhow::Result<Vec<f64>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut moments = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{}, line {number}", path.display());
        let value: Value = serde_json::from_str(line).with_context(place)?;
        if value.get("phase").and_then(Value::as_str) == Some("warmup") {
            continue;
        }
        let millis = value.get("timestamp").and_then(Value::as_f64);
        let seconds = value.as_f64().or(millis.map(|millis| millis / 1000.0));
        // A closed loop has no moments at which requests were due, but those at which they were sent.
        let ours = || ["due_s", "sent_s"].iter().find_map(|key| value.get(key).and_then(Value::as_f64));
        let seconds = seconds.or_else(ours);
        moments.push(seconds.with_context(|| {
            format!("{}: neither seconds nor an object with `timestamp` (milliseconds), `due_s` or `sent_s`", place())
        })?);
    }
    ensure!(!moments.is_empty(), "{}: no arrivals", path.display());
    moments.sort_by(f64::total_cmp);
    let first = moments[0];
    let longest = (moments[moments.len() - 1] - first) / speedup;
    ensure!(longest.is_finite() && longest < 1e7, "{}: arrivals over {longest} seconds", path.display());
    Ok(moments.into_iter().map(|moment| (moment - first) / speedup).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_even_and_do_not_drift() {
        let moments: Vec<_> = Schedule::Constant { rate: 3.0 }.moments().take(3001).collect();
        assert_eq!(moments[0], Duration::ZERO);
        assert_eq!(moments[3000], Duration::from_secs(1000));
    }

    #[test]
    fn poisson_arrivals_have_the_gaps_of_their_distribution() {
        let moments: Vec<f64> =
            Schedule::Poisson { rate: 50.0, seed: 5 }.moments().take(20_000).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        // The deviation of a gap is its mean; three standard errors.
        assert!((mean * 50.0 - 1.0).abs() < 3.0 / (20_000f64).sqrt(), "{mean}");
        let beyond = gaps.iter().filter(|gap| **gap > mean).count() as f64 / gaps.len() as f64;
        assert!((beyond - (-1f64).exp()).abs() < 0.011, "{beyond}: not exponential");
        let again: Vec<f64> =
            Schedule::Poisson { rate: 50.0, seed: 5 }.moments().take(20_000).map(|at| at.as_secs_f64()).collect();
        assert_eq!(moments, again, "the same seed, the same arrivals");
    }

    #[test]
    fn recorded_arrivals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arrivals");
        let read_text = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path, 2.0).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read_text("7\n\n5.5\n"), Ok(vec![0.0, 0.75]));
        assert_eq!(
            read_text("{\"timestamp\": 1000}\n{\"timestamp\": 4000, \"input_length\": 3}\n"),
            Ok(vec![0.0, 1.5])
        );
        assert_eq!(
            read_text("{\"due_s\": 0.1, \"phase\": \"warmup\"}\n{\"due_s\": 1}\n{\"due_s\": 3}\n"),
            Ok(vec![0.0, 1.0])
        );
        assert_eq!(
            read_text("{\"due_s\": null, \"sent_s\": 1}\n{\"due_s\": null, \"sent_s\": 2}\n"),
            Ok(vec![0.0, 0.5])
        );
        assert!(read_text("1\n{\"at\": 2}\n").unwrap_err().contains("line 2: neither seconds"));
        assert!(read_text("x").unwrap_err().contains("line 1"));
        assert!(read_text("\n").unwrap_err().contains("no arrivals"));
        assert!(read_text("1\n1e300\n").unwrap_err().contains("arrivals over"));
    }
}
