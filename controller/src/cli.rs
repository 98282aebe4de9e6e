//! The command line of `virt-backup`: its words, their meaning and their defaults. The man pages are made from this, too.
//! Nothing is done here.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use virt_backup::carry::{self, CarryError, Compression, DumpCommand};
use virt_backup::command::restore;
use virt_backup::command::restore::boot;
use virt_backup::core::domain::Format;
use virt_backup::core::names::{Places, Target, Uuid, VmName};
use virt_backup::core::options::{
    self, ChunkSize, Clusters, DumpForm, JobLimit, LockAfter, Macs, Memory, MethodChoice, Pause, Quiesce,
    Running, Snapshots, ThinSnapshots, Tracking,
};
use virt_backup::core::restore::boot::{AfterBoot, Network};
use virt_backup::core::restore::{Existing, MacWish, Then, Wish, Writing};
use virt_backup::core::retention::{ArchiveName, Policy};
use virt_backup::core::units::Bytes;
use virt_backup::core::volume::Volume;

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

    /// What is to be the default of options, for all VMs and for single ones; /etc/virt-backup.toml if that is there
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

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
    /// Copy the disks of VMs to files below the backup directory, as of one point in time for each
    Dump(Dump),
    /// The same as qcow2 images
    Convert(Convert),
    /// Make a dated, complete copy of a VM that can be defined and started as it is, and remove old ones
    Archive(Archive),
    /// Take back whatever is left of a job, however it ended; also removes the files of a dump
    Cleanup(Cleanup),
    /// Remove the lock of a VM, and nothing else
    Unlock(Vms),
    /// Show the disks of a VM, run a command, and clean up; ends with the status of the command
    Run(Run),
    /// Bring a guest back, from what a backup tool kept of a view, from a dump or from an archive
    Restore(Box<Restore>),
    /// Run a guest straight from a tree of chunks: nothing is copied, and what it writes is thrown away unless it is kept
    Boot(Box<Boot>),
    /// Run a guest from a tree of chunks until it has proven that it lives, and throw it away; exit status 6 if it does not
    Drill(Box<Drill>),
    /// Tell which jobs there are, what is owed, and which guests run from a backup
    Status(Report),
    /// Tell which VMs there are, how each would be backed up, and why not better
    List(Report),
    /// Tell whether this host is ready, and what to do if not
    Doctor(Report),
    /// Remove our checkpoint and index of VMs: the next backup starts afresh
    Forget(Vms),
    /// End a backup job and leave the rest to cleanup: what a view calls when the space for it runs short
    #[command(hide = true)]
    EndBackup { uuid: String, socket: PathBuf },
    /// Thaw a guest's file systems after some seconds: what a freeze leaves behind in case we die
    #[command(hide = true)]
    ThawLater { uuid: String, secs: u64 },
    /// Write the man pages to a directory
    #[command(hide = true)]
    Man { directory: PathBuf },
    /// Write what bash, zsh and fish need to complete our words to a directory
    #[command(hide = true)]
    Completions { directory: PathBuf },
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

    /// auto, pull, external, lvm, reflink or offline
    #[arg(long, default_value = "auto", value_parser = MethodChoice::from_str)]
    method: MethodChoice,

    /// Freeze the guest's file systems for the moment of the snapshot: auto, require or no
    #[arg(long, default_value = "auto", value_parser = Quiesce::from_str)]
    quiesce: Quiesce,

    /// How changes are found: auto, bitmap, digest, which leaves no checkpoint in the domain, or none: all counts as changed
    #[arg(long, default_value = "auto", value_parser = Tracking::from_str)]
    track: Tracking,

    /// Let the guest stay suspended for as long as the work takes, where nothing else gives a point in time
    #[arg(long, overrides_with = "no_offline")]
    offline: bool,

    /// Never suspend the guest for longer than a moment; this is the default
    #[arg(long, overrides_with = "offline")]
    no_offline: bool,

    /// Save the guest's memory together with its disks
    #[arg(long, conflicts_with = "shutdown")]
    state: bool,

    /// With method lvm, the room for a thick snapshot: what the guest may overwrite until cleanup
    #[arg(long, value_name = "SIZE", default_value = "5G", value_parser = size)]
    snapsize: u64,

    /// With method lvm, the logical volume that the file system with the images is on, such as /dev/vg0/images
    #[arg(long, value_name = "VOLUME", value_parser = Volume::from_str)]
    lvm: Option<Volume>,

    /// With method lvm and thin volumes, keep the snapshot until the next backup: only what differs from it is read then
    #[arg(long, overrides_with = "no_keep_thin")]
    keep_thin: bool,

    /// Remove the snapshots of thin volumes too; this is the default
    #[arg(long, overrides_with = "keep_thin")]
    no_keep_thin: bool,

    /// Shut the guest down first, and start it again as soon as the point in time is taken
    #[arg(long)]
    shutdown: bool,

    /// How long the guest may take to shut down
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    shutdown_timeout: u32,

    /// Snapshots of logical volumes may be taken; this is the default
    #[arg(long, overrides_with = "no_snapshot")]
    snapshot: bool,

    /// Take no snapshot of a logical volume
    #[arg(long, overrides_with = "snapshot")]
    no_snapshot: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    pub(crate) copy: Copy,
    /// Compress the images: gzip (also when no name is given), zstd, bzip2, pbzip2, lzop, xz, lzip, plzip
    #[arg(
        long,
        value_name = "COMPRESSOR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "gzip",
        default_value = "none",
        value_parser = Compression::from_str
    )]
    compress: Compression,
    /// Pipe each disk into a command instead of a file; __VIRT_BACKUP_VM__ and __VIRT_BACKUP_DISK__ stand for the names
    #[arg(long, value_name = "COMMAND", value_parser = dump_command)]
    dumpcmd: Option<DumpCommand>,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    pub(crate) copy: Copy,
    /// Compress the clusters of the images
    #[arg(long, value_name = "COMPRESSOR", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    compress: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Archive {
    #[command(flatten)]
    pub(crate) vms: Vms,
    #[command(flatten)]
    pub(crate) job: Job,
    /// Where the archives are, each in DIR/VM/DATE
    #[arg(long, value_name = "DIR", default_value = "/srv/backups/libvirt")]
    backup_base_dir: PathBuf,
    /// Compress the disks
    #[arg(long)]
    compress: bool,
    /// What the domain in the archive is called; VM-restore-DATE unless told otherwise
    #[arg(long = "name", alias = "new-vm-domain-name", value_name = "NAME", value_parser = VmName::new)]
    new_name: Option<VmName>,
    /// Give it new MAC addresses
    #[arg(long)]
    new_mac: bool,
    /// Keep the newest N archives
    #[arg(long, value_name = "N")]
    keep: Option<NonZeroU32>,
    /// Keep the newest archive of each of the last N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<NonZeroU32>,
    /// The same for weeks
    #[arg(long, value_name = "N")]
    keep_weekly: Option<NonZeroU32>,
    /// The same for months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<NonZeroU32>,
    /// The same for years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<NonZeroU32>,
}

/// What dump and convert take.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    #[command(flatten)]
    pub(crate) vms: Vms,
    #[command(flatten)]
    pub(crate) job: Job,
    /// Keep the lock, so that nothing else begins on the VM before cleanup or unlock
    #[arg(long)]
    keep_lock: bool,
    /// Read at most so many bytes a second: 50M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bwlimit: Option<NonZeroU64>,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Go on with the next VM after one that failed; this is always so
    #[arg(long, hide = true)]
    keep_going: bool,
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

/// A tree of chunks, and what is run from it.
#[derive(Debug, Args)]
pub(crate) struct FromTree {
    /// The directory that holds NAME.xml and the chunks of the disks of one VM
    #[arg(value_name = "TREE")]
    from: PathBuf,

    /// Which VM, where the directory has several
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,

    /// What the guest is called while it runs; VM-boot or VM-drill unless told otherwise
    #[arg(long, value_name = "NAME", value_parser = vm_name)]
    name: Option<VmName>,

    /// Run the guest without these disks: vda,hdb
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', value_parser = target)]
    exclude: Vec<Target>,
}

#[derive(Debug, Args)]
pub(crate) struct Boot {
    #[command(flatten)]
    tree: Option<FromTree>,

    /// Copy all of its disks while it runs, then define it: a restore without waiting. Needs --to
    #[arg(long, requires = "to")]
    keep: bool,

    /// Where the disks of a guest that is kept go
    #[arg(long, value_name = "DIR", requires = "keep")]
    to: Option<PathBuf>,

    /// Connect it as the original was, which had better be off
    #[arg(long)]
    network: bool,

    /// End the guest of this name that runs from a backup, and remove what it wrote
    #[arg(long, value_name = "NAME", value_parser = vm_name, conflicts_with_all = ["from", "keep", "network"])]
    pub(crate) stop: Option<VmName>,
}

#[derive(Debug, Args)]
pub(crate) struct Drill {
    #[command(flatten)]
    tree: FromTree,

    /// It lives when it prints this on its first serial port; when its agent answers, unless told otherwise
    #[arg(long, value_name = "TEXT")]
    expect: Option<String>,

    /// How long it may take to prove that, in seconds
    #[arg(long, value_name = "SECS", default_value = "300")]
    timeout: u64,

    /// Do not read the whole tree first: only what the guest reads is verified
    #[arg(long)]
    no_verify: bool,

    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where from, where to, and what then.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The directory that holds NAME.xml and the disks of one VM
    #[arg(value_name = "BACKUP")]
    from: PathBuf,

    /// Which VM, where the directory has several
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,

    /// Restore beside the original: under this name, with a new UUID and new MAC addresses
    #[arg(long, value_name = "NAME", value_parser = vm_name)]
    name: Option<VmName>,

    /// Put the disks into this directory; they go where they were unless told otherwise
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Put one disk to a file or a block device: vda=/dev/vg0/mail01. May be repeated
    #[arg(long = "disk", value_name = "TARGET=PATH", value_parser = target_and_path)]
    disks: Vec<(Target, PathBuf)>,

    /// Restore the guest without these disks: vda,hdb
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', value_parser = target)]
    exclude: Vec<Target>,

    /// raw or qcow2; as the guest had it unless told otherwise
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,

    /// Write only what differs from what is there. Cannot be taken back
    #[arg(long)]
    in_place: bool,

    /// Replace what is there: a file, a device of a defined domain, the domain itself. Never one that runs
    #[arg(long)]
    force: bool,

    /// New MAC addresses also under the old name
    #[arg(long)]
    new_mac: bool,

    /// The old MAC addresses also under a new name
    #[arg(long, conflicts_with = "new_mac")]
    keep_mac: bool,

    /// Restore the disks and define no domain
    #[arg(long, conflicts_with_all = ["start", "state"])]
    no_define: bool,

    /// Start the guest
    #[arg(long)]
    start: bool,

    /// Go on from the memory that was saved
    #[arg(long)]
    state: bool,

    /// Do not read the whole backup before anything is written
    #[arg(long)]
    no_verify: bool,

    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
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

impl Command {
    /// The VMs that are worked through one after the other, if the command has such.
    pub(crate) fn vms(&self) -> Option<&Vms> {
        match self {
            Command::Chunkmount(args) => Some(&args.vms),
            Command::Dump(args) => Some(&args.copy.vms),
            Command::Convert(args) => Some(&args.copy.vms),
            Command::Archive(args) => Some(&args.vms),
            Command::Cleanup(args) => Some(&args.vms),
            _ => None,
        }
    }

    /// The same command for one of them.
    pub(crate) fn only(mut self, vm: &str) -> Command {
        let vms = match &mut self {
            Command::Chunkmount(args) => &mut args.vms,
            Command::Dump(args) => &mut args.copy.vms,
            Command::Convert(args) => &mut args.copy.vms,
            Command::Archive(args) => &mut args.vms,
            Command::Cleanup(args) => &mut args.vms,
            _ => return self,
        };
        *vms = Vms { names: vec![vm.to_owned()], more: Vec::new() };
        self
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

impl Dump {
    /// Errors: what compresses or takes the disks is not installed.
    pub(crate) fn wishes(&self) -> Result<options::Dump, CarryError> {
        carry::check_available(self.compress)?;
        let form = match &self.dumpcmd {
            None => DumpForm::Image(self.compress),
            Some(command) => {
                carry::check_command(command)?;
                DumpForm::Piped(command.clone(), self.compress)
            }
        };
        Ok(self.copy.wishes(form))
    }
}

impl Convert {
    pub(crate) fn wishes(&self) -> options::Dump {
        let clusters = if self.compress.is_some() { Clusters::Compressed } else { Clusters::Plain };
        self.copy.wishes(DumpForm::Qcow2(clusters))
    }
}

impl Archive {
    pub(crate) fn options(&self, own_command: Vec<String>) -> options::Chunkmount {
        self.job.options(own_command)
    }

    /// `name` is the time, `uuid` the new domain's.
    pub(crate) fn wishes(&self, name: ArchiveName, uuid: Uuid) -> Result<options::Archive, std::io::Error> {
        Ok(options::Archive {
            base: std::path::absolute(&self.backup_base_dir)?,
            name,
            clusters: if self.compress { Clusters::Compressed } else { Clusters::Plain },
            new_name: self.new_name.clone(),
            uuid,
            macs: if self.new_mac { Macs::New } else { Macs::Kept },
            policy: Policy {
                last: self.keep,
                daily: self.keep_daily,
                weekly: self.keep_weekly,
                monthly: self.keep_monthly,
                yearly: self.keep_yearly,
            },
        })
    }
}

impl Copy {
    /// The guest may stay suspended for it, unless `--no-offline` says otherwise: as it has always been.
    pub(crate) fn options(&self, own_command: Vec<String>) -> options::Chunkmount {
        let pause = if self.job.no_offline { Pause::Never } else { Pause::AsLongAsItTakes };
        options::Chunkmount { pause, ..self.job.options(own_command) }
    }

    fn wishes(&self, form: DumpForm) -> options::Dump {
        let lock = if self.keep_lock { LockAfter::Kept } else { LockAfter::GivenBack };
        options::Dump { form, pace: self.bwlimit, lock }
    }
}

impl Job {
    /// As it is when nothing is said.
    pub(crate) fn usual() -> Job {
        match Cli::parse_from(["virt-backup", "chunkmount", "vm"]).command {
            Command::Chunkmount(args) => args.job,
            _ => unreachable!("the words say chunkmount"),
        }
    }

    pub(crate) fn options(&self, own_command: Vec<String>) -> options::Chunkmount {
        options::Chunkmount {
            method: self.method,
            quiesce: self.quiesce,
            tracking: self.track,
            exclude: self.exclude.iter().cloned().collect(),
            chunk_size: self.blocksize,
            pause: if self.offline { Pause::AsLongAsItTakes } else { Pause::Never },
            running: match self.shutdown {
                true => Running::ShutDown { within_secs: self.shutdown_timeout },
                false => Running::Stays,
            },
            memory: if self.state { Memory::Saved } else { Memory::LeftOut },
            snapsize: Bytes(self.snapsize),
            snapshots: if self.no_snapshot { Snapshots::Forbidden } else { Snapshots::Allowed },
            thin: if self.keep_thin { ThinSnapshots::Kept } else { ThinSnapshots::Removed },
            volume: self.lvm.clone(),
            own_command,
        }
    }

    pub(crate) fn limit(&self) -> JobLimit {
        self.max_backups.map_or(JobLimit::Unlimited, JobLimit::AtMost)
    }
}

impl FromTree {
    fn request(
        &self,
        (network, then): (Network, AfterBoot),
        places: &Places,
        chunkfs: &Path,
    ) -> boot::BootRequest {
        boot::BootRequest {
            from: self.from.clone(),
            vm: self.vm.clone(),
            name: self.name.clone(),
            exclude: self.exclude.iter().cloned().collect(),
            network,
            then,
            places: places.clone(),
            chunkfs: chunkfs.to_owned(),
        }
    }
}

impl Boot {
    /// None: no tree was named.
    pub(crate) fn request(
        &self,
        places: &Places,
        chunkfs: &Path,
    ) -> std::io::Result<Option<boot::BootRequest>> {
        let network = if self.network { Network::AsItWas } else { Network::Isolated };
        let then = match &self.to {
            Some(to) => AfterBoot::Keep { to: std::path::absolute(to)? },
            None => AfterBoot::ThrowAway,
        };
        let tree = self.tree.as_ref();
        Ok(tree.map(|tree| tree.request((network, then), places, chunkfs)))
    }
}

impl Drill {
    pub(crate) fn request(&self, places: &Places, chunkfs: &Path) -> boot::BootRequest {
        self.tree.request((Network::Isolated, AfterBoot::ThrowAway), places, chunkfs)
    }

    pub(crate) fn proof(&self) -> boot::Proof {
        self.expect.clone().map_or(boot::Proof::Agent, boot::Proof::Prints)
    }

    pub(crate) fn within(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    pub(crate) fn verification(&self) -> restore::Verification {
        if self.no_verify { restore::Verification::WhileCopying } else { restore::Verification::Before }
    }
}

impl Restore {
    pub(crate) fn request(&self, places: &Places, chunkfs: &Path) -> std::io::Result<restore::Request> {
        let then = match (self.no_define, self.state, self.start) {
            (true, _, _) => Then::Nothing,
            (_, true, _) => Then::Resume,
            (_, _, true) => Then::Start,
            _ => Then::Define,
        };
        let macs = match (self.new_mac, self.keep_mac) {
            (true, _) => MacWish::New,
            (_, true) => MacWish::Own,
            _ => MacWish::ByName,
        };
        let wish = Wish {
            name: self.name.clone(),
            to: self.to.as_ref().map(std::path::absolute).transpose()?,
            disks: self.disks.iter().cloned().collect(),
            exclude: self.exclude.iter().cloned().collect(),
            format: self.format.clone(),
            writing: if self.in_place { Writing::InPlace } else { Writing::Whole },
            existing: if self.force { Existing::Replaceable } else { Existing::Protected },
            macs,
            then,
        };
        let verification = match self.no_verify {
            true => restore::Verification::WhileCopying,
            false => restore::Verification::Before,
        };
        let (from, vm) = (self.from.clone(), self.vm.clone());
        let (places, chunkfs) = (places.clone(), chunkfs.to_owned());
        Ok(restore::Request { from, vm, wish, verification, places, chunkfs })
    }
}

fn target(text: &str) -> Result<Target, String> {
    Target::new(text).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    options::bytes(text).ok_or_else(|| "is not a size: give bytes, or a number such as 5G".to_owned())
}

fn dump_command(text: &str) -> Result<DumpCommand, String> {
    DumpCommand::parse(text).map_err(|error| error.to_string())
}

/// `1000000`, `50M`: bytes a second, powers of 1024.
fn rate(text: &str) -> Result<NonZeroU64, String> {
    let rate = options::bytes(text).and_then(NonZeroU64::new);
    rate.ok_or_else(|| "is not a rate: give bytes a second, such as 50M".to_owned())
}

fn vm_name(text: &str) -> Result<VmName, String> {
    VmName::new(text).map_err(|error| error.to_string())
}

fn target_and_path(text: &str) -> Result<(Target, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("write it as vda=/path")?;
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    Ok((target(name)?, path))
}

fn format(text: &str) -> Result<Format, String> {
    match Format::from(text.to_owned()) {
        Format::Other(_) => Err("it is raw or qcow2".to_owned()),
        known => Ok(known),
    }
}
