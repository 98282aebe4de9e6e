//! The program `chunkfs`: reads its command line, does what it says, and tells how it went.

use chunkfs::cli::Cli;
use chunkfs::{command, limits};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    limits::outlive_file_size();
    let cli = Cli::parse_from(command::words(std::env::args_os().collect()));
    chunkfs::log::to_stderr(&cli);
    match command::run(cli) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            command::report_failure(&error);
            ExitCode::from(error.status())
        }
    }
}
