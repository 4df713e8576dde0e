//! Runs programs that a model wrote, with limits. They keep accidents away; they are no wall against malice.

use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::stats::SplitMix;

/// Limits of one program: wall time, processor seconds, bytes of memory, bytes of a file.
const WALL: Duration = Duration::from_secs(15);
const CPU_SECONDS: u32 = 10;
const MEMORY: u64 = 1 << 30;
const FILE: u64 = 1 << 20;

/// A function to be written, and its tests.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Imports, signature and description.
    pub(super) prompt: String,
    /// Defines `check(candidate)`.
    pub(super) test: String,
    pub(super) entry_point: String,
}

/// Whether the tests pass with what the model wrote; `None` if it wrote no program.
///
/// # Errors
/// If Python or the tools that limit it cannot be run: that says nothing of the program.
pub(super) fn passes(program: &Program, text: &str) -> anyhow::Result<Option<bool>> {
    let Some(source) = source(program, text) else { return Ok(None) };
    // A program that ends early, even well, does not print the word.
    let word = format!("passed-{:016x}", SplitMix(source.len() as u64 ^ u64::from(std::process::id())).below(1 << 31));
    let whole = format!("{source}\n\n{}\n\ncheck({})\nprint({word:?})\n", program.test, program.entry_point);
    let folder = tempfile::tempdir().context("no folder for the program")?;
    fs::write(folder.path().join("program.py"), whole)?;
    let mut command = Command::new("prlimit");
    command.arg(format!("--cpu={CPU_SECONDS}")).arg(format!("--as={MEMORY}")).arg(format!("--fsize={FILE}"));
    if has_unshare() {
        // A network of its own, in which there is nothing.
        command.args(["unshare", "--map-root-user", "--net", "--"]);
    }
    command.args(["python3", "-I", "program.py"]).current_dir(folder.path());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot run prlimit (util-linux)")?;
    let began = Instant::now();
    let mut output = child.stdout.take().context("no output of the program")?;
    // Read beside the wait, so that a full pipe does not stop the program.
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let read = output.by_ref().take(FILE).read_to_end(&mut text);
        read.map(|_| text)
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > WALL {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let Some(status) = status else { return Ok(Some(false)) };
    // 127 and 126: what prlimit says if there is no such command.
    anyhow::ensure!(!matches!(status.code(), Some(126 | 127)), "python3 cannot be run");
    let text = reader.join().map_err(|_| anyhow::anyhow!("the output could not be read"))??;
    Ok(Some(status.success() && String::from_utf8_lossy(&text).lines().any(|line| line == word)))
}

/// Whether a process may have a network of its own here.
pub(super) fn has_unshare() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// The function as a whole: what the model wrote, behind the prompt if it only went on from there.
fn source(program: &Program, text: &str) -> Option<String> {
    let code = fenced(text).unwrap_or(text);
    if code.trim().is_empty() {
        return None;
    }
    let definition = format!("def {}(", program.entry_point);
    if !code.contains(&definition) {
        return Some(format!("{}{code}", program.prompt));
    }
    let head = program.prompt.split(&definition).next().unwrap_or_default();
    Some(format!("{head}\n{code}"))
}

/// The first block between fences.
fn fenced(text: &str) -> Option<&str> {
    let after = &text[text.find("```")? + 3..];
    let body = &after[after.find('\n')? + 1..];
    Some(body.split("```").next().unwrap_or(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double() -> Program {
        Program {
            prompt: "import math\n\ndef double(x):\n    \"\"\"Twice x.\"\"\"\n".into(),
            test: "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == -6\n".into(),
            entry_point: "double".into(),
        }
    }

    fn has_python() -> bool {
        Command::new("prlimit").args(["python3", "-c", "1"]).status().is_ok_and(|status| status.success())
    }

    #[test]
    fn programs_are_put_together() {
        let whole = source(&double(), "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.").unwrap();
        assert_eq!(whole, "import math\n\n\ndef double(x):\n    return 2 * x\n");
        let rest = source(&double(), "    return 2 * x\n").unwrap();
        assert!(rest.starts_with("import math") && rest.ends_with("\"\"\"\n    return 2 * x\n"), "{rest}");
        assert_eq!(source(&double(), "```python\n```"), None);
    }

    #[test]
    fn tests_decide() {
        if !has_python() {
            println!("skipped: no python3 or no prlimit");
            return;
        }
        for (text, passed) in [
            ("    return 2 * x\n", true),
            ("    return x + 2\n", false),
            ("    this is no Python\n", false),
            ("    import os\n    os._exit(0)\n", false),
            ("    return [0] * (1 << 40)\n", false),
        ] {
            assert_eq!(passes(&double(), text).unwrap(), Some(passed), "{text}");
        }
        assert_eq!(passes(&double(), "```\n```").unwrap(), None);
    }
}
