//! `leapfrog bench`: another program, as nothing that serves depends on what measures it. It is found and started the way
//! `git` and `cargo` find theirs.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Its name, without what the system adds to the names of programs.
const PROGRAM: &str = "leapfrog-bench";

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Handed on as they are; `leapfrog bench --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// There is no such program.
    #[error(
        "`leapfrog bench` runs the program {PROGRAM}, which is not there: build it with `cargo build --release -p \
         leapfrog-bench` and put it beside this program or in a folder of PATH (looked for {})",
        list(.looked)
    )]
    Missing {
        /// Where it could have been, in order.
        looked: Vec<PathBuf>,
    },
    /// It is there and does not start.
    #[error("{} does not start: {source}", .program.display())]
    Start {
        /// The file.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Runs the program with `args`, the streams and the environment of this one; its exit code is ours. On Unix it takes the
/// place of this process, so that this returns only if it did not start.
pub fn run(args: impl Iterator<Item = OsString>) -> Result<ExitCode, BenchError> {
    let own = env::current_exe().ok();
    let program = find(own.as_deref().and_then(Path::parent), env::var_os("PATH").as_deref())?;
    let mut command = Command::new(&program);
    command.args(args);
    start(command).map_err(|source| BenchError::Start { program, source })
}

#[cfg(unix)]
fn start(mut command: Command) -> io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

#[cfg(not(unix))]
fn start(mut command: Command) -> io::Result<ExitCode> {
    let code = command.status()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The first program of that name in the folder of this one, then in those of `path`.
fn find(beside: Option<&Path>, path: Option<&OsStr>) -> Result<PathBuf, BenchError> {
    let on_path = path.map(|path| env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let folders = beside.map(Path::to_path_buf).into_iter().chain(on_path);
    let looked: Vec<PathBuf> =
        folders.map(|folder| folder.join(PROGRAM).with_extension(env::consts::EXE_EXTENSION)).collect();
    match looked.iter().find(|file| is_program(file)) {
        Some(file) => Ok(file.clone()),
        None => Err(BenchError::Missing { looked }),
    }
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.is_file()
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn place(folder: &Path, mode: u32) -> io::Result<PathBuf> {
        let file = folder.join(PROGRAM);
        fs::write(&file, "")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        Ok(file)
    }

    #[test]
    fn beside_comes_before_the_path_and_what_cannot_run_is_passed_over() {
        let [own, first, second] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let path = env::join_paths([first.path(), second.path()]).unwrap();
        let found = || find(Some(own.path()), Some(&path));

        let error = found().unwrap_err().to_string();
        assert!(error.contains("cargo build --release -p leapfrog-bench"), "{error}");
        let at = [&own, &first, &second].map(|folder| error.find(folder.path().to_str().unwrap()).unwrap());
        assert!(at.is_sorted(), "{error}");

        place(first.path(), 0o644).unwrap();
        let last = place(second.path(), 0o755).unwrap();
        assert_eq!(found().unwrap(), last);
        let beside = place(own.path(), 0o755).unwrap();
        assert_eq!(found().unwrap(), beside);
        assert_eq!(find(None, Some(&path)).unwrap(), last);
        assert!(find(None, None).is_err());
    }
}
