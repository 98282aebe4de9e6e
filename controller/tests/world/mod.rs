//! The worlds that the crash sweep breaks, and what "as before" means.
//! Shared by the tests that run on the simulated host.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use virt_backup::command;
use virt_backup::core::compression::Compression;
use virt_backup::core::facts::BitmapSupport;
use virt_backup::core::names::{CheckpointName, Places, Target, Uuid};
use virt_backup::core::options::{
    Archive, ChunkSize, Chunkmount, Clusters, Dump, DumpForm, JobLimit, LockAfter, Macs, Memory,
    MethodChoice, Pause, Quiesce, Running, Snapshots, ThinSnapshots, Tracking,
};
use virt_backup::core::retention::{ArchiveName, Policy};
use virt_backup::core::units::Bytes;
use virt_backup::host::sim::world::Freezing;
use virt_backup::host::sim::{Fault, FaultKind, Guest, Image, Node, Power, SimHost, World};

const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

/// A world, and a job that is to be tried on it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) world: World,
    /// The world before this program ever ran on it.
    pristine: World,
    pub(crate) options: Chunkmount,
    /// A dump or an archive in the place of a view.
    pub(crate) dump: Option<Dump>,
    pub(crate) archive: Option<Archive>,
    pub(crate) guest_runs: bool,
    /// Checkpoints of ours after a job that went well.
    pub(crate) checkpoints_left: usize,
    /// Small enough for pairs of faults.
    pub(crate) twice: bool,
}

pub(crate) fn places() -> Places {
    Places { backup_dir: "/b".into(), lock_dir: "/b".into(), state_dir: "/state".into() }
}

pub(crate) fn options() -> Chunkmount {
    Chunkmount {
        method: MethodChoice::Auto,
        quiesce: Quiesce::No,
        tracking: Tracking::Auto,
        exclude: BTreeSet::new(),
        chunk_size: ChunkSize::DEFAULT,
        pause: Pause::Never,
        running: Running::Stays,
        memory: Memory::LeftOut,
        snapsize: Bytes(5 << 30),
        snapshots: Snapshots::Allowed,
        thin: ThinSnapshots::Removed,
        volume: None,
        own_command: Vec::new(),
    }
}

pub(crate) fn uuid() -> Uuid {
    Uuid::new(UUID).unwrap()
}

fn archive() -> Archive {
    Archive {
        base: "/archives".into(),
        name: ArchiveName::parse("2025-07-14-172447").unwrap(),
        clusters: Clusters::Plain,
        new_name: None,
        uuid: Uuid::from_bits(7),
        macs: Macs::Kept,
        policy: Policy { last: std::num::NonZeroU32::new(1), ..Policy::KEEP_ALL },
    }
}

fn target(name: &str) -> Target {
    Target::new(name).unwrap()
}

/// A host with one guest, whose disks are given as target and format.
pub(crate) fn machine(power: Power, disks: &[(&str, &str)]) -> World {
    machine_in("/images", power, disks)
}

/// The same, with the images in that directory: `/dev/vg0` and `/lv` are logical volumes.
fn machine_in(dir: &str, power: Power, disks: &[(&str, &str)]) -> World {
    let mut world = World::default();
    for dir in ["/b", "/state", dir] {
        world.add_dirs(Path::new(dir));
    }
    let mut guest = Guest {
        name: "mail01".to_owned(),
        xml: String::new(),
        power,
        frozen: false,
        freezing: Freezing::AsAsked,
        suspended: false,
        disks: BTreeMap::new(),
        job: None,
        checkpoints: vec![("nightly-of-somebody-else".to_owned(), BTreeSet::new())],
        ledger: BTreeMap::new(),
    };
    let mut devices = String::new();
    for (number, (name, format)) in (1..).zip(disks) {
        let path = PathBuf::from(format!("{dir}/{name}.{format}"));
        let bitmaps = if *format == "qcow2" { BitmapSupport::Qcow2V3 } else { BitmapSupport::NotQcow2 };
        let chunks = std::array::from_fn(|chunk| number * 100 + chunk as u64);
        world
            .nodes
            .insert(path.clone(), Node::Image(Image { chunks, bitmaps, dirty: BTreeMap::new(), touched: 0 }));
        guest.ledger.insert(target(name), chunks);
        devices += &format!(
            "<disk type='file'><driver type='{format}'/><source file='{}'/><target dev='{name}'/></disk>",
            path.display()
        );
        guest.disks.insert(target(name), path);
    }
    guest.xml = format!(
        "<domain><name>mail01</name><uuid>{UUID}</uuid><memory>1024</memory><devices>{devices}</devices></domain>"
    );
    world.guests.insert(uuid(), guest);
    world
}

const TPM: &str = "/var/lib/libvirt/swtpm/c7a5fdbd-edaf-9455-926a-d65c16db1809/tpm2";

/// The same with an emulated TPM.
fn with_tpm(mut world: World) -> World {
    world.add_dirs(Path::new(TPM));
    for (name, content) in [(".lock", ""), ("tpm2-00.permall", "the state of the TPM")] {
        world.nodes.insert(Path::new(TPM).join(name), Node::File(content.into()));
    }
    for guest in world.guests.values_mut() {
        let tpm = "<tpm><backend type='emulator' version='2.0'/></tpm></devices>";
        guest.xml = guest.xml.replace("</devices>", tpm);
    }
    world
}

/// Runs something as a process of its own on a world.
fn on(world: World, fault: Option<Fault>, act: impl FnOnce(&SimHost)) -> World {
    let shared = Rc::new(RefCell::new(world));
    let host = SimHost::new(&shared, fault);
    act(&host);
    host.exit();
    shared.take()
}

fn mounted(world: World, fault: Option<Fault>) -> World {
    mounted_with(world, fault, &options())
}

fn mounted_with(world: World, fault: Option<Fault>, options: &Chunkmount) -> World {
    on(world, fault, |host| {
        let done = command::chunkmount(host, &places(), "mail01", options, JobLimit::Unlimited, &|| false);
        assert_eq!(done.is_ok(), fault.is_none(), "{done:?}");
    })
}

fn backed_up(world: World) -> World {
    cleaned(mounted(world, None))
}

fn cleaned(world: World) -> World {
    on(world, None, |host| drop(command::cleanup(host, &places(), "mail01").unwrap()))
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    const QCOW2: &[(&str, &str)] = &[("vda", "qcow2")];
    const BOTH: &[(&str, &str)] = &[("vda", "qcow2"), ("vdb", "raw")];
    const RAWS: &[(&str, &str)] = &[("vda", "raw"), ("vdb", "raw")];
    const TWO: &[(&str, &str)] = &[("vda", "qcow2"), ("vdb", "qcow2")];
    let running = |disks| machine(Power::On, disks);
    let off = |disks| machine(Power::Off, disks);
    let crash = |at| Some(Fault { at, kind: FaultKind::CrashAfter });

    let quiet = || Scenario {
        name: "",
        world: World::default(),
        pristine: World::default(),
        options: options(),
        dump: None,
        archive: None,
        guest_runs: true,
        checkpoints_left: 1,
        twice: false,
    };
    let make = |name, pristine: World, before: &dyn Fn(World) -> World, rest: Scenario| {
        let guest_runs = pristine.guests.values().all(|guest| guest.power == Power::On);
        let checkpoints_left = if guest_runs { rest.checkpoints_left } else { 0 };
        Scenario { name, world: before(pristine.clone()), pristine, guest_runs, checkpoints_left, ..rest }
    };
    let untouched: &dyn Fn(World) -> World = &|world| world;
    let digest = Chunkmount { tracking: Tracking::Digest, ..options() };
    let frozen = Chunkmount { quiesce: Quiesce::Require, ..options() };
    let wished = Chunkmount { quiesce: Quiesce::Auto, ..options() };
    let without_vdb = Chunkmount { exclude: BTreeSet::from([target("vdb")]), ..options() };
    let external = Chunkmount { method: MethodChoice::External, ..options() };
    let reflink = Chunkmount { method: MethodChoice::Reflink, ..options() };
    let lvm = Chunkmount { method: MethodChoice::Lvm, ..options() };
    let kept = Chunkmount { thin: ThinSnapshots::Kept, ..lvm.clone() };
    let kept_before: &dyn Fn(World) -> World = &|world| cleaned(mounted_with(world, None, &kept));
    let paused = Chunkmount { method: MethodChoice::Offline, pause: Pause::AsLongAsItTakes, ..options() };
    let shut_down = Chunkmount { running: Running::ShutDown { within_secs: 9 }, ..options() };
    let dump = Dump { form: DumpForm::Image(Compression::None), pace: None, lock: LockAfter::GivenBack };
    let dumped = |method, pause| Scenario {
        dump: Some(dump.clone()),
        options: Chunkmount { method, pause, ..options() },
        checkpoints_left: 0,
        ..quiet()
    };
    let none_left = |options| Scenario { options, checkpoints_left: 0, ..quiet() };
    vec![
        make("pull: qcow2, first", running(QCOW2), untouched, quiet()),
        make("pull: raw", running(&[("vda", "raw")]), untouched, Scenario { checkpoints_left: 0, ..quiet() }),
        make("pull: qcow2 and raw, first", running(BOTH), untouched, quiet()),
        make("pull: two qcow2, incremental", running(TWO), &backed_up, Scenario { twice: true, ..quiet() }),
        make("pull: qcow2 and raw, incremental", running(BOTH), &backed_up, quiet()),
        make("pull: incremental, frozen", running(BOTH), &backed_up, Scenario { options: frozen, ..quiet() }),
        make(
            "pull: incremental, frozen if possible",
            running(BOTH),
            &backed_up,
            Scenario { options: wished, ..quiet() },
        ),
        make("pull: vdb no more", running(TWO), &backed_up, Scenario { options: without_vdb, ..quiet() }),
        make(
            "pull: bitmaps no more",
            running(TWO),
            &backed_up,
            Scenario { options: digest, checkpoints_left: 0, ..quiet() },
        ),
        make("pull: over a mounted view", running(BOTH), &|w| mounted(backed_up(w), None), quiet()),
        make("pull: over a crashed job", running(BOTH), &|w| mounted(backed_up(w), crash(30)), quiet()),
        make(
            "pull: over a job before a power cut",
            running(BOTH),
            &|w| {
                let mut world = mounted(backed_up(w), None);
                world.cut_power();
                world.guests.values_mut().for_each(|guest| guest.power = Power::On);
                world
            },
            quiet(),
        ),
        make("pull: with a TPM", with_tpm(running(QCOW2)), untouched, Scenario { twice: true, ..quiet() }),
        make("reflink: with a TPM", with_tpm(running(BOTH)), untouched, none_left(reflink.clone())),
        make("offline: with a TPM", with_tpm(off(BOTH)), untouched, quiet()),
        make(
            "dump: with a TPM",
            with_tpm(running(BOTH)),
            untouched,
            dumped(MethodChoice::Pull, Pause::Never),
        ),
        make(
            "archive: with a TPM",
            with_tpm(running(BOTH)),
            untouched,
            Scenario { archive: Some(archive()), ..dumped(MethodChoice::Auto, Pause::Never) },
        ),
        make("external: qcow2, first", running(QCOW2), untouched, none_left(external.clone())),
        make(
            "external: qcow2 and raw",
            running(BOTH),
            untouched,
            Scenario { twice: true, ..none_left(external.clone()) },
        ),
        make(
            "external: after pull, frozen",
            running(BOTH),
            &backed_up,
            Scenario { options: Chunkmount { quiesce: Quiesce::Require, ..external.clone() }, ..quiet() },
        ),
        make(
            "external: over a crashed job",
            running(TWO),
            &|w| {
                let options = Chunkmount { method: MethodChoice::External, ..options() };
                mounted_with(w, crash(30), &options)
            },
            none_left(external.clone()),
        ),
        make(
            "external: over a mounted view",
            running(BOTH),
            &|w| mounted_with(w, None, &Chunkmount { method: MethodChoice::External, ..options() }),
            none_left(external.clone()),
        ),
        make(
            "external: of a suspended guest",
            suspended(running(BOTH)),
            untouched,
            none_left(external.clone()),
        ),
        make(
            "external: of a guest that is shut down first",
            running(BOTH),
            untouched,
            none_left(Chunkmount { running: Running::ShutDown { within_secs: 9 }, ..external }),
        ),
        make("pull: of a suspended guest", suspended(running(BOTH)), untouched, quiet()),
        make(
            "pull: of a guest that is shut down first",
            running(BOTH),
            untouched,
            Scenario { options: shut_down.clone(), ..quiet() },
        ),
        make(
            "reflink: qcow2 and raw",
            running(BOTH),
            untouched,
            Scenario { twice: true, ..none_left(reflink.clone()) },
        ),
        make(
            "reflink: after pull, frozen",
            running(BOTH),
            &backed_up,
            Scenario { options: Chunkmount { quiesce: Quiesce::Require, ..reflink.clone() }, ..quiet() },
        ),
        make(
            "reflink: of a suspended guest",
            suspended(running(BOTH)),
            untouched,
            none_left(reflink.clone()),
        ),
        make("reflink: of a guest that is off", off(BOTH), untouched, none_left(reflink.clone())),
        make(
            "reflink: of a guest that is shut down first",
            running(BOTH),
            untouched,
            none_left(Chunkmount { method: MethodChoice::Reflink, ..shut_down.clone() }),
        ),
        make(
            "lvm: two volumes",
            machine_in("/dev/vg0", Power::On, BOTH),
            untouched,
            Scenario { twice: true, ..none_left(lvm.clone()) },
        ),
        make(
            "lvm: two images on one volume",
            machine_in("/lv", Power::On, BOTH),
            untouched,
            Scenario { twice: true, ..none_left(lvm.clone()) },
        ),
        make(
            "lvm: two raw images on one volume",
            machine_in("/lv", Power::On, RAWS),
            untouched,
            Scenario { twice: true, ..none_left(lvm.clone()) },
        ),
        make(
            "lvm: after pull, frozen",
            machine_in("/lv", Power::On, BOTH),
            &backed_up,
            Scenario { options: Chunkmount { quiesce: Quiesce::Require, ..lvm.clone() }, ..quiet() },
        ),
        make(
            "lvm: over a crashed job",
            machine_in("/lv", Power::On, TWO),
            &|w| mounted_with(w, crash(30), &Chunkmount { method: MethodChoice::Lvm, ..options() }),
            none_left(lvm.clone()),
        ),
        make(
            "lvm: over a mounted view",
            machine_in("/dev/vg0", Power::On, BOTH),
            &|w| mounted_with(w, None, &Chunkmount { method: MethodChoice::Lvm, ..options() }),
            none_left(lvm.clone()),
        ),
        make(
            "lvm: of a suspended guest",
            suspended(machine_in("/lv", Power::On, BOTH)),
            untouched,
            none_left(lvm.clone()),
        ),
        make(
            "lvm: of a guest that is off",
            machine_in("/dev/vg0", Power::Off, BOTH),
            untouched,
            none_left(lvm.clone()),
        ),
        make(
            "lvm: of a guest that is shut down first",
            machine_in("/lv", Power::On, BOTH),
            untouched,
            none_left(Chunkmount { method: MethodChoice::Lvm, ..shut_down.clone() }),
        ),
        make(
            "lvm: two thin volumes, kept",
            machine_in("/dev/thin", Power::On, RAWS),
            untouched,
            Scenario { twice: true, ..none_left(kept.clone()) },
        ),
        make(
            "lvm: two thin volumes, kept before",
            machine_in("/dev/thin", Power::On, RAWS),
            kept_before,
            none_left(kept.clone()),
        ),
        make(
            "lvm: two thin volumes, kept no more",
            machine_in("/dev/thin", Power::On, RAWS),
            kept_before,
            none_left(lvm.clone()),
        ),
        make(
            "pull: after lvm, which kept snapshots",
            machine_in("/dev/thin", Power::On, RAWS),
            kept_before,
            none_left(options()),
        ),
        make(
            "lvm: thin volumes, over a crashed job",
            machine_in("/dev/thin", Power::On, RAWS),
            &|w| mounted_with(w, crash(30), &kept),
            none_left(kept.clone()),
        ),
        make(
            "lvm: thin volumes of a guest that is off",
            machine_in("/dev/thin", Power::Off, RAWS),
            kept_before,
            none_left(kept.clone()),
        ),
        make(
            "dump: lvm, two images on one volume",
            machine_in("/lv", Power::On, BOTH),
            untouched,
            dumped(MethodChoice::Lvm, Pause::Never),
        ),
        make(
            "dump: lvm, two volumes",
            machine_in("/dev/vg0", Power::On, BOTH),
            untouched,
            dumped(MethodChoice::Lvm, Pause::Never),
        ),
        make("offline: suspended until cleanup", running(BOTH), untouched, none_left(paused.clone())),
        make("offline: of a suspended guest", suspended(running(BOTH)), untouched, none_left(paused.clone())),
        make(
            "offline: shut down until cleanup",
            running(BOTH),
            untouched,
            none_left(Chunkmount { running: Running::ShutDown { within_secs: 9 }, ..paused }),
        ),
        make(
            "dump: pull",
            running(BOTH),
            untouched,
            Scenario { twice: true, ..dumped(MethodChoice::Pull, Pause::Never) },
        ),
        make(
            "dump: pull, between two views",
            running(BOTH),
            &backed_up,
            Scenario { checkpoints_left: 1, ..dumped(MethodChoice::Auto, Pause::Never) },
        ),
        make("dump: external", running(BOTH), untouched, dumped(MethodChoice::External, Pause::Never)),
        make("dump: reflink", running(BOTH), untouched, dumped(MethodChoice::Reflink, Pause::Never)),
        make(
            "dump: suspended",
            running(BOTH),
            untouched,
            dumped(MethodChoice::Offline, Pause::AsLongAsItTakes),
        ),
        make(
            "archive: external",
            running(BOTH),
            untouched,
            Scenario { archive: Some(archive()), ..dumped(MethodChoice::Auto, Pause::Never) },
        ),
        make(
            "archive: off",
            off(BOTH),
            untouched,
            Scenario { archive: Some(archive()), ..dumped(MethodChoice::Auto, Pause::Never) },
        ),
        make("dump: off", off(BOTH), untouched, dumped(MethodChoice::Auto, Pause::Never)),
        make(
            "dump: over an older dump, lock kept",
            running(BOTH),
            &|w| {
                on(w, None, |host| {
                    let wishes = (&options(), &dump);
                    let limit = JobLimit::Unlimited;
                    command::dump(host, &places(), "mail01", wishes, limit, &|| false).unwrap();
                })
            },
            Scenario {
                dump: Some(Dump { lock: LockAfter::Kept, ..dump.clone() }),
                ..dumped(MethodChoice::Auto, Pause::Never)
            },
        ),
        make("offline: raw", off(&[("vda", "raw")]), untouched, Scenario { twice: true, ..quiet() }),
        make("offline: qcow2 and raw", off(BOTH), untouched, quiet()),
        make("offline: unchanged since the last", off(BOTH), &backed_up, quiet()),
        make("offline: over a mounted view", off(BOTH), &|w| mounted(w, None), quiet()),
    ]
}

/// By an administrator, before any job.
fn suspended(mut world: World) -> World {
    world.guests.values_mut().for_each(|guest| guest.suspended = true);
    world
}

/// What an administrator does after a power cut: the guest is as it was before.
pub(crate) fn power_on(world: &mut World, scenario: &Scenario) {
    for (uuid, guest) in &mut world.guests {
        guest.power = Power::On;
        guest.suspended = scenario.pristine.guests[uuid].suspended;
    }
}

pub(crate) fn our_checkpoints(world: &World) -> Vec<CheckpointName> {
    let names = world.guests[&uuid()].checkpoints.iter();
    names.filter_map(|(name, _)| CheckpointName::recognise(&uuid(), name)).map(|(name, _)| name).collect()
}

/// Nothing of ours is left but the state that is to stay, and the guest has lost nothing.
pub(crate) fn assert_as_before(world: &World, scenario: &Scenario, story: &str) {
    let stays = ["/state", "/state/mail01", "/state/mail01/guard", "/state/.run"].map(Path::new);
    // Archives are not taken back; what they must be is checked by itself.
    let indexes = world.indexes.get(Path::new("/state/mail01/index"));
    let closed = || indexes.into_iter().flatten().filter_map(|(_, index)| index.closed.as_ref());
    let kept: Vec<_> = closed().filter_map(|closed| Some(closed.thin.as_ref()?.device())).collect();
    let passing = |path: &Path| {
        !stays.contains(&path) && !path.starts_with("/archives") && !kept.iter().any(|kept| kept == path)
    };
    assert!(kept.iter().all(|kept| world.nodes.contains_key(kept)), "{story}: a kept snapshot is gone");
    assert!(!world.metadata_held, "{story}: the metadata of a pool are held");
    let nodes = |w: &World| w.nodes.keys().filter(|path| passing(path)).cloned().collect::<Vec<_>>();
    assert_eq!(nodes(world), nodes(&scenario.pristine), "{story}: files");
    assert!(world.mounts.is_empty(), "{story}: mounted: {:?}", world.mounts);
    assert!(world.processes.is_empty(), "{story}: running: {:?}", world.processes);
    assert_eq!(world.violations, [""; 0], "{story}");
    let state = |w: &World| w.nodes.get(&Path::new(TPM).join("tpm2-00.permall")).cloned();
    assert_eq!(state(world), state(&scenario.pristine), "{story}: the TPM");

    let (guest, before) = (&world.guests[&uuid()], &scenario.pristine.guests[&uuid()]);
    assert!(guest.job.is_none(), "{story}: a backup job runs");
    assert!(!guest.frozen, "{story}: the guest is frozen");
    assert_eq!(guest.disks, before.disks, "{story}: the images");
    if world.boots == scenario.world.boots {
        assert_eq!(
            (guest.power, guest.suspended),
            (before.power, before.suspended),
            "{story}: the state of the guest"
        );
    }
    assert_eq!(guest.xml, before.xml, "{story}");
    let foreign = |g: &Guest| {
        let names = g.checkpoints.iter().map(|(name, _)| name.clone());
        names.filter(|name| CheckpointName::recognise(&uuid(), name).is_none()).collect::<Vec<_>>()
    };
    assert_eq!(foreign(guest), foreign(before), "{story}: checkpoints of others");
    for (target, path) in &guest.disks {
        assert_eq!(
            world.image(path).unwrap().chunks,
            guest.ledger[target],
            "{story}: {target}: guest writes"
        );
    }
    // One checkpoint, or two when a crash came between the indexes of two disks: until the next job, which is checked.
    if guest.power == Power::On {
        let named: BTreeSet<_> = closed().filter_map(|closed| closed.checkpoint.clone()).collect();
        let ours: BTreeSet<_> = our_checkpoints(world).into_iter().collect();
        assert_eq!(ours, named, "{story}: the checkpoints of ours are not those that the index names");
    }
}

/// What has a final name is complete, and where the list of digests is, all of the dump is, as of one moment.
pub(crate) fn assert_dumps_are_complete(world: &World, story: &str) {
    let dir = Path::new("/b/mail01");
    let content = |target: &str| match world.nodes.get(&dir.join(format!("mail01_{target}.img"))) {
        Some(Node::File(content)) => Some(String::from_utf8(content.clone()).unwrap()),
        _ => None,
    };
    let there: BTreeMap<_, _> =
        ["vda", "vdb"].iter().filter_map(|name| Some((target(name), content(name)?))).collect();
    let matches = |moment: &BTreeMap<Target, [u64; 8]>| {
        there.iter().all(|(target, content)| format!("{:?}", moment[target]) == *content)
    };
    assert!(
        there.is_empty() || world.moments.iter().any(matches),
        "{story}: {there:?} was never on the disks"
    );
    if world.nodes.contains_key(&dir.join("mail01.b3")) {
        assert_eq!(saved_tpm(world, dir), whole_tpm(world), "{story}: the state of the TPM");
        assert_eq!(there.len(), 2, "{story}: the list of digests is there before the disks are");
    }
}

/// The directory of a TPM that a dump or an archive has: whether its file is there, and whole.
fn saved_tpm(world: &World, dir: &Path) -> Option<bool> {
    let tpm = world.names_in(dir).into_iter().find(|name| name.ends_with(".tpm"))?;
    let file = world.nodes.get(&dir.join(tpm).join("tpm2-00.permall"));
    Some(file == world.nodes.get(&Path::new(TPM).join("tpm2-00.permall")))
}

fn whole_tpm(world: &World) -> Option<bool> {
    world.nodes.contains_key(Path::new(TPM)).then_some(true)
}

/// An archive that has its manifest has everything else, too; of one that has not, nothing is left after cleanup.
pub(crate) fn assert_archives_are_complete(world: &World, cleaned: bool, story: &str) {
    let inside = |dir: &str| {
        let names = world.names_in(&Path::new("/archives/mail01").join(dir));
        names.into_iter().collect::<BTreeSet<_>>()
    };
    let complete: BTreeSet<_> = ["vda.qcow2", "vdb.qcow2", "manifest.json"].map(str::to_owned).into();
    for dir in world.names_in(Path::new("/archives/mail01")) {
        let there = inside(&dir);
        let tpm = saved_tpm(world, &Path::new("/archives/mail01").join(&dir));
        let whole = complete.is_subset(&there)
            && there.iter().any(|name| name.ends_with(".b3"))
            && tpm == whole_tpm(world);
        assert!(whole || !there.contains("manifest.json"), "{story}: {dir}: {there:?}");
        assert!(
            !cleaned || whole && there.len() == 5 + usize::from(tpm.is_some()),
            "{story}: {dir} is left after cleanup: {there:?}"
        );
    }
}
