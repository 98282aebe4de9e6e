//! A disk as its VM has it: bytes that change, times that tell, and a tracker that counts.

use crate::chance::Chance;
use chunkfs::core::changes::ChangeSet;
use chunkfs::core::digest::is_zero;
use chunkfs::core::geometry::{ByteRange, ChunkSize, Geometry, ImageLen};
use chunkfs::index::Evidence;
use chunkfs::source::image::Identity;
use chunkfs::source::{Extent, ExtentKind, Source, SourceError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) const CHUNK: u64 = 4096;
pub(crate) const LEAF: u64 = 256 * CHUNK;
/// Disks are no longer than this.
const LONGEST: u64 = 4 * LEAF;

/// What was written since a point in time.
#[derive(Clone, Debug)]
struct Point {
    name: String,
    written: Vec<ByteRange>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub name: String,
    pub bytes: Vec<u8>,
    inode: u64,
    /// In steps of two seconds, as the coarsest file systems have it.
    modified: i64,
    points: Vec<Point>,
    points_made: u64,
}

pub(crate) fn geometry(bytes: &[u8]) -> Geometry {
    Geometry::new(ImageLen::new(bytes.len() as u64).unwrap(), ChunkSize::MIN)
}

impl Disk {
    pub(crate) fn new(name: &str, clock: i64, chance: &mut Chance) -> Disk {
        let mut disk = Disk {
            name: name.to_owned(),
            bytes: Vec::new(),
            inode: 1,
            modified: clock / 2 * 2,
            points: Vec::new(),
            points_made: 0,
        };
        disk.resize(clock, chance);
        (0..3).for_each(|_| disk.write(clock, chance));
        disk
    }

    /// `clock` is that of the file system, which does not go back.
    fn touched(&mut self, range: ByteRange, clock: i64) {
        self.modified = clock / 2 * 2;
        self.points.iter_mut().for_each(|point| point.written.push(range));
    }

    /// A range of the disk: mostly small, sometimes of leaves. `None`: the disk is empty.
    fn somewhere(&self, chance: &mut Chance) -> Option<ByteRange> {
        let len = self.bytes.len() as u64;
        if len == 0 {
            return None;
        }
        let start = chance.of(0..len);
        let longest = *chance.pick(&[1, 100, CHUNK, 5 * CHUNK, 40 * CHUNK, 2 * LEAF]);
        Some(ByteRange::new(start, (start + chance.of(1..longest + 1)).min(len)))
    }

    pub(crate) fn write(&mut self, clock: i64, chance: &mut Chance) {
        let Some(range) = self.somewhere(chance) else { return };
        // Few values, so that chunks often come back to what they once held.
        let value = chance.of(0..3) as u8;
        self.bytes[range.start as usize..range.end as usize].fill(value);
        self.touched(range, clock);
    }

    pub(crate) fn zero(&mut self, clock: i64, chance: &mut Chance) {
        let Some(range) = self.somewhere(chance) else { return };
        self.bytes[range.start as usize..range.end as usize].fill(0);
        self.touched(range, clock);
    }

    pub(crate) fn write_the_same(&mut self, clock: i64, chance: &mut Chance) {
        if let Some(range) = self.somewhere(chance) {
            self.touched(range, clock);
        }
    }

    pub(crate) fn resize(&mut self, clock: i64, chance: &mut Chance) {
        let edges = [0, 1, CHUNK, CHUNK - 1, 10 * CHUNK, LEAF, LEAF - 1, LEAF + 1, 2 * LEAF, 3 * LEAF];
        let near = self.bytes.len() as u64 + chance.of(0..3 * CHUNK);
        let new = match chance.of(0..5) {
            0 => *chance.pick(&edges),
            1 => chance.of(0..LONGEST),
            2 => near,
            3 => near.saturating_sub(3 * CHUNK),
            _ => chance.of(0..LONGEST) / CHUNK * CHUNK,
        };
        let old = self.bytes.len() as u64;
        self.bytes.resize(new.min(LONGEST) as usize, 0);
        let new = self.bytes.len() as u64;
        self.touched(ByteRange::new(old.min(new), old.max(new)), clock);
    }

    /// Another file with the same bytes in the place of this one.
    pub(crate) fn replace(&mut self, clock: i64) {
        self.inode += 1;
        self.modified = clock / 2 * 2;
    }

    /// What somebody who is about to mount can tell, truly, of the changes.
    pub(crate) fn evidence(&mut self, chance: &mut Chance) -> Evidence {
        let ns = i128::from(self.modified) * 1_000_000_000;
        let identity = Identity {
            device: 7,
            inode: self.inode,
            size: self.bytes.len() as u64,
            mtime_ns: ns,
            ctime_ns: ns,
        };
        match chance.of(0..8) {
            0 => Evidence::None { why: "chance".to_owned() },
            1..4 => Evidence::File(identity),
            4 => Evidence::Start { point: self.new_point(), why: "chance".to_owned() },
            _ => self.changes(chance),
        }
    }

    /// Counted from one of the points that there are: often the newest, sometimes one that nobody knows.
    fn changes(&mut self, chance: &mut Chance) -> Evidence {
        let since = match self.points.last() {
            Some(last) if !chance.one_in(6) => last.clone(),
            Some(_) => chance.pick(&self.points).clone(),
            None => return Evidence::Start { point: self.new_point(), why: "no point".to_owned() },
        };
        let mut written = since.written;
        if chance.one_in(3) {
            // Trackers count in large pieces.
            written.extend(self.somewhere(chance));
        }
        let mut changes = ChangeSet::default();
        written.iter().for_each(|range| changes.insert(&geometry(&self.bytes), *range));
        let since = if chance.one_in(12) { "nobody knows".to_owned() } else { since.name };
        Evidence::Changes { since, point: self.new_point(), changes }
    }

    fn new_point(&mut self) -> String {
        self.points_made += 1;
        let name = format!("point-{}", self.points_made);
        self.points.push(Point { name: name.clone(), written: Vec::new() });
        if self.points.len() > 4 {
            self.points.remove(0);
        }
        name
    }
}

/// What a view is made of: the bytes of one moment. Parts of it fail on demand.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub bytes: Arc<Vec<u8>>,
    pub bad: Vec<ByteRange>,
    pub gone: AtomicBool,
    /// Does it know its holes? It may not.
    pub knows_holes: bool,
    pub delay: std::time::Duration,
}

impl Source for Frozen {
    fn len(&self) -> ImageLen {
        ImageLen::new(self.bytes.len() as u64).unwrap()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        let end = offset + buffer.len() as u64;
        if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            let error = Arc::new(std::io::Error::other("bad sector"));
            let (what, length) = (self.describe(), buffer.len() as u64);
            return Err(SourceError::Read { what, offset, length, error });
        }
        buffer.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        self.check()
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        self.check()?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / CHUNK + 1) * CHUNK).min(range.end);
            // In a pattern that has nothing to do with chunks' content: some zeros are holes, some are not.
            let may_be_hole = self.knows_holes && !(at / CHUNK).is_multiple_of(5);
            let zero = may_be_hole && is_zero(&self.bytes[at as usize..end as usize]);
            let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
            let is_full = extents.len() == 3;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.range.end = end,
                // Only a first part, as sources may do.
                _ if is_full => break,
                _ => extents.push(Extent { range: ByteRange::new(at, end), kind }),
            }
            at = end;
        }
        Ok(extents)
    }

    fn check(&self) -> Result<(), SourceError> {
        match self.gone.load(Ordering::SeqCst) {
            true => Err(SourceError::Invalid { what: self.describe(), why: "it is gone".to_owned() }),
            false => Ok(()),
        }
    }

    fn describe(&self) -> String {
        "a frozen disk".to_owned()
    }
}
