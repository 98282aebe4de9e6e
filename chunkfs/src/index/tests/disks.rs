//! Generations and disks: stamps, slots, lengths, and whom the index believes.

use super::{at_open, begin, geometry, home, none, open};
use crate::core::changes::{ChangeSet, LeafSet};
use crate::core::digest::Digest;
use crate::core::geometry::{ByteRange, ChunkIndex, ChunkSize, Geometry, ImageLen, LeafIndex};
use crate::core::layout::DiskSlot;
use crate::core::stamp::Stamp;
use crate::index::record::{Chunk, Content, Leaf, Record};
use crate::index::{Evidence, Index, IndexError, Publication, Run, Tracking};
use crate::source::image::Identity;

const CHUNK: u64 = 4096;
const LEAF: u64 = 256 * CHUNK;

/// Stores that every chunk of the disk is known, each by a digest of its own, and was last seen to change at `stamp`.
fn know_all(index: &Index, slot: DiskSlot, geometry: &Geometry, stamp: Stamp) {
    for leaf in (0..geometry.leaf_count()).map(LeafIndex) {
        let chunk = |at: u64| Chunk { stamp, content: Content::Digest(Digest::of(&at.to_le_bytes())) };
        let record =
            Record::Leaf(Leaf { chunks: geometry.chunk_range(leaf).map(chunk).collect(), cut: None });
        let run = Run { leaves: leaf.0..leaf.0 + 1, record };
        index.publish(&[Publication { slot, run, still_open: LeafSet::EMPTY }]).unwrap();
    }
    index.set_compared_to(slot, LeafIndex(geometry.leaf_count())).unwrap();
}

#[test]
fn stamps_strictly_increase_over_closed_and_killed_generations() {
    let home = home();
    let index = open(&home);
    let mut last = Stamp(0);
    for (now, closed, expected) in [
        (1000, Some(1010), 995),
        (1020, Some(1021), 1015),
        // At once: later than the close of the one before.
        (1022, Some(1022), 1022),
        // Killed: later than now, for it may have been read until now.
        (1023, None, 1023),
        (1100, Some(1101), 1101),
        // A clock that was set back closes no generation before it was opened.
        (1103, Some(900), 1102),
        (1103, Some(1104), 1104),
    ] {
        let opened = begin(&index, LEAF, none(), now).unwrap();
        assert_eq!(opened.stamp, Stamp(expected), "{now}");
        assert!(opened.stamp > last);
        last = opened.stamp;
        if let Some(closed) = closed {
            index.close_generation(opened.generation, Stamp(closed)).unwrap();
        }
    }
    let known = index.generations().unwrap();
    assert_eq!(known.iter().map(|g| g.number.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(known[3].closed, None);
    assert_eq!(known[5].closed, Some(Stamp(1103)));
}

#[test]
fn a_clock_far_behind_is_an_error_that_changes_nothing() {
    let home = home();
    let index = open(&home);
    let first = begin(&index, LEAF, none(), 10_000).unwrap();
    index.close_generation(first.generation, Stamp(10_100)).unwrap();
    let before = format!("{:?}", index.summary().unwrap());
    match begin(&index, 2 * LEAF, none(), 10_100 - 60) {
        Err(IndexError::Clock { secs: 61, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(format!("{:?}", index.summary().unwrap()), before);
    // A minute is waited for.
    assert_eq!(begin(&index, LEAF, none(), 10_100 - 59).unwrap().stamp, Stamp(10_101));
}

#[test]
fn a_generation_is_closed_once_and_only_by_its_number() {
    let home = home();
    let index = open(&home);
    let opened = begin(&index, LEAF, none(), 1000).unwrap();
    index.close_generation(opened.generation, Stamp(1005)).unwrap();
    index.close_generation(opened.generation, Stamp(2000)).unwrap();
    assert_eq!(index.generations().unwrap()[0].closed, Some(Stamp(1005)));
}

#[test]
fn a_disk_keeps_its_slot_and_no_slot_is_given_out_twice() {
    let home = home();
    let index = open(&home);
    let names = ["vda", "vdb", "hdc"];
    for (now, disks) in [(1000, &[0usize, 1][..]), (1100, &[2, 0]), (1200, &[1]), (1300, &[0, 1, 2])] {
        let at_open: Vec<_> = disks.iter().map(|n| at_open(names[*n], LEAF, none())).collect();
        let opened = index.open_generation(&at_open, Stamp(now)).unwrap();
        for (state, number) in opened.disks.iter().zip(disks) {
            assert_eq!(state.name, names[*number]);
            assert_eq!(u64::from(state.slot.number()), *number as u64 + 1);
        }
    }
}

#[test]
fn the_1024th_disk_is_an_error_that_changes_nothing() {
    let home = home();
    let index = open(&home);
    let disks: Vec<_> = (0..1023).map(|n| at_open(&format!("disk{n}"), 0, none())).collect();
    index.open_generation(&disks, Stamp(1000)).unwrap();
    let error = index.open_generation(&[at_open("one more", 0, none())], Stamp(2000)).unwrap_err();
    assert!(matches!(error, IndexError::NoSlot { .. }), "{error}");
    assert_eq!(index.generations().unwrap().len(), 1);
}

#[test]
fn another_chunk_size_is_an_error_that_changes_nothing() {
    let home = home();
    let index = open(&home);
    begin(&index, LEAF, none(), 1000).unwrap();
    let mut disk = at_open("vda", LEAF, none());
    disk.geometry = Geometry::new(ImageLen::new(LEAF).unwrap(), ChunkSize::DEFAULT);
    match index.open_generation(&[disk], Stamp(2000)) {
        Err(IndexError::ChunkSize { known: 4096, asked: 262144, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(index.generations().unwrap().len(), 1);
}

/// What a resized disk is to look like: which chunks keep what was known, and whose lists of digests are new.
#[test]
fn a_resized_disk_keeps_what_was_not_touched_and_nothing_else() {
    for (old, new) in [
        // Within a leaf, on and beside the boundaries of chunks.
        (10 * CHUNK, 11 * CHUNK),
        (10 * CHUNK, 10 * CHUNK + 1),
        (10 * CHUNK - 1, 10 * CHUNK),
        (10 * CHUNK - 100, 10 * CHUNK - 50),
        (10 * CHUNK, 7 * CHUNK),
        (10 * CHUNK, 7 * CHUNK - 1),
        (10 * CHUNK - 5, 9 * CHUNK + 1),
        // Over leaves, on and beside their boundaries.
        (LEAF, LEAF + 1),
        (LEAF, 2 * LEAF),
        (LEAF - 1, 2 * LEAF),
        (LEAF + 1, 3 * LEAF + 3),
        (LEAF - CHUNK, 3 * LEAF - CHUNK),
        (3 * LEAF, LEAF),
        (3 * LEAF, LEAF + 1),
        (3 * LEAF, LEAF - 1),
        (3 * LEAF - 1, 3 * LEAF - CHUNK),
        (2 * LEAF + CHUNK, 2 * LEAF),
        // To nothing and from nothing.
        (0, 1),
        (0, 2 * LEAF + 7),
        (1, 0),
        (2 * LEAF + 7, 0),
        (0, 0),
        (LEAF, LEAF),
    ] {
        check_resize(old, new);
    }
}

#[test]
fn a_renewed_disk_keeps_its_slot_and_every_chunk_of_it_is_new() {
    for (old, new) in [(2 * LEAF + 7, 2 * LEAF + 7), (LEAF, 3 * LEAF), (2 * LEAF, CHUNK), (CHUNK, 0), (0, 0)]
    {
        let home = home();
        let index = open(&home);
        let start = Evidence::Start { point: "p".into(), why: "?".into() };
        let first = begin(&index, old, start, 1000).unwrap();
        let slot = first.disks[0].slot;
        know_all(&index, slot, &geometry(old), first.stamp);
        index.close_generation(first.generation, Stamp(1001)).unwrap();
        let second = begin(&index, new, Evidence::Renewed { why: "?".into() }, 2000).unwrap();
        assert_eq!((second.disks[0].slot, second.disks[0].compared_to), (slot, 0));
        assert!(second.stamp > first.stamp);
        for chunk in (0..geometry(new).chunk_count()).map(ChunkIndex) {
            let found = index.run_at(slot, chunk.leaf()).unwrap().record.chunk(chunk.slot_in_leaf());
            assert_eq!(found, Chunk { stamp: second.stamp, content: Content::Unknown }, "chunk {}", chunk.0);
        }
        index.close_generation(second.generation, Stamp(2001)).unwrap();
        // What was counted from before means nothing any more.
        let changes = ChangeSet::default();
        let since = Evidence::Changes { since: "p".into(), point: "q".into(), changes };
        let third = begin(&index, new, since, 3000).unwrap();
        assert!(matches!(third.disks[0].tracking, Tracking::Digests { .. }), "{:?}", third.disks[0]);
    }
}

fn check_resize(old: u64, new: u64) {
    let home = home();
    let index = open(&home);
    let first = begin(&index, old, none(), 1000).unwrap();
    let slot = first.disks[0].slot;
    know_all(&index, slot, &geometry(old), first.stamp);
    index.close_generation(first.generation, Stamp(1001)).unwrap();
    let second = begin(&index, new, Evidence::Start { point: "p".into(), why: "?".into() }, 2000).unwrap();
    // A killed one in between must not make a difference.
    let third = begin(&index, new, none(), 2000).unwrap();
    assert_eq!(third.disks[0].compared_to, 0);
    let (before, after) = (geometry(old), geometry(new));
    for chunk in (0..after.chunk_count()).map(ChunkIndex) {
        let record = index.run_at(slot, chunk.leaf()).unwrap().record;
        let found = record.chunk(chunk.slot_in_leaf());
        let untouched = before.range_of(chunk) == after.range_of(chunk);
        let expected = match untouched {
            true => {
                Chunk { stamp: first.stamp, content: Content::Digest(Digest::of(&chunk.0.to_le_bytes())) }
            }
            false => Chunk { stamp: second.stamp, content: Content::Unknown },
        };
        assert_eq!(found, expected, "{old} to {new}: chunk {}", chunk.0);
    }
    for leaf in (0..after.leaf_count()).map(LeafIndex) {
        let record = index.run_at(slot, leaf).unwrap().record;
        let ranges =
            |g: &Geometry| g.chunk_range(leaf).map(|c| g.range_of(ChunkIndex(c))).collect::<Vec<_>>();
        let expected = if ranges(&before) == ranges(&after) { first.stamp } else { second.stamp };
        assert_eq!(record.digests_stamp(), expected, "{old} to {new}: the digests of leaf {}", leaf.0);
    }
    let summary = index.check().unwrap();
    assert_eq!(summary.disks[0].length, new);
    assert_eq!(summary.disks[0].pending, after.chunk_count());
}

#[test]
fn chunks_that_a_resize_made_new_are_compared_even_where_all_else_is_clean() {
    let home = home();
    let index = open(&home);
    let first = begin(&index, 10 * CHUNK, none(), 1000).unwrap();
    let slot = first.disks[0].slot;
    know_all(&index, slot, &geometry(10 * CHUNK), first.stamp);
    // The row is resized as such, whatever the evidence will make of it.
    let second = begin(&index, 12 * CHUNK, none(), 2000).unwrap();
    assert_eq!(index.candidates(slot, LeafIndex(0)).unwrap().iter().collect::<Vec<_>>(), [10, 11]);
    // The candidates of chunks that are gone go with them.
    index.set_compared_to(slot, LeafIndex(1)).unwrap();
    let third = begin(&index, 11 * CHUNK, none(), 3000).unwrap();
    assert_eq!(index.candidates(slot, LeafIndex(0)).unwrap().iter().collect::<Vec<_>>(), [10]);
    assert!(second.stamp < third.stamp);
    let fourth = begin(&index, 0, none(), 4000).unwrap();
    assert_eq!(index.candidate_leaves(slot).unwrap(), []);
    assert_eq!(fourth.disks[0].compared_to, 0);
}

fn identity(mtime_secs: i64) -> Identity {
    let ns = i128::from(mtime_secs) * 1_000_000_000;
    Identity { device: 1, inode: 2, size: LEAF, mtime_ns: ns, ctime_ns: ns }
}

fn since(since: &str, point: &str) -> Evidence {
    let mut changes = ChangeSet::default();
    changes.insert(&geometry(LEAF), ByteRange::new(5 * CHUNK, 6 * CHUNK + 1));
    Evidence::Changes { since: since.to_owned(), point: point.to_owned(), changes }
}

fn start(point: &str) -> Evidence {
    Evidence::Start { point: point.to_owned(), why: "the first".to_owned() }
}

/// What the index is told, generation by generation, and how the last one is then found out.
#[test]
fn a_tracker_is_believed_only_if_it_counts_from_what_the_index_describes() {
    enum Is {
        Digests,
        Unchanged,
        Changes,
    }
    let file = Evidence::File;
    let moved = Identity { inode: 3, ..identity(500) };
    let on_other_device = Identity { device: 9, ..identity(500) };
    let touched = Identity { ctime_ns: 7, ..identity(500) };
    for (number, (before, now, expected)) in [
        (vec![none()], none(), Is::Digests),
        (vec![none()], file(identity(500)), Is::Digests),
        (vec![none()], since("a", "b"), Is::Digests),
        (vec![none()], start("a"), Is::Digests),
        (vec![file(identity(500))], file(identity(500)), Is::Unchanged),
        (vec![file(identity(500))], file(identity(501)), Is::Digests),
        (vec![file(identity(500))], file(moved), Is::Digests),
        (vec![file(identity(500))], file(on_other_device), Is::Digests),
        (vec![file(identity(500))], file(touched), Is::Digests),
        (vec![file(identity(500))], since("a", "b"), Is::Digests),
        (vec![file(identity(500))], none(), Is::Digests),
        // Written in the second of the last view, or in the two before it: times of that age prove nothing.
        (vec![file(identity(1000))], file(identity(1000)), Is::Digests),
        (vec![file(identity(998))], file(identity(998)), Is::Digests),
        (vec![file(identity(997))], file(identity(997)), Is::Unchanged),
        (vec![file(identity(1000)), file(identity(1000))], file(identity(1000)), Is::Unchanged),
        (vec![start("a")], since("a", "b"), Is::Changes),
        (vec![start("a")], since("b", "c"), Is::Digests),
        (vec![start("a")], since("", "a"), Is::Digests),
        (vec![start("a")], start("b"), Is::Digests),
        (vec![start("a")], file(identity(500)), Is::Digests),
        (vec![start("a"), since("a", "b")], since("b", "c"), Is::Changes),
        (vec![start("a"), since("a", "b")], since("a", "c"), Is::Digests),
        (vec![start("a"), since("x", "b")], since("b", "c"), Is::Changes),
        (vec![start("a"), none()], since("a", "b"), Is::Digests),
    ]
    .into_iter()
    .enumerate()
    {
        let home = home();
        let index = open(&home);
        let mut clock = 1000;
        for evidence in before {
            let opened = begin(&index, LEAF, evidence, clock).unwrap();
            know_all(&index, opened.disks[0].slot, &geometry(LEAF), opened.stamp);
            index.close_generation(opened.generation, Stamp(clock + 1)).unwrap();
            clock += 100;
        }
        let opened = begin(&index, LEAF, now, clock).unwrap();
        let disk = &opened.disks[0];
        match (expected, &disk.tracking) {
            (Is::Digests, Tracking::Digests { .. }) => assert_eq!(disk.compared_to, 0, "case {number}"),
            (Is::Unchanged, Tracking::Unchanged) => {
                assert_eq!(disk.compared_to, 1, "case {number}");
                assert_eq!(index.candidate_leaves(disk.slot).unwrap(), [], "case {number}");
            }
            (Is::Changes, Tracking::Changes { chunks: 2 }) => {
                assert_eq!(disk.compared_to, 1, "case {number}");
                let candidates = index.candidates(disk.slot, LeafIndex(0)).unwrap();
                assert_eq!(candidates.iter().collect::<Vec<_>>(), [5, 6], "case {number}");
            }
            (_, other) => panic!("case {number}: {other:?}"),
        }
    }
}

#[test]
fn changes_of_a_disk_of_another_length_are_not_believed() {
    for new in [LEAF - CHUNK, LEAF + 1] {
        let home = home();
        let index = open(&home);
        let first = begin(&index, LEAF, start("a"), 1000).unwrap();
        know_all(&index, first.disks[0].slot, &geometry(LEAF), first.stamp);
        index.close_generation(first.generation, Stamp(1001)).unwrap();
        let second = begin(&index, new, since("a", "b"), 2000).unwrap();
        assert!(matches!(second.disks[0].tracking, Tracking::Digests { .. }), "{new}");
        assert_eq!(second.disks[0].compared_to, 0);
    }
}

#[test]
fn candidates_that_were_never_compared_stay_whatever_comes_after() {
    let home = home();
    let index = open(&home);
    let first = begin(&index, LEAF, start("a"), 1000).unwrap();
    let slot = first.disks[0].slot;
    know_all(&index, slot, &geometry(LEAF), first.stamp);
    begin(&index, LEAF, since("a", "b"), 2000).unwrap();
    let empty = Evidence::Changes { since: "b".into(), point: "c".into(), changes: ChangeSet::default() };
    let third = begin(&index, LEAF, empty, 3000).unwrap();
    assert_eq!(third.disks[0].tracking, Tracking::Changes { chunks: 0 });
    assert_eq!(index.candidates(slot, LeafIndex(0)).unwrap().iter().collect::<Vec<_>>(), [5, 6]);
    assert_eq!(index.summary().unwrap().disks[0].pending, 2);
}

#[test]
fn an_interrupted_comparison_goes_on_where_it_was_only_if_nothing_changed_since() {
    for (evidence, expected) in
        [(Evidence::File(identity(500)), 2), (none(), 0), (Evidence::File(identity(600)), 0)]
    {
        let home = home();
        let index = open(&home);
        let first = begin(&index, 5 * LEAF, Evidence::File(identity(500)), 1000).unwrap();
        assert_eq!(first.disks[0].compared_to, 0);
        index.set_compared_to(first.disks[0].slot, LeafIndex(2)).unwrap();
        let second = begin(&index, 5 * LEAF, evidence, 2000).unwrap();
        assert_eq!(second.disks[0].compared_to, expected);
    }
}

#[test]
fn a_distrusted_disk_is_compared_in_this_generation_and_in_the_next() {
    let home = home();
    let index = open(&home);
    let file = || Evidence::File(identity(500));
    let first = begin(&index, LEAF, file(), 1000).unwrap();
    let slot = first.disks[0].slot;
    know_all(&index, slot, &geometry(LEAF), first.stamp);
    assert_eq!(begin(&index, LEAF, file(), 2000).unwrap().disks[0].tracking, Tracking::Unchanged);
    index.distrust(slot).unwrap();
    assert_eq!(index.summary().unwrap().disks[0].pending, 256);
    know_all(&index, slot, &geometry(LEAF), Stamp(2001));
    for (now, expected) in [(3000, false), (4000, true)] {
        let opened = begin(&index, LEAF, file(), now).unwrap();
        assert_eq!(opened.disks[0].tracking == Tracking::Unchanged, expected, "{now}");
        know_all(&index, slot, &geometry(LEAF), opened.stamp);
    }
}

#[test]
fn a_plain_file_keeps_its_stamp_while_its_content_stays() {
    let home = home();
    let index = open(&home);
    for (name, content, stamp, expected) in [
        ("a.xml", "1", 10, 10),
        ("b.xml", "1", 11, 11),
        ("a.xml", "1", 20, 10),
        ("a.xml", "2", 30, 30),
        ("a.xml", "1", 40, 40),
        ("b.xml", "1", 50, 11),
    ] {
        let found = index.stamp_of_file(name, content.as_bytes(), Stamp(stamp)).unwrap();
        assert_eq!(found, Stamp(expected), "{name} {content} at {stamp}");
    }
}

#[test]
fn the_report_counts_and_lists_exactly() {
    let home = home();
    let index = open(&home);
    let bytes = 3 * LEAF + 10;
    let first = begin(&index, bytes, start("a"), 1000).unwrap();
    let slot = first.disks[0].slot;
    let info = |index: &Index| index.check().unwrap().disks.remove(0);
    let new = info(&index);
    assert_eq!((new.chunks, new.known, new.zero, new.pending), (769, 0, 0, 769));
    know_all(&index, slot, &geometry(bytes), first.stamp);
    index.close_generation(first.generation, Stamp(1001)).unwrap();
    let second = begin(&index, bytes, since("a", "b"), 2000).unwrap();
    let zeros = Record::Uniform(Chunk { stamp: second.stamp, content: Content::Zero });
    index
        .publish(&[Publication {
            slot,
            run: Run { leaves: 1..3, record: zeros },
            still_open: LeafSet::EMPTY,
        }])
        .unwrap();
    let known = info(&index);
    assert_eq!((known.chunks, known.known, known.zero, known.pending), (769, 769, 512, 2));
    let list = |since: Stamp| {
        let mut found = Vec::new();
        index
            .changed_since("vda", since, |changed| {
                found.push((changed.chunk.0, changed.stamp, changed.pending))
            })
            .unwrap();
        found
    };
    let zeroed = (256..768).map(|chunk| (chunk, second.stamp, false));
    let pending = [5, 6].map(|chunk| (chunk, first.stamp, true));
    assert_eq!(list(first.stamp), pending.into_iter().chain(zeroed).collect::<Vec<_>>());
    assert_eq!(list(second.stamp), pending);
    assert_eq!(list(Stamp(0)).len(), 769);
    index.set_compared_to(slot, LeafIndex(2)).unwrap();
    assert_eq!(info(&index).pending, 2 + 257);
    let late = list(second.stamp);
    assert_eq!(late.len(), 2 + 257);
    assert_eq!(late[2], (512, second.stamp, true));
    let (_, known) = index.disk_named(None).unwrap();
    assert_eq!(known, geometry(bytes));
    assert!(matches!(index.disk_named(Some("vdb")), Err(IndexError::NoDisk { .. })));
}

#[test]
fn the_report_of_a_disk_of_8_eib_takes_no_time() {
    let home = home();
    let index = open(&home);
    let first = begin(&index, 1 << 63, none(), 1000).unwrap();
    let slot = first.disks[0].slot;
    let leaves = first.disks[0].geometry.leaf_count();
    let record = Record::Uniform(Chunk { stamp: first.stamp, content: Content::Zero });
    index
        .publish(&[Publication { slot, run: Run { leaves: 0..leaves, record }, still_open: LeafSet::EMPTY }])
        .unwrap();
    index.set_compared_to(slot, LeafIndex(leaves)).unwrap();
    let info = index.check().unwrap().disks.remove(0);
    assert_eq!((info.length, info.zero, info.pending), (1 << 63, 1 << 51, 0));
    index.changed_since("vda", first.stamp, |changed| panic!("{changed:?}")).unwrap();
}
