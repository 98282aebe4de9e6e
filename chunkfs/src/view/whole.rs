//! A whole mount: one disk at its root, or several disks with their digests and plain files beside them.
//! Finds who answers for an inode; what a disk shows is the disk's job.

use super::disk::{DIRECTORY_SIZE, Disk, NodeFacts};
use super::reads::Reads;
use super::{Attributes, Entry, Kind, Room, Seek, Totals, View, ViewError, Wait};
use crate::core::layout::{DiskSlot, FileNumber, Inode, Node, Target, Tree};
use crate::core::stamp::Stamp;
use crate::resolve::{Resolver, Retry};
use crate::source::{Lent, Source};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Whose the files are, and who may read them. Never the image's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Of files; directories may be entered by whoever may read.
    pub mode: u16,
}

impl Owner {
    pub(super) fn mode_of(self, kind: Kind) -> u16 {
        match kind {
            Kind::File => self.mode,
            Kind::Directory => self.mode | (self.mode & 0o444) >> 2,
        }
    }
}

/// What stands at the root of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The chunk tree of the only disk, as chunkfs has always shown it.
    Bare,
    /// `<disk>/`, `<disk>.b3/` for each, and the plain files, some of them in directories of their own.
    Named,
}

/// A file beside the disks: the domain's XML, its NVRAM.
pub struct PlainFile {
    /// `mail01.xml`, or in a directory that is there for it, `mail01.tpm/tpm2-00.permall`.
    pub name: String,
    pub source: Arc<dyn Source>,
    pub stamp: Stamp,
}

/// Everything below one mount point.
pub struct WholeView {
    disks: Vec<Disk>,
    files: Vec<PlainFile>,
    layout: Layout,
    owner: Owner,
    resolver: Option<Arc<Resolver>>,
    reads: Arc<Reads>,
    /// Directories of plain files.
    folders: Vec<Folder>,
    /// What stands at a named root, in this order.
    root: Vec<(String, Target)>,
}

/// A directory of plain files, which has files and nothing else.
struct Folder {
    number: FileNumber,
    /// Places in the list of files.
    files: Vec<usize>,
}

/// The names in a mount are not all different, or not all names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "{0:?} cannot be the name of a disk or file: it must not be empty, \".\" or \"..\", be longer than 250 bytes, or have a slash, but for one in the name of a file"
    )]
    Name(String),
    #[error("there are two of {0:?}")]
    Twice(String),
}

/// Can disks and files of these names stand beside each other?
pub fn check_names<'a>(
    disks: impl Iterator<Item = &'a str>,
    files: impl Iterator<Item = &'a str>,
) -> Result<(), LayoutError> {
    let trees = disks.flat_map(|name| [name.to_owned(), format!("{name}.b3")]).map(|name| (name, None));
    let files: Vec<&str> = files.collect();
    let mut folders: Vec<&str> = files.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
    folders.sort_unstable();
    folders.dedup();
    let numbered = |name: &str| (name.to_owned(), Some(FileNumber::of_name(name)));
    let all: Vec<(String, Option<FileNumber>)> =
        trees.chain(folders.into_iter().map(numbered)).chain(files.into_iter().map(numbered)).collect();
    for (at, (name, number)) in all.iter().enumerate() {
        // A plain file may stand in a directory, and no deeper.
        let parts: Vec<&str> = match number {
            Some(_) => name.splitn(2, '/').collect(),
            None => vec![name],
        };
        if !parts.into_iter().all(is_name) {
            return Err(LayoutError::Name(name.clone()));
        }
        if all[..at].iter().any(|(other, taken)| other == name || (number.is_some() && taken == number)) {
            return Err(LayoutError::Twice(name.clone()));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) && name.len() <= 253
}

impl WholeView {
    pub fn new(
        disks: Vec<Disk>,
        files: Vec<PlainFile>,
        layout: Layout,
        owner: Owner,
        resolver: Option<Arc<Resolver>>,
    ) -> Result<WholeView, LayoutError> {
        assert!(
            layout == Layout::Named || (disks.len() == 1 && files.is_empty()),
            "a bare view is of one disk"
        );
        let trees = disks.iter().flat_map(|disk| {
            [(disk.name.clone(), Tree::Chunks), (format!("{}.b3", disk.name), Tree::Digests)]
                .map(|(name, tree)| (name, Target::Node(disk.slot, tree, Node::ROOT)))
        });
        let mut root: Vec<(String, Target)> = trees.collect();
        let mut folders: Vec<Folder> = Vec::new();
        for (place, file) in files.iter().enumerate() {
            let name = file.name.split_once('/').map_or(file.name.as_str(), |(folder, _)| folder);
            let number = FileNumber::of_name(name);
            if name.len() < file.name.len() {
                if let Some(folder) = folders.iter_mut().find(|folder| folder.number == number) {
                    folder.files.push(place);
                    continue;
                }
                folders.push(Folder { number, files: vec![place] });
            }
            root.push((name.to_owned(), Target::File(number)));
        }
        check_names(
            disks.iter().map(|disk| disk.name.as_str()),
            files.iter().map(|file| file.name.as_str()),
        )?;
        let reads = Arc::new(Reads::new(disks.iter().map(Disk::geometry)));
        Ok(WholeView { disks, files, layout, owner, resolver, reads, folders, root })
    }

    /// Which chunks were read, of the disks in the order in which they were given.
    pub fn reads(&self) -> &Arc<Reads> {
        &self.reads
    }

    fn disk(&self, slot: DiskSlot) -> Result<&Disk, ViewError> {
        Ok(self.placed_disk(slot)?.1)
    }

    /// A disk and its place among the disks.
    fn placed_disk(&self, slot: DiskSlot) -> Result<(usize, &Disk), ViewError> {
        self.disks.iter().enumerate().find(|(_, disk)| disk.slot == slot).ok_or(ViewError::NoEntry)
    }

    fn file(&self, number: FileNumber) -> Result<&PlainFile, ViewError> {
        self.files.iter().find(|file| FileNumber::of_name(&file.name) == number).ok_or(ViewError::NoEntry)
    }

    fn folder(&self, number: FileNumber) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.number == number)
    }

    /// The plain files in a directory, each with its name in there.
    fn within<'a>(&'a self, folder: &'a Folder) -> impl Iterator<Item = (&'a str, &'a PlainFile)> {
        let files = folder.files.iter().map(|place| &self.files[*place]);
        files.filter_map(|file| Some((file.name.split_once('/')?.1, file)))
    }

    /// What an inode is, if it is in this view.
    fn target(&self, inode: Inode) -> Result<Target, ViewError> {
        let target = inode.decode().ok_or(ViewError::NoEntry)?;
        match (target, self.layout) {
            (Target::MountRoot, Layout::Bare) => {
                Ok(Target::Node(self.disks[0].slot, Tree::Chunks, Node::ROOT))
            }
            (Target::Node(_, Tree::Digests, _), Layout::Bare) => Err(ViewError::NoEntry),
            (Target::Node(slot, tree, node), _) if self.disk(slot)?.exists(tree, node) => Ok(target),
            (Target::Node(..), _) => Err(ViewError::NoEntry),
            _ => Ok(target),
        }
    }

    fn inode(&self, target: Target) -> Inode {
        match (target, self.layout) {
            (Target::MountRoot, _) | (Target::Node(_, _, Node::ROOT), Layout::Bare) => Inode::MOUNT_ROOT,
            (Target::Node(slot, tree, node), _) => Inode::of(slot, tree, node),
            (Target::File(number), _) => Inode::of_file(number),
        }
    }

    fn attributes_of(&self, target: Target) -> Result<Attributes, ViewError> {
        let facts = match target {
            Target::MountRoot => self.root_facts(self.newest_at_root()?),
            Target::File(number) => match self.folder(number) {
                Some(folder) => directory_facts(self.within(folder).map(|(_, file)| file.stamp).max(), 2),
                None => file_facts(self.file(number)?),
            },
            Target::Node(slot, tree, node) => self.disk(slot)?.facts(tree, node)?,
        };
        Ok(self.attributes_from(target, facts, true))
    }

    /// As `attributes_of`, but without waiting for the stamp of a directory.
    fn attributes_at_once(&self, target: Target) -> Result<Attributes, ViewError> {
        match (self.attributes_of(target), target) {
            (Err(ViewError::Wait(_)), Target::Node(slot, tree, node)) if !Disk::is_file(tree, node) => {
                Ok(self.attributes_from(target, self.disk(slot)?.unsettled_facts(tree, node), false))
            }
            (attributes, _) => attributes,
        }
    }

    fn attributes_from(&self, target: Target, facts: NodeFacts, settled: bool) -> Attributes {
        let block_size = match (facts.kind, target) {
            // So that one system call lists a leaf.
            (Kind::Directory, _) => 128 << 10,
            (Kind::File, Target::Node(_, Tree::Chunks, _)) => self
                .disks
                .first()
                .map_or(4096, |disk| disk.geometry().chunk_size().bytes().min(1 << 20) as u32),
            _ => 4096,
        };
        Attributes {
            inode: self.inode(target),
            kind: facts.kind,
            size: facts.size,
            blocks: facts.blocks,
            stamp: facts.stamp,
            mode: self.owner.mode_of(facts.kind),
            uid: self.owner.uid,
            gid: self.owner.gid,
            nlink: facts.nlink,
            block_size,
            settled,
        }
    }

    fn root_facts(&self, stamp: Stamp) -> NodeFacts {
        let directories = self.disks.len() as u32 * 2 + self.folders.len() as u32;
        directory_facts(Some(stamp), 2 + directories)
    }

    fn newest_at_root(&self) -> Result<Stamp, ViewError> {
        let mut newest = self.files.iter().map(|file| file.stamp).max();
        let mut waiting = None;
        for disk in &self.disks {
            for tree in [Tree::Chunks, Tree::Digests] {
                match disk.facts(tree, Node::ROOT) {
                    Ok(facts) => newest = newest.max(Some(facts.stamp)),
                    // No chunk can become newer than this generation.
                    Err(ViewError::Wait(wait)) => {
                        waiting = Some((wait, disk.unsettled_facts(tree, Node::ROOT).stamp));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        match waiting {
            // Nobody has to wait for a scan where a file is newer than all that it can find.
            Some((wait, bound)) if newest < Some(bound) => Err(ViewError::Wait(wait)),
            _ => Ok(newest.unwrap_or(Stamp(0))),
        }
    }

    /// The target of a name in a directory.
    fn child(&self, parent: Target, name: &OsStr) -> Result<Target, ViewError> {
        match parent {
            Target::File(number) => {
                let folder = self.folder(number).ok_or(ViewError::NotDirectory)?;
                let found = self.within(folder).find(|(known, _)| known.as_bytes() == name.as_bytes());
                let (_, file) = found.ok_or(ViewError::NoEntry)?;
                Ok(Target::File(FileNumber::of_name(&file.name)))
            }
            Target::MountRoot => {
                let found = self.root.iter().find(|(known, _)| known.as_bytes() == name.as_bytes());
                found.map(|(_, target)| *target).ok_or(ViewError::NoEntry)
            }
            Target::Node(_, tree, node) if Disk::is_file(tree, node) => Err(ViewError::NotDirectory),
            Target::Node(slot, tree, node) => {
                let child = self.disk(slot)?.child(tree, node, name.as_bytes()).ok_or(ViewError::NoEntry)?;
                Ok(Target::Node(slot, tree, child))
            }
        }
    }

    fn list_root(&self, from: u64, each: &mut dyn FnMut(Entry<'_>) -> Room) -> Result<(), ViewError> {
        for (at, (name, target)) in self.root.iter().enumerate().skip(from as usize) {
            let entry = Entry { name, attributes: self.attributes_at_once(*target)?, next: at as u64 + 1 };
            if each(entry) == Room::Full {
                break;
            }
        }
        Ok(())
    }

    fn list_folder(
        &self,
        folder: &Folder,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Room,
    ) -> Result<(), ViewError> {
        for (at, (name, file)) in self.within(folder).enumerate().skip(from as usize) {
            let attributes = self.attributes_of(Target::File(FileNumber::of_name(&file.name)))?;
            if each(Entry { name, attributes, next: at as u64 + 1 }) == Room::Full {
                break;
            }
        }
        Ok(())
    }

    fn list_node(
        &self,
        (slot, tree, node): (DiskSlot, Tree, Node),
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Room,
    ) -> Result<(), ViewError> {
        let disk = self.disk(slot)?;
        let chunks = match (tree, node.leaf()) {
            (Tree::Chunks, Some(leaf)) => Some(disk.chunks_of(leaf)?),
            _ => None,
        };
        for digits in from..disk.child_count(node) {
            let child = node.child(digits as u8).expect("a directory has children");
            let target = Target::Node(slot, tree, child);
            let attributes = match &chunks {
                Some(facts_of) => self.attributes_from(target, facts_of(digits as usize)?, true),
                None => self.attributes_at_once(target)?,
            };
            let name = child.name();
            if each(Entry { name: name.as_str(), attributes, next: digits + 1 }) == Room::Full {
                break;
            }
        }
        Ok(())
    }
}

impl View for WholeView {
    fn lookup(&self, parent: Inode, name: &OsStr) -> Result<Attributes, ViewError> {
        self.attributes_at_once(self.child(self.target(parent)?, name)?)
    }

    fn attributes(&self, inode: Inode) -> Result<Attributes, ViewError> {
        self.attributes_of(self.target(inode)?)
    }

    fn list(
        &self,
        directory: Inode,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Room,
    ) -> Result<(), ViewError> {
        match self.target(directory)? {
            Target::MountRoot => self.list_root(from, each),
            Target::Node(_, tree, node) if Disk::is_file(tree, node) => Err(ViewError::NotDirectory),
            Target::Node(slot, tree, node) => self.list_node((slot, tree, node), from, each),
            Target::File(number) => {
                self.list_folder(self.folder(number).ok_or(ViewError::NotDirectory)?, from, each)
            }
        }
    }

    fn read(&self, file: Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, ViewError> {
        match self.target(file)? {
            Target::MountRoot => Err(ViewError::IsDirectory),
            Target::Node(slot, tree, node) => {
                let (place, disk) = self.placed_disk(slot)?;
                let count = disk.read(tree, node, offset, buffer)?;
                if let (Tree::Chunks, Some(chunk), 1..) = (tree, node.chunk(), count) {
                    self.reads.note(place, chunk);
                }
                Ok(count)
            }
            Target::File(number) if self.folder(number).is_some() => Err(ViewError::IsDirectory),
            Target::File(number) => {
                let source = &self.file(number)?.source;
                let left = source.len().bytes().saturating_sub(offset);
                let count = left.min(buffer.len() as u64) as usize;
                source.read_at(offset, &mut buffer[..count])?;
                Ok(count)
            }
        }
    }

    fn read_into(
        &self,
        file: Inode,
        offset: u64,
        size: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Lent>, ViewError> {
        match self.target(file)? {
            Target::Node(slot, Tree::Chunks, node) if node.chunk().is_some() => {
                let chunk = node.chunk().expect("the guard has seen one");
                let (place, disk) = self.placed_disk(slot)?;
                let lent = disk.read_chunk_into(chunk, offset, size, buffer)?;
                if lent.is_some() || !buffer.is_empty() {
                    self.reads.note(place, chunk);
                }
                Ok(lent)
            }
            _ => {
                buffer.resize(size, 0);
                let count = self.read(file, offset, buffer)?;
                buffer.truncate(count);
                Ok(None)
            }
        }
    }

    fn read_ahead(&self, file: Inode, end: u64) {
        if let Ok(Target::Node(slot, Tree::Chunks, node)) = self.target(file)
            && let (Ok(disk), Some(chunk)) = (self.disk(slot), node.chunk())
        {
            disk.read_ahead(chunk, end);
        }
    }

    fn seek(&self, file: Inode, offset: u64, to: Seek) -> Result<u64, ViewError> {
        match self.target(file)? {
            Target::MountRoot => Err(ViewError::IsDirectory),
            Target::Node(_, tree, node) if !Disk::is_file(tree, node) => Err(ViewError::IsDirectory),
            Target::Node(slot, tree, node) => self.disk(slot)?.seek(tree, node, offset, to),
            Target::File(number) if self.folder(number).is_some() => Err(ViewError::IsDirectory),
            Target::File(number) => {
                let size = self.file(number)?.source.len().bytes();
                match (offset < size, to) {
                    (false, _) => Err(ViewError::Nowhere),
                    (true, Seek::Data) => Ok(offset),
                    (true, Seek::Hole) => Ok(size),
                }
            }
        }
    }

    fn totals(&self) -> Totals {
        let trees = [Tree::Chunks, Tree::Digests];
        let shown = if self.layout == Layout::Bare { &trees[..1] } else { &trees[..] };
        let inodes = self.disks.iter().flat_map(|disk| shown.iter().map(|tree| disk.inode_count(*tree)));
        let root = u64::from(self.layout == Layout::Named);
        let files = self.files.iter().map(|file| file.source.len().bytes());
        let disks = self.disks.iter().map(|disk| disk.geometry().image_len().bytes());
        Totals {
            bytes: disks.chain(files).fold(0, u64::saturating_add),
            inodes: root + inodes.sum::<u64>() + (self.files.len() + self.folders.len()) as u64,
        }
    }

    fn park(&self, wait: Wait, retry: Retry) {
        match &self.resolver {
            Some(resolver) => resolver.park(wait.disk, wait.leaves, retry),
            None => retry(),
        }
    }
}

fn directory_facts(stamp: Option<Stamp>, nlink: u32) -> NodeFacts {
    NodeFacts {
        kind: Kind::Directory,
        size: DIRECTORY_SIZE,
        blocks: DIRECTORY_SIZE / 512,
        stamp: stamp.unwrap_or(Stamp(0)),
        nlink,
    }
}

fn file_facts(file: &PlainFile) -> NodeFacts {
    let size = file.source.len().bytes();
    NodeFacts { kind: Kind::File, size, blocks: size.div_ceil(512), stamp: file.stamp, nlink: 1 }
}

impl std::fmt::Debug for PlainFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainFile")
            .field("name", &self.name)
            .field("stamp", &self.stamp)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for WholeView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeView")
            .field("layout", &self.layout)
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_may_stand_in_directories_of_their_own_one_level_deep() {
        let check = |files: &[&str]| check_names(["a"].into_iter(), files.iter().copied());
        for fine in [&["a.xml", "t/x", "t/y", "u/x"][..], &["t/x.b3"], &[]] {
            assert_eq!(check(fine), Ok(()), "{fine:?}");
        }
        for name in ["t/", "/x", "t/../x", "t/x/y", "../x", "t/..", ".", ""] {
            assert_eq!(
                check(&[name]),
                Err(LayoutError::Name(name.to_owned())).or_else(of_its_folder(name)),
                "{name:?}"
            );
        }
        for (files, twice) in
            [(&["t", "t/x"][..], "t"), (&["t/x", "t/x"], "t/x"), (&["a/x"], "a"), (&["a.b3/x"], "a.b3")]
        {
            assert_eq!(check(files), Err(LayoutError::Twice(twice.to_owned())), "{files:?}");
        }
    }

    /// A directory of no name is found before the file in it.
    fn of_its_folder(name: &str) -> impl Fn(LayoutError) -> Result<(), LayoutError> + '_ {
        move |error| match name.split_once('/') {
            Some((folder, _)) if !is_name(folder) => Err(LayoutError::Name(folder.to_owned())),
            _ => Err(error),
        }
    }
}
