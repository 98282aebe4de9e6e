//! A view as FUSE asks for it: replies and errno. Nothing is decided here.
//!
//! No handler blocks: where the view has no answer yet, the reply is parked with it. A panic is EIO.

mod linger;

use crate::core::layout::Inode;
use crate::view::{Attributes, Entry, Kind, Room, Seek, Totals, View, ViewError};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, Request,
};
pub use linger::Linger;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// What is shown does not change, so the kernel may remember it.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);
const NOT_AT_ALL: Duration = Duration::ZERO;
/// The largest read that is asked for at once.
const LARGEST_READ: u32 = 1 << 20;

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Straight from the source, in the sizes that the reader asks for. The image has a page cache of its own.
    Direct,
    /// By the kernel's page cache.
    Buffered,
}

/// What was asked of a mount.
#[derive(Debug, Default)]
pub struct Counters {
    pub reads: AtomicU64,
    pub bytes_read: AtomicU64,
    pub read_errors: AtomicU64,
}

/// Answers FUSE for a view.
#[derive(Debug)]
pub struct Adapter<V> {
    view: Arc<V>,
    caching: Caching,
    counters: Arc<Counters>,
    linger: Arc<Linger>,
    // After the view: when it is called, nobody holds that here any more.
    _on_end: OnEnd,
}

/// Called when it is dropped: the kernel asks no more.
struct OnEnd(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for OnEnd {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}

impl std::fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnd")
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<V: View> Adapter<V> {
    /// `on_end` is called when the kernel asks no more, and the view is not held here any more.
    pub fn new(
        view: Arc<V>,
        caching: Caching,
        counters: Arc<Counters>,
        linger: Arc<Linger>,
        on_end: impl FnOnce() + Send + Sync + 'static,
    ) -> Adapter<V> {
        Adapter { view, caching, counters, linger, _on_end: OnEnd(Some(Box::new(on_end))) }
    }
}

/// Asks the view, and answers now or when it can tell.
fn serve<V: View, R: Send + 'static, T>(
    view: &Arc<V>,
    reply: R,
    ask: impl Fn(&V) -> Result<T, ViewError> + Send + 'static,
    give: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
) {
    match guarded(|| ask(view)) {
        Err(ViewError::Wait(wait)) => {
            let again = Arc::clone(view);
            view.park(wait, Box::new(move || serve(&again, reply, ask, give)));
        }
        answer => give(reply, answer.map_err(|error| errno_of(&error))),
    }
}

/// A panic is the failure of one request, not of the mount.
fn guarded<T>(ask: impl FnOnce() -> Result<T, ViewError>) -> Result<T, ViewError> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| {
        Err(ViewError::Source(crate::source::SourceError::Damaged {
            what: "chunkfs".to_owned(),
            why: "a request made it panic; please report this".to_owned(),
        }))
    })
}

/// The one table of errors.
fn errno_of(error: &ViewError) -> Errno {
    match error {
        ViewError::NoEntry => Errno::ENOENT,
        ViewError::NotDirectory => Errno::ENOTDIR,
        ViewError::IsDirectory => Errno::EISDIR,
        ViewError::Nowhere => Errno::ENXIO,
        ViewError::Wait(_) => Errno::EAGAIN,
        ViewError::Source(_) | ViewError::Index(_) => {
            tracing::warn!("{error}");
            Errno::EIO
        }
    }
}

fn attr_of(attributes: &Attributes) -> FileAttr {
    let time = match u64::try_from(attributes.stamp.0) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs),
        Err(_) => UNIX_EPOCH - Duration::from_secs(attributes.stamp.0.unsigned_abs()),
    };
    FileAttr {
        ino: INodeNo(attributes.inode.0),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: type_of(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: attributes.block_size,
        flags: 0,
    }
}

fn type_of(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

fn lifetime_of(attributes: &Attributes) -> Duration {
    if attributes.settled { FOR_EVER } else { NOT_AT_ALL }
}

/// `.` and `..` come first in a directory.
const DOTS: [&str; 2] = [".", ".."];

/// Lists a directory into a reply. `add` returns whether there is room for more.
fn list<V: View, R: Send + 'static>(
    view: &Arc<V>,
    directory: Inode,
    from: u64,
    mut reply: R,
    add: impl Fn(&mut R, &Entry<'_>) -> Room + Send + 'static,
    end: impl FnOnce(R, Result<(), Errno>) + Send + 'static,
) {
    let mut added = 0;
    let listed = guarded(|| {
        let mut room = Room::Left;
        if from < DOTS.len() as u64 {
            let attributes = Attributes { settled: false, ..dots_of(directory) };
            for (at, name) in DOTS.iter().enumerate().skip(from as usize) {
                if room == Room::Left {
                    room = add(&mut reply, &Entry { name, attributes, next: at as u64 + 1 });
                    added += u64::from(room == Room::Left);
                }
            }
        }
        if room == Room::Full {
            return Ok(());
        }
        view.list(directory, from.saturating_sub(DOTS.len() as u64), &mut |entry| {
            let room = add(&mut reply, &Entry { next: entry.next + DOTS.len() as u64, ..entry });
            added += u64::from(room == Room::Left);
            room
        })
    });
    match listed {
        // What has been added is given; the rest is asked for again, and then waits.
        Err(ViewError::Wait(_)) if added > 0 => end(reply, Ok(())),
        Err(ViewError::Wait(wait)) => {
            let again = Arc::clone(view);
            view.park(wait, Box::new(move || list(&again, directory, from, reply, add, end)));
        }
        listed => end(reply, listed.map_err(|error| errno_of(&error))),
    }
}

/// The kernel takes only the type and number of these.
fn dots_of(directory: Inode) -> Attributes {
    Attributes {
        inode: directory,
        kind: Kind::Directory,
        size: 0,
        blocks: 0,
        stamp: crate::core::stamp::Stamp(0),
        mode: 0,
        uid: 0,
        gid: 0,
        nlink: 2,
        block_size: 4096,
        settled: false,
    }
}

impl<V: View> Filesystem for Adapter<V> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        // One flag that the kernel does not know would keep all of them from being set.
        let known = wanted & config.capabilities();
        config.add_capabilities(known).expect("only what the kernel offers is asked for");
        // The sizes are bounds: what the kernel would not take is left as it proposes.
        let _ = config.set_max_write(LARGEST_READ);
        let _ = config.set_max_readahead(LARGEST_READ);
        let _ = config.set_max_background(64);
        let _ = config.set_time_granularity(Duration::from_secs(1));
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        let ask = move |view: &V| view.lookup(Inode(parent.0), &name);
        serve(&self.view, reply, ask, |reply, answer| match answer {
            Ok(a) => reply.entry_with_ttls(&lifetime_of(&a), &FOR_EVER, &attr_of(&a), Generation(0)),
            Err(errno) => reply.error(errno),
        });
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        serve(
            &self.view,
            reply,
            move |view: &V| view.attributes(Inode(inode.0)),
            |reply, answer| match answer {
                Ok(a) => reply.attr(&lifetime_of(&a), &attr_of(&a)),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn open(&self, _request: &Request, _inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.caching {
            _ if flags.acc_mode() != OpenAccMode::O_RDONLY => reply.error(Errno::EROFS),
            Caching::Direct => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
                self.linger.a_moment();
            }
            // "Do not ask again": the kernel then opens files by itself and keeps its cache.
            Caching::Buffered => reply.error(Errno::ENOSYS),
        }
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(LARGEST_READ) as usize;
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        BUFFER.with_borrow_mut(|buffer| {
            match guarded(|| self.view.read_into(Inode(inode.0), offset, size, buffer)) {
                Ok(lent) => {
                    let bytes = lent.as_ref().map_or(&buffer[..], |lent| (**lent).as_ref());
                    let end = offset.saturating_add(bytes.len() as u64);
                    self.counters.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    reply.data(bytes);
                    drop(lent);
                    // A panic here has been answered already.
                    let _ = guarded(|| {
                        self.view.read_ahead(Inode(inode.0), end);
                        Ok(())
                    });
                    self.linger.a_moment();
                }
                Err(ViewError::Wait(_)) => self.read_later(Inode(inode.0), offset, size, reply),
                Err(error) => {
                    self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
                    reply.error(errno_of(&error));
                }
            }
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let to = match whence {
            3 => Seek::Data,
            4 => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        serve(
            &self.view,
            reply,
            move |view: &V| view.seek(Inode(inode.0), offset, to),
            |reply, answer| match answer {
                Ok(offset) => reply.offset(offset as i64),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let add = |reply: &mut ReplyDirectory, entry: &Entry<'_>| {
            let a = &entry.attributes;
            room_of(reply.add(INodeNo(a.inode.0), entry.next, type_of(a.kind), entry.name))
        };
        list(&self.view, Inode(inode.0), offset, reply, add, |reply, listed| match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let add = |reply: &mut ReplyDirectoryPlus, entry: &Entry<'_>| {
            let a = &entry.attributes;
            room_of(reply.add(
                INodeNo(a.inode.0),
                entry.next,
                entry.name,
                &lifetime_of(a),
                &attr_of(a),
                Generation(0),
            ))
        };
        list(&self.view, Inode(inode.0), offset, reply, add, |reply, listed| match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        let Totals { bytes, inodes } = self.view.totals();
        reply.statfs(bytes.div_ceil(u64::from(BLOCK)), 0, 0, inodes, 0, BLOCK, 255, BLOCK);
    }

    // To all of these the answer is the same: nothing can be written. The kernel gives it by itself as long as
    // the mount is read-only, which root can change.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: fuser::ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: fuser::ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: fuser::RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: fuser::ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: fuser::WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    // ENOSYS is remembered: the kernel says EOPNOTSUPP from then on, without asking again.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: fuser::ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: fuser::ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: fuser::ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

impl<V: View> Adapter<V> {
    /// A list of digests that is not known yet.
    fn read_later(&self, inode: Inode, offset: u64, size: usize, reply: ReplyData) {
        let ask = move |view: &V| {
            let mut bytes = vec![0; size];
            let count = view.read(inode, offset, &mut bytes)?;
            bytes.truncate(count);
            Ok(bytes)
        };
        serve(&self.view, reply, ask, |reply, answer| match answer {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }
}

fn room_of(full: bool) -> Room {
    if full { Room::Full } else { Room::Left }
}
