//! Method lvm on real logical volumes, in a virtual machine whose kernel has them: killed at any moment, overflowing, dumping.
//! Which storages it works for is in `libvirt_methods`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tests::libvirt::{
    Disk, Guest, Lab, LogicalVolume, Provisioning, Storage, content_of, fullness, in_vm, mounts_below,
    names_in, snapshots_of_ours,
};
use tests::process::run_well;

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

/// What a backup with a kept snapshot came to.
struct Kept {
    /// What is said of changes.
    told: String,
    /// Chunks.
    sent: usize,
    /// Of the snapshots, in bytes.
    read: u64,
}

fn kept(lab: &Lab, guest: &Guest) -> Kept {
    let before = snapshots_of_ours();
    lab.run(&chunkmount(&["--method=lvm", "--keep-thin"])).ok();
    let decided = fs::read_to_string(lab.path("b/mail01/mail01.json")).unwrap();
    let found = lab.status().to_string();
    let sent = lab.rsync("mail01");
    lab.assert_restored("mail01", &guest.content);
    let new = snapshots_of_ours().into_iter().filter(|snapshot| !before.contains(snapshot));
    let read = new.map(|snapshot| bytes_read_of(&snapshot)).sum();
    lab.run(&["cleanup", "mail01"]).ok();
    lab.assert_only_snapshots_left_of("mail01");
    // Nobody reads or scans it meanwhile.
    assert!(fullness().iter().all(|attributes| attributes.starts_with("Vri---")), "{:?}", fullness());
    Kept { told: format!("{decided}{found}"), sent, read }
}

/// Of a line that has its tags, too.
fn name_of(snapshot: &str) -> &str {
    snapshot.split(' ').next().unwrap()
}

/// From the kernel's statistics of the device: see Documentation/block/stat.rst there.
fn bytes_read_of(snapshot: &str) -> u64 {
    let device = fs::metadata(Path::new("/dev/vg0").join(name_of(snapshot))).unwrap().rdev();
    let stat = format!("/sys/dev/block/{}:{}/stat", rustix::fs::major(device), rustix::fs::minor(device));
    let sectors =
        fs::read_to_string(stat).unwrap().split_whitespace().nth(2).unwrap().parse::<u64>().unwrap();
    sectors * 512
}

#[test]
fn libvirt_a_kept_snapshot_of_a_thin_volume_tells_what_has_changed() {
    in_vm("libvirt_a_kept_snapshot_of_a_thin_volume_tells_what_has_changed", |lab| {
        let disk = Disk { format: "raw", mib: 64 };
        let mut guest = lab.guest_kept("mail01", &[disk], Storage::Volumes(Provisioning::Thin));
        guest.start();
        guest.write(0, 1, 0, 12 << 20);
        guest.flush();
        assert_eq!((kept(lab, &guest).sent, snapshots_of_ours().len()), (256, 1));

        // Also a chunk that was never written to before, and one with what it held already.
        guest.write_chunks(0, 7, [3, 40, 60, 200]);
        guest.write_chunks(0, 1, [5]);
        guest.flush();
        let old = snapshots_of_ours();
        let Kept { told, sent, read } = kept(lab, &guest);
        assert_eq!(sent, 4, "{told}");
        assert!(told.contains("thin-delta"), "{told}");
        let new = snapshots_of_ours();
        println!("{} KiB of 65536 were read of the new snapshots", read >> 10);
        assert!((4 * (256 << 10)..20 << 20).contains(&read), "{read}");
        assert!(new.len() == 1 && new.iter().all(|snapshot| !old.contains(snapshot)), "{old:?} {new:?}");
        assert_eq!(kept(lab, &guest).sent, 0, "nothing was written since");

        let mut lines = 5;
        while lab.kill_at_line("mail01", &chunkmount(&["--method=lvm", "--keep-thin"]), lines).is_none() {
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_only_snapshots_left_of("mail01");
            assert_eq!(snapshots_of_ours().len(), 1, "killed at line {lines}");
            guest.write_chunks(0, lines as u8, [lines as u64]);
            lines += 7;
        }
        println!("killed at every seventh of {lines} lines");
        assert!(lines > 18);
        lab.run(&["cleanup", "mail01"]).ok();
        guest.flush();
        let told = kept(lab, &guest).told;
        assert!(told.contains("thin-delta"), "{told}");

        // The pool's metadata are held by somebody else: that stays so, and everything is compared.
        run_well("dmsetup", &["message", "vg0-pool-tpool", "0", "reserve_metadata_snap"]);
        guest.write_chunks(0, 99, [1, 2]);
        guest.flush();
        let Kept { told, sent, .. } = kept(lab, &guest);
        assert!(told.contains("the metadata of vg0/pool are held by another program"), "{told}");
        assert_eq!(sent, 2);
        run_well("dmsetup", &["message", "vg0-pool-tpool", "0", "release_metadata_snap"]);

        let one = snapshots_of_ours().remove(0);
        run_well("lvremove", &["-q", "-y", &format!("vg0/{}", name_of(&one))]);
        guest.write_chunks(0, 100, [1, 2]);
        guest.flush();
        let Kept { told, sent, .. } = kept(lab, &guest);
        assert!(told.contains("is gone, or can be written to"), "{told}");
        assert_eq!(sent, 2);

        // Without the option nothing stays.
        lab.run(&chunkmount(&["--method=lvm"])).ok();
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);
        guest.assert_content();
        guest.power_off();
        drop(guest);
    });
}
