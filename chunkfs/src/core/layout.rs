//! Chunk <-> path <-> inode: the tree of a disk is arithmetic.
//! Pure: no I/O, no table. What stands in the tree is the same as in chunkfs 0.8.
//!
//! ```text
//! chunk 0x12345    00/00/00/00/00/01/23/45     16 hex digits, two a level
//! level             1  2  3  4  5  6  7  8     0 is the root; 7 is a leaf, a directory of chunks; 8 a chunk
//!
//! inode  |0| slot: 10 bits | tree: 1 bit | 1 for the level, then the digits so far: 52 bits |
//! ```
//!
//! The last field is the number that the digits up to the level make, with a one in front of the widest such
//! number of that level: 51 bits for a chunk (2^63 bytes in chunks of 4096), 8 fewer for each level above. The
//! place of that one tells the level, so no two nodes of a disk share an inode, and none needs a table.

use super::geometry::{CHUNKS_PER_LEAF, ChunkIndex, Geometry, LeafIndex};
use std::fmt;
use std::ops::Range;

/// The level of a leaf: the digests tree has its files here, the chunk tree its last directories.
pub const LEAF_LEVEL: u8 = 7;
/// The level of a chunk file.
pub const CHUNK_LEVEL: u8 = 8;

/// The number that a disk has in its index for ever, a part of its inodes: 1 to 1023. 0 is the mount's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskSlot(u16);

impl DiskSlot {
    pub const MAX: DiskSlot = DiskSlot(1023);

    /// `None`: not from 1 to 1023.
    pub fn new(number: u64) -> Option<DiskSlot> {
        (1..=u64::from(Self::MAX.0)).contains(&number).then_some(DiskSlot(number as u16))
    }

    pub fn number(self) -> u16 {
        self.0
    }
}

/// Which of a disk's two trees: its chunks, or their digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tree {
    Chunks,
    Digests,
}

impl Tree {
    /// The level at which the tree has its files.
    pub fn file_level(self) -> u8 {
        match self {
            Tree::Chunks => CHUNK_LEVEL,
            Tree::Digests => LEAF_LEVEL,
        }
    }
}

/// A node of a tree: the digits of its path as one number, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    level: u8,
    prefix: u64,
}

impl Node {
    pub const ROOT: Node = Node { level: 0, prefix: 0 };

    pub fn of_chunk(chunk: ChunkIndex) -> Node {
        Node { level: CHUNK_LEVEL, prefix: chunk.0 }
    }

    pub fn of_leaf(leaf: LeafIndex) -> Node {
        Node { level: LEAF_LEVEL, prefix: leaf.0 }
    }

    /// 0 for the root to 8 for a chunk.
    pub fn level(self) -> u8 {
        self.level
    }

    /// The chunk, if the node is one.
    pub fn chunk(self) -> Option<ChunkIndex> {
        (self.level == CHUNK_LEVEL).then_some(ChunkIndex(self.prefix))
    }

    /// The leaf, if the node is one.
    pub fn leaf(self) -> Option<LeafIndex> {
        (self.level == LEAF_LEVEL).then_some(LeafIndex(self.prefix))
    }

    /// `None`: a chunk has no children.
    pub fn child(self, digits: u8) -> Option<Node> {
        (self.level < CHUNK_LEVEL)
            .then(|| Node { level: self.level + 1, prefix: self.prefix << 8 | u64::from(digits) })
    }

    /// The root is its own parent.
    pub fn parent(self) -> Node {
        Node { level: self.level.saturating_sub(1), prefix: self.prefix >> 8 }
    }

    /// The name in the parent directory.
    pub fn name(self) -> Name {
        Name::of((self.prefix & 0xff) as u8)
    }

    /// The leaves below the node, or the one that it is or stands in; not cut at the end of an image.
    pub fn leaves(self) -> Range<u64> {
        match self.level {
            CHUNK_LEVEL => self.prefix / CHUNKS_PER_LEAF..self.prefix / CHUNKS_PER_LEAF + 1,
            level => {
                let below = 8 * u32::from(LEAF_LEVEL - level);
                let at = |prefix: u64| prefix.checked_shl(below).unwrap_or(0);
                at(self.prefix)..at(self.prefix + 1)
            }
        }
    }

    /// Is there such a node in the tree of an image? The root always is.
    pub fn exists(self, geometry: &Geometry) -> bool {
        match self.level {
            0 => true,
            CHUNK_LEVEL => self.prefix < geometry.chunk_count(),
            _ => self.leaves().start < geometry.leaf_count(),
        }
    }

    /// How many children the node has in the tree of an image: their digits are 0 up to this. 0 for a chunk.
    pub fn child_count(self, geometry: &Geometry) -> u16 {
        let nodes_at_child_level = match self.level {
            CHUNK_LEVEL => return 0,
            LEAF_LEVEL => geometry.chunk_count(),
            level => {
                let below = 8 * u32::from(LEAF_LEVEL - 1 - level);
                match geometry.leaf_count() {
                    0 => 0,
                    leaves => ((leaves - 1) >> below) + 1,
                }
            }
        };
        nodes_at_child_level.saturating_sub(self.prefix << 8).min(256) as u16
    }

    /// `12/34/..`: the digits of each level, as a path below the root of the tree; empty for the root.
    pub fn path(self) -> String {
        (1..=self.level)
            .map(|level| Name::of((self.prefix >> (8 * (self.level - level))) as u8).as_str().to_owned())
            .collect::<Vec<_>>()
            .join("/")
    }
}

/// The name of a node: two lower case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name([u8; 2]);

impl Name {
    pub fn of(digits: u8) -> Name {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        Name([HEX[usize::from(digits >> 4)], HEX[usize::from(digits & 15)]])
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits are ASCII")
    }

    /// `None`: not two lower case hex digits.
    pub fn parse(name: &[u8]) -> Option<u8> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        match name {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        }
    }
}

/// An inode number of a mount, as `stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode(pub u64);

impl Inode {
    /// The root of a mount. FUSE wants 1.
    pub const MOUNT_ROOT: Inode = Inode(1);

    const SLOT_SHIFT: u32 = 53;
    const TREE_BIT: u64 = 1 << 52;
    const NUMBER: u64 = Self::TREE_BIT - 1;
    const CHUNK_BITS: u32 = 51;

    pub fn of(slot: DiskSlot, tree: Tree, node: Node) -> Inode {
        let tree = match tree {
            Tree::Chunks => 0,
            Tree::Digests => Self::TREE_BIT,
        };
        Inode(u64::from(slot.0) << Self::SLOT_SHIFT | tree | Self::number_of(node))
    }

    /// A plain file beside the disks or a directory of such, by a number that its name decides.
    pub fn of_file(number: FileNumber) -> Inode {
        Inode(Self::TREE_BIT | number.0)
    }

    /// What the inode stands for. `None`: nothing that this layout gives out.
    pub fn decode(self) -> Option<Target> {
        if self == Self::MOUNT_ROOT {
            return Some(Target::MountRoot);
        }
        let tree = if self.0 & Self::TREE_BIT == 0 { Tree::Chunks } else { Tree::Digests };
        match (DiskSlot::new(self.0 >> Self::SLOT_SHIFT), tree) {
            (Some(slot), tree) => {
                let node = Self::node_of(self.0 & Self::NUMBER)?;
                (node.level <= tree.file_level()).then_some(Target::Node(slot, tree, node))
            }
            (None, Tree::Digests) if self.0 >> Self::SLOT_SHIFT == 0 => {
                Some(Target::File(FileNumber(self.0 & Self::NUMBER)))
            }
            (None, _) => None,
        }
    }

    /// The widest number of digits that a level can have, in bits, for 2^51 chunks: 51, 43, 35, ... 3, then none.
    fn bits_of(level: u8) -> u32 {
        Self::CHUNK_BITS.saturating_sub(8 * u32::from(CHUNK_LEVEL - level))
    }

    fn number_of(node: Node) -> u64 {
        match node.level {
            0 => 1,
            1 => 2,
            level => {
                assert!(node.prefix < 1 << Self::bits_of(level));
                1 << Self::bits_of(level) | node.prefix
            }
        }
    }

    fn node_of(number: u64) -> Option<Node> {
        match number {
            1 => Some(Node::ROOT),
            2 => Some(Node { level: 1, prefix: 0 }),
            _ => {
                let bits = number.checked_ilog2()?;
                let level = (2..=CHUNK_LEVEL).find(|level| Self::bits_of(*level) == bits)?;
                Some(Node { level, prefix: number ^ 1 << bits })
            }
        }
    }
}

/// The number of a plain file, 52 bits, from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileNumber(u64);

impl FileNumber {
    /// A pure function of the name, so that a file keeps its inode for ever.
    pub fn of_name(name: &str) -> FileNumber {
        let hash = blake3::hash(name.as_bytes());
        let low = hash.as_bytes().first_chunk::<8>().expect("a hash has 32 bytes");
        FileNumber(u64::from_le_bytes(*low) & Inode::NUMBER)
    }
}

/// What an inode stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    MountRoot,
    /// A plain file, or a directory of plain files.
    File(FileNumber),
    Node(DiskSlot, Tree, Node),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::{ChunkSize, ImageLen};
    use super::*;
    use proptest::prelude::*;

    const CHUNKS: u64 = 1 << 51;

    fn any_slot() -> impl Strategy<Value = DiskSlot> {
        (1u64..=1023).prop_map(|n| DiskSlot::new(n).unwrap())
    }

    fn any_node() -> impl Strategy<Value = Node> {
        (0u8..=8, 0..CHUNKS)
            .prop_map(|(level, chunk)| Node { level, prefix: chunk >> (8 * (8 - u32::from(level))).min(63) })
    }

    #[test]
    fn chunk_0x12345_stands_where_chunkfs_has_always_put_it() {
        assert_eq!(Node::of_chunk(ChunkIndex(0x12345)).path(), "00/00/00/00/00/01/23/45");
        assert_eq!(Node::of_leaf(LeafIndex(0x123)).path(), "00/00/00/00/00/01/23");
        assert_eq!(Node::ROOT.path(), "");
    }

    #[test]
    fn inodes_keep_the_values_that_they_were_first_given() {
        let slot = DiskSlot::new(1).unwrap();
        let inode = |tree, node| Inode::of(slot, tree, node).0;
        assert_eq!(inode(Tree::Chunks, Node::ROOT), 1 << 53 | 1);
        assert_eq!(inode(Tree::Chunks, Node { level: 1, prefix: 0 }), 1 << 53 | 2);
        assert_eq!(inode(Tree::Chunks, Node::of_leaf(LeafIndex(5))), 1 << 53 | 1 << 43 | 5);
        assert_eq!(inode(Tree::Chunks, Node::of_chunk(ChunkIndex(5))), 1 << 53 | 1 << 51 | 5);
        assert_eq!(inode(Tree::Digests, Node::of_leaf(LeafIndex(5))), 1 << 53 | 1 << 52 | 1 << 43 | 5);
        assert_eq!(Inode::of_file(FileNumber::of_name("mail01.xml")).0, 5948657632689767);
    }

    #[test]
    fn the_children_of_a_node_are_counted_exactly() {
        let count = |chunks: u64, node: Node| {
            node.child_count(&Geometry::new(ImageLen::new(chunks * 4096).unwrap(), ChunkSize::MIN))
        };
        let leaf = Node::of_leaf(LeafIndex(1));
        for (chunks, node, expected) in [
            (0, Node::ROOT, 0),
            (1, Node::ROOT, 1),
            (257, Node::ROOT, 1),
            (256, leaf, 0),
            (257, leaf, 1),
            (511, leaf, 255),
            (512, leaf, 256),
            (513, leaf, 256),
            (257, leaf.parent(), 2),
            (65536, leaf.parent(), 256),
            (65537, leaf.parent(), 256),
            (65537, leaf.parent().parent(), 2),
        ] {
            assert_eq!(count(chunks, node), expected, "{chunks} chunks, node {node:?}");
        }
    }

    proptest! {
        #[test]
        fn path_chunk_and_inode_are_inverse(chunk in 0..CHUNKS, slot in any_slot()) {
            let node = Node::of_chunk(ChunkIndex(chunk));
            let walked = node.path().split('/').try_fold(Node::ROOT, |at, name| at.child(Name::parse(name.as_bytes())?));
            prop_assert_eq!(walked, Some(node));
            prop_assert_eq!(node.chunk(), Some(ChunkIndex(chunk)));
            prop_assert_eq!(Inode::of(slot, Tree::Chunks, node).decode(), Some(Target::Node(slot, Tree::Chunks, node)));
        }

        #[test]
        fn inodes_are_unique_over_disks_trees_and_levels(
            a in (any_slot(), any::<bool>(), any_node()), b in (any_slot(), any::<bool>(), any_node()),
        ) {
            let inode = |(slot, chunks, node): (DiskSlot, bool, Node)| {
                let tree = if chunks { Tree::Chunks } else { Tree::Digests };
                (node.level <= tree.file_level()).then(|| Inode::of(slot, tree, node))
            };
            if let (Some(left), Some(right)) = (inode(a), inode(b)) {
                prop_assert_eq!(left == right, a == b);
                prop_assert!(left.0 < 1 << 63);
                prop_assert_ne!(left, Inode::MOUNT_ROOT);
            }
        }

        #[test]
        fn every_inode_decodes_to_what_encodes_to_it_or_to_nothing(raw in any::<u64>()) {
            match Inode(raw).decode() {
                Some(Target::Node(slot, tree, node)) => prop_assert_eq!(Inode::of(slot, tree, node), Inode(raw)),
                Some(Target::File(number)) => prop_assert_eq!(Inode::of_file(number), Inode(raw)),
                Some(Target::MountRoot) => prop_assert_eq!(raw, 1),
                None => {}
            }
        }

        #[test]
        fn a_node_stands_among_the_children_of_its_parent(chunks in 1u64..1 << 40, pick in any::<u64>(), level in 1u8..=8) {
            let g = Geometry::new(ImageLen::new(chunks * 4096).unwrap(), ChunkSize::MIN);
            let node = Node { level, prefix: (pick % chunks) >> (8 * (8 - u32::from(level))).min(63) };
            prop_assert!(node.exists(&g));
            let digits = Name::parse(node.name().as_str().as_bytes()).unwrap();
            prop_assert!(u16::from(digits) < node.parent().child_count(&g));
            if let Some(chunk) = node.chunk() {
                prop_assert_eq!(node.leaves(), chunk.leaf().0..chunk.leaf().0 + 1);
            }
            let past = node.parent().child_count(&g);
            if past < 256 {
                prop_assert!(!node.parent().child(past as u8).unwrap().exists(&g));
            }
        }
    }
}
