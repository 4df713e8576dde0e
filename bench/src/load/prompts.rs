//! Sets of prompts: built in, or from files.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zoo::tasks::{Role, Split, Task};

use crate::prompts;

/// Most prompts of a set; what a file has beyond them is left out, and that is said.
const MOST_PROMPTS: usize = 100_000;
/// Problems of each task in a built-in set.
const PROBLEMS: u64 = 400;

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Text(String),
    /// As the chat API takes them.
    Messages(Value),
}

/// A prompt, and how long its answer may be if the prompt says so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prompt {
    pub(crate) content: Content,
    pub(crate) max_tokens: Option<u64>,
}

/// Prompts in the order in which they are asked.
#[derive(Debug, Clone)]
pub(crate) struct PromptSet {
    pub(crate) name: String,
    pub(crate) prompts: Vec<Prompt>,
    /// Of all prompts as they were read, so that a result names its input.
    pub(crate) sha256: String,
    pub(crate) notes: Vec<String>,
}

impl PromptSet {
    /// `name` is a built-in set (`questions`, `zoo`, or a task of the zoo) or the path of a file.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let (prompts, notes) = match name {
            "questions" => (prompts::chat().map(text).collect(), Vec::new()),
            "zoo" => (held_out(&Task::ALL), Vec::new()),
            name => match name.parse::<Task>() {
                Ok(task) => (held_out(&[task]), Vec::new()),
                Err(_) => from_file(Path::new(name)).with_context(|| format!("--prompts {name}"))?,
            },
        };
        ensure!(!prompts.is_empty(), "--prompts {name}: no prompts in it");
        let mut digest = Sha256::new();
        for prompt in &prompts {
            digest.update(format!("{prompt:?}\n"));
        }
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        // The name of a file, not the folder: results are read on other machines.
        let name = Path::new(name).file_name().map_or_else(|| name.to_owned(), |name| name.to_string_lossy().into());
        Ok(Self { name, prompts, sha256, notes })
    }
}

fn text(text: &str) -> Prompt {
    Prompt { content: Content::Text(text.to_owned()), max_tokens: None }
}

/// Held-out problems, one task after the other in turns.
fn held_out(tasks: &[Task]) -> Vec<Prompt> {
    let role = |role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let of = |task: &Task, index| {
        let problem = task.problem(Split::Test, 0, index);
        let messages = problem.messages.iter().map(|turn| json!({"role": role(turn.role), "content": turn.content}));
        Prompt { content: Content::Messages(messages.collect()), max_tokens: None }
    };
    (0..PROBLEMS).flat_map(|index| tasks.iter().map(move |task| of(task, index))).collect()
}

/// Prompts of a file, and what to say of it.
pub(crate) fn from_file(path: &Path) -> anyhow::Result<(Vec<Prompt>, Vec<String>)> {
    let file = File::open(path)
        .context("neither a built-in set (questions, zoo, math, json, sql, chat, chain) nor a file that can be read")?;
    let mut reader = BufReader::new(file);
    let mut start = [0];
    let is_list = match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt") => return from_lines(reader, |line| Ok(text(line))),
        Some("jsonl") => false,
        // The first character tells a list from lines.
        _ => {
            let first = loop {
                let read = reader.read(&mut start)?;
                ensure!(read == 1, "the file is empty");
                if !start[0].is_ascii_whitespace() {
                    break start[0];
                }
            };
            first == b'['
        }
    };
    let from_start = start.into_iter().filter(|byte| *byte != 0).collect::<Vec<_>>();
    let reader = BufReader::new(std::io::Cursor::new(from_start).chain(reader));
    if is_list {
        let Conversations { prompts, num_unusable, is_whole } =
            serde_json::from_reader(reader).context("not a list of conversations (ShareGPT)")?;
        let mut notes = Vec::new();
        if num_unusable > 0 {
            notes.push(format!("{num_unusable} conversations do not begin with a text of a user and were left out"));
        }
        if !is_whole {
            notes.push(format!("prompts beyond the first {MOST_PROMPTS} were left out"));
        }
        return Ok((prompts, notes));
    }
    from_lines(reader, |line| from_object(&serde_json::from_str(line).context("not JSON")?))
}

fn from_lines(
    reader: impl BufRead,
    read: impl Fn(&str) -> anyhow::Result<Prompt>,
) -> anyhow::Result<(Vec<Prompt>, Vec<String>)> {
    let mut prompts = Vec::new();
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line.with_context(|| format!("line {number}"))?;
        if line.trim().is_empty() {
            continue;
        }
        if prompts.len() == MOST_PROMPTS {
            return Ok((prompts, vec![format!("prompts beyond the first {MOST_PROMPTS} were left out")]));
        }
        prompts.push(read(&line).with_context(|| format!("line {number}"))?);
    }
    Ok((prompts, Vec::new()))
}

/// An object with `messages`, `prompt`, `question` or `conversations`.
fn from_object(object: &Value) -> anyhow::Result<Prompt> {
    let max_tokens = match object.get("max_tokens") {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_u64().context("`max_tokens` is not a whole number")?),
    };
    if let Some(messages) = object.get("messages") {
        let is_message = |message: &Value| message["role"].is_string();
        ensure!(
            messages.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_message)),
            "`messages` is not a list of messages with `role` and `content`"
        );
        return Ok(Prompt { content: Content::Messages(messages.clone()), max_tokens });
    }
    if let Some(prompt) = object.get("prompt").or_else(|| object.get("question")) {
        let prompt = prompt.as_str().context("`prompt` is not a text")?;
        return Ok(Prompt { content: Content::Text(prompt.to_owned()), max_tokens });
    }
    if let Some(turns) = object.get("conversations") {
        let turns = Vec::<Turn>::deserialize(turns).context("`conversations`")?;
        let first = first_of(&turns).context("the conversation does not begin with a text of a user")?;
        return Ok(Prompt { content: Content::Text(first.to_owned()), max_tokens });
    }
    bail!("no `messages`, `prompt`, `question` or `conversations`")
}

/// A turn of ShareGPT.
#[derive(Debug, Deserialize)]
struct Turn {
    #[serde(alias = "role", default)]
    from: String,
    #[serde(alias = "content", default)]
    value: String,
}

fn first_of(turns: &[Turn]) -> Option<&str> {
    let first = turns.first().filter(|turn| ["human", "user"].contains(&turn.from.as_str()))?;
    Some(first.value.as_str()).filter(|text| !text.trim().is_empty())
}

/// The first turns of a list of conversations; the list is read one by one, for the published ones are large.
#[derive(Debug)]
struct Conversations {
    prompts: Vec<Prompt>,
    num_unusable: usize,
    is_whole: bool,
}

impl<'de> Deserialize<'de> for Conversations {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Conversations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of objects with `conversations`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Conversations, A::Error> {
                #[derive(Deserialize)]
                struct Row {
                    conversations: Vec<Turn>,
                }
                let mut all = Conversations { prompts: Vec::new(), num_unusable: 0, is_whole: true };
                while let Some(row) = list.next_element::<Row>()? {
                    match first_of(&row.conversations) {
                        None => all.num_unusable += 1,
                        Some(_) if all.prompts.len() == MOST_PROMPTS => all.is_whole = false,
                        Some(first) => all.prompts.push(text(first)),
                    }
                }
                Ok(all)
            }
        }
        from.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, content: &str) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let set = PromptSet::open(path.to_str().unwrap()).map_err(|error| format!("{error:#}"))?;
        assert_eq!(set.name, name);
        let text = |prompt: &Prompt| match &prompt.content {
            Content::Text(text) => format!("{text} {:?}", prompt.max_tokens),
            Content::Messages(messages) => messages.to_string(),
        };
        Ok(set.prompts.iter().map(text).chain(set.notes.clone()).collect())
    }

    #[test]
    fn files_of_every_kind() {
        assert_eq!(texts("a.txt", "one\n\n[two\n"), Ok(vec!["one None".into(), "[two None".into()]));
        let lines = "{\"prompt\": \"a\", \"max_tokens\": 7}\n\n{\"question\": \"b\", \"answer\": \"c\"}\n\
                     {\"messages\": [{\"role\": \"user\", \"content\": \"d\"}]}\n\
                     {\"conversations\": [{\"from\": \"human\", \"value\": \"e\"}]}\n";
        let expected = ["a Some(7)", "b None", r#"[{"role":"user","content":"d"}]"#, "e None"].map(str::to_owned);
        assert_eq!(texts("a.jsonl", lines), Ok(expected.to_vec()));
        assert_eq!(texts("a", lines), Ok(expected.to_vec()), "by its first character");
        let shared = r#" [{"id": "x", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "gpt", "value": "c"}]}, {"conversations": []}]"#;
        let note = "2 conversations do not begin with a text of a user and were left out".to_owned();
        assert_eq!(texts("shared.json", shared), Ok(vec!["a None".into(), note]));
    }

    #[test]
    fn files_that_are_none() {
        let error = |name, content| texts(name, content).unwrap_err();
        assert!(error("a.jsonl", "{\"prompt\": \"a\"}\n{\"text\": 1}\n").contains("line 2: no `messages`"));
        assert!(error("a.jsonl", "{\"prompt\": 3}\n").contains("`prompt` is not a text"));
        assert!(error("a.jsonl", "x\n").contains("line 1: not JSON"));
        assert!(error("a.txt", "\n").contains("no prompts"));
        assert!(error("a.json", "").contains("the file is empty"));
        assert!(error("a.json", "[{\"a\": 1}]").contains("not a list of conversations"));
        assert!(PromptSet::open("nowhere.txt").unwrap_err().to_string().contains("--prompts nowhere.txt"));
    }

    #[test]
    fn built_in_sets() {
        assert_eq!(PromptSet::open("zoo").unwrap().prompts.len(), 5 * PROBLEMS as usize);
        let questions = PromptSet::open("questions").unwrap();
        assert!(questions.prompts.len() >= 16);
        assert_eq!(questions.sha256, PromptSet::open("questions").unwrap().sha256);
        assert_ne!(questions.sha256, PromptSet::open("math").unwrap().sha256);
    }
}
