//! The way back: from a backup that was found and what the user wishes to the steps that make a guest of it.
//! Pure: touches no file, asks no libvirt. Everything that is in the way is a reason in one refusal.

pub mod boot;
mod obstacles;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::compression::Compression;
use super::domain::{Domain, DomainId, Format, Source, Tpm, TpmSource};
use super::facts::Definition;
use super::names::{Target, Uuid, VmName};
use super::rewrite::{self, Changes, Content, Macs, Nvram, Place, RewriteError};
use super::tpm::{self, TpmPlace};
use super::units::Bytes;

/// What the image of a chunk tree is called where it is joined for QEMU. By this ending, libvirt's helper for AppArmor may look at it.
pub const JOINED: &str = "disk.img";

pub use step::{FileId, Step, Undo, partial_of};

/// A backup, as it was found in its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    pub root: PathBuf,
    pub kind: Kind,
    /// The domain that was backed up. An archive has it under another name.
    pub origin: DomainId,
    pub domain: Domain,
    pub xml: String,
    pub disks: BTreeMap<Target, Kept>,
    /// The UEFI variables: a file in the directory.
    pub nvram: Option<String>,
    /// The files of the state of its TPM, by their paths in the directory.
    pub tpm: Vec<String>,
    /// The memory of the guest.
    pub memory: Option<Kept>,
    /// Snapshots that libvirt can be told of again, parents first, each with its XML.
    pub snapshots: Vec<(String, String)>,
    /// What the user should know of the backup itself.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What a backup tool kept of a view: chunks.
    Tree,
    /// Whole disks, as `dump` and `convert` write them.
    Dump,
    /// A dated directory, which keeps images with their own snapshots.
    Archive,
}

/// A disk in a backup: an entry of its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub name: String,
    pub form: Form,
    /// What the guest sees. None: only reading it to its end tells.
    pub bytes: Option<Bytes>,
}

impl Kept {
    /// Its name in the list of digests, which are those of what was compressed.
    pub fn listed_as(&self) -> &str {
        match self.form {
            Form::Compressed(compression) => {
                self.name.strip_suffix(compression.extension()).unwrap_or(&self.name)
            }
            Form::Chunks | Form::Raw | Form::Qcow2 => &self.name,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    Chunks,
    Raw,
    /// A raw image, compressed.
    Compressed(Compression),
    Qcow2,
}

/// What the user wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// None: its own.
    pub name: Option<VmName>,
    pub to: Option<PathBuf>,
    pub disks: BTreeMap<Target, PathBuf>,
    pub exclude: BTreeSet<Target>,
    /// Raw or qcow2. None: as the domain declares it.
    pub format: Option<Format>,
    pub writing: Writing,
    pub existing: Existing,
    pub macs: MacWish,
    pub then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writing {
    Whole,
    /// Only what differs from what is there.
    InPlace,
}

/// May what is there be replaced? (`--force`)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Protected,
    Replaceable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacWish {
    /// New ones for a new name, else its own.
    ByName,
    New,
    Own,
}

/// What is done with the disks once they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing: no domain.
    Nothing,
    Define,
    Start,
    /// Go on from the memory that was saved.
    Resume,
}

/// Where a disk goes, before anybody has looked what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub target: Target,
    pub path: PathBuf,
}

/// What there is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// To be used when the domain gets a new name.
    pub fresh_uuid: Uuid,
    pub standing: BTreeMap<PathBuf, Standing>,
    /// Files that are reached by a link, and where they are: the link stays, and the file is replaced.
    pub behind_links: BTreeMap<PathBuf, PathBuf>,
    pub in_use: Vec<InUse>,
    pub of_this_name: Option<Known>,
    pub of_this_uuid: Option<Known>,
    /// Media of drives that are not on this machine.
    pub absent_media: BTreeSet<Target>,
}

/// What stands at a path. Links were followed: whoever writes would follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Absent,
    /// Not even the directory is there.
    NoDirectory,
    File(FileId),
    Block {
        id: FileId,
        bytes: Bytes,
    },
    /// A directory, a socket.
    Other,
}

/// An image of a domain that libvirt knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    pub domain: DomainId,
    pub activity: Activity,
    pub path: PathBuf,
    /// None: there is no such file now.
    pub file: Option<FileId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    Active,
    /// Off, with its memory saved by libvirt: it goes on from there, on disks that have to be as they were.
    Saved,
    Inactive,
}

/// A domain that libvirt knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub id: DomainId,
    pub activity: Activity,
    pub persistence: Definition,
    /// As it would be defined again.
    pub definition: String,
}

/// What will be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub id: DomainId,
    pub notes: Vec<String>,
    pub steps: Vec<Step>,
}

/// Why there is no plan: every reason that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reasons: Vec<String>,
}

/// Where each disk that is wanted goes. What is there is looked at next.
pub fn destinations(backup: &Backup, wish: &Wish) -> Result<Vec<Destination>, Refusal> {
    let mut reasons = Vec::new();
    let mut destinations = Vec::new();
    let strangers =
        wish.disks.keys().chain(&wish.exclude).filter(|target| backup.domain.disk(target).is_none());
    reasons.extend(strangers.map(|target| format!("the domain in the backup has no disk {target}")));
    for disk in wanted(&backup.domain, wish) {
        let target = &disk.target;
        let Some(kept) = backup.disks.get(target) else {
            reasons.push(format!(
                "{target}: the backup has nothing of this disk: --exclude={target} restores the guest without it"
            ));
            continue;
        };
        match place_of(backup, wish, target, &disk.source, kept) {
            Ok(path) if !path.is_absolute() => {
                reasons.push(format!("{target}: {} is not absolute", path.display()))
            }
            Ok(path) => destinations.push(Destination { target: target.clone(), path }),
            Err(why) => reasons.push(format!("{target}: {why}")),
        }
    }
    if destinations.is_empty() && reasons.is_empty() {
        reasons.push("there is no disk to restore".to_owned());
    }
    if reasons.is_empty() { Ok(destinations) } else { Err(Refusal { reasons }) }
}

/// All paths that a plan would write to: disks, NVRAM, and the TPM of a domain that it had already.
pub fn paths(backup: &Backup, wish: &Wish, destinations: &[Destination]) -> Vec<PathBuf> {
    let disks = destinations.iter().map(|destination| destination.path.clone());
    let tpm = match identity(backup, wish) {
        Identity::Own(id) => tpm_of(backup, wish, &id),
        // Nothing is there of a UUID that nobody has yet.
        Identity::New(_) => Vec::new(),
    };
    let tpm = tpm.into_iter().map(|(_, path)| path);
    disks.chain(nvram_of(backup, wish)).chain(tpm).chain(memory_of(backup, wish, destinations)).collect()
}

/// The plan, or everything that is in its way.
pub fn plan(
    backup: &Backup,
    wish: &Wish,
    destinations: &[Destination],
    facts: &Facts,
) -> Result<Plan, Refusal> {
    let reasons = obstacles::find(backup, wish, destinations, facts);
    if !reasons.is_empty() {
        return Err(Refusal { reasons });
    }
    let draft = Draft { backup, wish, destinations, facts };
    draft.draw().map_err(|error| Refusal { reasons: vec![error.to_string()] })
}

/// The disks that are to be restored: those that a medium belongs to, and that are not excluded.
fn wanted<'a>(domain: &'a Domain, wish: &'a Wish) -> impl Iterator<Item = &'a super::domain::Disk> {
    let disks = domain.disks.iter().filter(|disk| disk.source != Source::Nothing);
    disks.filter(|disk| !wish.exclude.contains(&disk.target))
}

fn place_of(
    backup: &Backup,
    wish: &Wish,
    target: &Target,
    source: &Source,
    kept: &Kept,
) -> Result<PathBuf, String> {
    if let Some(path) = wish.disks.get(target) {
        return Ok(path.clone());
    }
    let identity = identity(backup, wish);
    let name = identity.name();
    if let Some(dir) = &wish.to {
        let format = format_of(backup, wish, target, kept);
        let extension = if format == Format::Qcow2 { "qcow2" } else { "img" };
        return Ok(dir.join(format!("{name}_{target}.{extension}")));
    }
    match source {
        _ if is_new(backup, wish) => {
            Err(format!("say where it goes, for a new name: --to=DIR, or --disk={target}=PATH"))
        }
        // An archive's own XML leads to the archive itself.
        Source::File(path) if path.starts_with(&backup.root) => {
            Err(format!("its own place is in the backup itself: --to=DIR, or --disk={target}=PATH"))
        }
        Source::File(path) | Source::Block(path) => Ok(path.clone()),
        other => {
            Err(format!("it was {other}, where this program cannot write: --disk={target}=PATH, or --to=DIR"))
        }
    }
}

/// The format that a file gets. A device gets the bytes as they are.
fn format_of(backup: &Backup, wish: &Wish, target: &Target, kept: &Kept) -> Format {
    let declared = backup.domain.disk(target).map(|disk| disk.format.clone());
    match (&wish.format, declared) {
        (Some(format), _) => format.clone(),
        // An archive's image has its snapshots in it.
        (None, _) if backup.kind == Kind::Archive && kept.form == Form::Qcow2 => Format::Qcow2,
        (None, Some(Format::Qcow2)) if wish.writing == Writing::Whole => Format::Qcow2,
        _ => Format::Raw,
    }
}

/// Who the guest is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// One that it had, and that may be defined.
    Own(DomainId),
    /// A new one, of this name.
    New(VmName),
}

pub fn identity(backup: &Backup, wish: &Wish) -> Identity {
    let own = [&backup.domain.id, &backup.origin];
    match &wish.name {
        None => Identity::Own(backup.domain.id.clone()),
        Some(name) => match own.into_iter().find(|id| id.name == *name) {
            Some(id) => Identity::Own(id.clone()),
            None => Identity::New(name.clone()),
        },
    }
}

impl Identity {
    pub fn name(&self) -> &VmName {
        match self {
            Identity::Own(id) => &id.name,
            Identity::New(name) => name,
        }
    }
}

fn is_new(backup: &Backup, wish: &Wish) -> bool {
    matches!(identity(backup, wish), Identity::New(_))
}

/// Where the UEFI variables go. None: there are none, or nobody asked for a domain.
fn nvram_of(backup: &Backup, wish: &Wish) -> Option<PathBuf> {
    /// Where libvirt keeps them when nobody says otherwise.
    const DEFAULT_DIR: &str = "/var/lib/libvirt/qemu/nvram";
    let (_, own) = (backup.nvram.as_ref()?, backup.domain.nvram.as_ref()?);
    if wish.then == Then::Nothing {
        return None;
    }
    let identity = identity(backup, wish);
    // An archive's XML leads into the archive.
    let within = own.starts_with(&backup.root);
    if identity == Identity::Own(backup.domain.id.clone()) && !within {
        return Some(own.clone());
    }
    let dir = own.parent().filter(|_| !within).unwrap_or(Path::new(DEFAULT_DIR));
    let extension = own.extension().and_then(|extension| extension.to_str()).filter(|_| !within);
    Some(dir.join(format!("{}_VARS.{}", identity.name(), extension.unwrap_or("fd"))))
}

/// Where each file of the TPM's state goes, by its name in the backup.
fn tpm_of(backup: &Backup, wish: &Wish, id: &DomainId) -> Vec<(String, PathBuf)> {
    if wish.then == Then::Nothing { Vec::new() } else { tpm_files(backup, id) }
}

/// The state goes to where libvirt will look for it: a new UUID has a place of its own, whatever the original's is.
fn tpm_files(backup: &Backup, id: &DomainId) -> Vec<(String, PathBuf)> {
    let Some(tpm) = &backup.domain.tpm else { return Vec::new() };
    let own = id.uuid == backup.domain.id.uuid;
    let tpm = Tpm { state: tpm.state.clone().filter(|_| own), ..tpm.clone() };
    let Ok(TpmPlace { dir, .. }) = tpm.place(&id.uuid) else { return Vec::new() };
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    backup.tpm.iter().map(|path| (path.clone(), dir.join(name(path)))).collect()
}

/// A state that is a file of its own is of another form than one in libvirt's directory.
fn tpm_cannot_move(backup: &Backup, id: &DomainId) -> Option<String> {
    let state = backup.domain.tpm.as_ref()?.state.as_ref()?;
    let moves = id.uuid != backup.domain.id.uuid && !backup.tpm.is_empty();
    match state {
        TpmSource::File(path) if moves => Some(format!(
            "the state of its TPM is the file {}, which cannot be that of another domain",
            path.display()
        )),
        _ => None,
    }
}

/// Where the memory is put for libvirt to read, beside the first disk.
fn memory_of(backup: &Backup, wish: &Wish, destinations: &[Destination]) -> Option<PathBuf> {
    backup.memory.as_ref().filter(|_| wish.then == Then::Resume)?;
    let dir = wish.to.as_deref().or_else(|| destinations.first()?.path.parent())?;
    Some(dir.join(format!("{}.state", backup.domain.id.name)))
}

struct Draft<'a> {
    backup: &'a Backup,
    wish: &'a Wish,
    destinations: &'a [Destination],
    facts: &'a Facts,
}

impl Draft<'_> {
    /// Whatever can be taken back comes first: files under other names; then devices and what is rewritten where it
    /// is; then names, which are changed all at once; then the domain.
    fn draw(&self) -> Result<Plan, RewriteError> {
        let id = self.id();
        let mut notes = self.backup.notes.clone();
        let changes = self.changes(&id);
        let mut steps = Vec::new();
        let mut renames = Vec::new();
        for (target, kept, path) in self.disks() {
            if let Some(Standing::Absent | Standing::File(_)) = self.facts.standing.get(path)
                && self.writing(path) == Writing::Whole
            {
                let to = partial_of(self.real(path));
                let format = self.format(target, kept, path);
                steps.push(Step::MakeFile { target: target.clone(), from: kept.clone(), to, format });
                renames.push(path);
            }
        }
        let nvram = nvram_of(self.backup, self.wish);
        if let (Some(path), Some(name)) = (&nvram, &self.backup.nvram) {
            steps.push(Step::CopySmall { from: name.clone(), to: partial_of(self.real(path)) });
            renames.push(path);
        }
        let tpm = tpm_of(self.backup, self.wish, &id);
        steps.extend(make_tpm(&tpm, |path| partial_of(self.real(path))));
        renames.extend(tpm.iter().map(|(_, path)| path));
        for (target, kept, path) in self.disks() {
            if !renames.contains(&path) {
                let (from, target, writing) = (kept.clone(), target.clone(), self.writing(path));
                notes.push(format!("{target}: what is written to {} cannot be taken back", path.display()));
                steps.push(Step::Rewrite { target, from, path: path.clone(), writing });
            }
        }
        steps.extend(renames.into_iter().map(|path| Step::Name { path: self.real(path).to_owned() }));
        notes.extend(self.remarks());
        if self.wish.then != Then::Nothing {
            let xml = rewrite::domain(&self.backup.xml, &changes)?;
            let before = self.facts.of_this_uuid.as_ref().map(|known| known.definition.clone());
            steps.push(Step::Define { id: id.clone(), xml, before });
            for (name, xml) in &self.backup.snapshots {
                let xml = rewrite::snapshot(xml, &changes)?;
                steps.push(Step::Snapshot { id: id.clone(), name: name.clone(), xml });
            }
        }
        steps.push(Step::Keep);
        let memory = memory_of(self.backup, self.wish, self.destinations);
        match (self.wish.then, memory, &self.backup.memory) {
            (Then::Start, _, _) => steps.push(Step::Start { id: id.clone() }),
            (Then::Resume, Some(path), Some(kept)) => {
                let memory = partial_of(&path);
                steps.push(Step::MakeMemory { from: kept.clone(), to: memory.clone() });
                steps.push(Step::Resume { id: id.clone(), memory, disks: changes.disks });
            }
            _ => {}
        }
        Ok(Plan { id, notes, steps })
    }

    fn id(&self) -> DomainId {
        match identity(self.backup, self.wish) {
            Identity::Own(id) => id,
            Identity::New(name) => DomainId { name, uuid: self.facts.fresh_uuid.clone() },
        }
    }

    fn disks(&self) -> Vec<(&Target, &Kept, &PathBuf)> {
        let disks = self.destinations.iter();
        let kept = |target: &Target| {
            self.backup.disks.get(target).expect("destinations are of disks that are there")
        };
        disks.map(|to| (&to.target, kept(&to.target), &to.path)).collect()
    }

    fn real<'p>(&'p self, path: &'p Path) -> &'p Path {
        self.facts.behind_links.get(path).map_or(path, PathBuf::as_path)
    }

    /// Where nothing is there is nothing to compare with.
    fn writing(&self, path: &Path) -> Writing {
        match self.facts.standing.get(path) {
            Some(Standing::Absent) => Writing::Whole,
            _ => self.wish.writing,
        }
    }

    fn format(&self, target: &Target, kept: &Kept, path: &Path) -> Format {
        match self.facts.standing.get(path) {
            Some(Standing::Block { .. }) => Format::Raw,
            _ => format_of(self.backup, self.wish, target, kept),
        }
    }

    fn changes(&self, id: &DomainId) -> Changes {
        let is_new = is_new(self.backup, self.wish);
        let mut changes = Changes::none();
        if *id != self.backup.domain.id {
            changes.name = Some(id.name.clone());
            changes.uuid = Some(id.uuid.clone());
        }
        changes.macs = match (self.wish.macs, is_new) {
            (MacWish::ByName, true) | (MacWish::New, _) => Macs::DerivedFrom(self.facts.fresh_uuid.clone()),
            (MacWish::ByName, false) | (MacWish::Own, _) => Macs::Keep,
        };
        changes.nvram = match nvram_of(self.backup, self.wish) {
            Some(path) if Some(&path) == self.backup.domain.nvram.as_ref() => Nvram::Keep,
            Some(path) => Nvram::At(path),
            None if is_new => Nvram::Default,
            None => Nvram::Keep,
        };
        for (target, kept, path) in self.disks() {
            let format = self.format(target, kept, path);
            let place = match self.facts.standing.get(path) {
                Some(Standing::Block { .. }) => Place::Block(path.clone()),
                _ => Place::File(path.clone()),
            };
            let same_image = self.backup.kind == Kind::Archive && format == Format::Qcow2;
            let content = if same_image { Content::Image } else { Content::Guest };
            changes.disks.insert(target.clone(), rewrite::NewDisk { place, format, content });
        }
        changes.without = self.wish.exclude.clone();
        changes.ejected = self.facts.absent_media.clone();
        changes
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        remarks.extend(
            self.wish.exclude.iter().map(|target| format!("{target}: the domain is restored without it")),
        );
        remarks.extend(
            self.facts
                .absent_media
                .iter()
                .map(|target| format!("{target}: its medium is not on this host: it is ejected")),
        );
        if self.backup.nvram.is_none() && self.backup.domain.nvram.is_some() && is_new(self.backup, self.wish)
        {
            remarks.push(
                "the backup has no UEFI variables: the guest begins with those of the firmware".to_owned(),
            );
        }
        remarks.extend(without_tpm(self.backup));
        remarks
    }
}

/// The directory, then each file under a name that says that it is not in use yet.
fn make_tpm(files: &[(String, PathBuf)], partial: impl Fn(&Path) -> PathBuf) -> Vec<Step> {
    let dir = files.first().and_then(|(_, path)| path.parent());
    let make = dir.map(|dir| Step::MakeTpmDir { dirs: tpm::dirs_of(dir) });
    let copy = |(from, to): &(String, PathBuf)| Step::CopyTpm { from: from.clone(), to: partial(to) };
    make.into_iter().chain(files.iter().map(copy)).collect()
}

fn without_tpm(backup: &Backup) -> Option<String> {
    let tpm = backup.domain.tpm.as_ref().filter(|_| backup.tpm.is_empty())?;
    Some(match tpm.backend.as_str() {
        "emulator" => "the guest has a TPM, and the backup has nothing of it: what the guest sealed with it stays sealed",
        _ => "the TPM of the guest is not in the backup, for it is not libvirt's own",
    }.to_owned())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.id, self.id.uuid)?;
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {:>2}. {step}", index + 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Chunks => f.write_str("chunks"),
            Form::Raw => f.write_str("a raw image"),
            Form::Compressed(compression) => write!(f, "a raw image compressed with {compression}"),
            Form::Qcow2 => f.write_str("a qcow2 image"),
        }
    }
}
