//! What is typed, and what it means.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::load::{
    Plan,
    arrivals::{self, Arrivals, Schedule},
    record::Phase,
    requests::Endpoint,
    synthetic::Lengths,
    tally::Targets,
};

const HELP_LOAD: &str = "Load";
const HELP_PROMPTS: &str = "Prompts and answers";
const HELP_REPORT: &str = "Report";
/// Requests of a run that is told neither how many nor how long.
const REQUESTS: u64 = 100;
/// Requests of each level of a sweep that is told neither.
const SWEEP_SECONDS: f64 = 20.0;

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Address of any OpenAI-compatible server, with or without /v1.
    #[arg(long, env = "LEAPFROG_URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    /// API key.
    #[arg(long, env = "LEAPFROG_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,
    /// Model; the server's first if left out.
    #[arg(long)]
    pub(super) model: Option<String>,

    /// Closed loop: so many clients, each of which asks again when it has its answer. Several numbers are a sweep
    /// [default: 1, unless --rate or --arrivals-file is given].
    #[arg(long, value_delimiter = ',', value_name = "N,...", help_heading = HELP_LOAD)]
    pub(super) concurrency: Vec<usize>,
    /// Open loop: requests a second, whether or not earlier ones are answered. Several numbers are a sweep.
    #[arg(long, value_delimiter = ',', value_name = "R,...", conflicts_with_all = ["concurrency", "arrivals_file"], help_heading = HELP_LOAD)]
    pub(super) rate: Vec<f64>,
    /// How requests of --rate are spread over time.
    #[arg(long, value_enum, default_value_t, requires = "rate", help_heading = HELP_LOAD)]
    pub(super) arrivals: Spacing,
    /// Open loop with recorded arrivals: a file with seconds, or JSON with `timestamp` in milliseconds, line by line; the
    /// raw.jsonl of an earlier run too.
    #[arg(long, value_name = "FILE", conflicts_with = "concurrency", help_heading = HELP_LOAD)]
    pub(super) arrivals_file: Option<PathBuf>,
    /// Recorded arrivals so many times faster.
    #[arg(long, default_value_t = 1.0, value_name = "X", help_heading = HELP_LOAD)]
    pub(super) speedup: f64,
    /// Double the load from the first level on until throughput no longer grows, and look around the knee.
    #[arg(long, conflicts_with = "arrivals_file", help_heading = HELP_LOAD)]
    pub(super) sweep: bool,
    /// Requests to send [default: 100, or all recorded arrivals; in a sweep 20 seconds of each level].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = HELP_LOAD)]
    pub(super) requests: Option<u64>,
    /// Seconds after which no more are sent; those on their way are waited for.
    #[arg(long, value_name = "SECONDS", help_heading = HELP_LOAD)]
    pub(super) duration: Option<f64>,
    /// Requests before the measurement, which do not count [default: as many as there are clients, 10 in an open loop].
    #[arg(long, value_name = "N", help_heading = HELP_LOAD)]
    pub(super) warmup: Option<u64>,
    /// Most requests on their way in an open loop; more wait, and their waiting counts.
    #[arg(long, default_value_t = 4096, value_name = "N", help_heading = HELP_LOAD)]
    pub(super) max_in_flight: usize,
    /// A connection for each request. Without it connections are used again, unless the server is found to hang up behind
    /// its answers.
    #[arg(long, help_heading = HELP_LOAD)]
    pub(super) new_connections: bool,
    /// Longest wait for a whole answer, in seconds.
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS", help_heading = HELP_LOAD)]
    pub(super) timeout: f64,
    /// Failures in a row after which the run ends [default: 100, or twice as many as there are clients if that is more; of
    /// answers that do not come in time, 20, or twice as many as there are clients].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = HELP_LOAD)]
    pub(super) give_up_after: Option<u64>,

    /// `questions`, `zoo`, a task of the zoo (math, json, sql, chat, chain), `synthetic`, or a file: .txt (a prompt a line), .jsonl
    /// (`prompt`, `messages`, `question` or `conversations`, and perhaps `max_tokens`), .json (ShareGPT).
    #[arg(long, default_value = "questions", value_name = "SET|FILE", help_heading = HELP_PROMPTS)]
    pub(super) prompts: String,
    /// Tokens of synthetic prompts: 512, or 512+-128 for lengths drawn evenly.
    #[arg(long, default_value = "256", value_name = "N", help_heading = HELP_PROMPTS)]
    pub(super) input_tokens: Lengths,
    /// Tokens of the answers to synthetic prompts; sets ignore_eos, so that they become as long [default: --max-tokens].
    #[arg(long, value_name = "N", help_heading = HELP_PROMPTS)]
    pub(super) output_tokens: Option<Lengths>,
    /// The model's tokenizer.json, for synthetic prompts of exact length; without it the server is asked how it counts.
    #[arg(long, value_name = "FILE", help_heading = HELP_PROMPTS)]
    pub(super) tokenizer: Option<PathBuf>,
    /// A number in front of every prompt, so that no server can reuse what it computed for another.
    #[arg(long, help_heading = HELP_PROMPTS)]
    pub(super) numbered: bool,
    /// Which route is asked.
    #[arg(long, value_enum, default_value_t, help_heading = HELP_PROMPTS)]
    pub(super) endpoint: Endpoint,
    /// Most tokens of an answer, if the prompt does not say it.
    #[arg(long, default_value_t = 128, value_name = "N", help_heading = HELP_PROMPTS)]
    pub(super) max_tokens: u64,
    /// Answers go on behind the end token; not all servers know it.
    #[arg(long, help_heading = HELP_PROMPTS)]
    pub(super) ignore_eos: bool,
    #[arg(long, default_value_t = 0.0, help_heading = HELP_PROMPTS)]
    pub(super) temperature: f64,
    /// Seed of arrivals, synthetic prompts and, if given, of the sampling.
    #[arg(long, help_heading = HELP_PROMPTS)]
    pub(super) seed: Option<u64>,
    /// Whole answers instead of streams; there is no time to the first token then.
    #[arg(long, help_heading = HELP_PROMPTS)]
    pub(super) no_stream: bool,
    /// Do not ask for `usage` in the stream; tokens are unknown then.
    #[arg(long, help_heading = HELP_PROMPTS)]
    pub(super) no_usage: bool,
    /// Leapfrog's `decoding`: a preset, or the JSON object.
    #[arg(long, value_name = "PRESET|JSON", help_heading = HELP_PROMPTS)]
    pub(super) decoding: Option<String>,
    /// More fields of every request, as a JSON object; null takes a field away.
    #[arg(long, value_name = "JSON", help_heading = HELP_PROMPTS)]
    pub(super) extra_body: Option<String>,
    /// Ask Leapfrog for the joules of each request, beside those of the run. Its answers may wait for the sensor.
    #[arg(long, help_heading = HELP_PROMPTS)]
    pub(super) request_energy: bool,

    /// Goodput: most milliseconds of a good request, `ttft:500,tpot:50,e2e:5000`.
    #[arg(long, value_name = "TARGETS", help_heading = HELP_REPORT)]
    pub(super) goodput: Option<Goal>,
    /// Folder for raw.jsonl, summary.json, summary.md and the plots.
    #[arg(long, value_name = "FOLDER", help_heading = HELP_REPORT)]
    pub(super) out: Option<PathBuf>,
}

/// How the requests of a rate are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Spacing {
    /// Independent users: gaps at random.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
}

/// Targets as they are typed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Goal(pub(super) Targets);

impl FromStr for Goal {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut targets = Targets::default();
        for part in text.split(',') {
            let (name, millis) = part.split_once(':').with_context(|| format!("`{part}` is not like ttft:500"))?;
            let millis: f64 = millis.trim().parse().with_context(|| format!("`{millis}` is not a number"))?;
            ensure!(millis.is_finite() && millis > 0.0, "{part}: milliseconds above 0 are wanted");
            let target = match name.trim() {
                "ttft" => &mut targets.ttft_ms,
                "tpot" => &mut targets.tpot_ms,
                "e2e" => &mut targets.e2e_ms,
                name => bail!("`{name}` is not one of ttft, tpot, e2e"),
            };
            ensure!(target.replace(millis).is_none(), "{name} is there twice");
        }
        Ok(Self(targets))
    }
}

/// One strength of the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Level {
    Clients(usize),
    Rate(f64),
    Recorded,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clients(count) => write!(f, "concurrency {count}"),
            Self::Rate(rate) => write!(f, "{rate} requests/s"),
            Self::Recorded => f.write_str("recorded arrivals"),
        }
    }
}

impl Level {
    /// Name of its folder in a sweep.
    pub(super) fn folder(self) -> String {
        match self {
            Self::Clients(count) => format!("concurrency-{count}"),
            Self::Rate(rate) => format!("rate-{rate}"),
            Self::Recorded => "recorded".to_owned(),
        }
    }

    /// Clients, or requests a second.
    pub(super) fn strength(self) -> f64 {
        match self {
            Self::Clients(count) => count as f64,
            Self::Rate(rate) => rate,
            Self::Recorded => 1.0,
        }
    }
}

impl ServeArgs {
    /// Refuses what makes no sense, before anything is sent.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let positive = |name: &str, value: f64| {
            ensure!(value.is_finite() && value > 0.0, "{name} {value}: a number above 0 is wanted");
            Ok(())
        };
        positive("--timeout", self.timeout)?;
        positive("--speedup", self.speedup)?;
        ensure!(self.timeout <= 1e6, "--timeout {}: more than a million seconds", self.timeout);
        if let Some(duration) = self.duration {
            positive("--duration", duration)?;
            ensure!(duration <= 1e6, "--duration {duration}: more than a million seconds");
        }
        for &rate in &self.rate {
            positive("--rate", rate)?;
            ensure!((1e-3..=1e5).contains(&rate), "--rate {rate}: from 0.001 to 100000 requests a second");
        }
        for &clients in &self.concurrency {
            ensure!((1..=65_536).contains(&clients), "--concurrency {clients}: from 1 to 65536");
        }
        ensure!(
            (1..=1 << 20).contains(&self.max_in_flight),
            "--max-in-flight {}: from 1 to 1048576",
            self.max_in_flight
        );
        ensure!(self.max_tokens > 0, "--max-tokens 0: there would be nothing to measure");
        ensure!(
            self.temperature.is_finite() && self.temperature >= 0.0,
            "--temperature {}: from 0 on",
            self.temperature
        );
        if self.goodput.is_some_and(|goal| goal.0.ttft_ms.is_some() || goal.0.tpot_ms.is_some()) {
            ensure!(!self.no_stream, "--goodput with ttft or tpot needs streams, and --no-stream is given");
        }
        if self.goodput.is_some_and(|goal| goal.0.tpot_ms.is_some()) {
            ensure!(!self.no_usage, "--goodput with tpot needs the number of tokens, and --no-usage is given");
        }
        Ok(())
    }

    /// The levels that are given, ascending and each once.
    pub(super) fn levels(&self) -> Vec<Level> {
        let mut levels: Vec<Level> = if self.arrivals_file.is_some() {
            vec![Level::Recorded]
        } else if !self.rate.is_empty() {
            self.rate.iter().copied().map(Level::Rate).collect()
        } else if self.concurrency.is_empty() {
            vec![Level::Clients(1)]
        } else {
            self.concurrency.iter().copied().map(Level::Clients).collect()
        };
        levels.sort_by(|a, b| a.strength().total_cmp(&b.strength()));
        levels.dedup();
        levels
    }

    pub(super) fn is_sweep(&self) -> bool {
        self.sweep || self.levels().len() > 1
    }

    /// How a level is measured.
    pub(super) fn plan(&self, level: Level) -> anyhow::Result<Plan> {
        let seed = self.seed.unwrap_or(0);
        let arrivals = match level {
            Level::Clients(concurrency) => Arrivals::Closed { concurrency },
            Level::Rate(rate) => Arrivals::Open(match self.arrivals {
                Spacing::Poisson => Schedule::Poisson { rate, seed },
                Spacing::Constant => Schedule::Constant { rate },
            }),
            Level::Recorded => {
                let path = self.arrivals_file.as_deref().context("no --arrivals-file")?;
                Arrivals::Open(Schedule::Recorded(arrivals::read(path, self.speedup)?))
            }
        };
        let is_untold = self.requests.is_none() && self.duration.is_none() && level != Level::Recorded;
        let seconds = self.duration.or((is_untold && self.is_sweep()).then_some(SWEEP_SECONDS));
        Ok(Plan {
            phase: Phase::Measured,
            first_index: 0,
            num_requests: self.requests.or((is_untold && !self.is_sweep()).then_some(REQUESTS)),
            duration: seconds.map(Duration::from_secs_f64),
            max_in_flight: self.max_in_flight,
            give_up_after: self.give_up_after.unwrap_or(match level {
                Level::Clients(concurrency) => 100.max(2 * concurrency as u64),
                _ => 100,
            }),
            give_up_after_timeouts: self.give_up_after.unwrap_or(match level {
                Level::Clients(concurrency) => 3.max(2 * concurrency as u64),
                _ => 20,
            }),
            arrivals,
        })
    }

    /// The same load before the measurement; `None` if there is to be none.
    pub(super) fn warmup(&self, level: Level, plan: &Plan) -> Option<Plan> {
        let count = self.warmup.unwrap_or(match level {
            Level::Clients(concurrency) => concurrency as u64,
            _ => 10,
        });
        let arrivals = match (&plan.arrivals, level) {
            (Arrivals::Closed { concurrency }, _) => Arrivals::Closed { concurrency: *concurrency },
            // What was recorded begins with the measurement.
            (_, Level::Recorded) => Arrivals::Closed { concurrency: 1 },
            (open, _) => open.clone(),
        };
        let plan = Plan { phase: Phase::Warmup, arrivals, num_requests: Some(count), duration: None, ..plan.clone() };
        (count > 0).then_some(plan)
    }

    /// Fields of every request but its prompt.
    pub(super) fn fields(&self, model: &str) -> anyhow::Result<Map<String, Value>> {
        let mut fields = json!({
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": !self.no_stream,
        });
        if !self.no_stream && !self.no_usage {
            fields["stream_options"] = json!({"include_usage": true});
        }
        if self.ignore_eos || self.output_tokens.is_some() {
            fields["ignore_eos"] = json!(true);
        }
        if let Some(seed) = self.seed {
            fields["seed"] = json!(seed);
        }
        if self.request_energy {
            fields["energy"] = json!(true);
        }
        if let Some(decoding) = &self.decoding {
            fields["decoding"] = if decoding.trim_start().starts_with('{') {
                serde_json::from_str(decoding).with_context(|| format!("--decoding {decoding}"))?
            } else {
                json!(decoding)
            };
        }
        if let Some(extra) = &self.extra_body {
            let extra: Map<String, Value> = serde_json::from_str(extra)
                .with_context(|| format!("--extra-body {extra}: a JSON object is wanted"))?;
            for (key, value) in extra {
                fields[key] = value;
            }
        }
        let is_single = fields.get("n").is_none_or(|n| n.is_null() || *n == json!(1));
        ensure!(is_single, "--extra-body: `n` other than 1 would mix several answers in one stream");
        Ok(fields.as_object().cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn parsed(line: &str) -> Result<ServeArgs, String> {
        let args = Cli::try_parse_from(std::iter::once("serve").chain(line.split_whitespace()));
        let args = args.map_err(|error| error.to_string())?.serve;
        args.check().map_err(|error| format!("{error:#}"))?;
        Ok(args)
    }

    #[test]
    fn levels_and_plans() {
        let args = parsed("").unwrap();
        assert_eq!(args.levels(), [Level::Clients(1)]);
        let plan = args.plan(Level::Clients(1)).unwrap();
        assert_eq!((plan.num_requests, plan.duration), (Some(REQUESTS), None));
        let args = parsed("--concurrency 8,1,8").unwrap();
        assert_eq!(args.levels(), [Level::Clients(1), Level::Clients(8)]);
        assert!(args.is_sweep());
        let plan = args.plan(Level::Clients(8)).unwrap();
        assert_eq!((plan.num_requests, plan.duration), (None, Some(Duration::from_secs(20))));
        assert_eq!(args.warmup(Level::Clients(8), &plan).unwrap().num_requests, Some(8));
        let args = parsed("--rate 2.5 --arrivals constant --duration 3 --warmup 0").unwrap();
        let plan = args.plan(args.levels()[0]).unwrap();
        assert!(matches!(plan.arrivals, Arrivals::Open(Schedule::Constant { rate: 2.5 })));
        assert_eq!((plan.num_requests, plan.duration), (None, Some(Duration::from_secs(3))));
        assert!(args.warmup(args.levels()[0], &plan).is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, part) in [
            ("--rate 0", "--rate 0: a number above 0"),
            ("--rate nan", "--rate NaN"),
            ("--concurrency 0", "--concurrency 0"),
            ("--rate 1 --concurrency 2", "cannot be used with"),
            ("--requests 0", "0 is not in"),
            ("--duration -1", "unexpected argument"),
            ("--duration 0", "--duration 0"),
            ("--timeout 0", "--timeout 0"),
            ("--goodput ttft", "not like ttft:500"),
            ("--goodput tpop:3", "not one of ttft, tpot, e2e"),
            ("--goodput e2e:3,e2e:4", "twice"),
            ("--goodput e2e:0", "above 0"),
            ("--goodput ttft:3 --no-stream", "needs streams"),
            ("--goodput tpot:3 --no-usage", "needs the number of tokens"),
            ("--max-in-flight 18446744073709551615", "from 1 to 1048576"),
            ("--max-tokens 0", "--max-tokens 0"),
            ("--input-tokens 5+-9", "not all above 0"),
            ("--arrivals constant", "--rate"),
        ] {
            let refused = parsed(line).unwrap_err();
            assert!(refused.contains(part), "{line}: {refused}");
        }
    }

    #[test]
    fn fields_of_requests() {
        let args = parsed(r#"--seed 4 --decoding {"width":8} --extra-body {"top_p":0.9,"temperature":null}"#).unwrap();
        let fields = Value::Object(args.fields("m").unwrap());
        assert_eq!(fields["decoding"], json!({"width": 8}));
        assert_eq!((&fields["top_p"], &fields["temperature"], &fields["seed"]), (&json!(0.9), &Value::Null, &json!(4)));
        assert_eq!(fields["stream_options"], json!({"include_usage": true}));
        assert_eq!(parsed("--decoding fast").unwrap().fields("m").unwrap()["decoding"], "fast");
        assert!(parsed("--extra-body [1]").unwrap().fields("m").is_err());
        assert!(parsed(r#"--extra-body {"n":2}"#).unwrap().fields("m").unwrap_err().to_string().contains("`n`"));
    }
}
