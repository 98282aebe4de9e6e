//! The commands, one file each: from the words of the command line to what is done.

pub mod progress;
pub mod restore;
pub mod verify;
mod index;
mod join;
mod man;
mod mount;
mod umount;
mod words;

pub use words::words;

use crate::cli::{Cli, Command, Restore, Verify};
use crate::copy::Mode;
use crate::error::{CommandError, Status};
use crate::mount::daemon::{self, Report};
use crate::source::chunks::Verification;
use crate::source::shape::Known;
use progress::Show;
use std::io::Write;

pub fn run(cli: Cli) -> Result<Status, CommandError> {
    let show = if cli.quiet { Show::Never } else { Show::OnTerminal };
    match cli.command {
        Command::Mount(args) => mount::run(args),
        Command::Join(args) => join::run(args),
        Command::Restore(args) => run_restore(args, show),
        Command::Verify(args) => run_verify(args, show),
        Command::Index(args) => index::run(args),
        Command::Status(args) => umount::status(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Man { directory } => man::run(&directory),
        Command::Completions { directory } => man::completions(&directory),
    }
}

fn run_restore(args: Restore, show: Show) -> Result<Status, CommandError> {
    let mode = match (args.in_place, args.force) {
        (true, _) => Mode::InPlace,
        (false, true) => Mode::Replace,
        (false, false) => Mode::New,
    };
    let known = Known { chunk_size: args.chunk_size, len: None };
    let verification = verification_of(args.no_verify);
    let options =
        restore::Options { chunks: args.chunkdir, target: args.target, mode, verification, known, show };
    let restored = restore::restore(&options)?;
    if show == Show::OnTerminal {
        // It is told, or not: the image is there.
        let _ = writeln!(std::io::stdout(), "{restored}");
    }
    Ok(Status::Done)
}

fn run_verify(args: Verify, show: Show) -> Result<Status, CommandError> {
    let format = if args.json { verify::Format::Json } else { verify::Format::Text };
    let known = Known { chunk_size: args.chunk_size, len: None };
    let options = verify::Options { chunks: args.chunkdir, image: args.source, format, known, show };
    let report = verify::verify(&options, &mut std::io::stdout())?;
    Ok(if report.problems == 0 { Status::Done } else { Status::Damaged })
}

fn verification_of(no_verify: bool) -> Verification {
    if no_verify { Verification::None } else { Verification::Digests }
}

/// Tells the user, or, as a daemon that has not been let go yet, the process that does.
pub fn report_failure(error: &CommandError) {
    let report = Report::Failed { status: error.status(), message: error.to_string() };
    let told = daemon::is_child() && daemon::report(&report, None).is_ok();
    if !told {
        let _ = writeln!(std::io::stderr(), "chunkfs: {error}");
    }
}
