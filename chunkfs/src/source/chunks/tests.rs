//! What a directory of chunks gives out, and what it says of each kind of damage.

use super::*;
use crate::source::next_data;
use crate::split::{SplitTree, pattern, split};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode};
use std::fs;
use std::os::unix::fs::symlink;

const CHUNK: u64 = 8192;

fn open(tree: &SplitTree, verification: Verification) -> ChunksSource {
    ChunksSource::open(&tree.chunks(), verification, Known::NOTHING).unwrap()
}

fn read_all(source: &ChunksSource) -> Result<Vec<u8>, SourceError> {
    let mut bytes = vec![0; source.len().bytes() as usize];
    source.read_at(0, &mut bytes).map(|()| bytes)
}

/// What is said of the first chunk that cannot be read; chunks are read one by one.
fn complaint(source: &ChunksSource) -> Option<String> {
    let g = source.geometry();
    (0..g.chunk_count()).find_map(|chunk| {
        let range = g.range_of(ChunkIndex(chunk)).unwrap();
        let whole = source.read_at(range.start, &mut vec![0; range.len() as usize]);
        let part = source.read_at(range.end - 1, &mut [0]);
        if source.verification == Verification::Digests {
            assert_eq!(whole.is_err(), part.is_err(), "chunk {chunk}");
        }
        whole.err().map(|error| {
            assert!(matches!(error, SourceError::Damaged { .. }), "{error:?}");
            let path = format!("{}/", source.path().parent().unwrap().display());
            error.to_string().replace(&path, "")
        })
    })
}

#[test]
fn each_damage_is_an_error_that_names_the_chunk_and_why() {
    type Damage = fn(&SplitTree);
    const CHUNK_1: &str = "vda/00/00/00/00/00/00/00/01";
    // The damage; what is said with digests; without digests; with --no-verify.
    let table: [(&str, Damage, &str, &str, &str); 13] = [
        ("none", |_| {}, "", "", ""),
        ("missing", |t| fs::remove_file(t.chunk(1)).unwrap(), "@: missing", "@: missing", "@: missing"),
        (
            "short",
            |t| fs::write(t.chunk(1), "abc").unwrap(),
            "@: short: it has 3 of 8192 bytes",
            "@: short: it has 3 of 8192 bytes",
            "@: short: it has 3 of 8192 bytes",
        ),
        (
            "long",
            |t| fs::write(t.chunk(1), vec![1; 8193]).unwrap(),
            "@: too long: it has 8193 bytes instead of 8192",
            "@: too long: it has 8193 bytes instead of 8192",
            "",
        ),
        (
            "stale",
            |t| fs::write(t.chunk(1), vec![0; 8192]).unwrap(),
            "@: stale or damaged: its digest differs",
            "",
            "",
        ),
        (
            "swapped",
            |t| {
                fs::rename(t.chunk(1), t.home().join("x")).unwrap();
                fs::rename(t.chunk(2), t.chunk(1)).unwrap();
                fs::rename(t.home().join("x"), t.chunk(2)).unwrap();
            },
            "@: stale or damaged: its digest differs",
            "",
            "",
        ),
        (
            "symlink",
            |t| {
                fs::rename(t.chunk(1), t.home().join("x")).unwrap();
                symlink(t.home().join("x"), t.chunk(1)).unwrap();
            },
            "@: not a regular file but a symbolic link",
            "@: not a regular file but a symbolic link",
            "@: not a regular file but a symbolic link",
        ),
        (
            "directory",
            |t| {
                fs::remove_file(t.chunk(1)).unwrap();
                fs::create_dir(t.chunk(1)).unwrap();
            },
            "@: not a regular file but a directory",
            "@: not a regular file but a directory",
            "@: not a regular file but a directory",
        ),
        (
            "fifo",
            |t| {
                fs::remove_file(t.chunk(1)).unwrap();
                rustix::fs::mknodat(CWD, t.chunk(1), FileType::Fifo, Mode::RUSR, 0).unwrap();
            },
            "@: not a regular file but a FIFO",
            "@: not a regular file but a FIFO",
            "@: not a regular file but a FIFO",
        ),
        (
            "surplus",
            |t| fs::write(t.chunk(258), vec![1; 8192]).unwrap(),
            // The file that was the last, and short, is no longer the last.
            "vda/00/00/00/00/00/00/01/01: short: it has 100 of 8192 bytes",
            "vda/00/00/00/00/00/00/01/01: short: it has 100 of 8192 bytes",
            "vda/00/00/00/00/00/00/01/01: short: it has 100 of 8192 bytes",
        ),
        (
            "last missing",
            |t| fs::remove_file(t.chunk(257)).unwrap(),
            "vda/00/00/00/00/00/00/01/01: missing",
            "",
            "vda/00/00/00/00/00/00/01/01: missing",
        ),
        (
            "digest line",
            |t| {
                let text = fs::read_to_string(t.digest_file(0)).unwrap();
                fs::write(t.digest_file(0), &text[1..]).unwrap();
            },
            "vda.b3/00/00/00/00/00/00/00: damaged: line 1 is not a digest of this leaf, as `b3sum` writes it; \
             so the chunks of its leaf cannot be verified",
            "",
            "",
        ),
        (
            "digest file",
            |t| fs::remove_file(t.digest_file(0)).unwrap(),
            "vda.b3/00/00/00/00/00/00/00: missing; so the chunks of its leaf cannot be verified",
            "",
            "",
        ),
    ];
    let image = pattern(257 * 8192 + 100);
    for (name, damage, verified, bare, unverified) in table {
        let expect = |text: &str| (!text.is_empty()).then(|| text.replace('@', CHUNK_1));
        let tree = split(&image, CHUNK);
        damage(&tree);
        assert_eq!(complaint(&open(&tree, Verification::Digests)), expect(verified), "{name}");
        assert_eq!(complaint(&open(&tree, Verification::None)), expect(unverified), "{name}, --no-verify");
        let tree = tree.without_digests();
        assert_eq!(complaint(&open(&tree, Verification::Digests)), expect(bare), "{name}, no digests");
    }
}

#[test]
fn a_directory_that_is_a_link_leads_nowhere() {
    let tree = split(&pattern(600 * 4096), 4096);
    let leaf = tree.chunk(256).parent().unwrap().to_owned();
    fs::rename(&leaf, tree.home().join("leaf")).unwrap();
    symlink(tree.home().join("leaf"), &leaf).unwrap();
    let source = open(&tree, Verification::Digests);
    let error = source.read_at(256 * 4096, &mut [0; 10]).unwrap_err();
    assert!(error.to_string().ends_with("a symbolic link or a way out of the directory stands in its path"));
    source.read_at(512 * 4096, &mut [0; 10]).unwrap();
}

#[test]
fn a_surplus_chunk_behind_a_full_one_is_named() {
    let tree = split(&pattern(5 * 8192), CHUNK);
    fs::write(tree.chunk(5), vec![1; 8192]).unwrap();
    let said = complaint(&open(&tree, Verification::Digests)).unwrap();
    assert_eq!(said, "vda/00/00/00/00/00/00/00/05: surplus: the digests end before it");
}

#[test]
fn without_verification_what_is_there_of_a_short_chunk_is_given() {
    let image = pattern(3 * 8192);
    let tree = split(&image, CHUNK);
    fs::write(tree.chunk(1), &image[8192..8192 + 5000]).unwrap();
    let source = open(&tree, Verification::None);
    let mut buffer = [0; 5000];
    source.read_at(8192, &mut buffer).unwrap();
    assert_eq!(buffer, image[8192..8192 + 5000]);
    assert!(source.read_at(8192 + 4999, &mut [0; 2]).is_err());
}

#[test]
fn what_the_user_knows_wins_over_what_the_tree_tells() {
    let image = pattern(8192);
    let tree = split(&image, CHUNK).without_digests();
    let known = Known { chunk_size: ChunkSize::new(65536), len: ImageLen::new(8000) };
    let source = ChunksSource::open(&tree.chunks(), Verification::None, known).unwrap();
    assert_eq!(source.geometry(), &Geometry::new(ImageLen::new(8000).unwrap(), known.chunk_size.unwrap()));
    assert_eq!(read_all(&source).unwrap(), image[..8000]);
    // One chunk of a known longer image is a full one.
    let known = Known { chunk_size: None, len: ImageLen::new(10000) };
    let source = ChunksSource::open(&tree.chunks(), Verification::Digests, known).unwrap();
    assert_eq!(source.geometry().chunk_size().bytes(), 8192);
    assert!(read_all(&source).unwrap_err().to_string().ends_with("01: missing"));
}

#[test]
fn a_directory_that_tells_too_little_is_refused() {
    let refusal = |tree: &SplitTree| {
        let error = ChunksSource::open(&tree.chunks(), Verification::Digests, Known::NOTHING).unwrap_err();
        error.to_string().replace(&tree.chunks().display().to_string(), "vda")
    };
    let empty = split(&[], CHUNK);
    assert_eq!(read_all(&open(&empty, Verification::Digests)).unwrap(), [0; 0]);
    let empty = empty.without_digests();
    assert_eq!(refusal(&empty), "vda: there are no chunks in it, and no digests of any beside it");

    let odd = split(&pattern(2 * 8192), CHUNK);
    fs::write(odd.chunk(0), "odd").unwrap();
    assert_eq!(
        refusal(&odd),
        "vda: its first chunks do not tell the chunk size: they are missing or damaged; give --chunk-size"
    );

    let linked = split(&pattern(8192), CHUNK);
    fs::rename(linked.digests(), linked.home().join("x")).unwrap();
    symlink(linked.home().join("x"), linked.digests()).unwrap();
    assert!(
        refusal(&linked).contains("digests of vda: not a directory but a symbolic link"),
        "{}",
        refusal(&linked)
    );
    assert!(ChunksSource::open(&linked.chunks(), Verification::None, Known::NOTHING).is_ok());
}

#[test]
fn chunks_with_the_digest_of_zeros_are_not_read() {
    let mut image = vec![0; 600 * 4096 + 10];
    image[300 * 4096] = 1;
    let tree = split(&image, 4096);
    for chunk in (0..=600).filter(|chunk| *chunk != 300) {
        fs::write(tree.chunk(chunk), "gone").unwrap();
    }
    let known = Known { chunk_size: Some(ChunkSize::MIN), len: ImageLen::new(image.len() as u64) };
    let source = ChunksSource::open(&tree.chunks(), Verification::Digests, known).unwrap();
    let next = |from| next_data(&source, ByteRange::new(from, image.len() as u64)).unwrap();
    assert_eq!(next(0), Some(300 * 4096));
    assert_eq!(next(301 * 4096), None);
    assert_eq!(next(300 * 4096 + 5), Some(300 * 4096 + 5));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn split_then_join_gives_the_same_bytes(
        len in 0usize..3_000_000, chunk in 1u64..20, seed in any::<u8>(), at in any::<prop::sample::Index>(), part in 0usize..100_000,
    ) {
        let image: Vec<u8> = pattern(len).into_iter().map(|byte| byte.wrapping_mul(seed)).collect();
        let tree = split(&image, chunk * 4096);
        let at = at.index(len + 1);
        let part = part.min(len - at);
        for verification in [Verification::Digests, Verification::None] {
            let source = open(&tree, verification);
            prop_assert_eq!(source.len().bytes(), len as u64);
            prop_assert!(read_all(&source).unwrap() == image);
            let mut bytes = vec![0; part];
            source.read_at(at as u64, &mut bytes).unwrap();
            prop_assert!(bytes == image[at..at + part]);
        }
    }
}
