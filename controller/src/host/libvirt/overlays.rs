//! Overlays: the guest writes to them while its images are read, and gets its images back with all it has written.
//! An overlay is removed only when the guest's fresh description proves that nothing uses it any more.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use virt::domain::Domain;
use virt::sys;

use crate::core::domain::{DomainId, Format};
use crate::core::step::{Overlay, OverlayRequest};
use crate::host::machine::Machine;
use crate::host::{Entry, Files, Removal, bitmaps, exec};

use super::ffi::{self, JobEnd, Of};
use super::{active, told, xml};

/// A merge that gets nowhere for so long is given up; the overlay stays, and a later cleanup tries again.
const NO_PROGRESS_WITHIN: Duration = Duration::from_secs(120);
/// To merge an overlay while the guest is off. Limited by the disks alone.
const OFFLINE_WITHIN: Duration = Duration::from_secs(24 * 3600);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The guest may be started or stopped meanwhile: then the other way is tried.
const ATTEMPTS: usize = 4;

pub(super) fn take(domain: &Domain, request: &OverlayRequest) -> Result<()> {
    let of = if request.memory.is_some() { Of::DisksAndMemory } else { Of::DisksAlone };
    ffi::snapshot(domain, &xml::snapshot_of(request), of).map_err(told)
}

pub(super) fn merge(machine: &Machine, id: &DomainId, overlay: &Overlay) -> Result<Removal> {
    let Some(domain) = machine.guests.get(id)? else { return gone(machine, overlay) };
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let now = disk_now(&domain, overlay)?;
        match now.file.as_deref() {
            Some(file) if file == overlay.base && now.job.is_none() => {
                return remove(machine, &domain, overlay);
            }
            Some(file) if file == overlay.overlay => {}
            file => bail!(
                "{} is on {} and not on {}: nothing was merged, and {} stays: see what it holds",
                overlay.target,
                file.map_or("nothing".into(), |file| file.display().to_string()),
                overlay.overlay.display(),
                overlay.overlay.display()
            ),
        }
        let outcome = match active(&domain)? {
            true => while_it_runs(&domain, overlay),
            false => while_it_is_off(machine, &domain, overlay),
        };
        last = outcome.err();
    }
    let why = last.unwrap_or_else(|| anyhow!("the guest is started and stopped all the time"));
    Err(why.context(format!(
        "{} stays, with all the guest has written: once the reason is gone, run cleanup again",
        overlay.overlay.display()
    )))
}

/// Without the domain nobody knows what the overlay belongs to; one that is not there belongs to nothing.
fn gone(files: &dyn Files, overlay: &Overlay) -> Result<Removal> {
    match files.entry(&overlay.overlay)? {
        Entry::Absent => Ok(Removal::AlreadyGone),
        _ => bail!(
            "the domain is gone, and {} may hold what its guest has written: merge it with `qemu-img commit`, or \
             remove it",
            overlay.overlay.display()
        ),
    }
}

fn disk_now(domain: &Domain, overlay: &Overlay) -> Result<xml::DiskNow> {
    let text = domain.xml_desc(0).map_err(told)?;
    let now = xml::disk_now(&text, &overlay.target).context("understand the domain's XML")?;
    // Pulled out of the guest: then it is on nothing, and what the overlay holds is not for us to judge.
    Ok(now.unwrap_or(xml::DiskNow { file: None, job: None }))
}

/// An active commit, until it keeps up with the guest, then the guest goes on with the image.
fn while_it_runs(domain: &Domain, overlay: &Overlay) -> Result<()> {
    let target = overlay.target.as_str();
    if disk_now(domain, overlay)?.job.is_none() {
        let (top, base) = (text_of(&overlay.overlay)?, text_of(&overlay.base)?);
        ffi::begin_commit(domain, target, top, base).map_err(told)?;
    }
    let (mut come, mut since) = (None, Instant::now());
    loop {
        let now = disk_now(domain, overlay)?;
        let Some(job) = now.job else {
            // It has ended by itself: by an error, unless the guest is on its image, which the caller sees.
            if now.file.as_deref() == Some(&overlay.base) {
                return Ok(());
            }
            bail!("merging {target} failed: is the file system of {} full?", overlay.base.display());
        };
        if job.into.as_deref() != Some(&overlay.base) {
            bail!("a block job that is not ours works on {target}");
        }
        if job.ready {
            return ffi::end_block_job(domain, target, JobEnd::Pivot)
                .map_err(told)
                .with_context(|| format!("let {target} go on with {}", overlay.base.display()));
        }
        let progress = ffi::block_job(domain, target).map_err(told)?;
        if progress != come {
            (come, since) = (progress, Instant::now());
        }
        if since.elapsed() > NO_PROGRESS_WITHIN {
            ffi::end_block_job(domain, target, JobEnd::GiveUp).map_err(told)?;
            bail!("merging {target} makes no progress");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// `qemu-img commit`, which fails on an image that a guest uses. Then the definition is put back to the image.
fn while_it_is_off(machine: &Machine, domain: &Domain, overlay: &Overlay) -> Result<()> {
    if machine.entry(&overlay.overlay)? != Entry::Absent {
        carry_bitmaps_over(overlay)?;
        let words = ["commit".into(), "-q".into(), "-f".into(), "qcow2".into(), "-b".into()];
        let words = words.into_iter().chain([overlay.base.clone().into(), overlay.overlay.clone().into()]);
        let words: Vec<OsString> = words.collect();
        exec::run(Path::new("qemu-img"), &words, OFFLINE_WITHIN).context("qemu-img commit")?;
        let base = std::fs::File::open(&overlay.base).and_then(|base| base.sync_all());
        base.with_context(|| format!("bring {} to the disk", overlay.base.display()))?;
    }
    define_on_base(machine, domain, overlay)
}

fn define_on_base(machine: &Machine, domain: &Domain, overlay: &Overlay) -> Result<()> {
    let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
    let text = domain.xml_desc(flags).map_err(told)?;
    if let Some(text) = xml::without_overlay(&text, overlay).context("understand the definition")? {
        machine.guests.define_beside(domain, &text).context("define the domain on its image again")?;
    }
    Ok(())
}

/// Bitmaps of both images go on to say what has changed. One that cannot be merged is removed: a bitmap that is missing
/// makes the next backup compare everything, one that is short makes it lose changes.
fn carry_bitmaps_over(overlay: &Overlay) -> Result<()> {
    if overlay.base_format != Format::Qcow2 {
        return Ok(());
    }
    let above = bitmaps::names(&overlay.overlay)?;
    for name in bitmaps::names(&overlay.base)? {
        let merged = above.contains(&name) && bitmaps::merge(&overlay.base, &name, &overlay.overlay).is_ok();
        if !merged {
            bitmaps::remove(&overlay.base, &name)?;
        }
    }
    Ok(())
}

/// The proof: neither the running guest nor its definition mentions the overlay.
fn remove(machine: &Machine, domain: &Domain, overlay: &Overlay) -> Result<Removal> {
    if domain.is_persistent().map_err(told)? {
        define_on_base(machine, domain, overlay)?;
    }
    let flags = sys::VIR_DOMAIN_XML_INACTIVE;
    for flags in [0, flags] {
        let text = domain.xml_desc(flags).map_err(told)?;
        if xml::mentions(&text, &overlay.overlay).context("understand the domain's XML")? {
            bail!("the domain still mentions {}: it stays", overlay.overlay.display());
        }
    }
    machine.remove_file(&overlay.overlay)
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
