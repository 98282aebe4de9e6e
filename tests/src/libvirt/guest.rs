//! A guest without an operating system: SeaBIOS idles, and the test writes through QEMU as the guest would.
//! What it has written is remembered, so that every backup can be compared byte for byte.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::device::LoopDevice;
use super::lvm::{LogicalVolume, Provisioning};
use super::monitor::Monitor;

pub(super) const CHUNK: u64 = 256 << 10;
/// In MiB.
const LARGEST_REMEMBERED: u64 = 1 << 10;
/// For the tables of a qcow2 image, which cannot grow beyond its device.
const TABLES: u64 = 4 << 20;

/// A disk of a guest that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub format: &'static str,
    pub mib: u64,
}

#[derive(Debug)]
pub struct Guest {
    pub name: String,
    pub images: Vec<PathBuf>,
    /// What the guest has on each disk. Nothing is remembered of one that is too large for it.
    pub content: Vec<Vec<u8>>,
    dir: PathBuf,
    devices: Vec<LoopDevice>,
    _volumes: Vec<LogicalVolume>,
}

/// What the disks of a guest are for its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Files,
    /// Loop devices past the page cache, so that the kernel counts what is read.
    Devices,
    Volumes(Provisioning),
}

pub fn virsh(words: &[&str]) -> (bool, String) {
    let output = Command::new("virsh").args(["-q", "-c", "qemu:///system"]).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

pub fn virsh_ok(words: &[&str]) -> String {
    let (fine, text) = virsh(words);
    assert!(fine, "virsh {words:?}: {text}");
    text
}

impl Guest {
    /// Defines a guest with these disks, vda and so on; it is off.
    pub fn define(dir: &Path, name: &str, disks: &[Disk], storage: Storage) -> Guest {
        let (images, content, devices, _volumes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut guest =
            Guest { name: name.to_owned(), images, content, dir: dir.to_owned(), devices, _volumes };
        let mut devices = String::new();
        for (number, disk) in disks.iter().enumerate() {
            let letter = char::from(b'a' + number as u8);
            let file = format!("{name}-{letter}.{}", disk.format);
            let image = match storage {
                Storage::Files | Storage::Devices => dir.join(file),
                Storage::Volumes(provisioning) => {
                    let tables = if disk.format == "raw" { 0 } else { TABLES >> 20 };
                    let volume = LogicalVolume::make(&file, disk.mib + tables, provisioning);
                    let device = volume.device.clone();
                    guest._volumes.push(volume);
                    device
                }
            };
            let made = Command::new("qemu-img")
                .args(["create", "-q", "-f", disk.format])
                .arg(&image)
                .arg(format!("{}M", disk.mib))
                .status();
            assert!(made.unwrap().success());
            let (kind, attribute, path, cache) = match storage {
                Storage::Files => ("file", "file", image.clone(), ""),
                Storage::Volumes(_) => ("block", "dev", image.clone(), " cache='none'"),
                Storage::Devices => {
                    let tables = if disk.format == "raw" { 0 } else { TABLES };
                    let device = LoopDevice::attach(&image, (disk.mib << 20) + tables);
                    let path = device.path.clone();
                    guest.devices.push(device);
                    ("block", "dev", path, " cache='none'")
                }
            };
            write!(
                devices,
                "<disk type='{kind}' device='disk'><driver name='qemu' type='{}'{cache}/><source {attribute}='{}'/>\
                 <target dev='vd{letter}' bus='virtio'/></disk>",
                disk.format,
                path.display()
            )
            .unwrap();
            guest.images.push(image);
            let remembered = if disk.mib > LARGEST_REMEMBERED { 0 } else { disk.mib << 20 };
            guest.content.push(vec![0; remembered as usize]);
        }
        let xml = dir.join(format!("{name}.xml"));
        let text = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"
        );
        fs::write(&xml, text).unwrap();
        virsh_ok(&["define", xml.to_str().unwrap()]);
        guest
    }

    /// Gives QEMU a second monitor, from its next start on.
    pub fn add_monitor(&self) {
        let xml = virsh_ok(&["dumpxml", "--inactive", &self.name]);
        let namespace = "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ";
        let socket = self.monitor_socket();
        let words = format!(
            "<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:{},server=on,wait=off'/></qemu:commandline>",
            socket.display()
        );
        let xml = xml.replacen("<domain ", namespace, 1).replace("</domain>", &(words + "</domain>"));
        let file = socket.with_extension("xml");
        fs::write(&file, xml).unwrap();
        virsh_ok(&["define", file.to_str().unwrap()]);
    }

    pub fn monitor(&self) -> Monitor {
        Monitor::connect(&self.monitor_socket())
    }

    fn monitor_socket(&self) -> PathBuf {
        self.dir.join(format!("{}.qmp", self.name))
    }

    pub fn start(&self) {
        virsh_ok(&["start", &self.name]);
    }

    pub fn power_off(&self) {
        virsh_ok(&["destroy", &self.name]);
    }

    /// To its QEMU: after TERM the guest has ended by itself, after KILL it has crashed.
    pub fn signal(&self, signal: Signal) {
        let text = fs::read_to_string(format!("/run/libvirt/qemu/{}.pid", self.name)).unwrap();
        let qemu = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(qemu, signal).unwrap();
    }

    /// Writes as the guest would. QEMU says how it went to nobody: `assert_content` tells.
    pub fn write(&mut self, disk: usize, byte: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("write -P {byte} {offset} {length}"));
        let content = &mut self.content[disk];
        if !content.is_empty() {
            content[offset as usize..(offset + length) as usize].fill(byte);
        }
    }

    /// A few bytes in each of these chunks.
    pub fn write_chunks(&mut self, disk: usize, byte: u8, chunks: impl IntoIterator<Item = u64>) {
        for chunk in chunks {
            self.write(disk, byte, chunk * CHUNK + 8192, 4096);
        }
    }

    /// What it has written is on its disks, whatever becomes of its QEMU.
    pub fn flush(&self) {
        (0..self.images.len()).for_each(|disk| self.qemu_io(disk, "flush"));
    }

    /// libvirt has noticed that its QEMU is gone.
    pub fn wait_until_off(&self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !virsh_ok(&["domstate", &self.name]).contains("shut off") {
            assert!(std::time::Instant::now() < deadline, "{} is still there", self.name);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// All that the guest has written is in its images, whether it runs or not.
    pub fn assert_content(&self) {
        for (disk, image) in self.images.iter().enumerate() {
            if virsh_ok(&["domstate", &self.name]).contains("running") {
                self.qemu_io(disk, "flush");
            }
            let format = image.extension().unwrap().to_str().unwrap();
            let now = super::lab::content_of(image, format);
            let differs = super::lab::first_difference(&now, &self.content[disk]);
            assert_eq!(
                (differs, now.len()),
                (None, self.content[disk].len()),
                "disk {disk}: where it differs"
            );
        }
    }

    fn qemu_io(&self, disk: usize, command: &str) {
        let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
        let hmp = format!("qemu-io -d {device} \"{command}\"");
        let answer = virsh_ok(&["qemu-monitor-command", "--hmp", &self.name, &hmp]);
        assert_eq!(answer.trim(), "", "{command}");
    }

    /// Bytes that were read from a disk's device so far. QEMU's own statistics leave out what a backup reads.
    pub fn bytes_read(&self, disk: usize) -> u64 {
        self.devices[disk].bytes_read()
    }

    /// Definition, as it runs and as it is stored, and the graph of block nodes of a QEMU that is there: what a backup
    /// must leave as it was.
    pub fn shape(&self) -> String {
        let running = virsh_ok(&["dumpxml", &self.name]);
        let stored = virsh_ok(&["dumpxml", "--inactive", &self.name]);
        if virsh_ok(&["domstate", &self.name]).trim() == "shut off" {
            return stored;
        }
        let nodes = self.qmp(r#"{"execute":"query-named-block-nodes"}"#);
        let node = |node: &Value| format!("{}: {}, {}\n", node["node-name"], node["drv"], node["file"]);
        let mut nodes: Vec<_> = nodes.as_array().unwrap().iter().map(node).collect();
        nodes.sort();
        running + &stored + &nodes.concat()
    }

    /// What QEMU answers to a command in JSON.
    pub fn qmp(&self, command: &str) -> Value {
        let text = virsh_ok(&["qemu-monitor-command", &self.name, command]);
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["return"].clone()
    }

    /// The names of the checkpoints.
    pub fn checkpoints(&self) -> Vec<String> {
        let text = virsh_ok(&["checkpoint-list", "--name", &self.name]);
        text.split_whitespace().map(str::to_owned).collect()
    }

    pub fn has_backup_job(&self) -> bool {
        virsh(&["backup-dumpxml", &self.name]).0
    }
}
