//! chunkmount: a point in time of all disks of a VM, shown as chunks under `B/<vm>`.
//! Returns when the view can be read; `cleanup` takes it back.

use anyhow::anyhow;

use crate::core::domain::Domain;
use crate::core::names::{JobId, Names, Places};
use crate::core::options::{Chunkmount, JobLimit};
use crate::core::plan::{self, Case, Plan, Purpose};
use crate::host::{Entry, Host};
use crate::session::{Interrupted, Session, Unwound};
use crate::survey;

use super::Failure;

/// A view that is ready.
#[derive(Debug)]
pub struct Mounted {
    pub plan: Plan,
    /// What an earlier job had left and this one cleared first.
    pub cleared: Unwound,
    pub notes: Vec<String>,
}

/// Shows the disks of one VM.
pub fn chunkmount(
    host: &dyn Host,
    places: &Places,
    vm: &str,
    options: &Chunkmount,
    limit: JobLimit,
    interrupted: &Interrupted<'_>,
) -> Result<Mounted, Failure> {
    let domain = survey::domain(host, vm)?;
    let names = Names::new(places, &domain.id.name);
    check_backup_dir(host, &names)?;
    let mut session = Session::open(host, &names, limit)?;
    // A hook that was never followed by its counterpart: its leftovers go first.
    let cleared = session.clear(Some(&domain.id));
    if !cleared.owes_nothing() {
        return Err(Failure::owing(&cleared));
    }
    // What was unwound may have changed it: its disks may have been on overlays.
    let domain = match survey::domain(host, domain.id.uuid.as_str()) {
        Ok(domain) => domain,
        Err(error) => return Err(give_back(session, error.into())),
    };
    let outcome = decide(host, &domain, &names, session.job(), options)
        .and_then(|plan| Ok((session.run(&plan, interrupted)?, plan)));
    match outcome {
        Ok((notes, plan)) => Ok(Mounted { plan, cleared, notes }),
        Err(failure) => Err(give_back(session, failure)),
    }
}

/// Made by whoever set this up, never by us: a missing file system must not be taken for an empty directory.
pub(super) fn check_backup_dir(host: &dyn Host, names: &Names) -> Result<(), Failure> {
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

/// The plan of `--dry-run`: takes no lock, so what an earlier job left may stand in its way.
pub fn plan(host: &dyn Host, places: &Places, vm: &str, options: &Chunkmount) -> Result<Plan, Failure> {
    let domain = survey::domain(host, vm)?;
    let names = Names::new(places, &domain.id.name);
    decide(host, &domain, &names, &JobId::from_bits(0), options)
}

fn decide(
    host: &dyn Host,
    domain: &Domain,
    names: &Names,
    job: &JobId,
    options: &Chunkmount,
) -> Result<Plan, Failure> {
    let definition_xml = survey::definition(host, domain)?;
    let facts = survey::facts(host, domain, names)?;
    let purpose = Purpose::View;
    let case = Case { domain, definition_xml: &definition_xml, facts: &facts, options, names, job, purpose };
    plan::chunkmount(case).map_err(|refusal| Failure { exit_status: 1, story: refusal.to_string() })
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
