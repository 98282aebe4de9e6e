//! A guest that writes a block in every hundredth of a second, and when each write was done: how long it waited, at most.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::guest::{Disk, Guest};
use super::monitor::Monitor;

const BLOCK: u64 = 4096;
/// The guest writes one block in every such time.
const PACE: Duration = Duration::from_millis(10);

/// What a writer did.
#[derive(Debug)]
pub struct Diary {
    /// When each write was done.
    done: Vec<Instant>,
    written: Vec<(usize, u8, u64)>,
}

impl Diary {
    /// Writes to all disks in turns, all over them, until told to stop.
    pub fn write_on(monitor: &mut Monitor, disks: &[Disk], stop: &AtomicBool) -> Diary {
        let mut diary = Diary { done: Vec::new(), written: Vec::new() };
        let mut due = Instant::now();
        for number in 0u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let disk = number as usize % disks.len();
            let blocks = (disks[disk].mib << 20) / BLOCK;
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

    /// The longest time without a write, and how many there were.
    pub fn between(&self, from: Instant, to: Instant) -> (Duration, usize) {
        let within: Vec<_> = self.done.iter().copied().filter(|at| (from..=to).contains(at)).collect();
        let ends =
            std::iter::once(from).chain(within.iter().copied()).zip(within.iter().copied().chain([to]));
        (ends.map(|(before, after)| after - before).max().unwrap(), within.len())
    }

    /// What the guest has on its disks is what was written to them.
    pub fn enter(&self, guest: &mut Guest) {
        for (disk, byte, offset) in &self.written {
            guest.content[*disk][*offset as usize..][..BLOCK as usize].fill(*byte);
        }
    }
}
