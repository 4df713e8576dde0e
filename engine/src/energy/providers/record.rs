//! Writes every reading to a trace.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::trace;
use crate::energy::{
    monitor::EnergyError,
    types::{Clock, Domain, EnergyProvider, Missing, Nanos, Raw, SourceClass, Unavailable},
};

/// What may be lost if the process is killed.
const FLUSH_PERIOD: Duration = Duration::from_secs(1);

/// Passes readings on and writes them down. If writing fails, the recording ends with an error in the log and the
/// readings go on.
pub(crate) struct Recorder {
    providers: Vec<Box<dyn EnergyProvider>>,
    owners: BTreeMap<String, (usize, SourceClass)>,
    /// `None` after an error.
    file: Option<BufWriter<File>>,
    path: PathBuf,
    clock: Arc<dyn Clock>,
    suspended: Duration,
    flushed: Nanos,
}

impl Recorder {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// If that fails.
    pub(crate) fn create(
        path: &Path,
        providers: Vec<Box<dyn EnergyProvider>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EnergyError> {
        let file = File::create(path).map_err(|source| EnergyError::Trace { path: path.into(), source })?;
        Ok(Self {
            providers,
            owners: BTreeMap::new(),
            file: Some(BufWriter::new(file)),
            path: path.into(),
            suspended: clock.suspended(),
            flushed: clock.now(),
            clock,
        })
    }

    #[cfg(test)]
    pub(super) fn is_recording(&self) -> bool {
        self.file.is_some()
    }

    fn write(&mut self, text: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = text(file) {
            self.end(&error);
        }
    }

    fn end(&mut self, error: &io::Error) {
        tracing::error!(path = %self.path.display(), %error, "the recording of energy readings ends here");
        self.file = None;
    }
}

impl EnergyProvider for Recorder {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let mut found = Vec::new();
        for (index, provider) in self.providers.iter_mut().enumerate() {
            for domain in provider.discover() {
                if let Ok(domain) = &domain {
                    self.owners.insert(domain.id.clone(), (index, domain.class));
                }
                found.push(domain);
            }
        }
        let lines: Option<Vec<String>> = found.iter().map(trace::describe).collect();
        match lines {
            Some(lines) => {
                self.write(|file| writeln!(file, "{}\n{}\n{}", trace::HEAD, lines.join("\n"), trace::COLUMNS));
            }
            None => self.end(&io::Error::other("the name of a domain has a character that traces cannot hold")),
        }
        found
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let (owner, class) = *self.owners.get(domain).ok_or(Unavailable::NoSensor)?;
        let reading = self.providers.get_mut(owner).ok_or(Unavailable::NoSensor)?.read(domain);
        let (now, suspended) = (self.clock.now(), self.clock.suspended());
        if suspended != self.suspended {
            self.suspended = suspended;
            self.write(|file| writeln!(file, "{},{},{}", now.0, trace::SUSPENDED, suspended.as_nanos()));
        }
        self.write(|file| writeln!(file, "{},{domain},{}", now.0, trace::reading_text(reading, class)));
        if now.since(self.flushed) >= FLUSH_PERIOD {
            self.flushed = now;
            self.write(|file| file.flush());
        }
        reading
    }

    fn foreign_processes(&mut self, domain: &str) -> Option<usize> {
        self.providers.get_mut(self.owners.get(domain)?.0)?.foreign_processes(domain)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.write(|file| file.flush());
    }
}
