//! The async runtime of a command.

use std::{error::Error, process::ExitCode};

use crate::{logs, settings::LogSettings};

/// Runs `work` to its end, with its log lines as `log` has them.
pub fn drive<E: Error + Send + Sync + 'static>(
    log: &LogSettings,
    work: impl Future<Output = Result<ExitCode, E>>,
) -> anyhow::Result<ExitCode> {
    logs::init(log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // A load that was interrupted cannot be cancelled; the process does not wait for it.
    runtime.shutdown_background();
    Ok(outcome?)
}
