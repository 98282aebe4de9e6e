//! Which chunks somebody has read since a view was mounted, and how many: a bit each, in pages that are there once used.
//! No lock: readers set bits and add numbers, and nothing is ever taken back.

use crate::core::geometry::{ChunkIndex, Geometry};
use serde::Serialize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The chunks of a page, of 4 KiB: 8 GiB of a disk in chunks of 256 KiB.
const CHUNKS_PER_PAGE: u64 = 32_768;
const WORDS: usize = (CHUNKS_PER_PAGE / 64) as usize;
/// 32 MiB. Reads from so many places at least are told apart: of 64 TiB in chunks of 256 KiB, wherever they are.
const MOST_PAGES: usize = 8192;

/// The distinct chunks of a disk that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChunksRead {
    pub chunks: u64,
    /// `false`: they are more, for not all of them could be remembered.
    pub exact: bool,
}

/// Who has read what, of all disks of a view. Pages are found by their number, in a table that is never full.
#[derive(Debug)]
pub struct Reads {
    pages: Box<[OnceLock<Box<Page>>]>,
    pages_used: AtomicUsize,
    disks: Box<[DiskReads]>,
}

#[derive(Debug, Default)]
struct DiskReads {
    chunks: AtomicU64,
    incomplete: AtomicBool,
}

#[derive(Debug)]
struct Page {
    disk: usize,
    number: u64,
    bits: [AtomicU64; WORDS],
}

impl Reads {
    /// Of disks of these shapes; they are known by their places in this order.
    pub fn new<'a>(geometries: impl Iterator<Item = &'a Geometry>) -> Reads {
        let pages_of = |geometry: &Geometry| geometry.chunk_count().div_ceil(CHUNKS_PER_PAGE);
        let counts: Vec<u64> = geometries.map(pages_of).collect();
        let all = counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        // Twice as many places as pages, so that a page is found within a few steps.
        let places = (all.min(MOST_PAGES as u64) as usize * 2).next_power_of_two();
        Reads {
            pages: (0..places).map(|_| OnceLock::new()).collect(),
            pages_used: AtomicUsize::new(0),
            disks: counts.iter().map(|_| DiskReads::default()).collect(),
        }
    }

    /// Remembers that somebody has read of a chunk.
    pub fn note(&self, disk: usize, chunk: ChunkIndex) {
        let Some(page) = self.page(disk, chunk.0 / CHUNKS_PER_PAGE) else {
            return self.disks[disk].incomplete.store(true, Ordering::Relaxed);
        };
        let bit = (chunk.0 % CHUNKS_PER_PAGE) as usize;
        let (word, mask) = (&page.bits[bit / 64], 1 << (bit % 64));
        // Most requests are for more of a chunk that was counted already; then nobody's cache is disturbed.
        if word.load(Ordering::Relaxed) & mask == 0 && word.fetch_or(mask, Ordering::Relaxed) & mask == 0 {
            self.disks[disk].chunks.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn of(&self, disk: usize) -> ChunksRead {
        let reads = &self.disks[disk];
        ChunksRead {
            chunks: reads.chunks.load(Ordering::Relaxed),
            exact: !reads.incomplete.load(Ordering::Relaxed),
        }
    }

    /// `None`: it is new, and there are enough.
    fn page(&self, disk: usize, number: u64) -> Option<&Page> {
        let last = self.pages.len() - 1;
        // Neighbours stand beside each other; disks begin at different places.
        let begin = (number as usize).wrapping_add(disk.wrapping_mul(0x9e37_79b9));
        for step in 0..=last {
            let place = &self.pages[begin.wrapping_add(step) & last];
            let page = match place.get() {
                Some(page) => page,
                None if self.pages_used.fetch_add(1, Ordering::Relaxed) >= MOST_PAGES => {
                    self.pages_used.fetch_sub(1, Ordering::Relaxed);
                    return None;
                }
                None => {
                    let mut made = false;
                    let page = place.get_or_init(|| {
                        made = true;
                        Box::new(Page { disk, number, bits: [const { AtomicU64::new(0) }; WORDS] })
                    });
                    if !made {
                        // Somebody else took the place in this moment.
                        self.pages_used.fetch_sub(1, Ordering::Relaxed);
                    }
                    page
                }
            };
            if (page.disk, page.number) == (disk, number) {
                return Some(page);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::geometry::{ChunkSize, ImageLen};

    fn disk(chunks: u64) -> Geometry {
        Geometry::new(ImageLen::new(chunks * 4096).unwrap(), ChunkSize::MIN)
    }

    fn exactly(chunks: u64) -> ChunksRead {
        ChunksRead { chunks, exact: true }
    }

    #[test]
    fn a_chunk_counts_once_on_its_own_disk() {
        let reads = Reads::new([disk(1), disk(300_000), disk(0)].iter());
        for (place, chunk) in [(0, 0), (1, 0), (1, 0), (1, 63), (1, 64), (1, 32_768), (1, 299_999), (1, 63)] {
            reads.note(place, ChunkIndex(chunk));
        }
        assert_eq!([0, 1, 2].map(|place| reads.of(place)), [exactly(1), exactly(5), exactly(0)]);
    }

    #[test]
    fn threads_that_read_the_same_chunks_count_them_once() {
        let shapes = [disk(40 * CHUNKS_PER_PAGE), disk(3 * CHUNKS_PER_PAGE)];
        let reads = Reads::new(shapes.iter());
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let reads = &reads;
                scope.spawn(move || {
                    for at in 0..40 * 1024 {
                        reads.note(0, ChunkIndex((at * 32 + thread % 2) % (40 * CHUNKS_PER_PAGE)));
                        reads.note(1, ChunkIndex(at));
                    }
                });
            }
        });
        assert_eq!((reads.of(0), reads.of(1)), (exactly(2 * 40 * 1024), exactly(40 * 1024)));
        assert_eq!(reads.pages_used.load(Ordering::Relaxed), 42);
    }

    #[test]
    fn the_largest_disk_costs_no_more_than_its_bound_and_says_so_when_it_is_reached() {
        let whole = Geometry::new(ImageLen::MAX, ChunkSize::MIN);
        let reads = Reads::new([whole, whole].iter());
        for page in 0..MOST_PAGES as u64 {
            reads.note(0, ChunkIndex(page * 977 * CHUNKS_PER_PAGE));
        }
        assert_eq!(reads.of(0), exactly(MOST_PAGES as u64));
        reads.note(1, ChunkIndex(7));
        assert_eq!(reads.of(1), ChunksRead { chunks: 0, exact: false });
        reads.note(0, ChunkIndex(1));
        assert_eq!(reads.of(0), exactly(MOST_PAGES as u64 + 1), "a page that is there already");
        let used = reads.pages.iter().filter(|page| page.get().is_some()).count();
        assert_eq!(used, MOST_PAGES);
    }
}
