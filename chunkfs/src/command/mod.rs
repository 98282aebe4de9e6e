//! The commands, one file each: from the words of the command line to what is done.

mod index;
mod join;
mod man;
mod mount;
mod umount;
mod words;

pub use words::words;

use crate::cli::{Cli, Command};
use crate::error::{CommandError, Status};
use crate::mount::daemon::{self, Report};

pub fn run(cli: Cli) -> Result<Status, CommandError> {
    match cli.command {
        Command::Mount(args) => mount::run(args),
        Command::Join(args) => join::run(args),
        Command::Restore(_args) => unreachable!(),
        Command::Verify(_args) => unreachable!(),
        Command::Index(args) => index::run(args),
        Command::Status(args) => umount::status(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Man { directory } => man::run(&directory),
    }
}

/// Tells the user, or, as a daemon that has not been let go yet, the process that does.
pub fn report_failure(error: &CommandError) {
    let report = Report::Failed { status: error.status(), message: error.to_string() };
    let told = daemon::is_child() && daemon::report(&report, None).is_ok();
    if !told {
        eprintln!("chunkfs: {error}");
    }
}
