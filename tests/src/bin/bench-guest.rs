//! Reads the chunks of a guest that runs, and its export with the fastest client that there is, in turns.
//! Beside a libvirt of its own (`scripts/with-libvirt`), with $CHUNKFS and $VIRT_BACKUP. Judges nothing: `scripts/bench` does.
//!
//!     bench-guest MIB ROUNDS       prints for each round: SECONDS of nbdcopy, of one reader of all chunks, of two
#![expect(clippy::unwrap_used, reason = "what goes wrong ends it, and says where")]

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::libvirt::{Disk, Lab};
use tests::{CHUNK, process};

fn main() {
    let words: Vec<u64> = std::env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let [mib, rounds] = words[..] else { panic!("usage: bench-guest MIB ROUNDS") };
    let lab = Lab::new();
    let mut guest = lab.guest("guest", &[Disk { format: "raw", mib }]);
    for at in (0..mib).step_by(16) {
        guest.write(0, (at / 16 % 255) as u8 + 1, at << 20, 16 << 20);
    }
    lab.quiet(&["chunkmount", "guest"]).ok();
    // Otherwise digests are taken at the same time.
    let compared = || {
        let status: serde_json::Value =
            serde_json::from_str(&lab.quiet(&["status", "--json"]).ok().stdout).unwrap();
        status[0]["view"]["scan"]["done"] == true
    };
    process::until("the digests of all chunks", process::LIMIT, compared);
    let mut chunks = Vec::new();
    files(&lab.path("b/guest/guest_vda"), &mut chunks);
    chunks.sort();
    assert_eq!(chunks.len() as u64 * CHUNK, mib << 20);
    for _ in 0..rounds {
        let times = [nbdcopy(&lab), read_all(&chunks, 1), read_all(&chunks, 2)];
        let [copying, one, two] = times.map(|time| time.as_secs_f64());
        println!("{copying:.6} {one:.6} {two:.6}");
    }
    lab.quiet(&["cleanup", "guest"]).ok();
}

/// All of the export, over one connection, to nowhere.
fn nbdcopy(lab: &Lab) -> Duration {
    let jobs: Vec<_> = fs::read_dir(lab.state.join(".run")).unwrap().collect();
    let [job] = &jobs[..] else { panic!("not one job: {jobs:?}") };
    let socket = job.as_ref().unwrap().path().join("nbd.sock");
    let uri = format!("nbd+unix:///vda?socket={}", socket.display());
    let begun = Instant::now();
    let status = Command::new("nbdcopy").args(["--connections=1", &uri, "null:"]).status().unwrap();
    assert!(status.success());
    begun.elapsed()
}

/// All chunks, in order, each in one read, as backup tools do.
fn read_all(chunks: &[PathBuf], readers: usize) -> Duration {
    let next = AtomicUsize::new(0);
    let reader = || {
        let mut buffer = vec![0; CHUNK as usize];
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            File::open(chunk).unwrap().read_exact(&mut buffer).unwrap();
            assert_ne!(buffer[4095], 0, "{}", chunk.display());
        }
    };
    let begun = Instant::now();
    thread::scope(|scope| (0..readers).for_each(|_| drop(scope.spawn(reader))));
    begun.elapsed()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}
