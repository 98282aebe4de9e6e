//! A step to the host's verbs.
//! Decides nothing, and undoes nothing: that is `undo`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::core::lock::ProcessId;
use crate::core::step::Step;
use crate::host::{Begin, Entry, Host};

/// How long an agent may take for an answer to a simple question.
const AGENT_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How long a guest's agent may take to freeze it.
const FREEZE_WITHIN: Duration = Duration::from_secs(10);

/// What must hold before a step may be intended: what is in the way now is not ours, and must not become owed.
pub(super) fn check(host: &dyn Host, step: &Step) -> Result<()> {
    match step {
        Step::ClaimFile { path } if host.entry(path)? != Entry::Absent => {
            bail!("something is there already, and no journal says that it is ours")
        }
        Step::ClaimOverlay { overlay, .. } if host.entry(&overlay.overlay)? != Entry::Absent => {
            bail!("something is there already, and no journal says that it is ours")
        }
        Step::ClaimVolume { snapshot } if host.volume_exists(&snapshot.snapshot)? => {
            bail!("a volume of that name is there already")
        }
        Step::ClaimCheckpoint { domain, name, .. } => {
            let taken = host.checkpoints(domain)?.iter().any(|c| c.name == name.as_str());
            if taken { bail!("the domain has a checkpoint of this name already") } else { Ok(()) }
        }
        // One that does not answer now is not asked to freeze anything: it might do so when nobody waits for it any more.
        Step::Freeze { domain, .. } => host.ask_agent(domain, AGENT_ANSWERS_WITHIN),
        _ => Ok(()),
    }
}

/// What became of a step.
#[derive(Debug)]
pub(super) enum Acted {
    Done,
    /// A view that lives on.
    Shown(ProcessId),
    /// A disk, under its name in the list of digests, and its digest as `b3sum` prints it.
    Copied {
        name: String,
        digest: String,
    },
    /// A small file, and what it holds.
    Wrote {
        path: PathBuf,
        digest: blake3::Hash,
    },
}

pub(super) fn act(host: &dyn Host, step: &Step, interrupted: &(dyn Fn() -> bool + Sync)) -> Result<Acted> {
    match step {
        // Claiming is the intent in the journal itself.
        Step::ClaimFile { .. }
        | Step::ClaimCheckpoint { .. }
        | Step::ClaimOverlay { .. }
        | Step::ClaimVolume { .. }
        | Step::ClaimKeptVolumes { .. } => {}
        Step::MakeDir { path } => {
            host.make_dir(path)?;
        }
        Step::WriteFile { path, content } => {
            host.replace(path, content.as_bytes())?;
            return Ok(wrote(path, blake3::hash(content.as_bytes())));
        }
        Step::WriteSpec { path, spec } => host.replace(path, spec.to_json().as_bytes())?,
        Step::CopyFile { from, to } => return Ok(wrote(to, host.copy_file(from, to)?)),
        Step::BringToDisk { paths } => host.bring_to_disk(paths)?,
        Step::CopyTpm { dir, name, at_most, to } => {
            return Ok(wrote(to, host.copy_small(dir, name, *at_most, to)?));
        }
        Step::CloneFile { from, to } => host.clone_file(from, to)?,
        Step::SnapshotVolume(snapshot) => host.snapshot_volume(snapshot)?,
        Step::ReadThinDelta(delta) => host.thin_delta(delta)?,
        Step::MountVolume(mount) => host.mount_volume(mount)?,
        Step::TakeOverlays(request) => host.take_overlays(request)?,
        Step::Freeze { domain, .. } => host.freeze(domain, FREEZE_WITHIN)?,
        Step::Suspend { domain } => host.suspend(domain)?,
        Step::ShutDown { domain, within_secs } => {
            host.shut_down(domain, Duration::from_secs(u64::from(*within_secs)))?;
        }
        Step::StartSuspended { domain } => {
            host.start(domain, Begin::Suspended)?;
        }
        Step::BeginBackup(request) => host.begin_backup(request)?,
        Step::ServeImage(service) => {
            host.serve_image(service)?;
        }
        Step::StartView(service) => return host.start_view(service).map(Acted::Shown),
        Step::KeepDir { path } => {
            // One that is there stays as its owner has made it.
            for dir in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
                if host.entry(dir)? == Entry::Absent {
                    host.make_private_dir(dir)?;
                }
            }
        }
        Step::MakePrivateDir { path } => {
            host.make_private_dir(path)?;
        }
        Step::CopyDisk(copy) => {
            let digest = host.copy_disk(copy, interrupted)?;
            return Ok(Acted::Copied { name: copy.digest_of.clone(), digest });
        }
        Step::Early(_) | Step::Release(_) | Step::IfFrozen { .. } | Step::KeepDump(_) => {
            unreachable!("the session does these itself")
        }
    }
    Ok(Acted::Done)
}

fn wrote(path: &Path, digest: blake3::Hash) -> Acted {
    Acted::Wrote { path: path.to_owned(), digest }
}
