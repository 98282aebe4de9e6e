//! The command line of `virt-backup`: its words, their meaning and their defaults. The man pages are made from this, too.
//! Nothing is done here.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use virt_backup::core::names::{Places, Target};
use virt_backup::core::options::{self, ChunkSize, JobLimit, MethodChoice, Quiesce, Tracking};

/// Back up running libvirt guests with the backup tools you already trust
#[derive(Debug, Parser)]
#[command(name = "virt-backup", version, arg_required_else_help = true, max_term_width = 100)]
#[command(
    after_help = "The spelling of version 0.2 works too: --action=chunkmount --vm=a,b, --cleanup, --unlock.\n\n\
    Exit status: 0 done, 1 failed and nothing left behind, 2 usage, 3 something is still owed: run cleanup, 4 busy, \
    5 some of several VMs failed."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What all commands take.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where the views appear, each under the name of its VM. Must exist
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/libvirt/backup")]
    pub(crate) backupdir: PathBuf,

    /// Where the lock files are; the backup directory unless told otherwise
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) lockdir: Option<PathBuf>,

    /// What must survive a reboot: journals of jobs, and what each chunk last held
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/virt-backup")]
    pub(crate) statedir: PathBuf,

    /// Where the guests are; the second is used for a VM that is active there and not on the first
    #[arg(
        long,
        global = true,
        value_name = "URI[,URI2]",
        value_delimiter = ',',
        default_value = "qemu:///system"
    )]
    pub(crate) connect: Vec<String>,

    /// Tell more of what is done
    #[arg(long, global = true)]
    pub(crate) debug: bool,

    /// Tell errors only
    #[arg(long, short, global = true, conflicts_with = "debug")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the disks of VMs as chunks below the backup directory, as of now; returns when they can be read
    Chunkmount(Chunkmount),
    /// Take back whatever is left of a job, however it ended
    Cleanup(Cleanup),
    /// Remove the lock of a VM, and nothing else
    Unlock(Vms),
    /// Show the disks of a VM, run a command, and clean up; ends with the status of the command
    Run(Run),
    /// Tell which jobs there are and what is owed
    Status(Report),
    /// Tell which VMs there are
    List(Report),
    /// Remove our checkpoint and index of VMs: the next backup starts afresh
    Forget(Vms),
    /// End a backup job and leave the rest to cleanup: what a view calls when the space for it runs short
    #[command(hide = true)]
    EndBackup { uuid: String, socket: PathBuf },
    /// Write the man pages to a directory
    #[command(hide = true)]
    Man { directory: PathBuf },
}

/// Which VMs are meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct Vms {
    /// Names or UUIDs
    #[arg(value_name = "VM")]
    names: Vec<String>,

    /// The same, separated by commas
    #[arg(long = "vm", value_name = "VM", value_delimiter = ',')]
    more: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Chunkmount {
    #[command(flatten)]
    pub(crate) vms: Vms,
    #[command(flatten)]
    pub(crate) job: Job,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Go on with the next VM after one that failed; this is always so
    #[arg(long, hide = true)]
    keep_going: bool,
}

/// How a point in time is had and shown.
#[derive(Clone, Debug, Args)]
pub(crate) struct Job {
    /// Leave out disks, by target: vda,hdb
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', value_parser = target)]
    exclude: Vec<Target>,

    /// The size of a chunk: a multiple of 4096 from 4K to 64M. Fixed for a VM once it was backed up
    #[arg(long, value_name = "BYTES", default_value = "256K", value_parser = ChunkSize::from_str)]
    blocksize: ChunkSize,

    /// How many jobs may be alive at once on this host
    #[arg(long, value_name = "N")]
    max_backups: Option<NonZeroU32>,

    /// Wait for a lock, as long as it takes or so many seconds
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "31536000")]
    pub(crate) wait: Option<u64>,

    /// auto, pull or offline
    #[arg(long, default_value = "auto", value_parser = MethodChoice::from_str)]
    method: MethodChoice,

    /// Freeze the guest's file systems for the moment of the snapshot: auto, require or no
    #[arg(long, default_value = "auto", value_parser = Quiesce::from_str)]
    quiesce: Quiesce,

    /// How changes are found: auto, bitmap, digest, which leaves no checkpoint in the domain, or none: all counts as changed
    #[arg(long, default_value = "auto", value_parser = Tracking::from_str)]
    track: Tracking,

    /// Never suspend the guest; this is always so
    #[arg(long, hide = true)]
    no_offline: bool,

    /// Take no LVM snapshot; this is always so
    #[arg(long, hide = true)]
    no_snapshot: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    #[command(flatten)]
    pub(crate) vms: Vms,
    /// All VMs that a job is left of
    #[arg(long)]
    pub(crate) all: bool,
    /// Wait for a lock, as long as it takes or so many seconds
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "31536000")]
    pub(crate) wait: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Name or UUID
    pub(crate) vm: String,
    #[command(flatten)]
    pub(crate) job: Job,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Common {
    pub(crate) fn places(&self) -> Result<Places, std::io::Error> {
        let absolute = |path: &PathBuf| std::path::absolute(path);
        Ok(Places {
            backup_dir: absolute(&self.backupdir)?,
            lock_dir: absolute(self.lockdir.as_ref().unwrap_or(&self.backupdir))?,
            state_dir: absolute(&self.statedir)?,
        })
    }
}

impl Vms {
    /// Each once, in the order given.
    pub(crate) fn list(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let named = self.names.iter().chain(&self.more).filter(|name| !name.is_empty());
        named.filter(|name| seen.insert(name.as_str())).cloned().collect()
    }
}

impl Job {
    pub(crate) fn options(&self, own_command: Vec<String>) -> options::Chunkmount {
        options::Chunkmount {
            method: self.method,
            quiesce: self.quiesce,
            tracking: self.track,
            exclude: self.exclude.iter().cloned().collect(),
            chunk_size: self.blocksize,
            own_command,
        }
    }

    pub(crate) fn limit(&self) -> JobLimit {
        self.max_backups.map_or(JobLimit::Unlimited, JobLimit::AtMost)
    }
}

fn target(text: &str) -> Result<Target, String> {
    Target::new(text).map_err(|error| error.to_string())
}
