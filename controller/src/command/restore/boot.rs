//! boot and drill: a guest runs straight from a tree of chunks; it is thrown away, kept, or only has to prove that it lives.
//! The tree itself is only read.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use chunkfs::watch::Watch;

use crate::core::domain::DomainId;
use crate::core::facts::Definition;
use crate::core::names::{Names, Places, Target, Uuid, VmName};
use crate::core::restore::boot::{self, AfterBoot, BootFacts, BootNames, BootWish, Network};
use crate::core::restore::{Plan, Then, Undo};

use super::backup::{self, Opened};
use super::journal::{self, Journal, Origin};
use super::{BUSY, DAMAGED, Failure, Ground, OWING, Verification, act, image, take, undo, verify};

#[derive(Clone, Debug)]
pub struct BootRequest {
    pub from: PathBuf,
    /// Of several VMs in one directory.
    pub vm: Option<String>,
    /// None: the VM's, with the ending of the command.
    pub name: Option<VmName>,
    pub exclude: BTreeSet<Target>,
    pub network: Network,
    pub then: AfterBoot,
    pub places: Places,
    pub chunkfs: PathBuf,
}

/// How a guest proves that it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its agent answers.
    Agent,
    /// It prints this on its first serial port.
    Prints(String),
}

/// A drill that went well.
#[derive(Clone, Debug)]
pub struct Drilled {
    pub id: DomainId,
    pub took: Duration,
    pub notes: Vec<String>,
}

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What is shown of the console of a guest that did not prove anything.
const LAST_WORDS: usize = 1000;

/// Starts the guest; with `AfterBoot::Keep`, returns when all of its disks are its own and it is defined.
pub fn boot(ground: &dyn Ground, request: &BootRequest, watch: &dyn Watch) -> Result<Plan, Failure> {
    let opened = super::open(&request.from, request.vm.as_deref())?;
    let (wish, names) = wish_and_names(request, &opened, "boot")?;
    let _guard = take(ground, &names)?;
    let boot_names = BootNames::new(&names.home());
    let (mut journal, plan) = match running(ground, &names, &opened, &wish, &boot_names)? {
        Some(running) => running,
        None => start(ground, &opened, &names, &wish, request, watch)?,
    };
    if let AfterBoot::Keep { .. } = wish.then {
        keep(ground, &opened, &wish, &boot_names, &plan, &mut journal, watch)?;
    }
    Ok(plan)
}

/// A guest that was started from a backup and is not yet thrown away or kept.
#[derive(Clone, Debug)]
pub struct Booted {
    pub name: VmName,
    pub uuid: Option<Uuid>,
    pub life: Life,
    /// None: whoever started it was too old to write it down.
    pub tree: Option<PathBuf>,
    /// In seconds since 1970.
    pub since_secs: Option<i64>,
    /// What ending it has to undo, newest first.
    pub owed: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Runs,
    /// It has ended by itself, or the host has; what it wrote is still there.
    Ended,
}

/// None: nothing of this name was started from a backup. Takes no lock, changes nothing.
pub fn booted(ground: &dyn Ground, places: &Places, name: &VmName) -> Result<Option<Booted>> {
    let names = Names::new(places, name);
    let Some(journal) = Journal::read(ground, journal::of_boot(&names))? else { return Ok(None) };
    let uuid = journal.runs().map(|id| id.uuid.clone());
    let known = uuid.as_ref().map(|uuid| ground.by_uuid(uuid)).transpose()?.flatten();
    Ok(Some(Booted {
        name: name.clone(),
        uuid,
        life: if known.is_some() { Life::Runs } else { Life::Ended },
        tree: journal.origin().map(|origin| origin.tree.clone()),
        since_secs: journal.origin().map(|origin| origin.since_secs),
        owed: journal.owed().map(Undo::to_string).collect(),
    }))
}

fn now_secs() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Ends a guest that runs from a backup, and removes all that it wrote.
pub fn stop(ground: &dyn Ground, places: &Places, name: &VmName) -> Result<Vec<String>, Failure> {
    let names = Names::new(places, name);
    let _guard = take(ground, &names)?;
    let Some(mut journal) = Journal::read(ground, journal::of_boot(&names))? else {
        return Err(anyhow!("{name}: no guest of this name runs from a backup").into());
    };
    finish_if_kept(ground, &mut journal)?;
    throw_away(ground, name, &mut journal)
}

/// Runs the guest until it has proven that it lives, and throws it away, whatever came of it.
pub fn drill(
    ground: &dyn Ground,
    request: &BootRequest,
    proof: &Proof,
    within: Duration,
    verification: Verification,
    watch: &dyn Watch,
) -> Result<Drilled, Failure> {
    let mut opened = super::open(&request.from, request.vm.as_deref())?;
    let (wish, names) = wish_and_names(request, &opened, "drill")?;
    if *proof == Proof::Agent && !backup::has_agent(&opened.backup.xml) {
        let story = format!(
            "{}: the guest has no agent that could answer: say what it prints on its serial port, with --expect",
            opened.backup.domain.id
        );
        return Err(Failure { exit_status: 1, story });
    }
    let _guard = take(ground, &names)?;
    let boot_names = BootNames::new(&names.home());
    if running(ground, &names, &opened, &wish, &boot_names)?.is_some() {
        let story = format!("{} runs from a backup: virt-backup boot --stop {}", wish.name, wish.name);
        return Err(Failure { exit_status: BUSY, story });
    }
    if verification == Verification::Before {
        let bytes = opened.backup.disks.values().filter_map(|kept| kept.bytes).map(|bytes| bytes.0).sum();
        watch.expect(bytes);
        verify::all(&mut opened, &request.exclude, Then::Start, watch)?;
    }
    let (mut journal, plan) = start(ground, &opened, &names, &wish, request, watch)?;
    let begun = Instant::now();
    let proven = wait_for(ground, &plan.id, proof, begun + within, &boot_names, watch);
    let took = begun.elapsed();
    let last_words = last_words(&boot_names);
    let thrown_away = throw_away(ground, &wish.name, &mut journal);
    match (proven, thrown_away) {
        (Ok(()), Ok(_)) => Ok(Drilled { id: plan.id, took, notes: plan.notes }),
        (Ok(()), Err(failure)) => Err(failure),
        (Err(why), thrown_away) => {
            let left = thrown_away.err().map(|failure| format!("; {failure}")).unwrap_or_default();
            let status = if left.is_empty() { why.exit_status } else { OWING };
            let story = format!("{}: {}{last_words}{left}", plan.id, why.story);
            Err(Failure { exit_status: status, story })
        }
    }
}

fn wish_and_names(
    request: &BootRequest,
    opened: &Opened,
    ending: &str,
) -> Result<(BootWish, Names), Failure> {
    let name = match &request.name {
        Some(name) => name.clone(),
        None => {
            let own = &opened.backup.domain.id.name;
            VmName::new(&format!("{own}-{ending}")).map_err(anyhow::Error::from)?
        }
    };
    let names = Names::new(&request.places, &name);
    let (exclude, network, then) = (request.exclude.clone(), request.network, request.then.clone());
    Ok((BootWish { name, exclude, network, then }, names))
}

/// One of this name that runs, and is to be kept; else an error. What is left of one that has ended goes.
fn running(
    ground: &dyn Ground,
    names: &Names,
    opened: &Opened,
    wish: &BootWish,
    boot_names: &BootNames,
) -> Result<Option<(Journal, Plan)>, Failure> {
    let Some(mut journal) = Journal::read(ground, journal::of_boot(names))? else { return Ok(None) };
    finish_if_kept(ground, &mut journal)?;
    let alive = match journal.runs().cloned() {
        Some(id) if !journal.is_kept() => ground.by_uuid(&id.uuid)?.map(|_| id),
        _ => None,
    };
    let Some(id) = alive else {
        throw_away(ground, &wish.name, &mut journal)?;
        return Ok(None);
    };
    let overlays = boot::wanted(&opened.backup, wish).map(|target| boot_names.overlay(wish, target));
    let same = overlays
        .into_iter()
        .all(|path| journal.owed().any(|undo| *undo == Undo::Discard { path: path.clone() }));
    match wish.then {
        AfterBoot::Keep { .. } if same => {
            Ok(Some((journal, Plan { id, notes: Vec::new(), steps: Vec::new() })))
        }
        _ => Err(Failure {
            exit_status: BUSY,
            story: format!("{id} runs from a backup already: virt-backup boot --stop {id} ends it"),
        }),
    }
}

fn facts(ground: &dyn Ground, opened: &Opened, wish: &BootWish, names: &BootNames) -> Result<BootFacts> {
    let paths = names.paths(&opened.backup, wish);
    let standing = paths.into_iter().map(|path| Ok((path.clone(), super::standing(&path)?)));
    Ok(BootFacts {
        fresh_uuid: super::fresh_uuid()?,
        of_this_name: ground.by_name(wish.name.as_str())?,
        absent_media: super::absent_media(&opened.backup),
        standing: standing.collect::<Result<_>>()?,
    })
}

fn start(
    ground: &dyn Ground,
    opened: &Opened,
    names: &Names,
    wish: &BootWish,
    request: &BootRequest,
    watch: &dyn Watch,
) -> Result<(Journal, Plan), Failure> {
    let boot_names = BootNames::new(&names.home());
    ground.make_dir(boot_names.dir())?;
    let facts = facts(ground, opened, wish, &boot_names)?;
    let own = &opened.backup.domain.id;
    let plan = boot::plan(&opened.backup, wish, &facts, &boot_names);
    let plan = plan.map_err(|refusal| {
        // Nothing is in it; should it not go, it does no harm.
        drop(ground.remove_dir(boot_names.dir()));
        Failure { exit_status: 1, story: format!("{own}: cannot be run so: {refusal}") }
    })?;
    let mut journal = Journal::begin(ground, journal::of_boot(names))?;
    let tree = opened.directory.path().to_owned();
    journal.say_from(ground, Origin { tree, since_secs: now_secs() })?;
    journal.owe(ground, Undo::RemoveDir { path: boot_names.dir().to_owned() })?;
    journal.owe(ground, Undo::Remove { path: boot_names.console() })?;
    let tools = image::Tools { chunkfs: &request.chunkfs, dir: names.home(), watch };
    for step in &plan.steps {
        if let Err(failed) = act::act(ground, opened, step, &mut journal, &tools) {
            let story = format!("{}: {step}: {failed}", plan.id);
            let status = if failed.is_damage { DAMAGED } else { 1 };
            return Err(match throw_away(ground, &wish.name, &mut journal) {
                Ok(_) => Failure { exit_status: status, story },
                Err(left) => Failure { exit_status: OWING, story: format!("{story}; {left}") },
            });
        }
    }
    Ok((journal, plan))
}

/// Its disks become its own while it runs; then it is defined, and nothing leads to the backup any more.
fn keep(
    ground: &dyn Ground,
    opened: &Opened,
    wish: &BootWish,
    names: &BootNames,
    plan: &Plan,
    journal: &mut Journal,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    let unfinished = |error: anyhow::Error| Failure {
        exit_status: OWING,
        story: format!(
            "{}: {error:#} (it runs from the backup: the same command goes on, `virt-backup boot --stop {}` ends it)",
            plan.id, wish.name
        ),
    };
    for target in boot::wanted(&opened.backup, wish) {
        let pulled = ground.pull(&plan.id, target, &|| watch.is_stopped());
        pulled.with_context(|| format!("copy {target}")).map_err(unfinished)?;
    }
    let facts = BootFacts { fresh_uuid: plan.id.uuid.clone(), ..facts(ground, opened, wish, names)? };
    let xml = boot::definition(&opened.backup, wish, &facts, names).map_err(anyhow::Error::from)?;
    ground.define(&xml).context("define it").map_err(unfinished)?;
    finish_if_kept(ground, journal)?;
    throw_away(ground, &wish.name, journal).map(drop)
}

/// From the moment on at which libvirt has its definition, a guest and its disks stay.
fn finish_if_kept(ground: &dyn Ground, journal: &mut Journal) -> Result<()> {
    let Some(id) = journal.runs().filter(|_| !journal.is_kept()) else { return Ok(()) };
    let defined = ground.by_uuid(&id.uuid)?.is_some_and(|known| known.persistence == Definition::Persistent);
    if defined { journal.keep(ground) } else { Ok(()) }
}

/// Of one that was kept, only what it needs no more.
fn throw_away(ground: &dyn Ground, name: &VmName, journal: &mut Journal) -> Result<Vec<String>, Failure> {
    let undone = undo::all(ground, journal);
    if !undone.errors.is_empty() {
        return Err(Failure {
            exit_status: OWING,
            story: format!("{name}: {undone}: virt-backup boot --stop {name}"),
        });
    }
    journal.forget(ground)?;
    Ok(undone.done)
}

fn wait_for(
    ground: &dyn Ground,
    id: &DomainId,
    proof: &Proof,
    deadline: Instant,
    names: &BootNames,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    let dead = |story: &str| Failure { exit_status: DAMAGED, story: story.to_owned() };
    let mut console = Console::default();
    loop {
        let lives = match proof {
            Proof::Agent => ground.agent_answers(id).unwrap_or(false),
            Proof::Prints(text) => console.has_printed(names, text.as_bytes())?,
        };
        if lives {
            return Ok(());
        }
        if watch.is_stopped() {
            return Err(Failure { exit_status: 1, story: "stopped".to_owned() });
        }
        // What it printed last may have been written after we looked.
        if ground.by_uuid(&id.uuid)?.is_none() {
            return match proof {
                Proof::Prints(text) if console.has_printed(names, text.as_bytes())? => Ok(()),
                _ => Err(dead("it ended without having proven that it lives")),
            };
        }
        if Instant::now() >= deadline {
            return Err(dead("it has not proven in time that it lives (see --timeout)"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Reads on where it has stopped, and remembers no more than could be the beginning of what is looked for.
#[derive(Default)]
struct Console {
    at: u64,
    rest: Vec<u8>,
    found: bool,
}

impl Console {
    fn has_printed(&mut self, names: &BootNames, wanted: &[u8]) -> Result<bool> {
        let Ok(mut file) = File::open(names.console()) else { return Ok(self.found) };
        file.seek(SeekFrom::Start(self.at)).context("read the console")?;
        self.at += file.read_to_end(&mut self.rest).context("read the console")? as u64;
        self.found |= wanted.is_empty() || self.rest.windows(wanted.len()).any(|window| window == wanted);
        let surplus = self.rest.len().saturating_sub(wanted.len());
        self.rest.drain(..surplus);
        Ok(self.found)
    }
}

fn last_words(names: &BootNames) -> String {
    let Ok(mut file) = File::open(names.console()) else { return String::new() };
    let mut text = Vec::new();
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let from = len.saturating_sub(LAST_WORDS as u64);
    // What cannot be read is not told.
    if file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut text)).is_err() || text.is_empty()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    let plain: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    format!("; the last that it printed: {:?}", plain.trim())
}
