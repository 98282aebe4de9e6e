//! The way back: whatever was kept becomes a guest again, nothing that is in use is touched, and what fails leaves nothing.
//! What is kept is made here as a backup tool would, by rsync, cp and gzip.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::libvirt::{
    Disk, Guest, Lab, LoopDevice, content_of, names_if_any, names_in, virsh, virsh_ok, with_libvirt,
};
use tests::process::run_well;

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 16 }, Disk { format: "raw", mib: 8 }];

/// A running guest of which a backup tool has kept a view, in `copy/mail01`.
fn kept_tree(lab: &Lab) -> Guest {
    let mut guest = lab.guest("mail01", &DISKS);
    guest.write(0, 1, 0, 4 << 20);
    guest.write(0, 3, (16 << 20) - 4096, 4096);
    guest.write(1, 2, 1 << 20, 3 << 20);
    lab.run(&["chunkmount", "mail01"]).ok();
    lab.rsync("mail01");
    lab.run(&["cleanup", "mail01"]).ok();
    guest
}

fn tree(lab: &Lab) -> String {
    text(lab.path("copy").join("mail01"))
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// A directory for what is restored.
fn target(lab: &Lab) -> PathBuf {
    let dir = lab.path("restored");
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn assert_same(image: &Path, format: &str, expected: &[u8]) {
    let seen = content_of(image, format);
    assert_eq!(seen.len(), expected.len(), "{}", image.display());
    let differs = seen.chunks(4096).zip(expected.chunks(4096)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{}: the first block that differs", image.display());
}

fn is_defined(name: &str) -> bool {
    virsh(&["dominfo", name]).0
}

fn xml(name: &str) -> String {
    virsh_ok(&["dumpxml", "--inactive", "--security-info", name])
}

/// No journal, no view, nothing but what was there.
fn assert_no_trace(lab: &Lab, name: &str) {
    let home = lab.state.join(name);
    let left: Vec<_> = names_if_any(&home);
    let ours: Vec<_> = left.iter().filter(|n| ["restore", "joined"].contains(&&***n)).collect();
    assert!(ours.is_empty(), "{left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/joined "), "{mounts}");
}

#[test]
fn libvirt_a_tree_becomes_a_guest_beside_its_original_and_both_run() {
    with_libvirt("libvirt_a_tree_becomes_a_guest_beside_its_original_and_both_run", |lab| {
        let guest = kept_tree(lab);
        let before = guest.shape();
        let dir = target(lab);
        let words = ["restore", &tree(lab), "--name=mail02", &format!("--to={}", dir.display()), "--start"];
        lab.run(&[&words[..], &["--dry-run"]].concat()).ok();
        assert_eq!(names_in(&dir), [""; 0], "a dry run");
        let ran = lab.run(&words).ok();
        assert!(ran.stdout.contains("mail02: restored"), "{ran:?}");
        assert_eq!(names_in(&dir), ["mail02_vda.qcow2", "mail02_vdb.img"]);
        assert_same(&dir.join("mail02_vda.qcow2"), "qcow2", &guest.content[0]);
        assert_same(&dir.join("mail02_vdb.img"), "raw", &guest.content[1]);
        let stored = fs::metadata(dir.join("mail02_vdb.img")).unwrap().blocks() * 512;
        assert!(stored < 4 << 20, "{stored} bytes of 3 MiB are stored");
        for name in ["mail01", "mail02"] {
            assert_eq!(virsh_ok(&["domstate", name]).trim(), "running", "{name}");
        }
        assert_eq!(guest.shape(), before, "the original");
        let uuid = |name: &str| virsh_ok(&["domuuid", name]);
        assert_ne!(uuid("mail01"), uuid("mail02"));
        // Once more under the same name: it is there.
        let again = lab.run(&words);
        assert_eq!(again.status, 1, "{again:?}");
        assert!(again.stderr.contains("there is a domain mail02 already"), "{again:?}");
        assert_no_trace(lab, "mail02");
    });
}

#[test]
fn libvirt_damage_is_named_and_nothing_is_restored() {
    with_libvirt("libvirt_damage_is_named_and_nothing_is_restored", |lab| {
        let _guest = kept_tree(lab);
        let dir = target(lab);
        let chunk = "mail01_vda/00/00/00/00/00/00/00/02";
        let path = lab.path("copy").join("mail01").join(chunk);
        let whole = fs::read(&path).unwrap();
        let to = format!("--to={}", dir.display());
        let mut bytes = whole.clone();
        bytes[100] ^= 1;
        for (what, damaged) in [("a bit", Some(bytes)), ("short", Some(whole[..10].to_vec())), ("gone", None)]
        {
            match damaged {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            for more in [&[][..], &["--no-verify"], &["--no-verify", "--format=raw"]] {
                let tree = tree(lab);
                let words = [&["restore", &tree, "--name=mail02", &to], more].concat();
                let ran = lab.run(&words);
                assert_eq!(ran.status, 6, "{what}: {ran:?}");
                assert!(ran.stderr.contains(chunk), "{what}: {ran:?}");
                assert_eq!(names_in(&dir), [""; 0], "{what}");
                assert!(!is_defined("mail02"), "{what}");
                assert_no_trace(lab, "mail02");
            }
        }
        fs::write(&path, whole).unwrap();
        lab.run(&["restore", &tree(lab), "--name=mail02", &to]).ok();
    });
}

#[test]
fn libvirt_no_disk_of_a_domain_is_overwritten_unasked_and_none_that_runs() {
    with_libvirt("libvirt_no_disk_of_a_domain_is_overwritten_unasked_and_none_that_runs", |lab| {
        let guest = kept_tree(lab);
        let other = lab.guest_off("other", &[Disk { format: "raw", mib: 16 }]);
        let dir = target(lab);
        let refused = |words: &[&str], why: &str| {
            let tree = tree(lab);
            let all = [&["restore", &tree], words].concat();
            let ran = lab.run(&all);
            assert_eq!(ran.status, 1, "{words:?}: {ran:?}");
            assert!(ran.stderr.contains(why), "{words:?}: {ran:?}");
            guest.assert_content();
            other.assert_content();
        };
        refused(&[], "mail01 runs: shut it off first");
        refused(&["--force"], "mail01 runs: shut it off first");
        refused(&["--name=mail02"], "say where it goes, for a new name");
        let (link, hard) = (dir.join("link"), lab.path("images").join("hard"));
        std::os::unix::fs::symlink(&other.images[0], &link).unwrap();
        fs::hard_link(&other.images[0], &hard).unwrap();
        let to = format!("--to={}", dir.display());
        for path in [&other.images[0], &link, &hard] {
            let disk = format!("--disk=vda={}", path.display());
            refused(&["--name=mail02", &to, &disk], "is a disk of the domain other: --force overwrites it");
        }
        let running = format!("--disk=vda={}", guest.images[0].display());
        refused(&["--name=mail02", &to, &running, "--force"], "is in use: mail01 runs with it");
        fs::write(dir.join("mail02_vdb.img"), "mine").unwrap();
        refused(&["--name=mail02", &to], "exists: --force replaces it");
        assert_eq!(fs::read(dir.join("mail02_vdb.img")).unwrap(), b"mine");
        fs::remove_file(dir.join("mail02_vdb.img")).unwrap();
        let same = format!("--disk=vda={}/x", dir.display());
        let twice = format!("--disk=vdb={}/x", dir.display());
        refused(&["--name=mail02", &same, &twice], "would both go to");
        refused(&["--name=mail02", &to, "--disk=vdz=/x"], "has no disk vdz");
        refused(&["--name=mail02", &format!("--to={}", tree(lab))], "is in the backup itself");
        refused(&["--name=other", &to], "there is a domain other already");
        // What lies below an image is in use as much as the image.
        let (base, overlay) = (lab.path("images").join("base.raw"), lab.path("images").join("overlay.qcow2"));
        fs::rename(&other.images[0], &base).unwrap();
        let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&base), &text(&overlay)];
        run_well("qemu-img", &words);
        let over = xml("other")
            .replace("type='raw'", "type='qcow2'")
            .replace(&text(&other.images[0]), &text(&overlay));
        let file = lab.path("over.xml");
        fs::write(&file, over).unwrap();
        virsh_ok(&["define", &text(&file)]);
        let disk = format!("--disk=vda={}", base.display());
        let ran = lab.run(&["restore", &tree(lab), "--name=mail02", &to, &disk]);
        assert!(ran.stderr.contains("is a disk of the domain other"), "{ran:?}");
        // A loop device is its file.
        let attached =
            Command::new("losetup").args(["--find", "--show"]).arg(&guest.images[1]).output().unwrap();
        let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
        let disk = format!("--disk=vda={device}");
        let ran = lab.run(&["restore", &tree(lab), "--name=mail02", &to, &disk, "--force"]);
        run_well("losetup", &["--detach", &device]);
        assert!(ran.status == 1 && ran.stderr.contains("is in use: mail01 runs with it"), "{ran:?}");
        virsh_ok(&["managedsave", "mail01"]);
        let ran = lab.run(&["restore", &tree(lab), "--force"]);
        assert!(ran.status == 1 && ran.stderr.contains("mail01 has saved memory"), "{ran:?}");
        virsh_ok(&["managedsave-remove", "mail01"]);
        let ran = lab.run(&["restore", &tree(lab)]);
        assert!(ran.stderr.contains("mail01 is defined: --force"), "{ran:?}");
        assert_no_trace(lab, "mail01");
    });
}

#[test]
fn libvirt_a_guest_is_put_back_where_it_was() {
    with_libvirt("libvirt_a_guest_is_put_back_where_it_was", |lab| {
        let mut guest = kept_tree(lab);
        let good = guest.content.clone();
        let definition = xml("mail01");
        let mode = fs::metadata(&guest.images[0]).unwrap().mode() & 0o777;
        guest.write(0, 9, 0, 8 << 20);
        guest.write(1, 9, 0, 8 << 20);
        guest.power_off();
        // Somebody has also spoilt its definition; the UUID tells that it is the same.
        let spoilt = definition.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<");
        assert_ne!(spoilt, definition);
        let file = lab.path("spoilt.xml");
        fs::write(&file, spoilt).unwrap();
        virsh_ok(&["define", &text(&file)]);
        lab.run(&["restore", &tree(lab), "--force"]).ok();
        assert_eq!(xml("mail01"), definition);
        let now = fs::metadata(&guest.images[0]).unwrap().mode() & 0o777;
        assert_eq!(now, mode, "who may read it");
        assert_same(&guest.images[0], "qcow2", &good[0]);
        assert_same(&guest.images[1], "raw", &good[1]);
        assert_eq!(names_in(lab.path("images")), ["mail01-a.qcow2", "mail01-b.raw", "mail01.xml"]);
        // An image that is reached by a link is replaced where it is.
        let far = lab.path("far.qcow2");
        fs::rename(&guest.images[0], &far).unwrap();
        std::os::unix::fs::symlink(&far, &guest.images[0]).unwrap();
        fs::write(&far, "spoilt").unwrap();
        lab.run(&["restore", &tree(lab), "--force"]).ok();
        assert_eq!(fs::read_link(&guest.images[0]).unwrap(), far);
        assert_same(&far, "qcow2", &good[0]);
        assert_eq!(xml("mail01"), definition);
        fs::remove_file(&far).unwrap();
        // And after it was lost altogether.
        virsh_ok(&["undefine", "--checkpoints-metadata", "mail01"]);
        fs::remove_file(&guest.images[0]).unwrap();
        fs::remove_file(&guest.images[1]).unwrap();
        lab.run(&["restore", &tree(lab), "--start"]).ok();
        assert_eq!(xml("mail01"), definition);
        guest.content = good;
        guest.assert_content();
        assert_no_trace(lab, "mail01");
        // It is backed up again, and what it is compared with is what was restored.
        guest.write_chunks(0, 5, [60]);
        lab.run(&["chunkmount", "mail01"]).ok();
        assert_eq!(lab.rsync("mail01"), 1, "only what was written since");
        lab.assert_restored("mail01", &guest.content);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_what_fails_half_way_leaves_everything_as_it_was() {
    with_libvirt("libvirt_what_fails_half_way_leaves_everything_as_it_was", |lab| {
        let mut guest = kept_tree(lab);
        guest.write(0, 9, 0, 8 << 20);
        guest.power_off();
        let definition = xml("mail01");
        let dir = target(lab);
        // libvirt refuses the definition: the very last step.
        let copy = lab.path("copy").join("mail01/mail01.xml");
        let good = fs::read_to_string(&copy).unwrap();
        fs::write(&copy, good.replace("machine='pc", "machine='nonsense")).unwrap();
        let ran = lab.run(&["restore", &tree(lab), "--force"]);
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stderr.contains("define mail01"), "{ran:?}");
        assert_eq!(xml("mail01"), definition);
        guest.assert_content();
        let ran = lab.run(&["restore", &tree(lab), "--name=mail02", &format!("--to={}", dir.display())]);
        assert_eq!((ran.status, is_defined("mail02")), (1, false), "{ran:?}");
        assert_eq!(names_in(&dir), [""; 0]);
        fs::write(&copy, good).unwrap();
        // A full disk.
        run_well("mount", &["-t", "tmpfs", "-o", "size=5m", "tmpfs", &text(&dir)]);
        let ran = lab.run(&["restore", &tree(lab), "--name=mail02", &format!("--to={}", dir.display())]);
        let left = names_in(&dir);
        run_well("umount", &[&text(&dir)]);
        assert_eq!((ran.status, is_defined("mail02")), (1, false), "{ran:?}");
        assert!(ran.stderr.contains("No space left on device"), "{ran:?}");
        assert_eq!(left, [""; 0]);
        assert_no_trace(lab, "mail02");
    });
}

#[test]
fn libvirt_a_restore_that_is_killed_leaves_partial_names_and_a_repeat_succeeds() {
    with_libvirt("libvirt_a_restore_that_is_killed_leaves_partial_names_and_a_repeat_succeeds", |lab| {
        let mut guest = kept_tree(lab);
        let good = guest.content.clone();
        guest.write(0, 9, 0, 8 << 20);
        guest.power_off();
        let dir = target(lab);
        let to = format!("--to={}", dir.display());
        let (mut cut_off, mut whole_time) = (0, [Duration::ZERO; 2]);
        for round in 0..24_u32 {
            let in_its_place = round % 2 == 1;
            let tree = tree(lab);
            let words = match in_its_place {
                true => vec!["restore", &tree, "--force"],
                false => vec!["restore", &tree, "--name=mail02", &to],
            };
            let begun = Instant::now();
            let mut child = lab.spawn(&words);
            // Not killed the first time in each place: that tells how long it takes, and so when to kill it.
            match round {
                0 | 1 => drop(child.wait().unwrap()),
                _ => std::thread::sleep(whole_time[usize::from(in_its_place)] * (round - 1) / 24),
            }
            if round < 2 {
                whole_time[usize::from(in_its_place)] = begun.elapsed();
            } else if child.try_wait().unwrap().is_none() {
                cut_off += 1;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            if in_its_place {
                // Either what was there or what is restored, never a mixture, under names that are in use.
                let now = content_of(&guest.images[0], "qcow2");
                assert!(now == good[0] || now == guest.content[0], "round {round}");
            } else if !is_defined("mail02") {
                let whole = |name: &str| dir.join(name).exists();
                let (a, b) = (whole("mail02_vda.qcow2"), whole("mail02_vdb.img"));
                if a {
                    assert_same(&dir.join("mail02_vda.qcow2"), "qcow2", &good[0]);
                }
                if b {
                    assert_same(&dir.join("mail02_vdb.img"), "raw", &good[1]);
                }
            }
            if round % 6 > 3 {
                assert_is_told(lab, if in_its_place { "mail01" } else { "mail02" });
            }
            let again = lab.run(&words);
            let was_done = again.stderr.contains("there is a domain mail02 already");
            assert!(again.status == 0 || was_done, "round {round}: {again:?}");
            let (image, other) = match in_its_place {
                true => (guest.images[0].clone(), guest.images[1].clone()),
                false => (dir.join("mail02_vda.qcow2"), dir.join("mail02_vdb.img")),
            };
            assert_same(&image, "qcow2", &good[0]);
            assert_same(&other, "raw", &good[1]);
            if in_its_place {
                assert_eq!(names_in(lab.path("images")), ["mail01-a.qcow2", "mail01-b.raw", "mail01.xml"]);
                // Spoilt again for the next round.
                guest.start();
                guest.write(0, 9, 0, 8 << 20);
                guest.flush();
                guest.power_off();
            } else {
                assert_eq!(names_in(&dir), ["mail02_vda.qcow2", "mail02_vdb.img"]);
                virsh_ok(&["undefine", "mail02"]);
                fs::remove_file(image).unwrap();
                fs::remove_file(other).unwrap();
            }
            assert_no_trace(lab, "mail01");
            assert_no_trace(lab, "mail02");
        }
        assert!(cut_off >= 8, "only {cut_off} of 22 were still at it when they were killed");
    });
}

/// Where anything is left, status tells of it, and cleanup of a guest's backups has nothing to do with it.
fn assert_is_told(lab: &Lab, name: &str) {
    let journal = lab.state.join(name).join("restore");
    let is_left = journal.exists();
    lab.run(&["cleanup", "--all"]).ok();
    assert_eq!(journal.exists(), is_left);
    let told = lab.run(&["status"]);
    assert_eq!(told.status, if is_left { 3 } else { 0 }, "{told:?}");
    assert_eq!(told.stdout.contains(&format!("{name}: its restore was cut off")), is_left, "{told:?}");
}

/// A dump of the guest as it is, moved out of the way of the next one.
fn kept_dump(lab: &Lab, words: &[&str]) -> PathBuf {
    lab.run(&[&["dump", "mail01"], words].concat()).ok();
    let dir = lab.path(&format!("dump{}", words.concat()));
    run_well("cp", &["-a", &text(lab.path("b").join("mail01")), &text(&dir)]);
    lab.run(&["cleanup", "mail01"]).ok();
    dir
}

#[test]
fn libvirt_dumps_of_every_compression_come_back_and_their_damage_is_found() {
    with_libvirt("libvirt_dumps_of_every_compression_come_back_and_their_damage_is_found", |lab| {
        let guest = kept_tree(lab);
        for (program, extension) in [
            ("none", ""),
            ("gzip", ".gz"),
            ("zstd", ".zst"),
            ("pbzip2", ".bz2"),
            ("lzop", ".lzo"),
            ("xz", ".xz"),
            ("plzip", ".lz"),
        ] {
            let dump = kept_dump(lab, &[&format!("--compress={program}")]);
            let dir = target(lab);
            let to = format!("--to={}", dir.display());
            let words = ["restore", &text(&dump), "--name=mail02", &to];
            for format in ["raw", "qcow2"] {
                lab.run(&[&words[..], &[&format!("--format={format}")]].concat()).ok();
                let end = if format == "raw" { "img" } else { "qcow2" };
                for (disk, content) in ["vda", "vdb"].iter().zip(&guest.content) {
                    assert_same(&dir.join(format!("mail02_{disk}.{end}")), format, content);
                }
                virsh_ok(&["undefine", "mail02"]);
                fs::remove_dir_all(&dir).unwrap();
                fs::create_dir(&dir).unwrap();
            }
            // One byte of a disk is another, so that only its digest tells; and a file that is cut off.
            let packed = dump.join(format!("mail01_vdb.img{extension}"));
            let bytes = fs::read(&packed).unwrap();
            let list = fs::read_to_string(dump.join("mail01.b3")).unwrap();
            let line = list.lines().find(|line| line.ends_with("mail01_vdb.img")).unwrap();
            let other = list.replace(line, &format!("{}  mail01_vdb.img", "0".repeat(64)));
            for (what, content, digests) in
                [("digest", &bytes[..], other), ("cut off", &bytes[..bytes.len() / 2], list.clone())]
            {
                fs::write(&packed, content).unwrap();
                fs::write(dump.join("mail01.b3"), digests).unwrap();
                let ran = lab.run(&words);
                assert_eq!((ran.status, names_in(&dir)), (6, vec![]), "{program} {what}: {ran:?}");
                assert!(ran.stderr.contains("is damaged"), "{program} {what}: {ran:?}");
            }
        }
        // So is that of the list of digests itself.
        let dump = kept_dump(lab, &[]);
        let dir = target(lab);
        let list = fs::read_to_string(dump.join("mail01.b3")).unwrap();
        let (first, rest) = list.split_once('\n').unwrap();
        for bad in [
            list[..list.len() / 2].to_owned(),
            format!("{first}\n{rest}{first}\n"),
            rest.replace("vda", "vdc"),
        ] {
            fs::write(dump.join("mail01.b3"), &bad).unwrap();
            let ran =
                lab.run(&["restore", &text(&dump), "--name=mail02", &format!("--to={}", dir.display())]);
            assert_eq!((ran.status, names_in(&dir)), (6, vec![]), "{bad}: {ran:?}");
            assert!(ran.stderr.contains("mail01.b3"), "{ran:?}");
        }
        // `convert` makes qcow2 images; they come back as what the guest had, a qcow2 and a raw one.
        lab.run(&["convert", "mail01", "--compress"]).ok();
        let dir = target(lab);
        let converted = text(lab.path("b").join("mail01"));
        lab.run(&["restore", &converted, "--name=mail02", &format!("--to={}", dir.display()), "--start"])
            .ok();
        assert_same(&dir.join("mail02_vda.qcow2"), "qcow2", &guest.content[0]);
        assert_same(&dir.join("mail02_vdb.img"), "raw", &guest.content[1]);
    });
}

#[test]
fn libvirt_devices_are_written_when_they_are_large_enough_and_in_place_only_what_differs() {
    with_libvirt(
        "libvirt_devices_are_written_when_they_are_large_enough_and_in_place_only_what_differs",
        |lab| {
            let guest = kept_tree(lab);
            let dir = target(lab);
            let device = |name: &str, mib: u64| {
                let image = lab.path(name);
                fs::write(&image, vec![7; (mib as usize) << 20]).unwrap();
                LoopDevice::attach(&image, mib << 20)
            };
            let (small, large) = (device("small", 15), device("large", 17));
            let to = format!("--to={}", dir.display());
            let disk = |device: &LoopDevice| format!("--disk=vda={}", device.path.display());
            let ran = lab.run(&["restore", &tree(lab), "--name=mail02", &to, &disk(&small)]);
            assert_eq!(ran.status, 1, "{ran:?}");
            assert!(ran.stderr.contains("has 15 MiB, and the disk has 16 MiB"), "{ran:?}");
            assert!(fs::read(&small.path).unwrap().iter().all(|byte| *byte == 7));

            let gz = kept_dump(lab, &["--compress"]);
            for from in [PathBuf::from(tree(lab)), gz.clone()] {
                lab.run(&["restore", &text(&from), "--name=mail02", &to, &disk(&large)]).ok();
                let now = fs::read(&large.path).unwrap();
                assert!(now[..16 << 20] == guest.content[0], "{}", from.display());
                assert!(now[16 << 20..].iter().all(|byte| *byte == 7), "behind the disk");
                let defined = xml("mail02");
                assert!(defined.contains(&format!("<source dev='{}'", large.path.display())), "{defined}");
                assert!(defined.contains("<disk type='block'"), "{defined}");
                virsh_ok(&["start", "mail02"]);
                virsh_ok(&["destroy", "mail02"]);
                virsh_ok(&["undefine", "mail02"]);
                fs::remove_file(dir.join("mail02_vdb.img")).unwrap();
                fs::write(&large.path, vec![7; 17 << 20]).unwrap();
            }

            // What fails before the first byte is written has not left the device half written.
            fs::write(gz.join("mail01_vda.img.gz"), "no gzip").unwrap();
            fs::remove_file(gz.join("mail01.b3")).unwrap();
            let words = ["restore", &text(&gz), "--name=mail02", &to, &disk(&large), "--no-verify"];
            let ran = lab.run(&words);
            assert_eq!(ran.status, 6, "{ran:?}");
            assert!(fs::read(&large.path).unwrap().iter().all(|byte| *byte == 7));

            // In place: a raw image of which a few bytes differ.
            let image = dir.join("mail02_vdb.img");
            let mut bytes = guest.content[1].clone();
            bytes[5 << 20] = 99;
            fs::write(&image, &bytes).unwrap();
            let inode = fs::metadata(&image).unwrap().ino();
            let vda = format!("--disk=vda={}", large.path.display());
            lab.run(&["restore", &tree(lab), "--name=mail02", &to, &vda, "--in-place", "--format=raw"]).ok();
            assert!(fs::read(&image).unwrap() == guest.content[1]);
            assert_eq!(fs::metadata(&image).unwrap().ino(), inode);
            assert!(fs::read(&large.path).unwrap()[..16 << 20] == guest.content[0]);

            // Its own qcow2 image may have more in it than the backup has.
            let before = fs::read(&guest.images[0]).unwrap();
            let ran = lab.run(&["restore", &tree(lab), "--force", "--in-place"]);
            assert_eq!(ran.status, 1, "{ran:?}");
            assert!(ran.stderr.contains("is declared as qcow2"), "{ran:?}");
            assert!(fs::read(&guest.images[0]).unwrap() == before);
        },
    );
}

#[test]
fn libvirt_an_archive_comes_back_with_its_snapshots_and_they_can_be_reverted_to() {
    with_libvirt("libvirt_an_archive_comes_back_with_its_snapshots_and_they_can_be_reverted_to", |lab| {
        let mut guest = lab.guest_off("mail01", &DISKS[..1]);
        let mut states = Vec::new();
        for (byte, name) in [(1, "first"), (2, "second")] {
            guest.start();
            guest.write(0, byte, 0, 1 << 20);
            guest.flush();
            guest.power_off();
            virsh_ok(&["snapshot-create-as", "mail01", name]);
            states.push((name, guest.content[0].clone()));
        }
        guest.start();
        guest.write(0, 3, 0, 1 << 20);
        guest.flush();
        guest.power_off();
        let base = lab.path("archives");
        lab.run(&["archive", "mail01", &format!("--backup-base-dir={}", base.display())]).ok();
        let dates = names_in(base.join("mail01"));
        assert_eq!(dates.len(), 1, "{dates:?}");
        let dir = base.join("mail01").join(&dates[0]);

        let to = target(lab);
        lab.run(&["restore", &text(&dir), "--name=mail02", &format!("--to={}", to.display())]).ok();
        assert_eq!(
            virsh_ok(&["snapshot-list", "--name", "--topological", "mail02"])
                .split_whitespace()
                .collect::<Vec<_>>(),
            ["first", "second"]
        );
        let image = to.join("mail02_vda.qcow2");
        assert_same(&image, "qcow2", &guest.content[0]);
        for (name, content) in &states {
            virsh_ok(&["snapshot-revert", "mail02", name]);
            assert_same(&image, "qcow2", content);
        }
        guest.assert_content();
        // Called as the original, it is the original: after it was lost, and only then or when it is forced.
        let words = ["restore", &text(&dir), "--name=mail01", &format!("--to={}", to.display())];
        let ran = lab.run(&words);
        assert!(ran.stderr.contains("mail01 is defined: --force"), "{ran:?}");
        let uuid = virsh_ok(&["domuuid", "mail01"]);
        virsh_ok(&["undefine", "--snapshots-metadata", "mail01"]);
        lab.run(&words).ok();
        assert_eq!(virsh_ok(&["domuuid", "mail01"]), uuid);
        // A byte of the image, a file that is missing, the manifest.
        let path = dir.join("vda.qcow2");
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
        let words = ["restore", &text(&dir), "--name=mail03", &format!("--to={}", to.display())];
        let damaged = |why: &str| {
            let ran = lab.run(&words);
            assert_eq!((ran.status, is_defined("mail03")), (6, false), "{ran:?}");
            assert!(ran.stderr.contains(why), "{ran:?}");
        };
        fs::write(&path, bad).unwrap();
        damaged("vda.qcow2 is damaged");
        fs::write(&path, good).unwrap();
        fs::write(dir.join("manifest.json"), &manifest[..manifest.len() / 2]).unwrap();
        damaged("the manifest is damaged");
        fs::write(dir.join("manifest.json"), manifest).unwrap();
        fs::remove_file(dir.join("snapshots/second.xml")).unwrap();
        damaged("snapshots/second.xml");
    });
}

#[test]
fn libvirt_a_guest_goes_on_from_its_saved_memory() {
    with_libvirt("libvirt_a_guest_goes_on_from_its_saved_memory", |lab| {
        let mut guest = lab.guest("mail01", &DISKS[1..]);
        guest.write(0, 1, 0, 1 << 20);
        guest.flush();
        let dir = kept_dump(lab, &["--state"]);
        guest.power_off();
        virsh_ok(&["undefine", "--checkpoints-metadata", "mail01"]);
        fs::remove_file(&guest.images[0]).unwrap();
        let to = target(lab);
        let moved = format!("--to={}", to.display());
        let ran = lab.run(&["restore", &text(&dir), "--state", &moved, "--name=mail02"]);
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stderr.contains("--state does not go with --name"), "{ran:?}");
        lab.run(&["restore", &text(&dir), "--state", &moved]).ok();
        assert_eq!(virsh_ok(&["domstate", "mail01"]).trim(), "running");
        assert!(virsh_ok(&["domblklist", "mail01"]).contains("restored/mail01_vda.img"));
        assert_eq!(names_in(&to), ["mail01_vda.img"]);
        // It was resumed, not booted: QEMU came from a migration.
        let origin = virsh_ok(&["domstate", "--reason", "mail01"]);
        assert!(origin.contains("restored"), "{origin}");
    });
}

#[test]
fn libvirt_a_hostile_backup_leads_nowhere() {
    with_libvirt("libvirt_a_hostile_backup_leads_nowhere", |lab| {
        let _guest = kept_tree(lab);
        let dump = kept_dump(lab, &[]);
        let to = target(lab);
        let secret = lab.path("secret");
        fs::write(&secret, vec![5; 1 << 20]).unwrap();
        let words = ["restore", &text(&dump), "--name=mail02", &format!("--to={}", to.display())];
        let image = dump.join("mail01_vdb.img");
        let good = fs::read(&image).unwrap();
        let refused = |why: &str| {
            let ran = lab.run(&words);
            assert_eq!((ran.status, names_in(&to)), (1, vec![]), "{why}: {ran:?}");
            assert!(ran.stderr.contains(why), "{ran:?}");
            fs::remove_file(&image).unwrap();
        };
        fs::remove_file(&image).unwrap();
        std::os::unix::fs::symlink(&secret, &image).unwrap();
        refused("symbolic link");
        run_well("mkfifo", &[&text(&image)]);
        refused("a FIFO");
        // An image that would have whoever reads it read another file.
        let qcow2 = dump.join("mail01_vdb.qcow2");
        run_well(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&secret), &text(&qcow2), "8M"],
        );
        let ran = lab.run(&words);
        assert_eq!((ran.status, names_in(&to)), (1, vec![]), "{ran:?}");
        assert!(ran.stderr.contains("lies over"), "{ran:?}");
        fs::remove_file(&qcow2).unwrap();
        // The header of another format in a raw disk is the guest's own data.
        fs::write(&image, &good).unwrap();
        let header = lab.path("header.qcow2");
        run_well(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&secret), &text(&header), "8M"],
        );
        let header = fs::read(&header).unwrap();
        let mut disk = good.clone();
        disk[..4096].copy_from_slice(&header[..4096]);
        fs::write(&image, &disk).unwrap();
        fs::remove_file(dump.join("mail01.b3")).unwrap();
        lab.run(&[&words[..], &["--format=qcow2", "--start"]].concat()).ok();
        assert_same(&to.join("mail02_vdb.qcow2"), "qcow2", &disk);
        let dtd = "<!DOCTYPE d [<!ENTITY e SYSTEM '/etc/passwd'>]>";
        let xml = fs::read_to_string(dump.join("mail01.xml")).unwrap();
        fs::write(dump.join("mail01.xml"), format!("{dtd}{xml}")).unwrap();
        let ran = lab.run(&["restore", &text(&dump), "--name=mail03", words[3]]);
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stderr.contains("DTD"), "{ran:?}");
    });
}
