//! Guests that are off: raw images read directly, others through qemu-nbd, and what happens when they are started.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tests::libvirt::{Disk, virsh_ok, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 16 }, Disk { format: "raw", mib: 8 }];
/// After this the times of a file prove that it was not written to.
const SETTLED: Duration = Duration::from_secs(4);

#[test]
fn libvirt_images_of_a_guest_that_is_off_are_shown_and_when_untouched_not_read_again() {
    with_libvirt(
        "libvirt_images_of_a_guest_that_is_off_are_shown_and_when_untouched_not_read_again",
        |lab| {
            let mut guest = lab.guest("mail01", &DISKS);
            guest.write(0, 1, 0, 4 << 20);
            guest.write(1, 2, 0, 4 << 20);
            guest.power_off();
            std::thread::sleep(SETTLED);
            for (expected, by) in [(64 + 32, "digests"), (0, "changes")] {
                lab.run(&["chunkmount", "mail01"]).ok();
                let disks = lab.status()[0]["view"]["disks"].clone();
                assert_eq!(
                    (&disks[0]["tracking"]["by"], &disks[1]["tracking"]["by"]),
                    (&by.into(), &by.into())
                );
                assert_eq!(lab.rsync("mail01"), expected);
                lab.assert_restored("mail01", &guest.content);
                lab.run(&["cleanup", "mail01"]).ok();
                lab.assert_nothing_left(&guest);
            }
            guest.start();
            guest.write_chunks(0, 5, [3, 60]);
            lab.run(&["chunkmount", "mail01"]).ok();
            assert_eq!(lab.rsync("mail01"), 2, "compared by digest, sent where it differs");
            lab.assert_restored("mail01", &guest.content);
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left(&guest);
        },
    );
}

#[test]
fn libvirt_disks_of_a_guest_that_was_ended_are_told_to_be_as_after_a_power_cut() {
    with_libvirt("libvirt_disks_of_a_guest_that_was_ended_are_told_to_be_as_after_a_power_cut", |lab| {
        let guest = lab.guest_off("mail01", &DISKS[1..]);
        let told = || {
            lab.run(&["chunkmount", "mail01"]).ok();
            let about = fs::read(lab.path("b/mail01/mail01.json")).unwrap();
            lab.run(&["cleanup", "mail01"]).ok();
            serde_json::from_slice::<serde_json::Value>(&about).unwrap()["consistency"].clone()
        };
        guest.start();
        guest.signal(Signal::TERM);
        guest.wait_until_off();
        assert_eq!(virsh_ok(&["domstate", "--reason", "mail01"]).trim(), "shut off (shutdown)");
        assert_eq!(told(), "shut-down");
        guest.start();
        guest.power_off();
        assert_eq!(told(), "crash");
        guest.start();
        virsh_ok(&["managedsave", "mail01"]);
        assert_eq!(told(), "crash", "what it has not written yet is in its memory");
        virsh_ok(&["managedsave-remove", "mail01"]);
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_a_guest_that_is_started_under_its_view_starts_and_the_view_fails() {
    with_libvirt("libvirt_a_guest_that_is_started_under_its_view_starts_and_the_view_fails", |lab| {
        let mut guest = lab.guest_off("mail01", &DISKS);
        lab.run(&["chunkmount", "mail01"]).ok();
        guest.start();
        for disk in 0..2 {
            guest.write_chunks(disk, 5, [3]);
        }
        for disk in ["vda", "vdb"] {
            let chunk = lab.path("b").join(format!("mail01/mail01_{disk}/00/00/00/00/00/00/00/00"));
            // qcow2 keeps the write to itself for a while: until it is flushed its image is as it was.
            virsh_ok(&[
                "qemu-monitor-command",
                "--hmp",
                "mail01",
                "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend flush",
            ]);
            let read = fs::read(chunk);
            assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "{disk}");
        }
        assert_eq!(lab.status()[0]["state"], "failed");
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        guest.assert_content();
    });
}

#[test]
fn libvirt_an_image_over_another_is_shown_with_what_lies_below() {
    with_libvirt("libvirt_an_image_over_another_is_shown_with_what_lies_below", |lab| {
        let mut guest = lab.guest("mail01", &DISKS[..1]);
        guest.write(0, 1, 0, 4 << 20);
        guest.power_off();
        let (top, base) = (guest.images[0].clone(), lab.path("images").join("base, of all.qcow2"));
        fs::rename(&top, &base).unwrap();
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&base).arg(&top);
        assert!(create.status().unwrap().success());
        guest.start();
        guest.write_chunks(0, 7, [2, 50]);
        guest.power_off();
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.rsync("mail01");
        lab.assert_restored("mail01", &guest.content);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
    });
}
