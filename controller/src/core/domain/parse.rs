//! Domain XML to `Domain`: the door where text becomes types.
//! Reads the elements that libvirt reads, by the paths by which libvirt finds them; ignores all others.

use std::path::PathBuf;

use roxmltree::{Document, Node, ParsingOptions};
use thiserror::Error;

use super::{
    Access, Backing, ChainEnd, Device, Disk, Domain, DomainId, Format, HostCache, Layer, LeftOut, Lifetime,
    Sharing, SnapshotPolicy, Source, Tpm, TpmSource,
};
use crate::core::names::{NameError, Target, Uuid, VmName};
use crate::core::units::Bytes;

/// Why a domain's XML was not understood. Nothing is guessed: a backup that misses a disk is worse than none.
#[derive(Debug, Error)]
pub enum DomainError {
    #[error("the domain XML cannot be parsed")]
    Xml(#[from] roxmltree::Error),
    #[error("the root element is <{0}>, not <domain>")]
    NotADomain(String),
    #[error("the domain has no <{0}>")]
    Missing(&'static str),
    #[error("the domain's name cannot be used: {0}")]
    Name(NameError),
    #[error("the domain's <uuid>: {0}")]
    Uuid(NameError),
    #[error("the domain's <memory> is {text:?} {unit:?}")]
    Memory { text: String, unit: String },
    #[error("disk number {position} has no <target dev='...'>")]
    NoTarget { position: usize },
    #[error("disk number {position} has a target that cannot be used: {error}")]
    Target { position: usize, error: NameError },
    #[error("two disks have the target {0}")]
    TargetTwice(Target),
    #[error("disk {target}: {what} is {value:?}, which this program does not know")]
    UnknownValue { target: Target, what: &'static str, value: String },
    #[error("disk {target}: the source of kind {kind} lacks the attribute {attribute:?}")]
    NoSource { target: Target, kind: String, attribute: &'static str },
}

pub(super) fn domain(xml: &str) -> Result<Domain, DomainError> {
    let options = ParsingOptions { allow_dtd: false, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options)?;
    let root = document.root_element();
    if !is(root, "domain") {
        return Err(DomainError::NotADomain(root.tag_name().name().to_owned()));
    }
    let name = child(root, "name").map(text).ok_or(DomainError::Missing("name"))?;
    let uuid = child(root, "uuid").map(text).ok_or(DomainError::Missing("uuid"))?;
    let mut domain = Domain {
        id: DomainId {
            name: VmName::new(&name).map_err(DomainError::Name)?,
            uuid: Uuid::new(uuid.trim()).map_err(DomainError::Uuid)?,
        },
        memory: memory(child(root, "memory").ok_or(DomainError::Missing("memory"))?)?,
        disks: Vec::new(),
        left_out: Vec::new(),
        nvram: child(root, "os").and_then(|os| child(os, "nvram")).and_then(nvram),
        tpm: None,
    };
    for devices in children(root, "devices") {
        read_devices(devices, &mut domain)?;
    }
    Ok(domain)
}

fn read_devices(devices: Node<'_, '_>, domain: &mut Domain) -> Result<(), DomainError> {
    for (index, node) in children(devices, "disk").enumerate() {
        let target = target(node, index + 1)?;
        let taken = domain.left_out.iter().any(|l| l.what == target.as_str());
        if taken || domain.disk(&target).is_some() {
            return Err(DomainError::TargetTwice(target));
        }
        match node.attribute("device").unwrap_or("disk") {
            "disk" => domain.disks.push(disk(node, target, Device::Disk)?),
            "lun" => domain.disks.push(disk(node, target, Device::Lun)?),
            kind @ ("cdrom" | "floppy") => {
                let reason = format!("a {kind} drive: its medium is not the guest's own data");
                domain.left_out.push(LeftOut { what: target.to_string(), reason });
            }
            other => return Err(unknown(&target, "the device", other)),
        }
    }
    domain.left_out.extend(children(devices, "hostdev").filter_map(passed_through));
    domain.left_out.extend(children(devices, "filesystem").map(shared_directory));
    domain.tpm = domain.tpm.take().or_else(|| child(devices, "tpm").and_then(tpm));
    Ok(())
}

fn target(node: Node<'_, '_>, position: usize) -> Result<Target, DomainError> {
    let dev = child(node, "target").and_then(|t| t.attribute("dev"));
    let dev = dev.ok_or(DomainError::NoTarget { position })?;
    Target::new(dev).map_err(|error| DomainError::Target { position, error })
}

fn disk(node: Node<'_, '_>, target: Target, device: Device) -> Result<Disk, DomainError> {
    let source = source(node, &target)?;
    let driver = |name: &str| child(node, "driver").and_then(|d| d.attribute(name));
    let snapshot = match node.attribute("snapshot") {
        None => SnapshotPolicy::Unspecified,
        Some("no") => SnapshotPolicy::No,
        Some("internal") => SnapshotPolicy::Internal,
        Some("external") => SnapshotPolicy::External,
        Some("manual") => SnapshotPolicy::Manual,
        Some(other) => return Err(unknown(&target, "the snapshot policy", other)),
    };
    Ok(Disk {
        bus: child(node, "target").and_then(|t| t.attribute("bus")).map(str::to_owned),
        device,
        format: Format::from(driver("type").unwrap_or("raw").to_owned()),
        source,
        backing: backing(node, &target)?,
        access: if child(node, "readonly").is_some() { Access::ReadOnly } else { Access::ReadWrite },
        sharing: if child(node, "shareable").is_some() { Sharing::Shareable } else { Sharing::Exclusive },
        lifetime: if child(node, "transient").is_some() { Lifetime::Transient } else { Lifetime::Persistent },
        cached: match driver("cache") {
            Some("none" | "directsync") => HostCache::PassedBy,
            _ => HostCache::Used,
        },
        snapshot,
        target,
    })
}

/// The source of a `<disk>` or a `<backingStore>`: both have the kind in `type` and the rest in `<source>`.
fn source(node: Node<'_, '_>, target: &Target) -> Result<Source, DomainError> {
    let kind = node.attribute("type").unwrap_or("file");
    let Some(source) = child(node, "source") else { return Ok(Source::Nothing) };
    let need = |attribute: &'static str| {
        let value = source.attribute(attribute).filter(|value| !value.is_empty()).map(str::to_owned);
        let target = target.clone();
        value.ok_or(DomainError::NoSource { target, kind: kind.to_owned(), attribute })
    };
    Ok(match kind {
        // libvirt shows an empty drive also as `<source/>`, with or without an index.
        "file" if source.attribute("file").is_none() => Source::Nothing,
        "block" if source.attribute("dev").is_none() => Source::Nothing,
        "file" => Source::File(need("file")?.into()),
        "block" => Source::Block(need("dev")?.into()),
        "dir" => Source::Directory(need("dir")?.into()),
        "network" => Source::Network {
            protocol: need("protocol")?,
            // An NBD export may be the default one, whose name is empty.
            name: source.attribute("name").unwrap_or_default().to_owned(),
        },
        "volume" => Source::Volume { pool: need("pool")?, volume: need("volume")? },
        "nvme" => Source::Nvme { address: nvme_address(source) },
        "vhostuser" => Source::VhostUser { socket: need("path")?.into() },
        other => Source::Unknown { kind: other.to_owned() },
    })
}

/// Follows `<backingStore>` in `<backingStore>`; an empty one ends the chain.
fn backing(disk: Node<'_, '_>, target: &Target) -> Result<Backing, DomainError> {
    let mut chain = Backing::default();
    let mut above = disk;
    while let Some(layer) = child(above, "backingStore") {
        if layer.attribute("type").is_none() && child(layer, "source").is_none() {
            chain.end = ChainEnd::Declared;
            break;
        }
        let format = child(layer, "format").and_then(|f| f.attribute("type")).unwrap_or("raw");
        let format = Format::from(format.to_owned());
        chain.layers.push(Layer { format, source: source(layer, target)? });
        above = layer;
    }
    Ok(chain)
}

fn nvme_address(source: Node<'_, '_>) -> String {
    let part = |name| child(source, "address").and_then(|a| a.attribute(name)).unwrap_or("?");
    let namespace = source.attribute("namespace").unwrap_or("1");
    let (domain, bus, slot, function) = (part("domain"), part("bus"), part("slot"), part("function"));
    format!("{domain}:{bus}:{slot}.{function} namespace {namespace}")
}

fn passed_through(node: Node<'_, '_>) -> Option<LeftOut> {
    let kind = node.attribute("type").unwrap_or("unknown");
    let capability = node.attribute("mode").filter(|mode| *mode == "capabilities");
    // A PCI device can be a disk controller; USB a stick. What cannot hold data is not worth a line.
    let holds_data = matches!(kind, "scsi" | "scsi_host" | "pci" | "usb" | "storage") || capability.is_some();
    holds_data.then(|| LeftOut {
        what: format!("host device ({kind})"),
        reason: "passed through to the guest: what it stores is out of the hypervisor's sight".to_owned(),
    })
}

fn shared_directory(node: Node<'_, '_>) -> LeftOut {
    let source = child(node, "source").and_then(|s| s.attribute("dir").or(s.attribute("file")));
    LeftOut {
        what: format!("shared directory {}", source.unwrap_or("(unnamed)")),
        reason: "files of the host: back them up there".to_owned(),
    }
}

/// `<nvram>/path</nvram>`, or since libvirt 8.5 `<nvram type='file'><source file='/path'/></nvram>`.
fn nvram(node: Node<'_, '_>) -> Option<PathBuf> {
    let named = child(node, "source").and_then(|s| s.attribute("file").or(s.attribute("dev")));
    let path = named.map_or_else(|| text(node).trim().to_owned(), str::to_owned);
    (!path.is_empty()).then(|| path.into())
}

fn tpm(node: Node<'_, '_>) -> Option<Tpm> {
    let backend = child(node, "backend")?;
    let state = child(backend, "source").and_then(|source| {
        let path = source.attribute("path").or(source.attribute("file"))?.into();
        Some(match source.attribute("type") {
            Some("dir") => TpmSource::Directory(path),
            _ => TpmSource::File(path),
        })
    });
    Some(Tpm {
        backend: backend.attribute("type").unwrap_or("unknown").to_owned(),
        version: backend.attribute("version").map(str::to_owned),
        state,
    })
}

/// The units of libvirt's memory sizes; KiB when none is given (formatdomain, "Memory Allocation").
fn memory(node: Node<'_, '_>) -> Result<Bytes, DomainError> {
    let (text, unit) = (text(node), node.attribute("unit").unwrap_or("KiB"));
    let bytes_per_unit: u64 = match unit {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => 0,
    };
    let count = text.trim().parse::<u64>().ok();
    let size = count.filter(|_| bytes_per_unit > 0).and_then(|count| count.checked_mul(bytes_per_unit));
    size.map(Bytes).ok_or_else(|| DomainError::Memory { text, unit: unit.to_owned() })
}

fn unknown(target: &Target, what: &'static str, value: &str) -> DomainError {
    DomainError::UnknownValue { target: target.clone(), what, value: value.to_owned() }
}

/// libvirt's own elements are in no namespace; `<qemu:disk>` or a `<disk>` in a default one are not disks.
fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is(*child, name))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// All the text in an element: a comment or CDATA splits it into several nodes, and libvirt joins them.
fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|t| t.text()).collect()
}
