//! What was typed, resolved: everything that can be wrong is found before anything is started.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::{
    args::CompareArgs,
    command::{self, Template},
};
use crate::ipw;

/// How a contender is reached.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A process of its own.
    Started(Launch),
    /// Somebody else's process.
    Running { url: String },
}

/// A server that is started.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) template: Template,
    /// Absolute.
    pub(super) program: PathBuf,
    /// Whether it runs in an empty folder, where no file can set options.
    pub(super) is_alone: bool,
}

/// One that is measured.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    pub(super) name: String,
    /// Name of its files.
    pub(super) slug: String,
    pub(super) place: Place,
    /// Fields of its requests beside those of all.
    pub(super) fields: Map<String, Value>,
}

/// A run over HTTP.
#[derive(Debug)]
pub(super) struct Settings {
    /// Absolute.
    pub(super) model: PathBuf,
    pub(super) contenders: Vec<Contender>,
    /// Place of the one that the others are compared with.
    pub(super) reference: usize,
    pub(super) threads: usize,
    /// Ascending, each once.
    pub(super) concurrency: Vec<usize>,
    pub(super) rounds: usize,
    /// Of a turn.
    pub(super) requests: usize,
    pub(super) max_tokens: usize,
    /// Tokens of one request.
    pub(super) context: usize,
    pub(super) start_timeout: Duration,
    pub(super) timeout: Duration,
}

impl Settings {
    /// `None` if no rival over HTTP was named.
    pub(super) fn of(args: &CompareArgs) -> anyhow::Result<Option<Self>> {
        let model = args.model.canonicalize().with_context(|| {
            format!("--model {}: no such file; rivals need the weights as a file or folder", args.model.display())
        })?;
        let rivals = rivals(args)?;
        if rivals.is_empty() {
            return Ok(None);
        }
        let mut contenders = own(args)?;
        let first_rival = contenders.len();
        contenders.extend(rivals);
        let mut slugs = BTreeSet::new();
        for contender in &contenders {
            ensure!(slugs.insert(&contender.slug), "two contenders share the name `{}`", contender.name);
        }
        let reference = match &args.reference {
            None => first_rival,
            Some(name) => contenders.iter().position(|contender| contender.name == *name).with_context(|| {
                let names: Vec<&str> = contenders.iter().map(|contender| contender.name.as_str()).collect();
                format!("--reference {name}: the contenders are {}", names.join(", "))
            })?,
        };
        let number = |value: u64| usize::try_from(value).context("a number is too large");
        let mut concurrency = args.concurrency.iter().map(|c| number(*c)).collect::<anyhow::Result<Vec<_>>>()?;
        concurrency.sort_unstable();
        concurrency.dedup();
        let requests = number(args.requests)?;
        let highest = concurrency.last().copied().context("--concurrency is empty")?;
        ensure!(
            requests >= highest,
            "--requests {requests} cannot keep {highest} requests running at a time; give at least {}",
            2 * highest
        );
        Ok(Some(Self {
            model,
            contenders,
            reference,
            threads: threads(args)?,
            concurrency,
            rounds: number(args.rounds)?,
            requests,
            max_tokens: number(args.max_tokens)?,
            context: number(args.context)?,
            start_timeout: Duration::from_secs(args.start_timeout_s),
            timeout: Duration::from_secs(args.timeout_s),
        }))
    }

    /// Requests that servers must take at a time.
    pub(super) fn slots(&self) -> usize {
        self.concurrency.last().copied().unwrap_or(1)
    }

    /// Prompts of all rounds, the warm-up among them.
    pub(super) fn num_prompts(&self) -> usize {
        (self.rounds + 1) * self.concurrency.len() * self.requests
    }
}

/// Threads of every contender.
pub(super) fn threads(args: &CompareArgs) -> anyhow::Result<usize> {
    match args.threads {
        Some(threads) => usize::try_from(threads).context("--threads is too large"),
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

/// Leapfrog under each of its decodings.
fn own(args: &CompareArgs) -> anyhow::Result<Vec<Contender>> {
    let program = match &args.leapfrog {
        Some(path) => command::find(path).context("--leapfrog")?,
        None => beside().context("cannot find `leapfrog` beside this program; give its path as --leapfrog")?,
    };
    let options = ["serve", "--model", "{model}", "--host", "127.0.0.1", "--port", "{port}"];
    let more = ["--threads", "{threads}", "--max-concurrent", "{slots}"];
    let launch = launch(program, &[&options[..], &more[..]].concat(), args.leapfrog_args.as_deref())
        .context("--leapfrog-args")?;
    let defaults = ["default={}", "AR", "Jacobi 8=strategy=jacobi,width=8"].map(String::from);
    let typed = if args.decoding.is_empty() { &defaults[..] } else { &args.decoding };
    let one = |text: &String| {
        let (name, options) = ipw::named_options(text)?;
        let name = format!("leapfrog {name}");
        let fields = match options.is_empty() {
            true => Map::new(),
            false => Map::from_iter([("decoding".to_owned(), Value::Object(options))]),
        };
        anyhow::Ok(Contender { slug: ipw::slug(&name)?, name, place: Place::Started(launch.clone()), fields })
    };
    typed.iter().map(|text| one(text).with_context(|| format!("--decoding `{text}`"))).collect()
}

fn beside() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    command::find(&own.with_file_name(format!("leapfrog{}", env::consts::EXE_SUFFIX)))
}

fn rivals(args: &CompareArgs) -> anyhow::Result<Vec<Contender>> {
    let mut rivals = Vec::new();
    if let Some(path) = &args.llama_server {
        let program = command::find(path).context("--llama-server")?;
        let options = ["-m", "{model}", "--host", "127.0.0.1", "--port", "{port}"];
        let more = ["-t", "{threads}", "-np", "{slots}", "-c", "{context}"];
        let launch = launch(program, &[&options[..], &more[..]].concat(), args.llama_server_args.as_deref())
            .context("--llama-server-args")?;
        rivals.push(rival("llama.cpp", Place::Started(launch))?);
    }
    for text in &args.rival {
        let one = || {
            let (name, text) = text.split_once('=').context("not NAME=COMMAND")?;
            let template = Template::parse(text)?;
            let program = command::find(Path::new(template.program()))?;
            rival(name, Place::Started(Launch { template, program, is_alone: false }))
        };
        rivals.push(one().with_context(|| format!("--rival `{text}`"))?);
    }
    for text in &args.rival_url {
        let one = || {
            let (name, url) = text.split_once('=').context("not NAME=URL")?;
            rival(name, Place::Running { url: url.trim().to_owned() })
        };
        rivals.push(one().with_context(|| format!("--rival-url `{text}`"))?);
    }
    Ok(rivals)
}

fn rival(name: &str, place: Place) -> anyhow::Result<Contender> {
    let name = name.trim().to_owned();
    Ok(Contender { slug: ipw::slug(&name)?, name, place, fields: Map::new() })
}

/// A known server: its program, its options, and what was typed besides.
fn launch(program: PathBuf, options: &[&str], more: Option<&str>) -> anyhow::Result<Launch> {
    let more = shlex::split(more.unwrap_or_default()).context("a quotation mark is not closed")?;
    let words = std::iter::once(program.display().to_string()).chain(options.iter().map(|word| (*word).to_owned()));
    Ok(Launch { template: Template::of(words.chain(more).collect())?, program, is_alone: true })
}

/// Fields of every request; `ignores_end` asks for answers of full length.
pub(super) fn body_fields(max_tokens: usize, ignores_end: bool) -> Map<String, Value> {
    let mut fields = json!({"max_tokens": max_tokens, "temperature": 0.0});
    if ignores_end {
        fields["ignore_eos"] = json!(true);
    }
    fields.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    /// Arguments as typed, with `sh` in place of Leapfrog and an existing file as model.
    pub(crate) fn typed(words: &[&str]) -> CompareArgs {
        let always = ["compare", "--model", "/dev/null", "--leapfrog", "/bin/sh", "--out", "/dev/null/none"];
        Line::try_parse_from(always.iter().chain(words)).unwrap().args
    }

    fn error(words: &[&str]) -> String {
        format!("{:#}", Settings::of(&typed(words)).unwrap_err())
    }

    #[test]
    fn contenders_are_ours_then_rivals_and_the_first_rival_is_the_reference() {
        let words = ["--llama-server", "/bin/sh", "--llama-server-args", "--no-mmap -fa on", "--concurrency", "8,1,8"];
        let settings = Settings::of(&typed(&words)).unwrap().unwrap();
        let names: Vec<&str> = settings.contenders.iter().map(|contender| contender.name.as_str()).collect();
        assert_eq!(names, ["leapfrog default", "leapfrog AR", "leapfrog Jacobi 8", "llama.cpp"]);
        assert_eq!((settings.reference, settings.slots()), (3, 8));
        assert_eq!(settings.concurrency, [1, 8]);
        assert_eq!(settings.num_prompts(), 6 * 2 * 16);
        assert!(settings.contenders[0].fields.is_empty());
        assert_eq!(settings.contenders[2].fields["decoding"], json!({"strategy": "jacobi", "width": 8}));
        let Place::Started(launch) = &settings.contenders[3].place else { panic!("not started") };
        let values = command::Values { model: Path::new("m"), port: 9, threads: 2, slots: 8, context: 80 };
        let command = launch.template.fill(&values).join(" ");
        assert!(command.ends_with("-m m --host 127.0.0.1 --port 9 -t 2 -np 8 -c 80 --no-mmap -fa on"), "{command}");
    }

    #[test]
    fn the_reference_may_be_named() {
        let words = ["--rival-url", "a=http://127.0.0.1:1", "--decoding", "AR", "--reference", "leapfrog AR"];
        assert_eq!(Settings::of(&typed(&words)).unwrap().unwrap().reference, 0);
        let words = ["--rival-url", "a=http://127.0.0.1:1", "--reference", "b"];
        assert!(error(&words).contains("the contenders are leapfrog default, leapfrog AR, leapfrog Jacobi 8, a"));
    }

    #[test]
    fn no_rival_is_no_run_over_http() {
        assert!(Settings::of(&typed(&[])).unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_told_before_anything_starts() {
        for (words, said) in [
            (&["--rival", "x=sh {port} {speed}"][..], "unknown placeholder {speed}"),
            (&["--rival", "x=sh -m {model}"], "has no {port}"),
            (&["--rival", "sh {port}"], "not NAME=COMMAND"),
            (&["--rival", "x=/none/server {port}"], "there is no program /none/server"),
            (&["--llama-server", "/none/llama-server"], "--llama-server: there is no program"),
            (&["--rival-url", "http://127.0.0.1:1"], "not NAME=URL"),
            (&["--rival", "x=sh {port}", "--rival-url", "X=http://127.0.0.1:1"], "share the name"),
            (&["--rival", "x=sh {port}", "--decoding", "magic"], "--decoding `magic`: a name without options"),
            (&["--rival", "x=sh {port}", "--concurrency", "32"], "give at least 64"),
            (&["--rival", "x=sh {port}", "--leapfrog-args", "'open"], "--leapfrog-args: a quotation mark"),
        ] {
            let error = error(words);
            assert!(error.contains(said), "{words:?}: {error}");
        }
        let args = CompareArgs { model: "/none.gguf".into(), ..typed(&[]) };
        let error = format!("{:#}", Settings::of(&args).unwrap_err());
        assert!(error.contains("--model /none.gguf: no such file"), "{error}");
    }
}
