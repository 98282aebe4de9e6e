//! What cannot work is refused: a message that names the thing and the remedy, the right exit status, and nothing
//! is changed.

use std::os::unix::fs::PermissionsExt;
use tests::{CHUNK, Home, Image, chunk, process};

/// With `disk.img`, of ten chunks.
fn home(name: &str) -> Home {
    let home = Home::new(name);
    Image::full(&home.path("disk.img"), 10 * CHUNK);
    home
}

/// All names below the home, and what is in the files: so that a test sees that nothing was changed.
fn everything(home: &Home) -> String {
    home.sh("find . -mindepth 1 -path ./mnt -prune -o -printf '%p %y %m %s %T@\\n' -type f -exec cksum {} \\; | sort")
        .ok()
}

/// Fails with this status and message, mounts nothing and changes nothing.
#[track_caller]
fn refused(home: &Home, line: &str, status: i32, message: &[&str]) {
    let before = everything(home);
    home.run(line).failed(status, message);
    assert_eq!(everything(home), before, "{line}: something was changed");
    assert!(!home.is_mounted("mnt"), "{line}: it is mounted");
    process::until("the end of all processes", process::LIMIT, || home.processes().is_empty());
}

#[test]
fn fuse_a_command_line_that_means_nothing_is_refused() {
    let home = home("usage");
    for (line, message) in [
        ("chunkfs mount --chunk-size 0 disk.img mnt", "--chunk-size"),
        ("chunkfs mount --chunk-size 4095 disk.img mnt", "4096"),
        ("chunkfs mount --chunk-size 4097 disk.img mnt", "4096"),
        ("chunkfs mount --chunk-size 128M disk.img mnt", "64M"),
        ("chunkfs mount --chunk-size 67112960 disk.img mnt", "64M"),
        ("chunkfs mount --chunk-size many disk.img mnt", "many"),
        ("chunkfs mount --chunk-size 18446744073709551616 disk.img mnt", "18446744073709551616"),
        ("chunkfs mount -o nonsense disk.img mnt", "-o nonsense: not an option; there are allow_other"),
        ("chunkfs mount -o uid=root disk.img mnt", "-o uid=root: not a number"),
        ("chunkfs mount -o uid=-1 disk.img mnt", "uid=-1"),
        ("chunkfs mount -o mode=9 disk.img mnt", "-o mode=9: not an octal mode"),
        ("chunkfs mount -o mode=1777 disk.img mnt", "-o mode=1777"),
        ("chunkfs mount -o rw disk.img mnt", "-o rw"),
        ("chunkfs mount -o auto_unmount disk.img mnt", "-o auto_unmount"),
        ("chunkfs mount disk.img", "MOUNTPOINT"),
        ("chunkfs mount", "MOUNTPOINT"),
        ("chunkfs mount disk.img mnt more", "more"),
        ("chunkfs frobnicate", "frobnicate"),
        ("chunkfs 4097 disk.img mnt", "4096"),
        ("chunkfs mount --view missing.json disk.img mnt", "--view"),
        ("chunkfs mount --name a/b disk.img mnt", "a/b"),
        ("chunkfs mount --name a/b --index i disk.img mnt", "a/b"),
        ("chunkfs mount --name .. --index i disk.img mnt", "\"..\""),
        ("chunkfs mount nbd+unix:///?socket= mnt", "socket"),
        ("chunkfs mount nbd+unix:///x mnt", "socket"),
        ("chunkfs restore --force --in-place a b", "--in-place"),
    ] {
        refused(&home, line, 2, &[message]);
    }
    for (line, message) in [
        ("chunkfs umount mnt", "mnt: not a mount of chunkfs"),
        ("chunkfs status mnt", "mnt: not a mount of chunkfs"),
        ("chunkfs umount /", "/: not a mount of chunkfs"),
        ("chunkfs umount missing", "missing: not a mount of chunkfs"),
        ("chunkfs mount --view missing.json mnt", "missing.json: No such file"),
    ] {
        refused(&home, line, 1, &[message]);
    }
    std::fs::write(home.path("view.json"), "{\"name\":1}").unwrap();
    refused(&home, "chunkfs mount --view view.json mnt", 2, &["view.json: not the description of a view"]);
}

#[test]
fn fuse_an_image_that_is_none_is_refused_before_the_index_is_touched() {
    let home = home("noimage");
    home.sh("mkfifo fifo; mkdir directory; ln -s nowhere link").ok();
    for (image, message) in [
        ("missing.img", "missing.img: No such file"),
        ("missing/disk.img", "missing/disk.img: No such file"),
        ("disk.img/x", "disk.img/x: Not a directory"),
        ("link", "link: No such file"),
        ("fifo", "fifo: neither a regular file nor a block device"),
        ("directory", "directory: is a directory"),
        ("/dev/null", "/dev/null: neither a regular file nor a block device"),
        ("/dev/zero", "/dev/zero: neither a regular file nor a block device"),
        ("nbd+unix:///?socket=/nonexistent/socket", "/nonexistent/socket"),
    ] {
        refused(&home, &format!("chunkfs mount {image} mnt"), 1, &[message]);
        refused(&home, &format!("chunkfs mount --index i {image} mnt"), 1, &[message]);
    }
}

#[test]
fn root_what_another_user_may_not_read_or_write_is_refused() {
    let home = home("unreadable");
    home.sh("mkdir dev; chmod 755 . mnt; chmod 600 disk.img; chown nobody mnt").ok();
    std::fs::copy(process::chunkfs(), home.path("copy-of-chunkfs")).unwrap();
    let before = everything(&home);
    for words in ["mount disk.img mnt", "mount --index i disk.img mnt"] {
        as_nobody(&home, "true", words).failed(1, &["disk.img: Permission denied"]);
    }
    // Readable, but the index cannot be made, or not be opened.
    assert_eq!(everything(&home), before);
    home.sh("chmod 644 disk.img").ok();
    let line = "mount --index i disk.img mnt";
    as_nobody(&home, "true", line).failed(1, &["/i: opening the index: Permission denied"]);
    home.sh("touch i; chmod 600 i").ok();
    as_nobody(&home, "true", line).failed(1, &["/i: opening the index: Permission denied"]);
    assert!(!home.is_mounted("mnt"));
}

#[test]
fn fuse_a_directory_that_can_be_no_mount_point_is_refused() {
    let home = home("point");
    home.sh("mkdir full; touch full/file; mkdir other; ln -s other link; ln -s nowhere broken").ok();
    for (point, message) in [
        ("missing", "missing: not there; make the directory first"),
        ("missing/deeper", "missing/deeper: not there"),
        ("broken", "broken: not there"),
        ("disk.img", "disk.img: not a directory"),
        ("full", "full: not empty"),
        ("/proc", "/proc: proc (proc) is mounted there already"),
    ] {
        refused(&home, &format!("chunkfs mount disk.img {point}"), 1, &["mount point", message]);
        refused(&home, &format!("chunkfs mount --index i disk.img {point}"), 1, &["mount point", message]);
    }
    home.mount("--index i disk.img");
    let again = home.run("chunkfs mount --index i2 disk.img mnt");
    again.failed(1, &["mnt: chunkfs-disk (fuse.chunkfs) is mounted there already"]);
    assert!(!home.path("i2").exists());
    home.run("chunkfs umount mnt/").ok();
    // A link to a directory is followed.
    home.run("chunkfs mount disk.img link").ok();
    assert!(home.is_mounted("other"));
    home.run("chunkfs umount link").ok();
    assert!(!home.is_mounted("other"));
}

#[test]
fn fuse_what_the_mount_would_hide_must_not_be_in_it() {
    let home = home("nested");
    refused(&home, "chunkfs mount --index mnt/i disk.img mnt", 1, &["mnt/i would be hidden"]);
    assert_eq!(home.run("ls -A mnt").ok(), "");
    refused(&home, "chunkfs mount --log mnt/log disk.img mnt", 1, &["mnt/log would be hidden"]);
    assert_eq!(home.run("ls -A mnt").ok(), "");
    home.mount("disk.img");
    home.run("cp -r mnt chunks").ok();
    home.unmount();
    home.sh("mkdir chunks/00/mnt chunks/mnt").ok();
    for point in ["chunks/mnt", "chunks/00/mnt"] {
        refused(&home, &format!("chunkfs join chunks {point}"), 1, &[point, "would be hidden"]);
    }
}

#[test]
fn fuse_an_index_that_does_not_fit_is_refused_and_left_as_it_was() {
    let home = home("misfit");
    home.mount("--index i --chunk-size 8192 disk.img");
    home.unmount();
    refused(
        &home,
        "chunkfs mount --index i disk.img mnt",
        1,
        &[
            "disk disk: the index was made for chunks of 8192 bytes, not 262144; use --chunk-size 8192",
            "--index",
        ],
    );
    refused(&home, "chunkfs mount --index missing/i disk.img mnt", 1, &["missing/i", "No such file"]);
    home.sh("mkdir dir; echo text > text; head -c 100000 /dev/urandom > noise; mkfifo fifo").ok();
    home.sh("head -c 100 i > cut").ok();
    for (index, message) in [
        ("text", "not an index of chunkfs"),
        ("noise", "not an index of chunkfs"),
        ("dir", "dir: opening the index"),
        ("fifo", "not an index of chunkfs"),
        ("disk.img", "not an index of chunkfs"),
        ("cut", "cut: "),
    ] {
        refused(&home, &format!("chunkfs mount --index {index} disk.img mnt"), 1, &[index, message]);
        home.run(&format!("chunkfs index show {index}")).failed(1, &[index]);
        home.run(&format!("chunkfs index check {index}")).failed(1, &[index]);
    }
    home.run("chunkfs index show missing").failed(1, &["missing: No such file"]);
}

#[test]
fn fuse_another_programs_database_is_refused_and_left_as_it_was() {
    let home = home("foreigndb");
    let made = home.sh("python3 -c 'import sqlite3; c = sqlite3.connect(\"other.db\"); c.execute(\"create table t (a)\"); c.execute(\"insert into t values (1)\"); c.commit()'");
    made.ok();
    refused(
        &home,
        "chunkfs mount --index other.db disk.img mnt",
        1,
        &["other.db: not an index of chunkfs (it is another program's database); give another --index file"],
    );
}

#[test]
fn fuse_an_empty_file_becomes_an_index() {
    let home = home("emptyindex");
    home.sh("touch i").ok();
    home.mount("--index i disk.img");
    home.unmount();
    home.run("chunkfs index check i").ok();
}

#[test]
fn fuse_an_index_is_used_by_one_mount_at_a_time() {
    let home = home("busy");
    home.sh("mkdir mnt2").ok();
    home.mount("--index i disk.img");
    let second = home.run("chunkfs mount --index i disk.img mnt2");
    second.failed(4, &["i: in use by another chunkfs; unmount that first"]);
    assert!(!home.is_mounted("mnt2"));
    // Looking is allowed.
    home.run("chunkfs index show i").ok();
    home.run("chunkfs index check i").ok();
    home.run("chunkfs index diff i").ok();
    home.unmount();
    // Two at once: one of them gets it.
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| home.run("chunkfs mount --index i disk.img mnt"));
        let two = scope.spawn(|| home.run("chunkfs mount --index i disk.img mnt2"));
        (one.join().unwrap(), two.join().unwrap())
    });
    let mut statuses = [one.status, two.status];
    statuses.sort();
    assert_eq!(statuses, [0, 4], "{one:?} {two:?}");
}

#[test]
fn fuse_two_mounts_at_once_at_one_point_are_one() {
    let home = home("race");
    let outcomes: Vec<i32> = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..4).map(|_| scope.spawn(|| home.run("chunkfs mount disk.img mnt").status)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mounted = outcomes.iter().filter(|status| **status == 0).count();
    let over = tests::home::mounts_below(&home.path("mnt")).len();
    assert_eq!(over, mounted, "as many mounts as say so: {outcomes:?}");
    for _ in 0..over {
        home.run("chunkfs umount mnt").ok();
    }
    assert!(home.processes().is_empty());
}

#[test]
fn fuse_an_index_on_a_read_only_file_system_is_refused() {
    let home = home("readonly");
    home.sh("mkdir ro; mount -t tmpfs -o size=1m none ro").ok();
    home.mount("--index ro/i disk.img");
    home.unmount();
    home.run("mount -o remount,ro ro").ok();
    for index in ["ro/i", "ro/new"] {
        let line = format!("chunkfs mount --index {index} disk.img mnt");
        refused(&home, &line, 1, &[index, "Read-only file system"]);
    }
    home.run("chunkfs index show ro/i").ok();
    home.run("chunkfs index check ro/i").ok();
}

#[test]
fn fuse_an_index_on_a_full_file_system_is_refused() {
    let home = home("full");
    home.sh("mkdir small; mount -t tmpfs -o size=512k none small; dd if=/dev/zero of=small/filler bs=4k 2>/dev/null; ls small").ok();
    let line = "chunkfs mount --index small/i disk.img mnt";
    home.run(line).failed(1, &["small/i", "full", "make room on its file system"]);
    assert!(!home.is_mounted("mnt"));
    assert_eq!(home.run("ls -A small").ok(), "filler\n", "no half an index is left");
    home.run("rm small/filler").ok();
    home.mount("--index small/i disk.img");
}

#[test]
fn fuse_an_index_whose_file_system_fills_up_in_the_middle_fails_reads_of_what_it_cannot_remember() {
    let home = Home::new("fills");
    let image = Image::full(&home.path("disk.img"), 16 << 20);
    home.sh("mkdir small; mount -t tmpfs -o size=600k none small").ok();
    // 16 leaves with 8 KiB of digests each, twice: in the log and in the database.
    home.mount("--chunk-size 4096 --index small/i disk.img");
    home.unmount();
    image.write(0, &tests::image::noise(99, 16 << 20));
    home.sh("dd if=/dev/zero of=small/filler bs=4k count=1000 2>/dev/null; true").ok();
    home.sh("truncate -s -80k small/filler").ok();
    home.run("chunkfs mount --chunk-size 4096 --index small/i disk.img mnt").ok();
    let pid = home.daemon("mnt");
    let listed = home.sh("find mnt -type f -printf '%s\\n' | wc -l");
    assert_ne!(listed.status, 0, "{listed:?}");
    assert!(listed.stderr.contains("Input/output error"), "{}", listed.stderr);
    assert!(home.is_running(pid));
    let umount = home.run("chunkfs umount mnt");
    assert!(!home.is_mounted("mnt"), "{umount:?}");
    home.wait_for_end_of(pid);
    // With room again all is right: every chunk has changed since it was last seen.
    home.run("rm small/filler").ok();
    home.mount("--chunk-size 4096 --index small/i disk.img");
    home.run("chunkfs index check small/i").ok();
    home.sh("find mnt -type f | LC_ALL=C sort | xargs cat | cmp - disk.img").ok();
}

#[test]
fn fuse_a_dead_mount_at_the_mount_point_is_named_and_cleaned_by_umount() {
    let home = home("dead");
    home.mount("--index i disk.img");
    home.kill_daemon("mnt");
    let again = home.run("chunkfs mount --index i disk.img mnt");
    again.failed(1, &["mount point", "mnt", "chunkfs umount"]);
    home.run("chunkfs umount mnt").ok();
    home.mount("--index i disk.img");
    home.sh("find mnt -type f | LC_ALL=C sort | xargs cat | cmp - disk.img").ok();
}

#[test]
fn root_without_dev_fuse_the_error_says_so() {
    let home = home("nofuse");
    let hidden = |hide: &str| {
        let line = format!("unshare --mount bash -c \"{hide} && chunkfs mount --index i disk.img mnt\"");
        home.sh(&format!("export -f chunkfs; {line}"))
    };
    let missing = hidden(
        "mkdir dev && mount -t tmpfs none dev && mknod dev/null c 1 3 && mknod dev/urandom c 1 9 && mount --bind dev /dev",
    );
    missing.failed(1, &["FUSE is not available", "/dev/fuse"]);
    assert!(!home.path("i").exists(), "nothing was changed");
    home.sh("rmdir dev").ok();
    let no_driver = hidden(
        "mkdir dev && mount -t tmpfs none dev && mknod dev/null c 1 3 && mknod dev/urandom c 1 9 && mknod dev/fuse c 10 250 && mount --bind dev /dev",
    );
    no_driver.failed(1, &["FUSE is not available", "/dev/fuse"]);
    assert!(!home.path("i").exists(), "nothing was changed");
}

/// As nobody, where /dev/fuse may be opened by all, as most systems have it, and after `change`.
fn as_nobody(home: &Home, change: &str, words: &str) -> process::Outcome {
    let devices = "mount -t tmpfs none dev && mknod dev/null c 1 3 && mknod dev/urandom c 1 9 && mknod dev/fuse c 10 229 \
                   && chmod 666 dev/* && mount --bind dev /dev";
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups ./copy-of-chunkfs";
    home.sh(&format!("exec unshare --mount bash -c \"{devices} && {change} && exec {user} {words}\""))
}

#[test]
fn root_a_user_without_fusermount_is_told_what_to_install() {
    let home = home("nouser");
    home.sh("mkdir dev; chmod 755 . mnt; chmod 644 disk.img; chown nobody . mnt").ok();
    std::fs::copy(process::chunkfs(), home.path("copy-of-chunkfs")).unwrap();
    let without = as_nobody(
        &home,
        "mount --bind /dev/null $(readlink -f $(command -v fusermount3))",
        "mount disk.img mnt",
    );
    without.failed(1, &["not permitted", "run as root, or install fuse3"]);
    let closed = as_nobody(&home, "chmod 600 /dev/fuse", "mount --index i disk.img mnt");
    closed.failed(1, &["not permitted", "/dev/fuse", "run as root"]);
    assert!(!home.path("i").exists(), "nothing was changed");
    let unlisted = as_nobody(&home, "true", "mount -o allow_other disk.img mnt");
    unlisted.failed(1, &["not permitted", "user_allow_other"]);
}

#[test]
fn root_a_user_can_mount_and_unmount_where_fusermount_is() {
    let home = home("user");
    home.sh("mkdir dev; chmod 755 . mnt; chmod 644 disk.img; chown nobody . mnt").ok();
    std::fs::copy(process::chunkfs(), home.path("copy-of-chunkfs")).unwrap();
    // In the same name space: what follows the mount is done there, too.
    let all = "mount --index i disk.img mnt && cd mnt && find . -type f | LC_ALL=C sort | xargs cat | cmp - ../disk.img \
               && cd .. && ./copy-of-chunkfs status mnt | head -n 1; ./copy-of-chunkfs umount mnt && ! mountpoint -q mnt && while [ -e i-wal ]; do sleep 0.1; done; ls i*";
    std::fs::write(
        home.path("story"),
        format!("cd {} && ./copy-of-chunkfs {all}\n", home.path("").display()),
    )
    .unwrap();
    let devices = "mount -t tmpfs none dev && mknod dev/null c 1 3 && mknod dev/urandom c 1 9 && mknod dev/fuse c 10 229 \
                   && chmod 666 dev/* && mount --bind dev /dev";
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups bash story";
    let told = home.sh(&format!("unshare --mount bash -c \"{devices} && exec {user}\"")).ok();
    assert!(told.ends_with("i\n"), "{told}");
}

#[test]
fn fuse_directories_that_are_not_all_chunks_are_refused_with_the_names() {
    let home = home("foreign");
    home.mount("--name vda disk.img");
    home.run("cp -r mnt all").ok();
    home.unmount();
    let c = |number| format!("fresh/vda/{}", chunk(number));
    let directory = "fresh/vda/00/00/00/00/00/00/00";
    for (damage, name, status_of_restore) in [
        (format!("touch {directory}/README"), "README", 0),
        (format!("mkdir {directory}/0a; true"), "0a", 6),
        (format!("rm {}", c(4)), "04", 6),
        (format!("truncate -s -1 {}", c(4)), "04", 6),
        (format!("truncate -s +1 {}", c(4)), "04", 6),
        (format!("printf x | dd conv=notrunc of={} 2>/dev/null", c(4)), "04", 6),
        (format!("rm {}", c(9)), "09", 6),
        (format!("cp {} {directory}/0a", c(1)), "0a", 6),
        (format!("ln -sf {} {}", "/etc/passwd", c(3)), "03", 6),
        (format!("rm {0}; mkfifo {0}", c(3)), "03", 6),
        (format!("mv {directory}/03 {directory}/03.tmp"), "03", 6),
        (format!("cp {} {}", c(1), c(2)), "02", 6),
    ] {
        home.sh("chmod -R u+w fresh 2>/dev/null; rm -rf fresh out.img; cp -r all fresh; chmod -R u+w fresh")
            .ok();
        home.sh(&damage).ok();
        let verify = home.run("chunkfs verify fresh/vda");
        assert_eq!(verify.status, 6, "{damage}: {verify:?}");
        assert!(verify.stdout.contains(name), "{damage}: {verify:?}");
        let restore = home.run("chunkfs restore fresh/vda out.img");
        assert_eq!(restore.status, status_of_restore, "{damage}: {restore:?}");
        if status_of_restore == 0 {
            home.run("cmp out.img disk.img").ok();
        } else {
            assert!(restore.stderr.contains(name), "{damage}: {restore:?}");
            assert!(!home.path("out.img").exists(), "{damage}");
            assert!(!home.path("out.img.partial").exists(), "{damage}");
        }
        let join = home.run("chunkfs join fresh/vda mnt");
        if join.status == 0 {
            let compared = home.run("cmp mnt/image disk.img");
            let whole = compared.status == 0;
            assert!(whole == (status_of_restore == 0), "{damage}: {compared:?}");
            assert!(whole || compared.stderr.contains("Input/output error"), "{damage}: {compared:?}");
            home.unmount();
        }
    }
    for (directory, message) in [
        ("missing", "No such file"),
        ("disk.img", "disk.img"),
        (".", "there are no chunks in it"),
        ("mnt", "there are no chunks in it"),
    ] {
        for line in [
            format!("chunkfs join {directory} mnt"),
            format!("chunkfs restore {directory} out.img"),
            format!("chunkfs verify {directory}"),
        ] {
            if line == "chunkfs join mnt mnt" {
                continue;
            }
            let outcome = home.run(&line);
            assert!([1, 2].contains(&outcome.status), "{line}: {outcome:?}");
            assert!(outcome.stderr.contains(message), "{line}: {outcome:?}");
        }
    }
}

#[test]
fn fuse_a_log_that_cannot_be_written_is_an_error_and_leaves_nothing() {
    let home = home("log");
    refused(&home, "chunkfs mount --log missing/log disk.img mnt", 1, &["missing/log", "No such file"]);
    refused(&home, "chunkfs mount --log mnt disk.img mnt", 1, &["mnt"]);
    home.run("chunkfs mount --log log disk.img mnt").ok();
    home.unmount();
    let mode = std::fs::metadata(home.path("log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let log = std::fs::read_to_string(home.path("log")).unwrap();
    assert!(!log.contains('\x1b'), "no colours: {log}");
}
