//! A guest with an operating system: Debian's own kernel, a busybox that writes numbered lines to an ext4 disk for as
//! long as it runs, and Debian's own guest agent. Boots in some seconds, without KVM too.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{virsh, virsh_ok, workspace};

/// In the order in which they need each other.
const MODULES: [&str; 13] = [
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
    "drivers/char/virtio_console.ko",
];

/// Besides the kernel's.
const PACKAGES: [&str; 2] = ["busybox-static", "qemu-guest-agent"];

/// What the guest does. A line that it has printed was on its disk before: so nobody who has read it may lose it.
/// Its agent runs where there is a channel for it; before it freezes anything, it takes as many seconds as `/slow` says.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /run /tmp
/bin/busybox --install -s /bin
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
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] || continue
    /bin/qemu-ga --path="/dev/${port##*/}" --statedir=/run --logfile=/run/agent.log --fsfreeze-hook=/bin/hook &
done
number=${last:-0}
while :; do
    number=$((number + 1))
    echo "$number" >> /mnt/lines
    /bin/busybox sync
    echo "line $number."
done
"#;

const HOOK: &str = "#!/bin/sh\n[ \"$1\" != freeze ] || [ ! -f /slow ] || sleep \"$(cat /slow)\"\n";

/// Is there a channel for the guest's agent?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Absent,
    Present,
}

#[derive(Debug)]
pub struct Linux {
    pub name: String,
    pub image: PathBuf,
    console: PathBuf,
}

impl Linux {
    /// Defines the guest, with an empty file system; it is off.
    pub fn define(dir: &Path, name: &str, agent: Agent) -> Linux {
        let (kernel, initrd) = kernel();
        let (image, console) = (dir.join(format!("{name}.raw")), dir.join(format!("{name}.console")));
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let channel = match agent {
            Agent::Absent => "",
            Agent::Present => {
                "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
            }
        };
        let text = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 quiet panic=1</cmdline></os><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'>\
             <driver name='qemu' type='raw'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
             <serial type='file'><source path='{}'/></serial>{channel}</devices></domain>",
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

    /// One that was restored from another, defined and off. It prints to a file of its own from now on.
    pub fn restored(dir: &Path, name: &str, image: PathBuf, from: &Linux) -> Linux {
        let console = dir.join(format!("{name}.console"));
        let text = virsh_ok(&["dumpxml", "--inactive", name]);
        let (theirs, ours) = (from.console.to_str().unwrap(), console.to_str().unwrap());
        assert!(text.contains(theirs), "{text}");
        let xml = dir.join(format!("{name}.xml"));
        fs::write(&xml, text.replace(theirs, ours)).unwrap();
        virsh_ok(&["define", xml.to_str().unwrap()]);
        Linux { name: name.to_owned(), image, console }
    }

    /// All that it has printed since it was started or resumed.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The numbers of the lines that it has printed, each of which was on its disk before.
    pub fn numbers(&self) -> Vec<u64> {
        let number = |line: &str| line.trim().strip_prefix("line ")?.strip_suffix('.')?.parse().ok();
        self.printed().lines().filter_map(number).collect()
    }

    /// The number of the last line that is known to be on its disk.
    pub fn lines_on_disk(&self) -> u64 {
        self.numbers().last().copied().unwrap_or(0)
    }

    /// Waits until it has come up; gives how many lines it found, and how many of them were out of order.
    pub fn wait_until_it_lives(&self) -> (u64, u64) {
        let lives = |line: &str| {
            let (lines, bad) = line.trim().strip_prefix("GUEST LIVES with ")?.split_once(" lines, ")?;
            Some((lines.parse().ok()?, bad.strip_suffix(" out of order")?.parse().ok()?))
        };
        let found = || self.printed().lines().find_map(lives);
        wait_for(&self.name, Duration::from_secs(180), found)
    }

    /// Waits until its agent answers.
    pub fn wait_for_agent(&self) {
        let ping = json!({ "execute": "guest-ping" }).to_string();
        let answers = || virsh(&["qemu-agent-command", &self.name, "--timeout", "5", &ping]).0.then_some(());
        wait_for("an answer of the agent", Duration::from_secs(120), answers);
    }

    /// What its agent answers.
    pub fn agent(&self, command: &str, arguments: Value) -> Value {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        let answer: Value =
            serde_json::from_str(&virsh_ok(&["qemu-agent-command", &self.name, &text])).unwrap();
        answer["return"].clone()
    }

    /// Has the guest's shell do this, in the background; nobody waits for it.
    pub fn shell(&self, script: &str) {
        self.agent("guest-exec", json!({ "path": "/bin/sh", "arg": ["-c", script] }));
    }

    /// Waits until it has written that many lines.
    pub fn wait_for_line(&self, line: u64) -> u64 {
        let what = format!("{}: line {line}", self.name);
        wait_for(&what, Duration::from_secs(180), || Some(self.lines_on_disk()).filter(|now| *now >= line))
    }

    /// The longest time in which it printed nothing while something was done. To a few thousandths of a second, and a line
    /// that a backup makes wait is not told from one that a busy machine does.
    pub fn longest_silence(&self, act: impl FnOnce()) -> Duration {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let listener = scope.spawn(|| {
                let (mut printed, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
                while !done.load(Ordering::Relaxed) {
                    let now = fs::metadata(&self.console).unwrap().len();
                    longest = longest.max(since.elapsed());
                    if now != printed {
                        (printed, since) = (now, Instant::now());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                longest
            });
            act();
            done.store(true, Ordering::Relaxed);
            listener.join().unwrap()
        })
    }

    /// It writes on: some lines more than it had written.
    pub fn assert_writes_on(&self) {
        self.wait_for_line(self.lines_on_disk() + 3);
    }
}

fn wait_for<T>(what: &str, within: Duration, found: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The lines in the file system of a raw image, each number once and in order, after its journal was recovered as after a
/// power cut. The image is changed by that.
pub fn lines_in(image: &Path) -> u64 {
    let check = |words: &[&str]| Command::new("e2fsck").args(words).arg(image).output().unwrap();
    let recovered = check(&["-p"]);
    assert!(matches!(recovered.status.code(), Some(0 | 1)), "{recovered:?}");
    let clean = check(&["-f", "-n"]);
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    let lines = Command::new("debugfs").args(["-R", "cat /lines"]).arg(image).output().unwrap();
    let lines = String::from_utf8(lines.stdout).unwrap();
    let lines: Vec<u64> = lines.lines().map_while(|line| line.parse().ok()).collect();
    assert_eq!(lines, (1..=lines.len() as u64).collect::<Vec<_>>(), "every line once, in order");
    lines.len() as u64
}

/// Has the file system in a raw image to be recovered by its journal before it is used? One that a guest has mounted
/// has, unless it is frozen.
pub fn needs_recovery(image: &Path) -> bool {
    let output = Command::new("dumpe2fs").arg("-h").arg(image).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let features = text.lines().find_map(|line| line.strip_prefix("Filesystem features:"));
    features.expect("dumpe2fs tells the features").contains("needs_recovery")
}

/// The kernel and an initramfs, made once and kept among the build's files.
fn kernel() -> (PathBuf, PathBuf) {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let mut contents = DefaultHasher::new();
    (INIT, HOOK, MODULES, PACKAGES).hash(&mut contents);
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
    let download = ["-q", "download", &image];
    run(Command::new("apt-get").args(download).args(PACKAGES).current_dir(work.path()));
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
    fs::write(root.join("bin/hook"), HOOK).unwrap();
    run(Command::new("chmod").args(["755", "init", "bin/hook"]).current_dir(&root));
    add_with_libraries(&work.path().join("x/usr/sbin/qemu-ga"), &root);
    let archive = work.path().join("initrd");
    let script = format!("find . | ./bin/busybox cpio -o -H newc > '{}'", archive.display());
    run(Command::new("sh").args(["-c", &script]).current_dir(&root));
    let version = modules.file_name().unwrap().to_str().unwrap().to_owned();
    fs::rename(work.path().join("x/boot").join(format!("vmlinuz-{version}")), kernel).unwrap();
    // Last, for it says that all is there.
    fs::rename(archive, initrd).unwrap();
}

/// The libraries are this machine's: those that its QEMU has are those that the agent needs.
fn add_with_libraries(program: &Path, root: &Path) {
    fs::copy(program, root.join("bin").join(program.file_name().unwrap())).unwrap();
    let output = Command::new("ldd").arg(program).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !told.contains("not found"), "{told}");
    for library in told.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(library, place).unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
