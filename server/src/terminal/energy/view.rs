//! An interval as lines for people.

use super::reading::{Account, Interval, Rail, Share};

/// What stands where a number is not known.
const UNKNOWN: &str = "-";

/// The lines of one interval.
pub(super) fn lines(url: &str, interval: &Interval) -> Vec<String> {
    let mut lines = vec![head(url, interval)];
    lines.push(format!("power  {}   without work {}", watts(interval.watts), watts(interval.idle_watts)));
    section(&mut lines, "rails", interval.domains.iter().map(rail).collect());
    section(&mut lines, "models", interval.models.iter().map(model).collect());
    section(&mut lines, "where it went", interval.accounts.iter().filter_map(account).collect());
    lines.extend(host(interval));
    // What to do about it matters only where something is missing.
    if interval.reason.is_some() || interval.domains.iter().any(|rail| rail.reason.is_some()) {
        section(&mut lines, "notes", interval.notes.iter().map(|note| vec![note.clone()]).collect());
    }
    lines
}

fn head(url: &str, interval: &Interval) -> String {
    let status = match &interval.reason {
        Some(reason) => format!("{} ({reason})", interval.status),
        None => interval.status.clone(),
    };
    let span = match interval.seconds {
        Some(seconds) => format!("over {seconds:.1} s"),
        None => "the server has just started".to_owned(),
    };
    format!("{url}: basis {}, {status}, {span}", interval.basis)
}

/// Rows of columns that stand below each other.
fn section(lines: &mut Vec<String>, title: &str, rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    lines.push(title.to_owned());
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for (index, (text, width)) in row.iter().zip(&widths).enumerate() {
            line.push(' ');
            // Names to the left, numbers to the right, as in any table.
            let padding = " ".repeat(width - text.chars().count());
            line.extend(if index == 0 { [text.as_str(), padding.as_str()] } else { [padding.as_str(), text.as_str()] });
            line.push(' ');
        }
        lines.push(line.trim_end().to_owned());
    }
}

fn rail(rail: &Rail) -> Vec<String> {
    let mark = if rail.in_basis { "" } else { " (not in the basis)" };
    let name = format!("{}{mark}", rail.domain);
    let idle = format!("idle {}", watts(rail.idle_watts));
    let mut row = vec![name, watts(rail.watts), idle, format!("{} in all", joules(rail.total_joules))];
    row.extend(rail.reason.as_ref().map(|reason| format!("unavailable: {reason}")));
    row
}

fn model(share: &Share) -> Vec<String> {
    vec![
        share.model.clone(),
        joules(share.joules),
        format!("{} in all", joules(share.total_joules)),
        format!("{} tokens", share.total_completion_tokens),
        share.joules_per_output_token.map_or_else(|| UNKNOWN.to_owned(), |per| format!("{} J/token", significant(per))),
        format!("{} requests", share.total_requests),
    ]
}

fn account(account: &Account) -> Option<Vec<String>> {
    let total = account.total_joules?;
    Some(vec![account.cause.to_owned(), joules(account.joules), format!("{} in all", joules(Some(total)))])
}

fn host(interval: &Interval) -> Option<String> {
    let host = &interval.host;
    let mut parts = Vec::new();
    parts.extend(
        host.cpu_share_ratio.map(|share| format!("{:.0} % of the busy CPU time is this server's", share * 100.0)),
    );
    parts.extend(host.foreign_gpu_processes.map(|count| format!("{count} processes of others on the GPUs")));
    parts.extend(host.power_supply.as_ref().map(|supply| format!("power from {supply}")));
    (!parts.is_empty()).then(|| format!("host   {}", parts.join(", ")))
}

fn watts(watts: Option<f64>) -> String {
    watts.map_or_else(|| UNKNOWN.to_owned(), |watts| format!("{watts:.1} W"))
}

fn joules(joules: Option<f64>) -> String {
    joules.map_or_else(|| UNKNOWN.to_owned(), |joules| format!("{} J", significant(joules)))
}

/// Three digits that say something, without an exponent: small numbers are not shown as 0.
fn significant(number: f64) -> String {
    let magnitude = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    let decimals = (2 - magnitude).clamp(0, 9) as usize;
    format!("{number:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{super::reading::tests::reading, *};

    #[test]
    fn an_interval_is_a_table() {
        let shown = lines("http://x", &Interval::between(&reading(10, None), &reading(12, None)));
        let expected = [
            "http://x: basis cpu, measured, over 2.0 s",
            "power  10.0 W   without work 4.0 W",
            "rails",
            "  rapl:package-0                     10.0 W  idle 4.0 W  120 J in all",
            "  rapl:package-1 (not in the basis)       -      idle -      - in all  unavailable: permission_denied",
            "models",
            "  frog  10.0 J  60.0 J in all  1200 tokens  0.0500 J/token  12 requests",
            "where it went",
            "  requests  10.0 J  60.0 J in all",
            "  idle      10.0 J  60.0 J in all",
            "  load      0.00 J  0.00 J in all",
            "  warmup    0.00 J  0.00 J in all",
            "  other     0.00 J  0.00 J in all",
            "host   98 % of the busy CPU time is this server's, power from ac",
            "notes",
            "  a remedy",
        ];
        assert_eq!(shown, expected, "{}", shown.join("\n"));
    }

    #[test]
    fn what_is_unknown_is_a_dash_and_its_reason() {
        let reason = Some("permission_denied");
        let shown = lines("http://x", &Interval::between(&reading(10, reason), &reading(12, reason))).join("\n");
        assert!(shown.contains("unavailable (permission_denied)"), "{shown}");
        assert!(shown.contains("power  -   without work -"), "{shown}");
        assert!(shown.contains("a remedy"), "{shown}");
    }

    #[test]
    fn small_numbers_are_not_nothing() {
        for (number, text) in
            [(0.0, "0.00"), (0.000012345, "0.0000123"), (1.0, "1.00"), (12.345, "12.3"), (123456.7, "123457")]
        {
            assert_eq!(significant(number), text);
        }
    }
}
