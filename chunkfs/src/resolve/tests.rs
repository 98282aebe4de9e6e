//! What readers see while workers compare: races, order, and ends.

use super::{NotShown, Resolver, Retry, Tracked, check_sample};
use crate::core::changes::ChangeSet;
use crate::core::geometry::{ByteRange, ChunkIndex, ChunkSize, Geometry, ImageLen, LeafIndex};
use crate::core::layout::Tree;
use crate::core::stamp::Stamp;
use crate::index::{Access, DiskAtOpen, Evidence, Index, Tracking};
use crate::source::faulty::FaultySource;
use crate::source::memory::MemorySource;
use crate::source::{Extent, ExtentKind, Source, SourceError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const CHUNK: usize = 4096;
const LEAF: usize = 256 * CHUNK;
const SOON: Duration = Duration::from_secs(20);

/// An index in memory as far as there is such a thing, and generations of one disk.
struct Disks {
    _home: tempfile::TempDir,
    index: Arc<Index>,
    now: Stamp,
}

impl Disks {
    fn new() -> Disks {
        let fast = std::path::Path::new("/dev/shm");
        let place = if fast.is_dir() { fast.to_owned() } else { std::env::temp_dir() };
        let home = tempfile::Builder::new().prefix("chunkfs-test-").tempdir_in(place).unwrap();
        let index = Index::open(&home.path().join("index"), Access::Write { wait: Duration::ZERO }).unwrap();
        Disks { _home: home, index: Arc::new(index), now: Stamp(1_000_000) }
    }

    /// Begins a generation in which `source` is the disk.
    fn open(&mut self, source: Arc<dyn Source>, evidence: Evidence) -> Arc<Tracked> {
        self.now = self.now.plus(100);
        let geometry = Geometry::new(source.len(), ChunkSize::MIN);
        let disk = DiskAtOpen { name: "vda".to_owned(), geometry, evidence };
        let opened = self.index.open_generation(&[disk], self.now).unwrap();
        Arc::new(Tracked::new(Arc::clone(&self.index), source, &opened.disks[0], opened.stamp).unwrap())
    }

    fn resolve(&self, tracked: &Arc<Tracked>, threads: usize) -> Arc<Resolver> {
        Arc::new(Resolver::start(Arc::clone(&self.index), vec![Arc::clone(tracked)], threads).unwrap())
    }

    fn close(&mut self, resolver: &Resolver) {
        resolver.stop().unwrap();
        self.now = self.now.plus(10);
        let last = self.index.generations().unwrap().pop().unwrap();
        self.index.close_generation(last.number, self.now).unwrap();
    }
}

fn wait_until_done(resolver: &Resolver) {
    let deadline = Instant::now() + SOON;
    while !resolver.progress().done {
        assert!(Instant::now() < deadline, "the scan does not end: {:?}", resolver.progress());
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn none() -> Evidence {
    Evidence::None { why: "the test says so".to_owned() }
}

fn changes(geometry: &Geometry, since: u64, chunks: &[u64]) -> Evidence {
    let mut set = ChangeSet::default();
    for chunk in chunks {
        set.insert(geometry, geometry.range_of(ChunkIndex(*chunk)).unwrap());
    }
    Evidence::Changes { since: since.to_string(), point: (since + 1).to_string(), changes: set }
}

fn start() -> Evidence {
    Evidence::Start { point: "0".to_owned(), why: "the first".to_owned() }
}

#[test]
fn a_leaf_is_never_shown_with_old_stamps_while_its_new_ones_are_stored() {
    let mut disks = Disks::new();
    let mut bytes = vec![1u8; LEAF];
    let tracked = disks.open(Arc::new(MemorySource::new(bytes.clone())), start());
    let resolver = disks.resolve(&tracked, 1);
    wait_until_done(&resolver);
    disks.close(&resolver);
    for round in 0..400 {
        bytes[5 * CHUNK] = bytes[5 * CHUNK].wrapping_add(1);
        let source = Arc::new(MemorySource::new(bytes.clone()));
        let evidence = changes(&Geometry::new(source.len(), ChunkSize::MIN), round, &[5]);
        let tracked = disks.open(source, evidence);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let tracked = Arc::clone(&tracked);
                std::thread::spawn(move || {
                    let deadline = Instant::now() + SOON;
                    loop {
                        match tracked.leaf(LeafIndex(0)) {
                            Ok(view) => return view.record.chunk(5).stamp,
                            Err(NotShown::Pending(_)) => assert!(Instant::now() < deadline),
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                })
            })
            .collect();
        let resolver = disks.resolve(&tracked, 1);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), tracked.stamp, "round {round}");
        }
        disks.close(&resolver);
    }
}

/// Parks until the leaves are compared, and says by whom it was answered.
fn park(
    resolver: &Arc<Resolver>,
    tracked: &Arc<Tracked>,
    leaves: std::ops::Range<u64>,
    answered: impl FnOnce() + Send + 'static,
) {
    resolver.park(tracked.slot, leaves, Box::new(answered) as Retry);
}

#[test]
fn whoever_waits_for_one_leaf_is_answered_before_whoever_waits_for_all() {
    let mut disks = Disks::new();
    let bytes = vec![1u8; 40 * LEAF];
    let tracked = disks.open(Arc::new(MemorySource::new(bytes.clone())), none());
    let resolver = disks.resolve(&tracked, 2);
    wait_until_done(&resolver);
    disks.close(&resolver);

    let (source, faults) = FaultySource::new(MemorySource::new(bytes));
    faults.delay(Duration::from_millis(1));
    let tracked = disks.open(Arc::new(source), none());
    let resolver = disks.resolve(&tracked, 1);
    let (told, answers) = mpsc::channel();
    // Whoever waits for a directory asks again each time that it is woken, as a view does.
    fn ask_for_all(
        resolver: Arc<Resolver>,
        tracked: Arc<Tracked>,
        told: mpsc::Sender<&'static str>,
        asked: Arc<AtomicUsize>,
    ) {
        asked.fetch_add(1, Ordering::SeqCst);
        match tracked.newest(0..1 << 56, Tree::Chunks) {
            Ok(_) => told.send("all").unwrap(),
            Err(NotShown::Pending(leaves)) => {
                let (again, disk) = (Arc::clone(&resolver), Arc::clone(&tracked));
                resolver.park(tracked.slot, leaves, Box::new(move || ask_for_all(again, disk, told, asked)));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let asked = Arc::new(AtomicUsize::new(0));
    ask_for_all(Arc::clone(&resolver), Arc::clone(&tracked), told.clone(), Arc::clone(&asked));
    park(&resolver, &tracked, 39..40, move || told.send("one").unwrap());
    assert_eq!(answers.recv_timeout(SOON), Ok("one"));
    assert!(tracked.pending_leaves() > 20, "the leaf did not come first: {} left", tracked.pending_leaves());
    faults.delay(Duration::ZERO);
    assert_eq!(answers.recv_timeout(SOON), Ok("all"));
    // Asking costs as much as there are leaves, so it must not be done for each of them.
    assert!(asked.load(Ordering::SeqCst) < 5, "asked {} times", asked.load(Ordering::SeqCst));
    disks.close(&resolver);
}

#[test]
fn a_source_that_panics_is_an_error_and_nobody_waits_for_ever() {
    let mut disks = Disks::new();
    let tracked = disks.open(Arc::new(MemorySource::new(vec![1u8; LEAF])), none());
    let resolver = disks.resolve(&tracked, 1);
    wait_until_done(&resolver);
    disks.close(&resolver);
    let (source, faults) = FaultySource::new(MemorySource::new(vec![2u8; LEAF]));
    faults.panic_on_read();
    let tracked = disks.open(Arc::new(source), none());
    let resolver = disks.resolve(&tracked, 1);
    let (told, answers) = mpsc::channel();
    park(&resolver, &tracked, 0..1, move || told.send(()).unwrap());
    assert_eq!(answers.recv_timeout(SOON), Ok(()));
    assert!(matches!(tracked.leaf(LeafIndex(0)), Err(NotShown::Source(_))));
    disks.close(&resolver);
}

#[test]
fn whoever_is_parked_when_the_resolver_stops_is_dropped_and_not_kept() {
    let mut disks = Disks::new();
    let (source, faults) = FaultySource::new(MemorySource::new(vec![1u8; 3 * LEAF]));
    faults.delay(Duration::from_millis(1));
    let tracked = disks.open(Arc::new(source), none());
    let resolver = disks.resolve(&tracked, 1);
    let kept = Arc::new(());
    let held = Arc::clone(&kept);
    // What is parked holds the resolver, as a view does: dropping it must not need the queue's lock.
    let view = Arc::clone(&resolver);
    park(&resolver, &tracked, 2..3, move || drop((held, view)));
    disks.close(&resolver);
    assert_eq!(Arc::strong_count(&kept), 1);
    let held = Arc::clone(&kept);
    park(&resolver, &tracked, 2..3, move || panic!("{held:?} was answered after the end"));
    assert_eq!(Arc::strong_count(&kept), 1);
}

/// Nothing but a hole.
struct Hole(ImageLen);

impl Source for Hole {
    fn len(&self) -> ImageLen {
        self.0
    }

    fn read_at(&self, _offset: u64, _buffer: &mut [u8]) -> Result<(), SourceError> {
        panic!("a hole is not read")
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        Ok(vec![Extent { range, kind: ExtentKind::Zero }])
    }

    fn describe(&self) -> String {
        "a hole".to_owned()
    }
}

#[test]
fn an_empty_disk_of_8_eib_is_compared_at_once() {
    let mut disks = Disks::new();
    let (finished, ends) = mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..3 {
            let tracked = disks.open(Arc::new(Hole(ImageLen::MAX)), none());
            let resolver = disks.resolve(&tracked, 2);
            wait_until_done(&resolver);
            assert_eq!(resolver.progress().bytes_read, 0);
            disks.close(&resolver);
        }
        finished.send(()).unwrap();
    });
    assert_eq!(ends.recv_timeout(SOON), Ok(()));
}

#[test]
fn compared_leaves_with_candidates_of_before_leave_none_behind() {
    let mut disks = Disks::new();
    let hole = || Arc::new(Hole(ImageLen::new(10 * LEAF as u64).unwrap()));
    let tracked = disks.open(hole(), start());
    let resolver = disks.resolve(&tracked, 1);
    wait_until_done(&resolver);
    disks.close(&resolver);
    // The candidates are stored, and never compared; then everything has to be.
    disks.open(hole(), changes(&tracked.geometry, 0, &[3, 700, 2000]));
    let tracked = disks.open(hole(), none());
    let resolver = disks.resolve(&tracked, 1);
    wait_until_done(&resolver);
    disks.close(&resolver);
    assert_eq!(disks.index.check().unwrap().disks[0].pending, 0);
}

/// On a disk that is not larger than the sample a tracker is caught for certain; on a larger one by chance:
/// 16 chunks of 64, of which half have changed, miss them all once in 65,536 times.
#[test]
fn a_tracker_that_calls_changed_chunks_clean_is_caught_and_not_believed_again() {
    for (chunks, changed) in [(1, 1), (16, 1), (64, 32)] {
        let mut disks = Disks::new();
        let tracked = disks.open(Arc::new(MemorySource::new(vec![1u8; chunks * CHUNK])), start());
        let resolver = disks.resolve(&tracked, 1);
        wait_until_done(&resolver);
        disks.close(&resolver);
        let mut bytes = vec![1u8; chunks * CHUNK];
        bytes[(chunks - changed) * CHUNK..].fill(2);
        for (since, believed) in [(0, false), (1, false), (2, true)] {
            disks.now = disks.now.plus(100);
            let source: Arc<dyn Source> = Arc::new(MemorySource::new(bytes.clone()));
            let geometry = Geometry::new(source.len(), ChunkSize::MIN);
            let evidence = changes(&geometry, since, &[]);
            let disk = DiskAtOpen { name: "vda".to_owned(), geometry, evidence };
            let mut opened = disks.index.open_generation(&[disk], disks.now).unwrap();
            let state = &mut opened.disks[0];
            check_sample(&disks.index, &*source, state).unwrap();
            assert_eq!(state.tracking == Tracking::Changes { chunks: 0 }, believed, "{chunks} {since}");
            let tracked = Tracked::new(Arc::clone(&disks.index), source, state, opened.stamp).unwrap();
            let tracked = Arc::new(tracked);
            let resolver = disks.resolve(&tracked, 1);
            wait_until_done(&resolver);
            let view = tracked.leaf(LeafIndex(0)).unwrap();
            let new = (0..chunks).filter(|slot| view.record.chunk(*slot).stamp == tracked.stamp).count();
            assert_eq!(new, if since == 0 { changed } else { 0 });
            disks.close(&resolver);
        }
    }
}
