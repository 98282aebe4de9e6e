//! Dumps: every disk whole and as of one point in time, in every form; the guest goes on as if nothing had been.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tests::libvirt::{Disk, Guest, Lab, names_in, virsh, virsh_ok, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 16 }, Disk { format: "raw", mib: 8 }];

fn guest(lab: &Lab) -> Guest {
    let mut guest = lab.guest("mail01", &DISKS);
    guest.write(0, 1, 1 << 20, 4 << 20);
    guest.write(1, 2, 2 << 20, 3 << 20);
    guest
}

/// What a program makes of a file, on its standard output.
fn out(program: &str, words: &[&str], file: &Path) -> Vec<u8> {
    let output = Command::new(program).args(words).arg(file).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn assert_private(dir: &Path) {
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir), 0o700);
    for name in names_in(dir) {
        assert_eq!(mode(&dir.join(&name)), 0o600, "{name}");
    }
}

#[test]
fn libvirt_a_dump_has_every_disk_whole_and_cleanup_removes_it() {
    with_libvirt("libvirt_a_dump_has_every_disk_whole_and_cleanup_removes_it", |lab| {
        let mut guest = guest(lab);
        let dir = lab.path("b/mail01");
        for method in ["pull", "external", "offline"] {
            let shape = guest.shape();
            let then = guest.content.clone();
            lab.run(&["--dump", "--vm=mail01", &format!("--method={method}")]).ok();
            assert_eq!(names_in(&dir), ["mail01.b3", "mail01.xml", "mail01_vda.img", "mail01_vdb.img"]);
            assert_private(&dir);
            for (disk, name) in ["mail01_vda.img", "mail01_vdb.img"].iter().enumerate() {
                assert!(fs::read(dir.join(name)).unwrap() == then[disk], "{method}: {name}");
            }
            let checked =
                Command::new("b3sum").args(["--check", "mail01.b3"]).current_dir(&dir).output().unwrap();
            assert!(checked.status.success());
            assert_eq!(
                String::from_utf8_lossy(&checked.stdout),
                "mail01.xml: OK\nmail01_vda.img: OK\nmail01_vdb.img: OK\n"
            );
            let blocks =
                std::os::unix::fs::MetadataExt::blocks(&fs::metadata(dir.join("mail01_vda.img")).unwrap());
            assert!(blocks * 512 < 6 << 20, "holes stay holes: {blocks} blocks");
            assert_eq!(guest.shape(), shape, "{method}");
            guest.assert_content();
            guest.write_chunks(0, 50, [3, 9]);
            // The next replaces it, as a hook that was never followed by its counterpart needs it.
        }
        let refused = lab.run(&["chunkmount", "mail01"]);
        assert_eq!((refused.status, refused.stderr.contains("cleanup removes it")), (1, true), "{refused:?}");
        lab.run(&["--cleanup", "--vm=mail01"]).ok();
        lab.assert_nothing_left(&guest);
        guest.assert_content();
    });
}

#[test]
fn libvirt_every_compressor_and_convert_give_the_disks_back() {
    with_libvirt("libvirt_every_compressor_and_convert_give_the_disks_back", |lab| {
        let guest = guest(lab);
        let dir = lab.path("b/mail01");
        for (option, extension, expand) in [
            ("--compress", "gz", "gzip"),
            ("--compress=gzip", "gz", "gzip"),
            ("--compress=zstd", "zst", "zstd"),
            ("--compress=bzip2", "bz2", "bzip2"),
            ("--compress=pbzip2", "bz2", "pbzip2"),
            ("--compress=lzop", "lzo", "lzop"),
            ("--compress=xz", "xz", "xz"),
            ("--compress=lzip", "lz", "lzip"),
            ("--compress=plzip", "lz", "plzip"),
        ] {
            lab.run(&["--action=dump", "--vm=mail01", option]).ok();
            for (disk, target) in ["vda", "vdb"].iter().enumerate() {
                let file = dir.join(format!("mail01_{target}.img.{extension}"));
                assert!(out(expand, &["-dc"], &file) == guest.content[disk], "{option}: {target}");
            }
            assert_private(&dir);
        }
        for option in [&[][..], &["--compress"]] {
            lab.run(&[&["--action=convert", "--vm=mail01"], option].concat()).ok();
            for (disk, target) in ["vda", "vdb"].iter().enumerate() {
                let file = dir.join(format!("mail01_{target}.qcow2"));
                let raw = lab.path("raw");
                out("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", file.to_str().unwrap()], &raw);
                assert!(fs::read(&raw).unwrap() == guest.content[disk], "{option:?}: {target}");
            }
            assert_private(&dir);
        }
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        let unknown = lab.run(&["dump", "mail01", "--compress=arj"]);
        assert_eq!(unknown.status, 2, "{unknown:?}");
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_a_disk_can_be_piped_into_a_command_for_each_disk() {
    with_libvirt("libvirt_a_disk_can_be_piped_into_a_command_for_each_disk", |lab| {
        let guest = guest(lab);
        let to = lab.path("copy/__VIRT_BACKUP_VM__-__VIRT_BACKUP_DISK__");
        lab.run(&["dump", "mail01", &format!("--dumpcmd=dd status=none of={}", to.display())]).ok();
        for (disk, target) in ["vda", "vdb"].iter().enumerate() {
            let file = lab.path(&format!("copy/mail01-{target}"));
            assert!(fs::read(file).unwrap() == guest.content[disk], "{target}");
        }
        let failed = lab.run(&["dump", "mail01", "--dumpcmd=false"]);
        assert_eq!(failed.status, 1, "{failed:?}");

        // It may say as much as it likes, and is heard.
        let talks = |status| {
            format!("--dumpcmd=sh -c 'seq 50000 >&2; cat >/dev/null; echo the end >&2; exit {status}'")
        };
        let well = lab.run(&["dump", "mail01", &talks(0)]).ok();
        assert!(
            well.stderr.contains("\n49999\n") && well.stderr.contains("the end\n"),
            "{}",
            well.stderr.len()
        );
        let failed = lab.run(&["dump", "mail01", &talks(7)]);
        assert_eq!(failed.status, 1);
        assert!(failed.stderr.trim_end().ends_with("the end"), "{}", failed.stderr.len());
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_a_limit_for_the_size_of_files_ends_a_dump_without_a_trace() {
    with_libvirt("libvirt_a_limit_for_the_size_of_files_ends_a_dump_without_a_trace", |lab| {
        let guest = guest(lab);
        let mut limited = lab.command_under(&["prlimit", "--fsize=1048576"], &["dump", "mail01"]);
        let output = limited.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("File too large"), "{said}");
        lab.assert_nothing_left(&guest);
        guest.assert_content();
    });
}

#[test]
fn libvirt_a_kept_lock_keeps_others_out_until_cleanup() {
    with_libvirt("libvirt_a_kept_lock_keeps_others_out_until_cleanup", |lab| {
        let guest = guest(lab);
        lab.run(&["--dump", "--vm=mail01", "--keep-lock"]).ok();
        for words in [&["dump", "mail01"][..], &["chunkmount", "mail01"]] {
            assert_eq!(lab.run(words).status, 4, "{words:?}");
        }
        assert!(lab.path("b/mail01/mail01_vda.img").exists());
        lab.run(&["--unlock", "--vm=mail01"]).ok();
        lab.run(&["--dump", "--vm=mail01", "--keep-lock"]).ok();
        lab.run(&["--cleanup", "--vm=mail01"]).ok();
        lab.assert_nothing_left(&guest);
        lab.run(&["--dump", "--vm=mail01"]).ok();
        lab.run(&["--cleanup", "--vm=mail01"]).ok();
    });
}

/// Killed after the first line of its journal, after the second, and so on: never a final name on half a disk.
#[test]
fn libvirt_a_dump_may_be_killed_after_any_line_of_its_journal() {
    with_libvirt("libvirt_a_dump_may_be_killed_after_any_line_of_its_journal", |lab| {
        let guest = guest(lab);
        let dir = lab.path("b/mail01");
        for lines in 1.. {
            let ended = lab.kill_at_line("mail01", &["dump", "mail01", "--method=external"], lines);
            for (disk, target) in ["vda", "vdb"].iter().enumerate() {
                if let Ok(content) = fs::read(dir.join(format!("mail01_{target}.img"))) {
                    assert!(content == guest.content[disk], "killed at line {lines}: {target}");
                }
            }
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left(&guest);
            guest.assert_content();
            if ended.is_some() {
                println!("killed after each of {lines} lines");
                assert!(lines > 15);
                return;
            }
        }
    });
}

/// The memory goes with the disks, and the guest can be resumed from there.
#[test]
fn libvirt_the_memory_is_saved_with_the_disks_and_can_be_restored() {
    with_libvirt("libvirt_the_memory_is_saved_with_the_disks_and_can_be_restored", |lab| {
        let guest = guest(lab);
        let shape = guest.shape();
        lab.run(&["dump", "mail01", "--state"]).ok();
        let dir = lab.path("b/mail01");
        assert_eq!(
            names_in(&dir),
            ["mail01.b3", "mail01.state", "mail01.xml", "mail01_vda.img", "mail01_vdb.img"]
        );
        assert_private(&dir);
        assert_eq!(guest.shape(), shape);
        let image = dir.join("mail01.state");
        let told = virsh_ok(&["save-image-dumpxml", image.to_str().unwrap()]);
        assert!(told.contains("<name>mail01</name>"), "{told}");
        guest.power_off();
        let (fine, told) = virsh(&["restore", image.to_str().unwrap()]);
        assert!(fine, "{told}");
        assert_eq!(virsh_ok(&["domstate", "mail01"]).trim(), "running");
        lab.run(&["cleanup", "mail01"]).ok();

        lab.run(&["chunkmount", "mail01", "--state"]).ok();
        assert!(lab.path("b/mail01/mail01.state/00/00/00/00/00/00/00/00").exists());
        lab.rsync("mail01");
        lab.assert_restored("mail01", &guest.content);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
    });
}
