//! How the energy of an interval is divided: `engine/specs/energy.md`, "Attribution".

use std::collections::BTreeMap;

use super::{
    apportion::apportion,
    monitor::SystemCause,
    steps::{Account, Share, Step},
    types::{Nanos, Rail},
};

/// Energy of one domain between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) from: Nanos,
    pub(crate) to: Nanos,
    pub(crate) energy_uj: u64,
}

/// What an interval was used for.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Division {
    pub(crate) idle_uj: u64,
    /// In the order of accounts. With the idle part they sum to the energy of the interval.
    pub(crate) parts: Vec<Part>,
}

/// One account's part of an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Part {
    pub(crate) account: Account,
    pub(crate) energy_uj: u64,
    /// Its share of the time in which steps ran, in seconds.
    pub(crate) seconds: f64,
}

/// Divides the energy that the domain on `rail` used in `interval` over the `steps` that ran on it.
pub(crate) fn divide(interval: Interval, rail: &Rail, idle_watts: Option<f64>, steps: &[Step]) -> Division {
    let Interval { from, to, energy_uj } = interval;
    let length = to.0.saturating_sub(from.0);
    // Times are kept as fixed-point nanoseconds, so that shares of them are exact enough for any number of microjoules;
    // products with 32-bit weights must fit.
    let shift = (86 - (u64::BITS - length.leading_zeros())).min(40);
    let running: Vec<(&Step, Nanos, Nanos)> = steps
        .iter()
        .filter(|step| step.concerns(rail))
        .map(|step| (step, step.begin.max(from), step.end.unwrap_or(to).min(to)))
        .filter(|(_, begin, end)| begin < end)
        .collect();
    let (times, busy) = times(&running, shift);
    let idle_uj = idle_part(energy_uj, length, busy, idle_watts);
    let mut weights: BTreeMap<Account, u128> = BTreeMap::new();
    for ((step, ..), time) in running.iter().zip(times) {
        let total: u128 = step.shares.iter().map(|share| u128::from(share.weight)).sum();
        if total == 0 {
            *weights.entry(Account::System(SystemCause::Other)).or_default() += time;
            continue;
        }
        for Share { account, weight } in step.shares.iter().filter(|share| share.weight > 0) {
            *weights.entry(*account).or_default() += time * u128::from(*weight) / total;
        }
    }
    let parts = apportion(energy_uj - idle_uj, &weights.values().copied().collect::<Vec<_>>());
    let nanosecond = 2f64.powi(shift as i32);
    let part = |((account, time), energy_uj): ((Account, u128), u64)| Part {
        account,
        energy_uj,
        seconds: time as f64 / nanosecond * 1e-9,
    };
    Division { idle_uj, parts: weights.into_iter().zip(parts).map(part).collect() }
}

/// For each step its time, in nanoseconds times `2^shift`, and the time in which any ran, in nanoseconds. Where several
/// run at once each has an equal share of the time.
fn times(running: &[(&Step, Nanos, Nanos)], shift: u32) -> (Vec<u128>, u64) {
    let mut cuts: Vec<(Nanos, bool, usize)> = Vec::with_capacity(2 * running.len());
    for (index, (_, begin, end)) in running.iter().enumerate() {
        cuts.push((*begin, true, index));
        cuts.push((*end, false, index));
    }
    cuts.sort_unstable();
    let (mut times, mut busy) = (vec![0u128; running.len()], 0);
    let mut active: Vec<usize> = Vec::new();
    let mut last = Nanos(0);
    for (at, begins, index) in cuts {
        let slice = at.0 - last.0;
        if !active.is_empty() && slice > 0 {
            busy += slice;
            let each = (u128::from(slice) << shift) / active.len() as u128;
            active.iter().for_each(|index| times[*index] += each);
        }
        last = at;
        if begins {
            active.push(index);
        } else {
            active.retain(|other| *other != index);
        }
    }
    (times, busy)
}

/// Energy that the domain would have used without the steps, or, without knowledge of that, the share of the time in
/// which none ran.
fn idle_part(energy_uj: u64, length: u64, busy: u64, idle_watts: Option<f64>) -> u64 {
    let idle = length.saturating_sub(busy);
    match idle_watts {
        _ if busy == 0 => energy_uj,
        _ if idle == 0 => 0,
        Some(watts) => energy_uj.min((watts * idle as f64 * 1e-3) as u64),
        None => apportion(energy_uj, &[u128::from(idle), u128::from(busy)])[0],
    }
}

#[cfg(test)]
mod tests;
