//! One job on one VM: holds its lock, keeps its journal, carries out plans and takes them back.
//! Decides nothing about backups: that is `core::plan`.

mod act;
mod journal_file;
mod locking;
mod outcome;
mod undo;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::core::domain::DomainId;
use crate::core::journal::{Debt, Header, Journal, Progress, Record, VERSION};
use crate::core::lock::{Holder, Lock, ProcessId};
use crate::core::names::{JobId, Names};
use crate::core::options::JobLimit;
use crate::core::plan::Plan;
use crate::core::step::{DumpRecord, Need, Patience, Step, Undo};
use crate::host::{Guard, Host, Removal};

use act::Acted;
use journal_file::JournalFile;
use locking::Kept;
pub use locking::{live_jobs, unlock};
pub use outcome::{OpenError, RunError, Unwound};

/// Has the user, or the machine, asked us to stop?
pub type Interrupted<'a> = dyn Fn() -> bool + Sync + 'a;

/// From taking the lock to giving it back, or to leaving it to a later cleanup.
///
/// ```text
/// open ── owed()? ── unwind ─┐
///                            ├── run(plan) ── drop        the view stays; lock and journal stay with it
///                            └── release                  nothing owed: the lock goes
/// ```
pub struct Session<'h> {
    host: &'h dyn Host,
    names: Names,
    lock: Lock,
    /// Who held the lock before and did not give it back.
    taken_over: Option<Holder>,
    journal: Option<JournalFile>,
    /// Did this job freeze the guest's file systems, and how much was that wanted?
    frozen: Option<Need>,
    /// Of what was copied and written so far, each with the digest that `b3sum` prints: a disk under its name in the list
    /// of digests, every other file where it is.
    digests: Vec<(PathBuf, String)>,
    /// Is there a dump or an archive that stays?
    kept: bool,
    /// What was given back early was no good any more.
    spoilt: Option<String>,
    /// Excludes other workers on this VM for as long as this process lives, whatever the lock file says.
    _guard: Guard,
}

impl<'h> Session<'h> {
    /// As `open`, whether or not a dump has kept the lock.
    pub fn open_to_clean_up(host: &'h dyn Host, names: &Names) -> Result<Session<'h>, OpenError> {
        Session::open_with(host, names, JobLimit::Unlimited, Kept::TakenOver)
    }

    /// Takes the lock of a VM. What a dead job or a view without its cleanup left is taken over, and is then `owed`.
    pub fn open(host: &'h dyn Host, names: &Names, limit: JobLimit) -> Result<Session<'h>, OpenError> {
        Session::open_with(host, names, limit, Kept::Respected)
    }

    fn open_with(
        host: &'h dyn Host,
        names: &Names,
        limit: JobLimit,
        kept: Kept,
    ) -> Result<Session<'h>, OpenError> {
        Session::take(host, names, limit, kept).map_err(|error| match error {
            OpenError::Failed(error) if locking::something_left(host, names) => OpenError::Owing(error),
            error => error,
        })
    }

    fn take(
        host: &'h dyn Host,
        names: &Names,
        limit: JobLimit,
        kept: Kept,
    ) -> Result<Session<'h>, OpenError> {
        host.make_dir(&names.home()).context("make the state directory")?;
        let Some(guard) = host.guard(&names.guard())? else {
            return Err(OpenError::Busy(format!("{}: another virt-backup is at work on it", names.vm())));
        };
        let journal = JournalFile::read(host, names)?;
        let job = match &journal {
            Some(journal) => journal.header().job.clone(),
            None => host.new_job_id()?,
        };
        let (lock, taken_over) = locking::take(host, names, job, limit, kept)?;
        if journal.as_ref().is_some_and(|journal| journal.progress() == Progress::Underway) {
            host.let_settle(&names.journal())?;
        }
        Ok(Session {
            host,
            names: names.clone(),
            lock,
            taken_over,
            journal,
            frozen: None,
            digests: Vec::new(),
            kept: false,
            spoilt: None,
            _guard: guard,
        })
    }

    pub fn taken_over(&self) -> Option<&Holder> {
        self.taken_over.as_ref()
    }

    pub fn job(&self) -> &JobId {
        &self.lock.job
    }

    /// What an earlier job or this one left to be undone, newest first.
    pub fn owed(&self) -> Vec<Debt> {
        self.journal.as_ref().map(JournalFile::owed).unwrap_or_default()
    }

    /// Carries out a plan, each step written down before it is done. When a step fails, or `interrupted` says so
    /// between two, all is taken back.
    pub fn run(&mut self, plan: &Plan, interrupted: &Interrupted<'_>) -> Result<Vec<String>, RunError> {
        let mut notes = Vec::new();
        match self.carry_out(plan, interrupted, &mut notes) {
            Ok(()) => Ok(notes),
            Err(story) => Err(RunError { story, unwound: self.unwind() }),
        }
    }

    fn carry_out(
        &mut self,
        plan: &Plan,
        interrupted: &Interrupted<'_>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        self.begin_journal()?;
        let mut view = None;
        for (number, step) in (0..).zip(&plan.steps) {
            if interrupted() {
                bail!("interrupted before it could {step}");
            }
            let process = match step {
                Step::Early(undo) => {
                    let removal = self.pay_early(undo)?;
                    if matches!(undo, Undo::Thaw { .. }) && removal == Some(Removal::AlreadyGone) {
                        self.was_not_frozen(notes)?;
                    }
                    None
                }
                Step::IfFrozen { path, content } => {
                    if self.frozen.is_some() {
                        self.host.replace(path, content.as_bytes()).with_context(|| step.to_string())?;
                    }
                    None
                }
                Step::Release(undo) => {
                    if let Err(error) = self.pay_early(undo) {
                        notes.push(format!("{undo}: not yet: {error:#}"));
                    }
                    if let Some(why) = self.spoilt.take() {
                        bail!(why);
                    }
                    None
                }
                Step::KeepDump(record) => {
                    self.keep_dump(record, notes).with_context(|| step.to_string())?;
                    None
                }
                _ => self.take_step(number, step, interrupted, notes).with_context(|| step.to_string())?,
            };
            view = process.or(view);
        }
        match self.complete(view) {
            // What was to be made is there and stays: that is no failure any more.
            Err(error) if self.kept => notes.push(format!("{error:#}")),
            completed => completed?,
        }
        Ok(())
    }

    /// Now the lock names the daemon: it is alive for as long as the view is.
    fn complete(&mut self, view: Option<ProcessId>) -> Result<()> {
        self.write(&Record::Complete)?;
        self.lock.view = view;
        self.host.replace(&self.names.lock(), self.lock.to_text().as_bytes()).context("update the lock")
    }

    fn begin_journal(&mut self) -> Result<()> {
        if !self.owed().is_empty() {
            bail!("an earlier job on {} still owes something: unwind it first", self.names.vm());
        }
        let (vm, job, boot) = (self.names.vm().clone(), self.lock.job.clone(), self.lock.boot.clone());
        let header = Header { version: VERSION, vm, job, boot };
        // Known before it is written: should the writing fail after all, there is something to forget.
        let journal = self.journal.insert(JournalFile::new(&self.names, header));
        journal.begin(self.host).context("begin the journal")
    }

    /// Intent, act, done.
    fn take_step(
        &mut self,
        number: u32,
        step: &Step,
        interrupted: &Interrupted<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Option<ProcessId>> {
        if let Err(error) = act::check(self.host, step) {
            if !matches!(step, Step::Freeze { need: Need::Wished, .. }) {
                return Err(error);
            }
            notes.push(format!("not quiesced: {error:#}"));
            return Ok(None);
        }
        let owes = step.undo();
        if let Some(undo) = owes.clone() {
            self.write(&Record::Intent { step: number, what: step.to_string(), undo })?;
        }
        let process = match (act::act(self.host, step, interrupted), step) {
            (Ok(Acted::Done), _) => None,
            (Ok(Acted::Shown(process)), _) => Some(process),
            (Ok(Acted::Copied { name, digest }), _) => {
                self.digests.push((name.into(), digest));
                None
            }
            (Ok(Acted::Wrote { path, digest }), _) => {
                self.digests.push((path, digest.to_string()));
                None
            }
            (Err(error), Step::Freeze { need: Need::Wished, .. }) => {
                notes.push(format!("not quiesced: {error:#}"));
                self.pay_early(&step.undo().expect("a freeze has an undo"))?;
                return Ok(None);
            }
            (Err(error), _) => return Err(error),
        };
        if let Step::Freeze { need, .. } = step {
            self.frozen = Some(*need);
        }
        if owes.is_some() {
            self.write(&Record::Done { step: number, process: process.clone() })?;
        }
        Ok(process)
    }

    /// None: it is not owed.
    fn pay_early(&mut self, undo: &Undo) -> Result<Option<Removal>> {
        let Some(debt) = self.owed().into_iter().find(|debt| debt.undo == *undo) else { return Ok(None) };
        let mut unwound = Unwound::default();
        let removal = self.pay(&debt, &mut unwound)?;
        if let Some(why) = unwound.spoilt.into_iter().next() {
            self.spoilt = Some(why);
        }
        Ok(Some(removal))
    }

    /// At the thaw nothing was frozen any more: some guests thaw themselves after a while, some have nothing to freeze.
    fn was_not_frozen(&mut self, notes: &mut Vec<String>) -> Result<()> {
        let why = "the guest's file systems were not frozen any more when the point in time was taken";
        match self.frozen.take() {
            Some(Need::Required) => bail!(why),
            Some(Need::Wished) => notes.push(format!("not quiesced: {why}")),
            None => {}
        }
        Ok(())
    }

    /// From the list of digests on a dump is complete, and an archive from its manifest on. The record is there before:
    /// cleanup must find the files. All is kept or owed at once.
    fn keep_dump(&mut self, dump: &DumpRecord, notes: &mut Vec<String>) -> Result<()> {
        if let Some(record) = &dump.record {
            let text = serde_json::to_string(dump).context("write JSON")?;
            self.host.replace(record, text.as_bytes())?;
        }
        self.host.replace(&dump.dir.join(&dump.digests), self.list_of_digests(dump).as_bytes())?;
        if let Some(manifest) = &dump.manifest {
            let content = match self.frozen {
                Some(_) => &manifest.if_frozen,
                None => &manifest.content,
            };
            self.host.replace(&dump.dir.join(&manifest.name), content.as_bytes())?;
        }
        let kept = |undo: &Undo| match undo {
            Undo::RemoveFile { path } if dump.record.as_ref() == Some(path) => true,
            Undo::RemoveFile { path } => dump.names.iter().any(|name| *path == dump.dir.join(name)),
            Undo::RemoveDir { path } => path.starts_with(&dump.dir),
            _ => false,
        };
        let steps = self.owed().iter().filter(|debt| kept(&debt.undo)).map(|debt| debt.step).collect();
        self.kept = true;
        // All is there, whether this can be written or not; the next line that can be brings this one along.
        if let Err(error) = self.write(&Record::Kept { steps }) {
            notes.push(format!("{error:#}"));
        }
        Ok(())
    }

    /// As `b3sum --check` reads it: the disks, and those other files of the dump that stay.
    fn list_of_digests(&self, dump: &DumpRecord) -> String {
        let stays = |name: &Path| dump.names.iter().any(|kept| Path::new(kept) == name);
        let listed = |path: &Path| match path.strip_prefix(&dump.dir) {
            Ok(name) => stays(name).then(|| name.display().to_string()),
            Err(_) => path.is_relative().then(|| path.display().to_string()),
        };
        let lines = self.digests.iter().filter_map(|(path, digest)| Some((listed(path)?, digest)));
        lines.map(|(name, digest)| format!("{digest}  {name}\n")).collect()
    }

    /// Undoes all that is owed, newest first, past failures; forgets the journal when nothing is owed any more.
    pub fn unwind(&mut self) -> Unwound {
        let mut unwound = Unwound::default();
        for debt in self.owed() {
            if debt.undo.patience() == Patience::WaitsForNewer && !unwound.errors.is_empty() {
                unwound.errors.push(anyhow!("{}: waits for what could not be undone", debt.undo));
                continue;
            }
            if let Err(error) = self.pay(&debt, &mut unwound) {
                unwound.errors.push(error);
            }
        }
        if unwound.errors.is_empty()
            && let Err(error) = self.forget_journal()
        {
            unwound.errors.push(error);
        }
        unwound
    }

    fn pay(&mut self, debt: &Debt, unwound: &mut Unwound) -> Result<Removal> {
        let removal = undo::undo(self.host, &debt.undo).with_context(|| debt.undo.to_string())?;
        match &removal {
            Removal::Removed => unwound.done.push(debt.undo.to_string()),
            Removal::AlreadyGone => {}
            Removal::Later(why) => unwound.notes.push(format!("{}: later: {why}", debt.undo)),
            Removal::Spoilt(why) => unwound.spoilt.push(why.clone()),
        }
        if let Err(error) = self.write(&Record::Undone { step: debt.step }) {
            // Undoing it again would do no harm, so a full disk does not keep us from undoing the rest.
            unwound.notes.push(format!("{error:#}"));
        }
        Ok(removal)
    }

    /// All that a cleanup does: what the journal owes, what is here under names of ours, and if the first could not be
    /// done in full, once more: what stood in its way may have been the second.
    pub fn clear(&mut self, domain: Option<&DomainId>) -> Unwound {
        let first = self.unwind();
        let swept = self.sweep(domain, &first);
        if first.owes_nothing() {
            return first.and(swept);
        }
        let done = Unwound { errors: Vec::new(), ..first };
        done.and(Unwound { errors: Vec::new(), ..swept }).and(self.unwind())
    }

    /// Undoes what is here under names of ours although no journal knows of it: the state directory was lost, or a
    /// crash came between forgetting the journal and giving back the lock, or libvirt went on after our death.
    /// What has to wait for others waits for what `first` could not undo, too.
    fn sweep(&mut self, domain: Option<&DomainId>, first: &Unwound) -> Unwound {
        let mut unwound = Unwound::default();
        let undos = match undo::by_name(self.host, &self.names, domain) {
            Ok(undos) => undos,
            Err(error) => return Unwound { errors: vec![error], ..unwound },
        };
        for undo in undos {
            let blocked = !first.owes_nothing() || !unwound.owes_nothing();
            if undo.patience() == Patience::WaitsForNewer && blocked {
                continue;
            }
            match undo::undo(self.host, &undo).with_context(|| undo.to_string()) {
                Ok(Removal::Removed) => unwound.done.push(undo.to_string()),
                Ok(Removal::AlreadyGone) => {}
                Ok(Removal::Later(why)) => unwound.notes.push(format!("{undo}: later: {why}")),
                Ok(Removal::Spoilt(why)) => unwound.spoilt.push(why),
                Err(error) => unwound.errors.push(error),
            }
        }
        unwound
    }

    /// Gives the lock back. Refuses while something is owed.
    pub fn release(self) -> Result<()> {
        if !self.owed().is_empty() {
            bail!("{} still owes something: the lock stays until cleanup", self.names.vm());
        }
        self.host.remove_file(&self.names.lock()).context("give back the lock")?;
        Ok(())
    }

    /// Ends the session with nothing owed; the lock stays until cleanup or unlock.
    pub fn keep_lock(mut self) -> Result<()> {
        self.lock.kept = true;
        self.lock.view = None;
        self.host.replace(&self.names.lock(), self.lock.to_text().as_bytes()).context("keep the lock")
    }

    fn forget_journal(&mut self) -> Result<()> {
        if self.journal.is_some() {
            self.host.remove_file(&self.names.journal()).context("forget the journal")?;
            self.journal = None;
        }
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let journal = self.journal.as_mut().ok_or_else(|| anyhow!("no journal has been begun"))?;
        journal.append(self.host, record).context("write the journal")
    }
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("lock", &self.lock)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

/// The journal of a VM, for `status`: takes no lock, changes nothing.
pub fn peek(host: &dyn Host, names: &Names) -> Result<Option<Journal>> {
    Ok(JournalFile::read(host, names)?.map(JournalFile::into_journal))
}
