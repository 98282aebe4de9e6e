//! Tables of domain XML: ordinary, odd and hostile.
//! Whole domains as libvirt prints them are in `tests/data`.

use proptest::prelude::*;

use super::*;

const UUID: &str = "<uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>";

fn with_devices(devices: &str) -> String {
    format!("<domain><name>vm</name>{UUID}<memory>1024</memory><devices>{devices}</devices></domain>")
}

fn one_disk(disk: &str) -> Disk {
    let mut domain = Domain::parse(&with_devices(disk)).unwrap();
    assert_eq!((domain.disks.len(), domain.left_out.len()), (1, 0), "{disk}");
    domain.disks.remove(0)
}

fn file(path: &str) -> Source {
    Source::File(path.into())
}

#[test]
fn a_running_domain_as_libvirt_prints_it() {
    let domain = Domain::parse(include_str!("../../../tests/data/running.xml")).unwrap();
    assert_eq!(domain.id.name.as_str(), "mail01");
    assert_eq!(domain.memory, Bytes(2 << 30));
    assert_eq!(domain.nvram, Some("/var/lib/libvirt/qemu/nvram/mail01_VARS.fd".into()));
    assert_eq!(domain.tpm.as_ref().map(|t| t.backend.as_str()), Some("emulator"));

    let shown: Vec<_> = domain
        .disks
        .iter()
        .map(|d| (d.target.as_str(), d.format.to_string(), d.source.to_string()))
        .collect();
    assert_eq!(
        shown,
        [
            ("vda", "qcow2".into(), "file /var/lib/libvirt/images/mail01.qcow2".into()),
            ("vdb", "raw".into(), "block device /dev/vg0/mail01-data".into()),
            ("vdc", "raw".into(), "rbd pool/mail01".to_owned()),
        ]
    );
    let below = &domain.disks[0].backing;
    assert_eq!(
        below.layers,
        [Layer { format: Format::Qcow2, source: file("/var/lib/libvirt/images/base.qcow2") }]
    );
    assert_eq!(below.end, ChainEnd::Declared);
    assert_eq!(domain.disks[1].backing.end, ChainEnd::Declared);
    let left_out: Vec<_> = domain.left_out.iter().map(|l| l.what.as_str()).collect();
    assert_eq!(left_out, ["sda", "host device (pci)", "shared directory /srv/share"]);
}

#[test]
fn every_kind_of_source_is_read() {
    for (disk, source) in [
        ("type='file'><source file='/a'/>", file("/a")),
        ("><source file='/a'/>", file("/a")),
        ("type='block'><source dev='/dev/sdb' index='1'/>", Source::Block("/dev/sdb".into())),
        (
            "type='network'><source protocol='nbd' name=''><host name='h' port='1'/></source>",
            Source::Network { protocol: "nbd".into(), name: String::new() },
        ),
        (
            "type='volume'><source pool='default' volume='a b'/>",
            Source::Volume { pool: "default".into(), volume: "a b".into() },
        ),
        ("type='dir'><source dir='/d'/>", Source::Directory("/d".into())),
        (
            "type='nvme'><source type='pci' namespace='2'><address domain='0x0000' bus='0x01' slot='0x00' \
             function='0x0'/></source>",
            Source::Nvme { address: "0x0000:0x01:0x00.0x0 namespace 2".into() },
        ),
        ("type='vhostuser'><source type='unix' path='/s'/>", Source::VhostUser { socket: "/s".into() }),
        ("type='vhostvdpa'><source dev='/dev/vdpa'/>", Source::Unknown { kind: "vhostvdpa".into() }),
        ("type='file'>", Source::Nothing),
        ("type='file'><source startupPolicy='optional'/>", Source::Nothing),
        ("type='block'><source/>", Source::Nothing),
    ] {
        assert_eq!(one_disk(&format!("<disk {disk}<target dev='vda'/></disk>")).source, source, "{disk}");
    }
}

#[test]
fn the_format_is_what_is_declared_and_raw_otherwise() {
    for (driver, format) in [
        ("", Format::Raw),
        ("<driver name='qemu'/>", Format::Raw),
        ("<driver name='qemu' type='raw'/>", Format::Raw),
        ("<driver type=\"qcow2\"/>", Format::Qcow2),
        ("<driver type='vmdk'/>", Format::Other("vmdk".into())),
        ("<!-- <driver type='qcow2'/> -->", Format::Raw),
        ("<driver xmlns='urn:x' type='qcow2'/>", Format::Raw),
    ] {
        let disk = one_disk(&format!("<disk>{driver}<source file='/vda.qcow2'/><target dev='vda'/></disk>"));
        assert_eq!(disk.format, format, "{driver}");
    }
}

#[test]
fn flags_and_policies_of_a_disk_are_read() {
    let plain = one_disk("<disk><source file='/a'/><target dev='sda' bus='scsi'/></disk>");
    assert_eq!(
        (plain.access, plain.sharing, plain.lifetime),
        (Access::ReadWrite, Sharing::Exclusive, Lifetime::Persistent)
    );
    for (cache, cached) in [
        ("", HostCache::Used),
        ("cache='writeback'", HostCache::Used),
        ("cache='none'", HostCache::PassedBy),
        ("cache='directsync'", HostCache::PassedBy),
        ("cache='unsafe'", HostCache::Used),
    ] {
        let disk = one_disk(&format!("<disk><driver {cache}/><source file='/a'/><target dev='sda'/></disk>"));
        assert_eq!(disk.cached, cached, "{cache}");
    }
    assert_eq!((plain.bus.as_deref(), plain.device), (Some("scsi"), Device::Disk));
    assert_eq!((plain.snapshot, plain.backing), (SnapshotPolicy::Unspecified, Backing::default()));

    let odd = one_disk(
        "<disk device='lun' snapshot='no' type='block'><source dev='/dev/sdb'/><target dev='sdb'/>\
         <readonly/><shareable/><transient/></disk>",
    );
    assert_eq!(
        (odd.access, odd.sharing, odd.lifetime),
        (Access::ReadOnly, Sharing::Shareable, Lifetime::Transient)
    );
    assert_eq!((odd.device, odd.snapshot), (Device::Lun, SnapshotPolicy::No));
}

#[test]
fn a_chain_is_followed_to_its_declared_end_or_left_open() {
    let layer = |inner: &str| {
        format!(
            "<disk><source file='/top'/><target dev='vda'/><backingStore type='file'><format type='qcow2'/>\
             <source file='/mid'/>{inner}</backingStore></disk>"
        )
    };
    let mid = Layer { format: Format::Qcow2, source: file("/mid") };
    let base = Layer { format: Format::Raw, source: Source::Block("/dev/b".into()) };
    let base_xml =
        "<backingStore type='block'><format type='raw'/><source dev='/dev/b'/><backingStore/></backingStore>";
    for (inner, layers, end) in [
        ("", vec![mid.clone()], ChainEnd::Undeclared),
        ("<backingStore/>", vec![mid.clone()], ChainEnd::Declared),
        (base_xml, vec![mid, base], ChainEnd::Declared),
    ] {
        assert_eq!(one_disk(&layer(inner)).backing, Backing { layers, end }, "{inner}");
    }
}

#[test]
fn a_mirror_of_a_running_block_job_is_not_taken_for_the_source() {
    let disk = one_disk(
        "<disk><mirror type='file' job='copy'><source file='/mirror'/></mirror><source file='/real'/>\
         <target dev='vda'/></disk>",
    );
    assert_eq!(disk.source, file("/real"));
}

#[test]
fn odd_spellings_of_a_path_mean_what_xml_says_they_mean() {
    for (written, meant) in [
        ("'/a b'", "/a b"),
        ("\"/it's\"", "/it's"),
        ("'/a&quot;b'", "/a\"b"),
        ("'/a&amp;b&lt;c&gt;'", "/a&b<c>"),
        ("'/a&#x20;b&#228;'", "/a bä"),
        ("'/100%'", "/100%"),
        (r"'/a\040b'", r"/a\040b"),
        ("'/größe'", "/größe"),
    ] {
        let disk = one_disk(&format!("<disk><source file={written}/><target dev='vda'/></disk>"));
        assert_eq!(disk.source, file(meant), "{written}");
    }
}

#[test]
fn odd_spellings_of_a_name_mean_what_libvirt_says_they_mean() {
    for (written, meant) in [
        ("a b", "a b"),
        ("it&apos;s", "it's"),
        ("<![CDATA[a<b]]>", "a<b"),
        ("ma<!-- no -->il", "mail"),
        (r"a\040b%20", r"a\040b%20"),
        ("größe", "größe"),
    ] {
        let xml = with_devices("").replace("<name>vm<", &format!("<name>{written}<"));
        assert_eq!(Domain::parse(&xml).unwrap().id.name.as_str(), meant, "{written}");
    }
}

#[test]
fn what_is_not_libvirts_own_element_is_not_a_disk() {
    for devices in [
        "<!-- <disk><source file='/a'/><target dev='vda'/></disk> -->",
        "<q:disk xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><target dev='vda'/></q:disk>",
        "<disk xmlns='urn:other'><target dev='vda'/></disk>",
        "<controller><disk><target dev='vda'/></disk></controller>",
        "<![CDATA[<disk><target dev='vda'/></disk>]]>",
    ] {
        let domain = Domain::parse(&with_devices(devices)).unwrap();
        assert_eq!((domain.disks, domain.left_out), (vec![], vec![]), "{devices}");
    }
}

#[test]
fn nothing_is_left_out_without_a_reason() {
    let domain = Domain::parse(&with_devices(
        "<disk device='cdrom'><target dev='hda'/></disk><disk device='floppy'><target dev='fda'/></disk>\
         <hostdev mode='subsystem' type='scsi'/><hostdev mode='subsystem' type='mdev'/>\
         <filesystem><source dir='/srv'/></filesystem>",
    ))
    .unwrap();
    let what: Vec<_> = domain.left_out.iter().map(|l| l.what.as_str()).collect();
    assert_eq!(what, ["hda", "fda", "host device (scsi)", "shared directory /srv"]);
    assert!(domain.left_out.iter().all(|l| !l.reason.is_empty()));
}

#[test]
fn xml_that_cannot_be_understood_is_refused_with_a_reason() {
    for (xml, reason) in [
        (String::new(), "cannot be parsed"),
        ("<domain".into(), "cannot be parsed"),
        ("<network/>".into(), "<network>, not <domain>"),
        ("<domain xmlns='urn:x'/>".into(), "not <domain>"),
        ("<domain/>".into(), "no <name>"),
        (format!("<domain><name>a/b</name>{UUID}<memory>1</memory></domain>"), "'/'"),
        (format!("<domain><name>..</name>{UUID}<memory>1</memory></domain>"), "begins with a dot"),
        (format!("<domain><name>a\nb</name>{UUID}<memory>1</memory></domain>"), "'\\n'"),
        ("<domain><name>a</name><uuid>1</uuid></domain>".into(), "not a UUID"),
        (format!("<domain><name>a</name>{UUID}<memory unit='acre'>1</memory></domain>"), "acre"),
        (format!("<domain><name>a</name>{UUID}<memory>-1</memory></domain>"), "-1"),
        (with_devices("<disk/>"), "disk number 1 has no <target"),
        (with_devices("<disk><target dev='../x'/></disk>"), "disk number 1 has a target that cannot be used"),
        (with_devices("<disk><target dev='a'/></disk><disk><target dev='a'/></disk>"), "two disks"),
        (
            with_devices("<disk device='cdrom'><target dev='a'/></disk><disk><target dev='a'/></disk>"),
            "two disks",
        ),
        (with_devices("<disk device='tape'><target dev='a'/></disk>"), "tape"),
        (with_devices("<disk snapshot='maybe'><target dev='a'/></disk>"), "maybe"),
        (with_devices("<disk type='network'><source/><target dev='a'/></disk>"), "protocol"),
        (with_devices("<disk><source file=''/><target dev='a'/></disk>"), "lacks the attribute \"file\""),
        (with_devices("<disk>&undefined;</disk>"), "cannot be parsed"),
    ] {
        let error = Domain::parse(&xml).expect_err(&xml).to_string();
        assert!(error.contains(reason), "{xml}\n{error}");
    }
}

#[test]
fn a_dtd_is_refused_so_no_entity_can_grow_or_read_a_file() {
    let billion = "<!DOCTYPE d [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;'>]>";
    let external = "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>";
    for dtd in [billion, external, "<!DOCTYPE domain>"] {
        let xml = format!("{dtd}{}", with_devices("").replace(">vm<", ">&a;<"));
        assert!(matches!(Domain::parse(&xml), Err(DomainError::Xml(_))), "{dtd}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        // Only that it returns is claimed.
        drop(Domain::parse(&text));
    }

    #[test]
    fn a_path_survives_the_way_through_xml(path in "/[^\\x00-\\x1f\\x7f-\\x9f]{0,60}") {
        let escaped = path.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;");
        prop_assume!(!path.contains(['\u{fffe}', '\u{ffff}']));
        let disk = one_disk(&format!("<disk><source file='{escaped}'/><target dev='vda'/></disk>"));
        prop_assert_eq!(disk.source, Source::File(path.into()));
    }
}
