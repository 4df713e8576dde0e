//! What is said at the start.

use super::{core::Core, settings::EnergySettings};

/// Which rails are read and how, which are not and why, and what to do about that.
pub(crate) fn lines(core: &Core, settings: &EnergySettings) -> Vec<String> {
    let mut lines = Vec::new();
    let interval = settings.interval.as_millis();
    for track in &core.tracks {
        let domain = &track.domain;
        let period = track.busy_period(settings.interval).as_millis();
        let role = match (domain.bases.contains(&core.basis), domain.exclusive) {
            (true, _) => format!("part of the basis `{}`", core.basis),
            (false, true) => "beside the basis".into(),
            (false, false) => "overlaps others".into(),
        };
        lines.push(format!(
            "energy: {} ({}, {}) every {period} ms, {role}",
            domain.id,
            domain.source,
            domain.class.name()
        ));
    }
    for missing in &core.missing {
        let remedy = if missing.remedy.is_empty() { String::new() } else { format!("; {}", missing.remedy) };
        lines.push(format!("energy: {} is not read: {}{remedy}", missing.domain, missing.reason));
    }
    lines.push(match core.basis_status() {
        Ok(()) => format!("energy: requests are measured on the basis `{}`, sampled every {interval} ms", core.basis),
        Err(reason) => format!("energy: requests are not measured on the basis `{}` ({reason})", core.basis),
    });
    lines
}
