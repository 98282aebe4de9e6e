//! Facts and options to a plan, or to a refusal that says why for each disk.
//! Decides everything and touches nothing; the steps are carried out by `session`.

mod candidates;
mod offline;
mod pull;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

use super::domain::{Disk, Domain, DomainId, LeftOut, Source};
use super::facts::{DiskFacts, Facts, GuestState, IndexedDisk, MountPoint};
use super::names::{JobId, Names, Target};
use super::options::{Chunkmount, MethodChoice, Tracking};
use super::point::Point;
use super::step::{Step, ViewService};
use super::units::Generation;
use super::viewspec::{self, Method, Room, ShownDisk, ShownFile, ViewSpec};

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

/// The plan that shows a VM's disks as chunks under `B/<vm>`.
pub fn chunkmount(case: Case<'_>) -> Result<Plan, Refusal> {
    let mut reasons = obstacles(&case);
    let (wanted, left_out) = choose_disks(&case, &mut reasons);
    let method = match choose_method(&case) {
        Ok(method) => method,
        Err(why) => return refuse(&case, reasons, why),
    };
    for disk in &wanted {
        let why = match method {
            Method::Pull => pull::obstacle(&case, disk),
            Method::Offline => offline::obstacle(disk),
        };
        reasons.extend(
            why.into_iter().chain(candidates::obstacle(&case, disk)).map(|why| reason(disk.disk, why)),
        );
    }
    if !reasons.is_empty() {
        return Err(Refusal { domain: case.domain.id.clone(), reasons });
    }
    Ok(match method {
        Method::Pull => pull::plan(&case, &wanted, left_out),
        Method::Offline => offline::plan(&case, &wanted, left_out),
    })
}

fn refuse(case: &Case<'_>, mut reasons: Vec<Reason>, why: String) -> Result<Plan, Refusal> {
    reasons.push(Reason { target: None, why });
    Err(Refusal { domain: case.domain.id.clone(), reasons })
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
        MountPoint::Occupied => {
            Some(format!("{path} exists and is not empty: the view would hide what is there"))
        }
        MountPoint::Mounted { source } if *source == case.names.mount_source() => {
            Some(format!("{path} still shows a view of an earlier job: run cleanup"))
        }
        MountPoint::Mounted { source } => Some(format!("{source} is mounted at {path}, and is not ours")),
    };
    let job = case.facts.guest.backup_job.as_ref().map(|_| {
        "a backup job that is not ours runs already: wait for its end (virsh domjobinfo), or end it"
            .to_owned()
    });
    in_the_way.into_iter().chain(job).map(|why| Reason { target: None, why }).collect()
}

/// Every disk is wanted, left out by name or for having no medium, or a reason to refuse.
fn choose_disks<'a>(case: &Case<'a>, reasons: &mut Vec<Reason>) -> (Vec<Wanted<'a>>, Vec<LeftOut>) {
    let mut wanted = Vec::new();
    let mut left_out = case.domain.left_out.clone();
    for disk in &case.domain.disks {
        let what = disk.target.to_string();
        if case.options.exclude.contains(&disk.target) {
            left_out.push(LeftOut { what, reason: "excluded by name".to_owned() });
        } else if disk.source == Source::Nothing {
            left_out.push(LeftOut { what, reason: "no medium".to_owned() });
        } else if let Some(facts) = case.facts.disks.get(&disk.target) {
            wanted.push(Wanted { disk, facts });
        } else {
            reasons.push(reason(disk, format!("nothing could be found out about {}", disk.source)));
        }
    }
    if wanted.is_empty() && reasons.is_empty() {
        reasons.push(Reason { target: None, why: "there is no disk to back up".to_owned() });
    }
    (wanted, left_out)
}

fn choose_method(case: &Case<'_>) -> Result<Method, String> {
    let state = &case.facts.guest.state;
    let off = *state == GuestState::ShutOff;
    if let GuestState::Other(name) = state {
        return Err(format!("the guest is in the state {name:?}: neither running, paused nor shut off"));
    }
    match case.options.method {
        MethodChoice::Auto => Ok(if off { Method::Offline } else { Method::Pull }),
        MethodChoice::Pull if off => Err("the guest is shut off: method pull needs it to run".to_owned()),
        MethodChoice::Pull => Ok(Method::Pull),
        MethodChoice::Offline if !off => {
            Err("the guest is not shut off: method offline needs it to be".to_owned())
        }
        MethodChoice::Offline => Ok(Method::Offline),
        MethodChoice::External | MethodChoice::Lvm | MethodChoice::Reflink => {
            Err(format!("method {:?} is not available yet: use pull or offline", case.options.method)
                .to_lowercase())
        }
    }
}

/// Larger than every generation that anything of ours remembers.
fn next_generation(case: &Case<'_>) -> Generation {
    let indexed = case.facts.index.values().map(|disk| disk.generation);
    let left = case.facts.checkpoints.iter().filter_map(|c| candidates::ours(case, &c.name)).map(|(_, g)| g);
    indexed.chain(left).max().unwrap_or(Generation::NONE).next()
}

/// The steps that every view begins with. The order is the reverse of the order of undoing: the generation is
/// closed when the job has ended, checkpoints are deleted when it is closed.
fn opening(case: &Case<'_>) -> Vec<Step> {
    vec![
        Step::MakeDir { path: case.names.socket_dir() },
        Step::WriteFile { path: case.names.saved_xml(), content: case.definition_xml.to_owned() },
    ]
}

fn spec(
    case: &Case<'_>,
    method: Method,
    disks: Vec<ShownDisk>,
    left_out: &[LeftOut],
    room: Option<Room>,
) -> Vec<Step> {
    let names = case.names;
    let mut files = vec![ShownFile { name: names.shown_xml(), from: names.saved_xml() }];
    files.extend(
        case.domain
            .nvram
            .iter()
            .map(|path| ShownFile { name: format!("{}.nvram", names.vm()), from: path.clone() }),
    );
    let spec = ViewSpec {
        version: viewspec::VERSION,
        vm: names.vm().clone(),
        uuid: case.domain.id.uuid.clone(),
        mount_point: names.mount_point(),
        mount_source: names.mount_source(),
        generation: next_generation(case),
        method,
        chunk_size: case.options.chunk_size,
        index_dir: names.index_dir(),
        about: names.saved_about(),
        files,
        disks,
        left_out: left_out.to_vec(),
        room,
    };
    vec![
        Step::WriteFile { path: spec.about.clone(), content: spec.about_json() },
        Step::WriteSpec { path: names.view_spec(), spec: Box::new(spec) },
    ]
}

/// What the index says that a disk's digests describe.
fn base(case: &Case<'_>, target: &Target) -> Option<Point> {
    case.facts.index.get(target).and_then(IndexedDisk::point)
}

fn start_view(case: &Case<'_>) -> Step {
    Step::StartView(ViewService {
        spec: case.names.view_spec(),
        mount_point: case.names.mount_point(),
        mount_source: case.names.mount_source(),
    })
}

/// Does the user let us leave a checkpoint in the domain?
fn wants_checkpoints(case: &Case<'_>) -> bool {
    match case.options.tracking {
        Tracking::Auto | Tracking::Bitmap => true,
        Tracking::Digest | Tracking::None => false,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.method {
            Method::Pull => "pull",
            Method::Offline => "offline",
        };
        writeln!(f, "{}: generation {} by method {method}", self.domain, self.generation)?;
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
