//! The command line of `chunkfs`: its words, their meaning and their defaults. The man page is made from this, too.
//! Nothing is done here.

use crate::core::geometry::ChunkSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Show a disk image as a directory of chunk files with true change times, and do the reverse
#[derive(Debug, Parser)]
#[command(name = "chunkfs", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "The form of older versions works too: chunkfs CHUNKSIZE IMAGE MOUNTPOINT, and \
    unchunkfs CHUNKDIR MOUNTPOINT.\n\n\
    Exit status: 0 done, 1 failed and nothing left behind, 2 usage, 3 something is still to be undone, \
    4 busy, 6 verification found damage.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Tell more of what is done
    #[arg(long, global = true)]
    pub debug: bool,

    /// Tell errors only
    #[arg(long, short, global = true, conflicts_with = "debug")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show an image as a directory of chunks
    Mount(Mount),
    /// Show a directory of chunks as one image file
    Join(Join),
    /// Copy a directory of chunks to an image file or block device
    Restore(Restore),
    /// Check a directory of chunks against its digests, or against an image
    Verify(Verify),
    /// Tell what an index knows
    #[command(subcommand)]
    Index(Index),
    /// Tell how a mounted view is doing
    Status(StatusOf),
    /// End a view, and wait until its index is closed
    Umount(Umount),
    /// Write the man pages to a directory
    #[command(hide = true)]
    Man { directory: PathBuf },
    /// Write what bash, zsh and fish need to complete our words to a directory
    #[command(hide = true)]
    Completions { directory: PathBuf },
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct Mount {
    /// A raw image file, a block device, or an NBD export: nbd+unix:///EXPORT?socket=PATH
    #[arg(required_unless_present = "view")]
    pub image: Option<PathBuf>,

    /// An empty directory
    pub mountpoint: PathBuf,

    /// Remember in this file what the chunks held and when each changed; made when it is missing
    #[arg(long, value_name = "FILE")]
    pub index: Option<PathBuf>,

    /// Put the chunks into the directory NAME, and their digests into NAME.b3 beside it
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// The size of a chunk: a multiple of 4096 from 4K to 64M
    #[arg(long, visible_alias = "blocksize", value_name = "BYTES", default_value_t = ChunkSize::DEFAULT)]
    pub chunk_size: ChunkSize,

    /// Compare all chunks, even if the image's times say that it has not changed
    #[arg(long)]
    pub compare_all: bool,

    /// Show what a file of JSON describes: several disks, and plain files
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "index", "name", "chunk_size", "compare_all"])]
    pub view: Option<PathBuf>,

    #[command(flatten)]
    pub serving: Serving,
}

/// How something is mounted and served.
#[derive(Debug, Args)]
pub struct Serving {
    /// allow_other, uid=N, gid=N, mode=OCTAL, direct_io, kernel_cache; separated by commas
    #[arg(short = 'o', value_name = "OPTS", value_delimiter = ',')]
    pub options: Vec<String>,

    /// Stay in the foreground
    #[arg(long, short)]
    pub foreground: bool,

    /// Where the daemon writes its messages; otherwise to systemd's journal, if there is one
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Join {
    /// The directory that holds 00/
    pub chunkdir: PathBuf,
    /// An empty directory, in which the image appears
    pub mountpoint: PathBuf,
    /// The name of the file
    #[arg(long, value_name = "NAME", default_value = "image")]
    pub name: String,
    /// Read on where a chunk is not what its digest says
    #[arg(long)]
    pub no_verify: bool,
    /// The size of a chunk, where the chunks do not tell
    #[arg(long, value_name = "BYTES")]
    pub chunk_size: Option<ChunkSize>,
    #[command(flatten)]
    pub serving: Serving,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The directory that holds 00/
    pub chunkdir: PathBuf,
    /// A file that does not exist yet, or a block device
    pub target: PathBuf,
    /// Rewrite only what differs in an existing file or device
    #[arg(long)]
    pub in_place: bool,
    /// Replace an existing file
    #[arg(long, conflicts_with = "in_place")]
    pub force: bool,
    /// Do not compare the chunks with their digests
    #[arg(long)]
    pub no_verify: bool,
    /// The size of a chunk, where the chunks do not tell
    #[arg(long, value_name = "BYTES")]
    pub chunk_size: Option<ChunkSize>,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The directory that holds 00/; its digests are in the directory of that name with .b3
    pub chunkdir: PathBuf,
    /// Compare with this image, too
    #[arg(long, value_name = "IMAGE")]
    pub source: Option<PathBuf>,
    /// The size of a chunk, where the chunks do not tell
    #[arg(long, value_name = "BYTES")]
    pub chunk_size: Option<ChunkSize>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Index {
    /// Tell which disks and generations an index knows
    Show {
        index: PathBuf,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read all of an index and tell whether it is whole
    Check {
        index: PathBuf,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell which chunks have changed since a generation
    Diff {
        index: PathBuf,
        /// The disk, if the index knows several
        #[arg(long)]
        disk: Option<String>,
        /// Since this generation, or since a stamp: @SECONDS; otherwise since the generation before the last
        #[arg(long, value_name = "GENERATION")]
        since: Option<Since>,
        #[arg(long, value_enum, default_value_t = DiffFormat::Text)]
        format: DiffFormat,
    },
}

/// From when on a change counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    Generation(u64),
    /// What a view had as its stamp. Unlike a generation's number, it means the same to an index that was begun anew.
    Stamp(i64),
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Since, String> {
        let parsed = match text.strip_prefix('@') {
            Some(secs) => secs.parse().ok().map(Since::Stamp),
            None => text.parse().ok().map(Since::Generation),
        };
        parsed.ok_or_else(|| "neither the number of a generation nor @SECONDS".to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffFormat {
    /// Offset, length and path of each chunk
    Text,
    /// One object
    Json,
    /// Paths below the disk's directory, for rsync --files-from and tar --files-from
    FilesFrom,
    /// Paths below a mount that shows disks by their names: of all disks if none is named, with their digests
    ViewFiles,
}

#[derive(Debug, Args)]
pub struct StatusOf {
    pub mountpoint: PathBuf,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Umount {
    pub mountpoint: PathBuf,
    /// Take it out of the tree even if it is in use; it ends when it is used no more
    #[arg(long, short)]
    pub lazy: bool,
}
