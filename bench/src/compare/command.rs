//! Command lines of servers, with places for what a run decides.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

/// Placeholders, as messages list them.
const KNOWN: &str = "{model}, {port}, {threads}, {slots}, {context}";

/// What the placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'a> {
    /// The file that all contenders serve.
    pub(super) model: &'a Path,
    pub(super) port: u16,
    pub(super) threads: usize,
    /// Requests at a time: the highest concurrency of the run.
    pub(super) slots: usize,
    /// Tokens of all slots together.
    pub(super) context: usize,
}

/// A command line, cut into words as a shell does, that still has its placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    words: Vec<String>,
}

/// A piece of a word.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

impl Template {
    /// Reads what was typed. Unknown placeholders and commands without `{port}` are errors.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let words = shlex::split(text).context("a quotation mark in the command is not closed")?;
        Self::of(words)
    }

    /// The same for words that need no cutting.
    pub(super) fn of(words: Vec<String>) -> anyhow::Result<Self> {
        ensure!(words.first().is_some_and(|word| !word.is_empty()), "the command is empty");
        let names: Vec<&str> = words
            .iter()
            .flat_map(|word| pieces(word))
            .filter_map(|piece| match piece {
                Piece::Placeholder(name) => Some(name),
                Piece::Text(_) => None,
            })
            .collect();
        for name in &names {
            ensure!(
                ["model", "port", "threads", "slots", "context"].contains(name),
                "unknown placeholder {{{name}}}; known are {KNOWN}"
            );
        }
        ensure!(
            names.contains(&"port"),
            "the command has no {{port}}, so the server would not listen where it is asked; known placeholders are {KNOWN}"
        );
        Ok(Self { words })
    }

    /// The program, as it was typed.
    pub(super) fn program(&self) -> &str {
        &self.words[0]
    }

    /// The words of the command. Values are put inside words, so that a path with spaces stays one word.
    pub(super) fn fill(&self, values: &Values<'_>) -> Vec<String> {
        let filled = |piece: Piece<'_>| match piece {
            Piece::Text(text) => text.to_owned(),
            Piece::Placeholder("model") => values.model.display().to_string(),
            Piece::Placeholder("port") => values.port.to_string(),
            Piece::Placeholder("threads") => values.threads.to_string(),
            Piece::Placeholder("slots") => values.slots.to_string(),
            // `of` lets no other name pass.
            Piece::Placeholder(_) => values.context.to_string(),
        };
        self.words.iter().map(|word| pieces(word).into_iter().map(filled).collect()).collect()
    }
}

/// A placeholder is a lower-case word in braces; all other braces are text, so that JSON needs no escapes.
fn pieces(word: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = word;
    let mut from = 0;
    while let Some(open) = rest[from..].find('{').map(|at| from + at) {
        let inside = &rest[open + 1..];
        let end = inside.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(inside.len());
        if end == 0 || !inside[end..].starts_with('}') {
            from = open + 1;
            continue;
        }
        pieces.push(Piece::Text(&rest[..open]));
        pieces.push(Piece::Placeholder(&inside[..end]));
        rest = &inside[end + 1..];
        from = 0;
    }
    pieces.push(Piece::Text(rest));
    pieces.retain(|piece| *piece != Piece::Text(""));
    pieces
}

/// Where a program is: a path as it is, a name in the folders of `PATH`.
pub(super) fn find(program: &Path) -> anyhow::Result<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        ensure!(program.is_file(), "there is no program {}; give its path", program.display());
        return program.canonicalize().with_context(|| format!("cannot read {}", program.display()));
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    match env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no program {} in the folders of PATH; give its path", program.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: fn() -> Values<'static> =
        || Values { model: Path::new("/a b/m.gguf"), port: 4711, threads: 3, slots: 8, context: 4096 };

    #[test]
    fn placeholders_are_filled_inside_words() {
        let text = "server -m {model} --listen=127.0.0.1:{port} -t {threads} 'two words' -np {slots} -c {context}";
        let command = Template::parse(text).unwrap().fill(&VALUES());
        let expected = [
            "server",
            "-m",
            "/a b/m.gguf",
            "--listen=127.0.0.1:4711",
            "-t",
            "3",
            "two words",
            "-np",
            "8",
            "-c",
            "4096",
        ];
        assert_eq!(command, expected);
    }

    #[test]
    fn other_braces_are_text() {
        let text = r#"server {port} '{"a": {}}' {port}{port} {PORT} {"#;
        let command = Template::parse(text).unwrap().fill(&VALUES());
        assert_eq!(command[1..], ["4711", r#"{"a": {}}"#, "47114711", "{PORT}", "{"]);
    }

    #[test]
    fn what_is_no_command() {
        for (text, said) in [
            ("server --port {port} {modell}", "unknown placeholder {modell}; known are {model}, {port}"),
            ("server -m {model}", "has no {port}"),
            ("", "empty"),
            ("'' {port}", "empty"),
            ("server 'open {port}", "not closed"),
        ] {
            let error = Template::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn programs_are_found_before_they_are_needed() {
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        let error = find(Path::new("./no-such-server")).unwrap_err().to_string();
        assert!(error.contains("no program ./no-such-server"), "{error}");
        let error = find(Path::new("no-such-server-anywhere")).unwrap_err().to_string();
        assert!(error.contains("folders of PATH"), "{error}");
    }
}
