//! Stored formats are read for ever: `tests/data/index-v1.sqlite` was made by the first version that had one.
//! It is never made anew. To look at what a change would write, run the ignored test below and compare.

use super::at_open;
use crate::core::changes::{ChangeSet, LeafSet};
use crate::core::digest::Digest;
use crate::core::geometry::{ByteRange, LeafIndex};
use crate::core::stamp::Stamp;
use crate::index::record::{Chunk, Content, Leaf, Record};
use crate::index::{Access, Evidence, Index, Publication, Run, Tracking};
use crate::source::image::Identity;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LEAF: u64 = 256 * 4096;

pub(super) fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/index-v1.sqlite")
}

fn identity() -> Identity {
    let ns = 1_699_000_000_123_456_789;
    Identity { device: 2049, inode: 131_073, size: 3 * LEAF + 100, mtime_ns: ns, ctime_ns: ns + 1 }
}

fn since(since: &str, point: &str) -> Evidence {
    let mut changes = ChangeSet::default();
    changes.insert(&super::geometry(2 * LEAF), ByteRange::new(4096, 3 * 4096));
    Evidence::Changes { since: since.to_owned(), point: point.to_owned(), changes }
}

/// An index with something of everything: two disks, runs and leaves, digests, zeros and unknown ones, a cut,
/// candidates, plain files, a closed generation and one that was killed.
fn make(path: &Path) {
    let index = Index::open(path, Access::Write { wait: Duration::ZERO }).unwrap();
    let start = Evidence::Start { point: "virt-backup-1".to_owned(), why: "the first".to_owned() };
    let disks = [
        at_open("mail01_vda", 3 * LEAF + 5000, Evidence::File(identity())),
        at_open("mail01_vdb", 2 * LEAF, start),
    ];
    let first = index.open_generation(&disks, Stamp(1_700_000_000)).unwrap();
    let (vda, vdb) = (first.disks[0].slot, first.disks[1].slot);
    let stamp = first.stamp;
    let chunks = (0..256u16).map(|n| match n % 5 {
        0 => Chunk { stamp, content: Content::Zero },
        1 => Chunk { stamp, content: Content::Unknown },
        _ => Chunk { stamp, content: Content::Digest(Digest::of(&n.to_le_bytes())) },
    });
    let leaf = Record::Leaf(Leaf { chunks: chunks.collect(), cut: None });
    let zero = Record::Uniform(Chunk { stamp, content: Content::Zero });
    let mut open = LeafSet::EMPTY;
    (0..256).filter(|slot| slot % 5 == 1).for_each(|slot| open.insert(slot));
    let publish =
        |slot, leaves, record, still_open| Publication { slot, run: Run { leaves, record }, still_open };
    index
        .publish(&[
            publish(vda, 0..1, leaf, open),
            publish(vda, 1..3, zero.clone(), LeafSet::EMPTY),
            publish(vdb, 0..2, zero, LeafSet::EMPTY),
        ])
        .unwrap();
    index.set_compared_to(vda, LeafIndex(3)).unwrap();
    index.set_compared_to(vdb, LeafIndex(2)).unwrap();
    index.stamp_of_file("mail01.xml", b"<domain/>", stamp).unwrap();
    index.close_generation(first.generation, Stamp(1_700_000_100)).unwrap();
    let disks = [
        at_open("mail01_vda", 3 * LEAF + 100, Evidence::File(identity())),
        at_open("mail01_vdb", 2 * LEAF, since("virt-backup-1", "virt-backup-2")),
    ];
    let second = index.open_generation(&disks, Stamp(1_700_086_400)).unwrap();
    assert!(matches!(second.disks[1].tracking, Tracking::Changes { chunks: 2 }));
    index.stamp_of_file("mail01.xml", b"<domain type='kvm'/>", second.stamp).unwrap();
    index.stamp_of_file("mail01.nvram", b"", second.stamp).unwrap();
}

#[test]
#[ignore = "makes a sample of what this version writes, to be compared with the one that is kept"]
fn write_a_sample() {
    let path = std::env::temp_dir().join("index-sample.sqlite");
    make(&path);
    let text = answers(&Index::open(&path, Access::Read).unwrap()).unwrap();
    std::fs::write(path.with_extension("txt"), text).unwrap();
    println!("{}", path.display());
}

/// What is asked of an index, as text.
pub(super) fn answers(index: &Index) -> Result<String, crate::index::IndexError> {
    use std::fmt::Write;
    let mut text = String::new();
    let summary = index.check()?;
    let write = |text: &mut String, line: String| writeln!(text, "{line}").expect("a text takes all");
    for generation in &summary.generations {
        write(&mut text, format!("{generation:?}"));
    }
    for disk in &summary.disks {
        write(&mut text, format!("{disk:?}"));
        let (mut count, mut sum) = (0u64, 0i64);
        index.changed_since(&disk.name, Stamp(i64::MIN), |changed| {
            count += 1;
            sum += changed.stamp.0 * (changed.chunk.0 as i64 % 1000 + 1) + i64::from(changed.pending);
        })?;
        write(&mut text, format!("{count} chunks, {sum}"));
        let slot = crate::core::layout::DiskSlot::new(disk.slot.into()).expect("it comes from the index");
        let leaves = disk.chunks.div_ceil(256);
        for leaf in 0..leaves {
            let (run, candidates) = index.leaf_at(slot, LeafIndex(leaf))?;
            let digest = Digest::of(format!("{run:?} {candidates:?}").as_bytes());
            write(&mut text, format!("leaf {leaf}: {digest}"));
        }
        for tree in [crate::core::layout::Tree::Chunks, crate::core::layout::Tree::Digests] {
            for leaves in [0..leaves, 0..1, leaves - 1..leaves] {
                write(&mut text, format!("{:?}", index.newest_in(slot, leaves, tree)?));
            }
        }
    }
    Ok(text)
}

#[test]
fn the_first_format_is_read_for_ever_and_means_the_same() {
    let home = super::home();
    let copy = home.path().join("index");
    std::fs::copy(kept(), &copy).unwrap();
    let index = Index::open(&copy, Access::Write { wait: Duration::ZERO }).unwrap();
    let text = answers(&index).unwrap();
    assert_eq!(text, include_str!("../../../tests/data/index-v1.txt"));
    assert_eq!(
        index.stamp_of_file("mail01.xml", b"<domain type='kvm'/>", Stamp(5)).unwrap(),
        Stamp(1_700_086_395)
    );
    // It is not only read: a generation goes on from it.
    let disks = [
        at_open("mail01_vda", 3 * LEAF + 100, Evidence::File(identity())),
        at_open("mail01_vdb", 2 * LEAF, since("virt-backup-2", "virt-backup-3")),
    ];
    let next = index.open_generation(&disks, Stamp(1_700_172_800)).unwrap();
    assert_eq!((next.generation.0, next.stamp), (3, Stamp(1_700_172_801)));
    assert_eq!(next.disks[0].tracking, Tracking::Unchanged);
    assert_eq!(next.disks[1].tracking, Tracking::Changes { chunks: 2 });
    assert_eq!(next.disks.iter().map(|disk| disk.slot.number()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn this_version_writes_what_the_kept_sample_says() {
    let home = super::home();
    let path = home.path().join("index");
    make(&path);
    let index = Index::open(&path, Access::Read).unwrap();
    assert_eq!(answers(&index).unwrap(), include_str!("../../../tests/data/index-v1.txt"));
}
