//! A guest with a disk of a TiB, nearly empty: ready at once, and nothing read when nothing was written.
//! HUGE_GIB=1024 makes the disk that rsync walks that large, too; docs/performance.md has what it printed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde_json::Value;
use tests::libvirt::{Disk, Guest, Lab, with_libvirt};

const DIRTY: u64 = 100;

/// Chunks all over a disk of so many.
fn spread(chunks: u64) -> impl Iterator<Item = u64> {
    (0..DIRTY).map(move |number| number * (chunks / DIRTY) + number)
}

/// Chunkmounts, and says how long that took.
fn chunkmount(lab: &Lab) -> Duration {
    let begun = Instant::now();
    lab.run(&["chunkmount", "mail01"]).ok();
    begun.elapsed()
}

fn cleanup(lab: &Lab) {
    lab.run(&["cleanup", "mail01"]).ok();
}

/// What the daemon of the view tells.
fn view(lab: &Lab) -> Value {
    lab.status()[0]["view"].clone()
}

/// Backs up once without reading, lets the guest write into 100 chunks, and waits until a stamp need not be waited for.
fn dirtied(lab: &Lab, gib: u64) -> Guest {
    let mut guest = lab.guest("mail01", &[Disk { format: "qcow2", mib: gib << 10 }]);
    guest.write_chunks(0, 1, [0, 7]);
    println!("{gib} GiB, the first view: ready after {:?}", chunkmount(lab));
    cleanup(lab);
    guest.write_chunks(0, 2, spread(gib * 4096));
    std::thread::sleep(Duration::from_secs(2));
    guest
}

#[test]
fn libvirt_a_tib_with_100_dirty_chunks_is_ready_within_2_seconds() {
    with_libvirt("libvirt_a_tib_with_100_dirty_chunks_is_ready_within_2_seconds", |lab| {
        let guest = dirtied(lab, 1024);
        let ready = chunkmount(lab);
        println!("1 TiB, 100 dirty chunks: ready after {ready:?}");
        assert!(ready < Duration::from_secs(2), "{ready:?}");
        let root = lab.path("b/mail01/mail01_vda");
        let stamp = |chunk| root.join(tests::chunk(chunk)).metadata().unwrap().mtime();
        let old = stamp(1);
        for chunk in spread(4 << 20) {
            assert!(stamp(chunk) > old, "chunk {chunk}");
            let bytes = fs::read(root.join(tests::chunk(chunk))).unwrap();
            assert_eq!(bytes[8192..8192 + 4096], [2; 4096], "chunk {chunk}");
        }
        for chunk in spread(4 << 20).skip(1).map(|chunk| chunk + 1) {
            assert_eq!(stamp(chunk), old, "chunk {chunk} was not written to");
        }
        println!("{}", view(lab));
        cleanup(lab);
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_a_whole_rsync_of_a_huge_disk_that_did_not_change_reads_no_chunk() {
    with_libvirt("libvirt_a_whole_rsync_of_a_huge_disk_that_did_not_change_reads_no_chunk", |lab| {
        let gib: u64 = std::env::var("HUGE_GIB").map_or(128, |gib| gib.parse().unwrap());
        let guest = dirtied(lab, gib);
        chunkmount(lab);
        // What rsync would have made of this view, but for the bytes: it looks at sizes, times, modes and owners.
        let copy = lab.path("copy");
        let mut memory = Command::new("mount");
        memory.args(["-t", "tmpfs", "-o", "nr_inodes=0,size=1g,huge=never", "copy"]).arg(&copy);
        assert!(memory.status().unwrap().success());
        let begun = Instant::now();
        let files = pretend_copy(&lab.path("b/mail01"), &copy.join("mail01"));
        println!("{files} files pretend to be the backup, after {:?}", begun.elapsed());
        assert!(files > gib * 4096);
        cleanup(lab);
        std::thread::sleep(Duration::from_secs(2));

        println!("{gib} GiB, nothing changed: ready after {:?}", chunkmount(lab));
        let (begun, worked) = (Instant::now(), worked_for());
        // But for VM.json, which says which generation this is.
        assert_eq!(lab.rsync("mail01"), 0, "chunks that rsync sent");
        let (took, worked) = (begun.elapsed(), worked_for() - worked);
        let view = view(lab);
        println!(
            "{gib} GiB, {files} files, nothing changed: rsync took {took:?}, and worked for {worked:?}; {view}"
        );
        let about = lab.path("b/mail01/mail01.json").metadata().unwrap().len();
        assert!(view["bytes_read"].as_u64().unwrap() <= about, "rsync has read {view}");
        // A TiB in a minute on two quiet cores; four minutes where others work, too.
        assert!(took < Duration::from_secs(240) * gib as u32 / 1024, "{took:?}");
        cleanup(lab);
        lab.assert_nothing_left(&guest);
    });
}

/// How long processes that this one has waited for have had a processor.
fn worked_for() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // proc(5): cutime and cstime, in ticks of 10 ms, 13 and 14 fields after the name.
    let ticks: u64 = fields[13..15].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// A tree with the same names and metadata, of holes. Gives the number of files.
fn pretend_copy(from: &Path, to: &Path) -> u64 {
    let meta = from.symlink_metadata().unwrap();
    let mut files = 1;
    if meta.is_dir() {
        fs::create_dir(to).unwrap();
        let entries = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().file_name());
        files = entries.map(|name| pretend_copy(&from.join(&name), &to.join(&name))).sum();
        fs::set_permissions(to, meta.permissions()).unwrap();
    } else {
        let file = File::options().write(true).create_new(true).mode(meta.mode() & 0o777).open(to).unwrap();
        file.set_len(meta.len()).unwrap();
    }
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    utimensat(CWD, to, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty()).unwrap();
    files
}
