//! The way back: restore, join and verify over a copy of a tree, and what an index can tell.

use rustix::process::Signal;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tests::image::noise;
use tests::{CHUNK, Home, Image, chunk, process};

const MIB: u64 = 1 << 20;

/// With `disk.img`, mostly a hole, and its copy in `backup/vda` and `backup/vda.b3`.
fn home(name: &str, size: u64) -> (Home, Image) {
    let home = Home::new(name);
    let image = Image::sparse(&home.path("disk.img"), size);
    for at in (0..size).step_by(5 << 20) {
        image.write(at, &noise(at + 1, MIB.min(size - at) as usize));
    }
    home.mount("--name vda --index i disk.img");
    home.sh("rsync -a mnt/ backup/ && chmod -R u+w backup").ok();
    home.unmount();
    (home, image)
}

/// A loop device that goes with the test.
struct Loop(String);

impl Loop {
    fn over(home: &Home, file: &str) -> Loop {
        Loop(home.run(&format!("losetup --find --show {file}")).ok().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking(), "{}", self.0);
    }
}

#[test]
fn fuse_restore_to_a_file_gives_the_image_with_its_holes() {
    for size in [0, 1, CHUNK, 40 * MIB + 77] {
        let (home, _) = home("file", size);
        home.run("chunkfs restore backup/vda out.img").ok();
        home.run("cmp out.img disk.img").ok();
        let blocks = |name| std::fs::metadata(home.path(name)).unwrap().blocks();
        assert!(
            blocks("out.img") <= blocks("disk.img") + 8,
            "{} and {}",
            blocks("out.img"),
            blocks("disk.img")
        );
        assert_eq!(std::fs::metadata(home.path("out.img")).unwrap().mode() & 0o7777, 0o600);
        home.run("chunkfs restore backup/vda out.img")
            .failed(1, &["out.img exists", "--force", "--in-place"]);
        home.run("chunkfs restore --force backup/vda out.img").ok();
        home.run("cmp out.img disk.img").ok();
        assert!(!home.path("out.img.partial").exists());
    }
}

#[test]
fn fuse_restore_straight_from_a_mounted_view_works() {
    let (home, _) = home("view", 20 * MIB);
    home.mount("disk.img");
    home.run("chunkfs restore mnt out.img").ok();
    home.run("cmp out.img disk.img").ok();
    home.run("chunkfs verify --source disk.img mnt").ok();
}

#[test]
fn root_restore_to_a_device_fits_or_touches_nothing() {
    let (home, image) = home("device", 20 * MIB);
    for (size, fits) in [(20 * MIB, true), (24 * MIB, true), (20 * MIB - 512, false)] {
        let name = format!("target-{size}");
        Image::full(&home.path(&name), size);
        home.run(&format!("cp {name} before")).ok();
        let device = Loop::over(&home, &name);
        let restored = home.run(&format!("chunkfs restore backup/vda {}", device.0));
        if fits {
            restored.ok();
            home.run(&format!("cmp -n {} {} disk.img", 20 * MIB, device.0)).ok();
            home.sh(&format!("cmp -i {0} {1} before", 20 * MIB, device.0)).ok();
        } else {
            restored.failed(1, &[&device.0, "20971008 bytes, but the image has 20971520"]);
            home.run(&format!("cmp {} before", device.0)).ok();
        }
    }
    // In place: what is the same is not written again.
    let device = Loop::over(&home, "target-20971520");
    image.write(7 * CHUNK, b"changed");
    home.mount("--name vda --index i disk.img");
    home.sh("rsync -a mnt/ backup/").ok();
    home.unmount();
    let told = home.run(&format!("chunkfs restore --in-place backup/vda {}", device.0)).ok();
    assert!(told.contains("restored 20971520 bytes: "), "{told}");
    home.run(&format!("cmp {} disk.img", device.0)).ok();
    let again = home.run(&format!("chunkfs restore --in-place backup/vda {}", device.0)).ok();
    assert!(again.contains("restored 20971520 bytes: 0 written"), "{again}");
}

#[test]
fn root_restore_to_a_device_in_use_is_refused() {
    let (home, _) = home("mounted", 20 * MIB);
    home.sh("truncate -s 64M fs.img; mkfs.ext4 -q fs.img; mkdir fs").ok();
    let device = Loop::over(&home, "fs.img");
    home.run(&format!("mount {} fs", device.0)).ok();
    home.run(&format!("chunkfs restore backup/vda {}", device.0)).failed(1, &[&device.0, "in use"]);
    home.run("umount fs").ok();
    home.run("fsck.ext4 -fn fs.img").ok();
}

#[test]
fn fuse_restore_in_place_writes_what_differs_and_follows_the_length() {
    let (home, image) = home("inplace", 20 * MIB);
    home.run("cp disk.img out.img").ok();
    let told = home.run("chunkfs restore --in-place backup/vda out.img").ok();
    assert!(told.contains("restored 20971520 bytes: 0 written"), "{told}");
    for change in [
        "truncate -s 1M out.img",
        "truncate -s 90M out.img",
        "cp /dev/null out.img",
        "rm out.img",
        "printf x | dd of=out.img conv=notrunc bs=1 seek=3000000",
    ] {
        home.sh(change).ok();
        home.run("chunkfs restore --in-place backup/vda out.img").ok();
        home.run("cmp out.img disk.img").ok();
    }
    drop(image);
}

#[test]
fn fuse_a_restore_that_is_killed_never_leaves_what_looks_finished() {
    let (home, _) = home("interrupted", 200 * MIB);
    home.sh("head -c 200M /dev/zero | tr '\\0' x > old.img").ok();
    let mut interrupted = 0;
    for round in 0..24u64 {
        home.run("rm -f out.img out.img.partial").ok();
        let in_place = round % 2 == 1;
        if in_place {
            home.run("cp --reflink=auto old.img out.img").ok();
        }
        let words = if in_place { "--in-place" } else { "" };
        let mut child = home.start(&format!("chunkfs restore {words} backup/vda out.img"));
        std::thread::sleep(Duration::from_millis(3 + round * 7));
        // It may have ended by now.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::KILL);
        let finished = child.wait().unwrap().success();
        interrupted += u32::from(!finished);
        if home.path("out.img").exists() {
            let whole = home.run("cmp out.img disk.img").status == 0;
            let untouched = in_place && home.run("cmp out.img old.img").status == 0;
            assert!(whole || (untouched && !finished), "round {round}: finished {finished}");
        } else {
            assert!(!finished, "round {round}");
        }
        // And the same once more ends well.
        home.run(&format!(
            "chunkfs restore {words} {} backup/vda out.img",
            if !in_place && home.path("out.img").exists() { "--force" } else { "" }
        ))
        .ok();
        home.run("cmp out.img disk.img").ok();
        assert!(!home.path("out.img.partial").exists());
    }
    assert!(
        interrupted >= 6,
        "only {interrupted} of 24 were interrupted: restoring is too fast for this test"
    );
}

#[test]
fn fuse_an_interrupted_restore_says_what_it_leaves() {
    let (home, _) = home("sigterm", 400 * MIB);
    let mut child = home.start("chunkfs restore backup/vda out.img");
    process::until("the restore", process::LIMIT, || {
        home.path("out.img.partial").exists() || child.try_wait().unwrap().is_some()
    });
    // It may have ended by now.
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM);
    let status = process::wait(&mut child, Duration::from_secs(20)).unwrap();
    assert!(!home.path("out.img.partial").exists());
    assert_eq!(home.path("out.img").exists(), status.success());
    assert!([Some(0), Some(1)].contains(&status.code()), "{status:?}");
}

#[test]
fn fuse_damage_is_named_with_exit_status_6() {
    let (home, image) = home("damage", 20 * MIB);
    home.run("chunkfs verify backup/vda").ok();
    home.run("chunkfs verify backup/vda --source disk.img").ok();
    let path = home.path("backup/vda").join(chunk(21));
    std::fs::write(&path, noise(5, CHUNK as usize)).unwrap();
    let verify = home.run("chunkfs verify backup/vda");
    assert_eq!(verify.status, 6);
    assert!(verify.stdout.contains(&format!("vda/{}: stale or damaged", chunk(21))), "{verify:?}");
    let restore = home.run("chunkfs restore backup/vda out.img");
    restore.failed(6, &[&chunk(21)]);
    assert!(!home.path("out.img").exists());
    home.run("chunkfs restore --no-verify backup/vda out.img").ok();
    assert_ne!(home.run("cmp out.img disk.img").status, 0);
    home.run("chunkfs join backup/vda mnt").ok();
    home.run("cmp mnt/image disk.img").failed(2, &["Input/output error"]);
    home.unmount();
    home.run("chunkfs join --no-verify backup/vda mnt").ok();
    assert_eq!(home.run("cmp mnt/image disk.img").status, 1);
    home.unmount();
    // Without digests, and against the image.
    home.sh("rm -r backup/vda.b3").ok();
    home.run("chunkfs verify backup/vda").ok();
    let against = home.run("chunkfs verify backup/vda --source disk.img");
    assert_eq!(against.status, 6);
    assert!(against.stdout.contains(&chunk(21)), "{against:?}");
    image.resize(19 * MIB);
    assert_eq!(home.run("chunkfs verify backup/vda --source disk.img").status, 6);
}

#[test]
fn fuse_a_stale_list_of_digests_is_not_a_matching_one() {
    // A backup that was interrupted between the chunks and their digests.
    let (home, image) = home("stale", 20 * MIB);
    image.write(3 * CHUNK, b"changed");
    home.mount("--name vda --index i disk.img");
    home.run("rsync -a mnt/vda/ backup/vda/").ok();
    home.unmount();
    let verify = home.run("chunkfs verify backup/vda");
    assert_eq!(verify.status, 6);
    assert!(verify.stdout.contains(&chunk(3)), "{verify:?}");
    home.run("chunkfs restore backup/vda out.img").failed(6, &[&chunk(3)]);
}

#[test]
fn fuse_join_shows_a_file_that_other_programs_can_use() {
    let (home, _) = home("join", 40 * MIB + 77);
    home.run("chunkfs join backup/vda mnt").ok();
    let image = std::fs::metadata(home.path("mnt/image")).unwrap();
    assert_eq!((image.len(), image.mode(), image.nlink()), (40 * MIB + 77, 0o100400, 1));
    home.run("cmp mnt/image disk.img").ok();
    home.run("chunkfs verify --source mnt/image backup/vda").ok();
    home.sh("mkdir again && chunkfs mount --name vda mnt/image again && diff -r again/vda backup/vda").ok();
    home.run("chunkfs umount again").ok();
    home.sh("for n in 1 2 3 4; do cmp mnt/image disk.img & done; wait").ok();
    home.run("cp --sparse=always mnt/image out.img").ok();
    home.run("cmp out.img disk.img").ok();
}

#[test]
fn fuse_an_index_tells_what_has_changed() {
    let (home, image) = home("diff", 20 * MIB);
    image.write(3 * CHUNK, b"changed");
    image.write(70 * CHUNK + 5, b"changed");
    home.mount("--name vda --index i disk.img");
    let status = home.status("mnt");
    assert_eq!((status["generation"].as_u64(), status["disks"][0]["chunks"].as_u64()), (Some(2), Some(80)));
    assert_eq!(status["scan"]["changed_chunks"], 2);
    assert!(home.run("chunkfs status mnt").ok().contains("2 chunks changed"));
    home.unmount();
    let files = home.run("chunkfs index diff --format files-from i").ok();
    assert_eq!(files, format!("{}\n{}\n", chunk(3), chunk(70)));
    assert_eq!(home.run("chunkfs index diff --since 1 --format files-from i").ok(), files);
    assert_eq!(home.run("chunkfs index diff --since 2 i").ok(), "");
    assert_eq!(home.run("chunkfs index diff --since 0 --format files-from i").ok().lines().count(), 80);
    let json: serde_json::Value =
        serde_json::from_str(&home.run("chunkfs index diff --format json i").ok()).unwrap();
    assert_eq!(json["changed"][1]["chunk"], 70);
    assert_eq!(json["changed"][1]["offset"], 70 * CHUNK);
    home.run("chunkfs index diff --since 9 i").failed(2, &["--since 9", "1 to 2"]);
    home.run("chunkfs index diff --since yesterday i").failed(2, &["yesterday", "@SECONDS"]);
    let first = status["stamp"].as_i64().unwrap() - 1;
    assert_eq!(home.run(&format!("chunkfs index diff --since @{first} --format files-from i")).ok(), files);
    assert_eq!(home.run(&format!("chunkfs index diff --since @{} i", first + 1)).ok(), "");
    assert_eq!(
        home.run("chunkfs index diff --format view-files i").ok(),
        format!("vda/{}\nvda/{}\nvda.b3/00/00/00/00/00/00/00\n", chunk(3), chunk(70))
    );
    home.run("chunkfs index diff --disk vdb i").failed(1, &["no disk \"vdb\"", "vda"]);
    let shown = home.run("chunkfs index show i").ok();
    assert!(shown.starts_with("disk vda: slot 1, 20971520 bytes, 80 chunks of 262144: 80 known, 63 of them zero; 0 to be compared\n"), "{shown}");
    assert_eq!(home.run("chunkfs index check i").ok(), shown);
    let json: serde_json::Value =
        serde_json::from_str(&home.run("chunkfs index check --json i").ok()).unwrap();
    assert_eq!(json["generations"].as_array().unwrap().len(), 2);
    // What the index says is what rsync finds: the list drives a copy of just these files.
    home.mount("--name vda --index i disk.img");
    let sent = home.run("rsync -a --out-format=%n mnt/vda/ backup/vda/").ok();
    let sent: Vec<&str> = sent.lines().filter(|line| !line.ends_with('/')).collect();
    assert_eq!(sent, [chunk(3), chunk(70)]);
}

/// A user who may have so many processes and threads, and nobody else is that user.
fn with_threads(most: u32, words: &str) -> String {
    let user = "setpriv --reuid=65533 --regid=65533 --clear-groups";
    format!("exec {user} prlimit --nproc={most} ./copy-of-chunkfs {words}")
}

#[test]
fn root_fewer_threads_do_it_as_well_and_none_at_all_changes_nothing() {
    let (home, _) = home("threads", 20 * MIB);
    std::fs::copy(process::chunkfs(), home.path("copy-of-chunkfs")).unwrap();
    home.sh("tr a b < disk.img > other.img; cp other.img before.img; chmod 755 .; chown -R 65533 .").ok();
    for words in
        ["restore --in-place backup/vda other.img", "restore backup/vda new.img", "verify backup/vda"]
    {
        home.sh(&with_threads(1, words))
            .failed(1, &["starting a thread", "Resource temporarily unavailable"]);
    }
    home.run("cmp other.img before.img").ok();
    assert_eq!(home.sh("ls *.img").ok(), "before.img\ndisk.img\nother.img\n");
    for most in 2..6 {
        home.sh(&with_threads(most, "verify backup/vda")).ok();
        home.sh(&with_threads(most, "restore --force backup/vda new.img")).ok();
        home.run("cmp new.img disk.img").ok();
    }
    home.sh(&with_threads(2, "restore --in-place backup/vda other.img")).ok();
    home.run("cmp other.img disk.img").ok();
}

#[test]
fn fuse_a_limit_for_the_size_of_files_is_an_error_like_any_other() {
    let (home, _) = home("fsize", 20 * MIB);
    let program = process::chunkfs().display().to_string();
    let limited = home.sh(&format!("exec prlimit --fsize=9000000 {program} restore backup/vda out.img"));
    limited.failed(1, &["out.img", "File too large"]);
    assert_eq!(home.sh("ls out*").status, 2, "nothing is left");
}

#[test]
fn fuse_digests_are_found_beside_a_link_to_the_chunks() {
    let home = Home::new("linked");
    Image::full(&home.path("disk.img"), 4 * CHUNK);
    home.mount("--name vda disk.img");
    home.sh("mkdir -p t/store && cp -a mnt/vda mnt/vda.b3 t/ && chmod -R u+w t").ok();
    home.unmount();
    home.sh("mv t/vda t/store/ && ln -s store/vda t/vda").ok();
    home.run("chunkfs verify t/vda").ok();
    home.sh(&format!("printf x | dd conv=notrunc status=none of=t/vda/{}", chunk(1))).ok();
    assert_eq!(home.run("chunkfs verify t/vda").status, 6);
    home.run("chunkfs restore t/vda out.img").failed(6, &["its digest differs"]);
    home.sh("chunkfs restore --no-verify t/vda out.img >/dev/full").ok();
}

#[test]
fn fuse_a_mount_that_is_interrupted_leaves_nothing_mounted() {
    let home = Home::new("interrupted");
    Image::full(&home.path("disk.img"), 4 * CHUNK);
    // So many at once are ahead of the clock: the next one waits for it.
    for _ in 0..7 {
        home.mount("--index i disk.img");
        home.unmount();
    }
    let mut caller = home.start("chunkfs mount --index i disk.img mnt");
    std::thread::sleep(Duration::from_millis(100));
    let waited = caller.try_wait().unwrap().is_none();
    caller.kill().unwrap();
    caller.wait().unwrap();
    process::until("the end of the daemon", process::LIMIT, || home.processes().is_empty());
    assert!(waited && !home.is_mounted("mnt"));
}
