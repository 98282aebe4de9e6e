//! Finds out what a directory is: what a backup tool kept of a view, a dump, or an archive.
//! Whoever wrote it may be hostile: nothing outside of it is opened, whatever its names and its XML say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use chunkfs::source::beneath::{Beneath, Fault, Kind as Entry};
use roxmltree::{Document, ParsingOptions};
use serde_json::Value;

use crate::core::compression::Compression;
use crate::core::domain::Domain;
use crate::core::manifest::{self, Manifest, ManifestError};
use crate::core::names::Target;
use crate::core::plan::archive::{MANIFEST, UNFINISHED};
use crate::core::restore::{Backup, Form, Kept, Kind};
use crate::core::rewrite;
use crate::core::tpm::{self, Found, TpmFacts, TpmPlace};
use crate::core::units::Bytes;
use crate::host::libvirt::qcow2;

/// Nobody's XML, list, manifest, variables of a firmware or state of a TPM is longer.
const SMALL_MAX: u64 = 64 << 20;

/// What was found is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damaged(String);

/// A backup and its directory, which stays open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) backup: Backup,
    pub(super) directory: Beneath,
    /// Digests of whole files, by name: of a raw image before it was compressed, else of the file itself.
    pub(super) digests: BTreeMap<String, blake3::Hash>,
}

impl Opened {
    pub(super) fn file(&self, name: &str) -> Result<File> {
        let opened = self.directory.file(name).map(|(file, _)| file);
        opened.with_context(|| format!("open {}", self.path(name).display()))
    }

    /// For messages, and for what is known to be a directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

pub(super) fn open(from: &Path, vm: Option<&str>) -> Result<Opened> {
    let directory = Beneath::open(from).with_context(|| format!("open the backup {}", from.display()))?;
    let finding = || format!("understand the backup {}", from.display());
    let (mut backup, digests) = find(&directory, vm).with_context(finding)?;
    backup.root = directory.path().to_owned();
    Ok(Opened { backup, directory, digests })
}

fn find(directory: &Beneath, vm: Option<&str>) -> Result<(Backup, BTreeMap<String, blake3::Hash>)> {
    let names = names(directory)?;
    let manifest = match names.contains(MANIFEST) {
        true => Some(manifest_in(directory)?),
        false => None,
    };
    if let Some(lost) = manifest.iter().flat_map(|m| &m.files).find(|name| directory.kind(name).is_err()) {
        return Err(Damaged(format!("the manifest names {lost:?}, and it is missing")).into());
    }
    if manifest.is_none() && names.contains(UNFINISHED) {
        bail!("it is an archive that was never completed: it has the mark {UNFINISHED} and no {MANIFEST}");
    }
    let stem = match &manifest {
        Some(manifest) => manifest.name.to_string(),
        None => stem(&names, vm)?,
    };
    let xml = text(directory, &format!("{stem}.xml"))?;
    let mut described: BTreeSet<_> = snapshot_files(directory, &names)?.into_iter().collect();
    described.insert(format!("{stem}.xml"));
    let list = format!("{stem}.b3");
    let domain = Domain::parse(&xml).or_else(|error| {
        // Of two things that are wrong, this is the one to tell.
        unchanged(directory, &list, &digests_in(directory, &names, &list)?.unwrap_or_default(), &described)?;
        Err(anyhow!(error).context(format!("understand {stem}.xml")))
    })?;
    let mut found = BTreeMap::new();
    for disk in &domain.disks {
        if let Some((kind, kept)) = disk_in(directory, &names, &stem, &disk.target)? {
            found.insert(disk.target.clone(), (kind, kept));
        }
    }
    let kind = match found.values().map(|(kind, _)| *kind).next() {
        _ if manifest.is_some() => Kind::Archive,
        Some(kind) => kind,
        None => bail!(
            "there is {stem}.xml, and none of its disks: neither {stem}_vda/, nor {stem}_vda.img, nor vda.qcow2"
        ),
    };
    let mut disks: BTreeMap<Target, Kept> =
        found.into_iter().map(|(target, (_, kept))| (target, kept)).collect();
    let mut notes = Vec::new();
    let mut digests = BTreeMap::new();
    if kind == Kind::Tree {
        lengths(directory, &names, &stem, &mut disks)?;
    } else if let Some(listed) = digests_in(directory, &names, &list)? {
        digests = listed;
        if let Some(kept) = disks.values().find(|kept| !digests.contains_key(kept.listed_as())) {
            let lost = &kept.name;
            let why = format!(
                "{list} is not whole: {lost} is not in it; without {list} it would be restored unverified"
            );
            return Err(Damaged(why).into());
        }
        if !digests.contains_key(&format!("{stem}.xml")) {
            notes.push(format!("{stem}.xml is not in {list}: it is restored unverified"));
        }
    } else {
        notes.push("there are no digests of this backup: it cannot be verified".to_owned());
    }
    let nvram = Some(format!("{stem}.nvram")).filter(|name| names.contains(name));
    let tpm = tpm_in(directory, &names, &stem)?;
    let memory = memory_in(directory, &names, &stem)?;
    let small: BTreeSet<_> = described.into_iter().chain(nvram.clone()).chain(tpm.iter().cloned()).collect();
    let of_the_guest = [format!("{stem}.nvram"), format!("{stem}.tpm/")];
    let is_small = |name: &&String| of_the_guest.iter().any(|start| name.starts_with(start));
    if let Some(lost) = digests.keys().filter(is_small).find(|name| !small.contains(*name)) {
        return Err(Damaged(format!("{list} names {lost:?}, and it is missing")).into());
    }
    unchanged(directory, &list, &digests, &small)?;
    let snapshots = snapshots(directory, &names, &mut notes)?;
    let origin = manifest.map_or_else(|| domain.id.clone(), |manifest| manifest.origin);
    let backup = Backup {
        root: PathBuf::new(),
        kind,
        origin,
        domain,
        xml,
        disks,
        nvram,
        tpm,
        memory,
        snapshots,
        notes,
    };
    Ok((backup, digests))
}

/// The VM's name in its files' names.
fn stem(names: &BTreeSet<String>, vm: Option<&str>) -> Result<String> {
    let stems: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".xml")).collect();
    match (vm, stems.as_slice()) {
        (Some(vm), stems) if stems.contains(&vm) => Ok(vm.to_owned()),
        (Some(vm), _) => bail!("there is no {vm}.xml"),
        (None, [stem]) => Ok((*stem).to_owned()),
        (None, []) => bail!("there is no domain in it, NAME.xml: give the directory of one VM"),
        (None, several) => {
            bail!("there are several domains in it: {}: choose one with --vm", several.join(", "))
        }
    }
}

fn disk_in(
    directory: &Beneath,
    names: &BTreeSet<String>,
    stem: &str,
    target: &Target,
) -> Result<Option<(Kind, Kept)>> {
    let mut found = Vec::new();
    let chunks = format!("{stem}_{target}");
    if names.contains(&chunks) && is_directory(directory, &chunks)? {
        found.push((Kind::Tree, Kept { name: chunks, form: Form::Chunks, bytes: None }));
    }
    for compression in Compression::ALL {
        let name = format!("{stem}_{target}.img{}", compression.extension());
        let known = found.iter().any(|(_, kept)| kept.name == name);
        if names.contains(&name) && !known {
            let (form, bytes) = match compression {
                Compression::None => (Form::Raw, Some(Bytes(bytes_of(directory, &name)?))),
                other => (Form::Compressed(other), None),
            };
            found.push((Kind::Dump, Kept { name, form, bytes }));
        }
    }
    for (kind, name) in
        [(Kind::Dump, format!("{stem}_{target}.qcow2")), (Kind::Archive, format!("{target}.qcow2"))]
    {
        if names.contains(&name) {
            let bytes = Some(capacity(directory, &name)?);
            found.push((kind, Kept { name, form: Form::Qcow2, bytes }));
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let names: Vec<_> = found.iter().map(|(_, kept)| kept.name.as_str()).collect();
            bail!(
                "{target} is there more than once: {}: move away what is not to be restored",
                names.join(", ")
            )
        }
    }
}

/// An image that names other files would make whoever reads it read those.
fn capacity(directory: &Beneath, name: &str) -> Result<Bytes> {
    let (file, _) = directory.file(name).with_context(|| format!("open {name}"))?;
    let header = qcow2::read_from(&file).with_context(|| format!("read the header of {name}"))?;
    if header.external_data {
        bail!("{name} keeps its data in another file, and no backup of ours does");
    }
    match header.backing {
        Some(backing) => bail!("{name} lies over {:?}, and no backup of ours does", backing.file),
        None => Ok(Bytes(header.capacity)),
    }
}

fn memory_in(directory: &Beneath, names: &BTreeSet<String>, stem: &str) -> Result<Option<Kept>> {
    let name = format!("{stem}.state");
    if !names.contains(&name) {
        return Ok(None);
    }
    Ok(Some(match is_directory(directory, &name)? {
        true => Kept { name, form: Form::Chunks, bytes: None },
        false => {
            let bytes = Some(Bytes(bytes_of(directory, &name)?));
            Kept { name, form: Form::Raw, bytes }
        }
    }))
}

/// No more than a backup of ours has: it all goes to where libvirt keeps it.
fn tpm_in(directory: &Beneath, names: &BTreeSet<String>, stem: &str) -> Result<Vec<String>> {
    let dir = format!("{stem}.tpm");
    if !names.contains(&dir) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for name in names_in(directory, &dir)? {
        let kind =
            directory.kind(format!("{dir}/{name}")).with_context(|| format!("look at {dir}/{name}"))?;
        let kind = match kind {
            (Entry::File, bytes) => Found::File(Bytes(bytes)),
            (other, _) => Found::Other(other.to_string()),
        };
        found.push((name, kind));
    }
    match tpm::judge(&TpmPlace { dir: dir.clone().into(), only: None }, Some(found)) {
        TpmFacts::State(state) => Ok(state.names().map(|name| format!("{dir}/{name}")).collect()),
        TpmFacts::Refused { why } => bail!("the state of the TPM is not to be trusted: {why}"),
        TpmFacts::NoTpm | TpmFacts::NotHere { .. } => Ok(Vec::new()),
    }
}

/// The view says how long its disks are: so a missing end is noticed also where there are no digests.
fn lengths(
    directory: &Beneath,
    names: &BTreeSet<String>,
    stem: &str,
    disks: &mut BTreeMap<Target, Kept>,
) -> Result<()> {
    let name = format!("{stem}.json");
    if !names.contains(&name) {
        return Ok(());
    }
    let about: Value =
        serde_json::from_str(&text(directory, &name)?).with_context(|| format!("understand {name}"))?;
    for disk in about["disks"].as_array().into_iter().flatten() {
        let target = disk["target"].as_str().and_then(|target| Target::new(target).ok());
        if let (Some(kept), Some(bytes)) = (target.and_then(|t| disks.get_mut(&t)), disk["bytes"].as_u64()) {
            kept.bytes = Some(Bytes(bytes));
        }
    }
    Ok(())
}

/// `None`: there is no list.
fn digests_in(
    directory: &Beneath,
    names: &BTreeSet<String>,
    list: &str,
) -> Result<Option<BTreeMap<String, blake3::Hash>>> {
    if !names.contains(list) {
        return Ok(None);
    }
    match manifest::digests(&text(directory, list)?) {
        Ok(digests) => Ok(Some(digests)),
        Err(error) => Err(Damaged(format!("{list} is damaged: {error}")).into()),
    }
}

/// Each of these files is what its digest says, if it has one. The disks are compared where they are read.
fn unchanged(
    directory: &Beneath,
    list: &str,
    digests: &BTreeMap<String, blake3::Hash>,
    small: &BTreeSet<String>,
) -> Result<()> {
    for name in small {
        let Some(expected) = digests.get(name) else { continue };
        if blake3::hash(&bytes(directory, name)?) != *expected {
            let why = format!(
                "{name} is damaged: its digest is not the one in {list} \
                 (if you have changed it yourself, take its line out of {list})"
            );
            return Err(Damaged(why).into());
        }
    }
    Ok(())
}

const SNAPSHOTS: &str = "snapshots";

fn snapshot_files(directory: &Beneath, names: &BTreeSet<String>) -> Result<Vec<String>> {
    if !names.contains(SNAPSHOTS) || !is_directory(directory, SNAPSHOTS)? {
        return Ok(Vec::new());
    }
    let listed = names_in(directory, SNAPSHOTS)?;
    let files = listed.iter().filter(|name| name.ends_with(".xml"));
    Ok(files.map(|name| format!("{SNAPSHOTS}/{name}")).collect())
}

fn snapshots(
    directory: &Beneath,
    names: &BTreeSet<String>,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, String)>> {
    let mut known = Vec::new();
    for file in snapshot_files(directory, names)? {
        let xml = text(directory, &file)?;
        let told = rewrite::summary(&xml).with_context(|| format!("understand the snapshot {file}"))?;
        if told.external.is_empty() && told.memory.is_none() {
            known.push((told, xml));
        } else {
            notes.push(format!("the snapshot {} is not restored: it is in files of its own", told.name));
        }
    }
    // A parent is older than its children, whatever the files are called.
    known.sort_by(|(a, _), (b, _)| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let mut sorted: Vec<(String, String)> = Vec::new();
    while !known.is_empty() {
        let has_parent = |parent: &Option<String>,
                          sorted: &[(String, String)],
                          rest: &[(rewrite::SnapshotSummary, String)]| {
            let waits = rest.iter().any(|(told, _)| Some(&told.name) == parent.as_ref());
            !waits || sorted.iter().any(|(name, _)| Some(name) == parent.as_ref())
        };
        let next = known.iter().position(|(told, _)| has_parent(&told.parent, &sorted, &known));
        let (told, xml) =
            known.remove(next.ok_or_else(|| anyhow!("the snapshots are each other's parents"))?);
        sorted.push((told.name, xml));
    }
    Ok(sorted)
}

/// The media of CD-ROM and floppy drives, which no backup has.
pub(super) fn media(xml: &str) -> Vec<(Target, PathBuf)> {
    let options = ParsingOptions { allow_dtd: false, ..ParsingOptions::default() };
    let Ok(document) = Document::parse_with_options(xml, options) else { return Vec::new() };
    let disks = document.descendants().filter(|node| node.has_tag_name("disk"));
    let drives = disks.filter(|disk| matches!(disk.attribute("device"), Some("cdrom" | "floppy")));
    let medium = |disk: roxmltree::Node<'_, '_>| {
        let child = |name: &'static str| disk.children().find(|node| node.has_tag_name(name));
        let target = Target::new(child("target")?.attribute("dev")?).ok()?;
        let source = child("source")?;
        Some((target, PathBuf::from(source.attribute("file").or(source.attribute("dev"))?)))
    };
    drives.filter_map(medium).collect()
}

/// Can a guest agent be asked in this guest?
pub(super) fn has_agent(xml: &str) -> bool {
    let options = ParsingOptions { allow_dtd: false, ..ParsingOptions::default() };
    let Ok(document) = Document::parse_with_options(xml, options) else { return false };
    let mut targets = document.descendants().filter(|node| node.has_tag_name("target"));
    targets.any(|target| target.attribute("name") == Some("org.qemu.guest_agent.0"))
}

fn bytes_of(directory: &Beneath, name: &str) -> Result<u64> {
    directory.file(name).map(|(_, bytes)| bytes).with_context(|| format!("open {name}"))
}

fn is_directory(directory: &Beneath, name: &str) -> Result<bool> {
    match directory.kind(name) {
        Ok((Entry::Directory, _)) => Ok(true),
        Ok((Entry::File, _)) => Ok(false),
        Ok((other, _)) => bail!("{name} is {other}"),
        Err(fault) => Err(anyhow!(fault).context(format!("look at {name}"))),
    }
}

fn manifest_in(directory: &Beneath) -> Result<Manifest> {
    match Manifest::parse(text(directory, MANIFEST)?.as_bytes()) {
        Err(error @ ManifestError::Json(_)) => Err(Damaged(error.to_string()).into()),
        parsed => Ok(parsed?),
    }
}

fn text(directory: &Beneath, name: &str) -> Result<String> {
    let bytes = bytes(directory, name)?;
    String::from_utf8(bytes).map_err(|_| Damaged(format!("{name} is damaged: it is not text")).into())
}

fn bytes(directory: &Beneath, name: &str) -> Result<Vec<u8>> {
    let reading = || format!("read {name}");
    let (file, len) = directory.file(name).map_err(Fault::into_io).with_context(reading)?;
    if len > SMALL_MAX {
        bail!("{name} has {len} bytes");
    }
    let mut bytes = Vec::new();
    file.take(SMALL_MAX).read_to_end(&mut bytes).with_context(reading)?;
    Ok(bytes)
}

fn names(directory: &Beneath) -> Result<BTreeSet<String>> {
    names_in(directory, "")
}

/// A name that is not text is none of ours.
fn names_in(directory: &Beneath, path: &str) -> Result<BTreeSet<String>> {
    let listed = directory.directory(path).map_err(Fault::into_io).context("list the directory")?;
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::new(listed)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => drop(names.insert(name.to_owned())),
        }
    }
    Ok(names)
}
