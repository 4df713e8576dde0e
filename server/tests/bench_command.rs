//! `leapfrog bench` through the real program, with a shell script in the place of `leapfrog-bench`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::TempDir;

/// Says what it was given, one argument a line in brackets, and what came in; the exit code is unlike any of our own.
const SCRIPT: &str = "#!/bin/sh\nfor arg in \"$@\"; do echo \"[$arg]\"; done\ncat\necho told >&2\nexit 7\n";

/// A folder with the program in it; the one of the build may have the real `leapfrog-bench` beside it.
fn folder() -> (TempDir, MutexGuard<'static, ()>) {
    // A file that another thread's child still has open for writing cannot be started.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let built = Path::new(env!("CARGO_BIN_EXE_leapfrog"));
    let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
    fs::hard_link(built, folder.path().join("leapfrog")).unwrap();
    (folder, guard)
}

fn place_script(folder: &Path, script: &str) {
    let file = folder.join("leapfrog-bench");
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn leapfrog(folder: &Path, path: &str, args: &[&str]) -> Output {
    let input = folder.join("input");
    fs::write(&input, "from stdin\n").unwrap();
    let mut command = Command::new(folder.join("leapfrog"));
    command.args(args).env("PATH", path).stdin(Stdio::from(fs::File::open(input).unwrap())).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

#[test]
fn arguments_streams_and_exit_code_are_those_of_the_program() {
    let (folder, _guard) = folder();
    place_script(folder.path(), SCRIPT);
    for args in [
        &["speed", "--model", "a b", "--", "-x"][..],
        &["--help"],
        &["-h"],
        &["--version"],
        &["--", "serve"],
        &["serve", "--help"],
        &["--port=1", "", "*", "help"],
        &[],
    ] {
        let output = leapfrog(folder.path(), "/usr/bin:/bin", &[&["bench"], args].concat());
        let told: String = args.iter().map(|arg| format!("[{arg}]\n")).collect();
        assert_eq!(text(&output.stdout), told + "from stdin\n");
        assert_eq!(text(&output.stderr), "told\n");
        assert_eq!(output.status.code(), Some(7));
    }
}

#[test]
fn the_program_may_be_on_the_path() {
    let ((folder, _guard), elsewhere) = (folder(), tempfile::tempdir().unwrap());
    place_script(elsewhere.path(), SCRIPT);
    let path = format!("/usr/bin:/bin:{}", elsewhere.path().display());
    let output = leapfrog(folder.path(), &path, &["bench", "zoo"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("[zoo]\nfrom stdin\n", Some(7)));
}

#[test]
fn without_the_program_the_message_says_how_to_get_it() {
    let (folder, _guard) = folder();
    let output = leapfrog(folder.path(), "/nowhere", &["bench", "speed"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert_eq!(message.lines().count(), 1, "{message}");
    let beside = folder.path().join("leapfrog-bench").display().to_string();
    for part in ["cargo build --release -p leapfrog-bench", &beside, "/nowhere/leapfrog-bench"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_program_that_does_not_start_is_named() {
    let (folder, _guard) = folder();
    place_script(folder.path(), "#!/nowhere/interpreter\n");
    let output = leapfrog(folder.path(), "", &["bench"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("leapfrog-bench does not start"), "{}", text(&output.stderr));
}

#[test]
fn help_lists_the_command_and_shows_how_to_use_it() {
    let (folder, _guard) = folder();
    let output = leapfrog(folder.path(), "", &["--help"]);
    let help = text(&output.stdout);
    assert!(help.contains("  bench ") && help.contains("leapfrog bench speed --model"), "{help}");
}
