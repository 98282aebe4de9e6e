//! The guest comes first: when the space for what it overwrites runs short, the backup ends, not the guest.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::libvirt::{Disk, with_libvirt};

#[test]
fn libvirt_a_guest_that_overwrites_more_than_there_is_room_for_loses_its_view_and_no_write() {
    with_libvirt(
        "libvirt_a_guest_that_overwrites_more_than_there_is_room_for_loses_its_view_and_no_write",
        |lab| {
            let mut guest = lab.guest("mail01", &[Disk { format: "qcow2", mib: 64 }]);
            guest.write(0, 1, 0, 64 << 20);
            fs::create_dir(&lab.state).unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=16m", "small"]).arg(&lab.state);
            assert!(mount.status().unwrap().success());

            lab.run(&["chunkmount", "mail01"]).ok();
            for mib in 0..64u64 {
                guest.write(0, 7, mib << 20, 1 << 20);
            }
            let chunk = lab.path("b").join("mail01/mail01_vda/00/00/00/00/00/00/00/05");
            let deadline = Instant::now() + Duration::from_secs(20);
            while fs::read(&chunk).is_ok() {
                assert!(Instant::now() < deadline, "the view outlives its backup");
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(fs::read(&chunk).unwrap_err().raw_os_error(), Some(5));
            let status = lab.run(&["status"]);
            assert!(status.stdout.contains("cannot be read any more"), "{status:?}");
            assert!(status.stdout.contains("before it could harm the guest"), "{status:?}");
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left(&guest);
            guest.assert_content();

            let mut full = Command::new("dd");
            full.args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}", lab.state.join("fill").display()));
            drop(full.output());
            let ran = lab.run(&["chunkmount", "mail01"]);
            assert_eq!(ran.status, 1, "{ran:?}");
            assert!(
                ran.stderr.contains("free for scratch files") || ran.stderr.contains("No space"),
                "{ran:?}"
            );
        },
    );
}
