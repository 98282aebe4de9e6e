//! Plans and refusals as tables: what is written where, what is in the way, and the order in which it is done.

use super::*;

const XML: &str = "<domain type='kvm'><name>mail01</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>\
    <memory>1024</memory><os><nvram>/v/mail01_VARS.fd</nvram></os><devices>\
    <disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/a.qcow2'/><target dev='vda'/></disk>\
    <disk type='block'><driver name='qemu' type='raw'/><source dev='/dev/vg/b'/><target dev='vdb'/></disk>\
    </devices></domain>";

fn target(name: &str) -> Target {
    Target::new(name).unwrap()
}

fn name(text: &str) -> VmName {
    VmName::new(text).unwrap()
}

fn fresh() -> Uuid {
    Uuid::new("11111111-2222-4333-8444-555555555555").unwrap()
}

fn backup() -> Backup {
    let kept = |disk: &str, bytes| Kept { name: format!("mail01_{disk}"), form: Form::Chunks, bytes };
    Backup {
        root: "/backup/mail01".into(),
        kind: Kind::Tree,
        origin: Domain::parse(XML).unwrap().id,
        domain: Domain::parse(XML).unwrap(),
        xml: XML.to_owned(),
        disks: [("vda", Some(Bytes(100))), ("vdb", Some(Bytes(200)))]
            .map(|(disk, bytes)| (target(disk), kept(disk, bytes)))
            .into(),
        nvram: Some("mail01.nvram".to_owned()),
        tpm: Vec::new(),
        memory: None,
        snapshots: Vec::new(),
        notes: Vec::new(),
    }
}

fn wish() -> Wish {
    Wish {
        name: None,
        to: None,
        disks: BTreeMap::new(),
        exclude: BTreeSet::new(),
        format: None,
        writing: Writing::Whole,
        existing: Existing::Protected,
        macs: MacWish::ByName,
        then: Then::Define,
    }
}

fn beside() -> Wish {
    Wish { name: Some(name("copy")), to: Some("/to".into()), ..wish() }
}

const A_FILE: FileId = FileId::File { device: 1, inode: 2 };
const A_DEVICE: FileId = FileId::Device { number: 3 };

/// What is not said to be there is absent.
fn facts(backup: &Backup, wish: &Wish, there: &[(&str, Standing)]) -> Facts {
    let destinations = destinations(backup, wish).unwrap_or_default();
    let mut standing: BTreeMap<PathBuf, Standing> =
        paths(backup, wish, &destinations).into_iter().map(|path| (path, Standing::Absent)).collect();
    standing.extend(there.iter().map(|(path, standing)| (path.into(), standing.clone())));
    Facts {
        fresh_uuid: fresh(),
        standing,
        behind_links: BTreeMap::new(),
        in_use: Vec::new(),
        of_this_name: None,
        of_this_uuid: None,
        absent_media: BTreeSet::new(),
    }
}

fn decided(backup: &Backup, wish: &Wish, facts: &Facts) -> Result<String, String> {
    let told = |refusal: Refusal| refusal.to_string();
    let destinations = destinations(backup, wish).map_err(told)?;
    plan(backup, wish, &destinations, facts).map(|plan| plan.to_string()).map_err(told)
}

fn device(bytes: u64) -> Standing {
    Standing::Block { id: A_DEVICE, bytes: Bytes(bytes) }
}

fn known(name: &str, uuid: &str, activity: Activity) -> Known {
    let id = DomainId { name: VmName::new(name).unwrap(), uuid: Uuid::new(uuid).unwrap() };
    Known { id, activity, persistence: Definition::Persistent, definition: "<old/>".to_owned() }
}

const OWN: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

#[test]
fn a_guest_beside_its_original_reads_as_a_story() {
    let (backup, wish) = (backup(), beside());
    let told = decided(&backup, &wish, &facts(&backup, &wish, &[])).unwrap();
    assert_eq!(
        told,
        "copy (11111111-2222-4333-8444-555555555555)
   1. restore vda from mail01_vda (chunks) to /to/copy_vda.qcow2.partial (qcow2)
   2. restore vdb from mail01_vdb (chunks) to /to/copy_vdb.img.partial (raw)
   3. copy mail01.nvram to /v/copy_VARS.fd.partial
   4. give /to/copy_vda.qcow2 its name
   5. give /to/copy_vdb.img its name
   6. give /v/copy_VARS.fd its name
   7. define copy
   8. keep it all
"
    );
}

#[test]
fn a_guest_in_its_own_place_is_replaced_as_a_whole_but_for_its_devices() {
    let backup = backup();
    let wish = Wish { existing: Existing::Replaceable, then: Then::Start, ..wish() };
    let mut facts =
        facts(&backup, &wish, &[("/i/a.qcow2", Standing::File(A_FILE)), ("/dev/vg/b", device(200))]);
    facts.of_this_uuid = Some(known("mail01", OWN, Activity::Inactive));
    facts.of_this_name = facts.of_this_uuid.clone();
    assert_eq!(
        decided(&backup, &wish, &facts).unwrap(),
        "mail01 (c7a5fdbd-edaf-9455-926a-d65c16db1809)
  note: vdb: what is written to /dev/vg/b cannot be taken back
   1. restore vda from mail01_vda (chunks) to /i/a.qcow2.partial (qcow2)
   2. copy mail01.nvram to /v/mail01_VARS.fd.partial
   3. write vdb from mail01_vdb (chunks) over /dev/vg/b
   4. give /i/a.qcow2 its name
   5. give /v/mail01_VARS.fd its name
   6. define mail01 in the place of what it is now
   7. keep it all
   8. start mail01
"
    );
}

#[test]
fn what_would_be_lost_is_a_reason_and_all_reasons_are_told() {
    let backup = backup();
    let forced = Wish { existing: Existing::Replaceable, ..wish() };
    let to_device = |size| [("/dev/vg/b", device(size)), ("/i/a.qcow2", Standing::Absent)];
    let user = |activity, file| InUse {
        domain: known("other", NEW, activity).id,
        activity,
        path: "/elsewhere".into(),
        file: Some(file),
    };
    type Change = Box<dyn Fn(&mut Facts)>;
    let nothing = || -> Change { Box::new(|_| {}) };
    type Case<'a> = (&'a str, Wish, Vec<(&'a str, Standing)>, Change, Vec<&'a str>);
    let cases: Vec<Case<'_>> = vec![
        (
            "a device that is too small",
            wish(),
            to_device(199).to_vec(),
            nothing(),
            vec!["vdb: /dev/vg/b has 199"],
        ),
        (
            "two reasons",
            wish(),
            vec![("/dev/vg/b", device(1)), ("/i/a.qcow2", Standing::File(A_FILE))],
            nothing(),
            vec!["vda: /i/a.qcow2 exists: --force", "vdb: /dev/vg/b has 1"],
        ),
        (
            "no directory",
            beside(),
            vec![("/to/copy_vda.qcow2", Standing::NoDirectory)],
            nothing(),
            vec!["does not exist"],
        ),
        (
            "a socket",
            forced.clone(),
            vec![("/i/a.qcow2", Standing::Other)],
            nothing(),
            vec!["neither a file nor"],
        ),
        (
            "another domain's device",
            wish(),
            to_device(200).to_vec(),
            Box::new(move |facts| facts.in_use = vec![user(Activity::Inactive, A_DEVICE)]),
            vec!["vdb: /dev/vg/b is a disk of the domain other: --force"],
        ),
        (
            "one that runs, even when forced",
            forced.clone(),
            to_device(200).to_vec(),
            Box::new(move |facts| facts.in_use = vec![user(Activity::Active, A_DEVICE)]),
            vec!["vdb: /dev/vg/b is in use: other runs with it"],
        ),
        (
            "the domain is there",
            wish(),
            vec![],
            Box::new(|facts| facts.of_this_uuid = Some(known("mail01", OWN, Activity::Inactive))),
            vec!["mail01 is defined: --force"],
        ),
        (
            "the domain runs",
            forced.clone(),
            vec![],
            Box::new(|facts| facts.of_this_uuid = Some(known("mail01", OWN, Activity::Active))),
            vec!["mail01 runs: shut it off"],
        ),
        (
            "it was renamed",
            forced.clone(),
            vec![],
            Box::new(|facts| facts.of_this_uuid = Some(known("mail99", OWN, Activity::Inactive))),
            vec!["its UUID is that of the domain mail99"],
        ),
        (
            "somebody else has its name",
            forced.clone(),
            vec![],
            Box::new(|facts| facts.of_this_name = Some(known("mail01", NEW, Activity::Inactive))),
            vec!["there is another domain mail01, of the UUID 1111"],
        ),
        (
            "the new name is taken",
            Wish { existing: Existing::Replaceable, ..beside() },
            vec![],
            Box::new(|facts| facts.of_this_name = Some(known("copy", NEW, Activity::Inactive))),
            vec!["there is a domain copy already"],
        ),
        (
            "no memory was kept",
            Wish { then: Then::Resume, ..beside() },
            vec![],
            nothing(),
            vec!["made without --state", "does not go with --name"],
        ),
        (
            "both to one place",
            Wish {
                disks: [("vda", "/x"), ("vdb", "/x")].map(|(t, p)| (target(t), p.into())).into(),
                ..wish()
            },
            vec![],
            nothing(),
            vec!["vda and vdb would both go to /x"],
        ),
        (
            "both to one device by two names",
            Wish {
                disks: [("vda", "/x"), ("vdb", "/y")].map(|(t, p)| (target(t), p.into())).into(),
                ..wish()
            },
            vec![("/x", device(200)), ("/y", device(200))],
            nothing(),
            vec!["vda and vdb would both go to /y"],
        ),
        (
            "into the backup",
            Wish { to: Some("/backup/mail01/x".into()), ..wish() },
            vec![],
            nothing(),
            vec!["is in the backup itself"],
        ),
        (
            "nowhere",
            Wish { to: None, ..beside() },
            vec![],
            nothing(),
            vec!["vda: say where it goes", "vdb: say where"],
        ),
        (
            "a stranger",
            Wish { exclude: [target("vdz")].into(), ..wish() },
            vec![],
            nothing(),
            vec!["has no disk vdz"],
        ),
        (
            "nothing is left",
            Wish { exclude: [target("vda"), target("vdb")].into(), ..wish() },
            vec![],
            nothing(),
            vec!["there is no disk to restore"],
        ),
        (
            "qcow2 in place",
            Wish { writing: Writing::InPlace, format: Some(Format::Qcow2), ..forced.clone() },
            vec![],
            nothing(),
            vec!["--in-place writes raw images"],
        ),
        (
            "in place over what is declared as qcow2",
            Wish { writing: Writing::InPlace, ..forced.clone() },
            vec![("/i/a.qcow2", Standing::File(A_FILE))],
            nothing(),
            vec!["/i/a.qcow2 is declared as qcow2"],
        ),
        (
            "qcow2 on a device",
            Wish { format: Some(Format::Qcow2), ..forced },
            to_device(200).to_vec(),
            nothing(),
            vec!["it gets the bytes as they are"],
        ),
    ];
    for (claim, wish, there, change, expected) in cases {
        let mut facts = facts(&backup, &wish, &there);
        change(&mut facts);
        let told = decided(&backup, &wish, &facts).expect_err(claim);
        for words in expected {
            assert!(told.contains(words), "{claim}: {words:?} is not in {told:?}");
        }
    }
}

const NEW: &str = "11111111-2222-3333-4444-555555555555";

#[test]
fn a_disk_that_the_backup_lacks_is_never_left_out_in_silence() {
    let mut backup = backup();
    backup.disks.remove(&target("vdb"));
    let told = decided(&backup, &beside(), &facts(&backup, &beside(), &[])).unwrap_err();
    assert!(told.contains("vdb: the backup has nothing of this disk: --exclude=vdb"), "{told}");
    let wish = Wish { exclude: [target("vdb")].into(), ..beside() };
    let destinations = destinations(&backup, &wish).unwrap();
    let plan = plan(&backup, &wish, &destinations, &facts(&backup, &wish, &[])).unwrap();
    let Some(Step::Define { xml, .. }) = plan.steps.iter().find(|step| matches!(step, Step::Define { .. }))
    else {
        panic!("{plan}");
    };
    assert!(!xml.contains("/dev/vg/b"), "{xml}");
    assert!(plan.notes.iter().any(|note| note == "vdb: the domain is restored without it"));
}

#[test]
fn everything_that_is_made_is_made_before_anything_is_replaced_and_kept_last() {
    let (backup, wish) = (backup(), Wish { existing: Existing::Replaceable, then: Then::Start, ..wish() });
    let facts = facts(&backup, &wish, &[("/i/a.qcow2", Standing::File(A_FILE)), ("/dev/vg/b", device(200))]);
    let destinations = destinations(&backup, &wish).unwrap();
    let plan = plan(&backup, &wish, &destinations, &facts).unwrap();
    let order = |step: &Step| match step {
        Step::MakeFile { .. } | Step::CopySmall { .. } | Step::MakeTpmDir { .. } | Step::CopyTpm { .. } => 0,
        Step::Join { .. } | Step::Overlay { .. } | Step::Run { .. } => panic!("{step}"),
        Step::Rewrite { .. } => 1,
        Step::Name { .. } => 2,
        Step::Define { .. } | Step::Snapshot { .. } => 3,
        Step::Keep => 4,
        Step::MakeMemory { .. } | Step::Start { .. } | Step::Resume { .. } => 5,
    };
    let orders: Vec<_> = plan.steps.iter().map(order).collect();
    assert!(orders.is_sorted(), "{plan}");
    assert_eq!(orders.iter().filter(|order| **order == 4).count(), 1);
}

/// With a TPM whose state is in the backup.
fn with_tpm(source: &str) -> Backup {
    let devices = format!("<tpm><backend type='emulator' version='2.0'>{source}</backend></tpm></devices>");
    let xml = XML.replace("</devices>", &devices);
    let (domain, tpm) = (Domain::parse(&xml).unwrap(), vec!["mail01.tpm/tpm2-00.permall".to_owned()]);
    Backup { xml, domain, tpm, ..backup() }
}

#[test]
fn the_state_of_a_tpm_goes_to_where_libvirt_looks_for_that_of_the_uuid() {
    let own = format!("/var/lib/libvirt/swtpm/{OWN}/tpm2");
    let new = format!("/var/lib/libvirt/swtpm/{}/tpm2", fresh());
    let named = "<source type='dir' path='/t/mail01'/>";
    for (source, wish, dir, is_named) in [
        ("", wish(), own.as_str(), false),
        ("", beside(), &new, false),
        (named, wish(), "/t/mail01", true),
        (named, beside(), &new, false),
    ] {
        let backup = with_tpm(source);
        let facts = facts(&backup, &wish, &[]);
        let destinations = destinations(&backup, &wish).unwrap();
        let plan = plan(&backup, &wish, &destinations, &facts).unwrap();
        let text = plan.to_string();
        for step in [
            format!("make {dir} for the TPM"),
            format!("copy mail01.tpm/tpm2-00.permall to {dir}/tpm2-00.permall.partial"),
            format!("give {dir}/tpm2-00.permall its name"),
        ] {
            assert!(text.contains(&step), "{step}: {text}");
        }
        let defined = plan.steps.iter().find_map(|step| match step {
            Step::Define { xml, .. } => Some(xml),
            _ => None,
        });
        assert_eq!(defined.unwrap().contains("/t/mail01"), is_named, "{text}");
        let none = Wish { then: Then::Nothing, ..wish };
        assert!(!decided(&backup, &none, &facts).unwrap().contains("tpm"));
    }
}

#[test]
fn the_state_of_a_tpm_that_is_there_is_only_replaced_by_force() {
    let backup = with_tpm("");
    let path = format!("/var/lib/libvirt/swtpm/{OWN}/tpm2/tpm2-00.permall");
    let there = facts(&backup, &wish(), &[(&path, Standing::File(A_FILE))]);
    let told = decided(&backup, &wish(), &there).unwrap_err();
    assert_eq!(told, format!("{path} exists: --force replaces it"));
    let force = Wish { existing: Existing::Replaceable, ..wish() };
    assert!(decided(&backup, &force, &there).is_ok());
    let no_directory = facts(&backup, &wish(), &[(&path, Standing::NoDirectory)]);
    assert!(decided(&backup, &wish(), &no_directory).is_ok(), "it is made");

    let single = with_tpm("<source type='file' path='/t/a.state'/>");
    let told = decided(&single, &beside(), &facts(&single, &beside(), &[])).unwrap_err();
    assert_eq!(told, "the state of its TPM is the file /t/a.state, which cannot be that of another domain");
    assert!(decided(&single, &wish(), &facts(&single, &wish(), &[])).is_ok());
    let without = Backup { tpm: Vec::new(), ..with_tpm("") };
    let text = decided(&without, &wish(), &facts(&without, &wish(), &[])).unwrap();
    assert!(text.contains("note: the guest has a TPM, and the backup has nothing of it"), "{text}");
}

#[test]
fn an_archive_comes_back_as_what_it_was_of_when_it_is_called_so() {
    let mut archive = backup();
    archive.kind = Kind::Archive;
    archive.root = "/archives/mail01/2025-07-14-172447".into();
    let within = |name: &str| archive.root.join(name).display().to_string();
    archive.xml = XML
        .replace("<name>mail01<", "<name>mail01-restore<")
        .replace(OWN, NEW)
        .replace("/i/a.qcow2", &within("vda.qcow2"))
        .replace("/v/mail01_VARS.fd", &within("mail01-restore.nvram"));
    archive.domain = Domain::parse(&archive.xml).unwrap();
    let told = decided(&archive, &wish(), &facts(&archive, &wish(), &[])).unwrap_err();
    assert!(told.contains("vda: its own place is in the backup itself"), "{told}");
    for (called, uuid, macs) in [
        (None, NEW, false),
        (Some("mail01"), OWN, false),
        (Some("copy"), "11111111-2222-4333-8444-555555555555", true),
    ] {
        let wish = Wish { name: called.map(name), to: Some("/to".into()), ..wish() };
        let facts = facts(&archive, &wish, &[]);
        let destinations = destinations(&archive, &wish).unwrap();
        let plan = plan(&archive, &wish, &destinations, &facts).unwrap();
        let called = called.unwrap_or("mail01-restore");
        assert_eq!((plan.id.name.as_str(), plan.id.uuid.as_str()), (called, uuid));
        let Some(Step::Define { xml, .. }) =
            plan.steps.iter().find(|step| matches!(step, Step::Define { .. }))
        else {
            panic!("{plan}");
        };
        let domain = Domain::parse(xml).unwrap();
        assert_eq!(domain.id, plan.id);
        assert_eq!(domain.nvram, Some(format!("/var/lib/libvirt/qemu/nvram/{called}_VARS.fd").into()));
        assert!(!xml.contains("/archives/"), "{xml}");
        assert_eq!(is_new(&archive, &wish), macs);
    }
    // The original is defined: its archive takes its place only when that is asked for.
    let wish = Wish { name: Some(name("mail01")), to: Some("/to".into()), ..wish() };
    let mut facts = facts(&archive, &wish, &[]);
    facts.of_this_uuid = Some(known("mail01", OWN, Activity::Inactive));
    assert!(decided(&archive, &wish, &facts).unwrap_err().contains("mail01 is defined: --force"));
}

#[test]
fn a_file_behind_a_link_is_replaced_where_it_is_and_the_domain_keeps_the_link() {
    let (backup, wish) = (backup(), Wish { existing: Existing::Replaceable, ..wish() });
    let mut facts =
        facts(&backup, &wish, &[("/i/a.qcow2", Standing::File(A_FILE)), ("/dev/vg/b", device(200))]);
    facts.behind_links = [("/i/a.qcow2".into(), "/far/a.qcow2".into())].into();
    let destinations = destinations(&backup, &wish).unwrap();
    let plan = plan(&backup, &wish, &destinations, &facts).unwrap();
    let told = plan.to_string();
    assert!(
        told.contains("to /far/a.qcow2.partial (qcow2)") && told.contains("give /far/a.qcow2 its name"),
        "{told}"
    );
    assert!(!told.contains("/i/a.qcow2"), "{told}");
    let Some(Step::Define { xml, .. }) = plan.steps.iter().find(|step| matches!(step, Step::Define { .. }))
    else {
        panic!("{plan}");
    };
    assert!(xml.contains("/i/a.qcow2"), "{xml}");
}
