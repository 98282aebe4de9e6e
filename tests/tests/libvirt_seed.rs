//! The command lines of version 0.2, each as its manual has it, do what is said of them there.

use std::process::Command;

use tests::libvirt::{Disk, Guest, Lab, names_if_any, virsh_ok, with_libvirt};

const QCOW2: Disk = Disk { format: "qcow2", mib: 8 };
const RAW: Disk = Disk { format: "raw", mib: 4 };

fn run(lab: &Lab, line: &str) {
    let words: Vec<_> = line.split_whitespace().skip(1).collect();
    lab.run(&words).ok();
}

fn guest(lab: &Lab, name: &str) -> Guest {
    let mut guest = lab.guest(name, &[QCOW2, RAW]);
    guest.write(0, 1, 0, 2 << 20);
    guest.write(1, 2, 0, 1 << 20);
    guest
}

#[test]
fn libvirt_the_old_command_lines_do_what_their_manual_says() {
    with_libvirt("libvirt_the_old_command_lines_do_what_their_manual_says", |lab| {
        let (mail, dev) = (guest(lab, "mail01"), guest(lab, "devsrv"));
        let dir = |vm: &str| lab.path("b").join(vm);

        run(lab, "virt-backup --dump --vm=mail01,devsrv --state --exclude=vdb,hdb --compress");
        for vm in ["mail01", "devsrv"] {
            let files = [".b3", ".state", ".xml", "_vda.img.gz"].map(|end| format!("{vm}{end}"));
            assert_eq!(
                names_if_any(&dir(vm)),
                files,
                "vdb is left out, the memory is there, the disk is compressed"
            );
        }
        run(lab, "virt-backup --cleanup --vm=mail01");
        assert_eq!(
            (names_if_any(&dir("mail01")).len(), names_if_any(&dir("devsrv")).len()),
            (0, 4),
            "only those of mail01"
        );

        run(lab, "virt-backup --dump --vm=devsrv --snapsize=10G --keep-lock");
        assert!(lab.path("b/devsrv.lock").exists(), "the lock is kept");
        assert_eq!(
            names_if_any(&dir("devsrv")),
            ["devsrv.b3", "devsrv.xml", "devsrv_vda.img", "devsrv_vdb.img"]
        );
        run(lab, "virt-backup --unlock --vm=devsrv");

        run(lab, "virt-backup --dump --max-backups=2 --vm=devsrv --no-snapshot");
        assert!(!lab.path("b/devsrv.lock").exists());
        run(lab, "virt-backup --cleanup --vm=devsrv");

        run(lab, "virt-backup --dump --vm=mail01 --debug");
        run(lab, "virt-backup --cleanup --vm=mail01");

        run(lab, "virt-backup --action=chunkmount --vm=mail01");
        assert!(lab.path("b/mail01/mail01_vda/00/00/00/00/00/00/00/00").exists());
        run(lab, "virt-backup --cleanup --vm=mail01");
        for guest in [&mail, &dev] {
            lab.assert_nothing_left(guest);
            guest.assert_content();
        }
    });
}

/// Without an operating system the guest cannot hear that it is to shut down: we hear it in its place.
#[test]
fn libvirt_shutdown_backs_up_a_guest_that_was_shut_down_and_starts_it_again() {
    with_libvirt("libvirt_shutdown_backs_up_a_guest_that_was_shut_down_and_starts_it_again", |lab| {
        let guest = guest(lab, "winprd");
        for (line, files) in [
            ("virt-backup --action=dump --shutdown --shutdown-timeout=300 --vm=winprd", 4),
            ("virt-backup --action=dump --shutdown --vm=winprd --method=external", 4),
            ("virt-backup --action=dump --shutdown --vm=winprd --method=offline", 4),
        ] {
            let hears = ["-q", "qemu-monitor-event", "winprd", "POWERDOWN", "--timeout", "60"];
            let mut ear = Command::new("virsh").args(hears).spawn().unwrap();
            let first = virsh_ok(&["domid", "winprd"]);
            // The ear has to be there before the word is spoken.
            std::thread::sleep(std::time::Duration::from_secs(1));
            let words: Vec<_> = line.split_whitespace().skip(1).collect();
            let mut dump = lab.spawn(&words);
            assert!(ear.wait().unwrap().success(), "nobody told the guest to shut down");
            virsh_ok(&["destroy", "winprd"]);
            assert!(dump.wait().unwrap().success(), "{line}");
            assert_eq!(names_if_any(&lab.path("b/winprd")).len(), files, "{line}");
            assert!(std::fs::read(lab.path("b/winprd/winprd_vda.img")).unwrap() == guest.content[0]);
            assert_eq!(virsh_ok(&["domstate", "winprd"]).trim(), "running", "{line}");
            assert_ne!(virsh_ok(&["domid", "winprd"]), first, "it was started again");
            run(lab, "virt-backup --cleanup --vm=winprd");
            lab.assert_nothing_left(&guest);
        }
        // One that does not shut down in time goes on, and nothing is left.
        let late = lab.run(&["dump", "winprd", "--shutdown", "--shutdown-timeout=2"]);
        assert_eq!(
            (late.status, late.stderr.contains("has not shut down within 2 s")),
            (1, true),
            "{late:?}"
        );
        assert_eq!(virsh_ok(&["domstate", "winprd"]).trim(), "running");
        lab.assert_nothing_left(&guest);
    });
}
