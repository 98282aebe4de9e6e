//! What `status` and `list` tell: jobs, their views and debts; guests.
//! Changes nothing and takes no lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use virt_backup::command::restore::boot::{self, Booted, Life};
use virt_backup::command::restore::{self, Underway};
use virt_backup::command::{self, Failure};
use virt_backup::core::lock::{self, Holder};
use virt_backup::core::names::{Names, Uuid, VmName, vm_of_lock};
use virt_backup::core::plan::Outlook;
use virt_backup::host::libvirt::Listed;
use virt_backup::host::{Files, Processes};
use virt_backup::session;

use crate::cli::Job;
use crate::out::say;
use crate::run::Context;

const OWED: u8 = 3;

/// A VM that a job is underway or left of.
#[derive(Debug, Serialize)]
struct JobStatus {
    vm: VmName,
    state: State,
    mount_point: String,
    /// What cleanup has to undo, newest first.
    owed: Vec<String>,
    /// Why the view cannot be read any more.
    troubles: Vec<String>,
    /// What the daemon of the view tells of itself.
    view: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// A virt-backup is at work on it.
    Working,
    /// The view can be read.
    Shown,
    /// The view is there, and cannot be read any more.
    Failed,
    /// Whoever worked on it or showed it is gone: run cleanup.
    Abandoned,
}

/// A guest that was started from a backup: so that nobody forgets it.
#[derive(Debug, Serialize)]
struct BootStatus {
    vm: VmName,
    state: BootState,
    uuid: Option<Uuid>,
    /// The tree that it runs from.
    from: Option<PathBuf>,
    since: Option<String>,
    owed: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum BootState {
    RunsFromBackup,
    /// It has ended, and what it wrote is still there.
    EndedFromBackup,
}

/// A restore that is neither done nor taken back.
#[derive(Debug, Serialize)]
struct RestoreStatus {
    vm: VmName,
    state: RestoreState,
    owed: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum RestoreState {
    Restoring,
    /// Whoever worked on it is gone: run it again.
    RestoreCutOff,
}

/// What is written down of a VM makes no sense, or cannot be compared with libvirt: says nothing of the others.
#[derive(Debug, Serialize)]
struct Unreadable {
    vm: VmName,
    /// Always "unreadable".
    state: &'static str,
    error: String,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line {
    Job(JobStatus),
    Boot(BootStatus),
    Restore(RestoreStatus),
    Unreadable(Unreadable),
}

/// A guest, and what a backup of it would be.
#[derive(Debug, Serialize)]
struct ListedStatus<'a> {
    #[serde(flatten)]
    guest: &'a Listed,
    auto: Option<Outlook>,
    /// Why nothing is known of that.
    error: Option<String>,
}

/// The guests that were started from a backup and have ended, but for what they wrote.
pub(crate) fn ended_boots(context: &Context) -> Result<Vec<VmName>> {
    let mut vms = vms_with_state(context)?;
    vms.retain(|vm| match boot::booted(&context.machine, &context.places, vm) {
        Ok(boot) => boot.is_some_and(|boot| boot.life == Life::Ended),
        Err(error) => {
            tracing::warn!("{vm}: whether it runs from a backup is not known: {error:#}");
            false
        }
    });
    Ok(vms)
}

fn vms_with_state(context: &Context) -> Result<Vec<VmName>> {
    let names = context.machine.list(&context.places.state_dir)?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| VmName::new(name).ok()).collect())
}

/// The VMs whose journal, lock or view is there.
pub(crate) fn vms_with_jobs(context: &Context) -> Result<Vec<VmName>> {
    let (machine, places) = (&context.machine, &context.places);
    let mut vms = BTreeSet::new();
    for vm in vms_with_state(context)? {
        if machine.read(&Names::new(places, &vm).journal())?.is_some() {
            vms.insert(vm);
        }
    }
    let locks = machine.list(&places.lock_dir)?.unwrap_or_default();
    vms.extend(locks.iter().filter_map(|file| vm_of_lock(file)));
    Ok(vms.into_iter().collect())
}

pub(crate) fn status(context: &Context, json: bool) -> Result<u8, Failure> {
    let (machine, places) = (&context.machine, &context.places);
    let mut lines = Vec::new();
    let mut add = |vm: &VmName, found: Result<Option<Line>>| match found {
        Ok(line) => lines.extend(line),
        Err(error) => {
            let error = format!("{error:#}");
            lines.push(Line::Unreadable(Unreadable { vm: vm.clone(), state: "unreadable", error }));
        }
    };
    for vm in &vms_with_jobs(context)? {
        add(vm, job(context, vm.clone()).map(|job| Some(Line::Job(job))));
    }
    for vm in &vms_with_state(context)? {
        add(vm, boot::booted(machine, places, vm).map(|boot| Some(Line::Boot(boot_status(boot?)))));
        let underway = restore::underway(machine, places, vm);
        add(vm, underway.map(|restore| Some(Line::Restore(restore_status(restore?)))));
    }
    if json {
        print_json(&lines)?;
    } else if lines.is_empty() {
        say!("no job is underway, and nothing is owed");
    } else {
        lines.iter().for_each(|line| match line {
            Line::Job(job) => print_job(job),
            Line::Boot(boot) => print_boot(boot),
            Line::Restore(restore) => print_restore(restore),
            Line::Unreadable(about) => say!("{}: what is written down of it: {}", about.vm, about.error),
        });
    }
    let owes = |line: &Line| match line {
        Line::Job(job) => job.state == State::Abandoned,
        Line::Boot(boot) => boot.state == BootState::EndedFromBackup,
        Line::Restore(restore) => restore.state == RestoreState::RestoreCutOff,
        Line::Unreadable(_) => true,
    };
    Ok(if lines.iter().any(owes) { OWED } else { 0 })
}

fn boot_status(boot: Booted) -> BootStatus {
    let at = |secs| jiff::Timestamp::from_second(secs).ok().map(|at| at.to_string());
    BootStatus {
        vm: boot.name,
        state: match boot.life {
            Life::Runs => BootState::RunsFromBackup,
            Life::Ended => BootState::EndedFromBackup,
        },
        uuid: boot.uuid,
        from: boot.tree,
        since: boot.since_secs.and_then(at),
        owed: boot.owed,
    }
}

fn print_boot(boot: &BootStatus) {
    let from = boot.from.as_ref().map_or_else(|| "a backup".to_owned(), |tree| tree.display().to_string());
    let since = boot.since.as_ref().map(|since| format!(", since {since}")).unwrap_or_default();
    let vm = &boot.vm;
    match boot.state {
        BootState::RunsFromBackup => say!("{vm}: runs from {from}{since}"),
        BootState::EndedFromBackup => {
            say!("{vm}: ran from {from}{since}, and has ended: what it wrote is still there");
        }
    }
    say!("  virt-backup boot --stop={vm} ends it and removes what it wrote");
}

fn restore_status(restore: Underway) -> RestoreStatus {
    let state = if restore.goes_on { RestoreState::Restoring } else { RestoreState::RestoreCutOff };
    RestoreStatus { vm: restore.name, state, owed: restore.owed }
}

fn print_restore(restore: &RestoreStatus) {
    let vm = &restore.vm;
    match restore.state {
        RestoreState::Restoring => say!("{vm}: a virt-backup is at work on it, and on its restore"),
        RestoreState::RestoreCutOff => {
            say!("{vm}: its restore was cut off: run the same restore again");
            restore.owed.iter().for_each(|owed| say!("  owed: {owed}"));
        }
    }
}

fn job(context: &Context, vm: VmName) -> Result<JobStatus> {
    let machine = &context.machine;
    let names = Names::new(&context.places, &vm);
    let boot = machine.boot_id()?;
    let lock = machine.read(&names.lock())?;
    let holder = lock::holder(lock.as_deref(), &boot, |process| machine.lives(process))?;
    let journal = session::peek(machine, &names)?;
    let view = daemon_status(&names.mount_point());
    let troubles: Vec<String> = view.as_ref().map(troubles_of).unwrap_or_default();
    let state = match (&holder, &view) {
        (Holder::Working(_), _) => State::Working,
        (Holder::Showing(_), Some(_)) if troubles.is_empty() => State::Shown,
        (_, Some(_)) if !troubles.is_empty() => State::Failed,
        (Holder::Showing(_), _) => State::Shown,
        _ => State::Abandoned,
    };
    Ok(JobStatus {
        mount_point: names.mount_point().display().to_string(),
        owed: journal
            .map(|j| j.owed().iter().map(|debt| debt.undo.to_string()).collect())
            .unwrap_or_default(),
        vm,
        state,
        troubles,
        view,
    })
}

/// None: nothing of ours is mounted there, or its daemon does not answer.
fn daemon_status(point: &Path) -> Option<Value> {
    use chunkfs::mount::control::{self, Answer, Request};
    use chunkfs::mount::points;
    let mount = points::at(&points::absolute(point).ok()?).ok()??;
    match control::ask(&mount, Request::Status, std::time::Duration::from_secs(5)) {
        Ok(Some(Answer::Status(status))) => Some(status),
        _ => None,
    }
}

fn troubles_of(view: &Value) -> Vec<String> {
    let troubles = view["troubles"].as_array().into_iter().flatten();
    troubles.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// How much of the view of a VM was read so far. None: there is no view, or it does not answer.
pub(crate) fn reads(context: &Context, vm: &VmName) -> Option<String> {
    let view = daemon_status(&Names::new(&context.places, vm).mount_point())?;
    Some(reads_of(&view))
}

fn reads_of(view: &Value) -> String {
    let least = if view["chunks_read_exact"] == false { "at least " } else { "" };
    format!("{least}{} of {} chunks were read", view["chunks_read"], view["chunks"])
}

fn print_job(job: &JobStatus) {
    let state = match job.state {
        State::Working => "a virt-backup is at work on it".to_owned(),
        State::Shown => format!("shown at {}", job.mount_point),
        State::Failed => format!("the view at {} cannot be read any more: run cleanup", job.mount_point),
        State::Abandoned => "left by a job that is gone: run cleanup".to_owned(),
    };
    say!("{}: {state}", job.vm);
    job.troubles.iter().for_each(|trouble| say!("  trouble: {trouble}"));
    if let Some(view) = &job.view {
        say!("  {}", reads_of(view));
        say!("  {} reads, {} bytes, {} errors", view["reads"], view["bytes_read"], view["read_errors"]);
    }
    if matches!(job.state, State::Failed | State::Abandoned) {
        job.owed.iter().for_each(|owed| say!("  owed: {owed}"));
    }
}

pub(crate) fn list(context: &Context, json: bool) -> Result<u8, Failure> {
    let guests = context.machine.list_guests()?;
    let options = Job::usual().options(Vec::new());
    let listed = guests.iter().map(|guest| {
        let outlook = command::outlook(&context.machine, &context.places, &guest.uuid, &options);
        let (auto, error) = match outlook {
            Ok(outlook) => (Some(outlook), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        ListedStatus { guest, auto, error }
    });
    let listed: Vec<_> = listed.collect();
    if json {
        print_json(&listed)?;
        return Ok(0);
    }
    let width = guests.iter().map(|guest| guest.name.chars().count()).max().unwrap_or(0);
    for ListedStatus { guest, auto, error } in &listed {
        say!("{:width$}  {:9}  {}  {}", guest.name, guest.state, guest.uuid, in_short(auto.as_ref()));
        let auto = auto.iter();
        let reasons = auto.clone().flat_map(|auto| auto.obstacles.iter().cloned());
        let passed_over = auto.flat_map(|auto| &auto.passed_over);
        let passed_over = passed_over.map(|other| format!("not by method {}: {}", other.method, other.why));
        error.iter().cloned().chain(reasons).chain(passed_over).for_each(|why| say!("  {why}"));
    }
    Ok(0)
}

fn in_short(auto: Option<&Outlook>) -> String {
    match auto.map(|auto| auto.method) {
        Some(Some(method)) => format!("method {method}"),
        Some(None) => "no method works".to_owned(),
        None => "could not be looked at".to_owned(),
    }
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    say!("{}", serde_json::to_string_pretty(value).context("write JSON")?);
    Ok(())
}
