//! The map of runs against a plain vector of leaves.

use super::{home, open};
use crate::core::changes::LeafSet;
use crate::core::digest::Digest;
use crate::core::geometry::LeafIndex;
use crate::core::layout::{DiskSlot, Tree};
use crate::core::stamp::Stamp;
use crate::index::record::{Chunk, Content, Leaf, Record};
use crate::index::{Index, IndexError, Publication, Run};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

const LEAVES: u64 = 40;

#[derive(Clone, Debug)]
enum Step {
    Put(Run),
    Publish(Run, Vec<usize>),
    Cut(u64),
    Candidates(u64, Vec<usize>),
    Clear(Range<u64>),
}

fn any_chunk() -> impl Strategy<Value = Chunk> {
    let content = prop_oneof![
        Just(Content::Unknown),
        Just(Content::Zero),
        any::<u8>().prop_map(|n| Content::Digest(Digest::of(&[n])))
    ];
    (1i64..30, content).prop_map(|(stamp, content)| Chunk { stamp: Stamp(stamp), content })
}

/// A run of uniform leaves, or one leaf; the last leaf of the disk may have few chunks.
fn any_run() -> impl Strategy<Value = Run> {
    let uniform = (0..LEAVES, 1u64..12, 1i64..30, any::<bool>()).prop_map(|(start, len, stamp, zero)| {
        let content = if zero { Content::Zero } else { Content::Unknown };
        let record = Record::Uniform(Chunk { stamp: Stamp(stamp), content });
        Run { leaves: start..(start + len).min(LEAVES), record }
    });
    let chunks =
        prop_oneof![prop::collection::vec(any_chunk(), 1..=4), prop::collection::vec(any_chunk(), 256)];
    let leaf = (0..LEAVES, chunks, prop::option::of(1i64..30)).prop_map(|(start, chunks, cut)| {
        let record = Leaf { chunks, cut: cut.map(Stamp) }.into_record();
        Run { leaves: start..start + 1, record }
    });
    prop_oneof![uniform, leaf]
}

fn any_step() -> impl Strategy<Value = Step> {
    let slots = || prop::collection::vec(0usize..256, 0..4);
    prop_oneof![
        6 => any_run().prop_map(Step::Put),
        3 => (any_run(), slots()).prop_map(|(run, open)| Step::Publish(run, open)),
        1 => (0..=LEAVES).prop_map(Step::Cut),
        2 => (0..LEAVES, slots()).prop_map(|(leaf, slots)| Step::Candidates(leaf, slots)),
        1 => (0..LEAVES, 0u64..9).prop_map(|(start, len)| Step::Clear(start..start + len)),
    ]
}

fn set_of(slots: &[usize]) -> LeafSet {
    let mut set = LeafSet::EMPTY;
    slots.iter().for_each(|slot| set.insert(*slot));
    set
}

/// What the index should know: leaf by leaf.
#[derive(Default)]
struct Plain {
    leaves: BTreeMap<u64, Record>,
    candidates: BTreeMap<u64, LeafSet>,
}

impl Plain {
    fn put(&mut self, run: &Run) {
        self.leaves.extend(run.leaves.clone().map(|leaf| (leaf, run.record.clone())));
    }

    fn clear(&mut self, leaves: &Range<u64>) {
        self.candidates.retain(|leaf, _| !leaves.contains(leaf));
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(run) => self.put(run),
            Step::Publish(run, open) => {
                self.put(run);
                self.clear(&run.leaves);
                if run.leaves.end - run.leaves.start == 1 && !open.is_empty() {
                    self.candidates.insert(run.leaves.start, set_of(open));
                }
            }
            Step::Cut(from) => {
                self.leaves.retain(|leaf, _| leaf < from);
                self.clear(&(*from..u64::MAX));
            }
            Step::Candidates(leaf, slots) => {
                let known = self.candidates.get(leaf).copied().unwrap_or_default();
                self.candidates.insert(*leaf, known.union(&set_of(slots)));
            }
            Step::Clear(leaves) => self.clear(leaves),
        }
    }
}

fn apply(index: &Index, slot: DiskSlot, step: &Step) {
    let done = match step {
        Step::Publish(run, open) => {
            let single = run.leaves.end - run.leaves.start == 1;
            let still_open = if single { set_of(open) } else { LeafSet::EMPTY };
            index.publish(&[Publication { slot, run: run.clone(), still_open }])
        }
        _ => index.write("testing", |connection| match step {
            Step::Put(run) => index.put_run(connection, slot, run),
            Step::Cut(from) => index.cut_runs(connection, slot, LeafIndex(*from)),
            Step::Candidates(leaf, slots) => {
                index.put_candidates(connection, slot, LeafIndex(*leaf), &set_of(slots))
            }
            Step::Clear(leaves) => index.clear_candidates(connection, slot, leaves),
            Step::Publish(..) => unreachable!("done above"),
        }),
    };
    done.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn runs_hold_what_a_plain_map_of_leaves_holds(
        steps in prop::collection::vec(any_step(), 1..30),
        asked in prop::collection::vec((0..LEAVES, 0u64..20), 8),
    ) {
        let home = home();
        let index = open(&home);
        let (slot, other) = (DiskSlot::new(7).unwrap(), DiskSlot::new(8).unwrap());
        let mut plain = Plain::default();
        // A neighbour that nothing must touch.
        let neighbour = Run { leaves: 0..LEAVES, record: Record::Uniform(Chunk { stamp: Stamp(99), content: Content::Zero }) };
        apply(&index, other, &Step::Put(neighbour.clone()));
        for step in &steps {
            apply(&index, slot, step);
            plain.step(step);
        }
        for leaf in (0..LEAVES).map(LeafIndex) {
            match (index.run_at(slot, leaf), plain.leaves.get(&leaf.0)) {
                (Ok(run), Some(record)) => {
                    prop_assert!(run.leaves.contains(&leaf.0));
                    prop_assert_eq!(&run.record, record);
                }
                (Err(IndexError::Damaged { .. }), None) => {}
                (found, expected) => prop_assert!(false, "leaf {}: {:?}, not {:?}", leaf.0, found, expected),
            }
            let candidates = plain.candidates.get(&leaf.0).copied().unwrap_or_default();
            prop_assert_eq!(index.candidates(slot, leaf).unwrap(), candidates);
            prop_assert_eq!(index.has_candidates(slot, &(leaf.0..leaf.0 + 1)).unwrap(), plain.candidates.contains_key(&leaf.0));
        }
        let listed: Vec<u64> = index.candidate_leaves(slot).unwrap().iter().map(|leaf| leaf.0).collect();
        prop_assert!(listed.iter().eq(plain.candidates.keys()));
        for (start, len) in asked {
            let leaves = start..(start + len).min(LEAVES);
            // Only what tiles can be asked for its newest stamp.
            if leaves.is_empty() || !leaves.clone().all(|leaf| plain.leaves.contains_key(&leaf)) {
                continue;
            }
            let newest = |stamp: fn(&Record) -> Stamp| plain.leaves.range(leaves.clone()).map(|(_, r)| stamp(r)).max();
            prop_assert_eq!(index.newest_in(slot, leaves.clone(), Tree::Chunks).unwrap(), newest(Record::newest));
            prop_assert_eq!(index.newest_in(slot, leaves.clone(), Tree::Digests).unwrap(), newest(Record::digests_stamp));
        }
        prop_assert_eq!(index.run_at(other, LeafIndex(LEAVES / 2)).unwrap(), neighbour);
    }
}
