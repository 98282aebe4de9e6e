//! An incremental backup of a guest of which a part has changed, by three ways: rsync of the chunks, rsync of the image itself,
//! virtnbdbackup. Beside a libvirt of its own (`scripts/with-libvirt`), with $CHUNKFS and $VIRT_BACKUP.
//!
//!     bench-incremental DISK_GIB DATA_GIB CHANGED_PERCENT       prints a table
//!
//! The image and the backups are on file systems of their own, each on a loop device past the page cache, so that the kernel
//! counts what is read and written. Nothing is in the page cache when an incremental backup begins.
#![expect(clippy::unwrap_used, reason = "what goes wrong ends it, and says where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tests::CHUNK;
use tests::libvirt::{Disk, Guest, Lab, virsh_ok};
use tests::process::run_well;

fn main() {
    let words: Vec<u64> = std::env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let [disk_gib, data_gib, percent] = words[..] else {
        panic!("usage: bench-incremental DISK_GIB DATA_GIB CHANGED_PERCENT")
    };
    let lab = Lab::new();
    let image = Store::make(&lab, "images", disk_gib + 4);
    let backups = Store::make(&lab, "copy", disk_gib + 4);
    let mut guest = lab.guest_off("guest", &[Disk { format: "qcow2", mib: disk_gib << 10 }]);
    fill(&guest, &backups, disk_gib, data_gib);
    guest.start();
    let chunks = (disk_gib << 30) / CHUNK;
    let step = (100 / percent) as usize;
    let mut rounds = 0;
    let mut change = |guest: &mut Guest| {
        rounds += 1;
        guest.write_chunks(0, rounds, (u64::from(rounds)..chunks).step_by(step));
        guest.flush();
    };
    println!(
        "A disk of {disk_gib} GiB, {data_gib} GiB of them written to, 4 KiB changed in every {step}th of {chunks} chunks:\n"
    );
    println!(
        "| incremental backup by | seconds | MiB read of the disk | MiB read of the backup | MiB written |"
    );
    println!("|---|---|---|---|---|");

    let by_chunks = || {
        lab.quiet(&["chunkmount", "guest"]).ok();
        // Sparse, or the holes of the disk would be as many zeros in the backup.
        let view = format!("{}/", text(&lab.path("b/guest")));
        run_well("rsync", &["-a", "--sparse", "--delete", &view, &text(&backups.dir.join("guest"))]);
        lab.quiet(&["cleanup", "guest"]).ok();
    };
    by_chunks();
    change(&mut guest);
    measure("rsync of the chunks", &image, &backups, by_chunks);
    lab.quiet(&["forget", "guest"]).ok();
    empty(&backups.dir);

    let (from, to) = (text(&guest.images[0]), text(&backups.dir.join("image")));
    // The guest must not write meanwhile: without a snapshot nothing else gives a copy that is worth something.
    let by_image = || {
        virsh_ok(&["suspend", "guest"]);
        run_well("rsync", &["-a", "--inplace", "--no-whole-file", &from, &to]);
        virsh_ok(&["resume", "guest"]);
    };
    by_image();
    change(&mut guest);
    measure("rsync --inplace of the image, guest suspended", &image, &backups, by_image);
    empty(&backups.dir);

    let output = text(&backups.dir.join("virtnbdbackup"));
    let by_virtnbdbackup =
        |level: &str| run_well("virtnbdbackup", &["-d", "guest", "-l", level, "-o", &output]);
    by_virtnbdbackup("full");
    change(&mut guest);
    measure("virtnbdbackup -l inc", &image, &backups, || by_virtnbdbackup("inc"));
    guest.power_off();
}

/// Data that nothing compresses or finds twice, at the begin of the disk.
fn fill(guest: &Guest, scratch: &Store, disk_gib: u64, data_gib: u64) {
    let raw = text(&scratch.dir.join("raw"));
    run_well(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={raw}"),
            "bs=1M",
            &format!("count={}", data_gib << 10),
            "status=none",
        ],
    );
    run_well("truncate", &["-s", &format!("{disk_gib}G"), &raw]);
    run_well("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &text(&guest.images[0])]);
    fs::remove_file(raw).unwrap();
}

fn measure(name: &str, image: &Store, backups: &Store, back_up: impl FnOnce()) {
    run_well("sync", &[]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let (read_before, backups_before) = (image.mib(), backups.mib());
    let begun = Instant::now();
    back_up();
    run_well("sync", &["-f", &text(&backups.dir)]);
    let seconds = begun.elapsed().as_secs_f64();
    let (read, (reread, written)) = (image.mib(), backups.mib());
    println!(
        "| {name} | {seconds:.1} | {} | {} | {} |",
        read.0 - read_before.0,
        reread - backups_before.0,
        written - backups_before.1
    );
}

/// A file system whose kernel counters are its own.
struct Store {
    dir: PathBuf,
    device: String,
    file: PathBuf,
}

impl Store {
    /// At a directory of the lab, sparse.
    fn make(lab: &Lab, name: &str, gib: u64) -> Store {
        let (dir, file) = (lab.path(name), lab.path(&format!("{name}.fs")));
        run_well("truncate", &["-s", &format!("{gib}G"), &text(&file)]);
        run_well("mkfs.ext4", &["-q", "-E", "lazy_itable_init=1,nodiscard", &text(&file)]);
        let output =
            Command::new("losetup").args(["--direct-io=on", "--find", "--show"]).arg(&file).output().unwrap();
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        run_well("mount", &["-o", "noatime", &device, &text(&dir)]);
        Store { dir, device, file }
    }

    /// Read and written so far.
    fn mib(&self) -> (u64, u64) {
        let name = self.device.strip_prefix("/dev/").unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        // Documentation/block/stat.rst: sectors of 512 bytes, whatever the device's own are.
        let fields: Vec<u64> = stat.split_whitespace().map(|field| field.parse().unwrap()).collect();
        (fields[2] / 2048, fields[6] / 2048)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Best effort, for what it holds is in a directory that is removed anyway.
        for words in [["umount", "-l", &text(&self.dir)], ["losetup", "-d", &self.device]] {
            drop(Command::new(words[0]).args(&words[1..]).status());
        }
        drop(fs::remove_file(&self.file));
    }
}

fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.file_name().is_some_and(|name| name == "lost+found") {
            continue;
        }
        match entry.is_dir() {
            true => fs::remove_dir_all(entry).unwrap(),
            false => fs::remove_file(entry).unwrap(),
        }
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
