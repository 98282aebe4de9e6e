//! A guest that writes all the time writes on through its whole backup, and is never stopped.
//! How long each write takes is printed; the bound is far above what a quiet machine shows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::libvirt::{Diary, Disk, virsh_ok, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 256 }, Disk { format: "raw", mib: 128 }];
/// More than without a backup, on a machine that other tests keep busy.
const LONGEST: Duration = Duration::from_secs(1);

#[test]
fn libvirt_a_guest_that_writes_every_10_ms_is_never_stopped_and_never_waits_long() {
    with_libvirt("libvirt_a_guest_that_writes_every_10_ms_is_never_stopped_and_never_waits_long", |lab| {
        let mut guest = lab.guest_off("mail01", &DISKS);
        guest.add_monitor();
        guest.start();
        guest.write(0, 1, 0, 256 << 20);
        guest.write(1, 2, 0, 128 << 20);
        let mut monitor = guest.monitor();
        let stop = AtomicBool::new(false);
        let mut times = vec![("nothing", Instant::now())];
        let diary = std::thread::scope(|scope| {
            let writer = scope.spawn(|| Diary::write_on(&mut monitor, &DISKS, &stop));
            std::thread::sleep(Duration::from_secs(2));
            for _backup in ["the first", "one by dirty bitmap"] {
                times.push(("chunkmount", Instant::now()));
                lab.run(&["chunkmount", "mail01"]).ok();
                times.push(("rsync", Instant::now()));
                lab.rsync("mail01");
                times.push(("cleanup", Instant::now()));
                lab.run(&["cleanup", "mail01"]).ok();
            }
            times.push(("end", Instant::now()));
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });

        let mut quiet = Duration::ZERO;
        for pair in times.windows(2) {
            let (gap, writes) = diary.between(pair[0].1, pair[1].1);
            let took = pair[1].1 - pair[0].1;
            println!("{}: {writes} writes in {took:?}, the longest time without one {gap:?}", pair[0].0);
            if pair[0].0 == "nothing" {
                quiet = gap;
            }
        }
        let (gap, writes) = diary.between(times[1].1, times.last().unwrap().1);
        println!(
            "the longest time without a write in two backups: {gap:?}, of {writes} writes; without: {quiet:?}"
        );
        assert!(gap < LONGEST + quiet, "{gap:?}");

        assert_eq!(monitor.stopped(), []);
        diary.enter(&mut guest);
        guest.assert_content();
    });
}

#[test]
fn libvirt_a_guest_that_is_stopped_would_be_noticed() {
    with_libvirt("libvirt_a_guest_that_is_stopped_would_be_noticed", |lab| {
        let guest = lab.guest_off("mail01", &DISKS);
        guest.add_monitor();
        guest.start();
        let mut monitor = guest.monitor();
        virsh_ok(&["suspend", "mail01"]);
        virsh_ok(&["resume", "mail01"]);
        let stopped = monitor.stopped();
        assert_eq!(stopped.len(), 1, "{stopped:?}");
        assert!(stopped[0] > Duration::ZERO);
    });
}
