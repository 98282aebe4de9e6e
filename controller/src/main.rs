//! The program `virt-backup`: reads its command line, does what it says, and tells how it went.

mod cli;
mod config;
mod doctor;
mod out;
mod report;
mod run;
mod words;

use std::process::ExitCode;

use chunkfs::limits;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use virt_backup::host::exec;

use out::tell;

fn main() -> ExitCode {
    limits::outlive_file_size();
    exec::set_umask();
    let commands = match config::commands(words::words(std::env::args_os().collect())) {
        Ok(commands) => commands,
        Err(why) => {
            tell!("virt-backup: {why}");
            return ExitCode::from(2);
        }
    };
    if let Some(first) = commands.first() {
        log_to_stderr(&first.common);
    }
    ExitCode::from(out::status(run::run(commands)))
}

fn log_to_stderr(common: &cli::Common) {
    let level = match (common.debug, common.quiet) {
        (true, _) => LevelFilter::DEBUG,
        (_, true) => LevelFilter::ERROR,
        _ => LevelFilter::WARN,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .log_internal_errors(false)
        .init();
}
