//! What is carried is what was there, whatever the way, and nothing half-done keeps a name.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use chunkfs::core::geometry::{ByteRange, ImageLen};
use chunkfs::source::faulty::FaultySource;
use chunkfs::source::memory::MemorySource;
use chunkfs::source::{Extent, ExtentKind, SourceError};
use chunkfs::watch::Unwatched;
use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

/// Half of it holes, neither aligned to blocks nor to pages, and something at the very end.
fn image(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; len];
    for (number, part) in bytes.chunks_mut(700_001).enumerate() {
        if number % 2 == 0 {
            for byte in part {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Compressible, but not at once.
                *byte = (state & 0x3f) as u8;
            }
        }
    }
    if let Some(last) = bytes.last_mut() {
        *last = 7;
    }
    bytes
}

fn options(compression: Compression) -> Options<'static> {
    Options { disk: "vda", compression, bytes_per_sec: None, existing: Existing::Refuse }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a program makes of a file.
fn output(program: &str, arguments: &[&str], input: &Path) -> Vec<u8> {
    let output = Command::new(program).args(arguments).stdin(fs::File::open(input).unwrap()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: see scripts/setup"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn every_compressor_gives_what_its_program_expands_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    for len in [0, 1, MIB, 9 * MIB + 12_345] {
        let image = image(len);
        let source = MemorySource::new(image.clone());
        for compression in Compression::ALL {
            let name = format!("{len}-{compression}{}", compression.extension());
            let carried = to_file(&source, &directory, &name, &options(compression), &Unwatched)
                .unwrap_or_else(|error| panic!("{name}: {error}: see scripts/setup"));
            assert_eq!((carried.bytes.0, carried.digest), (len as u64, blake3::hash(&image)), "{name}");
            let path = dir.path().join(&name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
            let program = match compression {
                Compression::None => "cat",
                named => named.name(),
            };
            let arguments: &[&str] = if compression == Compression::None { &[] } else { &["-dc"] };
            assert!(output(program, arguments, &path) == image, "{name}");
        }
    }
    let zcat = output("zcat", &[], &dir.path().join(format!("{}-gzip.gz", 9 * MIB + 12_345)));
    assert_eq!(zcat.len(), 9 * MIB + 12_345);
    assert!(names(dir.path()).iter().all(|name| !name.ends_with(".partial")));
}

/// Counts what is read, and says where the holes are.
struct Counted {
    bytes: Vec<u8>,
    hole: ByteRange,
    read: AtomicU64,
}

impl Source for Counted {
    fn len(&self) -> ImageLen {
        ImageLen::new(self.bytes.len() as u64).unwrap()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.hole.start || offset >= self.hole.end, "a hole was read: {offset} to {end}");
        self.read.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        buffer.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        let parts = [
            (0, self.hole.start, ExtentKind::Data),
            (self.hole.start, self.hole.end, ExtentKind::Zero),
            (self.hole.end, u64::MAX, ExtentKind::Data),
        ];
        let clipped = parts.map(|(start, end, kind)| (start.max(range.start), end.min(range.end), kind));
        let parts = clipped.into_iter().filter(|(start, end, _)| start < end);
        Ok(parts.map(|(start, end, kind)| Extent { range: ByteRange::new(start, end), kind }).collect())
    }

    fn describe(&self) -> String {
        "counted".to_owned()
    }
}

#[test]
fn holes_are_not_read_and_zeros_are_not_stored() {
    let hole = ByteRange::new(1_500_000, 7_000_001);
    let mut bytes = vec![1; 10 * MIB];
    bytes[hole.start as usize..hole.end as usize].fill(0);
    // Zeros that the source does not know of.
    bytes[8 * MIB..9 * MIB].fill(0);
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Bzip2] {
        let source = Counted { bytes: bytes.clone(), hole, read: AtomicU64::new(0) };
        let carried =
            to_file(&source, &directory, compression.name(), &options(compression), &Unwatched).unwrap();
        assert_eq!(carried.digest, blake3::hash(&bytes), "{compression}");
        assert_eq!(source.read.load(Ordering::SeqCst), bytes.len() as u64 - hole.len(), "{compression}");
    }
    let raw = dir.path().join("none");
    assert!(fs::read(&raw).unwrap() == bytes);
    let stored = fs::metadata(&raw).unwrap().blocks() * 512;
    assert!(stored <= bytes.len() as u64 - hole.len() - MIB as u64 + 2 * 4096, "{stored} bytes are stored");
}

/// Holes of any length at any place, some in the middle of a block.
struct Holes(Vec<u8>, Vec<ByteRange>);

impl Source for Holes {
    fn len(&self) -> ImageLen {
        ImageLen::new(self.0.len() as u64).unwrap()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let end = offset + buffer.len() as u64;
        assert!(self.1.iter().all(|hole| end <= hole.start || offset >= hole.end), "a hole was read");
        buffer.copy_from_slice(&self.0[offset as usize..end as usize]);
        Ok(())
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        let hole = self.1.iter().find(|hole| hole.end > range.start);
        let (end, kind) = match hole {
            Some(hole) if hole.start <= range.start => (hole.end.min(range.end), ExtentKind::Zero),
            Some(hole) => (hole.start.min(range.end), ExtentKind::Data),
            None => (range.end, ExtentKind::Data),
        };
        Ok(vec![Extent { range: ByteRange::new(range.start, end), kind }])
    }

    fn describe(&self) -> String {
        "with holes".to_owned()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn holes_anywhere_are_zeros_whatever_was_in_a_buffer_before(
        gaps in prop::collection::vec((1u64..6_000_000, 1u64..6_000_000), 0..8), tail in 0u64..3_000_000,
    ) {
        let mut holes = Vec::new();
        let mut len = 0;
        for (data, hole) in gaps {
            holes.push(ByteRange::new(len + data, len + data + hole));
            len += data + hole;
        }
        let mut bytes = image((len + tail) as usize);
        bytes.iter_mut().for_each(|byte| *byte |= 1);
        holes.iter().for_each(|hole| bytes[hole.start as usize..hole.end as usize].fill(0));
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let source = Holes(bytes, holes);
        for compression in [Compression::None, Compression::Gzip] {
            let carried =
                to_file(&source, &directory, compression.name(), &options(compression), &Unwatched).unwrap();
            prop_assert_eq!(carried.digest, blake3::hash(&source.0));
        }
        prop_assert!(fs::read(dir.path().join("none")).unwrap() == source.0);
        prop_assert!(output("gzip", &["-dc"], &dir.path().join("gzip")) == source.0);
        prop_assert_eq!(digest(&source, &options(Compression::None), &Unwatched).unwrap().digest, blake3::hash(&source.0));
    }
}

#[test]
fn an_error_names_the_disk_and_the_place_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Xz] {
        let (source, faults) = FaultySource::new(MemorySource::new(vec![1; 9 * MIB]));
        faults.fail_in(ByteRange::new(5 * MIB as u64 + 5, 5 * MIB as u64 + 6));
        let error = to_file(&source, &directory, "x", &options(compression), &Unwatched).unwrap_err();
        let words = error.to_string();
        let place = match compression {
            Compression::None | Compression::Zstd => 4 * MIB,
            _ => 5 * MIB,
        };
        assert!(words.starts_with(&format!("disk vda: reading at byte {place}: ")), "{words}");
        assert_eq!(names(dir.path()), [""; 0], "{compression}");
    }
    let words = ["sh", "-c", "head -c 100 >/dev/null; echo 'no room for it' >&2; exit 3"].map(str::to_owned);
    let source = MemorySource::new(vec![1; 9 * MIB]);
    let error = to_command(&source, &words, &[], &options(Compression::None), &Unwatched).unwrap_err();
    assert_eq!(error.to_string(), "disk vda: sh: no room for it");
}

#[test]
fn a_command_gets_every_byte_and_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(3 * MIB + 1);
    let out = dir.path().join("out").display().to_string();
    let words = ["sh", "-c", "cat > \"$1.$VIRT_BACKUP_DISK\"", "sh", &out].map(str::to_owned);
    let source = MemorySource::new(image.clone());
    let environment = [("VIRT_BACKUP_DISK", "vda")];
    let carried = to_command(&source, &words, &environment, &options(Compression::None), &Unwatched).unwrap();
    assert_eq!(carried.digest, blake3::hash(&image));
    assert!(fs::read(format!("{out}.vda")).unwrap() == image);
    // One that takes only a part, and is content, has not got the disk.
    let head = ["head", "-c", "10"].map(str::to_owned);
    let error = to_command(&source, &head, &[], &options(Compression::None), &Unwatched).unwrap_err();
    assert!(error.to_string().contains("before it had taken everything"), "{error}");
    let missing = ["/nonexistent/tool"].map(str::to_owned);
    let error = to_command(&source, &missing, &[], &options(Compression::None), &Unwatched).unwrap_err();
    assert_eq!(error.to_string(), "disk vda: /nonexistent/tool: /nonexistent/tool is not installed");
    assert!(check_command(&DumpCommand::parse("/nonexistent/tool").unwrap()).is_err());
    assert!(check_command(&DumpCommand::parse("sh -c x").unwrap()).is_ok());
}

/// Stops after so many bytes.
struct StopsAfter(u64, AtomicU64);

impl Watch for StopsAfter {
    fn advance(&self, bytes: u64) {
        self.1.fetch_add(bytes, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.1.load(Ordering::SeqCst) >= self.0
    }
}

#[test]
fn it_stops_when_it_is_told_also_while_a_program_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let source = MemorySource::new(vec![1; 9 * MIB]);
    for compression in [Compression::None, Compression::Gzip, Compression::Bzip2] {
        let watch = StopsAfter(3 * MIB as u64, AtomicU64::new(0));
        let error = to_file(&source, &directory, "x", &options(compression), &watch).unwrap_err();
        assert_eq!(error.to_string(), "disk vda: stopped", "{compression}");
        assert_eq!(names(dir.path()), [""; 0]);
    }
    struct StopsSoon(Instant);
    impl Watch for StopsSoon {
        fn is_stopped(&self) -> bool {
            self.0.elapsed().as_millis() > 300
        }
    }
    let words = ["sleep", "600"].map(str::to_owned);
    let begun = Instant::now();
    let error = to_command(&source, &words, &[], &options(Compression::None), &StopsSoon(begun)).unwrap_err();
    assert_eq!(error.to_string(), "disk vda: stopped");
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn a_limit_holds_for_what_is_read_and_not_for_holes() {
    let mut bytes = vec![0; 64 * MIB];
    bytes[..16 * MIB].fill(1);
    let hole = ByteRange::new(16 * MIB as u64, 64 * MIB as u64);
    let source = Counted { bytes, hole, read: AtomicU64::new(0) };
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let limited = Options { bytes_per_sec: NonZeroU64::new(16 * MIB as u64), ..options(Compression::None) };
    let begun = Instant::now();
    to_file(&source, &directory, "x", &limited, &Unwatched).unwrap();
    // The first block does not wait. Nothing but the limit would take so long, and the holes would take 3 s more.
    let took = begun.elapsed().as_secs_f64();
    assert!((0.74..3.6).contains(&took), "{took} s");
}

#[test]
fn what_is_there_stays_unless_it_may_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let source = MemorySource::new(vec![1; 10]);
    fs::write(dir.path().join("x"), "old").unwrap();
    fs::write(dir.path().join("x.partial"), "of a run that was cut off").unwrap();
    let error = to_file(&source, &directory, "x", &options(Compression::None), &Unwatched).unwrap_err();
    assert_eq!(error.to_string(), format!("{} exists already", dir.path().join("x").display()));
    assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"old");
    let replacing = Options { existing: Existing::Replace, ..options(Compression::None) };
    to_file(&source, &directory, "x", &replacing, &Unwatched).unwrap();
    assert_eq!(fs::read(dir.path().join("x")).unwrap(), [1; 10]);
    assert_eq!(names(dir.path()), ["x"]);
    for name in ["", ".", "..", "a/b", "/x", "a\0"] {
        let error = to_file(&source, &directory, name, &options(Compression::None), &Unwatched).unwrap_err();
        assert!(matches!(error, CarryError::Name { .. }), "{name:?}");
    }
    // A link in the place of the partial file is replaced, never followed.
    std::os::unix::fs::symlink(dir.path().join("x"), dir.path().join("y.partial")).unwrap();
    to_file(&source, &directory, "y", &options(Compression::None), &Unwatched).unwrap();
    assert_eq!(names(dir.path()), ["x", "y"]);
    assert!(fs::symlink_metadata(dir.path().join("y")).unwrap().is_file());
}

#[test]
fn root_a_full_file_system_leaves_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(dir.path()).status();
    assert!(mounted.unwrap().success(), "needs root: a file system of its own that can be full");
    let directory = Directory::open(dir.path()).unwrap();
    let image: Vec<u8> = image(40 * MIB);
    let source = MemorySource::new(image);
    let mut failures = Vec::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Xz] {
        let error = to_file(&source, &directory, "x", &options(compression), &Unwatched).unwrap_err();
        failures.push((error.to_string(), names(dir.path())));
    }
    drop(directory);
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    for (words, left) in failures {
        assert!(words.contains("No space left on device"), "{words}");
        assert_eq!(left, [""; 0], "{words}");
    }
}

#[test]
#[should_panic(expected = "a thread that reads has panicked")]
fn a_panic_of_a_reader_is_never_taken_for_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let (source, faults) = FaultySource::new(MemorySource::new(vec![1; 9 * MIB]));
    faults.panic_on_read();
    _ = to_file(&source, &directory, "x", &options(Compression::None), &Unwatched);
}
