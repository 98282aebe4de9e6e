//! Taking, counting and removing lock files.
//! The content of a lock and what it means are `core::lock`'s.

use anyhow::{Context, Result, anyhow};

use crate::core::lock::{self, Holder, Lock};
use crate::core::names::{self, JobId, Names, VmName};
use crate::core::options::JobLimit;
use crate::host::{Created, Entry, Host, Removal};

use super::OpenError;

/// What a lock means that a dump has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Respected,
    TakenOver,
}

/// Takes the lock, whose guard the caller holds; also says whom it was taken over from.
pub(super) fn take(
    host: &dyn Host,
    names: &Names,
    job: JobId,
    limit: JobLimit,
    kept: Kept,
) -> Result<(Lock, Option<Holder>), OpenError> {
    keep_limit(host, names, limit)?;
    let path = names.lock();
    let before = host.read(&path).context("read the lock")?;
    let previous = judge(host, before.as_deref())?;
    let (vm, boot, worker) = (names.vm().clone(), host.boot_id()?, host.this_process()?);
    // Until its daemon is stopped, a lock that is taken over goes on to name it: the job stays counted.
    let view = match &previous {
        Holder::Showing(lock) | Holder::Working(lock) => lock.view.clone(),
        _ => None,
    };
    let mine = Lock { version: lock::VERSION, vm, job, boot, worker, view, kept: false };
    let text = mine.to_text();
    match &previous {
        Holder::Nobody => {
            let made = host.create(&path, text.as_bytes());
            let made = made.map_err(|error| drop_if_mine(host, names, &text, error))?;
            if made == Created::WasThere {
                return Err(OpenError::Busy(format!(
                    "{}: somebody else took {} just now",
                    names.vm(),
                    path.display()
                )));
            }
        }
        // Nobody else takes it over at the same time: we hold the guard.
        Holder::Kept(_) if kept == Kept::Respected => {
            return Err(OpenError::Busy(format!(
                "{}: a dump has kept its lock: run cleanup once the dump is backed up, or unlock",
                names.vm()
            )));
        }
        Holder::Showing(_) | Holder::Dead(_) | Holder::Kept(_) => {
            host.replace(&path, text.as_bytes()).context("take over the lock")?;
        }
        // Ours, of an earlier session of this process: nobody else with our guard can be us.
        Holder::Working(lock) if lock.worker == mine.worker => {
            host.replace(&path, text.as_bytes()).context("take over the lock")?;
        }
        Holder::Working(lock) => {
            let job = &lock.job;
            return Err(OpenError::Busy(format!(
                "{}: {} is at work on it (job {job})",
                names.vm(),
                lock.worker
            )));
        }
        Holder::Foreign => {
            return Err(OpenError::Busy(format!(
                "{}: {} is not a lock of this program: when nothing uses it, remove it with `virt-backup unlock`",
                names.vm(),
                path.display()
            )));
        }
    }
    // Counted again: another job may have begun since. Both may then give up; never do both go on.
    if let Err(error) = keep_limit(host, names, limit) {
        put_back(host, names, before.as_deref())?;
        return Err(error);
    }
    let taken_over = (previous != Holder::Nobody).then_some(previous);
    Ok((mine, taken_over))
}

/// Taking the lock failed, which says only that it was perhaps not taken.
fn drop_if_mine(host: &dyn Host, names: &Names, mine: &str, error: anyhow::Error) -> anyhow::Error {
    let error = error.context("take the lock");
    let dropped = host.read(&names.lock()).and_then(|content| match content {
        Some(content) if content == mine.as_bytes() => host.remove_file(&names.lock()).map(drop),
        _ => Ok(()),
    });
    match dropped {
        Ok(()) => error,
        Err(second) => error.context(format!("and then could not give it back ({second:#})")),
    }
}

fn put_back(host: &dyn Host, names: &Names, before: Option<&[u8]>) -> Result<()> {
    match before {
        Some(content) => host.replace(&names.lock(), content),
        None => host.remove_file(&names.lock()).map(drop),
    }
}

fn keep_limit(host: &dyn Host, names: &Names, limit: JobLimit) -> Result<(), OpenError> {
    let JobLimit::AtMost(limit) = limit else { return Ok(()) };
    let others = live_jobs(host, names)?.into_iter().filter(|vm| vm != names.vm()).count();
    if others < limit.get() as usize {
        return Ok(());
    }
    Err(OpenError::Busy(format!(
        "{}: {others} other jobs are alive, and --max-backups is {limit}",
        names.vm()
    )))
}

/// The VMs in the lock directory that are being worked on or shown right now.
pub fn live_jobs(host: &dyn Host, names: &Names) -> Result<Vec<VmName>> {
    let files = host.list(names.lock_dir()).context("list the locks")?.unwrap_or_default();
    let mut live = Vec::new();
    for vm in files.iter().filter_map(|file| names::vm_of_lock(file)) {
        let content = host.read(&names.lock_dir().join(format!("{vm}.lock")))?;
        if judge(host, content.as_deref())?.is_live_job() {
            live.push(vm);
        }
    }
    Ok(live)
}

/// Removes the lock and nothing else, whoever wrote it, unless its holder is at work.
pub fn unlock(host: &dyn Host, names: &Names) -> Result<Removal, OpenError> {
    let content = host.read(&names.lock()).context("read the lock")?;
    if let Holder::Working(lock) = judge(host, content.as_deref())? {
        return Err(OpenError::Busy(format!("{}: {} is at work on it", names.vm(), lock.worker)));
    }
    Ok(host.remove_file(&names.lock()).context("remove the lock")?)
}

/// Is there a lock, a journal or a dump? When that cannot be told, there may be.
pub(super) fn something_left(host: &dyn Host, names: &Names) -> bool {
    let absent = |path: &std::path::Path| matches!(host.entry(path), Ok(Entry::Absent));
    ![names.lock(), names.journal(), names.dump_record()].iter().all(|path| absent(path))
}

fn judge(host: &dyn Host, content: Option<&[u8]>) -> Result<Holder> {
    let boot = host.boot_id()?;
    lock::holder(content, &boot, |process| host.lives(process)).map_err(|error| anyhow!(error))
}
