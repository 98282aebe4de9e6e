//! Safe wrappers over the part of libvirt's C interface that the crate `virt` does not bind.
//! Backups, checkpoints, ending a job, freezing: each a call or two; what they mean is `libvirt.rs`'s.
#![expect(unsafe_code, reason = "calls into libvirt's C library")]

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Duration;

use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

/// A checkpoint of a domain.
#[derive(Debug)]
pub(super) struct Checkpoint(sys::virDomainCheckpointPtr);

/// What a checkpoint's XML is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    Definition,
    /// For each bitmap that can be used the number of bytes that it calls dirty. Asks QEMU.
    Sizes,
}

/// What goes with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    WithBitmaps,
    /// libvirt forgets it; the images are not touched.
    MetadataOnly,
}

pub(super) fn is(error: &Error, number: ErrorNumber) -> bool {
    error.code().is_known_and(|known| known == number)
}

pub(super) fn begin_backup(domain: &Domain, backup: &str, checkpoint: Option<&str>) -> Result<(), Error> {
    let backup = CString::new(backup)?;
    let checkpoint = checkpoint.map(CString::new).transpose()?;
    let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |xml| xml.as_ptr());
    // SAFETY: the domain is alive for as long as `domain` is borrowed; both texts end with NUL and outlive the call.
    done(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint, 0) })
}

/// The XML of the running backup job. None: no backup runs.
pub(super) fn backup(domain: &Domain) -> Result<Option<String>, Error> {
    // SAFETY: the domain is alive; the result is null or a string that is ours to free.
    match unsafe { owned(sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0)) } {
        Ok(xml) => Ok(Some(xml)),
        Err(error) if is(&error, ErrorNumber::NoDomainBackup) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks for the end of the domain's current job, whatever it is.
pub(super) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    done(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

pub(super) fn checkpoints(domain: &Domain) -> Result<Vec<Checkpoint>, Error> {
    let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
    // SAFETY: the domain is alive; libvirt puts an array of its own making into `list`.
    let count = unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut list, 0) };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    // SAFETY: the array has `count` checkpoints, each ours from now on.
    let found = (0..count).map(|at| Checkpoint(unsafe { *list.add(at) })).collect();
    // SAFETY: the array was allocated for us, and nothing refers to it any more.
    unsafe { free(list.cast()) };
    Ok(found)
}

/// None: the domain has no checkpoint of this name.
pub(super) fn checkpoint(domain: &Domain, name: &str) -> Result<Option<Checkpoint>, Error> {
    let name = CString::new(name)?;
    // SAFETY: the domain is alive, and the name ends with NUL and outlives the call.
    let found = unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) };
    if !found.is_null() {
        return Ok(Some(Checkpoint(found)));
    }
    match Error::last_error() {
        error if is(&error, ErrorNumber::NoDomainCheckpoint) => Ok(None),
        error => Err(error),
    }
}

impl Checkpoint {
    pub(super) fn name(&self) -> Result<String, Error> {
        // SAFETY: the checkpoint is alive.
        let name = unsafe { sys::virDomainCheckpointGetName(self.0) };
        if name.is_null() {
            return Err(Error::last_error());
        }
        // SAFETY: the name ends with NUL and lives as long as the checkpoint, whose it stays.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    pub(super) fn xml(&self, detail: Detail) -> Result<String, Error> {
        let flags = match detail {
            Detail::Definition => sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN,
            Detail::Sizes => sys::VIR_DOMAIN_CHECKPOINT_XML_SIZE | sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN,
        };
        // SAFETY: the checkpoint is alive; the result is null or a string that is ours to free.
        unsafe { owned(sys::virDomainCheckpointGetXMLDesc(self.0, flags)) }
    }

    pub(super) fn delete(&self, deletion: Deletion) -> Result<(), Error> {
        let flags = match deletion {
            Deletion::WithBitmaps => 0,
            Deletion::MetadataOnly => sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY,
        };
        // SAFETY: the checkpoint is alive; deleting it leaves the object to be freed.
        done(unsafe { sys::virDomainCheckpointDelete(self.0, flags) })
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // SAFETY: it is ours, and this is the last use.
        unsafe { sys::virDomainCheckpointFree(self.0) };
    }
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    DisksAlone,
    /// The guest runs on while its memory is saved.
    DisksAndMemory,
}

/// Snapshots all disks of the XML or none; libvirt keeps no record of the snapshot.
pub(super) fn snapshot(domain: &Domain, xml: &str, of: Of) -> Result<(), Error> {
    let xml = CString::new(xml)?;
    let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | match of {
            Of::DisksAlone => sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
            Of::DisksAndMemory => sys::VIR_DOMAIN_SNAPSHOT_CREATE_LIVE,
        };
    // SAFETY: the domain is alive, and the text ends with NUL and outlives the call.
    let snapshot = unsafe { sys::virDomainSnapshotCreateXML(domain.as_ptr(), xml.as_ptr(), flags) };
    if snapshot.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: it is ours, and this is the last use.
    done(unsafe { sys::virDomainSnapshotFree(snapshot) })
}

/// Name and XML of all snapshots that libvirt keeps of a domain.
pub(super) fn snapshots(domain: &Domain) -> Result<Vec<(String, String)>, Error> {
    let mut list: *mut sys::virDomainSnapshotPtr = ptr::null_mut();
    // SAFETY: the domain is alive; libvirt puts an array of its own making into `list`.
    let count = unsafe { sys::virDomainListAllSnapshots(domain.as_ptr(), &mut list, 0) };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    let mut found = Vec::new();
    for at in 0..count {
        // SAFETY: the array has `count` snapshots, each alive until it is freed below.
        let snapshot = unsafe { *list.add(at) };
        // SAFETY: the snapshot is alive.
        let name = unsafe { sys::virDomainSnapshotGetName(snapshot) };
        // SAFETY: a name ends with NUL and lives as long as the snapshot, whose it stays.
        let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
        let flags = sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE;
        // SAFETY: the snapshot is alive; the result is null or a string that is ours to free.
        let xml = unsafe { owned(sys::virDomainSnapshotGetXMLDesc(snapshot, flags)) };
        // SAFETY: it is ours, and this is the last use. The calls before have kept what they found.
        unsafe { sys::virDomainSnapshotFree(snapshot) };
        found.push((name, xml));
    }
    // SAFETY: the array was allocated for us, and nothing refers to it any more.
    unsafe { free(list.cast()) };
    found.into_iter().map(|(name, xml)| Ok((name.ok_or_else(Error::last_error)?, xml?))).collect()
}

/// Begins to merge the uppermost image of a disk, `top`, into `base` below it.
pub(super) fn begin_commit(domain: &Domain, target: &str, top: &str, base: &str) -> Result<(), Error> {
    let (target, top, base) = (CString::new(target)?, CString::new(top)?, CString::new(base)?);
    let flags = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE;
    // SAFETY: the domain is alive, and the texts end with NUL and outlive the call.
    done(unsafe {
        sys::virDomainBlockCommit(domain.as_ptr(), target.as_ptr(), base.as_ptr(), top.as_ptr(), 0, flags)
    })
}

/// How a block job on a disk is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// The disk goes on with what the job has made.
    Pivot,
    /// The disk goes on as before the job.
    GiveUp,
}

pub(super) fn end_block_job(domain: &Domain, target: &str, end: JobEnd) -> Result<(), Error> {
    let target = CString::new(target)?;
    let flags = match end {
        JobEnd::Pivot => sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT,
        JobEnd::GiveUp => 0,
    };
    // SAFETY: the domain is alive, and the text ends with NUL and outlives the call.
    done(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), target.as_ptr(), flags) })
}

/// How far a block job on a disk has come, in units of its own. None: there is no job.
pub(super) fn block_job(domain: &Domain, target: &str) -> Result<Option<u64>, Error> {
    let target = CString::new(target)?;
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: the domain is alive, the text ends with NUL and outlives the call, and `info` is ours to write to.
    let found = unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), &mut info, 0) };
    done(found)?;
    Ok((found > 0).then_some(info.cur))
}

/// Begins to copy to a disk's image what lies below it.
pub(super) fn pull(domain: &Domain, target: &str) -> Result<(), Error> {
    let target = CString::new(target)?;
    // SAFETY: the domain is alive, and the text ends with NUL and outlives the call.
    done(unsafe { sys::virDomainBlockPull(domain.as_ptr(), target.as_ptr(), 0, 0) })
}

/// Waits for an answer of the agent, whatever it is.
pub(super) fn ask_agent(domain: &Domain, within: Duration) -> Result<(), Error> {
    patiently(domain, within, || domain.time(0).map(drop))
}

/// Freezes all of the guest's file systems; gives up after the agent's silence of so long.
pub(super) fn freeze(domain: &Domain, within: Duration) -> Result<(), Error> {
    patiently(domain, within, || {
        // SAFETY: the domain is alive; without a list of mount points all are meant.
        done(unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) })
    })
}

/// How many file systems were thawed.
pub(super) fn thaw(domain: &Domain, within: Duration) -> Result<u32, Error> {
    patiently(domain, within, || {
        // SAFETY: the domain is alive; without a list of mount points all are meant.
        let thawed = unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) };
        u32::try_from(thawed).map_err(|_| Error::last_error())
    })
}

/// How long libvirt waits for an agent is a setting of the domain, which is for ever unless somebody changes it. It cannot
/// be read, so afterwards it is for ever again.
fn patiently<T>(
    domain: &Domain,
    within: Duration,
    ask: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let set = |secs| {
        // SAFETY: the domain is alive.
        done(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), secs, 0) })
    };
    set(i32::try_from(within.as_secs()).unwrap_or(i32::MAX))?;
    let asked = ask();
    // Should that fail, an impatient libvirt is no harm, and the answer is what counts.
    drop(set(sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK));
    asked
}

fn done(result: i32) -> Result<(), Error> {
    if result < 0 { Err(Error::last_error()) } else { Ok(()) }
}

/// # Safety
///
/// `text` is null, or a string that ends with NUL and is the caller's to free, who gives it away here.
unsafe fn owned(text: *mut c_char) -> Result<String, Error> {
    if text.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: as the caller promises.
    let copy = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: allocated by libvirt with malloc, as all that it gives away.
    unsafe { free(text.cast()) };
    Ok(copy)
}

unsafe extern "C" {
    /// libvirt documents `free` as what its results are given back with.
    fn free(pointer: *mut std::ffi::c_void);
}
