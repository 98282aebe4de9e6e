//! This machine's guests, through libvirt.
//! Every verb finds the domain anew by its UUID: libvirtd may have been restarted, the guest be gone.

mod definitions;
mod disks;
mod ffi;
mod overlays;
pub(crate) mod qcow2;
mod socket;
mod swtpm;
mod xml;

pub(crate) use definitions::file_id;

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use roxmltree::Document;
use virt::connect::Connect;
use virt::domain::{Domain, DomainShutoffReason, DomainState, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use crate::core::domain::{Disk, DomainId};
use crate::core::facts::{
    BackupJob, BitmapState, CheckpointFacts, Definition, DiskFacts, GuestFacts, GuestState, PullSupport,
    Reflink, SnapshotFacts, Stopped, local_path,
};
use crate::core::names::CheckpointName;
use crate::core::step::{BackupRequest, Overlay, OverlayRequest};
use crate::core::units::Bytes;
use crate::core::volume::Volume;

use super::machine::Machine;
use super::{Begin, Guests, Removal, XmlView, exec, local, processes, volumes};
use ffi::{Deletion, Detail};

/// A backup job that was told to end is gone by then.
const JOB_ENDS_WITHIN: Duration = Duration::from_secs(60);

/// The libvirts that were named, each connected to when it is first needed.
pub(super) struct Connections {
    known: Vec<Known>,
}

struct Known {
    uri: String,
    connection: RefCell<Option<Connect>>,
}

/// A domain, as lists show it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Listed {
    pub name: String,
    pub uuid: String,
    pub state: String,
    pub uri: String,
}

impl Connections {
    pub(super) fn new(uris: Vec<String>) -> Connections {
        // Otherwise libvirt prints every error to stderr, also those that are answers.
        virt::error::clear_error_callback();
        let known = uris.into_iter().map(|uri| Known { uri, connection: RefCell::new(None) });
        Connections { known: known.collect() }
    }

    /// By name or UUID. Where the first libvirt knows it inactive and the second active, it is the second's.
    fn find(&self, vm: &str) -> Result<Option<Domain>> {
        let mut inactive = None;
        for known in &self.known {
            let Some(domain) = known.domain(vm)? else { continue };
            if active(&domain)? {
                return Ok(Some(domain));
            }
            inactive.get_or_insert(domain);
        }
        Ok(inactive)
    }

    fn get(&self, id: &DomainId) -> Result<Option<Domain>> {
        self.find(id.uuid.as_str())
    }

    /// Defines a domain anew, in the libvirt that has it.
    fn define_beside(&self, domain: &Domain, xml: &str) -> Result<()> {
        let connection = domain.connect().map_err(told)?;
        connection.define_domain_xml(xml).map(drop).map_err(told)
    }

    fn expect(&self, id: &DomainId) -> Result<Domain> {
        self.get(id)?.ok_or_else(|| anyhow!("the domain {id} is gone"))
    }
}

impl Known {
    fn connect(&self) -> Result<Connect> {
        let mut connection = self.connection.borrow_mut();
        if let Some(alive) = connection.as_ref().filter(|known| known.is_alive().unwrap_or(false)) {
            return Ok(alive.clone());
        }
        let opened = Connect::open(Some(&self.uri)).map_err(told);
        let opened = opened.with_context(|| format!("connect to libvirt at {}", self.uri))?;
        *connection = Some(opened.clone());
        Ok(opened)
    }

    fn domain(&self, vm: &str) -> Result<Option<Domain>> {
        let connection = self.connect()?;
        let none = |error: Error| {
            let missing =
                [ErrorNumber::NoDomain, ErrorNumber::InvalidArg].map(|number| ffi::is(&error, number));
            if missing.contains(&true) { Ok(None) } else { Err(told(error)) }
        };
        let by_name = connection.lookup_domain_by_name(vm).map(Some).or_else(none)?;
        if by_name.is_some() || crate::core::names::Uuid::new(vm).is_err() {
            return Ok(by_name);
        }
        connection.lookup_domain_by_uuid_string(vm).map(Some).or_else(none)
    }
}

impl Machine {
    /// All domains of all libvirts that were named.
    pub fn list_guests(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for known in &self.guests.known {
            let all = known.connect()?.list_all_domains(0).map_err(told).context("list the domains")?;
            for domain in all {
                listed.push(Listed {
                    name: domain.name().map_err(told)?,
                    uuid: domain.uuid_string().map_err(told)?,
                    state: word_of(&state(&domain)?),
                    uri: known.uri.clone(),
                });
            }
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }
}

impl Guests for Machine {
    fn domain_xml(&self, vm: &str, view: XmlView) -> Result<Option<String>> {
        let flags = match view {
            XmlView::Live => 0,
            XmlView::Definition => sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE,
        };
        let Some(domain) = self.guests.find(vm)? else { return Ok(None) };
        Ok(Some(domain.xml_desc(flags).map_err(told)?))
    }

    fn guest(&self, id: &DomainId) -> Result<GuestFacts> {
        let domain = self.guests.expect(id)?;
        let xml = domain.xml_desc(0).map_err(told)?;
        let document = Document::parse(&xml).context("understand the domain's XML")?;
        if let Some(disk) = xml::mirrored(&document).into_iter().next() {
            bail!("a block job works on {disk} (virsh blockjob): wait for its end");
        }
        let persistent = domain.is_persistent().map_err(told)?;
        Ok(GuestFacts {
            state: state(&domain)?,
            stopped: stopped(&domain)?,
            definition: if persistent { Definition::Persistent } else { Definition::Transient },
            agent: xml::agent(&document),
            pull: Versions::of(&domain.connect().map_err(told)?)?.pull(),
            backup_job: job(&domain)?,
        })
    }

    fn disk(&self, id: &DomainId, disk: &Disk, volume: Option<&Volume>) -> Result<DiskFacts> {
        let domain = self.guests.expect(id)?;
        let info = domain.block_info(disk.target.as_str(), 0).map_err(told)?;
        Ok(DiskFacts {
            capacity: Bytes(info.capacity),
            bitmaps: disks::bitmaps(disk),
            chain: disks::chain(self, disk),
            reflink: reflink(disk),
            volume: volumes::behind(disk, &id.uuid, volume),
            snapshots: disks::snapshots(disk),
        })
    }

    fn snapshots(&self, id: &DomainId) -> Result<Vec<SnapshotFacts>> {
        let listed = ffi::snapshots(&self.guests.expect(id)?).map_err(told)?;
        Ok(listed.into_iter().map(|(name, xml)| SnapshotFacts { name, xml }).collect())
    }

    fn files_in_use(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut files = Vec::new();
        for known in &self.guests.known {
            for domain in known.connect()?.list_all_domains(0).map_err(told).context("list the domains")? {
                let name = domain.name().map_err(told)?;
                for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
                    let xml = domain.xml_desc(flags).map_err(told)?;
                    let found = xml::files(&xml).with_context(|| format!("understand the domain {name}"))?;
                    files.extend(found.into_iter().map(|file| (name.clone(), file)));
                }
            }
        }
        Ok(files)
    }

    fn checkpoints(&self, id: &DomainId) -> Result<Vec<CheckpointFacts>> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Vec::new()) };
        let running = active(&domain)?;
        let mut facts = Vec::new();
        for checkpoint in ffi::checkpoints(&domain).map_err(told)? {
            let name = checkpoint.name().map_err(told)?;
            let ours = CheckpointName::recognise(&id.uuid, &name).is_some();
            // Those of others are nothing to ask QEMU about.
            let detail = if running && ours { Detail::Sizes } else { Detail::Definition };
            let xml = checkpoint.xml(detail).map_err(told).with_context(|| format!("look at {name}"))?;
            let told_of = xml::bitmaps(&xml).with_context(|| format!("understand the checkpoint {name}"))?;
            // libvirt tells the size of a bitmap that is there and consistent, and of no other.
            let state = |has_size: bool| match detail {
                Detail::Sizes if !has_size => BitmapState::Missing,
                _ => BitmapState::Usable,
            };
            let bitmaps = told_of.into_iter().map(|(target, has_size)| (target, state(has_size))).collect();
            facts.push(CheckpointFacts { name, bitmaps });
        }
        Ok(facts)
    }

    fn begin_backup(&self, request: &BackupRequest) -> Result<()> {
        let domain = self.guests.expect(&request.domain)?;
        let place = socket::place(&domain, &request.socket)?;
        let checkpoint = xml::checkpoint_of(request);
        ffi::begin_backup(&domain, &xml::backup_of(request, &place), checkpoint.as_deref()).map_err(told)
    }

    fn abort_backup(&self, id: &DomainId, socket: &Path) -> Result<Removal> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Removal::AlreadyGone) };
        let is_ours = |job: BackupJob| job.socket.is_some_and(|told| socket::is_ours(&told, socket));
        let ours = || anyhow::Ok(job(&domain)?.is_some_and(is_ours));
        if !ours()? {
            return Ok(Removal::AlreadyGone);
        }
        if let Err(error) = ffi::abort_job(&domain)
            && ours()?
        {
            return Err(told(error)).context("abort the job");
        }
        let deadline = Instant::now() + JOB_ENDS_WITHIN;
        while ours()? {
            if Instant::now() >= deadline {
                bail!("the job does not end: QEMU or libvirt hangs");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Removal::Removed)
    }

    fn delete_checkpoint(&self, id: &DomainId, name: &CheckpointName) -> Result<Removal> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Removal::AlreadyGone) };
        let found = ffi::checkpoint(&domain, name.as_str()).map_err(told)?;
        let Some(checkpoint) = found else { return Ok(Removal::AlreadyGone) };
        if !active(&domain)? {
            return Ok(Removal::Later("the guest is shut off".to_owned()));
        }
        let Err(error) = checkpoint.delete(Deletion::WithBitmaps) else { return Ok(Removal::Removed) };
        if ffi::checkpoint(&domain, name.as_str()).map_err(told)?.is_none() {
            return Ok(Removal::Removed);
        }
        // A bitmap that is gone or broken cannot be merged; nothing counts on it, so the entry can go.
        let broken = checkpoint.xml(Detail::Sizes).is_ok_and(|xml| {
            xml::bitmaps(&xml).is_ok_and(|bitmaps| bitmaps.values().any(|has_size| !has_size))
        });
        if !broken {
            return Err(told(error));
        }
        checkpoint.delete(Deletion::MetadataOnly).map_err(told).context("forget the broken checkpoint")?;
        Ok(Removal::Removed)
    }

    fn take_overlays(&self, request: &OverlayRequest) -> Result<()> {
        overlays::take(&self.guests.expect(&request.domain)?, request)
    }

    fn merge_overlay(&self, id: &DomainId, overlay: &Overlay) -> Result<Removal> {
        overlays::merge(self, id, overlay)
    }

    fn ask_agent(&self, id: &DomainId, within: Duration) -> Result<()> {
        match ffi::ask_agent(&self.guests.expect(id)?, within) {
            // It need not know what it was asked.
            Err(error)
                if [ErrorNumber::AgentCommandFailed, ErrorNumber::InternalError]
                    .iter()
                    .any(|refusal| ffi::is(&error, *refusal)) =>
            {
                Ok(())
            }
            answered => answered.map_err(told),
        }
    }

    fn freeze(&self, id: &DomainId, within: Duration) -> Result<()> {
        let domain = self.guests.expect(id)?;
        self.start_thaw_watch(id, within)?;
        ffi::freeze(&domain, within).map_err(told)
    }

    fn thaw(&self, id: &DomainId) -> Result<Removal> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Removal::AlreadyGone) };
        if !active(&domain)? {
            return Ok(Removal::AlreadyGone);
        }
        let thawed = match ffi::thaw(&domain, THAW_ANSWERED_WITHIN) {
            // Without an agent it never was frozen.
            Err(error) if ffi::is(&error, ErrorNumber::ArgumentUnsupported) => 0,
            // Whether it ever was frozen is not known; who was to thaw it in our place goes on trying.
            Err(error) if is_silence(&error) && self.thaw_watch(id)?.is_some() => {
                let why =
                    format!("{}; a process of ours tries again for some minutes", error.message().trim_end());
                return Ok(Removal::Later(why));
            }
            // A Windows that has thawed itself, after ten seconds, calls the first thaw an error and the next one nothing to do.
            Err(error) if !is_silence(&error) => match ffi::thaw(&domain, THAW_ANSWERED_WITHIN) {
                Ok(_) => 0,
                Err(_) => return Err(told(error)),
            },
            thawed => thawed.map_err(told)?,
        };
        self.end_thaw_watch(id)?;
        Ok(if thawed > 0 { Removal::Removed } else { Removal::AlreadyGone })
    }

    fn suspend(&self, id: &DomainId) -> Result<()> {
        self.guests.expect(id)?.suspend().map(drop).map_err(told)
    }

    fn resume(&self, id: &DomainId) -> Result<Removal> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Removal::AlreadyGone) };
        if state(&domain)? != GuestState::Paused {
            return Ok(Removal::AlreadyGone);
        }
        domain.resume().map_err(told)?;
        Ok(Removal::Removed)
    }

    fn shut_down(&self, id: &DomainId, within: Duration) -> Result<()> {
        let domain = self.guests.expect(id)?;
        domain.shutdown().map_err(told)?;
        let deadline = Instant::now() + within;
        while active(&domain)? {
            if Instant::now() >= deadline {
                bail!("it has not shut down within {} s: see --shutdown-timeout", within.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn start(&self, id: &DomainId, begin: Begin) -> Result<Removal> {
        let domain = self.guests.expect(id)?;
        if active(&domain)? {
            return Ok(Removal::AlreadyGone);
        }
        let flags = match begin {
            Begin::Running => 0,
            Begin::Suspended => sys::VIR_DOMAIN_START_PAUSED,
        };
        domain.create_with_flags(flags).map_err(told)?;
        Ok(Removal::Removed)
    }
}

fn is_silence(error: &Error) -> bool {
    [ErrorNumber::AgentUnresponsive, ErrorNumber::AgentCommandTimeout]
        .iter()
        .any(|silence| ffi::is(error, *silence))
}

/// The word by which the process is found that thaws a guest in our place.
const THAW_LATER: &str = "thaw-later";
/// An agent that has anything to thaw is at work, and has its hooks to run.
const THAW_ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How long it tries, once it is its turn.
const THAW_TRIED_FOR: Duration = Duration::from_secs(600);

impl Machine {
    fn start_thaw_watch(&self, id: &DomainId, freeze_within: Duration) -> Result<()> {
        // The freeze may take its time, and the guest may then stay frozen as long again.
        let secs = (freeze_within * 2).as_secs().to_string();
        let (program, first) = self.own_command.split_first().context("we have a name")?;
        let words = first.iter().map(String::as_str).chain([THAW_LATER, id.uuid.as_str(), &secs]);
        let words: Vec<_> = words.map(Into::into).collect();
        exec::start_detached(Path::new(program), &words).context("start what thaws the guest if we do not")
    }

    fn thaw_watch(&self, id: &DomainId) -> Result<Option<crate::core::lock::ProcessId>> {
        let uuid = id.uuid.as_str().as_bytes();
        let found = processes::find(|words| {
            let at = words.iter().position(|word| *word == THAW_LATER.as_bytes());
            at.is_some_and(|at| words.get(at + 1) == Some(&uuid))
        })?;
        Ok(found.into_iter().next())
    }

    fn end_thaw_watch(&self, id: &DomainId) -> Result<()> {
        while let Some(process) = self.thaw_watch(id)? {
            processes::kill(&process)?;
        }
        Ok(())
    }

    /// What the process in our place does: thaws until it is done, the guest is gone, it has taken too long, or somebody
    /// else has done it, who says so by a signal.
    pub fn thaw_stubbornly(&self, id: &DomainId, interrupted: &dyn Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + THAW_TRIED_FOR;
        loop {
            let tried = match self.guests.get(id)? {
                Some(domain) if active(&domain)? => ffi::thaw(&domain, THAW_ANSWERED_WITHIN).map(drop),
                _ => Ok(()),
            };
            match tried {
                Ok(()) => return Ok(()),
                Err(_) if interrupted() => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(told(error)),
                Err(_) => std::thread::sleep(Duration::from_secs(1)),
            }
        }
    }
}

/// What a libvirt and its QEMU are, as major * 1,000,000 + minor * 1,000 + release.
#[derive(Clone, Copy, Debug)]
pub struct Versions {
    libvirt: u32,
    qemu: u32,
}

impl Versions {
    fn of(connection: &Connect) -> Result<Versions> {
        let (libvirt, qemu) =
            (connection.lib_version().map_err(told)?, connection.hyp_version().map_err(told)?);
        Ok(Versions { libvirt, qemu })
    }

    /// Pull-mode backups came with libvirt 7.2 and QEMU 4.2.
    pub fn pull(self) -> PullSupport {
        for (name, version, least) in [("libvirt", self.libvirt, 7_002_000), ("QEMU", self.qemu, 4_002_000)] {
            if version < least {
                let (version, least) = (numbers(version), numbers(least));
                return PullSupport::No {
                    why: format!("{name} is {version}, and pull-mode backups came with {least}"),
                };
            }
        }
        PullSupport::Yes
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libvirt {}, QEMU {}", numbers(self.libvirt), numbers(self.qemu))
    }
}

fn numbers(version: u32) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
}

impl Machine {
    /// Of all libvirts that were named, each with its URI.
    pub fn versions(&self) -> Result<Vec<(String, Versions)>> {
        let of = |known: &Known| Ok((known.uri.clone(), Versions::of(&known.connect()?)?));
        self.guests.known.iter().map(of).collect()
    }
}

fn reflink(disk: &Disk) -> Reflink {
    let dir = local_path(&disk.source).and_then(|path| path.parent());
    let shared = dir.ok_or("it is no image file".to_owned()).and_then(local::can_share_blocks);
    match shared {
        Ok(()) => Reflink::Possible,
        Err(why) => Reflink::Impossible { why },
    }
}

/// libvirt's message, without its numbers.
fn told(error: Error) -> anyhow::Error {
    anyhow!("{}", error.message().trim_end_matches('\n').to_owned())
}

fn active(domain: &Domain) -> Result<bool> {
    domain.is_active().map_err(told)
}

fn state(domain: &Domain) -> Result<GuestState> {
    let (state, _) = domain.state().map_err(told)?;
    Ok(match state.unwrap_or(DomainState::NoState) {
        DomainState::Running | DomainState::Blocked => GuestState::Running,
        DomainState::Paused => GuestState::Paused,
        DomainState::Shutoff | DomainState::Crashed => GuestState::ShutOff,
        other => GuestState::Other(format!("{other:?}").to_lowercase()),
    })
}

fn stopped(domain: &Domain) -> Result<Stopped> {
    let by_itself = match domain.state().map_err(told)?.1 {
        Enum::Known(DomainStateReason::Shutoff(reason)) => reason.is(DomainShutoffReason::Shutdown),
        _ => false,
    };
    let is_saved = domain.has_managed_save(0).map_err(told)?;
    Ok(if by_itself && !is_saved { Stopped::ByItself } else { Stopped::Perhaps })
}

fn word_of(state: &GuestState) -> String {
    match state {
        GuestState::Running => "running".to_owned(),
        GuestState::Paused => "paused".to_owned(),
        GuestState::ShutOff => "shut off".to_owned(),
        GuestState::Other(other) => other.clone(),
    }
}

fn job(domain: &Domain) -> Result<Option<BackupJob>> {
    if !active(domain)? {
        return Ok(None);
    }
    match ffi::backup(domain) {
        Ok(Some(xml)) => Ok(Some(xml::job(&xml).context("understand the backup job")?)),
        Ok(None) => Ok(None),
        // It was shut off just now.
        Err(error) if ffi::is(&error, ErrorNumber::OperationInvalid) => Ok(None),
        Err(error) => Err(told(error)).context("ask for the backup job"),
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.known.iter().map(|known| &known.uri)).finish()
    }
}
