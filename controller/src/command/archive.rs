//! archive: a dated directory with all that it takes to define and start the VM elsewhere, and retention over those before.
//! Nothing of it is removed by `cleanup`; what a job that failed or was killed has left of it is.

use anyhow::{Context, anyhow};

use crate::core::domain::Domain;
use crate::core::names::{JobId, Names, Places};
use crate::core::options::{Archive, Chunkmount, JobLimit};
use crate::core::plan::archive::{MANIFEST, UNFINISHED, directory};
use crate::core::plan::{self, Case, Plan, Purpose};
use crate::core::retention::{self, ArchiveName, Fate, State, Verdict};
use crate::host::{Entry, Host};
use crate::session::{Interrupted, Unwound};
use crate::survey;

use super::Failure;
use super::opening::{self, Opened, give_back};

/// An archive that is complete.
#[derive(Debug)]
pub struct Archived {
    pub plan: Plan,
    pub dir: std::path::PathBuf,
    pub cleared: Unwound,
    pub notes: Vec<String>,
    /// Of this and all older ones, the newest first; what was to go is gone.
    pub verdicts: Vec<Verdict>,
}

/// Archives one VM.
pub fn archive(
    host: &dyn Host,
    places: &Places,
    vm: &str,
    (options, wishes): (&Chunkmount, &Archive),
    limit: JobLimit,
    interrupted: &Interrupted<'_>,
) -> Result<Archived, Failure> {
    let Opened { mut session, names, domain, cleared } = opening::open(host, places, vm, limit)?;
    let named = free_name(host, &names, wishes).map(|name| Archive { name, ..wishes.clone() });
    let planned = named.and_then(|wishes| {
        let plan = decide(host, &domain, &names, session.job(), (options, &wishes))?;
        Ok((plan, wishes))
    });
    let outcome = planned.and_then(|(plan, wishes)| Ok((session.run(&plan, interrupted)?, plan, wishes)));
    let (mut notes, plan, wishes) = match outcome {
        Ok(done) => done,
        Err(failure) => return Err(give_back(session, failure)),
    };
    let unwound = session.unwind();
    if !unwound.owes_nothing() {
        let story = format!("the archive is complete; {unwound}");
        return Err(Failure { exit_status: 3, story });
    }
    notes.extend(unwound.notes);
    // Still under the lock: nobody else removes or makes archives of this VM.
    let kept = retain(host, &names, &wishes);
    session
        .release()
        .map_err(|error| Failure { exit_status: 3, story: format!("{error:#}: run cleanup") })?;
    let verdicts = kept.map_err(|error| Failure {
        exit_status: 1,
        story: format!("the archive is complete; older ones could not be removed: {error:#}"),
    })?;
    let dir = directory(&wishes.base, names.vm(), &wishes);
    Ok(Archived { plan, dir, cleared, notes, verdicts })
}

/// Two archives in one second, or in the hour that a clock goes through twice, are two archives.
fn free_name(host: &dyn Host, names: &Names, wishes: &Archive) -> Result<ArchiveName, Failure> {
    let mut wishes = wishes.clone();
    while host.entry(&directory(&wishes.base, names.vm(), &wishes))? != Entry::Absent {
        wishes.name = wishes.name.next();
    }
    Ok(wishes.name)
}

fn decide(
    host: &dyn Host,
    domain: &Domain,
    names: &Names,
    job: &JobId,
    (options, wishes): (&Chunkmount, &Archive),
) -> Result<Plan, Failure> {
    let definition_xml = survey::definition(host, domain)?;
    let facts = survey::facts(host, domain, names, options)?;
    let snapshots = host.snapshots(&domain.id).context("list the snapshots")?;
    let purpose = Purpose::Archive;
    let case = Case { domain, definition_xml: &definition_xml, facts: &facts, options, names, job, purpose };
    plan::archive(case, wishes, &snapshots)
        .map_err(|refusal| Failure { exit_status: 1, story: refusal.to_string() })
}

/// Removes what the policy does not keep. An archive that is to go loses its manifest first: what is left of it after a
/// crash is then no archive.
fn retain(host: &dyn Host, names: &Names, wishes: &Archive) -> anyhow::Result<Vec<Verdict>> {
    let dir = wishes.base.join(names.vm().as_str());
    let in_use = host.files_in_use().context("ask which files are in use")?;
    let mut archives = Vec::new();
    for entry in host.list(&dir)?.unwrap_or_default() {
        let Ok(name) = ArchiveName::parse(&entry) else { continue };
        let path = dir.join(&entry);
        // A link is none of ours, wherever it leads.
        if host.entry(&path)? != Entry::Directory {
            continue;
        }
        let there = |file: &str| Ok::<_, anyhow::Error>(host.entry(&path.join(file))? != Entry::Absent);
        let state = match (there(MANIFEST)?, there(UNFINISHED)?) {
            (true, _) => State::Complete,
            (false, true) => State::CutOff,
            (false, false) => State::Unknown,
        };
        let mut used_by: Vec<_> = in_use
            .iter()
            .filter(|(_, file)| file.starts_with(&path))
            .map(|(domain, _)| domain.clone())
            .collect();
        used_by.dedup();
        archives.push(retention::Archive { name, state, used_by });
    }
    let verdicts = retention::judge(&archives, &wishes.policy, Some(&wishes.name));
    for verdict in verdicts.iter().filter(|verdict| matches!(verdict.fate, Fate::Remove(_))) {
        let path = dir.join(verdict.name.to_string());
        let failed = || format!("remove all of {}", path.display());
        if let Some(mount) = host.mounted_below(&path)? {
            return Err(anyhow!("{} is mounted there: unmount it", mount.display())).with_context(failed);
        }
        // From now on it is one that was cut off.
        host.replace(&path.join(UNFINISHED), b"removed\n")?;
        host.remove_file(&path.join(MANIFEST))?;
        host.remove_tree(&path)?;
    }
    Ok(verdicts)
}
