//! Log lines go to stderr; stdout stays free.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use crate::{args::LogFormat, settings::LogSettings};

/// Starts logging. The filter was checked with the settings. A second call changes nothing.
pub fn init(settings: &LogSettings) {
    let builder = fmt()
        .with_env_filter(EnvFilter::new(filter(&settings.filter)))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // An error only says that logging runs already, as it does when tests start several servers.
    let _started = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
}

/// The Hub client logs an error where it also returns it. Such errors end the program with one line, so the second is
/// left out unless the operator asks for that crate.
fn filter(given: &str) -> String {
    if given.contains("hf_hub") { given.to_owned() } else { format!("{given},hf_hub=off") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_client_is_quiet_unless_asked_for() {
        assert_eq!(filter("info"), "info,hf_hub=off");
        assert_eq!(filter("info,hf_hub=debug"), "info,hf_hub=debug");
    }
}
