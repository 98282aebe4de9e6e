//! A guest without an operating system: SeaBIOS idles, and the test writes through QEMU as the guest would.
//! What it has written is remembered, so that every backup can be compared byte for byte.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) const CHUNK: u64 = 256 << 10;

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
    /// What the guest has on each disk.
    pub content: Vec<Vec<u8>>,
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
    pub fn define(dir: &Path, name: &str, disks: &[Disk]) -> Guest {
        let mut guest = Guest { name: name.to_owned(), images: Vec::new(), content: Vec::new() };
        let mut devices = String::new();
        for (number, disk) in disks.iter().enumerate() {
            let letter = char::from(b'a' + number as u8);
            let image = dir.join(format!("{name}-{letter}.{}", disk.format));
            let made = Command::new("qemu-img")
                .args(["create", "-q", "-f", disk.format])
                .arg(&image)
                .arg(format!("{}M", disk.mib))
                .status();
            assert!(made.unwrap().success());
            write!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/>\
                 <target dev='vd{letter}' bus='virtio'/></disk>",
                disk.format,
                image.display()
            )
            .unwrap();
            guest.images.push(image);
            guest.content.push(vec![0; (disk.mib << 20) as usize]);
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

    pub fn start(&self) {
        virsh_ok(&["start", &self.name]);
    }

    pub fn power_off(&self) {
        virsh_ok(&["destroy", &self.name]);
    }

    /// Writes as the guest would. QEMU says how it went to nobody: `assert_content` tells.
    pub fn write(&mut self, disk: usize, byte: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("write -P {byte} {offset} {length}"));
        self.content[disk][offset as usize..(offset + length) as usize].fill(byte);
    }

    /// A few bytes in each of these chunks.
    pub fn write_chunks(&mut self, disk: usize, byte: u8, chunks: impl IntoIterator<Item = u64>) {
        for chunk in chunks {
            self.write(disk, byte, chunk * CHUNK + 8192, 4096);
        }
    }

    /// All that the guest has written is in its images, whether it runs or not.
    pub fn assert_content(&self) {
        for (disk, image) in self.images.iter().enumerate() {
            if virsh_ok(&["domstate", &self.name]).contains("running") {
                self.qemu_io(disk, "flush");
            }
            let raw = image.with_extension("now");
            let format = image.extension().unwrap().to_str().unwrap();
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-U", "-f", format, "-O", "raw"]).arg(image).arg(&raw);
            assert!(convert.status().unwrap().success());
            let now = fs::read(&raw).unwrap();
            let differs = super::lab::first_difference(&now, &self.content[disk]);
            assert_eq!(
                (differs, now.len()),
                (None, self.content[disk].len()),
                "disk {disk}: where it differs"
            );
            fs::remove_file(raw).unwrap();
        }
    }

    fn qemu_io(&self, disk: usize, command: &str) {
        let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
        let hmp = format!("qemu-io -d {device} \"{command}\"");
        let answer = virsh_ok(&["qemu-monitor-command", "--hmp", &self.name, &hmp]);
        assert_eq!(answer.trim(), "", "{command}");
    }

    /// Bytes that QEMU has read from a disk's image so far, for the guest or for a backup.
    pub fn bytes_read(&self, disk: usize) -> u64 {
        let text = virsh_ok(&[
            "qemu-monitor-command",
            &self.name,
            r#"{"execute":"query-blockstats","arguments":{"query-nodes":true}}"#,
        ]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let file = self.images[disk].to_str().unwrap().to_owned();
        let nodes =
            virsh_ok(&["qemu-monitor-command", &self.name, r#"{"execute":"query-named-block-nodes"}"#]);
        let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
        let storage = nodes["return"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["drv"] == "file" && node["file"] == file.as_str());
        let name = storage.unwrap()["node-name"].clone();
        let stats = answer["return"].as_array().unwrap().iter().find(|node| node["node-name"] == name);
        stats.unwrap()["stats"]["rd_bytes"].as_u64().unwrap()
    }

    /// Definition and block graph: what a backup must leave as it was.
    pub fn shape(&self) -> String {
        let graph = virsh_ok(&["domblklist", "--details", &self.name]);
        virsh_ok(&["dumpxml", "--inactive", &self.name]) + &graph
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
