//! The directories of one test, `virt-backup` and a consumer on them, and what must not be left at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::guest::{Disk, Guest, Storage, virsh};
use super::linux::{Agent, Linux};
use super::program;

#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
    pub state: PathBuf,
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Where libvirt has a directory for each QEMU.
const QEMUS: &str = "/var/lib/libvirt/qemu";

impl Ran {
    pub fn ok(self) -> Ran {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }
}

impl Lab {
    #[expect(clippy::new_without_default, reason = "it makes directories")]
    pub fn new() -> Lab {
        let dir = tempfile::Builder::new().prefix("libvirt-lab.").tempdir().unwrap();
        for name in ["b", "images", "copy"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Lab { state: dir.path().join("state"), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A running guest.
    pub fn guest(&self, name: &str, disks: &[Disk]) -> Guest {
        let guest = self.guest_off(name, disks);
        guest.start();
        guest
    }

    /// A guest with an operating system, which is off.
    pub fn linux(&self, name: &str, agent: Agent) -> Linux {
        Linux::define(&self.path("images"), name, agent)
    }

    pub fn guest_off(&self, name: &str, disks: &[Disk]) -> Guest {
        Guest::define(&self.path("images"), name, disks, Storage::Files)
    }

    /// A guest that is off, with its disks in or on what is told.
    pub fn guest_kept(&self, name: &str, disks: &[Disk], storage: Storage) -> Guest {
        Guest::define(&self.path("images"), name, disks, storage)
    }

    /// A running guest whose disks are devices that count what is read from them.
    pub fn guest_on_devices(&self, name: &str, disks: &[Disk]) -> Guest {
        let guest = Guest::define(&self.path("images"), name, disks, Storage::Devices);
        guest.start();
        guest
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("VIRT_BACKUP", "virt-backup"));
        command.env("CHUNKFS", program("CHUNKFS", "chunkfs")).stdin(Stdio::null());
        let backup_dir = format!("--backupdir={}", self.path("b").display());
        command.arg(backup_dir).arg(format!("--statedir={}", self.state.display())).args(words);
        command
    }

    /// The same, as the last arguments of another program: one that limits it, or starts it in its own way.
    pub fn command_under(&self, starter: &[&str], words: &[&str]) -> Command {
        let inner = self.command(words);
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        let ran = self.quiet(words);
        println!("virt-backup {words:?}: {ran:?}");
        ran
    }

    /// As `run`, without a word of it.
    pub fn quiet(&self, words: &[&str]) -> Ran {
        let output = self.command(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let status = output.status.code().unwrap_or(-1);
        Ran { status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["status", "--json"]).stdout).unwrap()
    }

    /// Copies the view as a backup tool would. Gives how many chunk files were read and sent.
    pub fn rsync(&self, vm: &str) -> usize {
        let mut command = Command::new("rsync");
        command.args(["-a", "--delete", "--itemize-changes"]);
        command.arg(format!("{}/", self.path("b").join(vm).display())).arg(self.copy(vm));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let sent = String::from_utf8(output.stdout).unwrap();
        let chunk = |line: &&str| {
            let file = line.strip_prefix(">f").and_then(|rest| rest.split_once(' '));
            file.is_some_and(|(_, path)| path.contains("/00/") && !path.contains(".b3/"))
        };
        sent.lines().filter(chunk).count()
    }

    fn copy(&self, vm: &str) -> PathBuf {
        self.path("copy").join(vm)
    }

    /// The disk in the copy, put together as one would without any of our programs.
    pub fn restored(&self, vm: &str, disk: usize) -> Vec<u8> {
        let tree = self.copy(vm).join(format!("{vm}_vd{}", char::from(b'a' + disk as u8)));
        let mut files = Vec::new();
        collect(&tree, &mut files);
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>().concat()
    }

    /// The copy is what the guest had on its disks.
    pub fn assert_restored(&self, vm: &str, content: &[Vec<u8>]) {
        for (disk, content) in content.iter().enumerate() {
            let restored = self.restored(vm, disk);
            assert_eq!(restored.len(), content.len(), "disk {disk}");
            assert_eq!(
                first_difference(&restored, content),
                None,
                "disk {disk}: the first chunk that differs"
            );
        }
    }

    /// No mount, no mount point, no job, no lock, no journal, no scratch file, no socket, no process.
    pub fn assert_nothing_left(&self, guest: &Guest) {
        self.assert_nothing_left_of(&guest.name);
    }

    /// The same, of any guest.
    pub fn assert_nothing_left_of(&self, vm: &str) {
        assert_eq!(super::lvm::snapshots_of_ours(), [""; 0], "snapshots of volumes");
        self.assert_only_snapshots_left_of(vm);
    }

    /// The same, but for snapshots of volumes, which may be there for the next backup.
    pub fn assert_only_snapshots_left_of(&self, vm: &str) {
        let home = self.state.join(vm);
        let dir = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = |line: &&str| line.contains(" - fuse.chunkfs ") && line.contains(&dir);
        assert_eq!(mounts.lines().find(ours), None, "mounted");
        assert_eq!(names_if_any(&self.path("b")), [""; 0], "in the backup directory");
        let left: Vec<_> =
            names_if_any(&home).into_iter().filter(|n| !["guard", "index", "log"].contains(&&**n)).collect();
        assert_eq!(left, [""; 0], "in the state directory");
        assert_eq!(names_if_any(&self.state.join(".run")), [""; 0], "sockets");
        assert_eq!(names_if_any(Path::new("/run/chunkfs")), [""; 0], "control sockets");
        for domain in names_if_any(Path::new(QEMUS)).iter().filter(|name| name.starts_with("domain-")) {
            let theirs = names_if_any(&Path::new(QEMUS).join(domain));
            assert!(!theirs.iter().any(|name| name.starts_with("virt-backup")), "{domain}: {theirs:?}");
        }
        assert_eq!(daemons(&home), [0; 0], "daemons");
        assert!(!virsh(&["backup-dumpxml", vm]).0, "a backup job runs");
    }

    /// Runs a job on a VM, and kills it as soon as its journal has so many lines. Gives how it ended if it was done before.
    pub fn kill_at_line(&self, vm: &str, words: &[&str], lines: usize) -> Option<ExitStatus> {
        self.kill_when(vm, words, |journal| journal.matches('\n').count() >= lines)
    }

    /// The same, as soon as its journal is as it says.
    pub fn kill_when(&self, vm: &str, words: &[&str], now: impl Fn(&str) -> bool) -> Option<ExitStatus> {
        let journal = self.state.join(vm).join("journal");
        let mut child = self.spawn(words);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status);
            }
            if fs::read_to_string(&journal).is_ok_and(|text| now(&text)) {
                child.kill().unwrap();
                child.wait().unwrap();
                return None;
            }
        }
    }

    /// The process that serves a VM's view.
    pub fn daemon(&self, vm: &str) -> u32 {
        let daemons = daemons(&self.state.join(vm));
        assert_eq!(daemons.len(), 1, "{daemons:?}");
        daemons[0]
    }
}

/// By chunks, for a comparison of bytes takes long.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let size = super::guest::CHUNK as usize;
    a.chunks(size).zip(b.chunks(size)).position(|(a, b)| a != b)
}

/// What is in a directory, which has to be there; sorted.
pub fn names_in(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The same; nothing is in a directory that is not there.
pub fn names_if_any(dir: &Path) -> Vec<String> {
    if dir.exists() { names_in(dir) } else { Vec::new() }
}

/// What the guest would see on an image.
pub fn content_of(image: &Path, format: &str) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", format, "-O", "raw"]).arg(image).arg(&raw);
    assert!(convert.status().unwrap().success());
    fs::read(&raw).unwrap()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => collect(&entry.path(), files),
            false => files.push(entry.path()),
        }
    }
}

/// Processes, other than this one, with a word that begins with a directory of the test.
fn daemons(home: &Path) -> Vec<u32> {
    let home = home.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let program = words.split('\0').next()?.to_owned();
        let ours = program.ends_with("chunkfs") || program.ends_with("qemu-nbd");
        (ours && words.contains(&home)).then_some(pid)
    });
    processes.collect()
}
