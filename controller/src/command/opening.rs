//! How every job on a VM begins and is given up: its lock, the leftovers of the job before, the domain as it is then.
//! Decides nothing about the job itself.

use anyhow::anyhow;

use crate::core::domain::Domain;
use crate::core::names::{Names, Places};
use crate::core::options::JobLimit;
use crate::host::{Entry, Host};
use crate::session::{Session, Unwound};
use crate::survey;

use super::Failure;

/// A VM that is ours to work on.
pub(super) struct Opened<'h> {
    pub session: Session<'h>,
    pub names: Names,
    pub domain: Domain,
    /// What an earlier job had left.
    pub cleared: Unwound,
}

pub(super) fn open<'h>(
    host: &'h dyn Host,
    places: &Places,
    vm: &str,
    limit: JobLimit,
) -> Result<Opened<'h>, Failure> {
    let id = survey::domain(host, vm)?.id;
    let names = Names::new(places, &id.name);
    check_backup_dir(host, &names)?;
    let mut session = Session::open(host, &names, limit)?;
    // A hook that was never followed by its counterpart: its leftovers go first.
    let cleared = session.clear(Some(&id));
    if !cleared.owes_nothing() {
        return Err(Failure::owing(&cleared));
    }
    // What was unwound may have changed it: its disks may have been on overlays.
    match survey::domain(host, id.uuid.as_str()) {
        Ok(domain) => Ok(Opened { session, names, domain, cleared }),
        Err(error) => Err(give_back(session, error.into())),
    }
}

/// Made by whoever set this up, never by us: a missing file system must not be taken for an empty directory.
fn check_backup_dir(host: &dyn Host, names: &Names) -> Result<(), Failure> {
    let dir = names.backup_dir();
    match host.entry(dir)? {
        Entry::Directory => Ok(()),
        Entry::Absent => {
            Err(anyhow!("{} does not exist: make it, or name another with --backupdir", dir.display()).into())
        }
        // A link to a directory is as good; what is not one is found out when the mount point is made.
        Entry::Other => Ok(()),
    }
}

/// The lock goes with the last debt, and stays with any other.
pub(super) fn give_back(session: Session<'_>, failure: Failure) -> Failure {
    if failure.exit_status == 3 {
        return failure;
    }
    match session.release() {
        Ok(()) => failure,
        Err(error) => Failure { exit_status: 3, story: format!("{failure}; and {error:#}: run cleanup") },
    }
}
