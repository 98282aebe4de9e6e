//! `chunkfs man` and `completions`: what is made from the same definition as `--help`.
//! Knows nothing of where a system keeps these files.

use crate::cli::Cli;
use crate::error::{CommandError, Status};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

pub(super) fn run(directory: &Path) -> Result<Status, CommandError> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(CommandError::io(format!("writing man pages to {}", directory.display())))?;
    Ok(Status::Done)
}

/// A file for each shell, under the name by which it finds it.
pub(super) fn completions(directory: &Path) -> Result<Status, CommandError> {
    let write =
        |shell| clap_complete::generate_to(shell, &mut Cli::command(), "chunkfs", directory).map(drop);
    std::fs::create_dir_all(directory)
        .and_then(|()| [Shell::Bash, Shell::Zsh, Shell::Fish].into_iter().try_for_each(write))
        .map_err(CommandError::io(format!("writing completions to {}", directory.display())))?;
    Ok(Status::Done)
}
