//! The command line.
//!
//! In: the process's arguments. Out: [`Todo`]: either a validated configuration to run with, or an exit code after a
//! command that is done (`check`, `drain`, `config`, `version`).
//! Invariant: the exit codes below are a contract with units and scripts.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::drain_command::{self, DrainArgs};
use crate::pages;

/// The process did what it was asked for.
pub const EXIT_OK: u8 = 0;
/// It failed while it ran.
pub const EXIT_FAILURE: u8 = 1;
/// The command line makes no sense (also what the argument parser itself uses).
pub const EXIT_USAGE: u8 = 2;
/// The host refuses: a port is held by another instance, a kernel feature is missing. Retrying may help.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The configuration is not valid. Retrying does not help.
pub const EXIT_CONFIG: u8 = 78;

const EXIT_CODES_HELP: &str = "\
Exit codes:
  0   done, or stopped by SIGTERM or SIGINT after a clean shutdown, or drained
  1   failed while running
  2   the command line makes no sense
  69  the host refuses: port held by another instance, kernel feature missing; drain: no node there
  78  the configuration is not valid (nothing was started)

Every key of the configuration can also be set by the environment: client.listen is RINGWAY_CLIENT__LISTEN.
Later wins: defaults (or --dev), file, environment, flags.";

/// WebSocket gateway on io_uring.
#[derive(Parser, Debug)]
#[command(name = "ringway", disable_version_flag = true, args_conflicts_with_subcommands = true)]
#[command(after_help = EXIT_CODES_HELP, subcommand_negates_reqs = true)]
pub struct Cli {
    /// What to do; without one, the gateway runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of a run without a command word.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the gateway (the default)
    Run(RunArgs),
    /// Validates the configuration that a run with the same flags would use, and exits
    Check(RunArgs),
    /// Makes a running node leave: clients go paced, then backends, then its process; waits for that
    Drain(DrainArgs),
    /// Prints the default configuration file, every key with its meaning
    Config,
    /// Prints the version
    Version,
    /// Writes the generated reference pages and the default file into a folder
    #[command(hide = true)]
    GenerateDocs {
        /// The folder; it must exist.
        dir: PathBuf,
    },
}

/// Flags that decide a configuration.
#[derive(Args, Debug, Clone, Default)]
pub struct RunArgs {
    /// Configuration file (TOML); also RINGWAY_CONFIG
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Everything open, on loopback only: any client, any channel; API key, ingest token and token secret "dev"
    #[arg(long)]
    pub dev: bool,
    /// Number of shards; short for --set shards=N
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// Sets one key, e.g. --set client.listen=127.0.0.1:8000; lists are separated by commas
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Starts beside the instance that holds the port (planned hand-over); short for --set takeover=true
    #[arg(long)]
    pub takeover: bool,
}

/// What remains to be done after the command line is understood.
#[derive(Debug)]
pub enum Todo {
    /// Run with this.
    Run(Box<Config>),
    /// Exit with this; all output has been written.
    Exit(u8),
}

impl Cli {
    /// Parses the process's arguments; prints help or an error and exits where those ask for it.
    pub fn from_process() -> Cli {
        Cli::parse()
    }

    /// The flags that decide the configuration, wherever they stand.
    pub const fn run_args(&self) -> &RunArgs {
        match &self.command {
            Some(Command::Run(args) | Command::Check(args) | Command::Drain(DrainArgs { node: args, .. })) => args,
            _ => &self.run,
        }
    }

    /// Does what needs no gateway, or loads the configuration for one. Errors are printed to standard error.
    pub fn dispatch(&self) -> Todo {
        match &self.command {
            None | Some(Command::Run(_)) => match Config::load(self) {
                Ok(config) => Todo::Run(Box::new(config)),
                Err(error) => Todo::Exit(refuse(&error.to_string(), EXIT_CONFIG)),
            },
            Some(Command::Check(_)) => Todo::Exit(self.check()),
            Some(Command::Drain(args)) => Todo::Exit(match Config::load(self) {
                Ok(config) => drain_command::run(args, &config),
                Err(error) => refuse(&error.to_string(), EXIT_CONFIG),
            }),
            Some(Command::Config) => Todo::Exit(print(&pages::default_file())),
            Some(Command::Version) => Todo::Exit(print(concat!("ringway ", env!("CARGO_PKG_VERSION"), "\n"))),
            Some(Command::GenerateDocs { dir }) => Todo::Exit(match write_pages(dir) {
                Ok(()) => EXIT_OK,
                Err(text) => refuse(&text, EXIT_FAILURE),
            }),
        }
    }

    fn check(&self) -> u8 {
        match Config::load(self) {
            Ok(config) => {
                for warning in config.warnings() {
                    eprintln!("ringway: warning: {warning}");
                }
                print("configuration is valid\n")
            }
            Err(error) => refuse(&error.to_string(), EXIT_CONFIG),
        }
    }
}

/// [`ExitCode`] of one of the `EXIT_` numbers.
pub fn exit_code(code: u8) -> ExitCode {
    ExitCode::from(code)
}

fn write_pages(dir: &Path) -> Result<(), String> {
    for (name, text) in pages::all() {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Writes a command's result to standard output. A reader that went away early is no failure.
fn print(text: &str) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => EXIT_FAILURE,
        _ => EXIT_OK,
    }
}

fn refuse(text: &str, code: u8) -> u8 {
    for line in text.lines() {
        eprintln!("ringway: {line}");
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("ringway").chain(args.iter().copied()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_mean_the_same_with_and_without_run() {
        for words in [&[][..], &["run"][..], &["check"][..], &["drain"][..]] {
            let mut args = words.to_vec();
            args.extend(["--config", "f.toml", "--dev", "--shards", "3", "--set", "a=b", "--set", "c=d", "--takeover"]);
            let cli = parse(&args).expect("parses");
            let run = cli.run_args();
            assert_eq!(run.config.as_deref(), Some(Path::new("f.toml")), "{words:?}");
            assert_eq!(run.shards.as_deref(), Some("3"), "{words:?}");
            assert_eq!(run.set, ["a=b", "c=d"], "{words:?}");
            assert!(run.dev && run.takeover, "{words:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&["serve"]).is_err());
        assert!(parse(&["--sharsd", "3"]).is_err());
        assert!(parse(&["--dev", "check"]).is_err());
        assert!(parse(&["generate-docs"]).is_err());
    }

    #[test]
    fn version_and_config_are_done_without_a_gateway() {
        assert!(matches!(parse(&["version"]).expect("parses").dispatch(), Todo::Exit(EXIT_OK)));
    }
}
