//! Log lines go to stderr; stdout stays free.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use crate::{args::LogFormat, settings::LogSettings};

/// Starts logging. The filter was checked with the settings. A second call changes nothing.
pub fn init(settings: &LogSettings) {
    let builder = fmt()
        .with_env_filter(EnvFilter::new(&settings.filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // An error only says that logging runs already, as it does when tests start several servers.
    let _started = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
}
