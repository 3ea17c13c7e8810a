//! `ringway-loadgen`: parses the command line, runs the scenario, prints, and turns the verdict into an exit code.
//!
//! In: arguments. Out: table on stderr, with `--json` one JSON object on stdout; exit code 0 when every delivery was
//! right, 1 when the run failed, 2 when deliveries were missing, doubled or out of order.
use std::process::ExitCode;

use clap::Parser;
use ringway_loadgen::options::{Command, Options};
use ringway_loadgen::{fleet, scenario, worker};

fn main() -> ExitCode {
    let options = Options::parse();
    if matches!(options.command, Command::Worker | Command::FleetWorker) {
        let fleet = matches!(options.command, Command::FleetWorker);
        return match if fleet { fleet::run_worker() } else { worker::run() } {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("ringway-loadgen worker: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match scenario::run(&options) {
        Ok(report) => {
            eprint!("{}", report.table());
            if options.common().is_some_and(|common| common.json) {
                use std::io::Write as _;
                if let Err(error) = writeln!(std::io::stdout(), "{}", report.json()) {
                    eprintln!("ringway-loadgen: {error}");
                    return ExitCode::FAILURE;
                }
            }
            if report.intact() { ExitCode::SUCCESS } else { ExitCode::from(2) }
        }
        Err(error) => {
            eprintln!("ringway-loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}
