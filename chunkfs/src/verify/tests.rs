//! Every kind of damage is named, exactly, and nothing else is.

use super::*;
use crate::core::geometry::ByteRange;
use crate::source::faulty::FaultySource;
use crate::source::memory::MemorySource;
use crate::split::{SplitTree, pattern, split};
use crate::watch::Unwatched;
use rustix::fs::{CWD, FileType, Mode};
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

const CHUNK: u64 = 8192;
const NOTHING: Options<'_> = Options { known: Known::NOTHING, image: None };

/// The report, and the problems in the order of their paths, with the home directory cut off.
fn verified(tree: &SplitTree, options: &Options<'_>) -> (Report, Vec<String>) {
    let problems = Mutex::new(Vec::new());
    let report = verify(&tree.chunks(), options, &Unwatched, &|problem| {
        problems.lock().unwrap().push(problem.clone());
    });
    let home = format!("{}/", tree.home().canonicalize().unwrap().display());
    let mut problems: Vec<_> =
        problems.into_inner().unwrap().iter().map(|p| p.to_string().replace(&home, "")).collect();
    problems.sort();
    let report = report.unwrap();
    assert_eq!(report.problems, problems.len() as u64);
    (report, problems)
}

#[test]
fn a_good_tree_is_read_whole_and_has_no_problems() {
    for len in [0, 1, 8191, 8192, 8193, 257 * 8192 + 100] {
        let image = pattern(len);
        let tree = split(&image, CHUNK);
        let source = MemorySource::new(image);
        let known = Known { chunk_size: ChunkSize::new(CHUNK), len: None };
        let (report, problems) = verified(&tree, &Options { known, image: Some(&source) });
        assert_eq!(problems, [""; 0], "{len}");
        let expected = Report {
            chunks: tree.geometry.chunk_count(),
            bytes: len as u64,
            problems: 0,
            has_digests: true,
            compared_with_image: true,
            complete: true,
        };
        assert_eq!(report, expected);
        let (report, problems) = verified(&tree, &NOTHING);
        assert_eq!((report.bytes, problems.len()), (len as u64, 0), "{len}");
    }
}

#[test]
fn each_damage_is_named_and_nothing_else() {
    type Damage = fn(&SplitTree);
    let table: &[(&str, Damage, &[&str])] = &[
        ("missing", |t| fs::remove_file(t.chunk(1)).unwrap(), &["vda/00/00/00/00/00/00/00/01: missing"]),
        (
            "a leaf missing",
            |t| fs::remove_dir_all(t.chunk(256).parent().unwrap()).unwrap(),
            &[
                "vda/00/00/00/00/00/00/01/00: missing, as are all up to vda/00/00/00/00/00/00/01/ff: 256 chunks",
            ],
        ),
        (
            "last missing",
            |t| fs::remove_file(t.chunk(515)).unwrap(),
            &["vda/00/00/00/00/00/00/02/03: missing"],
        ),
        (
            "all missing",
            |t| fs::remove_dir_all(t.chunks().join("00")).unwrap(),
            &[
                "vda/00/00/00/00/00/00/00/00: missing, as are all up to vda/00/00/00/00/00/00/02/03: 516 chunks",
            ],
        ),
        (
            "short and long",
            |t| {
                fs::write(t.chunk(0), "abc").unwrap();
                fs::write(t.chunk(5), [0; 8193]).unwrap();
            },
            &[
                "vda/00/00/00/00/00/00/00/00: short: it has 3 of 8192 bytes",
                "vda/00/00/00/00/00/00/00/05: too long: it has 8193 bytes instead of 8192",
            ],
        ),
        (
            "stale",
            |t| fs::write(t.chunk(7), [0; 8192]).unwrap(),
            &["vda/00/00/00/00/00/00/00/07: stale or damaged: its digest differs"],
        ),
        (
            "short last",
            |t| fs::write(t.chunk(515), "abc").unwrap(),
            &["vda/00/00/00/00/00/00/02/03: stale or damaged: its digest differs"],
        ),
        (
            "swapped",
            |t| {
                fs::rename(t.chunk(1), t.home().join("x")).unwrap();
                fs::rename(t.chunk(2), t.chunk(1)).unwrap();
                fs::rename(t.home().join("x"), t.chunk(2)).unwrap();
            },
            &[
                "vda/00/00/00/00/00/00/00/01: stale or damaged: its digest differs",
                "vda/00/00/00/00/00/00/00/02: stale or damaged: its digest differs",
            ],
        ),
        (
            "surplus",
            |t| fs::write(t.chunk(516), "abc").unwrap(),
            &["vda/00/00/00/00/00/00/02/04: surplus: the image ends before it"],
        ),
        (
            "a surplus leaf",
            |t| {
                fs::create_dir(t.chunk(768).parent().unwrap()).unwrap();
                fs::write(t.chunk(768), "abc").unwrap();
            },
            &["vda/00/00/00/00/00/00/03/00: surplus: the image ends before it"],
        ),
        (
            "links, FIFOs and directories",
            |t| {
                fs::rename(t.chunk(1), t.home().join("x")).unwrap();
                symlink(t.home().join("x"), t.chunk(1)).unwrap();
                fs::remove_file(t.chunk(2)).unwrap();
                rustix::fs::mknodat(CWD, t.chunk(2), FileType::Fifo, Mode::RUSR, 0).unwrap();
                fs::remove_file(t.chunk(3)).unwrap();
                fs::create_dir(t.chunk(3)).unwrap();
            },
            &[
                "vda/00/00/00/00/00/00/00/01: a symbolic link is in its place",
                "vda/00/00/00/00/00/00/00/02: a FIFO is in its place",
                "vda/00/00/00/00/00/00/00/03: a directory is in its place",
            ],
        ),
        (
            "a link in the place of a leaf",
            |t| {
                let leaf = t.chunk(256).parent().unwrap().to_owned();
                fs::rename(&leaf, t.home().join("x")).unwrap();
                symlink(t.home().join("x"), &leaf).unwrap();
            },
            &[
                "vda/00/00/00/00/00/00/01/00: missing, as are all up to vda/00/00/00/00/00/00/01/ff: 256 chunks",
                "vda/00/00/00/00/00/00/01: a symbolic link is in its place",
            ],
        ),
        (
            "foreign files",
            |t| {
                for name in
                    ["readme", "00/00/00/00/00/00/00/0A", "00/00/00/00/00/00/00/0a.tmp", "00/\u{1b}[2J"]
                {
                    fs::write(t.chunks().join(name), "").unwrap();
                }
                fs::write(t.chunks().join("00/01"), "").unwrap();
                fs::write(t.digests().join("notes"), "").unwrap();
            },
            &[
                "vda.b3/notes: foreign: no part of the tree has such a name",
                "vda/00/00/00/00/00/00/00/0A: foreign: no part of the tree has such a name",
                "vda/00/00/00/00/00/00/00/0a.tmp: foreign: no part of the tree has such a name",
                "vda/00/01: a regular file is in its place",
                "vda/00/\\u{1b}[2J: foreign: no part of the tree has such a name",
                "vda/readme: foreign: no part of the tree has such a name",
            ],
        ),
        (
            "a damaged line",
            |t| {
                let text = fs::read_to_string(t.digest_file(1)).unwrap();
                fs::write(t.digest_file(1), text.replacen('0', "x", 1)).unwrap();
            },
            &[
                "vda.b3/00/00/00/00/00/00/01: damaged: line 1 is not a digest of this leaf, as `b3sum` writes it; \
               the chunks of this leaf cannot be verified",
            ],
        ),
        (
            "a lost line",
            |t| {
                let text = fs::read_to_string(t.digest_file(1)).unwrap();
                fs::write(
                    t.digest_file(1),
                    text.lines().take(255).map(|l| format!("{l}\n")).collect::<String>(),
                )
                .unwrap();
            },
            &["vda.b3/00/00/00/00/00/00/01: lists 255 chunks where there should be 256"],
        ),
        (
            "a missing file of digests",
            |t| fs::remove_file(t.digest_file(1)).unwrap(),
            &["vda.b3/00/00/00/00/00/00/01: missing: the chunks of this leaf have no digests"],
        ),
        (
            "a missing last file of digests",
            |t| fs::remove_file(t.digest_file(2)).unwrap(),
            &["vda.b3/00/00/00/00/00/00/02: missing: the chunks of this leaf have no digests"],
        ),
        (
            "a link in the place of digests",
            |t| {
                fs::rename(t.digest_file(1), t.home().join("x")).unwrap();
                symlink(t.home().join("x"), t.digest_file(1)).unwrap();
            },
            &["vda.b3/00/00/00/00/00/00/01: a symbolic link is in its place"],
        ),
        (
            "no digests left",
            |t| fs::remove_dir_all(t.digests().join("00")).unwrap(),
            &[
                "vda.b3/00/00/00/00/00/00/00: missing: the chunks of this leaf have no digests",
                "vda.b3/00/00/00/00/00/00/01: missing: the chunks of this leaf have no digests",
                "vda.b3/00/00/00/00/00/00/02: missing: the chunks of this leaf have no digests",
            ],
        ),
    ];
    let image = pattern(515 * 8192 + 100);
    for (name, damage, expected) in table {
        let tree = split(&image, CHUNK);
        damage(&tree);
        let (report, problems) = verified(&tree, &NOTHING);
        assert_eq!(&problems, expected, "{name}");
        assert!(report.has_digests);
    }
}

#[test]
fn without_digests_the_report_says_so_and_only_shapes_are_checked() {
    let tree = split(&pattern(3 * 8192), CHUNK).without_digests();
    fs::write(tree.chunk(1), [9; 8192]).unwrap();
    let (report, problems) = verified(&tree, &NOTHING);
    assert_eq!((report.has_digests, report.chunks, problems.len()), (false, 3, 0));
    fs::write(tree.chunk(1), [9; 8191]).unwrap();
    let (report, problems) = verified(&tree, &NOTHING);
    assert_eq!(problems, ["vda/00/00/00/00/00/00/00/01: short: it has 8191 of 8192 bytes"]);
    assert_eq!(report.chunks, 2);
}

#[test]
fn the_image_tells_bytes_and_lengths() {
    let image = pattern(3 * 8192);
    let tree = split(&image, CHUNK).without_digests();
    let problems = |bytes: Vec<u8>| {
        let source = MemorySource::new(bytes);
        verified(&tree, &Options { known: Known::NOTHING, image: Some(&source) }).1
    };
    assert_eq!(problems(image.clone()), [""; 0]);
    let mut other = image.clone();
    other[8192 + 17] ^= 1;
    assert_eq!(problems(other), ["vda/00/00/00/00/00/00/00/01: differs from the image, first at byte 8209"]);
    let longer = [image.as_slice(), &[0; 8193]].concat();
    assert_eq!(
        problems(longer),
        ["vda/00/00/00/00/00/00/00/03: missing, as are all up to vda/00/00/00/00/00/00/00/04: 2 chunks"]
    );
    assert_eq!(
        problems(image[..8192 + 5].to_vec()),
        [
            "vda/00/00/00/00/00/00/00/01: too long: it has 8192 bytes instead of 5",
            "vda/00/00/00/00/00/00/00/02: surplus: the image ends before it",
        ]
    );
}

#[test]
fn an_image_that_cannot_be_read_ends_the_work() {
    let image = pattern(2000 * 4096);
    let tree = split(&image, 4096);
    let (source, faults) = FaultySource::new(MemorySource::new(image));
    faults.fail_in(ByteRange::new(5000, 5001));
    let options = Options { known: Known::NOTHING, image: Some(&source) };
    let error = verify(&tree.chunks(), &options, &Unwatched, &|_| {}).unwrap_err();
    assert!(matches!(error, VerifyError::Image(SourceError::Read { .. })), "{error}");
}

#[test]
fn a_watcher_hears_of_every_byte_and_may_stop_the_work() {
    struct Counter {
        told: Mutex<(u64, u64)>,
        stops: bool,
    }
    impl Watch for Counter {
        fn expect(&self, bytes: u64) {
            self.told.lock().unwrap().0 = bytes;
        }
        fn advance(&self, bytes: u64) {
            self.told.lock().unwrap().1 += bytes;
        }
        fn is_stopped(&self) -> bool {
            self.stops
        }
    }
    let tree = split(&pattern(300 * 8192 + 9), CHUNK);
    for (stops, done) in [(false, 300 * 8192 + 9), (true, 0)] {
        let counter = Counter { told: Mutex::new((0, 0)), stops };
        let report = verify(&tree.chunks(), &NOTHING, &counter, &|_| {}).unwrap();
        assert_eq!(*counter.told.lock().unwrap(), (300 * 8192 + 9, done));
        assert_eq!((report.bytes, report.complete), (done, !stops));
    }
}

#[test]
fn problems_are_told_as_json() {
    let problem = Problem::new(
        Path::new("vda/00"),
        ProblemKind::WrongKind { found: crate::source::beneath::Kind::SymbolicLink },
    );
    let json = serde_json::to_string(&problem).unwrap();
    assert_eq!(json, r#"{"path":"vda/00","problem":"wrong-kind","found":"symbolic-link"}"#);
    let json = serde_json::to_string(&Problem::missing(Path::new("a"), Path::new("b"), 2)).unwrap();
    assert_eq!(json, r#"{"path":"a","problem":"missing","last":"b","chunks":2}"#);
}
