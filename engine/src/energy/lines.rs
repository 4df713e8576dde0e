//! What is said to people about the sensors.

use super::{core::Core, types::Unavailable};

/// Which rails are read and how, which are not and why, and what to do about that.
pub(crate) fn lines(core: &Core) -> Vec<String> {
    if core.nothing == Unavailable::Disabled {
        return vec!["energy: off".into()];
    }
    let mut lines = Vec::new();
    for track in &core.tracks {
        let domain = &track.domain;
        let role = match (domain.bases.contains(&core.basis), domain.exclusive) {
            (true, _) => format!("part of the basis `{}`", core.basis),
            (false, true) => "beside the basis".into(),
            (false, false) => "overlaps others".into(),
        };
        let how = match track.state {
            Ok(()) => format!("every {} ms", track.busy_period(core.interval).as_millis()),
            Err(reason) => format!("cannot be read now: {reason}"),
        };
        let (id, source, class) = (&domain.id, domain.source, domain.class.name());
        lines.push(format!("energy: {id} ({source}, {class}) {how}, {role}"));
    }
    for missing in &core.missing {
        let remedy = if missing.remedy.is_empty() { String::new() } else { format!("; {}", missing.remedy) };
        lines.push(format!("energy: {} is not read: {}{remedy}", missing.domain, missing.reason));
    }
    lines.push(match core.basis_status() {
        Ok(()) => format!(
            "energy: requests are measured on the basis `{}`, sampled every {} ms",
            core.basis,
            core.interval.as_millis()
        ),
        Err(reason) => format!("energy: requests are not measured on the basis `{}` ({reason})", core.basis),
    });
    lines
}
