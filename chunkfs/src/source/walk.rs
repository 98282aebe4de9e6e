//! Walks a chunk tree, or a tree of digests, in order, and names everything that is in it.
//! Nothing here reads a file. Memory is bounded by the eight levels, whatever somebody put into the tree.

use super::beneath::{Beneath, Fault, Kind};
use crate::core::changes::LeafSet;
use crate::core::geometry::CHUNKS_PER_LEAF;
use crate::core::layout::{Name, Node, Tree};
use rustix::fs::Dir;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// One more than the largest number that a chunk of an image can have: 8 EiB in chunks of 4 KiB.
pub const CHUNKS_MAX: u64 = (1 << 63) / 4096;

/// What stands in a tree.
#[derive(Debug)]
pub enum Entry {
    /// A regular file where the tree has its files.
    File { node: Node, len: u64 },
    /// Something else at a name of the tree: a link in the place of a chunk, a file in the place of a directory.
    Wrong { node: Node, kind: Kind },
    /// A name that the tree does not have. The path is below the root of the tree.
    Foreign { path: PathBuf, kind: Option<Kind> },
    /// What could not be looked at.
    Unreadable { node: Node, error: io::Error },
}

/// The walk. Foreign names come first in each directory, then its children in the order of their numbers.
#[derive(Debug)]
pub struct Walk<'a> {
    root: &'a Beneath,
    tree: Tree,
    stack: Vec<Level>,
}

/// A directory on the way: first it is read to its end, then its children are gone through.
#[derive(Debug)]
struct Level {
    node: Node,
    unread: Option<Dir>,
    children: LeafSet,
    next: usize,
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a Beneath, tree: Tree) -> io::Result<Walk<'a>> {
        let top = Level::of(root, Node::ROOT)?;
        Ok(Walk { root, tree, stack: vec![top] })
    }

    /// Reads on in a directory, up to the next name that is not the tree's.
    fn read_on(&mut self) -> Option<Entry> {
        let level = self.stack.last_mut()?;
        let directory = level.unread.as_mut()?;
        for entry in directory.by_ref() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    level.unread = None;
                    return Some(Entry::Unreadable { node: level.node, error: error.into() });
                }
            };
            let name = entry.file_name().to_bytes();
            match Name::parse(name).filter(|digits| child(level.node, *digits).is_some()) {
                Some(digits) => level.children.insert(digits.into()),
                None if name == b"." || name == b".." => {}
                None => {
                    let path = PathBuf::from(level.node.path()).join(OsStr::from_bytes(name));
                    let kind = self.root.kind(&path).ok().map(|(kind, _)| kind);
                    return Some(Entry::Foreign { path, kind });
                }
            }
        }
        level.unread = None;
        None
    }

    /// The next child of the directory: an entry, or a directory that the walk goes down into.
    fn step(&mut self) -> Option<Entry> {
        let level = self.stack.last_mut()?;
        let Some(digits) = level.children.iter().find(|digits| *digits >= level.next) else {
            self.stack.pop();
            return None;
        };
        level.next = digits + 1;
        let node = child(level.node, digits as u8).expect("only such children were put into the set");
        let is_file = node.level() == self.tree.file_level();
        match self.root.kind(node.path()) {
            Ok((Kind::File, len)) if is_file => Some(Entry::File { node, len }),
            Ok((Kind::Directory, _)) if !is_file => self.enter(node),
            Ok((kind, _)) => Some(Entry::Wrong { node, kind }),
            Err(fault) => Some(Entry::Unreadable { node, error: fault.into_io() }),
        }
    }

    fn enter(&mut self, node: Node) -> Option<Entry> {
        match Level::of(self.root, node) {
            Ok(level) => {
                self.stack.push(level);
                None
            }
            Err(error) => Some(Entry::Unreadable { node, error }),
        }
    }
}

impl Level {
    fn of(root: &Beneath, node: Node) -> io::Result<Level> {
        Ok(Level { node, unread: Some(list(root, node)?), children: LeafSet::EMPTY, next: 0 })
    }
}

impl Iterator for Walk<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        while !self.stack.is_empty() {
            if let Some(entry) = self.read_on().or_else(|| self.step()) {
                return Some(entry);
            }
        }
        None
    }
}

/// The last node of the tree that has a name at the level of files, whatever stands there.
///
/// Goes down by the largest names, and back up from a directory that turns out to have none.
pub fn last_file(root: &Beneath, tree: Tree) -> io::Result<Option<Node>> {
    fn descend(root: &Beneath, tree: Tree, node: Node) -> io::Result<Option<Node>> {
        if node.level() == tree.file_level() {
            return Ok(Some(node));
        }
        let mut children = LeafSet::EMPTY;
        if !matches!(kind_of(root, node), Ok((Kind::Directory, _))) {
            return Ok(None);
        }
        for entry in list(root, node)? {
            let digits = Name::parse(entry?.file_name().to_bytes());
            if let Some(digits) = digits.filter(|digits| child(node, *digits).is_some()) {
                children.insert(digits.into());
            }
        }
        let mut found = None;
        for digits in (0..CHUNKS_PER_LEAF as usize).rev().filter(|digits| children.contains(*digits)) {
            found = descend(root, tree, child(node, digits as u8).expect("put into the set above"))?;
            if found.is_some() {
                break;
            }
        }
        Ok(found)
    }
    descend(root, tree, Node::ROOT)
}

fn kind_of(root: &Beneath, node: Node) -> Result<(Kind, u64), Fault> {
    if node == Node::ROOT { Ok((Kind::Directory, 0)) } else { root.kind(node.path()) }
}

fn list(root: &Beneath, node: Node) -> io::Result<Dir> {
    Ok(Dir::new(root.directory(node.path()).map_err(Fault::into_io)?)?)
}

/// `None`: no image is long enough to have such a chunk.
fn child(node: Node, digits: u8) -> Option<Node> {
    node.child(digits).filter(|child| child.leaves().start < CHUNKS_MAX / CHUNKS_PER_LEAF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What a walk finds, a line each.
    fn found(root: &std::path::Path) -> Vec<String> {
        Walk::new(&Beneath::open(root).unwrap(), Tree::Chunks)
            .unwrap()
            .map(|entry| match entry {
                Entry::File { node, len } => format!("file {node} {len}"),
                Entry::Wrong { node, kind } => format!("{kind} at {node}"),
                Entry::Foreign { path, .. } => format!("foreign {}", path.display()),
                Entry::Unreadable { node, error } => format!("unreadable {node}: {error}"),
            })
            .collect()
    }

    fn last(root: &std::path::Path) -> Option<String> {
        last_file(&Beneath::open(root).unwrap(), Tree::Chunks).unwrap().map(Node::path)
    }

    #[test]
    fn everything_is_named_in_order() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        assert_eq!(found(root.path()), [""; 0]);
        assert_eq!(last(root.path()), None);
        for path in [
            "00/00/00/00/00/00/01/00",
            "00/00/00/00/00/00/00/ff",
            "00/00/00/00/00/00/00/0a",
            "00/00/00/00/00/00/00/0A",
            "00/00/00/00/00/00/02",
            "00/00/00/00/00/00/readme",
            "00/08/00/00/00/00/00/00",
        ] {
            put(path);
        }
        std::os::unix::fs::symlink("0a", root.path().join("00/00/00/00/00/00/00/0b")).unwrap();
        std::os::unix::fs::symlink("00", root.path().join("00/00/00/00/00/00/03")).unwrap();
        fs::create_dir(root.path().join("00/00/00/00/00/00/04")).unwrap();
        assert_eq!(
            found(root.path()),
            [
                "foreign 00/08",
                "foreign 00/00/00/00/00/00/readme",
                "foreign 00/00/00/00/00/00/00/0A",
                "file 00/00/00/00/00/00/00/0a 1",
                "a symbolic link at 00/00/00/00/00/00/00/0b",
                "file 00/00/00/00/00/00/00/ff 1",
                "file 00/00/00/00/00/00/01/00 1",
                "a regular file at 00/00/00/00/00/00/02",
                "a symbolic link at 00/00/00/00/00/00/03",
            ]
        );
        // Neither the empty directory nor the file nor the link in the place of one hides the last chunk.
        assert_eq!(last(root.path()).as_deref(), Some("00/00/00/00/00/00/01/00"));
    }
}
