//! Method lvm on real logical volumes, in a virtual machine whose kernel has them: killed at any moment, overflowing, dumping.
//! Which storages it works for is in `libvirt_methods`.

use std::fs;

use tests::libvirt::{
    Disk, LogicalVolume, Provisioning, Storage, content_of, fullness, in_vm, mounts_below, names_in,
};

const LVM: [&str; 2] = ["--method=lvm", "--snapsize=64M"];
const RAW: Disk = Disk { format: "raw", mib: 8 };

fn chunkmount<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["chunkmount", "mail01"], words].concat()
}

#[test]
fn libvirt_lvm_may_be_killed_between_any_lines_of_its_journal() {
    in_vm("libvirt_lvm_may_be_killed_between_any_lines_of_its_journal", |lab| {
        let volume = LogicalVolume::make("images", 100, Provisioning::Thick);
        let carried = volume.carry_images(lab, "ext4");
        let disks = [Disk { format: "qcow2", mib: 8 }, RAW];
        let mut guest = lab.guest_kept("mail01", &disks, Storage::Files);
        guest.start();
        guest.write(0, 1, 0, 4 << 20);
        let shape = guest.shape();
        let mut lines = 1;
        while lab.kill_at_line("mail01", &chunkmount(&LVM), lines).is_none() {
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left(&guest);
            assert_eq!(mounts_below(&lab.state), [""; 0], "killed at line {lines}");
            guest.write_chunks(1, lines as u8, [lines as u64 % 32]);
            lines += 4;
        }
        println!("killed at every fourth of {lines} lines");
        assert!(lines > 24);
        lab.rsync("mail01");
        lab.assert_restored("mail01", &guest.content);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        assert_eq!(guest.shape(), shape);
        guest.assert_content();
        guest.power_off();
        drop((guest, carried, volume));
    });
}

/// The view fails, never lies; cleanup says so, and the next backup is right.
#[test]
fn libvirt_a_snapshot_that_overflows_fails_the_view_and_the_exit_status() {
    in_vm("libvirt_a_snapshot_that_overflows_fails_the_view_and_the_exit_status", |lab| {
        let disk = Disk { format: "raw", mib: 48 };
        let mut guest = lab.guest_kept("mail01", &[disk], Storage::Volumes(Provisioning::Thick));
        guest.start();
        guest.write(0, 7, 0, 48 << 20);
        guest.flush();
        lab.run(&chunkmount(&["--method=lvm", "--snapsize=8M"])).ok();
        let chunk = |number: u64| lab.path(&format!("b/mail01/mail01_vda/00/00/00/00/00/00/00/{number:02x}"));
        assert_eq!(fs::read(chunk(3)).unwrap(), vec![7; 256 << 10]);
        guest.write(0, 8, 8 << 20, 32 << 20);
        guest.flush();
        println!("snapshots: {:?}", fullness());
        std::thread::sleep(std::time::Duration::from_millis(200));
        for number in [3, 40, 100, 159] {
            // What the guest has written since is never shown, nor anything else but the truth.
            let error = fs::read(chunk(number)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(5), "chunk {number}: {error}");
        }
        let cleaned = lab.run(&["cleanup", "mail01"]);
        assert_eq!(cleaned.status, 1, "{cleaned:?}");
        assert!(
            cleaned.stderr.contains("overflowed") && cleaned.stderr.contains("--snapsize"),
            "{cleaned:?}"
        );
        lab.assert_nothing_left(&guest);
        lab.run(&["cleanup", "mail01"]).ok();
        guest.assert_content();

        // A dump of a disk that is overwritten faster than it is copied is no dump.
        let mut dump = lab.spawn(&["dump", "mail01", "--method=lvm", "--snapsize=8M", "--bwlimit=4M"]);
        while fullness().is_empty() {
            assert!(dump.try_wait().unwrap().is_none(), "the dump has ended");
        }
        guest.write(0, 9, 16 << 20, 32 << 20);
        guest.flush();
        let status = dump.wait().unwrap();
        assert_eq!(status.code(), Some(1));
        assert_eq!(names_in(lab.path("b")), [""; 0]);
        lab.assert_nothing_left(&guest);

        lab.run(&["dump", "mail01", "--method=lvm", "--snapsize=64M"]).ok();
        let dumped = lab.path("b/mail01/mail01_vda.img");
        assert!(content_of(&dumped, "raw") == guest.content[0]);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        guest.power_off();
        drop(guest);
    });
}
