//! Some of our metrics once more, under the names that dashboards for other servers know.

use std::{collections::BTreeMap, fmt::Write};

/// A server whose names are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `vllm:*`, with the labels `model_name` and `engine`.
    Vllm,
    /// `llamacpp:*`, with the label `model_name`.
    LlamaCpp,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Vllm, Self::LlamaCpp];

    /// The name in options, which is also the prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llamacpp",
        }
    }
}

/// One metric in other words.
struct Alias {
    ours: &'static str,
    /// Only samples with one of these values of a label, which is then called otherwise, or dropped.
    only: Option<(&'static str, &'static [&'static str], Option<&'static str>)>,
    vllm: Option<&'static str>,
    llamacpp: Option<&'static str>,
}

const fn alias(ours: &'static str, vllm: Option<&'static str>, llamacpp: Option<&'static str>) -> Alias {
    Alias { ours, only: None, vllm, llamacpp }
}

const fn tokens(kind: &'static [&'static str], vllm: &'static str, llamacpp: &'static str) -> Alias {
    let only = Some(("kind", kind, None));
    Alias { ours: "leapfrog_tokens", only, vllm: Some(vllm), llamacpp: Some(llamacpp) }
}

/// What means the same there as here.
const ALIASES: [Alias; 11] = [
    alias("leapfrog_requests_running", Some("num_requests_running"), Some("requests_processing")),
    alias("leapfrog_requests_waiting", Some("num_requests_waiting"), Some("requests_deferred")),
    tokens(&["prompt"], "prompt_tokens", "prompt_tokens"),
    tokens(&["completion"], "generation_tokens", "tokens_predicted"),
    alias("leapfrog_time_to_first_token_seconds", Some("time_to_first_token_seconds"), None),
    alias("leapfrog_inter_event_seconds", Some("inter_token_latency_seconds"), None),
    alias("leapfrog_request_duration_seconds", Some("e2e_request_latency_seconds"), None),
    alias("leapfrog_queue_duration_seconds", Some("request_queue_time_seconds"), None),
    alias("leapfrog_preemptions", Some("num_preemptions"), None),
    alias("leapfrog_shared_prefix_tokens", Some("prefix_cache_hits"), None),
    Alias {
        ours: "leapfrog_requests",
        only: Some(("outcome", &["stop", "length"], Some("finished_reason"))),
        vllm: Some("request_success"),
        llamacpp: None,
    },
];

/// Labels that stay what they are; the others, such as our strategies, are summed over.
const KEPT: [&str; 1] = ["le"];

/// Adds the aliases of `dialects` to a page of OpenMetrics text, before its end.
pub(super) fn extend(page: &str, dialects: &[Dialect]) -> String {
    let Some(body) = page.strip_suffix("# EOF\n").filter(|_| !dialects.is_empty()) else { return page.to_owned() };
    let families = families(body);
    let mut extended = body.to_owned();
    for dialect in dialects {
        for alias in &ALIASES {
            let name = match dialect {
                Dialect::Vllm => alias.vllm,
                Dialect::LlamaCpp => alias.llamacpp,
            };
            if let (Some(name), Some(family)) = (name, families.get(alias.ours)) {
                translate(&mut extended, *dialect, name, alias, family);
            }
        }
    }
    extended.push_str("# EOF\n");
    extended
}

/// What a page says of one metric.
#[derive(Debug, Default)]
struct Family<'a> {
    kind: &'a str,
    help: &'a str,
    samples: Vec<Sample<'a>>,
}

/// A sample; the end of its name is what follows the name of its metric.
#[derive(Debug)]
struct Sample<'a> {
    suffix: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
}

fn families(page: &str) -> BTreeMap<&str, Family<'_>> {
    let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
    let mut current = "";
    for line in page.lines() {
        let described = line.strip_prefix("# ").and_then(|line| line.split_once(' '));
        match described.and_then(|(what, rest)| Some((what, rest.split_once(' ')?))) {
            Some(("HELP", (name, help))) => families.entry(name).or_default().help = help,
            Some(("TYPE", (name, kind))) => {
                current = name;
                families.entry(name).or_default().kind = kind;
            }
            Some(_) => {}
            None => {
                if let Some(sample) = sample(line, current) {
                    families.entry(current).or_default().samples.push(sample);
                }
            }
        }
    }
    families
}

fn sample<'a>(line: &'a str, family: &str) -> Option<Sample<'a>> {
    let (key, value) = line.rsplit_once(' ')?;
    let (name, labels) = key.split_once('{').map_or((key, ""), |(name, labels)| (name, labels));
    Some(Sample { suffix: name.strip_prefix(family)?, labels: split(labels), value: value.parse().ok()? })
}

/// `a="x",b="y"}` as pairs; values stay escaped.
fn split(mut text: &str) -> Vec<(&str, &str)> {
    let mut labels = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut escaped = false;
        let end = rest.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        labels.push((name.trim_start_matches(','), &rest[..end]));
        text = &rest[end + 1..];
    }
    labels
}

fn translate(page: &mut String, dialect: Dialect, name: &str, alias: &Alias, family: &Family<'_>) {
    let mut order: Vec<String> = Vec::new();
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for sample in &family.samples {
        let Some(labels) = relabel(&sample.labels, dialect, alias) else { continue };
        let key = format!("{}:{name}{}{{{labels}}}", dialect.name(), sample.suffix);
        *sums.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            0.0
        }) += sample.value;
    }
    if order.is_empty() {
        return;
    }
    let prefix = dialect.name();
    // Writing to a string does not fail.
    let _ = writeln!(page, "# HELP {prefix}:{name} {}\n# TYPE {prefix}:{name} {}", family.help, family.kind);
    for key in order {
        let _ = writeln!(page, "{key} {}", sums[&key]);
    }
}

/// The labels of a sample over there; `None` if it has no place there.
fn relabel(labels: &[(&str, &str)], dialect: Dialect, alias: &Alias) -> Option<String> {
    let mut renamed: Vec<String> = Vec::new();
    for (name, value) in labels {
        match alias.only {
            Some((only, values, new)) if only == *name => {
                if !values.contains(value) {
                    return None;
                }
                renamed.extend(new.map(|new| format!("{new}=\"{value}\"")));
            }
            _ if *name == "model" => renamed.push(format!("model_name=\"{value}\"")),
            _ if KEPT.contains(name) => renamed.push(format!("{name}=\"{value}\"")),
            _ => {}
        }
    }
    if dialect == Dialect::Vllm {
        renamed.push("engine=\"0\"".to_owned());
    }
    Some(renamed.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# HELP leapfrog_requests_running Now.
# TYPE leapfrog_requests_running gauge
leapfrog_requests_running{model="a\"b,c=\"d"} 3
# HELP leapfrog_tokens All.
# TYPE leapfrog_tokens counter
leapfrog_tokens_total{model="m",kind="prompt"} 5
leapfrog_tokens_total{model="m",kind="completion"} 7
# HELP leapfrog_requests Ended.
# TYPE leapfrog_requests counter
leapfrog_requests_total{model="m",outcome="stop",strategy="ar"} 1
leapfrog_requests_total{model="m",outcome="stop",strategy="jacobi"} 2
leapfrog_requests_total{model="m",outcome="cancelled",strategy="ar"} 9
# HELP leapfrog_time_to_first_token_seconds First.
# TYPE leapfrog_time_to_first_token_seconds histogram
# UNIT leapfrog_time_to_first_token_seconds seconds
leapfrog_time_to_first_token_seconds_sum{model="m"} 0.25
leapfrog_time_to_first_token_seconds_bucket{le="0.5",model="m"} 1
# EOF
"#;

    #[test]
    fn dashboards_find_the_names_they_know() {
        let page = extend(PAGE, &Dialect::ALL);
        let added = page.strip_prefix(PAGE.strip_suffix("# EOF\n").unwrap()).unwrap();
        let expected = r#"# HELP vllm:num_requests_running Now.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="a\"b,c=\"d",engine="0"} 3
# HELP vllm:prompt_tokens All.
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{model_name="m",engine="0"} 5
# HELP vllm:generation_tokens All.
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{model_name="m",engine="0"} 7
# HELP vllm:time_to_first_token_seconds First.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_sum{model_name="m",engine="0"} 0.25
vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="m",engine="0"} 1
# HELP vllm:request_success Ended.
# TYPE vllm:request_success counter
vllm:request_success_total{model_name="m",finished_reason="stop",engine="0"} 3
# HELP llamacpp:requests_processing Now.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing{model_name="a\"b,c=\"d"} 3
# HELP llamacpp:prompt_tokens All.
# TYPE llamacpp:prompt_tokens counter
llamacpp:prompt_tokens_total{model_name="m"} 5
# HELP llamacpp:tokens_predicted All.
# TYPE llamacpp:tokens_predicted counter
llamacpp:tokens_predicted_total{model_name="m"} 7
# EOF
"#;
        assert_eq!(added, expected);
        assert_eq!(extend(PAGE, &[]), PAGE);
    }
}
