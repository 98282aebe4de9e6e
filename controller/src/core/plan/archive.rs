//! An archive: all that it takes to define and start the VM elsewhere, in one dated directory that stays.
//! It is complete when its manifest is there; until then a mark says that it is ours and is not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::core::domain::Format;
use crate::core::facts::{Chain, Nvram, SnapshotFacts};
use crate::core::names::{Target, VmName, is_file_name, partial_of};
use crate::core::options::{Archive, Clusters, Macs};
use crate::core::rewrite::{self, Changes, Content, NewDisk, Place};
use crate::core::step::{CopyRequest, CopyTo, DumpRecord, LastFile, Step};
use crate::core::units::Generation;
use crate::core::viewspec::{Consistency, Feed, Method, ShownDisk};

use super::{
    Case, DiskDecision, Plan, Reason, Refusal, Wanted, before_it_goes_on, choose, copy_nvram, copy_tpm, hold,
    point_in_time,
};

/// In the directory of an archive: complete where it is.
pub const MANIFEST: &str = "manifest.json";
/// In the directory of an archive that is being made, or was cut off.
pub const UNFINISHED: &str = ".unfinished";

/// The plan of an archive. `snapshots` are all of the domain's.
pub fn archive(case: Case<'_>, options: &Archive, snapshots: &[SnapshotFacts]) -> Result<Plan, Refusal> {
    let choice = choose::choose(&case)?;
    let maker = Maker { case, options, dir: directory(&options.base, case.names.vm(), options) };
    let refused =
        |why: String| Refusal { domain: case.domain.id.clone(), reasons: vec![Reason { target: None, why }] };
    let mut notes = Vec::new();
    let files = maker.descriptions(&choice.wanted, snapshots, &mut notes).map_err(refused)?;
    let point = point_in_time(&case, &choice);
    let copies: Vec<_> =
        point.disks.iter().map(|disk| maker.copy(disk, &choice.wanted, &mut notes)).collect();

    let dir = &maker.dir;
    let decision = |copy: &CopyRequest| DiskDecision { target: copy.target.clone(), what: copy.to_string() };
    let decisions = copies.iter().map(decision).collect();
    let mut steps = vec![
        Step::MakeDir { path: case.names.socket_dir() },
        Step::KeepDir { path: options.base.clone() },
        Step::KeepDir { path: options.base.join(case.names.vm().as_str()) },
        Step::MakePrivateDir { path: dir.clone() },
        Step::WriteFile { path: dir.join(UNFINISHED), content: format!("{}\n", case.job) },
    ];
    let mut names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    if files.iter().any(|(name, _)| name.starts_with("snapshots/")) {
        steps.push(Step::MakePrivateDir { path: dir.join("snapshots") });
    }
    for copy in &copies {
        let Some((_, name)) = copy.to.file() else { continue };
        steps
            .extend([name.to_owned(), partial_of(name)].map(|name| Step::ClaimFile { path: dir.join(name) }));
        names.push(name.to_owned());
    }
    steps.extend(point.claims);
    let nvram = copy_nvram(&case, &dir.join(maker.nvram_name()));
    names.extend(nvram.iter().map(|_| maker.nvram_name()));
    let tpm = format!("{}.tpm", maker.name());
    if let Some(state) = case.facts.tpm.state() {
        steps.push(Step::MakePrivateDir { path: dir.join(&tpm) });
        names.extend(state.names().map(|name| format!("{tpm}/{name}")));
    }
    steps.extend(before_it_goes_on(point.take, nvram.into_iter().chain(copy_tpm(&case, &dir.join(&tpm)))));
    for copy in copies {
        let release = point.release.get(&copy.target).cloned().unwrap_or_default();
        steps.push(Step::CopyDisk(Box::new(copy)));
        steps.extend(release.into_iter().map(Step::Release));
    }
    let write = |(name, content): (String, String)| Step::WriteFile { path: dir.join(name), content };
    steps.extend(files.into_iter().map(write));
    let digests = format!("{}.b3", maker.name());
    names.extend([digests.clone(), MANIFEST.to_owned()]);
    // The newest debt of all: an archive that is taken back loses its manifest first.
    steps.extend([&digests, MANIFEST].map(|name| Step::ClaimFile { path: dir.join(name) }));
    let manifest = |consistency| maker.manifest(choice.method, consistency, &names);
    let manifest = Some(LastFile {
        name: MANIFEST.to_owned(),
        content: manifest(hold::consistency(&case, choice.method)),
        if_frozen: manifest(Consistency::Frozen),
    });
    steps.push(Step::KeepDump(DumpRecord { dir: dir.clone(), names, digests, record: None, manifest }));

    let (method, left_out) = (choice.method, choice.left_out);
    let notes =
        choice.notes.into_iter().chain(point.notes).chain(notes).chain(case.facts.tpm.note()).collect();
    let (domain, generation) = (case.domain.id.clone(), Generation::NONE);
    Ok(Plan { domain, method, generation, disks: decisions, left_out, notes, steps })
}

/// Where the archive is.
pub fn directory(base: &Path, vm: &VmName, options: &Archive) -> PathBuf {
    base.join(vm.as_str()).join(options.name.to_string())
}

struct Maker<'a> {
    case: Case<'a>,
    options: &'a Archive,
    dir: PathBuf,
}

impl Maker<'_> {
    /// What the domain in the archive is called.
    fn name(&self) -> String {
        match &self.options.new_name {
            Some(name) => name.to_string(),
            None => format!("{}-restore-{}", self.case.names.vm(), self.options.name),
        }
    }

    fn nvram(&self) -> Option<PathBuf> {
        self.case.domain.nvram.clone().filter(|_| self.case.facts.nvram == Nvram::There)
    }

    fn nvram_name(&self) -> String {
        format!("{}.nvram", self.name())
    }

    /// The domain and its snapshots as they are to be defined from the archive: names and content.
    fn descriptions(
        &self,
        wanted: &[Wanted<'_>],
        snapshots: &[SnapshotFacts],
        notes: &mut Vec<String>,
    ) -> Result<Vec<(String, String)>, String> {
        let disks = wanted.iter().map(|disk| (disk.disk.target.clone(), self.new_disk(disk)));
        let nvram = match self.nvram() {
            Some(_) => rewrite::Nvram::At(self.dir.join(self.nvram_name())),
            None => rewrite::Nvram::Keep,
        };
        let changes = Changes {
            name: Some(VmName::new(&self.name()).map_err(|error| error.to_string())?),
            uuid: Some(self.options.uuid.clone()),
            macs: match self.options.macs {
                Macs::Kept => rewrite::Macs::Keep,
                Macs::New => rewrite::Macs::DerivedFrom(self.options.uuid.clone()),
            },
            nvram,
            disks: disks.collect(),
            ..Changes::none()
        };
        let domain = rewrite::domain(self.case.definition_xml, &changes);
        let domain = domain.map_err(|error| format!("the definition cannot be rewritten: {error}"))?;
        let mut files = vec![(format!("{}.xml", self.name()), domain)];
        for (file, snapshot) in in_order(snapshots, notes)? {
            let mut changes = changes.clone();
            // A disk that was added since is not in the snapshot.
            let then = rewrite::snapshot(&snapshot.xml, &Changes::none()).map(|_| targets_of(&snapshot.xml));
            let then = then.map_err(|error| format!("snapshot {}: {error}", snapshot.name))?;
            changes.disks.retain(|target, _| then.contains(target));
            let xml = rewrite::snapshot(&snapshot.xml, &changes);
            let xml =
                xml.map_err(|error| format!("snapshot {} cannot be rewritten: {error}", snapshot.name))?;
            files.push((format!("snapshots/{file}.xml"), xml));
        }
        Ok(files)
    }

    fn new_disk(&self, wanted: &Wanted<'_>) -> NewDisk {
        let content = if verbatim(wanted) { Content::Image } else { Content::Guest };
        let file = self.dir.join(format!("{}.qcow2", wanted.disk.target));
        NewDisk { place: Place::File(file), format: Format::Qcow2, content }
    }

    /// An image with snapshots in it is copied as it is: only so they can be gone back to.
    fn copy(&self, disk: &ShownDisk, wanted: &[Wanted<'_>], notes: &mut Vec<String>) -> CopyRequest {
        let (dir, name) = (self.dir.clone(), format!("{}.qcow2", disk.target));
        let of = wanted.iter().find(|wanted| wanted.disk.target == disk.target);
        let image = of.filter(|wanted| verbatim(wanted)).and_then(|_| disk.images.first());
        let has_snapshots = of.is_some_and(|wanted| wanted.facts.snapshots > 0);
        let compress = self.options.clusters == Clusters::Compressed;
        let (feed, to) = match image {
            Some(path) if has_snapshots || !compress => {
                if compress {
                    notes.push(format!(
                        "{}: not compressed, for that would lose the snapshots in its image",
                        disk.target
                    ));
                }
                (Feed::Image { path: path.to_owned() }, CopyTo::AsItIs { dir, name: name.clone() })
            }
            _ => {
                let clusters = self.options.clusters;
                (disk.feed.clone(), CopyTo::Qcow2 { dir, name: name.clone(), clusters })
            }
        };
        CopyRequest { target: disk.target.clone(), feed, to, pace: None, room: None, digest_of: name }
    }

    fn manifest(&self, method: Method, consistency: Consistency, names: &[String]) -> String {
        let text = serde_json::to_string_pretty(&json!({
            "version": 1,
            "vm": self.case.names.vm(),
            "uuid": self.case.domain.id.uuid,
            "archive": self.options.name.to_string(),
            "domain": self.name(),
            "domain_uuid": self.options.uuid,
            "method": method,
            "consistency": consistency,
            "files": names,
        }));
        text.expect("plain data always serialises") + "\n"
    }
}

/// The image holds all there is, in the format that an archive has.
fn verbatim(wanted: &Wanted<'_>) -> bool {
    let Chain::Known(chain) = &wanted.facts.chain else { return false };
    matches!(&chain[..], [only] if only.format == Format::Qcow2)
}

fn targets_of(xml: &str) -> BTreeSet<Target> {
    let Ok(document) = roxmltree::Document::parse(xml) else { return BTreeSet::new() };
    let inside = document.root_element().children().find(|node| node.has_tag_name("domain"));
    let targets = inside.into_iter().flat_map(|domain| domain.descendants());
    let targets = targets.filter(|node| node.has_tag_name("target")).filter_map(|node| node.attribute("dev"));
    targets.filter_map(|name| Target::new(name).ok()).collect()
}

/// The snapshots that can be had back, parents first, each with the name of its file: the names sort so, too, for whoever
/// defines them in the order of a shell's `*`.
fn in_order<'s>(
    snapshots: &'s [SnapshotFacts],
    notes: &mut Vec<String>,
) -> Result<Vec<(String, &'s SnapshotFacts)>, String> {
    let mut known = BTreeMap::new();
    for snapshot in snapshots {
        let summary =
            rewrite::summary(&snapshot.xml).map_err(|error| format!("{}: {error}", snapshot.name))?;
        if !is_file_name(&snapshot.name) {
            return Err(format!("the snapshot {:?} has a name that no file can have", snapshot.name));
        }
        if summary.external.is_empty() && summary.memory.is_none() {
            known.insert(snapshot.name.clone(), (summary, snapshot));
        } else {
            notes.push(format!("snapshot {} is left out: it is not within the images", snapshot.name));
        }
    }
    let depth = |name: &str| {
        let mut depth = 0;
        let mut at = known.get(name).and_then(|(summary, _)| summary.parent.clone());
        while let Some(parent) = at.filter(|_| depth <= known.len()) {
            depth += 1;
            at = known.get(&parent).and_then(|(summary, _)| summary.parent.clone());
        }
        depth
    };
    let mut sorted: Vec<_> =
        known.values().map(|(summary, snapshot)| (depth(&summary.name), snapshot)).collect();
    sorted.sort_by_key(|(depth, snapshot)| (*depth, snapshot.name.clone()));
    let plain = sorted.windows(2).all(|pair| pair[0].1.name < pair[1].1.name);
    let named = sorted.iter().enumerate().map(|(number, (_, snapshot))| {
        let name = if plain { snapshot.name.clone() } else { format!("{number:03}-{}", snapshot.name) };
        (name, **snapshot)
    });
    Ok(named.collect())
}
