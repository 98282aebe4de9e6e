//! Disks from a backup to a new file, or over what is there.
//! Reads nothing outside of the backup, and tells no program a format that was not told to us.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use chunkfs::copy::{self, Mode, RestoreError};
use chunkfs::core::geometry::{ChunkSize, ImageLen};
use chunkfs::source::SourceError;
use chunkfs::source::chunks::{ChunksSource, Verification};
use chunkfs::source::image::ImageSource;
use chunkfs::source::shape::Known;
use chunkfs::watch::Watch;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::carry;
use crate::core::domain::Format;
use crate::core::restore::{Form, JOINED, Kept, Undo, Writing, partial_of};
use crate::core::units::Bytes;
use crate::host::Removal;
use crate::host::exec::{self, Echo, FeedError, Output};

use super::Ground;
use super::act::Failed;
use super::backup::Opened;
use super::expand;
use super::journal::Journal;

/// What the work is done with.
pub(super) struct Tools<'a> {
    pub(super) chunkfs: &'a Path,
    /// Where a view may be mounted.
    pub(super) dir: PathBuf,
    pub(super) watch: &'a dyn Watch,
}

/// When a file was last written to, in nanoseconds since 1970.
pub(super) fn modified_ns(path: &Path) -> Option<i64> {
    let found = fs::symlink_metadata(path).ok()?;
    found.mtime().checked_mul(1_000_000_000)?.checked_add(found.mtime_nsec())
}

/// One disk of several: the length of all is known to whoever watches.
pub(super) struct Part<'a>(pub(super) &'a dyn Watch);

impl Watch for Part<'_> {
    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}

/// How long a view of chunks may take until it can be read.
const VIEW_READY_WITHIN: Duration = Duration::from_secs(120);

/// A new file, on disk when this returns.
pub(super) fn make(
    ground: &dyn Ground,
    opened: &Opened,
    from: &Kept,
    (to, format): (&Path, &Format),
    journal: &mut Journal,
    tools: &Tools<'_>,
) -> Result<(), Failed> {
    match (from.form, format) {
        (Form::Chunks | Form::Raw, Format::Raw) | (Form::Qcow2, Format::Qcow2) => {
            copy_whole(opened, from, to, Mode::Replace, tools)
        }
        (Form::Compressed(_), Format::Raw) => expand::to_new_file(opened, from, to, tools.watch),
        (Form::Chunks, _) => {
            let point = tools.dir.join("joined");
            join(ground, &opened.path(&from.name), &point, journal, tools.chunkfs)?;
            let converted = convert(&point.join(JOINED), "raw", to, format, tools);
            unmount(ground, &point)?;
            // The program only knows that a read failed; why, its reading again tells.
            Ok(converted.map_err(|error| explained(opened, from, error))?)
        }
        (Form::Raw, _) => Ok(convert_file(opened, from, "raw", to, format, tools)?),
        (Form::Qcow2, _) => Ok(convert_file(opened, from, "qcow2", to, format, tools)?),
        (Form::Compressed(_), _) => {
            let raw = partial_of(to);
            expand::to_new_file(opened, from, &raw, tools.watch)?;
            let converted = convert(&raw, "raw", to, format, tools);
            ground.remove_file(&raw)?;
            Ok(converted?)
        }
    }
}

/// Over a device, or over what differs.
pub(super) fn rewrite(
    opened: &Opened,
    from: &Kept,
    path: &Path,
    writing: Writing,
    tools: &Tools<'_>,
) -> Result<(), Failed> {
    match (from.form, writing) {
        (Form::Chunks | Form::Raw, Writing::Whole) => copy_whole(opened, from, path, Mode::Replace, tools),
        (_, Writing::InPlace) => copy_whole(opened, from, path, Mode::InPlace, tools),
        (Form::Compressed(_), Writing::Whole) => expand::to_device(opened, from, path, tools.watch),
        (Form::Qcow2, Writing::Whole) => {
            let file = opened.file(&from.name)?;
            let words = ["convert", "-q", "-n", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
            qemu_img(&words, &path_of(&file), path, tools).map_err(|error| Failed {
                error,
                is_damage: false,
                is_unfinished: true,
            })
        }
    }
}

fn copy_whole(opened: &Opened, from: &Kept, to: &Path, mode: Mode, tools: &Tools<'_>) -> Result<(), Failed> {
    let watch = Part(tools.watch);
    let copied = match from.form {
        Form::Chunks => {
            let source = chunks(opened, from)?;
            let chunk_size = source.geometry().chunk_size();
            copy::restore(&source, chunk_size, to, mode, &watch)
        }
        _ => {
            let file = opened.file(&from.name)?;
            let source = image(&file)?;
            copy::restore(&source, ChunkSize::DEFAULT, to, mode, &watch)
        }
    };
    copied.map(drop).map_err(|error| failed(opened, from, error))
}

pub(super) fn chunks(opened: &Opened, from: &Kept) -> Result<ChunksSource> {
    let known = Known { len: from.bytes.and_then(|Bytes(bytes)| ImageLen::new(bytes)), ..Known::NOTHING };
    Ok(ChunksSource::open(&opened.path(&from.name), Verification::Digests, known)?)
}

/// The bytes of a file that is open, whatever its name leads to by now.
pub(super) fn image(file: &File) -> Result<ImageSource> {
    Ok(ImageSource::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))?)
}

fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

fn failed(opened: &Opened, from: &Kept, error: RestoreError) -> Failed {
    let is_unfinished = matches!(error, RestoreError::Unfinished { .. });
    let mut cause = &error;
    while let RestoreError::Unfinished { cause: inner, .. } = cause {
        cause = inner;
    }
    let is_damage = matches!(cause, RestoreError::Source(SourceError::Damaged { .. }));
    let error = anyhow!(error).context(format!("read {}", opened.path(&from.name).display()));
    Failed { error, is_damage, is_unfinished }
}

/// Reads the chunks once more for the words that a program between us and them has lost.
fn explained(opened: &Opened, from: &Kept, error: anyhow::Error) -> Failed {
    let read = chunks(opened, from).map(|source| {
        let options = carry::Options {
            disk: &from.name,
            compression: carry::Compression::None,
            bytes_per_sec: None,
            existing: carry::Existing::Refuse,
        };
        carry::digest(&source, &options, &chunkfs::watch::Unwatched)
    });
    match read {
        Ok(Err(cause)) if cause.is_damage() => {
            Failed { error: anyhow!(cause), is_damage: true, is_unfinished: false }
        }
        _ => Failed::from(error),
    }
}

/// The chunks as one file, verified as it is read.
pub(super) fn join(
    ground: &dyn Ground,
    chunks: &Path,
    point: &Path,
    journal: &mut Journal,
    chunkfs: &Path,
) -> Result<()> {
    journal.owe(ground, Undo::Unmount { point: point.to_owned() })?;
    ground.make_dir(point)?;
    // QEMU may be another user than we are.
    let (user, group) = ground.qemu_owner()?;
    let options = format!("allow_other,uid={user},gid={group}");
    let words = ["join", "--name", JOINED, "-o", &options]
        .map(OsStr::new)
        .into_iter()
        .chain([chunks.as_os_str(), point.as_os_str()]);
    let words = exec::arguments(words);
    exec::run(chunkfs, &words, VIEW_READY_WITHIN).with_context(|| format!("join {}", chunks.display()))
}

pub(super) fn unmount(ground: &dyn Ground, point: &Path) -> Result<Removal> {
    use chunkfs::mount::points;
    use rustix::mount::UnmountFlags;
    // Of a view of ours that is dead, too.
    if let Ok(absolute) = points::absolute(point)
        && points::at(&absolute)?.is_some()
    {
        rustix::mount::unmount(&absolute, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    ground.remove_dir(point)
}

fn convert_file(
    opened: &Opened,
    from: &Kept,
    format: &str,
    to: &Path,
    wanted: &Format,
    tools: &Tools<'_>,
) -> Result<()> {
    let file = opened.file(&from.name)?;
    convert(&path_of(&file), format, to, wanted, tools)
        .with_context(|| format!("convert {}", opened.path(&from.name).display()))
}

/// By `qemu-img`, to a file that we have made: it would follow a link in its place.
fn convert(from: &Path, format: &str, to: &Path, wanted: &Format, tools: &Tools<'_>) -> Result<()> {
    drop(new_file(to)?);
    let wanted = wanted.to_string();
    let words = ["convert", "-q", "-f", format, "-O", &wanted].map(OsStr::new);
    qemu_img(&words, from, to, tools)?;
    let made = File::open(to).and_then(|file| file.sync_all());
    made.with_context(|| format!("sync {}", to.display()))
}

/// Of the length of what lies below, which is declared to be raw.
pub(super) fn overlay(over: &Path, to: &Path, tools: &Tools<'_>) -> Result<()> {
    drop(new_file(to)?);
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new);
    qemu_img(&words, over, to, tools)
}

fn qemu_img(words: &[&OsStr], from: &Path, to: &Path, tools: &Tools<'_>) -> Result<()> {
    let words = exec::arguments(words.iter().copied().chain([from.as_os_str(), to.as_os_str()]));
    let mut program = exec::feed(Path::new("qemu-img"), &words, &[], Output::OurStderr, Echo::No)?;
    match program.finish(&|| tools.watch.is_stopped()) {
        Ok(()) => Ok(()),
        Err(FeedError::Stopped) => bail!("stopped"),
        Err(FeedError::Ended(why)) => bail!("qemu-img: {why}"),
    }
}

/// Takes the place of what a run that was cut off has left.
pub(super) fn new_file(path: &Path) -> Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(anyhow!(error).context(format!("remove {}", path.display())));
        }
        _ => {}
    }
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let made = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(path);
    made.with_context(|| format!("make {}", path.display()))
}

pub(super) fn copy_small(opened: &Opened, from: &str, to: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    opened.file(from)?.read_to_end(&mut bytes).with_context(|| format!("read {from}"))?;
    let mut file = new_file(to)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).with_context(|| format!("write {}", to.display()))
}

/// The same, of a file that belongs to another program.
pub(super) fn copy_owned(opened: &Opened, from: &str, to: &Path, owner: (u32, u32)) -> Result<()> {
    copy_small(opened, from, to)?;
    own(to, owner)
}

/// Gives a file or directory of ours to another user, who may be at work beside it already.
pub(super) fn own(path: &Path, (user, group): (u32, u32)) -> Result<()> {
    let giving = || format!("give {} to user {user}, group {group}", path.display());
    let file = open_itself(path).with_context(giving)?;
    fchown(&file, Some(user), Some(group)).with_context(giving)
}

/// Never what a link leads to.
fn open_itself(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Owner and mode of what it takes the place of: QEMU could read that.
pub(super) fn like(new: &Path, old: &Path) -> Result<()> {
    let was = fs::metadata(old).with_context(|| format!("look at {}", old.display()))?;
    let file = open_itself(new).with_context(|| format!("open {}", new.display()))?;
    fchown(&file, Some(was.uid()), Some(was.gid())).context("give it its owner")?;
    file.set_permissions(was.permissions()).context("give it its mode")
}

/// The name must be free.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot refuse to replace (NFS, some of FUSE's), so we look, and then do.
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to).with_context(|| renaming(from, to))?;
        }
        other => other.with_context(|| renaming(from, to))?,
    }
    sync_directory(to)
}

/// Both stay, each under the name of the other.
pub(super) fn exchange(one: &Path, other: &Path) -> Result<()> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .with_context(|| format!("exchange {} and {}", one.display(), other.display()))?;
    sync_directory(other)
}

fn renaming(from: &Path, to: &Path) -> String {
    format!("rename {} to {}", from.display(), to.display())
}

fn sync_directory(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("sync {}", dir.display()))
}
