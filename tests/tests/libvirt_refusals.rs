//! What cannot be done is refused in words, with the right exit status, and nothing is touched.

use std::fs;

use tests::libvirt::{Disk, with_libvirt};

const SMALL: Disk = Disk { format: "qcow2", mib: 4 };

#[test]
fn libvirt_every_refusal_says_why_and_leaves_nothing() {
    with_libvirt("libvirt_every_refusal_says_why_and_leaves_nothing", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        for (words, status, why) in [
            (&["chunkmount", "nobody"][..], 1, "nobody: there is no domain \"nobody\""),
            (&["cleanup", "nobody"], 1, "there is no domain \"nobody\""),
            (&["chunkmount"], 2, "no VM was named"),
            (&["chunkmount", "mail01", "--exclude=vda"], 1, "there is no disk to back up"),
            (&["chunkmount", "mail01", "--blocksize=5000"], 2, "multiple of 4096"),
            (&["chunkmount", "mail01", "--track=perhaps"], 2, "one of auto, bitmap, digest, none"),
            (&["chunkmount", "mail01", "--method=lvm"], 1, "not available yet"),
            (&["chunkmount", "mail01", "--method=offline"], 1, "the guest is not shut off"),
            (&["chunkmount", "mail01", "--quiesce=require"], 1, "freeze the guest's file systems"),
            (&["--action=frobnicate", "--vm=mail01"], 2, "frobnicate"),
            (&["chunkmount", "mail01", "--backupdir=/nonexistent/b"], 1, "/nonexistent/b does not exist"),
            (
                &["chunkmount", "mail01", "--connect=qemu+unix:///system?socket=/nonexistent"],
                1,
                "connect to libvirt",
            ),
        ] {
            let ran = lab.run(words);
            assert_eq!(ran.status, status, "{words:?}: {ran:?}");
            assert!(ran.stderr.contains(why), "{words:?}: {ran:?}");
            lab.assert_nothing_left(&guest);
        }
        fs::remove_dir(lab.path("b")).unwrap();
        let ran = lab.run(&["chunkmount", "mail01"]);
        assert_eq!(ran.status, 1);
        assert!(ran.stderr.contains("does not exist: make it"), "{ran:?}");
    });
}

#[test]
fn libvirt_several_vms_do_not_disturb_each_other() {
    with_libvirt("libvirt_several_vms_do_not_disturb_each_other", |lab| {
        let (a, b) = (lab.guest("a", &[SMALL]), lab.guest("b b", &[SMALL]));
        let ran = lab.run(&["--action=chunkmount", "--vm=a,nobody,b b"]);
        assert_eq!(ran.status, 5, "{ran:?}");
        assert!(ran.stderr.contains("nobody: there is no domain"), "{ran:?}");
        for vm in ["a", "b b"] {
            lab.rsync(vm);
            assert!(lab.path("copy").join(vm).join(format!("{vm}.xml")).is_file());
        }
        let ran = lab.run(&["chunkmount", "--max-backups=1", "a"]);
        assert_eq!((ran.status, ran.stderr.contains("--max-backups is 1")), (4, true), "{ran:?}");
        lab.run(&["cleanup", "--all"]).ok();
        lab.assert_nothing_left(&a);
        lab.assert_nothing_left(&b);
        lab.run(&["cleanup", "--all"]).ok();
    });
}

#[test]
fn libvirt_a_lock_is_respected_waited_for_and_can_be_removed() {
    with_libvirt("libvirt_a_lock_is_respected_waited_for_and_can_be_removed", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        let lock = lab.path("b").join("mail01.lock");
        fs::write(&lock, "of another program").unwrap();
        let ran = lab.run(&["chunkmount", "mail01"]);
        assert_eq!((ran.status, ran.stderr.contains("virt-backup unlock")), (4, true), "{ran:?}");
        let waiting = lab.spawn(&["chunkmount", "--wait=30", "mail01"]);
        std::thread::sleep(std::time::Duration::from_millis(300));
        lab.run(&["--unlock", "--vm=mail01"]).ok();
        assert!(waiting.wait_with_output().unwrap().status.success());
        // Over the leftovers of a job whose cleanup never came.
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.run(&["--cleanup", "--vm=mail01"]).ok();
        lab.assert_nothing_left(&guest);
        lab.run(&["cleanup", "mail01"]).ok();
    });
}

#[test]
fn libvirt_run_cleans_up_whatever_becomes_of_the_command() {
    with_libvirt("libvirt_run_cleans_up_whatever_becomes_of_the_command", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        let xml = lab.path("b").join("mail01/mail01.xml").display().to_string();
        for (command, status) in
            [(&["test", "-f", &xml][..], 0), (&["sh", "-c", "exit 42"], 42), (&["/nonexistent"], 1)]
        {
            let ran = lab.run(&[&["run", "mail01", "--"], command].concat());
            assert_eq!(ran.status, status, "{ran:?}");
            lab.assert_nothing_left(&guest);
        }
    });
}

#[test]
fn libvirt_a_dry_run_tells_the_plan_and_touches_nothing() {
    with_libvirt("libvirt_a_dry_run_tells_the_plan_and_touches_nothing", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        let ran = lab.run(&["chunkmount", "--dry-run", "mail01"]).ok();
        assert!(ran.stdout.contains("begin a pull backup"), "{ran:?}");
        assert!(!lab.state.exists());
        assert_eq!(guest.checkpoints(), [""; 0]);
        lab.assert_nothing_left(&guest);
    });
}
