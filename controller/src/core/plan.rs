//! Facts and options to a plan, or to a refusal that says why for each disk.
//! Decides everything and touches nothing; the steps are carried out by `session`.

pub mod archive;
mod candidates;
mod choose;
mod dump;
mod external;
mod hold;
mod lvm;
mod offline;
mod pull;
mod reflink;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::domain::{Disk, Domain, DomainId, LeftOut};
use super::facts::{DiskFacts, Facts, IndexedDisk, MountPoint, Nvram};
use super::names::{CheckpointName, JobId, Names, Target};
use super::options::{Chunkmount, Tracking};
use super::point::Point;
use super::step::{Step, Undo, ViewService};
use super::tpm::TpmFacts;
use super::units::Generation;
use super::viewspec::{self, Consistency, Method, Room, ShownDisk, ShownFile, ViewSpec};

/// All there is to know before deciding.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub domain: &'a Domain,
    /// The definition as libvirt would define it again, to be shown beside the disks.
    pub definition_xml: &'a str,
    pub facts: &'a Facts,
    pub options: &'a Chunkmount,
    pub names: &'a Names,
    pub job: &'a JobId,
    pub purpose: Purpose,
}

/// What the point in time is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Chunks whose changes are known: uses and makes checkpoints, as asked.
    View,
    /// A copy of everything: leaves checkpoints and index alone.
    Copy,
    /// The same, of the images themselves: an export shows no snapshots that are within an image.
    Archive,
}

/// What will be done, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub domain: DomainId,
    pub method: Method,
    pub generation: Generation,
    pub disks: Vec<DiskDecision>,
    pub left_out: Vec<LeftOut>,
    /// What the user should know: a choice that was made, a risk that is taken.
    pub notes: Vec<String>,
    pub steps: Vec<Step>,
}

/// What was decided for a disk, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskDecision {
    pub target: Target,
    pub what: String,
}

/// Why there is no plan. Every reason that was found, not only the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub domain: DomainId,
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// None: the VM as a whole.
    pub target: Option<Target>,
    pub why: String,
}

/// A disk that is to be in the view.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    disk: &'a Disk,
    facts: &'a DiskFacts,
}

/// How a method has its point in time.
struct PointInTime {
    disks: Vec<ShownDisk>,
    notes: Vec<String>,
    room: Option<Room>,
    /// The checkpoint that this job makes.
    checkpoint: Option<CheckpointName>,
    /// What is to be undone after the generation is closed.
    claims: Vec<Step>,
    /// From the first step that the guest may notice to sources that can be read.
    take: Vec<Step>,
    /// What a disk does not need any more once it has been read.
    release: BTreeMap<Target, Vec<Undo>>,
}

pub use archive::archive;
pub use choose::{Outlook, outlook};
pub use dump::dump;

/// The plan that shows a VM's disks as chunks under `B/<vm>`.
pub fn chunkmount(case: Case<'_>) -> Result<Plan, Refusal> {
    let choice = choose::choose(&case)?;
    let point = point_in_time(&case, &choice);
    Ok(view(&case, choice, point))
}

fn point_in_time(case: &Case<'_>, choice: &choose::Choice<'_>) -> PointInTime {
    match choice.method {
        Method::Pull => pull::point(case, &choice.wanted),
        Method::External => external::point(case, &choice.wanted),
        Method::Lvm => lvm::point(case, &choice.wanted),
        Method::Reflink => reflink::point(case, &choice.wanted),
        Method::Offline => offline::point(case, &choice.wanted),
    }
}

/// Undone from the last to the first: view, job, generation, what the point in time needs, files, checkpoints.
fn view(case: &Case<'_>, choice: choose::Choice<'_>, point: PointInTime) -> Plan {
    let (names, domain) = (case.names, case.domain.id.clone());
    let generation = next_generation(case);
    let decision = |disk: &ShownDisk| DiskDecision {
        target: disk.target.clone(),
        what: candidates::describe(&disk.candidates),
    };
    let decisions = point.disks.iter().map(decision).collect();

    let mut steps = Vec::new();
    if choice.method == Method::Pull {
        // Claimed even when this backup makes none: then the one of an earlier backup has to go.
        let name = point.checkpoint.clone();
        let name = name.unwrap_or_else(|| CheckpointName::new(&domain.uuid, generation, case.job));
        steps.push(Step::ClaimCheckpoint { domain: domain.clone(), name, index_dir: names.index_dir() });
    }
    let keeps = point.disks.iter().any(|disk| disk.thin_after.is_some());
    if keeps || case.facts.index.values().any(|disk| disk.thin.is_some()) {
        let (owner, index_dir) = (domain.uuid.clone(), names.index_dir());
        steps.push(Step::ClaimKeptVolumes { owner, index_dir });
    }
    steps.extend([
        Step::MakeDir { path: names.socket_dir() },
        Step::WriteFile { path: names.saved_xml(), content: case.definition_xml.to_owned() },
    ]);
    steps.extend(case.facts.tpm.state().map(|_| Step::MakePrivateDir { path: names.saved_tpm() }));
    steps.extend(point.claims);
    let spec = spec(case, choice.method, point.disks, &choice.left_out, point.room);
    let frozen = ViewSpec { consistency: Consistency::Frozen, ..spec.clone() }.about_json();
    steps.extend([
        Step::WriteFile { path: spec.about.clone(), content: spec.about_json() },
        Step::WriteSpec { path: names.view_spec(), spec: Box::new(spec.clone()) },
    ]);
    let freezes = point.take.iter().any(|step| matches!(step, Step::Freeze { .. }));
    let small = copy_nvram(case, &names.saved_nvram()).into_iter().chain(copy_tpm(case, &names.saved_tpm()));
    steps.extend(before_it_goes_on(point.take, small));
    if freezes {
        steps.push(Step::IfFrozen { path: spec.about, content: frozen });
    }
    steps.push(Step::StartView(ViewService {
        spec: names.view_spec(),
        mount_point: names.mount_point(),
        mount_source: names.mount_source(),
    }));
    let notes = choice.notes.into_iter().chain(point.notes).chain(case.facts.tpm.note()).collect();
    let (method, left_out) = (choice.method, choice.left_out);
    Plan { domain, method, generation, disks: decisions, left_out, notes, steps }
}

/// As they are at the point in time: QEMU goes on writing to the file itself.
fn copy_nvram(case: &Case<'_>, to: &Path) -> Option<Step> {
    let from = case.domain.nvram.clone().filter(|_| case.facts.nvram == Nvram::There)?;
    Some(Step::CopyFile { from, to: to.to_owned() })
}

/// As it is at the point in time; the directory is there.
fn copy_tpm(case: &Case<'_>, to: &Path) -> Vec<Step> {
    let Some(state) = case.facts.tpm.state() else { return Vec::new() };
    let copy = |name: &str| Step::CopyTpm {
        dir: state.dir.clone(),
        name: name.to_owned(),
        at_most: state.most(name),
        to: to.join(name),
    };
    state.names().map(copy).collect()
}

/// What is copied at once belongs to the point in time: a guest that was held for it goes on only after that.
fn before_it_goes_on(mut take: Vec<Step>, small: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let at = take.iter().position(|step| matches!(step, Step::Early(_))).unwrap_or(take.len());
    take.splice(at..at, small);
    take
}

fn refuse(case: &Case<'_>, mut reasons: Vec<Reason>, why: String) -> Refusal {
    reasons.push(Reason { target: None, why });
    Refusal { domain: case.domain.id.clone(), reasons }
}

fn reason(disk: &Disk, why: String) -> Reason {
    Reason { target: Some(disk.target.clone()), why }
}

/// What stands in the way of any plan for this VM.
fn obstacles(case: &Case<'_>) -> Vec<Reason> {
    let path = case.names.mount_point();
    let path = path.display();
    let in_the_way = match &case.facts.mount_point {
        MountPoint::Absent | MountPoint::EmptyDirectory => None,
        _ if case.purpose == Purpose::Archive => None,
        MountPoint::Occupied if case.purpose == Purpose::Copy => {
            Some(format!("{path} exists, with something in it that is of no dump of ours"))
        }
        MountPoint::Occupied => Some(format!(
            "{path} exists and is not empty: the view would hide what is there; if it is a dump, cleanup removes it"
        )),
        MountPoint::Mounted { source } if *source == case.names.mount_source() => {
            Some(format!("{path} still shows a view of an earlier job: run cleanup"))
        }
        MountPoint::Mounted { source } => Some(format!("{source} is mounted at {path}, and is not ours")),
    };
    let job = case.facts.guest.backup_job.as_ref().map(|_| {
        "a backup job that is not ours runs already: wait for its end (virsh domjobinfo), or end it"
            .to_owned()
    });
    let unfreezable = hold::unfreezable(case);
    in_the_way
        .into_iter()
        .chain(job)
        .chain(unfreezable)
        .chain(tpm_refused(case))
        .map(|why| Reason { target: None, why })
        .collect()
}

fn tpm_refused(case: &Case<'_>) -> Option<String> {
    match &case.facts.tpm {
        TpmFacts::Refused { why } => Some(format!("the state of the TPM cannot be saved: {why}")),
        TpmFacts::NoTpm | TpmFacts::State(_) | TpmFacts::NotHere { .. } => None,
    }
}

/// Larger than every generation that anything of ours remembers.
fn next_generation(case: &Case<'_>) -> Generation {
    let indexed = case.facts.index.values().map(|disk| disk.generation);
    let left = case.facts.checkpoints.iter().filter_map(|c| candidates::ours(case, &c.name)).map(|(_, g)| g);
    indexed.chain(left).max().unwrap_or(Generation::NONE).next()
}

fn spec(
    case: &Case<'_>,
    method: Method,
    disks: Vec<ShownDisk>,
    left_out: &[LeftOut],
    room: Option<Room>,
) -> ViewSpec {
    let names = case.names;
    let mut files = vec![ShownFile { name: names.shown_xml(), from: names.saved_xml() }];
    if case.domain.nvram.is_some() && case.facts.nvram == Nvram::There {
        files.push(ShownFile { name: names.shown_nvram(), from: names.saved_nvram() });
    }
    for name in case.facts.tpm.state().iter().flat_map(|state| state.names()) {
        let (shown, from) = (format!("{}/{name}", names.shown_tpm()), names.saved_tpm().join(name));
        files.push(ShownFile { name: shown, from });
    }
    ViewSpec {
        version: viewspec::VERSION,
        vm: names.vm().clone(),
        uuid: case.domain.id.uuid.clone(),
        mount_point: names.mount_point(),
        mount_source: names.mount_source(),
        generation: next_generation(case),
        method,
        consistency: hold::consistency(case, method),
        chunk_size: case.options.chunk_size,
        index_dir: names.index_dir(),
        about: names.saved_about(),
        files,
        disks,
        left_out: left_out.to_vec(),
        tpm: case.facts.tpm.told(),
        room,
    }
}

/// What the index says that a disk's digests describe.
fn base(case: &Case<'_>, target: &Target) -> Option<Point> {
    case.facts.index.get(target).and_then(IndexedDisk::point)
}

/// Does the user let us leave a checkpoint in the domain?
fn wants_checkpoints(case: &Case<'_>) -> bool {
    match (case.purpose, case.options.tracking) {
        (Purpose::View, Tracking::Auto | Tracking::Bitmap) => true,
        (Purpose::View, Tracking::Digest | Tracking::None) | (Purpose::Copy | Purpose::Archive, _) => false,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: generation {} by method {}", self.domain, self.generation, self.method)?;
        for disk in &self.disks {
            writeln!(f, "  disk {}: {}", disk.target, disk.what)?;
        }
        for left_out in &self.left_out {
            writeln!(f, "  left out: {}: {}", left_out.what, left_out.reason)?;
        }
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
        write!(f, "{}: no backup is possible as asked", self.domain)?;
        for reason in &self.reasons {
            match &reason.target {
                Some(target) => write!(f, "; {target}: {}", reason.why)?,
                None => write!(f, "; {}", reason.why)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}
