//! What `doctor` tells: is this host ready, and if not, what to do about it.
//! Looks only; changes nothing, not even to try.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use virt_backup::carry::Compression;
use virt_backup::command::Failure;
use virt_backup::core::facts::PullSupport;
use virt_backup::host::{Entry, Files, exec};

use crate::out::say;
use crate::report;
use crate::run::Context;

const NOT_READY: u8 = 1;
/// With less room for scratch files a busy guest ends its own backup soon.
const LITTLE_ROOM: u64 = 4 << 30;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do, unless it is fine.
    remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Fine,
    /// Something works less well, or not.
    Lacking,
    /// Nothing works.
    Missing,
}

pub(crate) fn doctor(context: &Context, json: bool) -> Result<u8, Failure> {
    let findings = [
        privileges(),
        fuse(),
        libvirt(context),
        qemu_programs(),
        backup_dir(context),
        room(context),
        volume_groups(context),
        confinement(),
        compressors(),
        leftovers(context),
    ];
    if json {
        report::print_json(&findings)?;
    } else {
        findings.iter().for_each(print);
    }
    let ready = findings.iter().all(|finding| finding.verdict != Verdict::Missing);
    Ok(if ready { 0 } else { NOT_READY })
}

fn print(finding: &Finding) {
    let mark = match finding.verdict {
        Verdict::Fine => "ok",
        Verdict::Lacking => "LACKING",
        Verdict::Missing => "MISSING",
    };
    say!("{mark:8} {}: {}", finding.what, finding.found);
    if let Some(remedy) = &finding.remedy {
        say!("         {remedy}");
    }
}

fn fine(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, verdict: Verdict::Fine, found: found.into(), remedy: None }
}

fn not(what: &'static str, verdict: Verdict, found: impl Into<String>, remedy: &str) -> Finding {
    Finding { what, verdict, found: found.into(), remedy: Some(remedy.to_owned()) }
}

fn privileges() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => fine("user", "root"),
        false => {
            not("user", Verdict::Missing, "not root", "run it as root: views are mounted, and disks are read")
        }
    }
}

fn fuse() -> Finding {
    match Path::new("/dev/fuse").exists() {
        true => fine("FUSE", "/dev/fuse is there"),
        false => not("FUSE", Verdict::Missing, "/dev/fuse is not there", "modprobe fuse"),
    }
}

fn libvirt(context: &Context) -> Finding {
    const WHAT: &str = "libvirt";
    match context.machine.versions() {
        Ok(versions) => {
            let told: Vec<_> = versions.iter().map(|(uri, version)| format!("{uri}: {version}")).collect();
            let found = told.join("; ");
            if versions.iter().all(|(_, version)| version.pull() == PullSupport::Yes) {
                return fine(WHAT, found);
            }
            let remedy = "pull-mode backups need libvirt 7.2 and QEMU 4.2: methods external and reflink work";
            not(WHAT, Verdict::Lacking, found, remedy)
        }
        Err(error) => {
            let remedy = "is libvirtd (or virtqemud) running? another libvirt is named with --connect";
            not(WHAT, Verdict::Missing, format!("{error:#}"), remedy)
        }
    }
}

fn qemu_programs() -> Finding {
    let missing: Vec<_> = ["qemu-img", "qemu-nbd"]
        .into_iter()
        .filter(|program| !exec::is_installed(Path::new(program)))
        .collect();
    match missing.is_empty() {
        true => fine("qemu-utils", "qemu-img and qemu-nbd are there"),
        false => {
            let remedy = "install qemu-utils: images of guests that are off, convert and archive need them";
            not("qemu-utils", Verdict::Lacking, format!("{} is not there", missing.join(", ")), remedy)
        }
    }
}

fn backup_dir(context: &Context) -> Finding {
    const WHAT: &str = "backup directory";
    let dir = &context.places.backup_dir;
    let path = dir.display();
    match context.machine.entry(dir) {
        Ok(Entry::Absent) => {
            let remedy = format!(
                "mkdir -m 700 -p {path}, mount what should be there, or name another with --backupdir"
            );
            not(WHAT, Verdict::Missing, format!("{path} does not exist"), &remedy)
        }
        Ok(_) => fine(WHAT, path.to_string()),
        Err(error) => not(WHAT, Verdict::Missing, format!("{error:#}"), "look at it"),
    }
}

fn room(context: &Context) -> Finding {
    const WHAT: &str = "room for scratch files";
    let dir = &context.places.state_dir;
    match context.machine.free(dir) {
        Ok(free) if free.0 >= LITTLE_ROOM => fine(WHAT, format!("{free} are free in {}", dir.display())),
        Ok(free) => not(
            WHAT,
            Verdict::Lacking,
            format!("{free} are free in {}", dir.display()),
            "a guest that overwrites more than half of that ends its own backup: see --statedir",
        ),
        Err(error) => not(WHAT, Verdict::Missing, format!("{error:#}"), "look at it, or see --statedir"),
    }
}

/// A thick snapshot of the default size needs as much.
const LITTLE_ROOM_IN_GROUP: u64 = 5 << 30;

fn volume_groups(context: &Context) -> Finding {
    const WHAT: &str = "LVM";
    let groups = match context.machine.volume_groups() {
        Ok(Some(groups)) => groups,
        Ok(None) => return fine(WHAT, "not there, and needed for method lvm only"),
        Err(error) => return not(WHAT, Verdict::Lacking, format!("{error:#}"), "method lvm needs it"),
    };
    let told: Vec<_> = groups.iter().map(|(name, free)| format!("{name} has {free} free")).collect();
    let found = if told.is_empty() { "no volume group".to_owned() } else { told.join("; ") };
    if groups.iter().all(|(_, free)| free.0 >= LITTLE_ROOM_IN_GROUP) {
        return fine(WHAT, found);
    }
    let remedy =
        "a thick snapshot has 5 GiB unless --snapsize says less; a thin one needs none; method pull neither";
    not(WHAT, Verdict::Lacking, found, remedy)
}

fn confinement() -> Finding {
    const WHAT: &str = "confinement of QEMU";
    let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if apparmor.is_ok_and(|enabled| enabled.trim() == "Y") {
        return fine(WHAT, "AppArmor, by libvirt's own profiles");
    }
    if Path::new("/sys/fs/selinux/enforce").exists() {
        let remedy = "not tried with it yet: if QEMU is denied something, `ausearch -m avc` tells what";
        return not(WHAT, Verdict::Lacking, "SELinux is there", remedy);
    }
    fine(WHAT, "neither AppArmor nor SELinux")
}

fn compressors() -> Finding {
    let there = Compression::ALL.into_iter().filter(|compression| *compression != Compression::None);
    let there = there.filter(|compression| virt_backup::carry::check_available(*compression).is_ok());
    let names: Vec<_> = there.map(Compression::name).collect();
    fine("compressors for dumps", names.join(", "))
}

fn leftovers(context: &Context) -> Finding {
    const WHAT: &str = "jobs";
    match report::vms_with_jobs(context) {
        Ok(vms) if vms.is_empty() => fine(WHAT, "none is underway, and nothing is owed"),
        Ok(vms) => {
            let names: Vec<_> = vms.iter().map(ToString::to_string).collect();
            not(
                WHAT,
                Verdict::Lacking,
                names.join(", "),
                "virt-backup status tells whether cleanup is needed",
            )
        }
        Err(error) => not(WHAT, Verdict::Lacking, format!("{error:#}"), "look at the state directory"),
    }
}
