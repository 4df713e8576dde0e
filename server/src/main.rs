//! The program `leapfrog`: arguments, settings, run.

use std::{env, process::ExitCode};

use clap::Parser;
use server::{
    args::{self, Cli, Command, RunArgs, ServeArgs},
    bench, health,
    runtime::drive,
    settings::{LogSettings, Settings},
    terminal,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a server that could not start, or was told twice to stop.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return report(&args::explain(&error)),
        // `--help` and `--version` come as errors too.
        Err(error) => error.exit(),
    };
    let outcome = match cli.command {
        Some(Command::Health(args)) => return health::probe(&args),
        Some(Command::Run(args)) => run(*args),
        Some(Command::Energy(args)) => drive(&LogSettings::quiet(), terminal::watch(args)),
        // What follows the name of the command, which comes first; clap would keep a `--` for itself.
        Some(Command::Bench(_)) => bench::run(env::args_os().skip(2)).map_err(Into::into),
        Some(Command::Serve(args)) => serve(*args),
        None => serve(cli.serve),
    };
    outcome.unwrap_or_else(|error| report(&error.to_string()))
}

fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::resolve(args, &env::current_dir()?)?;
    drive(&settings.log.clone(), async { server::run(settings).await.map(|()| ExitCode::SUCCESS) })
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::resolve_run(args.common.clone(), &env::current_dir()?)?;
    drive(&settings.log.clone(), terminal::run(settings, args))
}

/// One line, whatever the message holds.
#[expect(clippy::print_stderr, reason = "the last word of a program that stops, also if logs are off")]
fn report(message: &str) -> ExitCode {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("error: {message}");
    ExitCode::from(FAILED)
}
