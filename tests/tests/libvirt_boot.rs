//! Guests that run straight from a tree of chunks: the tree stays as it was, and nothing is left but what is kept.
//! Most are a boot sector that writes to its disk and prints a line; one is a Linux that was backed up while it wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::libvirt::{Agent, Disk, Guest, Lab, content_of, lines_in, virsh, virsh_ok, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "raw", mib: 8 }, Disk { format: "raw", mib: 8 }];
const PRINTS: &str = "BOOTED FROM ITS DISK";
/// Where the boot sector writes a copy of itself to.
const WRITTEN: usize = 2 * 512;

/// Real mode code: writes itself to sector 3 by the BIOS, prints a line on the first serial port, and halts.
fn boot_sector() -> Vec<u8> {
    let mut code = vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]; // cli; ds = es = ss = 0
    code.extend([0xbc, 0x00, 0x7c, 0xfc, 0xfb]); // sp = 0x7c00; cld; sti
    code.extend([0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c]); // write one sector, from 0x7c00
    code.extend([0xb9, 0x03, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13]); // to cylinder 0, sector 3 of the first disk
    let text = 0x7c00 + code.len() as u16 + 16;
    code.push(0xbe);
    code.extend(text.to_le_bytes()); // si = text
    code.extend([0x31, 0xc0, 0xac, 0x84, 0xc0, 0x74, 0x06]); // al = next byte; at the end, go to hlt
    code.extend([0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5]); // out to COM1; go on
    assert_eq!(0x7c00 + code.len() as u16, text);
    code.extend(PRINTS.bytes());
    code.push(0);
    // It halts behind the text: the jump above is patched to there.
    let halt = code.len();
    code.extend([0xf4, 0xeb, 0xfd]);
    let jump = 0x7c00 + 28 + 3 + 2 + 1 + 2;
    let distance = 0x7c00 + halt - (jump + 2);
    code[(jump - 0x7c00) + 1] = distance as u8;
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

/// A guest that is off, of which a backup tool has kept a view.
fn kept_tree(lab: &Lab) -> Guest {
    let mut guest = lab.guest_off("mail01", &DISKS);
    let sector = boot_sector();
    for (image, content) in guest.images.iter().zip(&mut guest.content) {
        content[..512].copy_from_slice(&sector);
        content[5 << 20..6 << 20].fill(7);
        fs::write(image, content).unwrap();
    }
    lab.run(&["chunkmount", "mail01"]).ok();
    lab.rsync("mail01");
    lab.run(&["cleanup", "mail01"]).ok();
    guest
}

fn tree(lab: &Lab) -> PathBuf {
    lab.path("copy").join("mail01")
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

fn is_there(name: &str) -> bool {
    virsh(&["dominfo", name]).0
}

fn chunkfs(words: &[&str]) {
    let program = tests::libvirt::program("CHUNKFS", "chunkfs");
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// No guest, no view, no file, no daemon; and the tree is what it was.
fn assert_nothing_left(lab: &Lab, name: &str) {
    assert!(!is_there(name), "{name} is there");
    let home = lab.state.join(name);
    let left: Vec<_> = match fs::read_dir(&home) {
        Ok(entries) => entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        Err(_) => Vec::new(),
    };
    assert!(left.iter().all(|name| name == "guard"), "{left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&text(&home)), "{mounts}");
    let daemons = || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let words = fs::read_to_string(entry.ok()?.path().join("cmdline")).ok()?;
            (words.contains("chunkfs\0join") && words.contains(&text(&home))).then_some(words)
        });
        processes.count()
    };
    wait_until("the end of the daemons", || daemons() == 0);
    for disk in ["vda", "vdb"] {
        let chunks = tree(lab).join(format!("mail01_{disk}"));
        if chunks.exists() {
            chunkfs(&["verify", &text(chunks)]);
        }
    }
}

#[test]
fn libvirt_a_guest_runs_from_chunks_and_is_thrown_away() {
    with_libvirt("libvirt_a_guest_runs_from_chunks_and_is_thrown_away", |lab| {
        let guest = kept_tree(lab);
        guest.start();
        let before = guest.shape();
        lab.run(&["boot", &text(tree(lab))]).ok();
        assert_eq!(virsh_ok(&["domstate", "mail01-boot"]).trim(), "running");
        let console = lab.state.join("mail01-boot/boot/console");
        wait_until("its words", || fs::read_to_string(&console).unwrap_or_default().contains(PRINTS));
        // Once more, under the same name: it is there, and stays.
        let again = lab.run(&["boot", &text(tree(lab))]);
        assert_eq!(again.status, 4, "{again:?}");
        assert!(again.stderr.contains("virt-backup boot --stop mail01-boot"), "{again:?}");
        assert_eq!(virsh_ok(&["domstate", "mail01-boot"]).trim(), "running");
        lab.run(&["boot", "--stop=mail01-boot"]).ok();
        assert_nothing_left(lab, "mail01-boot");
        assert_eq!(guest.shape(), before, "the original");
        let none = lab.run(&["boot", "--stop=mail01-boot"]);
        assert_eq!(none.status, 1, "{none:?}");
        // One that has ended by itself makes room for the next.
        lab.run(&["boot", &text(tree(lab)), "--name=x"]).ok();
        virsh_ok(&["destroy", "x"]);
        lab.run(&["boot", &text(tree(lab)), "--name=x"]).ok();
        lab.run(&["boot", "--stop=x"]).ok();
        assert_nothing_left(lab, "x");
    });
}

#[test]
fn libvirt_a_guest_that_is_kept_has_its_own_disks_and_runs_on() {
    with_libvirt("libvirt_a_guest_that_is_kept_has_its_own_disks_and_runs_on", |lab| {
        let guest = kept_tree(lab);
        let to = lab.path("kept");
        fs::create_dir(&to).unwrap();
        let words = ["boot", &text(tree(lab)), "--name=mail02", "--keep", &format!("--to={}", to.display())];
        lab.run(&words).ok();
        assert_eq!(virsh_ok(&["domstate", "mail02"]).trim(), "running");
        assert!(virsh_ok(&["dominfo", "mail02"]).contains("Persistent:     yes"));
        // Nothing leads to the backup any more.
        fs::rename(tree(lab), lab.path("elsewhere")).unwrap();
        // QEMU keeps the tables of its images to itself until it is told to write them.
        let flush = || {
            for disk in 0..2 {
                let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
                virsh_ok(&["qemu-monitor-command", "--hmp", "mail02", &format!("qemu-io -d {device} flush")]);
            }
        };
        for (disk, content) in ["vda", "vdb"].iter().zip(&guest.content) {
            let image = to.join(format!("mail02_{disk}.qcow2"));
            let info = Command::new("qemu-img").args(["info", "-U"]).arg(&image).output().unwrap();
            let info = String::from_utf8(info.stdout).unwrap();
            assert!(info.contains("file format: qcow2") && !info.contains("backing"), "{info}");
            if *disk == "vda" {
                wait_until("what it wrote", || {
                    flush();
                    content_of(&image, "qcow2")[WRITTEN..WRITTEN + 512] == content[..512]
                });
            }
            flush();
            let mut expected = content.clone();
            if *disk == "vda" {
                expected.copy_within(..512, WRITTEN);
            }
            let now = content_of(&image, "qcow2");
            let differs = now.chunks(512).zip(expected.chunks(512)).position(|(a, b)| a != b);
            assert_eq!((now.len(), differs), (expected.len(), None), "{disk}: the first sector that differs");
        }
        virsh_ok(&["destroy", "mail02"]);
        virsh_ok(&["start", "mail02"]);
        virsh_ok(&["destroy", "mail02"]);
        virsh_ok(&["undefine", "mail02"]);
        fs::rename(lab.path("elsewhere"), tree(lab)).unwrap();
        assert_nothing_left(lab, "mail02");
    });
}

#[test]
fn libvirt_a_drill_tells_a_tree_that_lives_from_one_that_does_not() {
    with_libvirt("libvirt_a_drill_tells_a_tree_that_lives_from_one_that_does_not", |lab| {
        let _guest = kept_tree(lab);
        let tree_text = text(tree(lab));
        let expect = format!("--expect={PRINTS}");
        let drill = ["drill", &tree_text, &expect];
        let ran = lab.run(&[&drill[..], &["--json"]].concat()).ok();
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((&report["name"], &report["lives"]), (&"mail01-drill".into(), &true.into()));
        assert_nothing_left(lab, "mail01-drill");

        let ran = lab.run(&["drill", &tree_text, "--expect=something else", "--timeout=3"]);
        assert_eq!(ran.status, 6, "{ran:?}");
        assert!(ran.stderr.contains("has not proven in time"), "{ran:?}");
        assert!(ran.stderr.contains(PRINTS), "what it did print: {ran:?}");
        assert_nothing_left(lab, "mail01-drill");

        let ran = lab.run(&["drill", &tree_text]);
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stderr.contains("--expect"), "{ran:?}");

        let chunk = "mail01_vda/00/00/00/00/00/00/00/14";
        let path = tree(lab).join(chunk);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[0] ^= 1;
        fs::write(&path, bad).unwrap();
        let ran = lab.run(&drill);
        assert_eq!(ran.status, 6, "{ran:?}");
        assert!(ran.stderr.contains(chunk), "{ran:?}");
        fs::write(&path, good).unwrap();
        assert_nothing_left(lab, "mail01-drill");
    });
}

#[test]
fn libvirt_a_drill_that_is_killed_is_cleared_by_the_next() {
    with_libvirt("libvirt_a_drill_that_is_killed_is_cleared_by_the_next", |lab| {
        let _guest = kept_tree(lab);
        let tree_text = text(tree(lab));
        let expect = format!("--expect={PRINTS}");
        let mut cut_off = 0;
        for round in 0..8 {
            let mut child = lab.spawn(&["drill", &tree_text, "--expect=never", "--timeout=60"]);
            std::thread::sleep(Duration::from_millis(50 + 250 * round));
            cut_off += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            // libvirt finishes what it was asked.
            std::thread::sleep(Duration::from_millis(500));
            if is_there("mail01-drill") {
                let ran = lab.run(&["drill", &tree_text, &expect]);
                assert_eq!(ran.status, 4, "round {round}: {ran:?}");
                lab.run(&["boot", "--stop=mail01-drill"]).ok();
                assert_nothing_left(lab, "mail01-drill");
            }
            lab.run(&["drill", &tree_text, &expect]).ok();
            assert_nothing_left(lab, "mail01-drill");
        }
        assert_eq!(cut_off, 8);
    });
}

#[test]
fn libvirt_a_linux_that_was_backed_up_while_it_wrote_lives_and_has_every_line() {
    with_libvirt("libvirt_a_linux_that_was_backed_up_while_it_wrote_lives_and_has_every_line", |lab| {
        let guest = lab.linux("mail01", Agent::Absent);
        virsh_ok(&["start", "mail01"]);
        guest.wait_for_line(20);
        let synced_before = guest.lines_on_disk();
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.rsync("mail01");
        lab.run(&["cleanup", "mail01"]).ok();
        guest.wait_for_line(synced_before + 10);
        virsh_ok(&["destroy", "mail01"]);

        let begun = Instant::now();
        let ran = lab.run(&["drill", &text(tree(lab)), "--expect=GUEST LIVES with ", "--timeout=120"]).ok();
        println!("drill: {} s: {}", begun.elapsed().as_secs_f64(), ran.stdout);
        assert_nothing_left(lab, "mail01-drill");

        let to = lab.path("restored");
        fs::create_dir(&to).unwrap();
        lab.run(&["restore", &text(tree(lab)), "--name=mail02", &format!("--to={}", to.display())]).ok();
        let lines = lines_in(&to.join("mail02_vda.img"));
        assert!(lines >= synced_before, "{lines} of at least {synced_before} lines");
    });
}
