//! The world: a VM that writes to its disks, and an administrator who mounts, unmounts, and pulls the plug.

use crate::chance::Chance;
use crate::disk::{Disk, Frozen, geometry};
use crate::generation::Generation;
use crate::witness::{Shown, Witness};
use chunkfs::core::geometry::{ByteRange, ChunkIndex};
use chunkfs::core::stamp::Stamp;
use chunkfs::index::{Access, DiskAtOpen, Index};
use chunkfs::resolve::{Resolver, Tracked, check_sample};
use chunkfs::source::Source;
use chunkfs::source::memory::MemorySource;
use chunkfs::view::{self, Layout, Owner, PlainFile, Stamps, WholeView};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub steps: u64,
    pub generations: u64,
    pub closed: u64,
    pub killed: u64,
    /// Generations of which everything was compared and looked at.
    pub complete: u64,
    pub faults: u64,
    /// Attributes that the witness was shown.
    pub shown: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, more: Totals) {
        self.steps += more.steps;
        self.generations += more.generations;
        self.closed += more.closed;
        self.killed += more.killed;
        self.complete += more.complete;
        self.faults += more.faults;
        self.shown += more.shown;
    }
}

pub(crate) struct World {
    chance: Chance,
    home: tempfile::TempDir,
    /// Each kill leaves the index as it was on disk at that moment: a new one.
    index: PathBuf,
    /// Seconds. That of file systems does not go back.
    clock: i64,
    file_clock: i64,
    may_set_back: bool,
    disks: Vec<Disk>,
    xml: String,
    mounted: Option<Generation>,
    witness: Mutex<Witness>,
    totals: Totals,
}

/// Keeps the index from storing leaves: as a full disk would, and at once.
const BREAK: &str = "CREATE TRIGGER broken BEFORE INSERT ON run BEGIN SELECT RAISE(ABORT, 'no room'); END";
const HEAL: &str = "DROP TRIGGER IF EXISTS broken";

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let fast = Path::new("/dev/shm");
        let place = if fast.is_dir() { fast.to_owned() } else { std::env::temp_dir() };
        let home = tempfile::Builder::new().prefix("chunkfs-model-").tempdir_in(place).unwrap();
        let mut chance = Chance::new(seed);
        let clock = 1_700_000_000;
        let names = ["mail01_vda", "mail01_vdb"];
        let count = chance.of(1..3) as usize;
        World {
            index: home.path().join("index-0"),
            home,
            clock,
            file_clock: clock,
            may_set_back: true,
            disks: names[..count].iter().map(|name| Disk::new(name, clock, &mut chance)).collect(),
            chance,
            xml: "<domain/>".to_owned(),
            mounted: None,
            witness: Mutex::default(),
            totals: Totals::default(),
        }
    }

    pub(crate) fn live(mut self, steps: u64) -> Totals {
        while self.totals.steps < steps {
            self.totals.steps += 1;
            match self.mounted.take() {
                None => self.step_unmounted(),
                Some(generation) => self.mounted = self.step_mounted(generation),
            }
        }
        if let Some(generation) = self.mounted.take() {
            self.close(generation);
        }
        self.totals.shown = self.witness.lock().unwrap().shown;
        self.totals
    }

    fn pass_time(&mut self, secs: u64) {
        self.clock += self.chance.of(0..secs + 1) as i64;
        self.file_clock = self.file_clock.max(self.clock);
    }

    fn step_unmounted(&mut self) {
        match self.chance.of(0..10) {
            0..5 => self.guest_writes(),
            5 => self.pass_time(100),
            6 if self.may_set_back => self.clock -= self.chance.of(0..20) as i64,
            7 => self.xml.push(' '),
            _ => self.mount(),
        }
    }

    fn step_mounted(&mut self, generation: Generation) -> Option<Generation> {
        match self.chance.of(0..20) {
            0..10 => self.look(&generation),
            10..13 => self.guest_writes(),
            13 => self.pass_time(10),
            14..16 => self.complete(&generation),
            16 => self.fail(&generation),
            17 => {
                self.kill(generation);
                return None;
            }
            _ => {
                self.close(generation);
                return None;
            }
        }
        Some(generation)
    }

    fn guest_writes(&mut self) {
        self.pass_time(3);
        let (clock, chance) = (self.file_clock, &mut self.chance);
        let number = chance.of(0..self.disks.len() as u64) as usize;
        let disk = &mut self.disks[number];
        match chance.of(0..12) {
            0..6 => disk.write(clock, chance),
            6..8 => disk.zero(clock, chance),
            8..10 => disk.write_the_same(clock, chance),
            10 => disk.resize(clock, chance),
            _ => disk.replace(clock),
        }
    }

    fn mount(&mut self) {
        self.totals.generations += 1;
        let chance = &mut self.chance;
        heal(&self.index);
        // Now and then a disk is left out.
        let all = self.disks.len();
        let only = chance.one_in(5).then(|| chance.of(0..all as u64) as usize);
        let (mut at_open, mut shown, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for disk in self
            .disks
            .iter_mut()
            .enumerate()
            .filter(|(n, _)| only.is_none_or(|only| *n == only))
            .map(|(_, d)| d)
        {
            let geometry = geometry(&disk.bytes);
            let evidence = disk.evidence(chance);
            let bytes = Arc::new(disk.bytes.clone());
            let bad: Vec<ByteRange> = match disk.bytes.len() as u64 {
                len if len > 0 && chance.one_in(8) => {
                    let start = chance.of(0..len);
                    vec![ByteRange::new(start, start + 1)]
                }
                _ => Vec::new(),
            };
            let chunks: Vec<ChunkIndex> =
                bad.iter().map(|range| geometry.chunk_at(range.start).unwrap()).collect();
            let delay = Duration::from_micros(*chance.pick(&[0, 0, 0, 20, 100]));
            let knows_holes = !chance.one_in(4);
            let source =
                Frozen { bytes: Arc::clone(&bytes), bad, gone: AtomicBool::new(false), knows_holes, delay };
            sources.push(Arc::new(source));
            shown.push(Shown::new(&disk.name, bytes, chunks));
            at_open.push(DiskAtOpen { name: disk.name.clone(), geometry, evidence });
        }
        let threads = chance.of(1..4) as usize;
        self.mounted = self.show(&at_open, shown, sources, threads);
    }

    /// As `serve` does it, with our clock.
    fn show(
        &mut self,
        at_open: &[DiskAtOpen],
        shown: Vec<Shown>,
        sources: Vec<Arc<Frozen>>,
        threads: usize,
    ) -> Option<Generation> {
        let index = Index::open(&self.index, Access::Write { wait: Duration::ZERO }).unwrap();
        let index = Arc::new(index);
        let opened = index.open_generation(at_open, Stamp(self.clock)).unwrap();
        let (mut disks, mut all_tracked) = (Vec::new(), Vec::new());
        for (source, mut state) in sources.iter().zip(opened.disks) {
            let source: Arc<dyn Source> = Arc::clone(source) as Arc<dyn Source>;
            let tracking = state.tracking.clone();
            check_sample(&index, &*source, &mut state).unwrap();
            assert_eq!(state.tracking, tracking, "a tracker that told the truth was not believed");
            let tracked =
                Tracked::new(Arc::clone(&index), Arc::clone(&source), &state, opened.stamp).unwrap();
            let tracked = Arc::new(tracked);
            all_tracked.push(Arc::clone(&tracked));
            disks.push(view::Disk::new(
                state.name,
                state.slot,
                state.geometry,
                source,
                Stamps::Tracked(tracked),
            ));
        }
        if self.chance.one_in(20) {
            // The mount fails: nobody ever sees this generation.
            self.witness.lock().unwrap().unseen(&shown);
            return None;
        }
        let files = vec![("mail01.xml".to_owned(), self.xml.clone().into_bytes())];
        let newest = PlainFile {
            name: "mail01.json".to_owned(),
            source: Arc::new(MemorySource::new(opened.generation.to_string().into_bytes())),
            stamp: opened.stamp.plus(1),
        };
        let has_newest = self.chance.one_in(2);
        let mut plain: Vec<PlainFile> = files
            .iter()
            .map(|(name, content)| PlainFile {
                name: name.clone(),
                source: Arc::new(MemorySource::new(content.clone())),
                stamp: index.stamp_of_file(name, content, opened.stamp).unwrap(),
            })
            .collect();
        plain.extend(has_newest.then_some(newest));
        let resolver = Arc::new(Resolver::start(Arc::clone(&index), all_tracked, threads).unwrap());
        let owner = Owner { uid: 0, gid: 0, mode: 0o400 };
        let view = WholeView::new(disks, plain, Layout::Named, owner, Some(Arc::clone(&resolver))).unwrap();
        // Not ready before the clock has reached the stamp.
        self.clock = self.clock.max(opened.stamp.0);
        self.file_clock = self.file_clock.max(self.clock);
        self.witness.lock().unwrap().begin(opened.stamp.0, self.clock, &shown);
        let (number, broken) = (opened.generation, AtomicBool::new(false));
        Some(Generation {
            number,
            has_newest,
            index,
            view: Arc::new(view),
            resolver,
            shown,
            sources,
            files,
            broken,
        })
    }

    /// Consumers look around, each on his own.
    fn look(&mut self, generation: &Generation) {
        let looks = self.chance.of(1..12);
        self.totals.steps += looks;
        let others: Vec<Chance> =
            (0..self.chance.of(0..3)).map(|_| Chance::new(self.chance.next())).collect();
        let witness = &self.witness;
        std::thread::scope(|scope| {
            for mut chance in others {
                scope.spawn(move || (0..looks).for_each(|_| generation.look(witness, &mut chance)));
            }
            (0..looks).for_each(|_| generation.look(witness, &mut self.chance));
        });
        self.pass_time(2);
    }

    fn complete(&mut self, generation: &Generation) {
        let is_gone = generation.sources.iter().any(|source| source.gone.load(Ordering::SeqCst));
        if is_gone || generation.broken.load(Ordering::SeqCst) {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while !generation.resolver.progress().done {
            assert!(Instant::now() < deadline, "the scan does not end: {:?}", generation.resolver);
            std::thread::sleep(Duration::from_micros(300));
        }
        self.totals.complete += 1;
        generation.look_at_all(&self.witness);
    }

    fn fail(&mut self, generation: &Generation) {
        self.totals.faults += 1;
        match self.chance.of(0..2) {
            0 => self.chance.pick(&generation.sources).gone.store(true, Ordering::SeqCst),
            _ => {
                generation.broken.store(true, Ordering::SeqCst);
                let connection = rusqlite::Connection::open(&self.index).unwrap();
                connection.busy_timeout(Duration::from_secs(5)).unwrap();
                connection.execute_batch(&format!("{HEAL};{BREAK}")).unwrap();
            }
        }
    }

    fn close(&mut self, generation: Generation) {
        self.totals.closed += 1;
        generation.resolver.stop().unwrap();
        generation.index.close_generation(generation.number, Stamp(self.clock)).unwrap();
        self.witness.lock().unwrap().end(self.clock);
        self.may_set_back = true;
    }

    /// Nothing is closed. What the next one finds is what was on disk when nobody could look any more, with the
    /// workers in the middle of their work.
    fn kill(&mut self, generation: Generation) {
        self.totals.killed += 1;
        self.witness.lock().unwrap().end(self.clock);
        // When it was killed is written nowhere.
        self.may_set_back = false;
        let copy = self.home.path().join(format!("index-{}", self.totals.killed));
        copy_index(&self.index, &copy);
        generation.resolver.stop().unwrap();
        drop(generation);
        std::fs::remove_file(&self.index).unwrap();
        self.index = copy;
    }
}

fn heal(index: &Path) {
    if index.exists() {
        rusqlite::Connection::open(index).unwrap().execute_batch(HEAL).unwrap();
    }
}

/// The database and its log as they are at one moment: when the log is the same before and after.
fn copy_index(from: &Path, to: &Path) {
    let log = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    loop {
        let before = std::fs::read(log(from)).unwrap();
        let database = std::fs::read(from).unwrap();
        if std::fs::read(log(from)).unwrap() == before {
            std::fs::write(to, database).unwrap();
            return std::fs::write(log(to), before).unwrap();
        }
    }
}
