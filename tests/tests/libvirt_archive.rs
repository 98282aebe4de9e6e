//! Archives: all that a VM is, ready to be defined and started under another name; and which of them stay.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use tests::libvirt::{
    Disk, Guest, Lab, content_of, first_difference, names_if_any, names_in, program, virsh_ok, with_libvirt,
};

use tests::process::run_well;

const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 16 }, Disk { format: "raw", mib: 8 }];

fn archives(lab: &Lab) -> Vec<String> {
    names_if_any(&lab.path("archives/mail01"))
}

/// The directory of the newest archive.
fn newest(lab: &Lab) -> PathBuf {
    lab.path("archives/mail01").join(archives(lab).last().unwrap())
}

fn archive(lab: &Lab, words: &[&str]) -> String {
    let base = format!("--backup-base-dir={}", lab.path("archives").display());
    lab.run(&[&["archive", "mail01", &base], words].concat()).ok().stdout
}

fn guest(lab: &Lab) -> Guest {
    let mut guest = lab.guest("mail01", &DISKS);
    guest.write(0, 1, 1 << 20, 4 << 20);
    guest.write(1, 2, 2 << 20, 3 << 20);
    guest
}

#[test]
fn libvirt_an_archive_is_defined_and_started_as_it_is() {
    with_libvirt("libvirt_an_archive_is_defined_and_started_as_it_is", |lab| {
        let mut guest = guest(lab);
        let shape = guest.shape();
        for words in [&[][..], &["--compress"], &["--method=pull"], &["--new-mac"]] {
            let then = guest.content.clone();
            archive(lab, words);
            let dir = newest(lab);
            let stamp = dir.file_name().unwrap().to_str().unwrap();
            let name = format!("mail01-restore-{stamp}");
            assert_eq!(
                names_in(&dir),
                [&format!("{name}.b3"), &format!("{name}.xml"), "manifest.json", "vda.qcow2", "vdb.qcow2"]
            );
            let digests = format!("{name}.b3");
            assert!(
                Command::new("b3sum")
                    .args(["--check", &digests])
                    .current_dir(&dir)
                    .status()
                    .unwrap()
                    .success()
            );
            for (disk, file) in ["vda.qcow2", "vdb.qcow2"].iter().enumerate() {
                assert_eq!(
                    first_difference(&content_of(&dir.join(file), "qcow2"), &then[disk]),
                    None,
                    "{words:?}: {file}"
                );
            }
            // As the script's own words have it: define, start.
            virsh_ok(&["define", dir.join(format!("{name}.xml")).to_str().unwrap()]);
            virsh_ok(&["start", &name]);
            let disks = virsh_ok(&["domblklist", &name]);
            assert!(disks.contains(dir.to_str().unwrap()) && !disks.contains("mail01-a"), "{disks}");
            virsh_ok(&["destroy", &name]);
            virsh_ok(&["undefine", &name]);
            assert_eq!(guest.shape(), shape, "{words:?}");
            guest.write_chunks(0, 40, [2, 7]);
        }
        lab.assert_nothing_left(&guest);
        guest.assert_content();
    });
}

#[test]
fn libvirt_snapshots_within_an_image_can_be_gone_back_to_from_the_archive() {
    with_libvirt("libvirt_snapshots_within_an_image_can_be_gone_back_to_from_the_archive", |lab| {
        let mut guest = lab.guest_off("mail01", &DISKS[..1]);
        let mut contents = Vec::new();
        for (byte, name) in [(1, "z-first"), (2, "a-second")] {
            guest.start();
            guest.write(0, byte, 0, 2 << 20);
            guest.power_off();
            virsh_ok(&["snapshot-create-as", "mail01", name]);
            contents.push((name, guest.content[0].clone()));
        }
        guest.start();
        guest.write(0, 3, 1 << 20, 2 << 20);
        // It leaves a dirty bitmap in the image, with which nothing could be gone back to.
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.run(&["cleanup", "mail01"]).ok();
        assert_eq!(guest.checkpoints().len(), 1);
        archive(lab, &["--compress", "--name=copy"]);
        let dir = newest(lab);
        // In this order a shell's `*` has parents before their children.
        assert_eq!(names_in(dir.join("snapshots")), ["000-z-first.xml", "001-a-second.xml"]);
        let lists: Vec<_> = names_in(&dir).into_iter().filter(|name| name.ends_with(".b3")).collect();
        let checked = Command::new("b3sum").arg("--check").args(&lists).current_dir(&dir).output().unwrap();
        let checked = String::from_utf8(checked.stdout).unwrap();
        for file in ["snapshots/000-z-first.xml: OK", "snapshots/001-a-second.xml: OK"] {
            assert!(checked.lines().any(|line| line == file), "{checked}");
        }
        virsh_ok(&["define", dir.join("copy.xml").to_str().unwrap()]);
        for file in names_in(dir.join("snapshots")) {
            let file = dir.join("snapshots").join(file);
            virsh_ok(&["snapshot-create", "copy", "--xmlfile", file.to_str().unwrap(), "--redefine"]);
        }
        assert_eq!(first_difference(&content_of(&dir.join("vda.qcow2"), "qcow2"), &guest.content[0]), None);
        let mut listed: Vec<_> =
            virsh_ok(&["snapshot-list", "--name", "copy"]).split_whitespace().map(str::to_owned).collect();
        listed.sort();
        assert_eq!(listed, ["a-second", "z-first"]);
        for (name, then) in contents {
            virsh_ok(&["snapshot-revert", "copy", name]);
            assert_eq!(first_difference(&content_of(&dir.join("vda.qcow2"), "qcow2"), &then), None, "{name}");
        }
        virsh_ok(&["undefine", "copy", "--snapshots-metadata"]);
        lab.assert_nothing_left(&guest);
        guest.assert_content();
    });
}

#[test]
fn libvirt_retention_counts_complete_archives_and_keeps_what_is_in_use() {
    with_libvirt("libvirt_retention_counts_complete_archives_and_keeps_what_is_in_use", |lab| {
        let guest = guest(lab);
        let home = lab.path("archives/mail01");
        fs::create_dir_all(&home).unwrap();
        // Complete ones, one that was cut off, one without a mark, and a link that leads elsewhere.
        for name in ["2025-01-01-000000", "2025-01-02-000000", "2025-01-03-000000", "2025-01-04-000000"] {
            fs::create_dir(home.join(name)).unwrap();
            fs::write(home.join(name).join("manifest.json"), "{}").unwrap();
        }
        for (name, file) in [("2025-01-05-000000", ".unfinished"), ("2025-01-06-000000", "vda.qcow2")] {
            fs::create_dir(home.join(name)).unwrap();
            fs::write(home.join(name).join(file), "").unwrap();
        }
        let elsewhere = lab.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("manifest.json"), "{}").unwrap();
        symlink(&elsewhere, home.join("2025-01-07-000000")).unwrap();
        let used = home.join("2025-01-01-000000/vda.qcow2");
        assert!(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&used)
                .arg("1M")
                .status()
                .unwrap()
                .success()
        );
        let xml = virsh_ok(&["dumpxml", "--inactive", "mail01"]);
        let uuid = virsh_ok(&["domuuid", "mail01"]);
        let other = xml
            .replace("<name>mail01<", "<name>other<")
            .replace(uuid.trim(), "11111111-2222-4333-8444-555555555555")
            .replace(guest.images[0].to_str().unwrap(), used.to_str().unwrap());
        fs::write(lab.path("other.xml"), other).unwrap();
        virsh_ok(&["define", lab.path("other.xml").to_str().unwrap()]);

        // As the script, under its name and with its options.
        let script = lab.path("vm_backup.sh");
        symlink(program("VIRT_BACKUP", "virt-backup"), &script).unwrap();
        let mut command = lab.command(&["--backup-base-dir", lab.path("archives").to_str().unwrap()]);
        command.args(["--vm-domain", "mail01", "--max-backups", "3"]);
        let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut as_script = Command::new(&script);
        as_script.args(words).env("CHUNKFS", program("CHUNKFS", "chunkfs"));
        let output = as_script.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        println!("{}", String::from_utf8_lossy(&output.stdout));
        let left = archives(lab);
        assert_eq!(
            left[..left.len() - 1],
            [
                "2025-01-01-000000", // in use
                "2025-01-03-000000",
                "2025-01-04-000000",
                "2025-01-06-000000", // perhaps somebody else's
                "2025-01-07-000000", // a link
            ]
        );
        assert!(elsewhere.join("manifest.json").exists());
        virsh_ok(&["undefine", "other"]);
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_nothing_is_removed_that_is_only_mounted_in_an_old_archive() {
    with_libvirt("libvirt_nothing_is_removed_that_is_only_mounted_in_an_old_archive", |lab| {
        let guest = guest(lab);
        let old = lab.path("archives/mail01/2025-01-01-000000");
        let (inside, precious) = (old.join("inside"), lab.path("precious"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir(&precious).unwrap();
        fs::write(old.join("manifest.json"), "{}").unwrap();
        fs::write(precious.join("file"), "mine").unwrap();
        run_well("mount", &["--bind", precious.to_str().unwrap(), inside.to_str().unwrap()]);
        let base = format!("--backup-base-dir={}", lab.path("archives").display());
        let ran = lab.run(&["archive", "mail01", &base, "--keep=1"]);
        assert!(ran.status == 1 && ran.stderr.contains("is mounted there: unmount it"), "{ran:?}");
        assert_eq!(fs::read(precious.join("file")).unwrap(), b"mine");
        assert!(old.join("manifest.json").exists());
        run_well("umount", &[inside.to_str().unwrap()]);
        archive(lab, &["--keep=1"]);
        assert!(!old.exists());
        lab.assert_nothing_left(&guest);
    });
}

/// Summer time ends: half past two comes twice, and what is made later has the earlier name. libfaketime says what time it is.
#[test]
fn libvirt_retention_is_not_misled_when_the_clock_is_set_back() {
    with_libvirt("libvirt_retention_is_not_misled_when_the_clock_is_set_back", |lab| {
        let guest = guest(lab);
        let base = format!("--backup-base-dir={}", lab.path("archives").display());
        // At so many seconds since 1970, by a clock that stands still.
        let archive_at = |epoch: u64, words: &[&str]| {
            let mut command = lab.command(&[&["archive", "mail01", &base], words].concat());
            command.env("TZ", "Europe/Berlin").env("LD_PRELOAD", LIBFAKETIME).env("FAKETIME_FMT", "%s");
            command.env("FAKETIME", epoch.to_string()).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            archives(lab)
        };
        let (summer, winter) = (1_792_888_200, 1_792_891_800); // 00:30 and 01:30 UTC, on 25 October 2026
        assert_eq!(archive_at(summer, &["--keep=1"]), ["2026-10-25-023000"]);
        // The same second, by its name: another archive, and the newer one.
        assert_eq!(archive_at(winter, &["--keep=1"]), ["2026-10-25-023000-2"]);
        // Half an hour back: that what is older by its name was made just now is no reason to remove it, or what was there.
        assert_eq!(archive_at(winter - 1800, &["--keep=1"]), ["2026-10-25-020000", "2026-10-25-023000-2"]);
        assert_eq!(archive_at(winter + 1800, &["--keep=2"]), ["2026-10-25-023000-2", "2026-10-25-030000"]);
        // Of a day with 25 hours one stays, and of a night in spring that has no half past two.
        assert_eq!(archive_at(winter + 3600, &["--keep-daily=1"]), ["2026-10-25-033000"]);
        let spring = 1_806_193_800; // 00:30 UTC on 28 March 2027
        assert_eq!(archive_at(spring, &["--keep-daily=2"]), ["2026-10-25-033000", "2027-03-28-013000"]);
        let after = ["2026-10-25-033000", "2027-03-28-033000"];
        assert_eq!(archive_at(spring + 3600, &["--keep-daily=2"]), after);
        lab.assert_nothing_left(&guest);
        guest.assert_content();
    });
}

/// Killed after the first line of its journal, after the second, and so on.
#[test]
fn libvirt_an_archive_may_be_killed_after_any_line_of_its_journal() {
    with_libvirt("libvirt_an_archive_may_be_killed_after_any_line_of_its_journal", |lab| {
        let guest = guest(lab);
        let base = format!("--backup-base-dir={}", lab.path("archives").display());
        for lines in (1..).step_by(2) {
            let ended = lab.kill_at_line("mail01", &["archive", "mail01", &base], lines);
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left(&guest);
            guest.assert_content();
            for name in archives(lab) {
                let dir = lab.path("archives/mail01").join(name);
                assert_eq!(names_in(&dir).len(), 5, "{lines}: what is there after cleanup is complete");
                assert!(dir.join("manifest.json").exists());
                fs::remove_dir_all(dir).unwrap();
            }
            if ended.is_some() {
                println!("killed after every second of {lines} lines");
                assert!(lines > 15);
                return;
            }
        }
    });
}
