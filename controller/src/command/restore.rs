//! restore: from what a backup tool kept, from a dump or an archive, to a guest.
//! One story: find, verify, look, decide, do; and when it cannot be done, take all of it back.

mod act;
mod backup;
pub mod boot;
mod expand;
mod image;
mod journal;
#[cfg(test)]
mod tests;
mod undo;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use chunkfs::watch::Watch;

use crate::core::names::{Names, Places, Target, Uuid, VmName};
use crate::core::restore::{self, Backup, Facts, Identity, Plan, Standing, Undo, Wish};
use crate::core::units::Bytes;
use crate::host::definitions::Definitions;
use crate::host::libvirt::file_id;
use crate::host::local::is_guarded;
use crate::host::{Files, Guard};

use super::Failure;
use backup::Opened;
use journal::Journal;

/// Is the backup read to its end before anything is written?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    Before,
    /// What is copied is compared all the same where it has digests of its own.
    WhileCopying,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub from: PathBuf,
    /// Of several VMs in one directory.
    pub vm: Option<String>,
    pub wish: Wish,
    pub verification: Verification,
    pub places: Places,
    /// The program `chunkfs`.
    pub chunkfs: PathBuf,
}

/// A restore that has been decided upon.
#[derive(Debug)]
pub struct Decided {
    opened: Opened,
    pub plan: Plan,
}

/// What was done.
#[derive(Debug)]
pub struct Restored {
    pub plan: Plan,
    /// What an earlier restore that was cut off had left, and is gone now.
    pub cleared: Vec<String>,
}

/// One that has begun to write, and is neither done nor taken back.
#[derive(Debug)]
pub struct Underway {
    pub name: VmName,
    /// A virt-backup is at work on a guest of this name: else it was cut off.
    pub goes_on: bool,
    pub owed: Vec<String>,
}

/// A host whose libvirt and files restoring needs.
pub trait Ground: Definitions + Files {}
impl<T: Definitions + Files> Ground for T {}

const DAMAGED: u8 = 6;
const OWING: u8 = 3;
const BUSY: u8 = 4;

/// Changes nothing.
pub fn decide(ground: &dyn Ground, request: &Request) -> Result<Decided, Failure> {
    let opened = find(request)?;
    decide_on(ground, opened, &request.wish)
}

/// Finds out what is wrong with a backup, then brings the guest back. `watch` hears of what is read and written.
pub fn restore(ground: &dyn Ground, request: &Request, watch: &dyn Watch) -> Result<Restored, Failure> {
    let mut opened = find(request)?;
    let names = Names::new(&request.places, restore::identity(&opened.backup, &request.wish).name());
    let _guard = take(ground, &names)?;
    let cleared = clear(ground, &names)?;
    // Refused before hours of reading, and decided again on what was found by it.
    decide_on(ground, find(request)?, &request.wish)?;
    let disks = opened.backup.disks.iter().filter(|(target, _)| !request.wish.exclude.contains(target));
    let bytes: u64 = disks.filter_map(|(_, kept)| kept.bytes).map(|bytes| bytes.0).sum();
    let passes = if request.verification == Verification::Before { 2 } else { 1 };
    watch.expect(bytes.saturating_mul(passes));
    if request.verification == Verification::Before {
        verify::all(&mut opened, &request.wish.exclude, request.wish.then, watch)?;
    }
    let decided = decide_on(ground, opened, &request.wish)?;
    let tools = image::Tools { chunkfs: &request.chunkfs, dir: names.home(), watch };
    let plan = run(ground, &names, decided, &tools)?;
    Ok(Restored { plan, cleared })
}

/// None: no restore to this name is underway. Changes nothing.
pub fn underway(ground: &dyn Ground, places: &Places, name: &VmName) -> Result<Option<Underway>> {
    let names = Names::new(places, name);
    // In this order: one that ends meanwhile has no journal any more.
    let goes_on = is_guarded(&names.guard())?;
    let Some(journal) = Journal::read(ground, journal::of_restore(&names))? else { return Ok(None) };
    Ok(Some(Underway { name: name.clone(), goes_on, owed: journal.owed().map(Undo::to_string).collect() }))
}

fn find(request: &Request) -> Result<Opened, Failure> {
    open(&request.from, request.vm.as_deref())
}

fn open(from: &Path, vm: Option<&str>) -> Result<Opened, Failure> {
    backup::open(from, vm).map_err(|error| {
        let is_damage = error.chain().any(|cause| cause.is::<backup::Damaged>());
        Failure { exit_status: if is_damage { DAMAGED } else { 1 }, story: format!("{error:#}") }
    })
}

fn decide_on(ground: &dyn Ground, opened: Opened, wish: &Wish) -> Result<Decided, Failure> {
    let backup = &opened.backup;
    let refused = |refusal: restore::Refusal| {
        let id = &backup.domain.id;
        Failure { exit_status: 1, story: format!("{id}: cannot be restored so: {refusal}") }
    };
    let destinations = restore::destinations(backup, wish).map_err(refused)?;
    let facts = facts(ground, backup, wish, &restore::paths(backup, wish, &destinations))?;
    let plan = restore::plan(backup, wish, &destinations, &facts).map_err(refused)?;
    Ok(Decided { opened, plan })
}

fn take(ground: &dyn Ground, names: &Names) -> Result<Guard, Failure> {
    ground.make_dir(&names.home()).context("make the state directory")?;
    let guard = ground.guard(&names.guard())?;
    let busy = || format!("{}: another virt-backup is at work on it", names.vm());
    guard.ok_or_else(|| Failure { exit_status: BUSY, story: busy() })
}

/// Takes back what a restore to this name left that was cut off.
fn clear(ground: &dyn Ground, names: &Names) -> Result<Vec<String>, Failure> {
    let Some(mut journal) = Journal::read(ground, journal::of_restore(names))? else { return Ok(Vec::new()) };
    let owing = |why: String| Failure {
        exit_status: OWING,
        story: format!("an earlier restore of {} was cut off, and {why}", names.vm()),
    };
    let used = undo::used_since(ground, &journal);
    if let Some(path) = used.map_err(|error| owing(format!("cannot be taken back: {error:#}")))? {
        return Err(owing(format!(
            "{} was used since: it stays; if it is to, remove {}, and what is called .partial beside it",
            path.display(),
            journal.path().display()
        )));
    }
    let undone = undo::all(ground, &journal);
    if !undone.errors.is_empty() {
        return Err(owing(undone.to_string()));
    }
    journal.forget(ground)?;
    Ok(undone.done)
}

/// All or nothing, up to the step that keeps it.
fn run(
    ground: &dyn Ground,
    names: &Names,
    decided: Decided,
    tools: &image::Tools<'_>,
) -> Result<Plan, Failure> {
    let Decided { opened, plan } = decided;
    let mut journal = Journal::begin(ground, journal::of_restore(names))?;
    for step in &plan.steps {
        let done = act::act(ground, &opened, step, &mut journal, tools);
        let Err(failed) = done else { continue };
        let story = format!("{}: {step}: {failed}", plan.id);
        if journal.is_kept() {
            // The disks and the domain are there; hours of copying are not thrown away for a missing bridge.
            let undone = undo::all(ground, &journal);
            let story = format!("{story} (the guest is restored and defined)");
            return Err(match undone.errors.is_empty() && journal.forget(ground).is_ok() {
                true => Failure { exit_status: 1, story },
                false => Failure { exit_status: OWING, story: format!("{story}; {undone}") },
            });
        }
        let undone = undo::all(ground, &journal);
        let undone_too = undone.errors.is_empty() && journal.forget(ground).is_ok();
        let status = match (undone_too && !failed.is_unfinished, failed.is_damage) {
            (false, _) => OWING,
            (true, true) => DAMAGED,
            (true, false) => 1,
        };
        let story = if undone.errors.is_empty() { story } else { format!("{story}; {undone}") };
        return Err(Failure { exit_status: status, story });
    }
    journal.forget(ground)?;
    Ok(plan)
}

fn facts(ground: &dyn Ground, backup: &Backup, wish: &Wish, paths: &[PathBuf]) -> Result<Facts> {
    let identity = restore::identity(backup, wish);
    let of_this_uuid = match &identity {
        Identity::Own(id) => ground.by_uuid(&id.uuid)?,
        Identity::New(_) => None,
    };
    Ok(Facts {
        fresh_uuid: fresh_uuid()?,
        standing: paths
            .iter()
            .map(|path| Ok((path.clone(), standing(path)?)))
            .collect::<Result<BTreeMap<_, _>>>()?,
        behind_links: paths.iter().filter_map(|path| Some((path.clone(), behind_link(path)?))).collect(),
        in_use: ground.images_in_use()?,
        of_this_name: ground.by_name(identity.name().as_str())?,
        of_this_uuid,
        absent_media: absent_media(backup),
    })
}

/// Where a file is that is reached by a link. A device keeps its name: that of a volume is a link.
fn behind_link(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok().filter(|real| real.is_file())?;
    (real != path).then_some(real)
}

/// A random one, of version 4 (RFC 9562).
fn fresh_uuid() -> Result<Uuid> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    anyhow::ensure!(filled == bytes.len(), "the kernel gives no random numbers");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Uuid::new(&hex)?)
}

fn standing(path: &Path) -> Result<Standing> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        // A link that leads nowhere would be written through.
        Err(_) if fs::symlink_metadata(path).is_ok() => return Ok(Standing::Other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| parent.is_dir());
            return Ok(if parent.is_some() { Standing::Absent } else { Standing::NoDirectory });
        }
        Err(error) => return Err(anyhow!(error).context(format!("look at {}", path.display()))),
    };
    let kind = metadata.file_type();
    let Some(id) = file_id(path) else { return Ok(Standing::Other) };
    if kind.is_file() {
        return Ok(Standing::File(id));
    }
    let mut device = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let bytes = std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0))?;
    Ok(Standing::Block { id, bytes: Bytes(bytes) })
}

/// Drives whose medium is a file or device that is not here: with it, the guest would not start.
fn absent_media(backup: &Backup) -> BTreeSet<Target> {
    let drives = backup::media(&backup.xml);
    drives.into_iter().filter(|(_, path)| !path.exists()).map(|(target, _)| target).collect()
}
