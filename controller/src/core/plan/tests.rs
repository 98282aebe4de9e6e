//! Decisions as tables: domain, facts and options in; plan or refusal out.
//! That plans can be carried out and taken back is shown by `tests/crash_sweep.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::*;
use crate::core::domain::{Access, Format, HostCache, Source};
use crate::core::facts::*;
use crate::core::names::{CheckpointName, Places, Uuid};
use crate::core::options::{
    ChunkSize, Memory, MethodChoice, Pause, Quiesce, Running, Snapshots, ThinSnapshots,
};
use crate::core::point::ImagesMark;
use crate::core::step::{BackupRequest, DiskTracking, Need, Undo};
use crate::core::tpm::TpmState;
use crate::core::units::Bytes;
use crate::core::viewspec::{Candidates, Feed};
use crate::core::volume::{Behind, Delta, FileSystem, Place, Volume, VolumeFacts, VolumeKind};

const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";
const GIB: Bytes = Bytes(1 << 30);

/// A case that can be changed before it is decided.
struct Given {
    domain: Domain,
    facts: Facts,
    options: Chunkmount,
}

fn target(name: &str) -> Target {
    Target::new(name).unwrap()
}

fn fingerprint(size: u64) -> Fingerprint {
    Fingerprint { device: 1, inode: 2, size, mtime_nanos: 3, ctime_nanos: 4 }
}

fn chain_layer(format: Format, path: &str, size: u64) -> ChainLayer {
    let (storage, clock) = (Storage::File, Clock::Settled);
    ChainLayer { format, path: path.into(), storage, fingerprint: fingerprint(size), clock }
}

fn mark(size: u64) -> Option<ImagesMark> {
    ImagesMark::of(&[chain_layer(Format::Qcow2, "/i/a.qcow2", size)])
}

/// A running guest with vda (qcow2) and vdb (raw), never backed up.
fn given() -> Given {
    let domain = Domain::parse(&format!(
        "<domain><name>mail01</name><uuid>{UUID}</uuid><memory>1</memory><devices>\
         <disk><driver type='qcow2'/><source file='/i/a.qcow2'/><target dev='vda'/></disk>\
         <disk><source file='/i/b.img'/><target dev='vdb'/></disk>\
         <disk device='cdrom'><target dev='sda'/></disk></devices></domain>"
    ))
    .unwrap();
    let disk = |format, path: &str, bitmaps| {
        let layer = chain_layer(format, path, 7);
        let reflink = Reflink::Impossible { why: "the file system cannot share blocks".to_owned() };
        let volume = Behind::Nothing { why: "it is on no logical volume".to_owned() };
        DiskFacts { capacity: GIB, bitmaps, chain: Chain::Known(vec![layer]), reflink, volume, snapshots: 0 }
    };
    let disks = BTreeMap::from([
        (target("vda"), disk(Format::Qcow2, "/i/a.qcow2", BitmapSupport::Qcow2V3)),
        (target("vdb"), disk(Format::Raw, "/i/b.img", BitmapSupport::NotQcow2)),
    ]);
    let guest = GuestFacts {
        state: GuestState::Running,
        stopped: Stopped::ByItself,
        definition: Definition::Persistent,
        agent: Agent::Absent,
        pull: PullSupport::Yes,
        backup_job: None,
    };
    let facts = Facts {
        guest,
        disks,
        checkpoints: Vec::new(),
        index: BTreeMap::new(),
        mount_point: MountPoint::Absent,
        nvram: Nvram::None,
        tpm: TpmFacts::NoTpm,
        scratch_free: Bytes(100 << 30),
        epoch: 1_752_513_887,
    };
    let options = Chunkmount {
        method: MethodChoice::Auto,
        quiesce: Quiesce::Auto,
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
        own_command: vec!["/usr/bin/virt-backup".to_owned()],
    };
    Given { domain, facts, options }
}

fn base(generation: u64) -> CheckpointName {
    CheckpointName::new(&Uuid::new(UUID).unwrap(), Generation(generation), &JobId::from_bits(1))
}

/// The same, backed up four times, vda with a checkpoint.
fn given_a_base() -> Given {
    let mut given = given();
    let indexed = |checkpoint| IndexedDisk {
        generation: Generation(4),
        capacity: GIB,
        chunk_size: ChunkSize::DEFAULT,
        checkpoint,
        images: None,
        thin: None,
        trust: Trust::AsRecorded,
    };
    given.facts.index =
        BTreeMap::from([(target("vda"), indexed(Some(base(4)))), (target("vdb"), indexed(None))]);
    let bitmaps = BTreeMap::from([(target("vda"), BitmapState::Usable)]);
    given.facts.checkpoints = vec![CheckpointFacts { name: base(4).as_str().to_owned(), bitmaps }];
    given
}

impl Given {
    fn decide(&self) -> Result<Plan, Refusal> {
        let names = Names::new(&Places::default(), &self.domain.id.name);
        let (job, definition_xml) = (JobId::from_bits(9), "<domain/>");
        let (domain, facts, options) = (&self.domain, &self.facts, &self.options);
        chunkmount(Case {
            domain,
            definition_xml,
            facts,
            options,
            names: &names,
            job: &job,
            purpose: Purpose::View,
        })
    }

    /// Both images on one volume.
    fn on_a_volume(&mut self, size: Bytes, free: Bytes) {
        for (disk, path) in self.facts.disks.values_mut().zip(["i/a.qcow2", "i/b.img"]) {
            disk.volume = Behind::Volume(VolumeFacts {
                volume: Volume::new("vg0", "images").unwrap(),
                kind: VolumeKind::Thick { size, free },
                place: Place::Within { file_system: FileSystem::Xfs, path: path.into() },
            });
        }
    }

    /// Both disks thin volumes of their own, the index naming a kept snapshot of vdb, with which the changes are known.
    fn on_thin_volumes(&mut self) {
        self.options.method = MethodChoice::Lvm;
        self.options.thin = ThinSnapshots::Kept;
        let volume = |name: &str| Volume::new("vg0", name).unwrap();
        for (target, disk) in &mut self.facts.disks {
            let kept = vec![volume(&format!("{target}_7"))];
            let (pool, delta) = (volume("pool"), Delta::Possible);
            disk.volume = Behind::Volume(VolumeFacts {
                volume: volume(target.as_str()),
                kind: VolumeKind::Thin { pool, data_percent: 5, metadata_percent: 5, kept, delta },
                place: Place::Whole,
            });
        }
        let vdb = self.facts.index.get_mut(&target("vdb")).unwrap();
        vdb.thin = Some(volume("vdb_7"));
    }

    fn thin(&mut self) -> &mut VolumeFacts {
        match &mut self.facts.disks.get_mut(&target("vdb")).unwrap().volume {
            Behind::Volume(facts) => facts,
            Behind::Nothing { why } => panic!("{why}"),
        }
    }

    fn spec(&self) -> ViewSpec {
        spec_of(&self.decide().unwrap())
    }

    fn vda(&mut self) -> &mut Disk {
        &mut self.domain.disks[0]
    }

    fn indexed(&mut self) -> &mut IndexedDisk {
        self.facts.index.get_mut(&target("vda")).unwrap()
    }

    fn bitmap(&mut self, state: BitmapState) {
        self.facts.checkpoints[0].bitmaps.insert(target("vda"), state);
    }
}

fn spec_of(plan: &Plan) -> ViewSpec {
    let mut specs = plan.steps.iter().filter_map(|step| match step {
        Step::WriteSpec { spec, .. } => Some((**spec).clone()),
        _ => None,
    });
    specs.next().unwrap()
}

fn request_of(plan: &Plan) -> BackupRequest {
    let mut requests = plan.steps.iter().filter_map(|step| match step {
        Step::BeginBackup(request) => Some(request.clone()),
        _ => None,
    });
    requests.next().unwrap()
}

#[test]
fn the_plan_of_an_incremental_backup_reads_as_a_story() {
    let text = given_a_base().decide().unwrap().to_string();
    let expected = include_str!("../../../tests/data/plan-pull.txt");
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn the_plan_for_a_guest_that_is_off_reads_as_a_story() {
    let mut given = given();
    given.facts.guest.state = GuestState::ShutOff;
    let text = given.decide().unwrap().to_string();
    let expected = include_str!("../../../tests/data/plan-offline.txt");
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn a_bitmap_is_believed_only_when_it_counts_from_what_the_index_describes() {
    type Change = fn(&mut Given);
    let table: [(&str, Change); 9] = [
        ("not been backed up before", |g| g.facts.index.clear()),
        ("is gone", |g| g.facts.checkpoints.clear()),
        ("inconsistent", |g| g.bitmap(BitmapState::Inconsistent)),
        ("not in the image", |g| g.bitmap(BitmapState::Missing)),
        ("does not cover it", |g| g.facts.checkpoints[0].bitmaps.clear()),
        ("left no checkpoint", |g| g.indexed().checkpoint = None),
        ("size changed", |g| g.indexed().capacity = Bytes(1)),
        ("did not match", |g| g.indexed().trust = Trust::CompareAll),
        ("--track=digest", |g| g.options.tracking = Tracking::Digest),
    ];
    for (reason, change) in table {
        let mut given = given_a_base();
        change(&mut given);
        match &given.spec().disks[0].candidates {
            Candidates::All { why } => assert!(why.contains(reason), "{why}, not {reason}"),
            other => panic!("{reason}: {other:?}"),
        }
        let tracking = request_of(&given.decide().unwrap()).disks[0].tracking.clone();
        assert_ne!(tracking, DiskTracking::Since(base(4)), "{reason}");
    }
    let context = "qemu:dirty-bitmap:backup-vda".to_owned();
    let expected = Candidates::DirtyBitmap { context, since: base(4) };
    assert_eq!(given_a_base().spec().disks[0].candidates, expected);
}

#[test]
fn no_checkpoint_is_made_where_none_can_be_or_is_wanted() {
    type Change = fn(&mut Given);
    let table: [(&str, Change); 5] = [
        ("transient domain", |g| g.facts.guest.definition = Definition::Transient),
        ("old qcow2", |g| g.facts.disks.get_mut(&target("vda")).unwrap().bitmaps = BitmapSupport::Qcow2V2),
        ("read-only", |g| g.vda().access = crate::core::domain::Access::ReadOnly),
        ("digest", |g| g.options.tracking = Tracking::Digest),
        ("none", |g| g.options.tracking = Tracking::None),
    ];
    for (what, change) in table {
        let mut given = given_a_base();
        change(&mut given);
        let plan = given.decide().unwrap();
        let request = request_of(&plan);
        assert_eq!(request.checkpoint, None, "{what}");
        assert!(request.disks.iter().all(|disk| disk.tracking == DiskTracking::Untracked), "{what}");
        assert!(spec_of(&plan).disks.iter().all(|disk| disk.checkpoint_after.is_none()), "{what}");
        // The older one is settled all the same.
        assert!(matches!(plan.steps[0].undo(), Some(Undo::SettleCheckpoints { .. })), "{what}");
    }
}

#[test]
fn what_cannot_be_backed_up_is_refused_with_a_reason_for_each_disk() {
    type Change = fn(&mut Given);
    let table: [(&str, Change); 16] = [
        ("shareable", |g| g.vda().sharing = crate::core::domain::Sharing::Shareable),
        ("transient", |g| g.vda().lifetime = crate::core::domain::Lifetime::Transient),
        ("LUN", |g| g.vda().device = crate::core::domain::Device::Lun),
        ("vhost-user", |g| g.vda().source = Source::VhostUser { socket: "/s".into() }),
        ("unknown kind \"x\"", |g| g.vda().source = Source::Unknown { kind: "x".into() }),
        ("nothing could be found out", |g| g.facts.disks.clear()),
        ("keep --blocksize=262144", |g| {
            *g = given_a_base();
            g.options.chunk_size = "1M".parse().unwrap();
        }),
        ("only qcow2 images", |g| g.options.tracking = Tracking::Bitmap),
        ("not empty", |g| g.facts.mount_point = MountPoint::Occupied),
        ("run cleanup", |g| g.facts.mount_point = MountPoint::Mounted { source: "chunkfs-mail01".into() }),
        ("is not ours", |g| g.facts.mount_point = MountPoint::Mounted { source: "tmpfs".into() }),
        ("crashed", |g| g.facts.guest.state = GuestState::Other("crashed".into())),
        ("it is on no logical volume", |g| g.options.method = MethodChoice::Lvm),
        ("insufficient free space (1 GiB free in vg0, 5 GiB asked)", |g| {
            g.options.method = MethodChoice::Lvm;
            g.on_a_volume(Bytes(9 << 30), Bytes(1 << 30));
        }),
        ("--no-snapshot forbids it", |g| {
            g.options.method = MethodChoice::Lvm;
            g.options.snapshots = Snapshots::Forbidden;
        }),
        ("no disk to back up", |g| g.options.exclude = BTreeSet::from([target("vda"), target("vdb")])),
    ];
    for (reason, change) in table {
        let mut given = given();
        change(&mut given);
        let refusal = given.decide().expect_err(reason).to_string();
        assert!(refusal.contains(reason), "{refusal}, not {reason}");
        assert!(refusal.starts_with("mail01: no backup is possible as asked; "), "{refusal}");
    }
}

#[test]
fn somebody_elses_backup_job_is_refused_before_anything_is_done() {
    let mut given = given();
    given.facts.guest.backup_job = Some(BackupJob { socket: Some("/tmp/theirs".into()) });
    let refusal = given.decide().unwrap_err().to_string();
    assert!(refusal.contains("a backup job that is not ours runs already"), "{refusal}");
}

#[test]
fn a_method_that_does_not_fit_the_guests_state_is_refused() {
    for (method, state, reason) in [
        (MethodChoice::Pull, GuestState::ShutOff, "needs it to run"),
        (MethodChoice::Offline, GuestState::Running, "not shut off"),
        (MethodChoice::Offline, GuestState::Paused, "not shut off"),
    ] {
        let mut given = given();
        given.options.method = method;
        given.facts.guest.state = state;
        assert!(given.decide().unwrap_err().to_string().contains(reason), "{reason}");
    }
}

#[test]
fn every_disk_is_in_the_view_or_left_out_with_a_reason() {
    let mut given = given();
    given.options.exclude = BTreeSet::from([target("vdb"), target("hdz")]);
    let plan = given.decide().unwrap();
    let shown: Vec<_> = spec_of(&plan).disks.iter().map(|disk| disk.name.clone()).collect();
    let left_out: Vec<_> = plan.left_out.iter().map(|l| (l.what.as_str(), l.reason.as_str())).collect();
    assert_eq!(shown, ["mail01_vda"]);
    assert_eq!(left_out[1], ("vdb", "excluded by name"));
    assert_eq!(left_out[0].0, "sda");
    assert_eq!(request_of(&plan).without, [target("vdb")]);
    assert_eq!(spec_of(&plan).left_out, plan.left_out);
}

#[test]
fn generations_go_on_from_the_largest_that_anything_remembers() {
    assert_eq!(given().decide().unwrap().generation, Generation(1));
    let mut given = given_a_base();
    assert_eq!(given.decide().unwrap().generation, Generation(5));
    given
        .facts
        .checkpoints
        .push(CheckpointFacts { name: base(9).as_str().to_owned(), bitmaps: BTreeMap::new() });
    given
        .facts
        .checkpoints
        .push(CheckpointFacts { name: "virt-backup-99".to_owned(), bitmaps: BTreeMap::new() });
    assert_eq!(given.decide().unwrap().generation, Generation(10));
}

#[test]
fn a_freeze_is_asked_for_as_wished_and_ends_right_after_the_point_in_time() {
    for (quiesce, agent, need) in [
        (Quiesce::No, Agent::Connected, None),
        (Quiesce::Auto, Agent::Absent, None),
        (Quiesce::Auto, Agent::Connected, Some(Need::Wished)),
        (Quiesce::Require, Agent::Absent, Some(Need::Required)),
    ] {
        let mut given = given();
        (given.options.quiesce, given.facts.guest.agent) = (quiesce, agent);
        let steps = given.decide().unwrap().steps;
        let at = steps.iter().position(|step| matches!(step, Step::BeginBackup(_))).unwrap();
        let before = match &steps[at - 1] {
            Step::Freeze { need, .. } => Some(*need),
            _ => None,
        };
        assert_eq!(before, need, "{quiesce:?} {agent:?}");
        assert_eq!(matches!(steps[at + 1], Step::Early(Undo::Thaw { .. })), need.is_some());
    }
}

#[test]
fn a_guest_is_never_frozen_when_its_memory_is_saved() {
    let mut given = given();
    (given.options.memory, given.facts.guest.agent) = (Memory::Saved, Agent::Connected);
    let plan = given.decide().unwrap();
    assert!(plan.steps.iter().all(|step| !matches!(step, Step::Freeze { .. })), "{plan}");
    given.options.quiesce = Quiesce::Require;
    let refusal = given.decide().unwrap_err().to_string();
    assert!(refusal.contains("--quiesce=require does not go with --state"), "{refusal}");
    // A guest that is off has no memory, and nothing to freeze.
    given.facts.guest.state = GuestState::ShutOff;
    given.decide().unwrap();
}

#[test]
fn a_guest_that_was_ended_has_not_shut_down() {
    let mut given = given();
    given.facts.guest.state = GuestState::ShutOff;
    assert_eq!(given.spec().consistency, Consistency::ShutDown);
    given.facts.guest.stopped = Stopped::Perhaps;
    assert_eq!(given.spec().consistency, Consistency::Crash);
}

#[test]
fn images_of_a_guest_that_is_off_are_read_directly_only_when_they_are_declared_raw() {
    let mut given = given();
    given.facts.guest.state = GuestState::ShutOff;
    let feeds: Vec<_> = given.spec().disks.into_iter().map(|disk| disk.feed).collect();
    assert!(matches!(&feeds[0], Feed::Nbd { socket, .. } if socket.ends_with("vda.sock")), "{feeds:?}");
    assert_eq!(feeds[1], Feed::Image { path: PathBuf::from("/i/b.img") });

    given.facts.disks.get_mut(&target("vda")).unwrap().chain =
        Chain::Unknown { why: "no declared format".into() };
    let refusal = given.decide().unwrap_err().to_string();
    assert!(refusal.contains("vda: no declared format: start the guest"), "{refusal}");
}

#[test]
fn images_on_one_volume_share_a_snapshot_for_which_the_guest_is_suspended() {
    let mut given = given();
    given.options.method = MethodChoice::Lvm;
    given.on_a_volume(Bytes(9 << 30), Bytes(9 << 30));
    let plan = given.decide().unwrap().to_string();
    let steps: Vec<_> = plan.lines().filter_map(|line| line.trim_start().split_once(". ")).collect();
    let from = steps.iter().position(|(_, step)| step.starts_with("suspend")).unwrap();
    let told: Vec<_> = steps[from..from + 6].iter().map(|(_, step)| *step).collect();
    assert_eq!(
        told,
        [
            "suspend the guest",
            "snapshot vg0/images as vg0/images_1752513887, with room for 5 GiB of changes",
            "resume the guest",
            "make /var/lib/virt-backup/mail01/volumes",
            "make /var/lib/virt-backup/mail01/volumes/vg0-images_1752513887",
            "mount vg0/images_1752513887 read-only at /var/lib/virt-backup/mail01/volumes/vg0-images_1752513887 as xfs",
        ]
    );
    let path = "/var/lib/virt-backup/mail01/volumes/vg0-images_1752513887/i/b.img";
    assert_eq!(given.spec().disks[1].feed, Feed::Image { path: path.into() });
    let undos: Vec<_> = given.decide().unwrap().steps.iter().rev().filter_map(Step::undo).collect();
    let at = |found: fn(&Undo) -> bool| undos.iter().position(found).unwrap();
    let (view, unmount) =
        (at(|u| matches!(u, Undo::StopView(_))), at(|u| matches!(u, Undo::UnmountVolume { .. })));
    assert!(view < unmount && unmount < at(|u| matches!(u, Undo::RemoveVolume { .. })), "{undos:?}");
}

#[test]
fn a_disk_that_the_guest_cannot_write_to_gets_no_overlay() {
    let mut given = given();
    given.options.method = MethodChoice::External;
    given.domain.disks[1].access = Access::ReadOnly;
    let plan = given.decide().unwrap();
    let overlays = plan.steps.iter().find_map(|step| match step {
        Step::TakeOverlays(request) => Some((request.overlays.clone(), request.without.clone())),
        _ => None,
    });
    let (overlays, without) = overlays.unwrap();
    assert_eq!((overlays.len(), &overlays[0].target, without), (1, &target("vda"), vec![target("vdb")]));
    assert_eq!(spec_of(&plan).disks.len(), 2);
    given.domain.disks[0].access = Access::ReadOnly;
    let plan = given.decide().unwrap();
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::TakeOverlays(_))), "{plan}");
}

#[test]
fn one_snapshot_of_raw_images_needs_no_suspended_guest() {
    let on_one = |place: Place, cached: HostCache| {
        let mut given = given();
        given.options.method = MethodChoice::Lvm;
        given.on_a_volume(Bytes(9 << 30), Bytes(9 << 30));
        for disk in &mut given.domain.disks {
            disk.format = Format::Raw;
            disk.cached = cached;
        }
        for facts in given.facts.disks.values_mut() {
            let Chain::Known(layers) = &mut facts.chain else { panic!("{:?}", facts.chain) };
            layers[0].format = Format::Raw;
            let Behind::Volume(volume) = &mut facts.volume else { panic!("{:?}", facts.volume) };
            volume.place = place.clone();
        }
        given
    };
    let suspends = |given: &Given| given.decide().unwrap().to_string().contains("suspend the guest");
    let file = Place::Within { file_system: FileSystem::Ext4, path: "i/a.img".into() };
    assert!(!suspends(&on_one(file.clone(), HostCache::Used)));
    assert!(!suspends(&on_one(Place::Whole, HostCache::PassedBy)));
    assert!(suspends(&on_one(Place::Whole, HostCache::Used)), "the page cache has no order");
    // It is frozen as ever.
    let mut frozen = on_one(file.clone(), HostCache::Used);
    frozen.facts.guest.agent = Agent::Connected;
    let plan = frozen.decide().unwrap().to_string();
    let order = ["freeze", "snapshot vg0/images", "thaw"].map(|word| plan.find(&format!(". {word}")));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{plan}");
    // A disk on another volume is of another moment.
    let mut two = on_one(file, HostCache::Used);
    let Behind::Volume(volume) = &mut two.facts.disks.get_mut(&target("vdb")).unwrap().volume else {
        panic!()
    };
    volume.volume = Volume::new("vg0", "other").unwrap();
    assert!(suspends(&two));
}

#[test]
fn a_thin_volume_is_compared_with_its_kept_snapshot_and_the_next_one_is_kept() {
    let mut given = given_a_base();
    given.on_thin_volumes();
    let plan = given.decide().unwrap();
    let told = plan.to_string();
    for line in [
        "disk vdb: only that in which it differs from the kept snapshot vg0/vdb_7 is compared",
        "snapshot vg0/vdb as vg0/vdb_1752513887, in its thin pool, to be kept for the next backup",
        "ask vg0/pool in what vg0/vdb_1752513887 differs from vg0/vdb_7",
        "note: vda: --keep-thin keeps no snapshot: only a raw image has its content where its volume has it",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(!told.contains("ask vg0/pool in what vg0/vda"), "{told}");
    let disks = spec_of(&plan).disks;
    assert_eq!((&disks[0].thin_after, &disks[1].thin_after), (&None, &Volume::new("vg0", "vdb_1752513887")));
    let undos: Vec<_> = plan.steps.iter().rev().filter_map(Step::undo).collect();
    let at = |found: fn(&Undo) -> bool| undos.iter().position(found).unwrap();
    let free = at(|u| matches!(u, Undo::FreeThinMetadata { .. }));
    let close = at(|u| matches!(u, Undo::CloseGeneration { .. }));
    let settle = at(|u| matches!(u, Undo::SettleVolumes { .. }));
    assert!(free < close && close < settle, "{undos:?}");
    assert!(undos.iter().any(|u| matches!(u, Undo::RemoveVolume { .. })), "that of vda is not kept");
}

#[test]
fn a_kept_snapshot_is_believed_only_if_it_is_what_the_index_describes() {
    type Change = fn(&mut Given);
    let changes: [(&str, Change); 7] = [
        ("is gone, or can be written to", |g| match &mut g.thin().kind {
            VolumeKind::Thin { kept, .. } => kept.clear(),
            VolumeKind::Thick { .. } => unreachable!(),
        }),
        ("kept no snapshot", |g| g.facts.index.get_mut(&target("vdb")).unwrap().thin = None),
        ("a sample of the last backup", |g| {
            g.facts.index.get_mut(&target("vdb")).unwrap().trust = Trust::CompareAll;
        }),
        ("its size changed", |g| g.facts.disks.get_mut(&target("vdb")).unwrap().capacity = Bytes(1)),
        ("has not been backed up before", |g| drop(g.facts.index.remove(&target("vdb")))),
        ("asked for with --track=digest", |g| g.options.tracking = Tracking::Digest),
        ("thin_delta is missing", |g| match &mut g.thin().kind {
            VolumeKind::Thin { delta, .. } => {
                *delta = Delta::Impossible { why: "thin_delta is missing".to_owned() };
            }
            VolumeKind::Thick { .. } => unreachable!(),
        }),
    ];
    for (why, change) in changes {
        let mut given = given_a_base();
        given.on_thin_volumes();
        change(&mut given);
        let plan = given.decide().unwrap();
        assert!(plan.to_string().contains(why), "{why}: {plan}");
        assert!(!plan.to_string().contains("ask vg0/pool"), "{why}: {plan}");
        assert!(matches!(spec_of(&plan).disks[1].candidates, Candidates::All { .. }), "{why}");
    }
}

#[test]
fn an_untouched_image_of_a_guest_that_is_off_is_not_read_and_keeps_its_checkpoint() {
    let mut given = given_a_base();
    given.facts.guest.state = GuestState::ShutOff;
    given.indexed().images = mark(7);
    let disk = given.spec().disks.remove(0);
    assert_eq!((disk.candidates, disk.checkpoint_after), (Candidates::PendingOnly, Some(base(4))));

    given.indexed().images = mark(8);
    assert!(matches!(given.spec().disks[0].candidates, Candidates::All { .. }));
}

#[test]
fn the_undo_of_every_plan_ends_the_job_before_the_generation_and_that_before_its_checkpoints() {
    let undos: Vec<_> = given_a_base().decide().unwrap().steps.iter().rev().filter_map(Step::undo).collect();
    let at = |found: fn(&Undo) -> bool| undos.iter().position(found).unwrap();
    let view = at(|u| matches!(u, Undo::StopView(_)));
    let job = at(|u| matches!(u, Undo::AbortBackup { .. }));
    let generation = at(|u| matches!(u, Undo::CloseGeneration { .. }));
    let checkpoints = at(|u| matches!(u, Undo::SettleCheckpoints { .. }));
    assert!(view < job && job < generation && generation < checkpoints, "{undos:?}");
}

fn given_a_tpm(tpm: TpmFacts) -> Given {
    let mut given = given();
    given.facts.tpm = tpm;
    given
}

#[test]
fn the_state_of_a_tpm_is_copied_before_the_guest_goes_on_and_shown() {
    let files = vec![("tpm2-00.permall".to_owned(), Bytes(9))];
    let mut given = given_a_tpm(TpmFacts::State(TpmState { dir: "/swtpm/tpm2".into(), files }));
    given.facts.disks.values_mut().for_each(|disk| disk.reflink = Reflink::Possible);
    given.options.method = MethodChoice::Reflink;
    let plan = given.decide().unwrap();
    let at = |wanted: fn(&Step) -> bool| plan.steps.iter().position(wanted).expect("it is in the plan");
    let copied =
        at(|step| matches!(step, Step::CopyTpm { to, .. } if to.ends_with("mail01/tpm/tpm2-00.permall")));
    assert!(
        at(|step| matches!(step, Step::MakePrivateDir { path } if path.ends_with("mail01/tpm"))) < copied
    );
    assert!(at(|step| matches!(step, Step::CloneFile { .. })) < copied);
    assert!(copied < at(|step| matches!(step, Step::Early(Undo::Resume { .. }))), "{plan}");
    let spec = spec_of(&plan);
    let shown: Vec<_> = spec.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(shown, ["mail01.xml", "mail01.tpm/tpm2-00.permall"]);
    let about: serde_json::Value = serde_json::from_str(&spec.about_json()).unwrap();
    assert_eq!(about["tpm"], serde_json::json!({ "saved": { "files": ["tpm2-00.permall"] } }));
}

#[test]
fn a_tpm_that_cannot_be_saved_is_told_of_and_one_that_is_not_to_be_trusted_refused() {
    let why = || "because".to_owned();
    let plan = given_a_tpm(TpmFacts::NotHere { why: why() }).decide().unwrap();
    assert!(plan.notes.contains(&"the state of the TPM is not saved: because".to_owned()), "{plan}");
    let about: serde_json::Value = serde_json::from_str(&spec_of(&plan).about_json()).unwrap();
    assert_eq!(about["tpm"], serde_json::json!({ "not-saved": { "why": "because" } }));
    let refusal = given_a_tpm(TpmFacts::Refused { why: why() }).decide().unwrap_err();
    assert!(refusal.to_string().ends_with("; the state of the TPM cannot be saved: because"), "{refusal}");
}
