//! The program `chunkfs`: reads its command line, does what it says, and tells how it went.

use chunkfs::cli::Cli;
use chunkfs::command;
use chunkfs::mount::daemon;
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse_from(command::words(std::env::args_os().collect()));
    log_to_stderr(&cli);
    match command::run(cli) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            command::report_failure(&error);
            ExitCode::from(error.status())
        }
    }
}

fn log_to_stderr(cli: &Cli) {
    let level = match (cli.debug, cli.quiet) {
        (true, _) => LevelFilter::DEBUG,
        (_, true) => LevelFilter::ERROR,
        _ => LevelFilter::WARN,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    // A daemon that was started from a terminal writes to a log soon.
    let colours = std::io::stderr().is_terminal() && !daemon::is_child();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).with_target(false).init();
}
