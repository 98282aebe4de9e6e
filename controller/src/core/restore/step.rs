//! The steps of a restore, and what undoes each.
//! Carried out by `command::restore`; the texts here are what the user sees of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Kept, Writing};
use crate::core::domain::{DomainId, Format};
use crate::core::names::Target;
use crate::core::rewrite::NewDisk;

/// Which file or device it is, whatever leads to it: of a device its own number, as `st_rdev` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileId {
    File { device: u64, inode: u64 },
    Device { number: u64 },
}

impl FileId {
    /// The same file of one directory, also after a reboot: some file systems have another device number then.
    pub fn is_still(self, now: FileId) -> bool {
        match (self, now) {
            (FileId::File { inode: then, .. }, FileId::File { inode: now, .. }) => then == now,
            (then, now) => then == now,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A disk becomes a new file, under a name that says that it is not in use yet.
    MakeFile {
        target: Target,
        from: Kept,
        to: PathBuf,
        format: Format,
    },
    /// A small file of the backup, such as the UEFI variables.
    CopySmall {
        from: String,
        to: PathBuf,
    },
    /// Where libvirt keeps the state of a TPM, each directory below the one before.
    MakeTpmDir {
        dirs: Vec<PathBuf>,
    },
    /// A file of the state of a TPM, which is its emulator's.
    CopyTpm {
        from: String,
        to: PathBuf,
    },
    /// What the guest had in its memory, as a file that libvirt reads.
    MakeMemory {
        from: Kept,
        to: PathBuf,
    },
    /// The chunks of a disk are shown as one file.
    Join {
        target: Target,
        from: Kept,
        point: PathBuf,
    },
    /// A new image for what a guest writes, over one that is only read and is raw.
    Overlay {
        target: Target,
        over: PathBuf,
        to: PathBuf,
    },
    /// Starts a domain that libvirt forgets when it ends.
    Run {
        id: DomainId,
        xml: String,
    },
    /// A disk is written to a device, or over what differs in a file.
    Rewrite {
        target: Target,
        from: Kept,
        path: PathBuf,
        writing: Writing,
    },
    /// A file that was made gets its name; what had the name gets the other one.
    Name {
        path: PathBuf,
    },
    /// `before`: the definition that it takes the place of.
    Define {
        id: DomainId,
        xml: String,
        before: Option<String>,
    },
    Snapshot {
        id: DomainId,
        name: String,
        xml: String,
    },
    /// From here on nothing is taken back. Files that were replaced go.
    Keep,
    Start {
        id: DomainId,
    },
    Resume {
        id: DomainId,
        memory: PathBuf,
        disks: BTreeMap<Target, NewDisk>,
    },
}

/// What is written down before a step, and takes it back. Undoing twice is undoing once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// Of a name that only we give.
    Remove {
        path: PathBuf,
    },
    /// A view of chunks as one image, for a program that reads files.
    Unmount {
        point: PathBuf,
    },
    /// What a guest that ran from a backup has written.
    Discard {
        path: PathBuf,
    },
    /// A guest that runs from a backup ends at once.
    Destroy {
        id: DomainId,
    },
    RemoveDir {
        path: PathBuf,
    },
    /// A directory that we have made for one guest's own, with all that its TPM has written there.
    DiscardTree {
        path: PathBuf,
    },
    /// The file `made` gives the name back, to the file that had it or to none.
    Unname {
        path: PathBuf,
        made: FileId,
        before: Option<FileId>,
        /// When `made` was last written to, in nanoseconds since 1970. None: the journal is older than this.
        #[serde(default)]
        modified_ns: Option<i64>,
    },
    /// Only while it is off.
    Undefine {
        id: DomainId,
    },
    Redefine {
        id: DomainId,
        xml: String,
    },
}

impl Undo {
    /// Also once what was made is kept: names and views that are needed no more.
    pub fn goes_when_kept(&self) -> bool {
        matches!(self, Undo::Remove { .. } | Undo::Unmount { .. } | Undo::RemoveDir { .. })
    }
}

/// What a file is called until it is in use. Nobody else's file is called so.
pub fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::MakeFile { target, from, to, format } => {
                write!(
                    f,
                    "restore {target} from {} ({}) to {} ({format})",
                    from.name,
                    from.form,
                    to.display()
                )
            }
            Step::MakeTpmDir { dirs } => match dirs.last() {
                Some(dir) => write!(f, "make {} for the TPM", dir.display()),
                None => f.write_str("make no directory for the TPM"),
            },
            Step::CopySmall { from, to } | Step::CopyTpm { from, to } => {
                write!(f, "copy {from} to {}", to.display())
            }
            Step::MakeMemory { from, to } => {
                write!(f, "put the memory from {} to {}", from.name, to.display())
            }
            Step::Join { target, from, .. } => write!(f, "show {target} from {} as one file", from.name),
            Step::Overlay { target, to, .. } => write!(f, "let {target} be written to {}", to.display()),
            Step::Run { id, .. } => write!(f, "start {id}, for as long as it runs"),
            Step::Rewrite { target, from, path, writing: Writing::Whole } => {
                write!(f, "write {target} from {} ({}) over {}", from.name, from.form, path.display())
            }
            Step::Rewrite { target, from, path, writing: Writing::InPlace } => {
                write!(f, "write what differs of {target} from {} over {}", from.name, path.display())
            }
            Step::Name { path } => write!(f, "give {} its name", path.display()),
            Step::Define { id, before: None, .. } => write!(f, "define {id}"),
            Step::Define { id, before: Some(_), .. } => {
                write!(f, "define {id} in the place of what it is now")
            }
            Step::Snapshot { id, name, .. } => write!(f, "tell libvirt of the snapshot {name} of {id}"),
            Step::Keep => f.write_str("keep it all"),
            Step::Start { id } => write!(f, "start {id}"),
            Step::Resume { id, .. } => write!(f, "resume {id} from its saved memory"),
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undo::Remove { path } => write!(f, "remove {}", path.display()),
            Undo::Unmount { point } => write!(f, "unmount {}", point.display()),
            Undo::Unname { path, before: None, .. } => write!(f, "remove {}", path.display()),
            Undo::Unname { path, before: Some(_), .. } => {
                write!(f, "put back what was at {}", path.display())
            }
            Undo::Discard { path } => write!(f, "remove {}", path.display()),
            Undo::Destroy { id } => write!(f, "end {id}"),
            Undo::RemoveDir { path } | Undo::DiscardTree { path } => write!(f, "remove {}", path.display()),
            Undo::Undefine { id } => write!(f, "undefine {id}"),
            Undo::Redefine { id, .. } => write!(f, "define {id} as it was"),
        }
    }
}
