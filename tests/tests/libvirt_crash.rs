//! Whatever is killed, and whenever: cleanup leaves nothing, the guest has lost nothing, the next backup is right.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::libvirt::{Disk, Guest, Lab, OwnFileSystem, virsh, virsh_ok, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 16 }, Disk { format: "raw", mib: 8 }];

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

fn pid_of(file: &str) -> u32 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

/// A guest that was backed up once, and has written since.
fn backed_up(lab: &Lab) -> Guest {
    let mut guest = lab.guest("mail01", &DISKS);
    guest.write(0, 1, 0, 4 << 20);
    guest.write(1, 2, 0, 4 << 20);
    lab.run(&["chunkmount", "mail01"]).ok();
    lab.rsync("mail01");
    lab.run(&["cleanup", "mail01"]).ok();
    guest.write_chunks(0, 3, [1, 20]);
    guest
}

/// Cleans up, looks for what is left, and backs up again.
fn recover(lab: &Lab, guest: &mut Guest, story: &str) {
    println!("after {story}");
    lab.run(&["cleanup", "mail01"]).ok();
    lab.assert_nothing_left(guest);
    lab.run(&["cleanup", "mail01"]).ok();
    guest.write_chunks(0, 4, [2, 20, 40]);
    guest.write_chunks(1, 4, [3]);
    lab.run(&["chunkmount", "mail01"]).ok();
    lab.rsync("mail01");
    lab.assert_restored("mail01", &guest.content);
    lab.run(&["cleanup", "mail01"]).ok();
    lab.assert_nothing_left(guest);
    assert_eq!(guest.checkpoints().len(), 1, "{story}: {:?}", guest.checkpoints());
    guest.assert_content();
}

/// A job is killed after the first line of its journal, then one after the second, and so on to one that ends by itself.
fn kill_after_any_line(lab: &Lab, words: &[&str]) {
    let mut guest = backed_up(lab);
    let words: Vec<_> = ["chunkmount", "mail01"].iter().chain(words).copied().collect();
    for lines in 0.. {
        if let Some(status) = lab.kill_at_line("mail01", &words, lines) {
            assert!(status.success());
            println!("killed after each of {lines} lines");
            assert!(lines > 15, "a journal has more than {lines} lines");
            recover(lab, &mut guest, "a job that was not killed");
            return;
        }
        recover(lab, &mut guest, &format!("a kill at line {lines}"));
    }
}

#[test]
fn libvirt_virt_backup_may_be_killed_after_any_line_of_its_journal() {
    with_libvirt("libvirt_virt_backup_may_be_killed_after_any_line_of_its_journal", |lab| {
        kill_after_any_line(lab, &[]);
    });
}

#[test]
fn libvirt_external_may_be_killed_after_any_line_of_its_journal() {
    with_libvirt("libvirt_external_may_be_killed_after_any_line_of_its_journal", |lab| {
        kill_after_any_line(lab, &["--method=external"]);
    });
}

#[test]
fn libvirt_reflink_may_be_killed_after_any_line_of_its_journal() {
    with_libvirt("libvirt_reflink_may_be_killed_after_any_line_of_its_journal", |lab| {
        let _images = OwnFileSystem::mount(lab, "xfs", "512M");
        kill_after_any_line(lab, &["--method=reflink"]);
    });
}

/// QEMU and libvirt are gone, and the guest is on its overlays; it is off when they are merged.
#[test]
fn libvirt_overlays_are_merged_when_qemu_was_killed() {
    with_libvirt("libvirt_overlays_are_merged_when_qemu_was_killed", |lab| {
        let mut guest = backed_up(lab);
        let definition = virsh_ok(&["dumpxml", "--inactive", "mail01"]);
        lab.run(&["chunkmount", "mail01", "--method=external"]).ok();
        let then = guest.content.clone();
        guest.write_chunks(0, 7, [1, 9, 30]);
        guest.write_chunks(1, 7, [9]);
        guest.flush();
        lab.rsync("mail01");
        lab.assert_restored("mail01", &then);
        guest.signal(Signal::KILL);
        guest.wait_until_off();
        assert!(
            virsh_ok(&["dumpxml", "--inactive", "mail01"]).contains(".virt-backup-"),
            "it is on overlays"
        );
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        assert_eq!(virsh_ok(&["dumpxml", "--inactive", "mail01"]), definition);
        guest.assert_content();
        guest.start();
        recover(lab, &mut guest, "QEMU was killed over overlays");
    });
}

/// A merge that fails keeps every write of the guest, says so with status 3, and is made good by a later cleanup.
#[test]
fn libvirt_a_merge_into_a_full_file_system_keeps_the_overlay_until_there_is_room() {
    with_libvirt("libvirt_a_merge_into_a_full_file_system_keeps_the_overlay_until_there_is_room", |lab| {
        let images = OwnFileSystem::mount(lab, "ext4", "96M");
        let mut guest = lab.guest("mail01", &[Disk { format: "qcow2", mib: 32 }]);
        guest.write(0, 1, 0, 4 << 20);
        let shape = guest.shape();
        lab.run(&["chunkmount", "mail01", "--method=external"]).ok();
        // The overlay has room for these; the image, once the rest is taken, has not.
        guest.write(0, 5, 8 << 20, 16 << 20);
        guest.flush();
        let filler = lab.path("images/filler");
        let fill = format!("cat /dev/zero > '{}' 2>/dev/null; sync", filler.display());
        assert!(Command::new("sh").args(["-c", &fill]).status().unwrap().success());
        let failed = lab.run(&["cleanup", "mail01"]);
        assert_eq!(failed.status, 3, "{failed:?}");
        assert!(failed.stderr.contains("with all the guest has written"), "{failed:?}");
        assert!(
            virsh_ok(&["dumpxml", "mail01"]).contains(".virt-backup-"),
            "the guest goes on with the overlay"
        );
        assert_eq!(lab.run(&["cleanup", "mail01"]).status, 3, "as often as one likes");
        fs::remove_file(filler).unwrap();
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        assert_eq!(guest.shape(), shape);
        guest.assert_content();
        guest.power_off();
        drop(images);
    });
}

#[test]
fn libvirt_the_daemon_may_be_killed() {
    with_libvirt("libvirt_the_daemon_may_be_killed", |lab| {
        let mut guest = backed_up(lab);
        lab.run(&["chunkmount", "mail01"]).ok();
        kill(lab.daemon("mail01"));
        let point = lab.path("b").join("mail01");
        let deadline = Instant::now() + Duration::from_secs(10);
        // Never an empty directory; for a moment "software caused connection abort".
        while fs::read_dir(&point).err().and_then(|error| error.raw_os_error()) != Some(107) {
            assert!(Instant::now() < deadline, "{:?}", fs::read_dir(&point));
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = lab.run(&["status"]);
        assert_eq!(status.status, 3);
        assert!(status.stdout.contains("run cleanup"), "{status:?}");
        recover(lab, &mut guest, "the daemon was killed");
    });
}

#[test]
fn libvirt_libvirtd_may_be_killed_and_started_again_under_a_view() {
    with_libvirt("libvirt_libvirtd_may_be_killed_and_started_again_under_a_view", |lab| {
        let mut guest = backed_up(lab);
        lab.run(&["chunkmount", "mail01"]).ok();
        let then = guest.content.clone();
        kill(pid_of("/run/libvirt/libvirtd.pid"));
        lab.rsync("mail01");
        lab.assert_restored("mail01", &then);
        let refused = lab.run(&["cleanup", "mail01"]);
        assert_eq!(refused.status, 3, "without libvirt the job cannot be ended: {refused:?}");

        let start =
            Command::new("libvirtd").args(["--daemon", "--pid-file", "/run/libvirt/libvirtd.pid"]).status();
        assert!(start.unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !virsh(&["domstate", "mail01"]).0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
        recover(lab, &mut guest, "libvirtd was killed");
    });
}

#[test]
fn libvirt_a_guest_may_be_killed_under_its_view() {
    with_libvirt("libvirt_a_guest_may_be_killed_under_its_view", |lab| {
        let mut guest = backed_up(lab);
        lab.run(&["chunkmount", "mail01"]).ok();
        guest.signal(Signal::KILL);
        guest.wait_until_off();
        let chunk = lab.path("b").join("mail01/mail01_vda/00/00/00/00/00/00/00/05");
        let deadline = Instant::now() + Duration::from_secs(10);
        let error = loop {
            match fs::read(&chunk) {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < deadline, "the view goes on without its source"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(error.raw_os_error(), Some(5));
        assert_eq!(lab.status()[0]["state"], "failed");
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        guest.start();
        recover(lab, &mut guest, "QEMU was killed");
    });
}

#[test]
fn libvirt_a_view_outlives_whoever_called_for_it() {
    with_libvirt("libvirt_a_view_outlives_whoever_called_for_it", |lab| {
        let guest = backed_up(lab);
        // A session of its own, as sshd gives one, that is killed as a whole.
        let script = "\"$@\"; touch \"$READY\"; exec sleep 100";
        let starter = ["setsid", "--wait", "sh", "-c", script, "sh"];
        let mut caller = lab.command_under(&starter, &["chunkmount", "mail01"]);
        caller.env("READY", lab.path("ready"));
        let mut caller = caller.spawn().unwrap();
        while !lab.path("ready").exists() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let killed = Command::new("pkill").args(["-KILL", "-s"]).arg(session_of(caller.id())).status();
        assert!(killed.unwrap().success());
        caller.wait().unwrap();
        lab.rsync("mail01");
        lab.assert_restored("mail01", &guest.content);
        assert_eq!(lab.status()[0]["state"], "shown");
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
    });
}

/// A `systemd-run` for a machine without systemd: it writes down what it was asked, and becomes the program or fails.
fn pretend_systemd(lab: &Lab, script_end: &str) -> std::ffi::OsString {
    fs::create_dir_all("/run/systemd/system").unwrap();
    let bin = lab.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let tool = bin.join("systemd-run");
    let log = lab.path("asked");
    let script = format!("#!/bin/sh\necho \"$*\" >>{}\n{script_end}\n", log.display());
    fs::write(&tool, script).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let paths = std::env::var_os("PATH").unwrap();
    std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&paths))).unwrap()
}

#[test]
fn libvirt_where_systemd_runs_a_view_has_a_scope_of_its_own_or_says_why_not() {
    with_libvirt("libvirt_where_systemd_runs_a_view_has_a_scope_of_its_own_or_says_why_not", |lab| {
        let mut guest = backed_up(lab);
        let becomes = "while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"";
        for (script, said) in [
            (becomes, ""),
            ("echo 'systemd-run: Failed to connect to bus' >&2; exit 1", "Failed to connect to bus"),
        ] {
            let path = pretend_systemd(lab, script);
            let output = lab.command(&["chunkmount", "mail01"]).env("PATH", &path).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stderr}");
            assert_eq!(stderr.contains("no scope of its own"), !said.is_empty(), "{stderr}");
            assert!(stderr.contains(said), "{stderr}");
            let asked = fs::read_to_string(lab.path("asked")).unwrap();
            let scope = "--scope --quiet --collect --no-ask-password --description=view at ";
            assert!(asked.lines().all(|line| line.starts_with(scope)), "{asked}");
            assert_eq!(asked.contains("chunkfs mount --view"), said.is_empty(), "{asked}");
            fs::remove_file(lab.path("asked")).unwrap();
            lab.rsync("mail01");
            lab.assert_restored("mail01", &guest.content);
            recover(lab, &mut guest, script);
        }
        // What the daemon says when it cannot start is what is told, through the scope as without it.
        let path = pretend_systemd(lab, becomes);
        let mut broken = lab.command(&["chunkmount", "mail01"]);
        broken.env("PATH", &path).env("CHUNKFS", "/bin/false");
        let output = broken.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("exit status: 1"), "{stderr}");
        recover(lab, &mut guest, "a daemon that cannot start");
    });
}

/// The session that the only child of a process leads.
fn session_of(parent: u32) -> String {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.split_whitespace().next().unwrap_or(&parent.to_string()).to_owned()
}
