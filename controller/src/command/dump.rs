//! dump and convert: a copy of every disk of a VM as of one point in time, in `B/<vm>/`; everything else is taken back.
//! `cleanup` removes the copies once they are backed up.

use crate::core::domain::Domain;
use crate::core::names::{JobId, Names, Places, is_file_name};
use crate::core::options::{Chunkmount, Dump, JobLimit, LockAfter};
use crate::core::plan::{self, Case, Plan, Purpose};
use crate::core::step::DumpRecord;
use crate::host::{Host, Removal};
use crate::session::{Interrupted, Unwound};
use crate::survey;

use super::Failure;
use super::opening::{self, Opened, give_back};

/// A dump that is complete.
#[derive(Debug)]
pub struct Dumped {
    pub plan: Plan,
    pub cleared: Unwound,
    pub notes: Vec<String>,
}

/// Dumps the disks of one VM.
pub fn dump(
    host: &dyn Host,
    places: &Places,
    vm: &str,
    (options, dump): (&Chunkmount, &Dump),
    limit: JobLimit,
    interrupted: &Interrupted<'_>,
) -> Result<Dumped, Failure> {
    let Opened { mut session, names, domain, cleared } = opening::open(host, places, vm, limit)?;
    // The dump before: whoever wanted it has it.
    let ready = forget_dump(host, &names);
    let plan = ready.and_then(|_| decide(host, &domain, &names, session.job(), (options, dump)));
    let outcome = plan.and_then(|plan| Ok((session.run(&plan, interrupted)?, plan)));
    let (notes, plan) = match outcome {
        Ok(done) => done,
        Err(failure) => return Err(give_back(session, failure)),
    };
    let unwound = session.unwind();
    if !unwound.owes_nothing() {
        let story = format!("the dump is complete; {unwound}");
        return Err(Failure { exit_status: 3, story });
    }
    let ended = match dump.lock {
        LockAfter::GivenBack => session.release(),
        LockAfter::Kept => session.keep_lock(),
    };
    ended.map_err(|error| Failure { exit_status: 3, story: format!("{error:#}: run cleanup") })?;
    let notes = notes.into_iter().chain(unwound.notes).collect();
    Ok(Dumped { plan, cleared, notes })
}

/// The plan of `--dry-run`.
pub fn plan_dump(
    host: &dyn Host,
    places: &Places,
    vm: &str,
    (options, dump): (&Chunkmount, &Dump),
) -> Result<Plan, Failure> {
    let domain = survey::domain(host, vm)?;
    let names = Names::new(places, &domain.id.name);
    decide(host, &domain, &names, &JobId::from_bits(0), (options, dump))
}

fn decide(
    host: &dyn Host,
    domain: &Domain,
    names: &Names,
    job: &JobId,
    (options, dump): (&Chunkmount, &Dump),
) -> Result<Plan, Failure> {
    let definition_xml = survey::definition(host, domain)?;
    let facts = survey::facts(host, domain, names, options)?;
    let purpose = Purpose::Copy;
    let case = Case { domain, definition_xml: &definition_xml, facts: &facts, options, names, job, purpose };
    plan::dump(case, dump).map_err(|refusal| Failure { exit_status: 1, story: refusal.to_string() })
}

/// Removes the files of a dump, which its record names, and the directory when nothing else is in it. On an error the
/// rest is owed still, and the record says so.
pub(super) fn forget_dump(host: &dyn Host, names: &Names) -> Result<Removal, Failure> {
    remove_dump(host, names).map_err(|error| Failure {
        exit_status: 3,
        story: format!("remove the dump in {}: {error:#}: run cleanup", names.dump_dir().display()),
    })
}

fn remove_dump(host: &dyn Host, names: &Names) -> anyhow::Result<Removal> {
    let Some(text) = host.read(&names.dump_record())? else { return Ok(Removal::AlreadyGone) };
    let record: DumpRecord = serde_json::from_slice(&text)?;
    // Written by us, in a directory of ours; a name is a name all the same.
    // The list of digests first: without it, what is left is no dump.
    let names_of_files = std::iter::once(&record.digests).chain(&record.names);
    for name in names_of_files.filter(|name| name.splitn(2, '/').all(is_file_name)) {
        host.remove_file(&record.dir.join(name))?;
    }
    let tpm = record.dir.join(names.shown_tpm());
    if host.list(&tpm)?.is_some_and(|names| names.is_empty()) {
        host.remove_dir(&tpm)?;
    }
    if host.list(&record.dir)?.is_some_and(|names| names.is_empty()) {
        host.remove_dir(&record.dir)?;
    }
    host.remove_file(&names.dump_record())?;
    Ok(Removal::Removed)
}
