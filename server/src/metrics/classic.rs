//! The text format of Prometheus (0.0.4) from OpenMetrics text, for readers that know no other. The two differ in how
//! metrics are described: there a counter is called as its samples are, with the suffix `_total`.

/// Rewrites a whole page, as the client library writes it: descriptions before their samples, no exemplars and no
/// timestamps. Names with colons are those of other servers; checkers of this format take them for results of rules, so
/// they are there only if `foreign` names are asked for.
pub(super) fn convert(openmetrics: &str, foreign: bool) -> String {
    let mut page = String::with_capacity(openmetrics.len());
    // The line of help comes before the type that decides how the name is spelled.
    let mut help: Option<(&str, &str)> = None;
    let is_shown = |line: &&str| foreign || !named(line).contains(':');
    for line in openmetrics.lines().filter(is_shown) {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(described) = line.strip_prefix("# TYPE ") {
            if let Some((name, kind)) = described.split_once(' ') {
                let text = help.take().filter(|(of, _)| *of == name).map(|(_, text)| text);
                describe(&mut page, name, kind, text);
            }
        } else if !line.starts_with('#') && !line.is_empty() && !is_creation_time(line) {
            push(&mut page, &[line]);
        }
    }
    page
}

/// The name that a description or a sample is of.
fn named(line: &str) -> &str {
    let line = ["# HELP ", "# TYPE ", "# UNIT "].iter().find_map(|start| line.strip_prefix(start)).unwrap_or(line);
    line.split(['{', ' ']).next().unwrap_or_default()
}

fn describe(page: &mut String, name: &str, kind: &str, help: Option<&str>) {
    let (suffix, kind) = match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "stateset" => ("", "gauge"),
        "unknown" => ("", "untyped"),
        known => ("", known),
    };
    if let Some(help) = help {
        // There quotes are escaped in help, here they are not.
        push(page, &["# HELP ", name, suffix, " ", &help.replace("\\\"", "\"")]);
    }
    push(page, &["# TYPE ", name, suffix, " ", kind]);
}

fn push(page: &mut String, parts: &[&str]) {
    page.extend(parts.iter().copied());
    page.push('\n');
}

/// Samples that say since when another one counts; here they would be a metric of their own.
fn is_creation_time(line: &str) -> bool {
    line.split(['{', ' ']).next().is_some_and(|name| name.ends_with("_created"))
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::text::encode,
        metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
        registry::{Registry, Unit},
    };

    use super::*;

    #[test]
    fn counters_are_called_as_their_samples() {
        let mut registry = Registry::default();
        let requests: Family<Vec<(String, String)>, Counter> = Family::default();
        requests.get_or_create(&vec![("path".into(), "a # TYPE \"b\"\n{".into())]).inc_by(3);
        registry.register("requests", "All \"requests\"", requests);
        let joules: Counter<f64> = Counter::default();
        joules.inc_by(0.25);
        registry.register_with_unit("energy", "Energy", Unit::Joules, joules);
        registry.register("running", "Now", Gauge::<i64>::default());
        let seconds = Histogram::new([0.5, 1.0]);
        seconds.observe(0.75);
        registry.register_with_unit("wait", "Waited", Unit::Seconds, seconds);
        registry.register("build", "What runs", Info::new(vec![("version", "1")]));
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        let expected = r#"# HELP requests_total All "requests".
# TYPE requests_total counter
requests_total{path="a # TYPE \"b\"\n{"} 3
# HELP energy_joules_total Energy.
# TYPE energy_joules_total counter
energy_joules_total 0.25
# HELP running Now.
# TYPE running gauge
running 0
# HELP wait_seconds Waited.
# TYPE wait_seconds histogram
wait_seconds_sum 0.75
wait_seconds_count 1
wait_seconds_bucket{le="0.5"} 0
wait_seconds_bucket{le="1.0"} 1
wait_seconds_bucket{le="+Inf"} 1
# HELP build_info What runs.
# TYPE build_info gauge
build_info{version="1"} 1
"#;
        assert_eq!(convert(&page, true), expected, "{page}");
    }

    #[test]
    fn what_has_no_place_there_is_left_out() {
        let page = "# TYPE a counter\n# UNIT a seconds\na_total 1\na_created 5\na_created{x=\"y\"} 5\n# TYPE b unknown\n\
                    b{c=\"d_created\"} 2\n# EOF\n";
        let expected = "# TYPE a_total counter\na_total 1\n# TYPE b untyped\nb{c=\"d_created\"} 2\n";
        assert_eq!(convert(page, true), expected);
    }

    #[test]
    fn names_of_other_servers_are_there_if_asked_for() {
        let page =
            "# HELP a:b Some.\n# TYPE a:b counter\na:b_total{x=\"1\"} 1\n# TYPE c gauge\nc{x=\"a:b\"} 2\n# EOF\n";
        assert_eq!(convert(page, false), "# TYPE c gauge\nc{x=\"a:b\"} 2\n");
        assert!(convert(page, true).contains("a:b_total{x=\"1\"} 1\n"));
    }
}
