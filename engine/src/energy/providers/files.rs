//! Small files of the kernel, behind a trait so that tests decide what can be read.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::energy::types::Unavailable;

/// More than any file with one number has. A longer file is not one.
const NUMBER_LIMIT: usize = 64;
/// Enough for the first processor in `/proc/cpuinfo`.
const TEXT_LIMIT: usize = 16 * 1024;

/// Access to files.
pub(crate) trait Files: Send + Sync {
    /// The names in a folder, sorted.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Opens a file to read it again and again.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFromStart>>;
}

/// An open file that is read from its first byte each time.
pub(crate) trait ReadFromStart: Send {
    /// Fills `buffer` from the start of the file; returns the number of bytes, 0 for an empty file.
    fn read_from_start(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// The files of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemFiles;

impl Files for SystemFiles {
    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
        let mut names: Vec<String> = names.filter_map(Result::transpose).collect::<io::Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFromStart>> {
        Ok(Box::new(File::open(path)?))
    }
}

impl ReadFromStart for File {
    #[cfg(unix)]
    fn read_from_start(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, 0)
    }

    #[cfg(not(unix))]
    fn read_from_start(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::{Read as _, Seek as _};
        self.rewind()?;
        self.read(buffer)
    }
}

/// The number that an open file holds: decimal digits, with or without white space around them.
pub(crate) fn number(file: &mut dyn ReadFromStart) -> Result<u64, Unavailable> {
    let mut buffer = [0; NUMBER_LIMIT];
    let len = file.read_from_start(&mut buffer).map_err(|error| reason(&error))?;
    parse(&buffer[..len]).ok_or(Unavailable::ReadFailed)
}

fn parse(bytes: &[u8]) -> Option<u64> {
    if bytes.len() == NUMBER_LIMIT {
        return None;
    }
    let text = str::from_utf8(bytes).ok()?.trim_ascii();
    // `parse` alone would take a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The number in a file.
pub(crate) fn number_in(files: &dyn Files, path: &Path) -> Result<u64, Unavailable> {
    number(&mut *files.open(path).map_err(|error| reason(&error))?)
}

/// The text of a small file, without white space around it; at most 16 KiB of it.
pub(crate) fn text_in(files: &dyn Files, path: &Path) -> io::Result<String> {
    let mut buffer = vec![0; TEXT_LIMIT];
    let len = files.open(path)?.read_from_start(&mut buffer)?;
    buffer.truncate(len);
    Ok(String::from_utf8_lossy(&buffer).trim().to_owned())
}

/// Why a file that is there cannot be read.
pub(crate) fn reason(error: &io::Error) -> Unavailable {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Unavailable::PermissionDenied,
        _ => Unavailable::ReadFailed,
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::{
        collections::{HashMap, HashSet},
        path::PathBuf,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// The files of this machine, but for those that a test says fail: modes of files mean nothing to root.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct FailingFiles {
        failing: Arc<Mutex<HashMap<PathBuf, io::ErrorKind>>>,
        opened: Arc<Mutex<Vec<PathBuf>>>,
    }

    impl FailingFiles {
        pub(crate) fn fail(&self, path: impl Into<PathBuf>, kind: io::ErrorKind) {
            self.failing.lock().unwrap().insert(path.into(), kind);
        }

        pub(crate) fn heal(&self, path: impl AsRef<Path>) {
            self.failing.lock().unwrap().remove(path.as_ref());
        }

        pub(crate) fn opened(&self, path: impl AsRef<Path>) -> usize {
            self.opened.lock().unwrap().iter().filter(|opened| *opened == path.as_ref()).count()
        }

        pub(crate) fn opened_in(&self, folder: impl AsRef<Path>) -> usize {
            let opened = self.opened.lock().unwrap();
            opened.iter().filter(|path| path.starts_with(&folder)).collect::<HashSet<_>>().len()
        }

        fn check(&self, path: &Path) -> io::Result<()> {
            self.failing.lock().unwrap().get(path).map_or(Ok(()), |kind| Err((*kind).into()))
        }
    }

    impl Files for FailingFiles {
        fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
            self.check(folder)?;
            SystemFiles.names(folder)
        }

        fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFromStart>> {
            self.opened.lock().unwrap().push(path.into());
            self.check(path)?;
            Ok(Box::new(Failing { files: self.clone(), path: path.into(), file: File::open(path)? }))
        }
    }

    struct Failing {
        files: FailingFiles,
        path: PathBuf,
        file: File,
    }

    impl ReadFromStart for Failing {
        fn read_from_start(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.files.check(&self.path)?;
            self.file.read_from_start(buffer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_numbers_are_numbers() {
        for (text, expected) in [
            ("0", Some(0)),
            ("12\n", Some(12)),
            (" 00012 \n", Some(12)),
            ("18446744073709551615\n", Some(u64::MAX)),
            ("18446744073709551616\n", None),
            ("", None),
            ("\n", None),
            ("-1\n", None),
            ("+1\n", None),
            ("1.5\n", None),
            ("1 2\n", None),
            ("0x10", None),
            ("N/A\n", None),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(parse(&[0xff, b'1']), None);
        assert_eq!(parse("1".repeat(NUMBER_LIMIT).as_bytes()), None);
    }
}
