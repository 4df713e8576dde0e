//! Data sets: built in, or from files that are never downloaded.

use std::{fs, io::Read, path::Path};

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zoo::tasks::{Role, Split, Task};

use super::{grade::Grader, sandbox::Program};
use crate::stats::SplitMix;

/// Most bytes of a file, after unpacking.
const MOST_BYTES: u64 = 256 << 20;

/// A query, and how its answer is judged.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Unique within its data set.
    pub(super) id: String,
    pub(super) dataset: String,
    pub(super) subject: String,
    /// As the API takes them.
    pub(super) messages: Value,
    /// What is asked, for the record.
    pub(super) problem: String,
    /// The right answer, for the record.
    pub(super) answer: String,
    pub(super) grader: Grader,
}

/// A data set as it was read.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) name: String,
    /// For people.
    pub(super) title: String,
    pub(super) items: Vec<Item>,
    /// Hash of the file.
    pub(super) sha256: Option<String>,
    pub(super) warnings: Vec<String>,
}

/// Files that are known: data set, hash.
const KNOWN: [(&str, &str); 3] = [
    ("gsm8k", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    ("humaneval", "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"),
    ("svamp", "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"),
];

/// The first `limit` queries of a built-in set that `seed` gives.
pub(super) fn built_in(name: &str, limit: u64, seed: u64) -> anyhow::Result<Vec<Set>> {
    let set = |name: String, title: String, items| Set { name, title, items, sha256: None, warnings: Vec::new() };
    if name == "arith" {
        let mut random = SplitMix(seed);
        let items = (0..limit).map(|index| arith(index, &mut random)).collect();
        return Ok(vec![set(name.into(), format!("arithmetic, seed {seed}"), items)]);
    }
    let tasks: Vec<Task> = match name {
        "zoo" => Task::ALL.to_vec(),
        name => vec![name.parse().with_context(|| format!("--dataset `{name}`: neither arith, zoo nor a task"))?],
    };
    let one = |task: Task| {
        let items = (0..limit).map(|index| held_out(task, seed, index)).collect();
        set(task.name().into(), format!("held-out problems `{task}`, seed {seed}"), items)
    };
    Ok(tasks.into_iter().map(one).collect())
}

fn held_out(task: Task, seed: u64, index: u64) -> Item {
    let problem = task.problem(Split::Test, seed, index);
    let role = |role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let messages = problem.messages.iter().map(|turn| json!({"role": role(turn.role), "content": turn.content}));
    Item {
        id: format!("{task}/{seed}/{index}"),
        dataset: task.name().into(),
        subject: task.name().into(),
        messages: messages.collect(),
        problem: problem.messages.last().map(|turn| turn.content.clone()).unwrap_or_default(),
        answer: problem.answer.clone(),
        grader: Grader::Task(Box::new(problem)),
    }
}

/// Numbers of one to three digits, and an operator.
fn arith(index: u64, random: &mut SplitMix) -> Item {
    let mut operand = || {
        let bound = [10, 100, 1000][random.below(3)];
        random.below(bound) as i64
    };
    let (a, b) = (operand(), operand());
    let (sign, result) = match random.below(3) {
        0 => ('+', a + b),
        1 => ('-', a - b),
        _ => ('*', a * b),
    };
    let problem = format!("What is {a} {sign} {b}? End with a line `#### number`.");
    item("arith", format!("arith/{index}"), "arithmetic", problem, result.to_string(), Grader::Number(result as f64))
}

fn item(dataset: &str, id: String, subject: &str, problem: String, answer: String, grader: Grader) -> Item {
    let messages = json!([{"role": "user", "content": problem}]);
    Item { id, dataset: dataset.into(), subject: subject.into(), messages, problem, answer, grader }
}

/// `limit` queries of a file, chosen by `seed` and in the order of the file.
pub(super) fn from_file(path: &Path, limit: u64, seed: u64) -> anyhow::Result<Set> {
    let bytes = fs::read(path).with_context(|| format!("--dataset-file {}", path.display()))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("bbh");
    parse(&bytes, stem, limit, seed).with_context(|| format!("--dataset-file {}", path.display()))
}

fn parse(bytes: &[u8], stem: &str, limit: u64, seed: u64) -> anyhow::Result<Set> {
    let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut text = String::new();
    let read = match bytes {
        [0x1f, 0x8b, ..] => GzDecoder::new(bytes).take(MOST_BYTES).read_to_string(&mut text),
        plain => plain.take(MOST_BYTES).read_to_string(&mut text),
    };
    let size = read.context("not text")?;
    ensure!((size as u64) < MOST_BYTES, "more than {MOST_BYTES} bytes");
    let (name, title, mut items) = items(&text, stem)?;
    ensure!(!items.is_empty(), "no queries in it");
    let total = items.len();
    choose(&mut items, limit, seed);
    let mut warnings = Vec::new();
    if let Some((_, expected)) = KNOWN.iter().find(|(known, _)| *known == name)
        && sha256 != *expected
    {
        warnings.push(format!("{name}: not the published file: SHA-256 {sha256}, expected {expected}"));
    }
    let title = format!("{title}, {} of {total}", items.len());
    Ok(Set { name, title, items, sha256: Some(sha256), warnings })
}

/// Keeps `limit` of them, drawn without putting back, in their order.
fn choose(items: &mut Vec<Item>, limit: u64, seed: u64) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    let keep = usize::try_from(limit).unwrap_or(usize::MAX).min(order.len());
    let mut random = SplitMix(seed);
    for at in 0..keep {
        let other = at + random.below(order.len() - at);
        order.swap(at, other);
    }
    order.truncate(keep);
    order.sort_unstable();
    *items = order.into_iter().map(|index| items[index].clone()).collect();
}

/// Name, title and queries of a file, whose kind its keys tell.
fn items(text: &str, stem: &str) -> anyhow::Result<(String, &'static str, Vec<Item>)> {
    // Whole files first: the first line of a JSON file is no JSON by itself.
    if let Ok(whole) = serde_json::from_str::<Value>(text) {
        if let Some(examples) = whole.get("examples").and_then(Value::as_array) {
            let name = format!("bbh_{stem}");
            let items = examples.iter().enumerate().map(|(index, row)| bbh(row, &name, stem, index));
            let items = items.collect::<anyhow::Result<_>>()?;
            return Ok((name, "BIG-Bench Hard", items));
        }
        if let Some(rows) = whole.as_array() {
            let items = rows.iter().enumerate().map(|(index, row)| svamp(row, index));
            return Ok(("svamp".into(), "SVAMP", items.collect::<anyhow::Result<_>>()?));
        }
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let rows = lines.enumerate().map(|(index, line)| {
        serde_json::from_str::<Value>(line).with_context(|| format!("row {}: not JSON", index + 1))
    });
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    match rows.first() {
        Some(row) if row.get("task_id").is_some() => {
            let items = rows.iter().enumerate().map(|(index, row)| humaneval(row, index));
            Ok(("humaneval".into(), "HumanEval", items.collect::<anyhow::Result<_>>()?))
        }
        Some(row) if row.get("question").is_some() => {
            let items = rows.iter().enumerate().map(|(index, row)| gsm8k(row, index));
            Ok(("gsm8k".into(), "GSM8K test", items.collect::<anyhow::Result<_>>()?))
        }
        _ => bail!("neither GSM8K, SVAMP, HumanEval nor BIG-Bench Hard"),
    }
}

fn text<'a>(row: &'a Value, key: &str, index: usize) -> anyhow::Result<&'a str> {
    row.get(key).and_then(Value::as_str).with_context(|| format!("row {}: no text `{key}`", index + 1))
}

fn gsm8k(row: &Value, index: usize) -> anyhow::Result<Item> {
    let (question, answer) = (text(row, "question", index)?, text(row, "answer", index)?);
    ensure!(answer.contains("####"), "row {}: no `####` in the answer", index + 1);
    let expected =
        super::grade::number(answer).with_context(|| format!("row {}: no number after `####`", index + 1))?;
    let problem = format!("{question}\nThink step by step and end with a line `#### number`.");
    Ok(item("gsm8k", format!("gsm8k/{index}"), "math", problem, answer.into(), Grader::Number(expected)))
}

fn svamp(row: &Value, index: usize) -> anyhow::Result<Item> {
    let (body, question) = (text(row, "Body", index)?.trim(), text(row, "Question", index)?);
    let expected = row.get("Answer").and_then(Value::as_f64);
    let expected = expected.with_context(|| format!("row {}: no number `Answer`", index + 1))?;
    let id = row.get("ID").and_then(Value::as_str).map_or_else(|| index.to_string(), str::to_owned);
    let stop = if body.ends_with(['.', '?', '!']) { "" } else { "." };
    let problem = format!("{body}{stop} {question}\nEnd with a line `#### number`.");
    Ok(item("svamp", format!("svamp/{id}"), "math", problem, expected.to_string(), Grader::Number(expected)))
}

fn humaneval(row: &Value, index: usize) -> anyhow::Result<Item> {
    let program = Program {
        prompt: text(row, "prompt", index)?.into(),
        test: text(row, "test", index)?.into(),
        entry_point: text(row, "entry_point", index)?.into(),
    };
    let solution = row.get("canonical_solution").and_then(Value::as_str).unwrap_or_default().to_owned();
    let problem =
        format!("Complete this Python function. Answer with the whole function.\n```python\n{}```", program.prompt);
    let id = text(row, "task_id", index)?.to_owned();
    Ok(item("humaneval", id, "code", problem, solution, Grader::Code(Box::new(program))))
}

fn bbh(row: &Value, dataset: &str, task: &str, index: usize) -> anyhow::Result<Item> {
    let (input, target) = (text(row, "input", index)?, text(row, "target", index)?);
    let letter = target.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let letter =
        letter.and_then(|letter| letter.chars().next().filter(|c| letter.len() == 1 && c.is_ascii_uppercase()));
    let options = ('A'..='Z').take_while(|letter| input.contains(&format!("({letter})"))).count();
    let (grader, how) = match letter {
        Some(letter) if options > 1 => {
            (Grader::Choice { letter, options: options as u8 }, "End with: the answer is (letter).")
        }
        _ => (Grader::Exact(target.into()), "Answer with the result alone."),
    };
    Ok(item(dataset, format!("{dataset}/{index}"), task, format!("{input}\n{how}"), target.into(), grader))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipw::grade::Grade;

    fn score(item: &Item, text: &str) -> Option<f64> {
        item.grader.grade(text).score()
    }

    #[test]
    fn built_in_sets_come_from_the_seed() {
        let set = |seed| built_in("arith", 50, seed).unwrap().remove(0).items;
        let problems = |seed| set(seed).into_iter().map(|item| item.problem).collect::<Vec<_>>();
        assert_eq!(problems(3), problems(3));
        assert_ne!(problems(3), problems(4));
        for item in set(3) {
            assert_eq!(score(&item, &format!("so\n#### {}", item.answer)), Some(1.0), "{}", item.problem);
        }
        let zoo = built_in("zoo", 2, 0).unwrap();
        assert_eq!(zoo.len(), Task::ALL.len());
        for item in zoo.iter().flat_map(|set| &set.items) {
            assert_eq!(score(item, &item.answer), Some(1.0), "{}", item.id);
        }
        assert!(built_in("moth", 2, 0).is_err());
    }

    #[test]
    fn files_of_four_kinds() {
        let gsm8k = "{\"question\": \"q?\", \"answer\": \"a <<1+1=2>>\\n#### 1,002\"}\n";
        let set = parse(gsm8k.as_bytes(), "x", 9, 0).unwrap();
        assert_eq!((set.name.as_str(), set.items.len()), ("gsm8k", 1));
        assert!(set.warnings[0].contains("not the published file"), "{:?}", set.warnings);
        assert_eq!(score(&set.items[0], "#### 1002"), Some(1.0));

        let svamp = r#"[{"ID": "chal-1", "Body": "Two birds", "Question": "How many?", "Answer": 2.0}]"#;
        let set = parse(svamp.as_bytes(), "x", 9, 0).unwrap();
        assert_eq!(set.items[0].id, "svamp/chal-1");
        assert!(set.items[0].problem.starts_with("Two birds. How many?"));
        assert_eq!(score(&set.items[0], "2"), Some(1.0));

        let bbh = r#"{"canary": "", "examples": [{"input": "Which?\n(A) x\n(B) y", "target": "(B)"},
            {"input": "not True is", "target": "False"}]}"#;
        let set = parse(bbh.as_bytes(), "mixed", 9, 0).unwrap();
        assert_eq!((set.name.as_str(), set.warnings.len()), ("bbh_mixed", 0));
        assert_eq!(score(&set.items[0], "The answer is (B)."), Some(1.0));
        assert_eq!(set.items[0].grader.grade("The answer is (C)."), Grade::Unextracted, "not offered");
        assert_eq!(score(&set.items[1], "false"), Some(1.0));

        let code =
            "{\"task_id\": \"HumanEval/0\", \"prompt\": \"def f():\\n\", \"entry_point\": \"f\", \"test\": \"t\"}";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, code.as_bytes()).unwrap();
        let set = parse(&packed.finish().unwrap(), "x", 9, 0).unwrap();
        assert_eq!((set.items[0].id.as_str(), set.items[0].grader.name()), ("HumanEval/0", "code"));
    }

    #[test]
    fn broken_files_say_where() {
        for (text, expected) in [
            ("{}", "neither"),
            ("", "neither"),
            ("{\"question\": \"q\", \"answer\": \"no\"}", "row 1: no `####`"),
            ("{\"question\": \"q\", \"answer\": \"#### 1\"}\n{", "row 2: not JSON"),
            ("[{\"Body\": \"b\", \"Question\": \"q\", \"Answer\": \"x\"}]", "row 1: no number"),
            ("[]", "no queries"),
        ] {
            let error = format!("{:#}", parse(text.as_bytes(), "x", 9, 0).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn choices_of_queries_are_seeded_and_ordered() {
        let rows: String = (0..40).map(|i| format!("{{\"question\": \"q\", \"answer\": \"#### {i}\"}}\n")).collect();
        let ids = |seed| -> Vec<String> {
            parse(rows.as_bytes(), "x", 10, seed).unwrap().items.into_iter().map(|item| item.id).collect()
        };
        assert_eq!(ids(1), ids(1));
        assert_ne!(ids(1), ids(2));
        let places: Vec<u32> = ids(1).iter().map(|id| id[6..].parse().unwrap()).collect();
        assert!(places.len() == 10 && places.is_sorted_by(|a, b| a < b), "{places:?}");
    }
}
