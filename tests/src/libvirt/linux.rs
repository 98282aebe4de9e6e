//! A guest with an operating system: Debian's own kernel and a busybox, which write numbered lines to an ext4 disk for as
//! long as they run. Boots in some seconds, without KVM too.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{virsh_ok, workspace};

/// In the order in which they need each other.
const MODULES: [&str; 12] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "lib/crc16.ko",
    "crypto/crc32c_generic.ko",
    "lib/libcrc32c.ko",
    "fs/mbcache.ko",
    "fs/jbd2/jbd2.ko",
    "fs/ext4/ext4.ko",
];

/// What the guest does. A line that it has printed was on its disk before: so nobody who has read it may lose it.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod "/lib/$module"; done
/bin/busybox mount -t ext4 /dev/vda /mnt || { echo "GUEST FAILED"; /bin/busybox poweroff -f; }
[ -f /mnt/lines ] || : > /mnt/lines
last=$(/bin/busybox tail -n 1 /mnt/lines)
bad=$(/bin/busybox awk 'BEGIN { wanted = 1 } { if ($1 != wanted) bad++; wanted = $1 + 1 } END { print bad + 0 }' /mnt/lines)
echo "GUEST LIVES with ${last:-0} lines, $bad out of order"
number=${last:-0}
while :; do
    number=$((number + 1))
    echo "$number" >> /mnt/lines
    /bin/busybox sync
    echo "line $number."
done
"#;

#[derive(Debug)]
pub struct Linux {
    pub name: String,
    pub image: PathBuf,
    console: PathBuf,
}

impl Linux {
    /// Defines the guest, with an empty file system; it is off.
    pub fn define(dir: &Path, name: &str) -> Linux {
        let (kernel, initrd) = kernel();
        let (image, console) = (dir.join(format!("{name}.raw")), dir.join(format!("{name}.console")));
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let text = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 quiet panic=1</cmdline></os><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'>\
             <driver name='qemu' type='raw'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
             <serial type='file'><source path='{}'/></serial></devices></domain>",
            kernel.display(),
            initrd.display(),
            image.display(),
            console.display()
        );
        let xml = dir.join(format!("{name}.xml"));
        fs::write(&xml, text).unwrap();
        virsh_ok(&["define", xml.to_str().unwrap()]);
        Linux { name: name.to_owned(), image, console }
    }

    /// The number of the last line that is known to be on its disk.
    pub fn lines_on_disk(&self) -> u64 {
        let printed = fs::read(&self.console).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let number = |line: &str| line.trim().strip_prefix("line ")?.strip_suffix('.')?.parse().ok();
        printed.lines().rev().find_map(number).unwrap_or(0)
    }

    /// Waits until it has written that many lines.
    pub fn wait_for_line(&self, line: u64) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let now = self.lines_on_disk();
            if now >= line {
                return now;
            }
            assert!(Instant::now() < deadline, "{}: line {now}, not {line}", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The kernel and an initramfs, made once and kept among the build's files.
fn kernel() -> (PathBuf, PathBuf) {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let mut contents = DefaultHasher::new();
    (INIT, MODULES).hash(&mut contents);
    let dir = target.join(format!("test-linux-{:x}", contents.finish()));
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let (kernel, initrd) = (dir.join("vmlinuz"), dir.join("initrd"));
    if !initrd.exists() {
        make(&dir, &kernel, &initrd);
    }
    (kernel, initrd)
}

fn make(dir: &Path, kernel: &Path, initrd: &Path) {
    let work = tempfile::Builder::new().prefix("test-linux.").tempdir_in(dir).unwrap();
    let depends = Command::new("apt-cache").args(["depends", "linux-image-amd64"]).output().unwrap();
    let depends = String::from_utf8(depends.stdout).unwrap();
    let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let image = image.expect("apt knows linux-image-amd64: run apt-get update").to_owned();
    run(Command::new("apt-get").args(["-q", "download", &image, "busybox-static"]).current_dir(work.path()));
    for entry in fs::read_dir(work.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").arg(entry).arg(work.path().join("x")));
        }
    }
    let root = work.path().join("root");
    for dir in ["bin", "lib"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(work.path().join("x/bin/busybox"), root.join("bin/busybox")).unwrap();
    let mut names = String::new();
    let modules = fs::read_dir(work.path().join("x/lib/modules")).unwrap().next().unwrap().unwrap().path();
    for module in MODULES {
        let name = Path::new(module).file_name().unwrap();
        fs::copy(modules.join("kernel").join(module), root.join("lib").join(name)).unwrap();
        names.push_str(&format!("{}\n", name.to_str().unwrap()));
    }
    fs::write(root.join("modules"), names).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    run(Command::new("chmod").args(["755", "init"]).current_dir(&root));
    let archive = work.path().join("initrd");
    let script = format!("find . | ./bin/busybox cpio -o -H newc > '{}'", archive.display());
    run(Command::new("sh").args(["-c", &script]).current_dir(&root));
    let version = modules.file_name().unwrap().to_str().unwrap().to_owned();
    fs::rename(work.path().join("x/boot").join(format!("vmlinuz-{version}")), kernel).unwrap();
    // Last, for it says that all is there.
    fs::rename(archive, initrd).unwrap();
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
