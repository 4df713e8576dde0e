//! Models from the Hugging Face Hub, through the cache that all Hugging Face tools share.
//!
//! `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_ENDPOINT` work as everywhere; `HF_HUB_OFFLINE` forbids the network.

use std::{
    env,
    error::Error,
    io::IsTerminal,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use hf_hub::{
    HFClient,
    progress::{DownloadEvent, FileProgress, ProgressEvent, ProgressHandler},
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{AttentionChoice, ConfigHints, ModelConfig, ModelError};

/// What a folder snapshot needs: config, tokenizer, template and weights.
const WANTED: [&str; 4] = ["*.json", "*.jinja", "merges.txt", "*.safetensors"];
/// Copies of the weights in other layouts, and everything in folders.
const UNWANTED: [&str; 2] = ["*/*", "consolidated*"];
/// A log line is written each time so many percent more are there.
const LOG_EVERY_PERCENT: u64 = 10;

/// Silence after which a download is given up. The client sets no time limit of its own, so a server that takes a
/// connection and says nothing would hold it for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Download {
    /// A folder with config, tokenizer and safetensors.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

/// Gets a repository, or one GGUF file of it, into the cache. Fails if nothing moves for [`PATIENCE`]. `attention` is
/// what the user says of the model; its config may be useless without.
pub(crate) fn download(
    repo: &str,
    revision: Option<&str>,
    file: Option<&str>,
    attention: Option<AttentionChoice>,
) -> Result<Download, ModelError> {
    let movement = Movement::default();
    let work = {
        let (repo, revision, file) = (repo.to_owned(), revision.map(str::to_owned), file.map(str::to_owned));
        let movement = movement.clone();
        move || fetch(&ConfigHints { id: &repo, attention }, revision.as_deref(), file.as_deref(), &movement)
    };
    unless_silent(PATIENCE, &movement, work).unwrap_or_else(|| {
        let reason = format!("nothing came for {} s; check the network, HF_ENDPOINT and the proxy", PATIENCE.as_secs());
        Err(ModelError::Hub { repo: repo.into(), reason })
    })
}

/// Counts what a download does; clones count together.
#[derive(Debug, Clone, Default)]
struct Movement(Arc<AtomicU64>);

impl Movement {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What `work` returns, or `None` once nothing moved for `patience`. The thread of work that is given up stays behind;
/// it holds a connection and nothing else.
fn unless_silent<T: Send + 'static>(
    patience: Duration,
    movement: &Movement,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    // If the receiver is gone, the work was given up and nobody wants its outcome.
    let worker = thread::spawn(move || drop(sender.send(work())));
    let mut seen = movement.count();
    loop {
        match receiver.recv_timeout(patience) {
            Ok(outcome) => return Some(outcome),
            Err(mpsc::RecvTimeoutError::Timeout) if movement.count() != seen => seen = movement.count(),
            Err(mpsc::RecvTimeoutError::Timeout) => return None,
            Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
                Ok(()) => return None,
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}

/// One line that names the innermost cause, such as a host that has no address.
fn explain(error: &hf_hub::HFError) -> String {
    let text = match error {
        hf_hub::HFError::Request { url: Some(url), .. } => format!("no answer from {url}"),
        other => other.to_string(),
    };
    let mut root = error.source();
    while let Some(deeper) = root.and_then(Error::source) {
        root = Some(deeper);
    }
    let first = text.lines().next().unwrap_or_default();
    match root.map(ToString::to_string) {
        Some(root) if !text.contains(&root) => format!("{first}: {}", root.lines().next().unwrap_or_default()),
        _ => first.to_owned(),
    }
}

fn fetch(
    hints: &ConfigHints<'_>,
    revision: Option<&str>,
    file: Option<&str>,
    movement: &Movement,
) -> Result<Download, ModelError> {
    let repo = hints.id;
    let offline = is_offline(env::var("HF_HUB_OFFLINE").ok().as_deref());
    let failed = |error: hf_hub::HFError| {
        let hint = if offline { " (HF_HUB_OFFLINE is set, so only the cache was searched)" } else { "" };
        ModelError::Hub { repo: repo.into(), reason: format!("{}{hint}", explain(&error)) }
    };
    let client = HFClient::builder().build_sync().map_err(failed)?;
    let (owner, name) = repo.split_once('/').ok_or_else(|| ModelError::BadSource { name: repo.into() })?;
    let repository = client.model(owner, name);
    let one_file = |file: &str| {
        repository
            .download_file()
            .filename(file)
            .maybe_revision(revision)
            .local_files_only(offline)
            .progress(DownloadProgress::new(repo, movement))
            .send()
            .map_err(failed)
    };
    if let Some(file) = file {
        return one_file(file).map(Download::Gguf);
    }

    // The config first: whether the family is supported is known before gigabytes are on their way.
    let config = one_file("config.json")?;
    let text = std::fs::read_to_string(&config).map_err(|source| ModelError::Io { path: config.clone(), source })?;
    ModelConfig::from_hf_json(&text, &config, hints)?;
    let folder = repository
        .snapshot_download()
        .maybe_revision(revision)
        .allow_patterns(WANTED.map(String::from).to_vec())
        .ignore_patterns(UNWANTED.map(String::from).to_vec())
        .local_files_only(offline)
        .progress(DownloadProgress::new(repo, movement))
        .send()
        .map_err(failed)?;
    Ok(Download::Folder(folder))
}

/// Reads a switch the way the Python library does.
fn is_offline(value: Option<&str>) -> bool {
    value.is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// A bar on a terminal, log lines elsewhere.
struct DownloadProgress {
    repo: String,
    bar: Option<ProgressBar>,
    total: AtomicU64,
    /// Bytes of files that are complete.
    done: AtomicU64,
    logged_percent: AtomicU64,
    /// Bytes at the last event.
    seen: AtomicU64,
    movement: Movement,
}

impl DownloadProgress {
    fn new(repo: &str, movement: &Movement) -> Arc<Self> {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(repo.to_string());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            repo: repo.into(),
            bar,
            total: zero(),
            done: zero(),
            logged_percent: zero(),
            seen: zero(),
            movement: movement.clone(),
        })
    }

    fn show(&self, bytes: u64) {
        // Events also come by the clock, so that only a new number of bytes is movement.
        if self.seen.swap(bytes, Ordering::Relaxed) != bytes {
            self.movement.note();
        }
        let total = self.total.load(Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(bytes.min(total));
            return;
        }
        let percent = (bytes.min(total) * 100).checked_div(total).unwrap_or(100);
        let step = percent / LOG_EVERY_PERCENT * LOG_EVERY_PERCENT;
        if self.logged_percent.fetch_max(step, Ordering::Relaxed) < step {
            tracing::info!(repo = self.repo, percent = step, mib = bytes >> 20, "downloading");
        }
    }

    /// Bytes of complete files are kept; those of running ones are reported anew each time.
    fn add(&self, files: &[FileProgress]) {
        let (complete, running): (Vec<_>, Vec<_>) =
            files.iter().partition(|file| file.status == hf_hub::progress::FileStatus::Complete);
        let complete: u64 = complete.iter().map(|file| file.total_bytes).sum();
        let done = self.done.fetch_add(complete, Ordering::Relaxed) + complete;
        self.show(done + running.iter().map(|file| file.bytes_completed).sum::<u64>());
    }
}

impl ProgressHandler for DownloadProgress {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_files, total_bytes } => {
                self.movement.note();
                self.total.store(*total_bytes, Ordering::Relaxed);
                match &self.bar {
                    Some(bar) => bar.set_length(*total_bytes),
                    None if *total_bytes > 0 => {
                        tracing::info!(repo = self.repo, files = total_files, mib = total_bytes >> 20, "downloading");
                    }
                    None => {}
                }
            }
            DownloadEvent::Progress { files } => self.add(files),
            DownloadEvent::AggregateProgress { bytes_completed, .. } => self.show(*bytes_completed),
            DownloadEvent::Complete => {
                self.movement.note();
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_on_while_something_moves() {
        let patience = Duration::from_millis(100);
        let movement = Movement::default();
        let moving = movement.clone();
        let outcome = unless_silent(patience, &movement, move || {
            for _ in 0..30 {
                thread::sleep(Duration::from_millis(10));
                moving.note();
            }
            7
        });
        assert_eq!(outcome, Some(7));
        let (_hold, wait) = mpsc::sync_channel::<()>(1);
        assert_eq!(unless_silent(patience, &movement, move || wait.recv().is_ok()), None, "silence is given up");
    }

    #[test]
    fn offline_is_read_as_python_reads_it() {
        for on in ["1", "true", "YES", "On"] {
            assert!(is_offline(Some(on)), "{on}");
        }
        for off in [None, Some("0"), Some(""), Some("no")] {
            assert!(!is_offline(off), "{off:?}");
        }
    }
}
