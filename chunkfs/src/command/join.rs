//! `chunkfs join`: shows a directory of chunks as one image file.

use crate::cli::Join;
use crate::error::{CommandError, Status};

pub(super) fn run(_args: Join) -> Result<Status, CommandError> {
    unreachable!()
}
