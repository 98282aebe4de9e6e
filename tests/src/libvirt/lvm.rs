//! Logical volumes for guests, under a kernel that has them: `scripts/in-vm`. The group `vg0` on a disk of 4 GiB, with a thin
//! pool; gone with the virtual machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Lab, run_again, with_libvirt, workspace};
use crate::process::run_well;

/// Set inside.
const IN_VM: &str = "TEST_IS_IN_A_VM";

/// As `with_libvirt`, in a virtual machine that has LVM.
pub fn in_vm(test: &str, body: impl FnOnce(&Lab)) {
    in_vm_only(test, &[], |lab| {
        make_group();
        body(lab);
    });
}

/// As `with_libvirt`, in a virtual machine in which QEMU is not root, and AppArmor enforces libvirt's profiles for it.
pub fn in_vm_confined(test: &str, body: impl FnOnce(&Lab)) {
    in_vm_only(test, &[("CONFINED", "yes")], body);
}

fn in_vm_only(test: &str, settings: &[(&str, &str)], body: impl FnOnce(&Lab)) {
    if std::env::var_os(IN_VM).is_some() {
        return with_libvirt(test, body);
    }
    let mut command = Command::new(workspace().join("scripts/in-vm"));
    run_again(command.env(IN_VM, "1").envs(settings.iter().copied()), test);
}

fn make_group() {
    run_well("pvcreate", &["-q", "/dev/vda"]);
    run_well("vgcreate", &["-q", "vg0", "/dev/vda"]);
    run_well("lvcreate", &["-q", "-L", "512M", "-T", "vg0/pool"]);
}

/// Does LVM allocate at once, or as it is written to?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    Thick,
    Thin,
}

/// A volume that is removed with its test.
#[derive(Debug)]
pub struct LogicalVolume {
    pub device: PathBuf,
}

impl LogicalVolume {
    pub fn make(name: &str, mib: u64, provisioning: Provisioning) -> LogicalVolume {
        let size = format!("{mib}M");
        let how = match provisioning {
            Provisioning::Thick => ["-L", &size, "vg0"].to_vec(),
            Provisioning::Thin => ["-V", &size, "-T", "vg0/pool"].to_vec(),
        };
        run_well("lvcreate", &[&["-q", "-y", "-n", name], &how[..]].concat());
        LogicalVolume { device: Path::new("/dev/vg0").join(name) }
    }

    /// The images of the lab are on its file system from now on.
    pub fn carry_images(&self, lab: &Lab, kind: &str) -> Carried {
        let (device, point) = (self.device.to_str().unwrap(), lab.path("images"));
        run_well(&format!("mkfs.{kind}"), &["-q", device]);
        run_well("mount", &["-t", kind, device, point.to_str().unwrap()]);
        Carried { point }
    }
}

impl Drop for LogicalVolume {
    fn drop(&mut self) {
        // What still uses it is the test's failure, not this one's.
        let words = ["-q", "-y", self.device.to_str().unwrap()];
        drop(Command::new("lvremove").args(words).stdout(Stdio::null()).status());
    }
}

/// The directory of images, for as long as it is a volume's file system.
#[derive(Debug)]
pub struct Carried {
    point: PathBuf,
}

impl Drop for Carried {
    fn drop(&mut self) {
        run_well("umount", &[self.point.to_str().unwrap()]);
    }
}

/// The snapshots that are there, with their tags.
pub fn snapshots_of_ours() -> Vec<String> {
    if !Path::new("/dev/mapper/control").exists() {
        return Vec::new();
    }
    let words = ["--noheadings", "--separator", " ", "-o", "lv_name,lv_tags", "--select", "lv_tags!=\"\""];
    let output = Command::new("lvs").args(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// How full the snapshots of ours are, in percent.
pub fn fullness() -> Vec<String> {
    let words = ["--noheadings", "-o", "lv_attr,data_percent", "--select", "lv_tags!=\"\""];
    let output = Command::new("lvs").args(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// The mounts below a directory.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = format!(" {}", dir.display());
    mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned).collect()
}
