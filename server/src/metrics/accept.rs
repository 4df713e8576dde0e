//! Which text format a reader of metrics wants.

use axum::http::{HeaderMap, header};

/// A format of the page of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older text format of Prometheus.
    Classic,
}

impl Format {
    /// The one that `Accept` prefers; OpenMetrics if it does not matter.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let mut open = Preference::default();
        let mut classic = Preference::default();
        for value in headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
            for range in value.split(',') {
                let mut parts = range.split(';').map(str::trim);
                let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
                let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse);
                let Ok(weight) = weight else { continue };
                match kind.as_str() {
                    "application/openmetrics-text" => open.add(3, weight),
                    "application/*" => open.add(2, weight),
                    "text/plain" => classic.add(3, weight),
                    "text/*" => classic.add(2, weight),
                    "*/*" => {
                        open.add(1, weight);
                        classic.add(1, weight);
                    }
                    _ => {}
                }
            }
        }
        if classic.weight > open.weight { Self::Classic } else { Self::OpenMetrics }
    }

    /// Its media type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// How much a type is wanted: what the most specific range says, the highest weight of several.
#[derive(Debug, Default)]
struct Preference {
    rank: u8,
    weight: f32,
}

impl Preference {
    fn add(&mut self, rank: u8, weight: f32) {
        if (rank, weight) > (self.rank, self.weight) {
            *self = Self { rank, weight };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_get_what_they_ask_for() {
        let of = |accept: &str| Format::wanted(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]));
        let scraper = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                       text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for open in [
            scraper,
            "*/*",
            "",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/json",
            "image/png",
            "text/plain;q=0.4, application/openmetrics-text;q=0.4",
            "text/plain;q=0",
        ] {
            assert_eq!(of(open), Format::OpenMetrics, "{open}");
        }
        for classic in [
            "text/plain",
            "TEXT/plain; version=0.0.4",
            "text/plain;version=0.0.4;q=1,*/*;q=0.1",
            "text/*",
            "application/openmetrics-text;q=0.2, text/plain;q=0.3",
            "application/openmetrics-text;q=0, */*",
        ] {
            assert_eq!(of(classic), Format::Classic, "{classic}");
        }
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::OpenMetrics);
    }
}
