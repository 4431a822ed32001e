//! The command line. Exit codes: 0 fine, 1 the operation failed, 2 usage or configuration.

mod check;
mod consumers;
mod dead_letters;
mod doctor;
mod outbox;
mod pending;
mod progress;
mod quarantine;
mod reconcile;
mod routes;
mod send;
mod serve;
mod store;
mod table;
mod tail;
mod texts;
mod why;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use hookgate::{
    delivery::Durability,
    settings::{self, AuthSecrets, Contents, Settings, SettingsErrors, Sources, sections::Configuration},
};

/// For people who look for a command.
const EXAMPLES: &str = "Examples:
  hookgate init > hookgate.toml                a configuration to start from
  hookgate check --config hookgate.toml        whether it is valid, and what it amounts to
  hookgate --config hookgate.toml              serve
  hookgate doctor --config hookgate.toml       whether Redis and NATS lose nothing
  hookgate tail                                events as they are published";

/// Takes webhooks, claims every entity id once in Redis and publishes each new one as an event on NATS.
///
/// Without a command it serves. The configuration comes from --config files (without any, those of
/// `HOOKGATE_CONFIG`, separated by colons) and from environment variables: `HOOKGATE__REDIS__URL` is the key
/// `redis.url`. `hookgate check` shows what it amounts to.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// TOML file, each over the one before [default: those of `HOOKGATE_CONFIG`, else config/default.toml if it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take webhooks and publish events, until SIGTERM or Ctrl-C (the default).
    #[command(after_help = "Examples:
  hookgate serve --config hookgate.toml
  HOOKGATE__REDIS__URL=redis://redis:6379/1 hookgate serve")]
    Serve,
    /// Validate the configuration and print what it amounts to, without secrets.
    #[command(after_help = "Exit code: 0 if it is valid, 1 if NATS is not set up for it, 2 if it is not valid.

Examples:
  hookgate check --config hookgate.toml
  hookgate check --config base.toml --config production.toml")]
    Check,
    /// List the webhooks: path, subject, pending key, auth.
    #[command(after_help = "Examples:
  hookgate routes
  hookgate routes --output json | jq -r .path")]
    Routes,
    /// Print events as they are published, like `nats sub`.
    Tail(tail::TailArguments),
    /// Send a signed test webhook, as the CRM would.
    Send(send::SendArguments),
    /// Look at Redis, NATS and the stream, and say what to change.
    Doctor(doctor::DoctorArguments),
    /// Look at claims that NATS has not acknowledged yet, and publish them.
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Look at pending ids, release them, or publish them once more.
    #[command(subcommand)]
    Pending(pending::PendingCommand),
    /// Look at items and bodies that could not be processed.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Tell the story of an id: claims, events, consumers, dead letters.
    Why(why::WhyArguments),
    /// Look at bodies whose signature was wrong, and release those that prove good.
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Bring back what the CRM gave up on, or never sent.
    Reconcile(reconcile::ReconcileArguments),
    /// Look at the durable consumers of the streams, or add one.
    #[command(subcommand)]
    Consumers(consumers::ConsumersCommand),
    /// Print a commented configuration to start from.
    #[command(after_help = "Example:
  hookgate init > hookgate.toml")]
    Init,
    /// Print the JSON Schema of a configuration file, for editors.
    #[command(after_help = "Example:
  hookgate config-schema > schema.json        and `#:schema ./schema.json` as the first line of hookgate.toml")]
    ConfigSchema,
    /// Print the completions of a shell.
    #[command(after_help = "Example:
  hookgate completions bash > /usr/share/bash-completion/completions/hookgate")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example:
  hookgate man | man -l -")]
    Man,
}

pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let command = match arguments.command.unwrap_or(Command::Serve) {
        Command::Init => return texts::init(),
        Command::ConfigSchema => return texts::config_schema(),
        Command::Completions { shell } => return texts::completions(shell),
        Command::Man => return texts::man(),
        command => command,
    };
    let sources = Sources::new(arguments.config, settings::environment());
    let configured = match configure(&sources, command.auth_secrets()) {
        Ok(configured) => configured,
        Err(errors) => {
            for error in errors.iter() {
                tell(&format!("hookgate: configuration: {error}"));
            }
            return ExitCode::from(2);
        }
    };
    // `serve` logs them, and `doctor` counts them among its findings.
    if !matches!(command, Command::Serve | Command::Doctor(_)) {
        for warning in &configured.settings.warnings {
            tell(&format!("hookgate: warning: {warning}"));
        }
    }
    let output = arguments.output;
    let outcome = match command {
        Command::Serve => serve::run(configured, sources),
        Command::Check => check::run(&configured.configuration, &configured.settings, output),
        Command::Routes => routes::run(&configured.settings, output),
        Command::Send(arguments) => send::run(&arguments, &configured.settings, output),
        Command::Doctor(arguments) => doctor::run(&arguments, &configured.settings, output),
        Command::Outbox(command) => outbox::run(&command, &configured.settings, output),
        Command::Pending(command) => pending::run(&command, &configured.settings, output),
        Command::DeadLetters(command) => dead_letters::run(&command, &configured.settings, output),
        Command::Why(arguments) => why::run(&arguments, &configured.settings, output),
        Command::Quarantine(command) => quarantine::run(&command, &configured.settings, output),
        Command::Reconcile(arguments) => reconcile::run(&arguments, &configured.settings, output),
        Command::Consumers(command) => consumers::run(&command, &configured.settings, output),
        Command::Tail(arguments) => tail::run(arguments, &configured.settings, output),
        Command::Init | Command::ConfigSchema | Command::Completions { .. } | Command::Man => Ok(ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| fail(&error, 1))
}

impl Command {
    /// Whether it needs the secrets of `auth`. An operator's command must not fail because of one.
    const fn auth_secrets(&self) -> AuthSecrets {
        match self {
            Self::Serve | Self::Check | Self::Send(_) | Self::Quarantine(quarantine::QuarantineCommand::Release) => {
                AuthSecrets::Read
            }
            _ => AuthSecrets::Leave,
        }
    }
}

/// What an answer rests on where webhooks mark pending ids.
fn on_marks(settings: &Settings) -> String {
    let survives = match settings.durability {
        Durability::Aof => "it is on Redis' disk, and a failover to a replica without it loses the change",
        Durability::None | Durability::Replica => "a Redis replica has it, and the loss of both loses the change",
    };
    format!(
        "has while_pending = \"coalesce\": a webhook for a pending id is answered 200 once {survives}; where that is not confirmed in time, the event is published"
    )
}

/// What has to be said of a route without `auth`.
const UNSIGNED: &str = "takes webhooks from anybody who reaches it: it has no auth";

/// The configuration as it is written, and as it was understood.
struct Configured {
    configuration: Configuration,
    settings: Settings,
    /// What the files held just before they were read.
    contents: Contents,
}

fn configure(sources: &Sources, secrets: AuthSecrets) -> Result<Configured, SettingsErrors> {
    let contents = sources.contents();
    let (configuration, layers) = sources.load();
    let settings = Settings::check(&configuration, layers, secrets)?;
    Ok(Configured { configuration, settings, contents })
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    tell(&format!("hookgate: {error:#}"));
    ExitCode::from(code)
}

/// Says a line on standard error. One that nobody reads any more is no reason to fail.
fn tell(line: &str) {
    use std::io::Write;
    let _nobody_reads = writeln!(std::io::stderr().lock(), "{line}");
}

/// Asks on a terminal; elsewhere only `--yes` will do.
fn confirm(question: &str) -> anyhow::Result<bool> {
    use std::io::IsTerminal;

    use anyhow::Context;
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        tell(&format!("hookgate: {question} There is nobody to ask; say --yes"));
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Prints a line of a result. Returns false once standard output is closed.
fn print(line: &str) -> bool {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{line}").is_ok()
}
