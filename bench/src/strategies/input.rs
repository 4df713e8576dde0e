//! What the models are asked.

use std::path::Path;

use anyhow::{Context, ensure};
use engine::{ModelInfo, TokenId};
use serde_json::{Map, Value, json};
use zoo::tasks::{Problem, Split, Task};

use crate::{
    load::prompts::{Content, Prompt as FilePrompt, from_file},
    prompts,
};

/// One prompt, and what judges its answer.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    pub(super) id: String,
    /// Turns with `role` and `content`.
    messages: Value,
    problem: Option<Problem>,
}

/// All prompts of a run.
#[derive(Debug, Clone)]
pub(super) struct Prompts {
    /// For people.
    pub(super) title: String,
    pub(super) list: Vec<Prompt>,
}

impl Prompts {
    /// `what` is `zoo`, tasks with commas, `questions`, or a file.
    pub(super) fn read(what: &str, count: u64, seed: u64) -> anyhow::Result<Self> {
        match what {
            "zoo" => Ok(Self::tasks(&Task::ALL, count, seed)),
            "questions" => {
                let list = prompts::chat().zip(1..).map(|(text, line)| Prompt::text(format!("questions/{line}"), text));
                Ok(Self { title: format!("built-in prompts {}", prompts::hash()), list: list.collect() }.first(count))
            }
            tasks if tasks.split(',').all(|name| name.parse::<Task>().is_ok()) => {
                let tasks: Vec<Task> = tasks.split(',').map(str::parse).collect::<Result<_, _>>()?;
                Ok(Self::tasks(&tasks, count, seed))
            }
            path => Self::file(Path::new(path)).map(|prompts| prompts.first(count)),
        }
    }

    fn tasks(tasks: &[Task], count: u64, seed: u64) -> Self {
        let one = |task: Task| {
            (0..count).map(move |index| {
                let problem = task.problem(Split::Test, seed, index);
                let role = |message: &zoo::tasks::Message| json!({"role": message.role, "content": message.content});
                let messages = problem.messages.iter().map(role).collect();
                Prompt { id: format!("{task}/{seed}/{index}"), messages, problem: Some(problem) }
            })
        };
        let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
        let title = format!("held-out problems of {} with checkers, {count} each, seed {seed}", names.join(", "));
        Self { title, list: tasks.iter().copied().flat_map(one).collect() }
    }

    fn file(path: &Path) -> anyhow::Result<Self> {
        let (prompts, notes) = from_file(path).with_context(|| format!("--prompts {}", path.display()))?;
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        ensure!(!prompts.is_empty(), "--prompts {}: there is no prompt in it", path.display());
        let one = |(number, prompt): (usize, FilePrompt)| {
            let id = format!("{name}/{number}");
            match prompt.content {
                Content::Text(text) => Prompt::text(id, &text),
                Content::Messages(messages) => Prompt { id, messages, problem: None },
            }
        };
        let list: Vec<Prompt> = (1..).zip(prompts).map(one).collect();
        for prompt in &list {
            let is_text = |turn: &Value| turn["content"].is_string();
            ensure!(
                prompt.messages.as_array().is_some_and(|turns| turns.iter().all(is_text)),
                "--prompts {}, prompt {}: a `content` of `messages` is not a text",
                path.display(),
                prompt.id
            );
        }
        let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
        Ok(Self { title: format!("prompts of {name}, without a checker{notes}"), list })
    }

    fn first(mut self, count: u64) -> Self {
        self.list.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        self
    }
}

impl Prompt {
    fn text(id: String, text: &str) -> Self {
        Self { id, messages: json!([{"role": "user", "content": text}]), problem: None }
    }

    /// As the model wants it: as a chat if it has a template, else the turns as they are, one a line.
    pub(super) fn tokens(&self, info: &ModelInfo) -> anyhow::Result<Vec<TokenId>> {
        let tokens = match &info.chat_template {
            Some(template) => {
                let text = template.render(&self.messages, None, true, &Map::new())?;
                info.tokenizer.encode_chat(&text)?
            }
            None => {
                let turns = self.messages.as_array().into_iter().flatten();
                let turns: Vec<&str> = turns.filter_map(|turn| turn["content"].as_str()).collect();
                info.tokenizer.encode(&turns.join("\n"), true)?
            }
        };
        ensure!(
            tokens.len() < info.context_len,
            "prompt `{}` has {} tokens and `{}` holds {}; leave it out of the file or choose a model with a longer context",
            self.id,
            tokens.len(),
            info.id,
            info.context_len
        );
        Ok(tokens)
    }

    /// Whether a text is right; `None` without a checker.
    pub(super) fn is_right(&self, text: &str) -> Option<bool> {
        self.problem.as_ref().map(|problem| problem.check(text).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> anyhow::Result<Prompts> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Prompts::read(path.to_str().unwrap(), 10, 0)
    }

    #[test]
    fn tasks_have_checkers_and_lists_have_none() {
        let zoo = Prompts::read("zoo", 2, 7).unwrap();
        assert_eq!(zoo.list.len(), 10);
        let prompt = &zoo.list[0];
        let right = Task::Math.problem(Split::Test, 7, 0).answer;
        assert_eq!((prompt.is_right(&right), prompt.is_right("no idea")), (Some(true), Some(false)));
        let two = Prompts::read("json,sql", 3, 0).unwrap();
        assert_eq!(two.list.iter().map(|prompt| &*prompt.id).nth(3), Some("sql/0/0"));
        let questions = Prompts::read("questions", 3, 0).unwrap();
        assert_eq!(questions.list.len(), 3);
        assert_eq!(questions.list[0].is_right("Paris"), None);
    }

    #[test]
    fn files_are_lines_of_text_or_of_json() {
        let text = file("a.txt", "one\n\n two \n").unwrap();
        assert_eq!(text.list.iter().map(|prompt| &*prompt.id).collect::<Vec<_>>(), ["a.txt/1", "a.txt/2"]);
        let json = concat!(
            "{\"id\": 7, \"prompt\": \"one\"}\n",
            "{\"id\": \"b\", \"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n",
        );
        let json = file("a.jsonl", json).unwrap();
        assert_eq!(json.list.iter().map(|prompt| &*prompt.id).collect::<Vec<_>>(), ["a.jsonl/1", "a.jsonl/2"]);
        assert_eq!(json.list[1].is_right("two"), None);
    }

    #[test]
    fn bad_files_are_named_with_their_line() {
        for (name, text, named) in [
            ("a.txt", "\n \n", "no prompt in it"),
            ("a.jsonl", "{\"prompt\": \"one\"}\n[1]\n", "line 2"),
            ("a.jsonl", "{\"text\": \"one\"}\n", "`prompt`"),
            ("a.jsonl", "{\"messages\": [{\"role\": \"user\"}]}\n", "`content`"),
        ] {
            let error = format!("{:#}", file(name, text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
        let error = format!("{:#}", Prompts::read("no/such/file", 1, 0).unwrap_err());
        assert!(error.contains("neither a built-in set") && error.contains("chain"), "{error}");
    }
}
