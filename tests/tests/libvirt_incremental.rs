//! A guest that runs is backed up again and again: what changed is sent, nothing else, and all of it is right.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tests::libvirt::{Disk, with_libvirt};

const QCOW2: Disk = Disk { format: "qcow2", mib: 64 };
const RAW: Disk = Disk { format: "raw", mib: 32 };
const CHUNK: u64 = 256 << 10;
/// Chunks that are read although nothing says that they changed, to see whether that is true.
const SAMPLE: u64 = 16;
/// What LVM reads of every device, where there are volumes, to tell whether there are some of ours, in chunks.
const SCANNED: u64 = 2;

#[test]
fn libvirt_of_two_disks_exactly_the_twelve_chunks_are_sent_that_the_guest_wrote_to() {
    with_libvirt("libvirt_of_two_disks_exactly_the_twelve_chunks_are_sent_that_the_guest_wrote_to", |lab| {
        let mut guest = lab.guest_on_devices("mail01", &[QCOW2, RAW]);
        guest.write(0, 1, 0, 64 << 20);
        guest.write(1, 2, 0, 20 << 20);
        let shape = guest.shape();

        lab.run(&["chunkmount", "mail01"]).ok();
        let first = guest.content.clone();
        assert_eq!(lab.rsync("mail01"), 256 + 128, "the first backup sends all");
        lab.assert_restored("mail01", &first);
        guest.write_chunks(0, 3, [0, 7, 8, 100, 159, 200, 255]);
        guest.write_chunks(1, 4, [1, 2, 64, 90, 127]);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);

        let before = [0, 1].map(|disk| guest.bytes_read(disk));
        lab.run(&["chunkmount", "mail01"]).ok();
        assert_eq!(lab.rsync("mail01"), 12);
        lab.assert_restored("mail01", &guest.content);
        let read = [0, 1].map(|disk| guest.bytes_read(disk) - before[disk]);
        println!("{} bytes were read of the qcow2 disk and {} of the raw one", read[0], read[1]);
        let has_volumes = fs::read_dir("/etc/lvm/backup").is_ok_and(|mut files| files.next().is_some());
        let scanned = if has_volumes { SCANNED } else { 0 };
        // Whole chunks: the kernel counts what others read of a device, too, and a look at its first pages is no chunk.
        let chunks = read.map(|bytes| bytes / CHUNK);
        assert!((7..=7 + SAMPLE + scanned).contains(&chunks[0]), "{} of the qcow2 disk", read[0]);
        assert!((5..=128 + scanned).contains(&chunks[1]), "{} of the raw disk", read[1]);
        lab.run(&["cleanup", "mail01"]).ok();
        lab.assert_nothing_left(&guest);

        lab.run(&["chunkmount", "mail01"]).ok();
        assert_eq!(lab.rsync("mail01"), 0, "nothing was written since");
        lab.run(&["cleanup", "mail01"]).ok();
        assert_eq!(guest.checkpoints().len(), 1, "at most one checkpoint stays");
        assert_eq!(guest.shape(), shape);
    });
}

#[test]
fn libvirt_what_the_guest_writes_under_a_view_never_shows_and_is_not_lost() {
    with_libvirt("libvirt_what_the_guest_writes_under_a_view_never_shows_and_is_not_lost", |lab| {
        let mut guest = lab.guest("mail01", &[QCOW2, RAW]);
        guest.write(0, 1, 0, 8 << 20);
        guest.write(1, 2, 0, 8 << 20);
        let then = guest.content.clone();
        lab.run(&["chunkmount", "mail01"]).ok();
        let chunks = || (0..40).step_by(3);
        guest.write_chunks(0, 9, chunks());
        guest.write_chunks(1, 9, chunks());
        lab.rsync("mail01");
        lab.assert_restored("mail01", &then);
        guest.write_chunks(0, 10, chunks());
        lab.run(&["cleanup", "mail01"]).ok();
        guest.assert_content();

        lab.run(&["chunkmount", "mail01"]).ok();
        assert_eq!(lab.rsync("mail01"), 2 * chunks().count());
        lab.assert_restored("mail01", &guest.content);
        lab.run(&["cleanup", "mail01"]).ok();
    });
}

#[test]
fn libvirt_content_that_comes_back_has_a_new_stamp_if_the_one_between_was_shown() {
    with_libvirt("libvirt_content_that_comes_back_has_a_new_stamp_if_the_one_between_was_shown", |lab| {
        let mut guest = lab.guest("mail01", &[QCOW2, RAW]);
        let (a, b, chunk) = (1, 2, 5);
        let mut stamps = [Vec::new(), Vec::new()];
        // Each time: what the guest writes, one after the other, and how many chunks a backup then has to send.
        let times: [(&[u8], usize); 5] = [(&[a], 384), (&[b], 2), (&[a], 2), (&[b, a], 0), (&[b], 2)];
        for (bytes, sent) in times {
            for (byte, disk) in bytes.iter().flat_map(|byte| [(*byte, 0), (*byte, 1)]) {
                guest.write(disk, byte, chunk * CHUNK, CHUNK);
            }
            lab.run(&["chunkmount", "mail01"]).ok();
            for (disk, stamps) in stamps.iter_mut().enumerate() {
                let path = format!("b/mail01/mail01_vd{}/{}", ["a", "b"][disk], tests::chunk(chunk));
                stamps.push(lab.path(&path).metadata().unwrap().mtime());
            }
            assert_eq!(lab.rsync("mail01"), sent, "after {bytes:?}");
            lab.assert_restored("mail01", &guest.content);
            lab.run(&["cleanup", "mail01"]).ok();
        }
        for stamps in stamps {
            let steps: Vec<_> = stamps.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(steps[0] > 0 && steps[1] > 0 && steps[3] > 0, "{stamps:?}");
            assert_eq!(steps[2], 0, "B was shown to nobody, so nothing has changed: {stamps:?}");
        }
    });
}

#[test]
fn libvirt_without_tracking_all_is_sent_and_every_file_stays_the_same_file() {
    with_libvirt("libvirt_without_tracking_all_is_sent_and_every_file_stays_the_same_file", |lab| {
        let mut guest = lab.guest("mail01", &[QCOW2, RAW]);
        guest.write(0, 1, 0, 8 << 20);
        let chunk = lab.path("b/mail01/mail01_vda").join(tests::chunk(5));
        let mut inodes = Vec::new();
        for (track, sent, checkpoints) in [
            ("auto", 384, 1),
            ("none", 384, 0),
            ("none", 384, 0),
            ("digest", 0, 0),
            ("auto", 0, 1),
            ("auto", 0, 1),
        ] {
            lab.run(&["chunkmount", &format!("--track={track}"), "mail01"]).ok();
            inodes.push(chunk.metadata().unwrap().ino());
            assert_eq!(lab.rsync("mail01"), sent, "--track={track}");
            lab.assert_restored("mail01", &guest.content);
            lab.run(&["cleanup", "mail01"]).ok();
            assert_eq!(guest.checkpoints().len(), checkpoints, "--track={track}");
        }
        assert!(inodes.windows(2).all(|pair| pair[0] == pair[1]), "{inodes:?}");
    });
}

#[test]
fn libvirt_without_a_usable_bitmap_all_is_compared_and_said_so() {
    with_libvirt("libvirt_without_a_usable_bitmap_all_is_compared_and_said_so", |lab| {
        let mut guest = lab.guest("mail01", &[QCOW2]);
        guest.write(0, 1, 0, 8 << 20);
        tests::libvirt::virsh_ok(&["checkpoint-create-as", "mail01", "nightly-of-somebody-else"]);
        let back_up = |guest: &tests::libvirt::Guest, expected: usize, why: &str| {
            lab.run(&["chunkmount", "mail01"]).ok();
            let text = lab.status()[0]["view"]["disks"][0]["tracking"].to_string();
            assert!(text.contains(why), "{text}");
            assert_eq!(lab.rsync("mail01"), expected, "{why}");
            lab.assert_restored("mail01", &guest.content);
            lab.run(&["cleanup", "mail01"]).ok();
            let ours = guest.checkpoints().into_iter().filter(|name| name.starts_with("virt-backup-"));
            assert_eq!(ours.count(), 1);
            assert!(guest.checkpoints().contains(&"nightly-of-somebody-else".to_owned()));
        };
        back_up(&guest, 256, "it is new to the index");
        guest.write_chunks(0, 2, [3]);
        back_up(&guest, 1, "\"by\":\"changes\"");

        // The checkpoint is deleted behind our back.
        let ours = guest.checkpoints().into_iter().find(|name| name.starts_with("virt-backup-")).unwrap();
        tests::libvirt::virsh_ok(&["checkpoint-delete", "mail01", &ours]);
        guest.write_chunks(0, 3, [4, 5]);
        back_up(&guest, 2, "is gone");

        // The index is lost: all is new.
        lab.run(&["forget", "mail01"]).ok();
        assert_eq!(guest.checkpoints(), ["nightly-of-somebody-else"]);
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.rsync("mail01");
        lab.assert_restored("mail01", &guest.content);
        lab.run(&["cleanup", "mail01"]).ok();
    });
}
