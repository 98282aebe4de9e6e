//! The guest mail01 with two raw disks, and every state of them that a tool has taken. It is shut off: its images are
//! written to between the views, and no view can tell whether it was the guest.

use crate::stage::{VIEW, command, sh};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::image::noise;
use tests::{CHUNK, Image, chunk, process};

/// Disks of 16 and 8 MiB.
const CHUNKS: [u64; 2] = [64, 32];

/// What was on the disks: their chunks.
pub type State = [Vec<Arc<[u8]>>; 2];

pub struct Vm {
    disks: [Image; 2],
    seed: u64,
}

impl Vm {
    pub fn new() -> Vm {
        let image = |disk: usize| Path::new("/var/lib/libvirt/images").join(format!("mail01-{disk}.raw"));
        let disks = [0, 1].map(|disk| Image::full(&image(disk), CHUNKS[disk] * CHUNK));
        let device = |disk: usize| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
                 <target dev='{}' bus='virtio'/></disk>",
                image(disk).display(),
                ["vda", "vdb"][disk]
            )
        };
        let xml = format!(
            "<domain type='qemu'><name>mail01</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator>{}{}</devices></domain>",
            device(0),
            device(1)
        );
        std::fs::write("/srv/mail01.xml", xml).unwrap();
        sh("virsh -q define /srv/mail01.xml && rm /srv/mail01.xml");
        Vm { disks, seed: 1000 }
    }

    /// A few new bytes in each of these chunks.
    pub fn change(&mut self, disk: usize, chunks: impl IntoIterator<Item = u64>) {
        for chunk in chunks {
            self.seed += 1;
            self.disks[disk].write(chunk * CHUNK + 5000, &noise(self.seed, 64));
        }
    }

    /// A chunk becomes what it was in this image.
    pub fn put(&self, disk: usize, chunk: u64, image: &[u8]) {
        let start = chunk * CHUNK;
        self.disks[disk].write(start, &image[start as usize..(start + CHUNK) as usize]);
    }

    pub fn rewrite(&self, disk: usize, chunk: u64) {
        let same = self.disks[disk].read(chunk * CHUNK, CHUNK as usize);
        self.disks[disk].write(chunk * CHUNK, &same);
    }

    pub fn zero(&self, disk: usize, chunk: u64) {
        self.disks[disk].write(chunk * CHUNK, &[0; CHUNK as usize]);
    }

    /// Holes at the end.
    pub fn grow(&self, disk: usize, chunks: u64) {
        self.disks[disk].resize(self.disks[disk].path.metadata().unwrap().len() + chunks * CHUNK);
    }

    /// The disks as they are; chunks that are as in `last` are kept once.
    pub fn state(&self, last: Option<&State>) -> State {
        [0, 1].map(|disk| {
            let bytes = std::fs::read(&self.disks[disk].path).unwrap();
            let kept = |(at, chunk): (usize, &[u8])| match last.and_then(|last| last[disk].get(at)) {
                Some(old) if **old == *chunk => Arc::clone(old),
                _ => chunk.into(),
            };
            bytes.chunks(CHUNK as usize).enumerate().map(kept).collect()
        })
    }

    pub fn image(&self, disk: usize) -> &Path {
        &self.disks[disk].path
    }
}

/// The trees of both disks below `root` hold this state, and nothing more.
#[track_caller]
pub fn assert_is(root: &Path, state: &State, what: &str) {
    for (disk, name) in ["mail01_vda", "mail01_vdb"].into_iter().enumerate() {
        let tree = root.join(name);
        for (at, expected) in state[disk].iter().enumerate() {
            let path = tree.join(chunk(at as u64));
            let found = std::fs::read(&path).unwrap_or_else(|e| panic!("{what}: {}: {e}", path.display()));
            assert!(found == **expected, "{what}: {} differs", path.display());
        }
        let files = sh(&format!("find {} -type f | wc -l", tree.display()));
        assert_eq!(files.trim(), state[disk].len().to_string(), "{what}: files in {}", tree.display());
    }
}

/// The chunks of a disk that a tree holds as the state has them, with the times of this view or an older one.
pub fn count_equal(root: &Path, state: &State, disk: usize) -> u64 {
    let tree = root.join(["mail01_vda", "mail01_vdb"][disk]);
    let equal = |at: usize| std::fs::read(tree.join(chunk(at as u64))).is_ok_and(|b| b == *state[disk][at]);
    (0..state[disk].len()).filter(|at| equal(*at)).count() as u64
}

/// How many chunks were read, from what `virt-backup run` or `cleanup` has said last.
#[track_caller]
pub fn read_in(text: &str) -> u64 {
    let line = text.lines().rfind(|line| line.contains("chunks were read"));
    let line = line.unwrap_or_else(|| panic!("nothing tells how many chunks were read: {text}"));
    line.split("mail01: ").last().unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// Another tool, which takes everything and keeps it to itself.
pub fn look_at_all() {
    let line = format!("find {VIEW} -type f -exec cat {{}} + >/dev/null");
    let words = ["run", "mail01", "--", "sh", "-c", &line];
    process::run(command("virt-backup").args(words), process::LIMIT).ok();
}

/// Ends programs as soon as so many chunks of a view were read.
pub struct Killer {
    thread: std::thread::JoinHandle<bool>,
    enough: Arc<AtomicBool>,
}

impl Killer {
    pub fn start(names: &'static [&'static str], reads: u64) -> Killer {
        let enough = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&enough);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if chunks_read().is_some_and(|count| count >= reads) {
                    let pids = crate::stage::processes(names);
                    // One may have ended by itself in this moment.
                    pids.iter().for_each(|pid| _ = rustix::process::kill_process(*pid, Signal::KILL));
                    return !pids.is_empty();
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            false
        });
        Killer { thread, enough }
    }

    /// Whether anything was killed.
    pub fn end(self) -> bool {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Asks the daemon of the view, as `chunkfs status` would, but within a fraction of a millisecond.
fn chunks_read() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(VIEW))?;
    let device = line.split(' ').nth(2)?.replace(':', "-");
    let mut socket = UnixStream::connect(format!("/run/chunkfs/{device}.sock")).ok()?;
    socket.write_all(b"\"status\"\n").ok()?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).ok()?;
    let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
    answer["status"]["chunks_read"].as_u64()
}
