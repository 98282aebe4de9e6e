//! What is rewritten and what is not: a table of cases, and the claim that every other byte stays.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::core::domain::{Domain, Source};

const RUNNING: &str = include_str!("../../../tests/data/running.xml");
const NEW: &str = "11111111-2222-3333-4444-555555555555";

fn uuid() -> Uuid {
    Uuid::new(NEW).unwrap()
}

fn target(name: &str) -> Target {
    Target::new(name).unwrap()
}

fn to_file(path: &str, format: Format) -> NewDisk {
    NewDisk { place: Place::File(path.into()), format, content: Content::Guest }
}

fn with_disk(name: &str, new: NewDisk) -> Changes {
    Changes { disks: BTreeMap::from([(target(name), new)]), ..Changes::none() }
}

fn vda(place: Place, format: Format, content: Content) -> Changes {
    with_disk("vda", NewDisk { place, format, content })
}

fn with_name(name: &str) -> Changes {
    Changes { name: Some(VmName::new(name).unwrap()), ..Changes::none() }
}

fn with_uuid() -> Changes {
    Changes { uuid: Some(uuid()), ..Changes::none() }
}

/// A domain of one name and what is given.
fn wrapped(inner: &str) -> String {
    format!("<domain><name>a</name>{inner}</domain>")
}

fn devices(inner: &str) -> String {
    wrapped(&format!("<devices>{inner}</devices>"))
}

#[test]
fn what_has_to_change_changes_and_nothing_else() {
    let file = |path: &str| Place::File(path.into());
    let block = |path: &str| Place::Block(path.into());
    use Content::{Guest, Image};
    let cases: Vec<(&str, String, Changes, String)> = vec![
        (
            "a name is escaped, and comments and CDATA in it go",
            "<domain><name>a<!-- x --><![CDATA[b]]></name><title>ab</title></domain>".to_owned(),
            with_name("a<b&'c'"),
            "<domain><name>a&lt;b&amp;'c'</name><title>ab</title></domain>".to_owned(),
        ),
        (
            "a name that is the same already stays as it is written",
            "<domain><name>&#97;b</name></domain>".to_owned(),
            with_name("ab"),
            "<domain><name>&#97;b</name></domain>".to_owned(),
        ),
        (
            "only the domain's own name",
            wrapped("<metadata><x:name xmlns:x='u'>a</x:name><name>a</name></metadata>"),
            with_name("b"),
            wrapped("<metadata><x:name xmlns:x='u'>a</x:name><name>a</name></metadata>")
                .replacen("<name>a<", "<name>b<", 1),
        ),
        (
            "a uuid is inserted where there is none, indented",
            "<domain>\n  <name>a</name>\n  <memory>1</memory>\n</domain>".to_owned(),
            with_uuid(),
            format!("<domain>\n  <name>a</name>\n  <uuid>{NEW}</uuid>\n  <memory>1</memory>\n</domain>"),
        ),
        (
            "a uuid is replaced, in SMBIOS too, and the generation is drawn anew",
            wrapped(
                "<uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><genid>g</genid><sysinfo type='smbios'><system>\
                 <entry name='uuid'>c7a5fdbd-edaf-9455-926a-d65c16db1809</entry><entry name='serial'>1</entry>\
                 </system></sysinfo>",
            ),
            with_uuid(),
            wrapped(&format!(
                "<uuid>{NEW}</uuid><genid></genid><sysinfo type='smbios'><system><entry name='uuid'>{NEW}</entry>\
                 <entry name='serial'>1</entry></system></sysinfo>"
            )),
        ),
        (
            "the same uuid in another spelling stays",
            wrapped("<uuid>11111111222233334444555555555555</uuid><genid>g</genid>"),
            with_uuid(),
            wrapped("<uuid>11111111222233334444555555555555</uuid><genid>g</genid>"),
        ),
        (
            "file to file: the path alone, in the quotes that are there",
            devices("<disk type=\"file\"><source file=\"/o'ld\" index='1'/><target dev='vda'/></disk>"),
            vda(file("/n\"ew & 'x'"), Format::Raw, Guest),
            devices(
                "<disk type=\"file\"><source file=\"/n&quot;ew &amp; &apos;x&apos;\" index='1'/><target dev='vda'/></disk>",
            ),
        ),
        (
            "the declared format",
            devices(
                "<disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='/o'/><target dev='vda'/></disk>",
            ),
            vda(file("/o"), Format::Raw, Guest),
            devices(
                "<disk type='file'><driver name='qemu' type='raw' cache='none'/><source file='/o'/><target dev='vda'/></disk>",
            ),
        ),
        (
            "a format where none is declared: raw is what that means",
            devices("<disk><source file='/o'/><target dev='vda'/></disk>"),
            vda(file("/n"), Format::Raw, Guest),
            devices("<disk><source file='/n'/><target dev='vda'/></disk>"),
        ),
        (
            "a driver without a type gets one",
            devices("<disk><driver/><source file='/o'/><target dev='vda'/></disk>"),
            vda(file("/o"), Format::Qcow2, Guest),
            devices("<disk><driver type='qcow2'/><source file='/o'/><target dev='vda'/></disk>"),
        ),
        (
            "a driver where there is none",
            devices("\n  <disk>\n    <source file='/o'/>\n    <target dev='vda'/>\n  </disk>"),
            vda(file("/o"), Format::Qcow2, Guest),
            devices(
                "\n  <disk>\n    <driver name='qemu' type='qcow2'/>\n    <source file='/o'/>\n    <target dev='vda'/>\n  </disk>",
            ),
        ),
        (
            "network to file: hosts and secrets go",
            devices(
                "<disk type='network'><driver type='raw'/><auth username='u'><secret type='ceph' uuid='x'/></auth>\
                <source protocol='rbd' name='p/i'><host name='h'/></source><target dev='vda'/></disk>",
            ),
            vda(file("/n"), Format::Raw, Guest),
            devices("<disk type='file'><driver type='raw'/><source file='/n'/><target dev='vda'/></disk>"),
        ),
        (
            "volume to block",
            devices(
                "<disk type='volume'><source pool='p' volume='v' startupPolicy='optional'/><target dev='vda'/></disk>",
            ),
            vda(block("/dev/vg/lv"), Format::Raw, Guest),
            devices(
                "<disk type='block'><source dev='/dev/vg/lv' startupPolicy='optional'/><target dev='vda'/></disk>",
            ),
        ),
        (
            "a disk without a type is a file",
            devices("<disk><source file='/o'/><target dev='vda'/></disk>"),
            vda(block("/dev/x"), Format::Raw, Guest),
            devices("<disk type='block'><source dev='/dev/x'/><target dev='vda'/></disk>"),
        ),
        (
            "a LUN that becomes a file is a disk",
            devices(
                "<disk type='block' device='lun' sgio='unfiltered' rawio='yes'><source dev='/o'/><target dev='vda'/></disk>",
            ),
            vda(file("/n"), Format::Raw, Guest),
            devices("<disk type='file' device='disk'><source file='/n'/><target dev='vda'/></disk>"),
        ),
        (
            "a chain and a copy that is underway go, the encryption of the image with them",
            devices(
                "\n  <disk type='file'>\n    <source file='/o'>\n      <encryption format='luks'/>\n    </source>\n    \
                <backingStore type='file'><format type='raw'/><source file='/b'/><backingStore/></backingStore>\n    \
                <mirror type='file'><source file='/m'/></mirror>\n    <target dev='vda'/>\n  </disk>",
            ),
            vda(file("/n"), Format::Raw, Guest),
            devices(
                "\n  <disk type='file'>\n    <source file='/n'>\n    </source>\n    <backingStore/>\n    <target dev='vda'/>\n  </disk>",
            ),
        ),
        (
            "an image that is carried as it is stays encrypted",
            devices(
                "<disk type='file'><source file='/o'><encryption format='luks'/></source><target dev='vda'/></disk>",
            ),
            vda(file("/n"), Format::Raw, Image),
            devices(
                "<disk type='file'><source file='/n'><encryption format='luks'/></source><target dev='vda'/></disk>",
            ),
        ),
        (
            "a declared end of the chain stays",
            devices("<disk><source file='/o'/><backingStore/><target dev='vda'/></disk>"),
            vda(file("/n"), Format::Raw, Guest),
            devices("<disk><source file='/n'/><backingStore/><target dev='vda'/></disk>"),
        ),
        (
            "a drive without a medium gets one",
            devices("<disk>\n <driver type='raw'/>\n <target dev='vda'/></disk>"),
            vda(file("/n"), Format::Raw, Guest),
            devices("<disk>\n <driver type='raw'/>\n <source file='/n'/>\n <target dev='vda'/></disk>"),
        ),
        (
            "a disk that was left out is no disk of the domain any more",
            devices(
                "\n <disk><source file='/o'/><target dev='vda'/></disk>\n <disk><target dev='vdb'/></disk>",
            ),
            Changes { without: BTreeSet::from([target("vda")]), ..Changes::none() },
            devices("\n <disk><target dev='vdb'/></disk>"),
        ),
        (
            "a drive without its medium",
            devices("<disk device='cdrom'><source file='/o'/><target dev='sda'/></disk>"),
            Changes { ejected: BTreeSet::from([target("sda")]), ..Changes::none() },
            devices("<disk device='cdrom'><target dev='sda'/></disk>"),
        ),
        (
            "what is in CDATA or a comment is text",
            devices(
                "<!-- <disk><target dev='vda'/></disk> --><disk><source file='/o'/><target dev='vda'/>\
                <serial><![CDATA[<source file='/o'/></disk>]]></serial></disk>",
            ),
            vda(file("/n"), Format::Raw, Guest),
            devices(
                "<!-- <disk><target dev='vda'/></disk> --><disk><source file='/n'/><target dev='vda'/>\
                <serial><![CDATA[<source file='/o'/></disk>]]></serial></disk>",
            ),
        ),
        (
            "elements of other namespaces are not libvirt's; its attributes are found by their names alone",
            devices(
                "<disk xmlns:q='u' q:x='block'><q:source file='/q'/><source file='/o' q:file='/q'/><target dev='vda'/></disk>",
            ),
            vda(file("/n"), Format::Raw, Guest),
            devices(
                "<disk xmlns:q='u' q:x='block'><q:source file='/q'/><source file='/n' q:file='/q'/><target dev='vda'/></disk>",
            ),
        ),
        (
            "a MAC address is left to libvirt",
            devices(
                "\n  <interface type='bridge'>\n    <mac address='52:54:00:00:00:01'/>\n    <source bridge='b'/>\n  </interface>",
            ),
            Changes { macs: Macs::Remove, ..Changes::none() },
            devices("\n  <interface type='bridge'>\n    <source bridge='b'/>\n  </interface>"),
        ),
        (
            "an interface keeps its card and loses what is behind it",
            devices(
                "\n  <interface type='bridge'>\n    <mac address='52:54:00:00:00:01'/>\n    <source bridge='b'/>\n    \
                <model type='virtio'/>\n  </interface>\n  <interface type='hostdev'><mac address='x'/></interface>",
            ),
            Changes { surroundings: Surroundings::Isolated { console: None }, macs: Macs::Remove, ..Changes::none() },
            devices(
                "\n  <interface type='user'>\n    <link state='down'/>\n    <model type='virtio'/>\n  </interface>",
            ),
        ),
        (
            "a link that is there is put down",
            devices("<interface type='user'><link state='up'/></interface>"),
            Changes { surroundings: Surroundings::Isolated { console: None }, ..Changes::none() },
            devices("<interface type='user'><link state='down'/></interface>"),
        ),
        (
            "what leads to the host goes; the console goes to a file",
            "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name><devices>\n \
                <serial type='tcp'><source mode='bind' host='::' service='1'/><protocol type='raw'/><target port='0'/></serial>\n \
                <serial type='pty' tty='/dev/pts/1'><log file='/l'/></serial>\n <console type='pty'/>\n \
                <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n \
                <channel type='unix'><source mode='bind' path='/s'/></channel>\n <channel type='spicevmc'/>\n \
                <hostdev mode='subsystem' type='pci'/>\n <filesystem type='mount'/>\n <vsock/>\n <memory model='nvdimm'/>\n \
                <rng><backend model='random'>/dev/urandom</backend></rng>\n <tpm><backend type='passthrough'/></tpm>\n \
                <graphics type='spice' port='5900'/>\n <audio id='1' type='spice'/>\n <future/>\n</devices>\n\
                <qemu:commandline><qemu:arg value='-drive'/></qemu:commandline></domain>"
                .to_owned(),
            Changes { surroundings: Surroundings::Isolated { console: Some("/c".into()) }, ..Changes::none() },
            "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name><devices>\n \
                <serial type='file'><source path='/c'/><target port='0'/></serial>\n <serial type='null'></serial>\n \
                <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n \
                <rng><backend model='random'>/dev/urandom</backend></rng>\n \
                <graphics type='vnc' autoport='yes' listen='127.0.0.1'/>\n <audio id='1' type='none'/>\n</devices></domain>"
                .to_owned(),
        ),
        (
            "NVRAM as text",
            wrapped("<os><nvram template='/t'>/o</nvram></os>"),
            Changes { nvram: Nvram::At("/n&".into()), ..Changes::none() },
            wrapped("<os><nvram template='/t'>/n&amp;</nvram></os>"),
        ),
        (
            "NVRAM as a source",
            wrapped("<os><nvram type='file'><source file='/o'/></nvram></os>"),
            Changes { nvram: Nvram::At("/n".into()), ..Changes::none() },
            wrapped("<os><nvram type='file'><source file='/n'/></nvram></os>"),
        ),
        (
            "NVRAM that has no path yet",
            wrapped("<os><nvram template='/t' /></os>"),
            Changes { nvram: Nvram::At("/n".into()), ..Changes::none() },
            wrapped("<os><nvram template='/t'>/n</nvram></os>"),
        ),
        (
            "NVRAM where libvirt puts it",
            wrapped("<os><nvram type='file' template='/t'><source file='/o'/></nvram></os>"),
            Changes { nvram: Nvram::Default, ..Changes::none() },
            wrapped("<os><nvram template='/t'></nvram></os>"),
        ),
    ];
    for (claim, given, changes, expected) in cases {
        let rewritten = domain(&given, &changes).unwrap_or_else(|error| panic!("{claim}: {error}"));
        assert_eq!(rewritten, expected, "{claim}");
        // The second time there is nothing left to do.
        if changes.macs == Macs::Keep
            && changes.without.is_empty()
            && changes.surroundings == Surroundings::Kept
        {
            assert_eq!(domain(&rewritten, &changes).unwrap(), expected, "{claim}: again");
        }
    }
}

#[test]
fn a_whole_domain_moves_to_files_and_is_understood() {
    let changes = Changes {
        name: Some(VmName::new("mail01-restore").unwrap()),
        uuid: Some(uuid()),
        nvram: Nvram::At("/r/nvram".into()),
        disks: ["vda", "vdb", "vdc"]
            .map(|name| (target(name), to_file(&format!("/r/{name}.img"), Format::Raw)))
            .into(),
        ..Changes::none()
    };
    let rewritten = Domain::parse(&domain(RUNNING, &changes).unwrap()).unwrap();
    assert_eq!((rewritten.id.name.as_str(), rewritten.id.uuid.as_str()), ("mail01-restore", NEW));
    assert_eq!(rewritten.nvram, Some("/r/nvram".into()));
    for disk in &rewritten.disks {
        assert_eq!(disk.source, Source::File(format!("/r/{}.img", disk.target).into()));
        assert_eq!((&disk.format, disk.backing.layers.len()), (&Format::Raw, 0));
    }
    let old = Domain::parse(RUNNING).unwrap();
    assert_eq!((rewritten.left_out, rewritten.tpm), (old.left_out, old.tpm));
}

#[test]
fn new_mac_addresses_are_the_same_in_the_domain_and_its_snapshots() {
    let inner = devices("<interface type='user'><mac address='52:54:00:AA:bb:01'/></interface>");
    let snapshot_xml = format!("<domainsnapshot><name>s</name>{inner}</domainsnapshot>");
    let changes = Changes { macs: Macs::DerivedFrom(uuid()), ..Changes::none() };
    let address = |xml: &str| {
        let document = roxmltree::Document::parse(xml).unwrap();
        let mac = document.descendants().find(|node| node.has_tag_name("mac")).unwrap();
        mac.attribute("address").unwrap().to_owned()
    };
    let new = address(&domain(&inner, &changes).unwrap());
    assert_eq!(new, address(&snapshot(&snapshot_xml, &changes).unwrap()));
    assert!(new.starts_with("52:54:00:") && new != "52:54:00:aa:bb:01", "{new}");
    let upper = inner.replace("AA:bb", "aa:BB");
    assert_eq!(new, address(&domain(&upper, &changes).unwrap()), "however it is written");
}

const SNAPSHOT: &str = "<domainsnapshot>
  <name>before</name>
  <state>running</state>
  <parent>
    <name>first</name>
  </parent>
  <creationTime>1752500000</creationTime>
  <memory snapshot='internal'/>
  <disks>
    <disk name='vda' snapshot='internal'/>
    <disk name='/old/b' snapshot='external' type='file'><driver type='qcow2'/><source file='/old/o'/></disk>
  </disks>
  <domain type='qemu'>
    <name>mail01</name>
    <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
    <devices>
      <disk type='file'><driver name='qemu' type='qcow2'/><source file='/old/a'/><target dev='vda'/></disk>
      <disk type='file'><driver name='qemu' type='qcow2'/><source file='/old/b'/><target dev='vdb'/></disk>
    </devices>
  </domain>
  <inactiveDomain type='qemu'>
    <name>mail01</name>
    <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
    <devices>
      <disk type='file'><driver name='qemu' type='qcow2'/><source file='/old/a'/><target dev='vda'/></disk>
    </devices>
  </inactiveDomain>
</domainsnapshot>
";

#[test]
fn a_snapshot_changes_in_all_its_parts_and_keeps_its_own_name() {
    let changes = Changes {
        name: Some(VmName::new("copy").unwrap()),
        uuid: Some(uuid()),
        disks: [
            (target("vda"), to_file("/new/a", Format::Qcow2)),
            (target("vdb"), to_file("/new/b", Format::Qcow2)),
        ]
        .into(),
        memory: Some("/new/memory".into()),
        ..Changes::none()
    };
    let expected = SNAPSHOT
        .replace("mail01", "copy")
        .replace("c7a5fdbd-edaf-9455-926a-d65c16db1809", NEW)
        .replace("file='/old/a'", "file='/new/a'")
        .replace("file='/old/b'", "file='/new/b'")
        .replace("name='/old/b'", "name='vdb'")
        .replace("file='/old/o'", "file='/new/b'");
    assert_eq!(snapshot(SNAPSHOT, &changes).unwrap(), expected);
    let external = SNAPSHOT.replace("'internal'/>\n  <disks>", "'external' file='/old/memory'/>\n  <disks>");
    assert_eq!(
        snapshot(&external, &changes).unwrap(),
        expected.replace("'internal'/>\n  <disks>", "'external' file='/new/memory'/>\n  <disks>")
    );
    let told = summary(&external).unwrap();
    assert_eq!(
        (told.name.as_str(), told.parent.as_deref(), told.created),
        ("before", Some("first"), 1_752_500_000)
    );
    assert_eq!((told.external, told.memory), (vec!["/old/b".to_owned()], Some("/old/memory".into())));
}

#[test]
fn what_cannot_be_told_for_certain_is_refused() {
    let new = vda(Place::File("/n".into()), Format::Raw, Content::Guest);
    let disk = "<disk><source file='/o'/><target dev='vda'/></disk>";
    for (xml, changes, words) in [
        ("<!DOCTYPE d [<!ENTITY e 'x'>]><domain><name>&e;</name></domain>".to_owned(), with_name("b"), "DTD"),
        ("<domain><name>a</domain>".to_owned(), with_name("b"), "cannot be parsed"),
        ("<network><name>a</name></network>".to_owned(), with_name("b"), "<network>, not <domain>"),
        ("<domain xmlns='u'><name>a</name></domain>".to_owned(), with_name("b"), "not <domain>"),
        ("<domain/>".to_owned(), with_name("b"), "<domain> has no <name>"),
        (wrapped("<name>b</name>"), with_name("b"), "more than one <name>"),
        (wrapped("<uuid>1</uuid><uuid>2</uuid>"), with_uuid(), "more than one <uuid>"),
        (devices(""), new.clone(), "has no disk vda"),
        (devices(&disk.repeat(2)), new.clone(), "two disks have the target vda"),
        (devices("<disk><source/><source/><target dev='vda'/></disk>"), new, "more than one <source>"),
        (devices(disk), with_disk("vda", to_file("/a\u{1}b", Format::Raw)), "cannot be written"),
        (devices(disk), with_disk("vda", to_file("/a", Format::Other("\0".to_owned()))), "cannot be written"),
    ] {
        let error = domain(&xml, &changes).expect_err(&xml).to_string();
        assert!(error.contains(words), "{xml}: {error}");
    }
    assert!(snapshot("<domain><name>a</name></domain>", &with_name("b")).is_err());
    assert!(snapshot("<domainsnapshot><name>a</name></domainsnapshot>", &with_name("b")).is_err());
}

/// Text that an attribute and an element can hold.
fn any_text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/ <>&'\"\u{e4}\u{1f40b}\t\n.-]{1,20}"
}

/// What may stand between elements.
fn any_filler() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("\n    ".to_owned()),
        Just("\r\n\t".to_owned()),
        Just("<!-- <source file='/old'/> ' \" > -->".to_owned()),
        Just("<alias name='a>b'/>".to_owned()),
        Just("<?pi <x> ?>".to_owned()),
        Just("<serial><![CDATA[</disk>]]></serial>".to_owned()),
        Just("<q:x xmlns:q='u/' q:file='/old'>&lt;</q:x>".to_owned()),
    ]
}

#[test]
fn an_isolated_domain_runs_no_program_of_its_backup_and_has_nothing_in_its_drives() {
    let xml = "<domain><name>m</name><devices><emulator>/backup/evil</emulator><disk type='block' device='cdrom'><driver name='qemu' type='raw'/>\
               <source dev='/dev/sda'/><target dev='sda' bus='sata'/><readonly/></disk></devices></domain>";
    let surroundings = Surroundings::Isolated { console: None };
    let isolated = domain(xml, &Changes { surroundings, ..Changes::none() }).unwrap();
    assert_eq!(
        isolated,
        "<domain><name>m</name><devices><disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk></devices></domain>"
    );
}

proptest! {
    #[test]
    fn every_byte_outside_of_the_path_stays_and_the_path_is_read_back(
        path in any_text(), old in any_text(), fill in prop::collection::vec(any_filler(), 6), quote in "['\"]",
        spaces in "[ \n]{1,3}",
    ) {
        let old = edits::escape_attribute("", &old).unwrap();
        let before = format!(
            "<?xml version='1.0'?>\n<domain{spaces}type='qemu' >{}<name>a</name><devices>{}<disk type='file'>{}<source{spaces}x='>'{spaces}file={quote}",
            fill[0], fill[1], fill[2]
        );
        let after = format!(
            "{quote}{spaces}/>{}<target dev='vda'/>{}</disk></devices>{}</domain>\n",
            fill[3], fill[4], fill[5]
        );
        let xml = format!("{before}{old}{after}");
        let rewritten = domain(&xml, &with_disk("vda", to_file(&path, Format::Raw))).unwrap();
        prop_assert!(rewritten.starts_with(&before), "{rewritten}");
        prop_assert!(rewritten.ends_with(&after), "{rewritten}");
        let document = roxmltree::Document::parse(&rewritten).unwrap();
        let source = document.descendants().find(|node| edits::is(*node, "source")).unwrap();
        prop_assert_eq!(source.attribute("file"), Some(path.as_str()));
    }

    #[test]
    fn all_changes_at_once_leave_a_document_with_the_rest_of_its_elements(
        name in "[a-z<>&'\"]{1,10}", fill in prop::collection::vec(any_filler(), 8), isolated in any::<bool>(),
    ) {
        let [a, b, c, d, e, f, g, h] = <[String; 8]>::try_from(fill).unwrap();
        let xml = format!(
            "<domain>{a}<name>old</name>{b}<devices>{c}<disk type='network'>{d}<source protocol='nbd'>{e}</source>\
             <auth/>{f}<mirror/><target dev='vda'/></disk>{g}<interface type='bridge'>{h}<mac address='1'/><source bridge='b'/>\
             </interface></devices></domain>"
        );
        let changes = Changes {
            name: Some(VmName::new(&name).unwrap()),
            uuid: Some(uuid()),
            macs: Macs::DerivedFrom(uuid()),
            surroundings: match isolated {
                true => Surroundings::Isolated { console: None },
                false => Surroundings::Kept,
            },
            disks: BTreeMap::from([(target("vda"), to_file("/new", Format::Qcow2))]),
            ..Changes::none()
        };
        let rewritten = domain(&xml, &changes).unwrap();
        let document = roxmltree::Document::parse(&rewritten).unwrap();
        let text = |name: &str| document.descendants().find(|n| edits::is(*n, name)).map(edits::text_of);
        prop_assert_eq!(text("name"), Some(name));
        prop_assert_eq!(text("uuid"), Some(NEW.to_owned()));
        let names = |xml: &str| -> BTreeSet<String> {
            let document = roxmltree::Document::parse(xml).unwrap();
            document.descendants().filter(|n| n.is_element()).map(|n| n.tag_name().name().to_owned()).collect()
        };
        let mut expected: BTreeSet<_> = names(&xml);
        expected.retain(|name| !["auth", "mirror"].contains(&name.as_str()));
        expected.extend(["uuid", "driver"].map(str::to_owned));
        let mut found = names(&rewritten);
        if isolated {
            found.remove("link");
        }
        // What stood inside of the old source, or beside an isolated card, goes with it.
        let gone: BTreeSet<_> = expected.difference(&found).map(String::as_str).collect();
        prop_assert!(gone.is_subset(&BTreeSet::from(["x", "serial", "alias"])), "{gone:?}");
        prop_assert!(found.is_subset(&expected), "{found:?} {expected:?}");
    }
}
