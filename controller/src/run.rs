//! From the words of the command line to the commands, VM after VM, and to the exit status.
//! Tells the user on stdout what came of it, on stderr what was noteworthy or failed.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chunkfs::command::progress::{Progress, Show};
use clap::CommandFactory;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use virt_backup::command::restore::boot;
use virt_backup::command::{self, Failure};
use virt_backup::core::domain::DomainId;
use virt_backup::core::names::{Names, Places, Uuid, VmName};
use virt_backup::core::options::{Chunkmount, Dump};
use virt_backup::core::plan::Plan;
use virt_backup::core::restore::boot::AfterBoot;
use virt_backup::core::retention::ArchiveName;
use virt_backup::host::machine::Machine;
use virt_backup::host::{Guests, exec};
use virt_backup::session::{self, Unwound};

use crate::cli::{Archive, Boot, Cli, Command, Common, Copy, Drill, Job, Restore};
use crate::out::{say, show, tell};
use crate::{doctor, report};

const USAGE: u8 = 2;
const BUSY: u8 = 4;
const SOME_FAILED: u8 = 5;

/// What every command needs.
pub(crate) struct Context {
    pub(crate) machine: Machine,
    pub(crate) places: Places,
    /// Set by a signal: whatever is being built up is taken back.
    interrupted: Arc<AtomicBool>,
    /// Set by the one signal that a terminal does not send to a command of ours as well.
    terminated: Arc<AtomicBool>,
    own_command: Vec<String>,
    chunkfs: PathBuf,
    quiet: bool,
}

/// Gives the exit status. Several: the same command for one VM each, which has settings of its own.
pub(crate) fn run(commands: Vec<Cli>) -> u8 {
    let (mut statuses, all) = (Vec::new(), commands.len());
    for Cli { common, command } in commands {
        let context = match Context::new(&common) {
            Ok(context) => context,
            Err(error) => {
                tell!("virt-backup: {error:#}");
                return 1;
            }
        };
        statuses.push(context.run(command));
        if context.interrupted.load(Ordering::SeqCst) {
            break;
        }
    }
    together(&statuses, all)
}

/// What all have come to, if it is the same for all.
fn together(statuses: &[u8], all: usize) -> u8 {
    match statuses {
        [first, rest @ ..] if statuses.len() == all && rest.iter().all(|status| status == first) => *first,
        _ => SOME_FAILED,
    }
}

impl Context {
    fn new(common: &Common) -> anyhow::Result<Context> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let terminated = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGTERM, Arc::clone(&terminated))?;
        let chunkfs: PathBuf =
            std::env::var_os("CHUNKFS").map_or_else(|| exec::beside_us("chunkfs"), Into::into);
        let own = std::env::current_exe()?.to_string_lossy().into_owned();
        let own_command = vec![own, format!("--connect={}", common.connect.join(","))];
        Ok(Context {
            machine: Machine::new(chunkfs.clone(), common.connect.clone(), own_command.clone()),
            places: common.places()?,
            interrupted,
            terminated,
            own_command,
            chunkfs,
            quiet: common.quiet,
        })
    }

    fn run(&self, command: Command) -> u8 {
        match command {
            Command::Chunkmount(args) if args.dry_run => self.each(args.vms.list(), |vm| {
                let options = args.job.options(self.own_command.clone());
                show(format_args!("{}", command::plan(&self.machine, &self.places, vm, &options)?));
                Ok(())
            }),
            Command::Chunkmount(args) => {
                let shown = |told: &str| say!("{told}");
                self.each(args.vms.list(), |vm| {
                    self.patiently(args.job.wait, || self.chunkmount(vm, &args.job, &shown))
                })
            }
            Command::Dump(args) => match args.wishes() {
                Ok(wishes) => self.dump_each(&args.copy, &wishes),
                Err(error) => complain(&Failure { exit_status: 1, story: error.to_string() }),
            },
            Command::Archive(args) => {
                self.each(args.vms.list(), |vm| self.patiently(args.job.wait, || self.archive(vm, &args)))
            }
            Command::Convert(args) => self.dump_each(&args.copy, &args.wishes()),
            Command::Cleanup(args) => {
                let vms = match args.all {
                    true => match self.left_behind() {
                        Ok(vms) if vms.is_empty() => return 0,
                        Ok(vms) => vms,
                        Err(error) => return complain(&Failure::from(error)),
                    },
                    false => args.vms.list(),
                };
                self.each(vms, |vm| self.patiently(args.wait, || self.cleanup(vm)))
            }
            Command::Unlock(vms) => self.each(vms.list(), |vm| self.unlock(vm)),
            Command::Forget(vms) => self.each(vms.list(), |vm| {
                self.tell(vm, &command::forget(&self.machine, &self.places, vm)?);
                Ok(())
            }),
            Command::Run(args) => self.run_beside(&args.vm, &args.job, &args.words),
            Command::Boot(args) => self.boot(&args).unwrap_or_else(|error| complain(&error)),
            Command::Drill(args) => self.drill(&args).unwrap_or_else(|error| complain(&error)),
            Command::Restore(args) => self.restore(&args).unwrap_or_else(|error| complain(&error)),
            Command::Status(args) => report::status(self, args.json).unwrap_or_else(|error| complain(&error)),
            Command::Doctor(args) => doctor::doctor(self, args.json).unwrap_or_else(|error| complain(&error)),
            Command::List(args) => report::list(self, args.json).unwrap_or_else(|error| complain(&error)),
            Command::EndBackup { uuid, socket } => {
                self.end_backup(&uuid, &socket).map_or_else(|error| complain(&error), |()| 0)
            }
            Command::ThawLater { uuid, secs } => {
                self.thaw_later(&uuid, secs).map_or_else(|error| complain(&error), |()| 0)
            }
            Command::Man { directory } => write_man_pages(&directory),
            Command::Completions { directory } => write_completions(&directory),
        }
    }

    /// One after the other; the failure of one does not leak into the next.
    fn each(&self, vms: Vec<String>, act: impl Fn(&str) -> Result<(), Failure>) -> u8 {
        if vms.is_empty() {
            tell!("virt-backup: no VM was named");
            return USAGE;
        }
        let mut statuses = Vec::new();
        for vm in &vms {
            let status = act(vm).map_or_else(|failure| complain(&named(vm, failure)), |()| 0);
            statuses.push(status);
            if self.interrupted.load(Ordering::SeqCst) {
                break;
            }
        }
        together(&statuses, vms.len())
    }

    /// `tell` is told where the view is.
    fn chunkmount(&self, vm: &str, job: &Job, tell: &dyn Fn(&str)) -> Result<(), Failure> {
        let interrupted = self.interrupted();
        let options = job.options(self.own_command.clone());
        let mounted =
            command::chunkmount(&self.machine, &self.places, vm, &options, job.limit(), &interrupted)?;
        self.tell(vm, &mounted.cleared);
        let id = &mounted.plan.domain;
        self.tell_of(vm, &mounted.plan, &mounted.notes);
        if !self.quiet {
            let point = Names::new(&self.places, &id.name).mount_point();
            tell(&format!("{id}: generation {} is shown at {}", mounted.plan.generation, point.display()));
        }
        Ok(())
    }

    fn dump_each(&self, copy: &Copy, wishes: &Dump) -> u8 {
        let options = copy.options(self.own_command.clone());
        self.each(copy.vms.list(), |vm| match copy.dry_run {
            true => {
                show(format_args!(
                    "{}",
                    command::plan_dump(&self.machine, &self.places, vm, (&options, wishes))?
                ));
                Ok(())
            }
            false => self.patiently(copy.job.wait, || self.dump(vm, copy, (&options, wishes))),
        })
    }

    fn dump(&self, vm: &str, copy: &Copy, wishes: (&Chunkmount, &Dump)) -> Result<(), Failure> {
        let interrupted = self.interrupted();
        let limit = copy.job.limit();
        let dumped = command::dump(&self.machine, &self.places, vm, wishes, limit, &interrupted)?;
        self.tell(vm, &dumped.cleared);
        self.tell_of(vm, &dumped.plan, &dumped.notes);
        if !self.quiet {
            let id = &dumped.plan.domain;
            let dir = Names::new(&self.places, &id.name).dump_dir();
            say!("{id}: dumped to {} by method {}", dir.display(), dumped.plan.method);
        }
        Ok(())
    }

    fn archive(&self, vm: &str, args: &Archive) -> Result<(), Failure> {
        let now = jiff::Zoned::now().strftime("%Y-%m-%d-%H%M%S").to_string();
        let name = ArchiveName::parse(&now).map_err(anyhow::Error::from)?;
        let wishes = args.wishes(name, self.machine.new_uuid()?).map_err(anyhow::Error::from)?;
        let options = args.options(self.own_command.clone());
        let (machine, places) = (&self.machine, &self.places);
        let interrupted = self.interrupted();
        let made =
            command::archive(machine, places, vm, (&options, &wishes), args.job.limit(), &interrupted)?;
        self.tell(vm, &made.cleared);
        self.tell_of(vm, &made.plan, &made.notes);
        if !self.quiet {
            say!("{}: archived to {} by method {}", made.plan.domain, made.dir.display(), made.plan.method);
            made.verdicts.iter().for_each(|verdict| say!("  {verdict}"));
        }
        Ok(())
    }

    fn tell_of(&self, vm: &str, plan: &Plan, notes: &[String]) {
        plan.notes.iter().chain(notes).for_each(|note| self.note(vm, note));
        for left_out in &plan.left_out {
            self.note(vm, &format!("left out: {}: {}", left_out.what, left_out.reason));
        }
    }

    fn interrupted(&self) -> impl Fn() -> bool + Sync + use<> {
        let interrupted = Arc::clone(&self.interrupted);
        move || interrupted.load(Ordering::SeqCst)
    }

    fn cleanup(&self, vm: &str) -> Result<(), Failure> {
        let name = command::name_of(&self.machine, vm).ok();
        let reads = name.and_then(|name| report::reads(self, &name));
        let booted = match VmName::new(vm) {
            Ok(name) => boot::booted(&self.machine, &self.places, &name)?.map(|_| name),
            Err(_) => None,
        };
        if let Some(name) = booted {
            let done = boot::stop(&self.machine, &self.places, &name)?;
            done.iter().for_each(|done| tracing::info!("{vm}: {done}"));
            return Ok(());
        }
        self.tell(vm, &command::cleanup(&self.machine, &self.places, vm)?);
        if let Some(reads) = reads.filter(|_| !self.quiet) {
            tell!("virt-backup: {vm}: {reads}");
        }
        Ok(())
    }

    /// What `cleanup --all` is for: a guest that still runs from a backup is somebody's, who ends it by its name.
    fn left_behind(&self) -> anyhow::Result<Vec<String>> {
        let vms = report::vms_with_jobs(self)?.into_iter().chain(report::ended_boots(self)?);
        Ok(vms.map(|vm| vm.to_string()).collect())
    }

    fn unlock(&self, vm: &str) -> Result<(), Failure> {
        let name = command::name_of(&self.machine, vm)?;
        session::unlock(&self.machine, &Names::new(&self.places, &name))?;
        Ok(())
    }

    /// Cleanup always follows, also when the view never came up: then nothing is left already.
    fn run_beside(&self, vm: &str, job: &Job, words: &[std::ffi::OsString]) -> u8 {
        // Standard output is the command's: it may be an archive.
        let shown = |told: &str| tell!("virt-backup: {told}");
        if let Err(failure) = self.patiently(job.wait, || self.chunkmount(vm, job, &shown)) {
            return complain(&named(vm, failure));
        }
        let ran = match self.interrupted.load(Ordering::SeqCst) {
            true => Err(anyhow::anyhow!("{vm}: interrupted: the command was not begun")),
            false => exec::run_attached(words, &self.terminated),
        };
        let cleaned = self.cleanup(vm).map_or_else(|failure| complain(&named(vm, failure)), |()| 0);
        match (ran, cleaned) {
            (_, status) if status != 0 => status,
            (Ok(status), _) => status_of(status),
            (Err(error), _) => complain(&Failure::from(error)),
        }
    }

    /// Tries again while somebody else has the lock, for so long.
    fn patiently(&self, wait: Option<u64>, act: impl Fn() -> Result<(), Failure>) -> Result<(), Failure> {
        let begun = Instant::now();
        let patience = Duration::from_secs(wait.unwrap_or(0));
        loop {
            let goes_on = begun.elapsed() < patience && !self.interrupted.load(Ordering::SeqCst);
            match act() {
                Err(failure) if failure.exit_status == BUSY && goes_on => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                outcome => return outcome,
            }
        }
    }

    fn restore(&self, args: &Restore) -> Result<u8, Failure> {
        let request = args.request(&self.places, &self.chunkfs).map_err(anyhow::Error::from)?;
        if args.dry_run {
            show(format_args!("{}", command::restore::decide(&self.machine, &request)?.plan));
            return Ok(0);
        }
        let progress = self.progress("restoring")?;
        let restored = command::restore::restore(&self.machine, &request, &progress)?;
        drop(progress);
        let id = &restored.plan.id;
        restored.cleared.iter().for_each(|cleared| self.note(id.name.as_str(), cleared));
        restored.plan.notes.iter().for_each(|note| self.note(id.name.as_str(), note));
        if !self.quiet {
            say!("{id}: restored");
        }
        Ok(0)
    }

    fn boot(&self, args: &Boot) -> Result<u8, Failure> {
        if let Some(name) = &args.stop {
            for done in boot::stop(&self.machine, &self.places, name)? {
                tracing::info!("{name}: {done}");
            }
            return Ok(0);
        }
        let Some(request) = args.request(&self.places, &self.chunkfs).map_err(anyhow::Error::from)? else {
            tell!("virt-backup: boot: name a tree, or --stop=NAME");
            return Ok(USAGE);
        };
        let progress = self.progress("reading")?;
        let plan = boot::boot(&self.machine, &request, &progress)?;
        drop(progress);
        let id = &plan.id;
        plan.notes.iter().for_each(|note| self.note(id.name.as_str(), note));
        if !self.quiet {
            match request.then {
                AfterBoot::Keep { .. } => say!("{id}: restored, and runs"),
                AfterBoot::ThrowAway => {
                    say!("{id}: runs from the backup; virt-backup boot --stop={id} ends it")
                }
            }
        }
        Ok(0)
    }

    fn drill(&self, args: &Drill) -> Result<u8, Failure> {
        let request = args.request(&self.places, &self.chunkfs);
        let progress = self.progress("verifying")?;
        let (proof, within) = (args.proof(), args.within());
        let drilled = boot::drill(&self.machine, &request, &proof, within, args.verification(), &progress)?;
        drop(progress);
        drilled.notes.iter().for_each(|note| self.note(drilled.id.name.as_str(), note));
        let (id, secs) = (&drilled.id, drilled.took.as_secs_f64());
        if args.json {
            say!("{}", serde_json::json!({ "name": id.name, "lives": true, "seconds": secs }));
        } else if !self.quiet {
            say!("{id}: lives, after {secs:.1} s");
        }
        Ok(0)
    }

    fn progress(&self, doing: &'static str) -> anyhow::Result<Progress> {
        let show = if self.quiet { Show::Never } else { Show::OnTerminal };
        Ok(Progress::begin(doing, show)?)
    }

    fn end_backup(&self, uuid: &str, socket: &Path) -> Result<(), Failure> {
        let uuid = Uuid::new(uuid).map_err(anyhow::Error::from)?;
        // Found by its UUID; the name is only for messages.
        let name = command::name_of(&self.machine, uuid.as_str())?;
        self.machine.abort_backup(&DomainId { name, uuid }, socket)?;
        Ok(())
    }

    /// Waits, and then tries until the guest is thawed or gone, for a few minutes. Killed by whoever thaws it in time.
    fn thaw_later(&self, uuid: &str, secs: u64) -> Result<(), Failure> {
        let uuid = Uuid::new(uuid).map_err(anyhow::Error::from)?;
        let interrupted = self.interrupted();
        let due = Instant::now() + Duration::from_secs(secs);
        while Instant::now() < due {
            if interrupted() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let name = command::name_of(&self.machine, uuid.as_str())?;
        self.machine.thaw_stubbornly(&DomainId { name, uuid }, &interrupted)?;
        Ok(())
    }

    fn tell(&self, vm: &str, unwound: &Unwound) {
        unwound.done.iter().for_each(|done| tracing::info!("{vm}: {done}"));
        unwound.notes.iter().for_each(|note| self.note(vm, note));
    }

    fn note(&self, vm: &str, note: &str) {
        if !self.quiet {
            tell!("virt-backup: {vm}: note: {note}");
        }
    }
}

fn named(vm: &str, failure: Failure) -> Failure {
    match failure.story.starts_with(vm) {
        true => failure,
        false => Failure { story: format!("{vm}: {}", failure.story), ..failure },
    }
}

fn complain(failure: &Failure) -> u8 {
    tell!("virt-backup: {failure}");
    failure.exit_status
}

/// As a shell has it: 128 and the number of the signal.
fn status_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn write_man_pages(directory: &Path) -> u8 {
    let written =
        std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    match written {
        Ok(()) => 0,
        Err(error) => complain(&Failure { exit_status: 1, story: format!("write the man pages: {error}") }),
    }
}

fn write_completions(directory: &Path) -> u8 {
    use clap_complete::Shell;
    let write =
        |shell| clap_complete::generate_to(shell, &mut Cli::command(), "virt-backup", directory).map(drop);
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| [Shell::Bash, Shell::Zsh, Shell::Fish].into_iter().try_for_each(write));
    match written {
        Ok(()) => 0,
        Err(error) => complain(&Failure { exit_status: 1, story: format!("write the completions: {error}") }),
    }
}
