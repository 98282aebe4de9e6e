//! The commands: each a walk from the user's wish to the outcome.
//! No command line, no printing: `main` does both.

mod archive;
mod chunkmount;
mod cleanup;
mod dump;
mod forget;
mod opening;
pub mod restore;

use std::fmt;

use crate::core::names::VmName;
use crate::host::Host;
use crate::session::{OpenError, RunError, Unwound};
use crate::survey;

pub use archive::{Archived, archive};
pub use chunkmount::{Mounted, chunkmount, outlook, plan};
pub use cleanup::cleanup;
pub use dump::{Dumped, dump, plan_dump};
pub use forget::forget;

/// How a command on one VM failed, and the exit status that says so (see `ExitStatus` values in the manual):
/// 1 nothing left behind, 3 something is still owed, 4 busy.
#[derive(Debug)]
pub struct Failure {
    pub exit_status: u8,
    pub story: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story)
    }
}

impl std::error::Error for Failure {}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { exit_status: 1, story: format!("{error:#}") }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        Failure { exit_status: error.exit_status(), story: error.to_string() }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        Failure { exit_status: error.exit_status(), story: error.to_string() }
    }
}

/// The name of a VM that was given by name or UUID; also of one that is gone, when it is a name.
pub fn name_of(host: &dyn Host, vm: &str) -> Result<VmName, Failure> {
    match survey::domain(host, vm) {
        Ok(domain) => Ok(domain.id.name),
        Err(_) => VmName::new(vm).map_err(|error| anyhow::Error::from(error).into()),
    }
}

impl Failure {
    fn owing(unwound: &Unwound) -> Failure {
        Failure { exit_status: 3, story: unwound.to_string() }
    }
}
