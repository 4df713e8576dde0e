//! What the options mean: command line, environment and file in one, checked.

mod energy;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use engine::{EngineSettings, LoadOptions, ModelError, ModelSource, Target, TokenId, energy::EnergySettings};
use serde::de::IgnoredAny;
use toml::Spanned;
use tracing_subscriber::EnvFilter;

use crate::{
    args::{CommonArgs, EnergyUsage, LogFormat, ServeArgs},
    metrics::Dialect,
};

/// The file that is read if no other is named.
const DEFAULT_CONFIG: &str = "leapfrog.toml";

/// Log lines of a server that names no level.
const SERVE_FILTER: &str = "info";
/// The same for the command `run`, whose output they would disturb.
const RUN_FILTER: &str = "warn";

/// Everything that a run of the server needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the models lie, the default one first; never empty. Their ids differ.
    pub models: Vec<ModelSource>,
    /// How to load each of them.
    pub load: LoadOptions,
    /// How to run each of them.
    pub engine: EngineSettings,
    /// How to meter energy.
    pub energy: EnergySettings,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// How to treat requests.
    pub http: HttpSettings,
    /// How long running requests may take after a signal to stop.
    pub drain_timeout: Duration,
    /// How to log.
    pub log: LogSettings,
}

/// How the HTTP layer treats requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Names for the only model besides its own; the first is the one that is listed first.
    pub model_names: Vec<String>,
    /// Keys of which a client must send one; empty asks for none.
    pub api_keys: Vec<String>,
    /// Keys that allow everything; without [`Self::api_keys`] only judging answers needs one.
    pub admin_keys: Vec<String>,
    /// Web origins that may read replies; `*` is any.
    pub cors_origins: Vec<String>,
    /// Names that may stand in the `Host` header besides those of this machine.
    pub allowed_hosts: Vec<String>,
    /// Largest body, in bytes.
    pub max_body: usize,
    /// Whether unknown fields are an error.
    pub strict: bool,
    /// Who is told what a request cost.
    pub energy_usage: EnergyUsage,
    /// Servers by whose names metrics are shown too.
    pub metrics_compat: Vec<Dialect>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            model_names: Vec::new(),
            api_keys: Vec::new(),
            admin_keys: Vec::new(),
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            max_body: 4 << 20,
            strict: false,
            energy_usage: EnergyUsage::default(),
            metrics_compat: Vec::new(),
        }
    }
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// A filter as `tracing` reads it.
    pub filter: String,
}

impl LogSettings {
    /// For commands whose output is for a person to look at.
    pub fn quiet() -> Self {
        Self { format: LogFormat::Text, filter: RUN_FILTER.to_owned() }
    }
}

/// Options that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A configuration file that is not valid.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        reason: String,
    },
    /// A model that cannot be meant.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A value out of range.
    #[error("--{option}: {reason}")]
    Invalid {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Settings {
    /// Reads the configuration file and gives every option its meaning. `folder` is where `leapfrog.toml` is looked
    /// for.
    pub fn resolve(args: ServeArgs, folder: &Path) -> Result<Self, SettingsError> {
        Self::resolve_with(args, folder, SERVE_FILTER)
    }

    /// The same for the command `run`, which has no network.
    pub fn resolve_run(common: CommonArgs, folder: &Path) -> Result<Self, SettingsError> {
        let settings = Self::resolve_with(ServeArgs { common, ..ServeArgs::default() }, folder, RUN_FILTER)?;
        match &settings.models[..] {
            [_] => Ok(settings),
            several => {
                let reason = format!("`run` takes one model; these are several: {}", ids(several));
                Err(SettingsError::Invalid { option: "model", reason })
            }
        }
    }

    fn resolve_with(serve: ServeArgs, folder: &Path, default_filter: &str) -> Result<Self, SettingsError> {
        let file = read_config(serve.common.config.as_deref(), folder)?;
        let serve = serve.or(file);
        let args = &serve.common;
        let target: Target = args.device.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let precision = args.precision.as_deref().map(str::parse).transpose()?;
        if precision.is_some() && target == Target::Cpu {
            let reason = "it is for --device cuda; the processor computes in f32".into();
            return Err(SettingsError::Invalid { option: "precision", reason });
        }
        if args.activations.is_some() && target != Target::Cpu {
            let reason = "it is for --device cpu; a GPU rounds the inputs of its layers to --precision".into();
            return Err(SettingsError::Invalid { option: "activations", reason });
        }
        target.check()?;
        let filter = args.log_level.clone().unwrap_or_else(|| default_filter.to_owned());
        EnvFilter::try_new(&filter)
            .map_err(|error| SettingsError::Invalid { option: "log-level", reason: error.to_string() })?;
        let log = LogSettings { format: args.log_format.unwrap_or_default(), filter };
        let models = models(&args.model)?;
        let quantize = args.quantize.as_deref().map(str::parse).transpose()?;
        let activations = args.activations.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let attention = args.attention.as_deref().map(str::parse).transpose()?;
        let defaults = EngineSettings::default();
        let engine = EngineSettings {
            max_concurrent: args.max_concurrent.unwrap_or(defaults.max_concurrent),
            max_queue: args.max_queue.unwrap_or(defaults.max_queue),
            max_rows: args.max_rows.unwrap_or(defaults.max_rows),
            kv_tokens: args.kv_tokens,
            // What one model may take by default, several have together.
            kv_bytes: defaults.kv_bytes / models.len(),
            max_context: args.max_context,
            width: args.width,
            threads: args.threads,
            ..defaults
        };
        let http = http_settings(serve.clone())?;
        if models.len() > 1 && !http.model_names.is_empty() {
            let reason = format!("it gives one model further names; these are several: {}", ids(&models));
            return Err(SettingsError::Invalid { option: "model-id", reason });
        }
        Ok(Self {
            models,
            load: LoadOptions {
                quantize,
                activations,
                tokenizer: args.tokenizer.clone(),
                chat_template: args.chat_template.clone(),
                mask_id: args.mask_id.map(TokenId),
                attention,
                target,
                precision,
            },
            engine,
            energy: energy::resolve(&args.energy, target)?,
            host: serve.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: serve.port.unwrap_or(8080),
            drain_timeout: Duration::from_secs(serve.drain_timeout.unwrap_or(30)),
            http,
            log,
        })
    }
}

/// The models that the option `--model` names, or the default one.
fn models(given: &[String]) -> Result<Vec<ModelSource>, SettingsError> {
    let names = given.iter().flat_map(|text| {
        // A path may hold commas.
        let is_path = Path::new(text).exists();
        let names: Vec<&str> = if is_path { vec![text] } else { text.split(',').map(str::trim).collect() };
        names.into_iter().filter(|name| !name.is_empty())
    });
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return Ok(vec![ModelSource::default()]);
    }
    let models = ModelSource::parse_all(names.iter().copied())?;
    let mut seen = BTreeSet::new();
    if let Some(id) = models.iter().map(ModelSource::id).find(|id| !seen.insert(id.clone())) {
        let is_called_so = |name: &&&str| name.parse::<ModelSource>().is_ok_and(|model| model.id() == id);
        let same: Vec<&str> = names.iter().filter(is_called_so).copied().collect();
        let reason = format!("clients could not tell {} apart: each is called `{id}`", same.join(" and "));
        return Err(SettingsError::Invalid { option: "model", reason });
    }
    Ok(models)
}

fn ids(models: &[ModelSource]) -> String {
    models.iter().map(ModelSource::id).collect::<Vec<_>>().join(", ")
}

fn http_settings(args: ServeArgs) -> Result<HttpSettings, SettingsError> {
    let given = |values: Vec<String>| -> Vec<String> {
        values.into_iter().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty()).collect()
    };
    let mut api_keys = given(args.api_key);
    if let Some(path) = &args.api_key_file {
        let keys = read_keys(path)?;
        if keys.is_empty() {
            // An empty file must not turn the check off.
            let reason = format!("{} holds no key", path.display());
            return Err(SettingsError::Invalid { option: "api-key-file", reason });
        }
        api_keys.extend(keys);
    }
    let cors_origins = given(args.cors_origin);
    for origin in &cors_origins {
        if origin != "*" && !(origin.starts_with("http://") || origin.starts_with("https://")) {
            let reason = format!("`{origin}` is not an origin such as https://example.org, nor *");
            return Err(SettingsError::Invalid { option: "cors-origin", reason });
        }
    }
    let energy_usage = energy::usage(args.energy_usage, api_keys.len())?;
    let defaults = HttpSettings::default();
    Ok(HttpSettings {
        model_names: given(args.model_id),
        api_keys,
        admin_keys: given(args.admin_key),
        cors_origins,
        allowed_hosts: given(args.allowed_host).iter().map(|host| host.to_ascii_lowercase()).collect(),
        max_body: args.max_body.unwrap_or(defaults.max_body),
        strict: args.strict.unwrap_or(defaults.strict),
        energy_usage,
        metrics_compat: dialects(&args.metrics_compat)?,
    })
}

fn dialects(names: &[String]) -> Result<Vec<Dialect>, SettingsError> {
    let names = names.iter().flat_map(|names| names.split(',')).map(str::trim).filter(|name| !name.is_empty());
    let mut dialects = Vec::new();
    for name in names {
        let Some(dialect) = Dialect::ALL.into_iter().find(|dialect| dialect.name() == name) else {
            let reason = format!("`{name}` is not known; there are vllm and llamacpp");
            return Err(SettingsError::Invalid { option: "metrics-compat", reason });
        };
        if !dialects.contains(&dialect) {
            dialects.push(dialect);
        }
    }
    Ok(dialects)
}

fn read_config(named: Option<&Path>, folder: &Path) -> Result<ServeArgs, SettingsError> {
    let default = folder.join(DEFAULT_CONFIG);
    let path = named.unwrap_or(&default);
    let text = match fs::read_to_string(path) {
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(ServeArgs::default()),
        Err(source) => return Err(SettingsError::Read { path: path.to_owned(), source }),
        Ok(text) => text,
    };
    parse_config(&text).map_err(|reason| SettingsError::Config { path: path.to_owned(), reason })
}

/// Every struct reads its own keys and passes over those of the others, so unknown ones are found apart.
fn parse_config(text: &str) -> Result<ServeArgs, String> {
    let explain = |error: toml::de::Error| one_line(error.message(), error.span(), text);
    let keys: BTreeMap<Spanned<String>, IgnoredAny> = toml::from_str(text).map_err(explain)?;
    let known = config_keys();
    let mut unknown = keys.keys().filter(|key| !known.contains(key.get_ref()));
    if let Some(key) = unknown.next() {
        let known: Vec<_> = known.iter().map(|key| format!("`{key}`")).collect();
        let message = format!("unknown field `{}`, expected one of {}", key.get_ref(), known.join(", "));
        return Err(one_line(&message, Some(key.span()), text));
    }
    let energy = toml::from_str(text).map_err(explain)?;
    let common = CommonArgs { energy, ..toml::from_str(text).map_err(explain)? };
    Ok(ServeArgs { common, ..toml::from_str(text).map_err(explain)? })
}

/// The options as a file spells them. A file does not name another.
fn config_keys() -> Vec<String> {
    let command = ServeArgs::augment_args(clap::Command::new("serve"));
    let names = command.get_arguments().filter_map(|arg| arg.get_long());
    names.filter(|name| *name != "config").map(|name| name.replace('-', "_")).collect()
}

/// A message about `text` with its line, without the multi-line drawing.
fn one_line(message: &str, span: Option<Range<usize>>, text: &str) -> String {
    let message = message.replace('\n', " ");
    match span.and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

fn read_keys(path: &Path) -> Result<Vec<String>, SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use engine::AttentionChoice;

    use super::*;
    use crate::args::Cli;

    fn resolve(flags: &[&str], file: Option<&str>) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        if let Some(text) = file {
            fs::write(folder.path().join(DEFAULT_CONFIG), text).unwrap();
        }
        let cli = Cli::try_parse_from([&["leapfrog"], flags].concat()).unwrap();
        Settings::resolve(cli.serve, folder.path())
    }

    #[test]
    fn defaults_are_safe() {
        let settings = resolve(&[], None).unwrap();
        assert_eq!((settings.host.as_str(), settings.port), ("127.0.0.1", 8080));
        assert_eq!(settings.models, [ModelSource::default()]);
        assert_eq!(settings.http, HttpSettings::default());
        assert_eq!(settings.engine, EngineSettings::default());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "port = 9000\nmax_queue = 3\nstrict = true\napi_key = [\"a\"]\nlog_format = \"json\"\n";
        let settings = resolve(&["--port", "9001", "--api-key", "b,c"], Some(file)).unwrap();
        assert_eq!((settings.port, settings.engine.max_queue, settings.http.strict), (9001, 3, true));
        assert_eq!(settings.http.api_keys, ["b", "c"]);
        assert_eq!(settings.log.format, LogFormat::Json);
        let settings = resolve(&["--strict=false"], Some(file)).unwrap();
        assert!(!settings.http.strict, "a flag can also turn off what the file turns on");
    }

    #[test]
    fn several_models_are_named_by_flags_commas_or_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let paths = ["a", "b", "c,d"].map(path);
        paths.iter().for_each(|path| fs::create_dir(path).unwrap());
        let [a, b, comma] = &paths;
        let models = |flags: &[&str], file: Option<&str>| -> Vec<String> {
            resolve(flags, file).unwrap().models.iter().map(ModelSource::id).collect()
        };
        assert_eq!(models(&["--model", a, "-m", b], None), ["a", "b"]);
        assert_eq!(models(&["--model", &format!("{b}, {a}")], None), ["b", "a"]);
        assert_eq!(models(&["--model", comma], None), ["c,d"], "a path may hold commas");
        assert_eq!(models(&[], Some(&format!("model = {b:?}\n"))), ["b"]);
        let list = format!("model = [{b:?}, {a:?}]\n");
        assert_eq!(models(&[], Some(&list)), ["b", "a"]);
        assert_eq!(models(&["--model", a], Some(&list)), ["a"]);
        assert_eq!(models(&["--model", ""], None), [ModelSource::default().id()]);

        let all: Vec<String> = engine::BuiltIn::all().map(|model| model.name().to_owned()).collect();
        assert_eq!(models(&["--model", "builtin"], None), all);
        assert_eq!(models(&["--model", a, "--model", "builtin"], None), [vec!["a".to_owned()], all].concat());
        let error = resolve(&[], Some("model = 5\n")).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("a string or a list of strings"), "{error}");
    }

    #[test]
    fn several_models_must_be_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["x/frog", "y/frog", "toad"].map(|name| folder.path().join(name).display().to_string());
        paths.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let [x, y, toad] = &paths;
        let error = resolve(&["--model", x, "--model", toad, "--model", y], None).unwrap_err().to_string();
        assert!([x, y, "`frog`"].iter().all(|word| error.contains(*word)) && !error.contains(toad), "{error}");
        let name = ModelSource::default().id();
        assert!(resolve(&["--model", &name, "--model", &name], None).is_err());

        let flags = ["--model", x, "--model", toad];
        let error = resolve(&[&flags[..], &["--model-id", "gpt"]].concat(), None).unwrap_err().to_string();
        assert!(error.starts_with("--model-id: ") && error.contains("frog, toad"), "{error}");
        let one = EngineSettings::default().kv_bytes;
        assert_eq!(resolve(&flags, None).unwrap().engine.kv_bytes, one / 2, "several share what one may take");

        let common = CommonArgs { model: vec![x.clone(), toad.clone()], ..CommonArgs::default() };
        let error = Settings::resolve_run(common, folder.path()).unwrap_err().to_string();
        assert!(error.contains("one model") && error.contains("frog, toad"), "{error}");
    }

    #[test]
    fn what_a_diffusion_model_does_not_say_of_itself_can_be_told() {
        let settings = resolve(&["--mask-id", "5"], Some("attention = \"block_causal\"\nmask_id = 7\n")).unwrap();
        assert_eq!(settings.load.mask_id, Some(TokenId(5)));
        assert_eq!(settings.load.attention, Some(AttentionChoice::BlockCausal));
        let error = resolve(&["--attention", "causal"], None).unwrap_err().to_string();
        assert!(error.contains("full, block_causal"), "{error}");
    }

    #[test]
    fn an_unknown_key_lists_the_known_ones() {
        let error = resolve(&[], Some("port = 1\nprot = 2\n")).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("`prot`") && error.contains("`max_concurrent`"), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert!(resolve(&[], Some("config = \"x.toml\"\n")).is_err(), "a file does not name another");
        for (file, line) in [("port = \"x\"\n", "line 1"), ("\nmax_queue = \"x\"\n", "line 2")] {
            let error = resolve(&[], Some(file)).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn every_option_can_stand_in_a_file() {
        for key in config_keys() {
            // A value of a wrong type: whoever reads the key complains.
            let error = resolve(&[], Some(&format!("{key} = {{}}\n"))).unwrap_err().to_string();
            assert!(error.contains("line 1: ") && !error.contains("unknown"), "{key}: {error}");
        }
    }

    #[test]
    fn run_reads_the_same_file_and_logs_less() {
        let folder = tempfile::tempdir().unwrap();
        let filter = |level: Option<&str>| {
            let common = CommonArgs { log_level: level.map(str::to_owned), ..CommonArgs::default() };
            Settings::resolve_run(common, folder.path()).unwrap()
        };
        assert_eq!(filter(None).log.filter, "warn");
        fs::write(folder.path().join(DEFAULT_CONFIG), "log_level = \"error\"\nport = 9\nwidth = 3\n").unwrap();
        assert_eq!((filter(None).log.filter.as_str(), filter(None).engine.width), ("error", Some(3)));
        assert_eq!(filter(Some("debug")).log.filter, "debug");
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = resolve(&["--config", "/nowhere/leapfrog.toml"], None).unwrap_err();
        assert!(matches!(error, SettingsError::Read { .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_starts() {
        for flags in [
            &["--device", "gpu"][..],
            &["--precision", "bf16"],
            &["--device", "cuda", "--precision", "f32"],
            &["--device", "cuda", "--activations", "int8"],
            &["--quantize", "q3"],
            &["--activations", "int4"],
            &["--attention", "causal"],
            &["--log-level", "info,=,"],
            &["--metrics-compat", "vllm,tgi"],
            &["--cors-origin", "example.org"],
            &["--api-key-file", "/nowhere/keys"],
        ] {
            let error = resolve(flags, None).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_no_reason_to_take_another() {
        // Whatever the build and the machine have, this one is not there.
        let error = resolve(&["--device", "cuda:4096"], None).unwrap_err().to_string();
        assert!(error.starts_with("--device cuda:4096: "), "{error}");
    }

    #[test]
    fn keys_come_from_a_file_and_an_empty_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let flags = ["--api-key", "a", "--api-key-file", path.to_str().unwrap()];
        fs::write(&path, "# team\nb\n\n  c  \n").unwrap();
        assert_eq!(resolve(&flags, None).unwrap().http.api_keys, ["a", "b", "c"]);
        fs::write(&path, "# nothing\n").unwrap();
        assert!(resolve(&flags, None).is_err());
    }
}
