//! A guest that writes all the time writes on through its whole backup, and is never stopped.
//! How long each write takes is printed; the bound is far above what a quiet machine shows.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::libvirt::{Disk, Monitor, with_libvirt};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 256 }, Disk { format: "raw", mib: 128 }];
const BLOCK: u64 = 4096;
/// The guest writes one block in every such time.
const PACE: Duration = Duration::from_millis(10);
/// More than without a backup, on a machine that other tests keep busy.
const LONGEST: Duration = Duration::from_secs(1);

/// What a writer did.
struct Diary {
    /// When each write was done.
    done: Vec<Instant>,
    written: Vec<(usize, u8, u64)>,
}

impl Diary {
    /// The longest time without a write, and how many there were.
    fn between(&self, from: Instant, to: Instant) -> (Duration, usize) {
        let within: Vec<_> = self.done.iter().copied().filter(|at| (from..=to).contains(at)).collect();
        let ends =
            std::iter::once(from).chain(within.iter().copied()).zip(within.iter().copied().chain([to]));
        (ends.map(|(before, after)| after - before).max().unwrap(), within.len())
    }
}

/// Writes to both disks in turns, all over them, until told to stop.
fn write_on(monitor: &mut Monitor, stop: &AtomicBool) -> Diary {
    let mut diary = Diary { done: Vec::new(), written: Vec::new() };
    let mut due = Instant::now();
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let disk = (number % 2) as usize;
        let blocks = (DISKS[disk].mib << 20) / BLOCK;
        // A prime, so that blocks far apart follow each other and none is written twice soon.
        let (byte, offset) = ((number % 251 + 1) as u8, number * 7919 % blocks * BLOCK);
        monitor.write(disk, byte, offset, BLOCK);
        diary.done.push(Instant::now());
        diary.written.push((disk, byte, offset));
        due = (due + PACE).max(Instant::now());
        std::thread::sleep(due - Instant::now());
    }
    diary
}

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
            let writer = scope.spawn(|| write_on(&mut monitor, &stop));
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

        assert_eq!(monitor.execute("query-status", serde_json::json!({}))["status"], "running");
        let stops: Vec<_> =
            monitor.events.iter().filter(|event| ["STOP", "RESUME"].contains(&&***event)).collect();
        assert!(stops.is_empty(), "{:?}", monitor.events);
        for (disk, byte, offset) in diary.written {
            guest.content[disk][offset as usize..][..BLOCK as usize].fill(byte);
        }
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
        tests::libvirt::virsh_ok(&["suspend", "mail01"]);
        assert_eq!(monitor.execute("query-status", serde_json::json!({}))["status"], "paused");
        assert!(monitor.events.contains(&"STOP".to_owned()), "{:?}", monitor.events);
    });
}
