//! `chunkfs man`: writes the man pages, made from the same definition as `--help`.

use crate::cli::Cli;
use crate::error::{CommandError, Status};
use clap::CommandFactory;
use std::path::Path;

pub(super) fn run(directory: &Path) -> Result<Status, CommandError> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(CommandError::io(format!("writing man pages to {}", directory.display())))?;
    Ok(Status::Done)
}
