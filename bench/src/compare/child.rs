//! A server as a child process that never outlives this program's interest in it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// Last lines of its log that a message shows.
const SHOWN_LINES: usize = 12;
/// Longest wait for `--version`.
const VERSION_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(20);
/// Variables that would set options behind the back of the command line.
const OPTION_VARIABLES: [&str; 2] = ["LEAPFROG_", "LLAMA_ARG_"];

/// A process with its children, in a process group of its own.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// What it printed, both streams.
    log: PathBuf,
    /// How it ended, once it has.
    end: Option<String>,
}

impl Server {
    /// Starts `command` in `folder`; what it prints goes to `log`. The terminal's Ctrl-C does not reach it: it ends when
    /// this value does.
    pub(super) fn start(command: &[String], folder: &Path, log: PathBuf) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = quiet(program)
            .args(arguments)
            .current_dir(folder)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self { child, log, end: None })
    }

    /// How it ended and what it said last; `None` while it runs.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<&str>> {
        if self.end.is_none()
            && let Some(status) = self.child.try_wait().context("cannot look at a server's process")?
        {
            // What it started may live on; its group has the number still.
            self.kill_group();
            self.end = Some(format!("it ended ({status}); its last lines:\n{}", self.last_lines()));
        }
        Ok(self.end.as_deref())
    }

    /// The end of what it printed.
    pub(super) fn last_lines(&self) -> String {
        let text = match fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return format!("({}: {error})", self.log.display()),
        };
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        match lines.is_empty() {
            true => "(it printed nothing)".into(),
            false => lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"),
        }
    }

    /// Fails only if the group is gone, which is what is wanted.
    fn kill_group(&self) {
        let _gone = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.kill_group();
            // A process that was killed has no way to make this wait.
            let _status = self.child.wait();
        }
    }
}

/// A command in a group of its own, without input and without options from the environment.
fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).process_group(0);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| OPTION_VARIABLES.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// What `program --version` prints, on one line; `None` if it fails, says nothing or does not end.
pub(super) fn version(program: &Path) -> anyhow::Result<Option<String>> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let command = [program.display().to_string(), "--version".into()];
    let mut asked = Server::start(&command, folder.path(), folder.path().join("version"))?;
    let began = Instant::now();
    loop {
        if let Some(status) = asked.child.try_wait()? {
            let said = asked.last_lines();
            asked.end = Some(String::new());
            let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
            return Ok((status.success() && !line.starts_with('(')).then_some(line));
        }
        if began.elapsed() > VERSION_WAIT {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

/// A port that nobody listened on a moment ago.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port")?;
    let port = listener.local_addr()?.port();
    ensure!(port != 0, "the system gave port 0");
    Ok(port)
}

#[cfg(test)]
mod tests {
    use rustix::process::test_kill_process;

    use super::*;

    fn shell(script: &str, folder: &Path) -> Server {
        let command = ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        Server::start(&command, folder, folder.join("log")).unwrap()
    }

    fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "waited in vain");
            std::thread::sleep(PAUSE);
        }
    }

    /// A process is gone if it is no more or waits to be collected by whoever inherited it.
    fn is_gone(id: i32) -> bool {
        let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let is_zombie = state.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
        is_zombie || Pid::from_raw(id).is_none_or(|id| test_kill_process(id).is_err())
    }

    /// The id that a script wrote.
    fn id_in(path: &Path) -> i32 {
        wait_for(|| fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok())
    }

    #[test]
    fn nothing_that_a_server_started_outlives_it() {
        let folder = tempfile::tempdir().unwrap();
        let server = shell("sleep 600 & echo $! >grandchild; wait", folder.path());
        let grandchild = id_in(&folder.path().join("grandchild"));
        let child = i32::try_from(server.child.id()).unwrap();
        assert!(!is_gone(child) && !is_gone(grandchild));
        drop(server);
        wait_for(|| is_gone(child).then_some(()));
        wait_for(|| is_gone(grandchild).then_some(()));
    }

    #[test]
    fn a_server_that_died_leaves_its_last_lines_and_no_children() {
        let folder = tempfile::tempdir().unwrap();
        let script = "sleep 600 & echo $! >grandchild; seq 1 40; echo no such model >&2; exit 3";
        let mut server = shell(script, folder.path());
        let grandchild = id_in(&folder.path().join("grandchild"));
        let said = wait_for(|| server.ended().unwrap().map(str::to_owned));
        assert!(said.contains("exit status: 3") && said.ends_with("39\n40\nno such model"), "{said}");
        assert!(!said.contains("\n20\n"), "{said}");
        wait_for(|| is_gone(grandchild).then_some(()));
    }

    #[test]
    fn versions_are_what_programs_say() {
        let said = version(Path::new("sh")).unwrap();
        assert!(said.is_none_or(|line| !line.contains('\n')));
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("server");
        fs::write(&program, "#!/bin/sh\necho version: 12 >&2\necho built with care\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(version(&program).unwrap().as_deref(), Some("version: 12 built with care"));
        assert!(version(&folder.path().join("none")).is_err());
    }

    #[test]
    fn ports_differ_while_they_are_held() {
        let first = free_port().unwrap();
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        assert_ne!(free_port().unwrap(), first);
    }
}
