//! A file system that is full at any point of a dump, a conversion, an archive or a restore: it fails, says why, leaves
//! nothing but the guest as it was, and succeeds once there is room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::image::noise;
use tests::libvirt::{
    Disk, Guest, Lab, Ran, content_of, first_difference, names_in, virsh, virsh_ok, with_libvirt,
};
use tests::process::run_well;

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 8 }, Disk { format: "raw", mib: 4 }];
/// What the file system has room for, in KiB: for not even a lock, for parts of the first disk and of the second, for both
/// disks but not for what is written last, and, at the latest with the last, for everything.
const ROOM: [u64; 15] =
    [4, 8, 16, 32, 300, 2_000, 5_000, 8_190, 8_300, 10_000, 12_200, 12_288, 12_296, 12_304, 12_320];
const ENOUGH: u64 = 64 << 10;

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// A running guest with disks that nothing can compress.
fn guest(lab: &Lab) -> Guest {
    let mut guest = lab.guest_off("mail01", &DISKS);
    for ((image, content), disk) in guest.images.iter().zip(&mut guest.content).zip(DISKS) {
        *content = noise(disk.mib, content.len());
        let raw = lab.path("noise");
        fs::write(&raw, content).unwrap();
        run_well("qemu-img", &["convert", "-n", "-f", "raw", "-O", disk.format, &text(&raw), &text(image)]);
    }
    guest.start();
    guest
}

/// A file system of its own, in memory, with so much room.
struct Small {
    dir: PathBuf,
}

impl Small {
    fn mount(dir: PathBuf) -> Small {
        fs::create_dir_all(&dir).unwrap();
        run_well("mount", &["-t", "tmpfs", "-o", "size=4k", "small", &text(&dir)]);
        Small { dir }
    }

    fn resize(&self, kib: u64) {
        run_well("mount", &["-o", &format!("remount,size={kib}k"), &text(&self.dir)]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run_well("umount", &["-l", &text(&self.dir)]);
    }
}

/// A failure that says why, with a status that says that nothing is left.
fn assert_full(what: &str, ran: &Ran) {
    assert_eq!(ran.status, 1, "{what}: {ran:?}");
    let says_why = ran.stderr.contains("No space left on device") || ran.stderr.contains("free for scratch");
    assert!(says_why, "{what}: {ran:?}");
}

/// Runs it with ever more room: either all is there, or nothing.
fn with_ever_more_room(
    (lab, guest, small): (&Lab, &Guest, &Small),
    words: &[&str],
    files: &[&str],
    found: impl Fn() -> PathBuf,
) {
    let shape = guest.shape();
    let (mut failed, mut done) = (0, 0);
    for kib in ROOM.into_iter().chain([ENOUGH]) {
        small.resize(kib);
        let what = format!("{words:?} into {kib} KiB");
        let ran = lab.quiet(words);
        if ran.status == 0 {
            let dir = found();
            for (file, content) in files.iter().zip(&guest.content) {
                let path = dir.join(file);
                let now = match path.extension().unwrap().to_str().unwrap() {
                    "gz" => Command::new("gzip").arg("-dc").arg(path).output().unwrap().stdout,
                    "qcow2" => {
                        // Beside the image there may be no room for what is in it.
                        let copy = lab.path("look.qcow2");
                        fs::copy(path, &copy).unwrap();
                        content_of(&copy, "qcow2")
                    }
                    _ => fs::read(path).unwrap(),
                };
                assert_eq!(
                    (now.len(), first_difference(&now, content)),
                    (content.len(), None),
                    "{what}: {file}"
                );
            }
            done += 1;
            lab.quiet(&["cleanup", "mail01"]).ok();
            for name in names_in(&small.dir) {
                fs::remove_dir_all(small.dir.join(name)).unwrap();
            }
        } else {
            assert_full(&what, &ran);
            failed += 1;
        }
        lab.assert_nothing_left(guest);
        // An archive has the directory of its VM in common with those before.
        let left: Vec<_> = names_in(&small.dir)
            .into_iter()
            .flat_map(|name| names_in(small.dir.join(&name)).into_iter().chain([name]))
            .filter(|name| name != "mail01")
            .collect();
        assert_eq!(left, [""; 0], "{what}");
        assert_eq!(guest.shape(), shape, "{what}");
    }
    guest.assert_content();
    println!("{words:?}: failed {failed} times and left nothing, then done {done} times");
    assert!(failed >= 9 && done >= 1, "{words:?}: failed {failed} times, done {done} times");
}

#[test]
fn libvirt_a_full_file_system_ends_a_dump_a_conversion_or_an_archive_without_a_trace() {
    with_libvirt(
        "libvirt_a_full_file_system_ends_a_dump_a_conversion_or_an_archive_without_a_trace",
        |lab| {
            let guest = guest(lab);
            {
                let small = Small::mount(lab.path("b"));
                let found = || lab.path("b/mail01");
                for (words, files) in [
                    (&["dump", "mail01"][..], ["mail01_vda.img", "mail01_vdb.img"]),
                    (
                        &["dump", "mail01", "--compress", "--method=external"],
                        ["mail01_vda.img.gz", "mail01_vdb.img.gz"],
                    ),
                    (&["convert", "mail01"], ["mail01_vda.qcow2", "mail01_vdb.qcow2"]),
                ] {
                    with_ever_more_room((lab, &guest, &small), words, &files, found);
                }
            }
            let base = lab.path("archives");
            let small = Small::mount(base.clone());
            let words = ["archive", "mail01", &format!("--backup-base-dir={}", text(&base))];
            let found = || {
                let home = base.join("mail01");
                home.join(&names_in(&home)[0])
            };
            with_ever_more_room((lab, &guest, &small), &words, &["vda.qcow2", "vdb.qcow2"], found);
        },
    );
}

#[test]
fn libvirt_a_full_file_system_ends_a_restore_without_a_trace() {
    with_libvirt("libvirt_a_full_file_system_ends_a_restore_without_a_trace", |lab| {
        let guest = guest(lab);
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.rsync("mail01");
        lab.run(&["cleanup", "mail01"]).ok();
        lab.run(&["dump", "mail01", "--compress"]).ok();
        let tree = text(lab.path("copy/mail01"));
        let dump = text(lab.path("b/mail01"));
        let shape = guest.shape();
        let small = Small::mount(lab.path("restored"));
        let to = format!("--to={}", text(&small.dir));
        for (from, format) in [(&tree, "raw"), (&tree, "qcow2"), (&dump, "qcow2")] {
            let format = format!("--format={format}");
            let words = ["restore", from, "--name=mail02", &to, &format];
            let (mut failed, mut done) = (0, 0);
            for kib in ROOM.into_iter().chain([ENOUGH]) {
                small.resize(kib);
                let what = format!("{words:?} into {kib} KiB");
                let ran = lab.quiet(&words);
                if ran.status == 0 {
                    done += 1;
                    for (name, content) in names_in(&small.dir).iter().zip(&guest.content) {
                        let copy = lab.path(name);
                        fs::copy(small.dir.join(name), &copy).unwrap();
                        let format = if name.ends_with(".img") { "raw" } else { "qcow2" };
                        assert_eq!(first_difference(&content_of(&copy, format), content), None, "{what}");
                        fs::remove_file(small.dir.join(name)).unwrap();
                    }
                    virsh_ok(&["undefine", "mail02"]);
                } else {
                    assert_full(&what, &ran);
                    failed += 1;
                }
                assert_eq!(names_in(&small.dir), [""; 0], "{what}");
                assert!(!virsh(&["dominfo", "mail02"]).0, "{what}");
            }
            println!("{words:?}: failed {failed} times and left nothing, then done {done} times");
            assert!(failed >= 9 && done >= 1, "{words:?}: failed {failed} times, done {done} times");
        }
        assert_eq!(guest.shape(), shape);
    });
}
