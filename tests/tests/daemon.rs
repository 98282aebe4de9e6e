//! The process behind a mount: how it starts, what it lets go of, how it ends, and what it leaves.

use rustix::io::Errno;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tests::image::noise;
use tests::{CHUNK, Home, Image, chunk, process};

fn home(name: &str) -> Home {
    let home = Home::new(name);
    Image::full(&home.path("disk.img"), 10 * CHUNK);
    home
}

const COMPARE: &str = "find mnt -type f | LC_ALL=C sort | xargs cat | cmp - disk.img";

/// The generations of the index `i`: whether each was closed.
fn closed(home: &Home) -> Vec<bool> {
    let shown: serde_json::Value =
        serde_json::from_str(&home.run("chunkfs index show --json i").ok()).unwrap();
    shown["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|generation| !generation["closed"].is_null())
        .collect()
}

/// Somebody who has a file of the mount open.
fn hold(home: &Home) -> std::process::Child {
    let holder = home.start(&format!("tail -f mnt/{}", chunk(3)));
    let point = home.path("mnt");
    let links = || std::fs::read_dir(format!("/proc/{}/fd", holder.id())).unwrap().flatten();
    process::until("the holder", process::LIMIT, || {
        links().any(|link| std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(&point)))
    });
    holder
}

#[test]
fn fuse_mount_returns_when_the_view_is_there_and_holds_nothing_of_its_caller() {
    let home = home("caller");
    home.sh("chunkfs mount --index i disk.img mnt | cat; test -d mnt/00").ok();
    home.unmount();
    home.sh("chunkfs mount --index i disk.img mnt 2>&1 >/dev/null </dev/null | cat; test -d mnt/00").ok();
    home.unmount();
    // A lock that the caller has on another descriptor, as every second cron job does.
    home.sh("( flock 9; chunkfs mount --index i disk.img mnt ) 9>lock; flock --nonblock lock true").ok();
    home.sh("mkdir d; cd d; chunkfs mount ../disk.img ../x 2>/dev/null; mkdir ../x; chunkfs mount ../disk.img ../x; cd ..; rmdir d").ok();
    home.run("chunkfs umount x").ok();
    let pid = home.daemon("mnt");
    for descriptor in ["0", "1", "2"] {
        let held = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", pid.as_raw_nonzero())).unwrap();
        let held = held.to_str().unwrap();
        assert!(held == "/dev/null" || held.starts_with("socket:"), "{descriptor}: {held}");
    }
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).unwrap();
    assert_eq!(cwd.to_str(), Some("/"));
}

#[test]
fn fuse_the_daemon_outlives_the_end_of_its_callers_group_and_session() {
    let home = home("group");
    let mut shell = home.start("setsid --wait sh -c sleep\\ 60");
    let _ = shell.kill();
    let _ = shell.wait();
    home.sh("setsid --wait bash -c 'chunkfs mount --index i disk.img mnt; kill -HUP 0; kill -TERM 0; kill -KILL 0'; true".replace("chunkfs", &process::chunkfs().display().to_string()).as_str()).ok();
    std::thread::sleep(Duration::from_millis(200));
    home.sh(COMPARE).ok();
    home.unmount();
    assert_eq!(closed(&home), [true]);
}

#[test]
fn fuse_signals_unmount_and_close_the_index() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let home = home("signal");
        home.mount("--index i disk.img");
        let pid = home.daemon("mnt");
        home.kill(pid, signal);
        home.wait_for_end_of(pid);
        assert!(!home.is_mounted("mnt"), "{signal:?}");
        assert_eq!(closed(&home), [true], "{signal:?}");
        assert_eq!(home.run("ls -A mnt").ok(), "");
    }
}

#[test]
fn fuse_in_the_foreground_it_serves_until_it_is_told_to_end_and_then_exits_with_0() {
    for (how, index) in [("umount", "i"), ("chunkfs umount", "j"), ("TERM", "k"), ("INT", "l")] {
        let home = home("foreground");
        let mut child = home.start(&format!("chunkfs mount --foreground --index {index} disk.img mnt"));
        process::until("the mount", process::LIMIT, || home.is_mounted("mnt"));
        process::until("the socket", process::LIMIT, || home.run("chunkfs status mnt").status == 0);
        home.sh(COMPARE).ok();
        match how {
            "TERM" => home.kill(rustix::process::Pid::from_child(&child), Signal::TERM),
            "INT" => home.kill(rustix::process::Pid::from_child(&child), Signal::INT),
            command => drop(home.run(&format!("{command} mnt")).ok()),
        }
        let status = process::wait(&mut child, Duration::from_secs(20));
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{how}");
        assert!(!home.is_mounted("mnt"), "{how}");
    }
}

#[test]
fn fuse_a_plain_umount_closes_the_index_too() {
    let home = home("plain");
    home.mount("--index i disk.img");
    let pid = home.daemon("mnt");
    home.run("umount mnt").ok();
    home.wait_for_end_of(pid);
    assert_eq!(closed(&home), [true]);
    // And at once, without waiting for that.
    home.mount("--index i disk.img");
    home.run("umount mnt").ok();
    home.mount("--index i disk.img");
    home.unmount();
    assert_eq!(closed(&home), [true, true, true]);
}

#[test]
fn fuse_after_unmounting_the_index_is_one_file() {
    let home = home("onefile");
    for end in ["chunkfs umount mnt", "umount mnt"] {
        home.mount("--index i disk.img");
        let pid = home.daemon("mnt");
        home.run(end).ok();
        home.wait_for_end_of(pid);
        assert_eq!(home.sh("ls i*").ok(), "i\n", "{end}");
    }
    home.run("cp i copy").ok();
    home.run("chunkfs index check copy").ok();
    assert_eq!(home.run("chunkfs index show copy").ok(), home.run("chunkfs index show i").ok());
}

#[test]
fn fuse_a_mount_that_is_held_for_a_moment_more_is_not_called_busy() {
    let home = home("moment");
    home.mount("--index i disk.img");
    let pid = home.daemon("mnt");
    // As by a backup tool that is just ending: the file is still open when the unmount begins.
    home.sh("exec 9<mnt; sleep 0.15 <&9 & exec 9<&-; chunkfs umount mnt").ok();
    assert!(!home.is_mounted("mnt"));
    home.wait_for_end_of(pid);
}

#[test]
fn fuse_a_busy_mount_is_not_taken_away_unless_lazily() {
    let home = home("inuse");
    home.mount("--index i disk.img");
    let pid = home.daemon("mnt");
    let mut holder = hold(&home);
    let busy = home.run("chunkfs umount mnt");
    busy.failed(4, &["mnt: busy: used by", &format!("{} (tail)", holder.id()), "--lazy"]);
    assert!(home.is_mounted("mnt"));
    home.sh(COMPARE).ok();
    let lazy = home.start("chunkfs umount --lazy mnt");
    process::until("the mount to go", process::LIMIT, || !home.is_mounted("mnt"));
    assert!(home.is_running(pid), "it serves the holder");
    holder.kill().unwrap();
    holder.wait().unwrap();
    home.wait_for_end_of(pid);
    let mut lazy = lazy;
    let status = process::wait(&mut lazy, Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(closed(&home), [true]);
}

#[test]
fn root_a_copy_of_the_mount_in_another_namespace_does_not_keep_umount_from_ending() {
    let home = home("namespace");
    home.mount("--index i disk.img");
    let pid = home.daemon("mnt");
    let mut other = home.start("unshare --mount sleep 100");
    process::until("the other namespace", process::LIMIT, || {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", other.id())).unwrap_or_default();
        let name = std::fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap_or_default();
        name.trim() == "sleep" && table.contains("e2e.namespace")
    });
    let begun = Instant::now();
    home.unmount();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    home.wait_for_end_of(pid);
    assert_eq!(closed(&home), [true]);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn fuse_a_daemon_that_is_told_to_end_does_not_wait_for_a_reader_for_ever() {
    let home = home("stubborn");
    home.mount("--index i disk.img");
    let pid = home.daemon("mnt");
    let mut holder = hold(&home);
    home.kill(pid, Signal::TERM);
    process::until("the end", Duration::from_secs(18), || !home.is_running(pid));
    assert!(!home.is_mounted("mnt"));
    assert_eq!(closed(&home), [true]);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn fuse_a_killed_daemon_leaves_a_dead_mount_and_no_empty_directory() {
    let home = home("killed");
    home.mount("--name vda --index i disk.img");
    home.run("rsync -a mnt/ backup/").ok();
    home.unmount();
    // A view that nobody has looked into: of one that was walked, the kernel may remember the names.
    home.run("chunkfs mount --name vda --index i disk.img mnt").ok();
    let before = home.sh("find backup -type f | wc -l").ok();
    home.kill_daemon("mnt");
    assert!(home.is_mounted("mnt"));
    let listed = std::fs::read_dir(home.path("mnt")).and_then(|mut entries| entries.next().transpose());
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    let read = std::fs::read(home.path("mnt/vda").join(chunk(0)));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    let status = home.run("chunkfs status mnt");
    status.failed(3, &["its daemon does not answer", "chunkfs umount"]);
    let rsync = home.run("rsync -a --delete mnt/ backup/");
    assert_ne!(rsync.status, 0);
    assert_eq!(home.sh("find backup -type f | wc -l").ok(), before, "nothing was deleted");
    home.run("chunkfs umount mnt").ok();
    assert!(!home.is_mounted("mnt"));
    assert_eq!(closed(&home), [true, false]);
    home.mount("--name vda --index i disk.img");
    let rsync = home.run("rsync -a --delete --out-format=%n mnt/ backup/").ok();
    assert_eq!(rsync.lines().filter(|line| !line.ends_with('/')).count(), 0, "{rsync}");
}

#[test]
fn fuse_a_dead_mount_that_is_held_is_cleaned_all_the_same() {
    let home = home("deadheld");
    home.mount("--index i disk.img");
    let mut holder = hold(&home);
    home.kill_daemon("mnt");
    home.run("chunkfs umount mnt").ok();
    assert!(!home.is_mounted("mnt"));
    assert!(process::wait(&mut holder, Duration::ZERO).is_none(), "nobody ended the holder");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn fuse_an_image_that_changes_under_the_view_fails_reads_and_nothing_else() {
    for change in [
        "truncate -s 1000 disk.img",
        "truncate -s +1000 disk.img",
        "printf x | dd of=disk.img conv=notrunc bs=1 seek=2000000",
        "cp --sparse=never other.img disk.img",
        "fallocate --punch-hole --offset 0 --length 4096 disk.img",
    ] {
        for index in ["", "--index i"] {
            let home = home("changes");
            home.run("cp disk.img other.img").ok();
            home.mount(&format!("{index} disk.img"));
            let pid = home.daemon("mnt");
            home.run(&format!("cmp -n 1000 mnt/{} disk.img", chunk(0))).ok();
            home.sh("sleep 0.02").ok();
            home.sh(change).ok();
            for number in [0, 9] {
                let error = std::fs::read(home.path("mnt").join(chunk(number))).map(drop).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{change}: chunk {number}");
            }
            assert!(home.is_running(pid));
            home.unmount();
            home.mount(&format!("{index} disk.img"));
            home.sh(COMPARE).ok();
        }
    }
}

#[test]
fn fuse_an_image_that_is_removed_or_replaced_is_read_on() {
    let home = home("removed");
    home.run("cp disk.img copy.img").ok();
    home.mount("--index i disk.img");
    home.sh("rm disk.img").ok();
    // Its change time is another one now, so that nobody can know that it was not written to as well.
    let read = home.sh("find mnt -type f | LC_ALL=C sort | xargs cat | cmp - copy.img");
    assert!(read.status == 0 || read.stderr.contains("Input/output error"), "{read:?}");
}

#[test]
fn root_a_device_that_loses_its_medium_fails_reads_of_that_part_only() {
    let home = home("loop");
    let device = home.sh("losetup --find --show --read-only disk.img").ok();
    let device = device.trim();
    home.run("cp disk.img copy.img").ok();
    home.run(&format!("chunkfs mount --index i {device} mnt")).ok();
    process::until("the comparison", process::LIMIT, || home.status("mnt")["scan"]["done"] == true);
    home.sh(&format!(
        "truncate -s 1M disk.img; blockdev --flushbufs {device}; echo 3 > /proc/sys/vm/drop_caches"
    ))
    .ok();
    let bad = std::fs::read(home.path("mnt").join(chunk(8)));
    let good = home.sh(&format!("cmp -i 0:{CHUNK} -n {CHUNK} mnt/{} copy.img", chunk(1)));
    let pid = home.daemon("mnt");
    home.unmount();
    home.wait_for_end_of(pid);
    home.run(&format!("losetup --detach {device}")).ok();
    // What a loop device gives for the part that is gone is the kernel's choice: an error, or zeros of a hole.
    assert!(bad.is_err() || bad.is_ok_and(|bytes| bytes.len() == CHUNK as usize));
    good.ok();
}

#[test]
fn fuse_two_signals_and_an_umount_at_once_end_it_once() {
    for _ in 0..5 {
        let home = home("twice");
        home.mount("--index i disk.img");
        let pid = home.daemon("mnt");
        home.kill(pid, Signal::TERM);
        // It may have ended by now.
        let _ = rustix::process::kill_process(pid, Signal::INT);
        let umount = home.run("chunkfs umount mnt");
        assert!([0, 1].contains(&umount.status), "{umount:?}");
        home.wait_for_end_of(pid);
        assert!(!home.is_mounted("mnt"));
        assert_eq!(closed(&home), [true]);
    }
}

#[test]
fn fuse_a_daemon_that_is_killed_while_it_starts_is_an_error_and_the_next_mount_works() {
    let home = home("killedstart");
    let image = Image::sparse(&home.path("big.img"), 1 << 40);
    image.write(5 << 30, &noise(1, 100));
    for delay_us in [0, 500, 1000, 2000, 4000, 8000, 16000, 30000] {
        let mut child = home.start("chunkfs mount --index i big.img mnt");
        std::thread::sleep(Duration::from_micros(delay_us));
        for pid in home.processes() {
            if pid != rustix::process::Pid::from_child(&child) {
                // It may have ended by now.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        let status =
            process::wait(&mut child, Duration::from_secs(10)).expect("who waits for a dead daemon ends");
        let _ = status;
        if home.is_mounted("mnt") {
            home.run("chunkfs umount mnt").ok();
        }
        process::until("the end of all", process::LIMIT, || home.processes().is_empty());
    }
    let begun = Instant::now();
    home.run("chunkfs mount --index i big.img mnt").ok();
    assert!(begun.elapsed() < Duration::from_secs(5));
    home.unmount();
}

#[test]
fn fuse_no_socket_is_left_in_run() {
    use std::os::unix::fs::MetadataExt;
    let home = home("run");
    for end in ["umount", "kill"] {
        home.mount("disk.img");
        let device = home.sh("stat -c %Hd-%Ld mnt").ok();
        let socket = format!("/run/chunkfs/{}.sock", device.trim());
        // Its number may be another mount's at once.
        let which =
            || std::fs::metadata(&socket).ok().map(|found| (found.ino(), found.ctime(), found.ctime_nsec()));
        let ours = which();
        assert!(ours.is_some(), "{socket}");
        if end == "kill" {
            home.kill_daemon("mnt");
        }
        home.unmount();
        process::until("the socket to go", process::LIMIT, || which() != ours);
    }
}
