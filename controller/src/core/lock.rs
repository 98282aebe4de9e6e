//! The lock file `<vm>.lock`: who holds a VM, from the start of a job until its cleanup.
//! Content and judgement; whether a process lives is asked by `session`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::names::{JobId, VmName};

/// The version of the format written here.
pub const VERSION: u32 = 1;

/// Another one after each boot (/proc/sys/kernel/random/boot_id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// A process for good: a pid is used again, not with the same start time in the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks since boot, field 22 of /proc/pid/stat.
    pub start_ticks: u64,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub version: u32,
    pub vm: VmName,
    pub job: JobId,
    pub boot: BootId,
    /// The `virt-backup` that took it. It ends when the view is ready; the lock stays.
    pub worker: ProcessId,
    /// The daemon of the view, once it is ready.
    pub view: Option<ProcessId>,
    /// By `--keep-lock`, after the work was done.
    #[serde(default)]
    pub kept: bool,
}

/// What a lock file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// A `virt-backup` is at work on it.
    Working(Lock),
    /// The work is done and the view is up: what a cleanup waits for.
    Showing(Lock),
    /// A dump is done and waits to be backed up: nobody else begins.
    Kept(Lock),
    /// Whoever took it is gone, without cleanup.
    Dead(Lock),
    /// Not written by this program, which always puts locks in place whole.
    Foreign,
}

impl Lock {
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string(self).expect("plain data always serialises");
        text.push('\n');
        text
    }
}

/// Judges a lock file by its content; `lives` tells whether a process of this boot is there.
pub fn holder<E>(
    content: Option<&[u8]>,
    boot: &BootId,
    mut lives: impl FnMut(&ProcessId) -> Result<bool, E>,
) -> Result<Holder, E> {
    let Some(content) = content else { return Ok(Holder::Nobody) };
    let Some(lock) = serde_json::from_slice::<Lock>(content).ok().filter(|lock| lock.version <= VERSION)
    else {
        return Ok(Holder::Foreign);
    };
    if lock.boot != *boot {
        return Ok(Holder::Dead(lock));
    }
    if lives(&lock.worker)? {
        return Ok(Holder::Working(lock));
    }
    match &lock.view {
        _ if lock.kept => Ok(Holder::Kept(lock)),
        Some(view) if lives(view)? => Ok(Holder::Showing(lock)),
        _ => Ok(Holder::Dead(lock)),
    }
}

impl Holder {
    /// Does it count for `--max-backups`?
    pub fn is_live_job(&self) -> bool {
        match self {
            Holder::Working(_) | Holder::Showing(_) => true,
            Holder::Nobody | Holder::Kept(_) | Holder::Dead(_) | Holder::Foreign => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_ticks: 5 }
    }

    fn lock(boot: &str, view: Option<ProcessId>) -> Lock {
        let (vm, job) = (VmName::new("mail01").unwrap(), JobId::from_bits(1));
        Lock {
            version: VERSION,
            vm,
            job,
            boot: BootId(boot.to_owned()),
            worker: process(1),
            view,
            kept: false,
        }
    }

    #[test]
    fn a_lock_is_judged_by_who_is_still_there() {
        let judge = |content: Option<&[u8]>, living: &[u32]| {
            let lives = |p: &ProcessId| Ok::<_, Infallible>(living.contains(&p.pid));
            let Ok(holder) = holder(content, &BootId("now".to_owned()), lives);
            holder
        };
        let (working, showing) = (lock("now", None), lock("now", Some(process(2))));
        let before_reboot = lock("before", Some(process(2)));
        let kept = Lock { kept: true, ..lock("now", None) };
        for (lock, living, expected) in [
            (&working, &[1][..], Holder::Working(working.clone())),
            (&working, &[2], Holder::Dead(working.clone())),
            (&kept, &[], Holder::Kept(kept.clone())),
            (&showing, &[1, 2], Holder::Working(showing.clone())),
            (&showing, &[2], Holder::Showing(showing.clone())),
            (&showing, &[], Holder::Dead(showing.clone())),
            (&before_reboot, &[1, 2], Holder::Dead(before_reboot.clone())),
        ] {
            assert_eq!(judge(Some(lock.to_text().as_bytes()), living), expected);
        }
        assert_eq!(judge(None, &[]), Holder::Nobody);
        for foreign in ["", "1234\n", "{}", "\0\0"] {
            assert_eq!(judge(Some(foreign.as_bytes()), &[1]), Holder::Foreign, "{foreign:?}");
        }
    }
}
