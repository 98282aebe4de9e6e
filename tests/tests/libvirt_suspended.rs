//! How long a guest with two disks does not run while its point in time is taken, and how long its writes wait, by each
//! method; measured by QEMU's own clock, and printed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::libvirt::{Diary, Disk, OwnFileSystem, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 256 }, Disk { format: "raw", mib: 128 }];
const ROUNDS: usize = 3;
/// The promise, of a machine that is not busy with anything else: it is kept in the best round at least.
const LONGEST: Duration = Duration::from_millis(200);

#[test]
fn libvirt_a_guest_does_not_run_for_a_moment_at_most() {
    with_libvirt("libvirt_a_guest_does_not_run_for_a_moment_at_most", |lab| {
        let _images = OwnFileSystem::mount(lab, "xfs", "2G");
        let mut guest = lab.guest_off("mail01", &DISKS);
        guest.add_monitor();
        guest.start();
        let mut monitor = guest.monitor();
        for (method, stops) in [("pull", 0), ("external", 0), ("reflink", 1)] {
            let (mut longest_stops, mut gaps) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                // The host has much that it has not brought to the disk yet.
                guest.write(0, 1, 0, 256 << 20);
                guest.write(1, 2, 0, 128 << 20);
                let stop = AtomicBool::new(false);
                let (from, to, diary) = std::thread::scope(|scope| {
                    let writer = scope.spawn(|| Diary::write_on(&mut monitor, &DISKS, &stop));
                    let from = Instant::now();
                    lab.quiet(&["chunkmount", "mail01", &format!("--method={method}")]).ok();
                    let to = Instant::now();
                    lab.quiet(&["cleanup", "mail01"]).ok();
                    stop.store(true, Ordering::Relaxed);
                    (from, to, writer.join().unwrap())
                });
                diary.enter(&mut guest);
                let stopped = monitor.stopped();
                assert_eq!(stopped.len(), stops, "{method}: {stopped:?}");
                longest_stops.push(stopped.into_iter().max().unwrap_or_default());
                gaps.push(diary.between(from, to).0);
            }
            println!("{method}: suspended for {longest_stops:?}; the longest time without a write: {gaps:?}");
            for measured in [longest_stops, gaps] {
                let best = measured.iter().min().unwrap();
                assert!(*best < LONGEST, "{method}: {measured:?}");
            }
        }
        guest.assert_content();
        lab.assert_nothing_left(&guest);
    });
}
