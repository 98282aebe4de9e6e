//! The small XML that libvirt is given and gives around a backup. Pure: text to text, text to types.
//! The domain itself is `core::domain`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use crate::core::facts::{Agent, BackupJob};
use crate::core::names::Target;
use crate::core::step::{BackupRequest, DiskTracking, Overlay, OverlayRequest, export_bitmap};

/// `<domainbackup>` for all disks of a request; the export of a disk has the name of its target.
pub(super) fn backup_of(request: &BackupRequest, socket: &Path) -> String {
    let mut disks = String::new();
    for disk in &request.disks {
        let incremental = match &disk.tracking {
            DiskTracking::Untracked | DiskTracking::Checkpoint => " backupmode='full'".to_owned(),
            DiskTracking::Since(base) => format!(
                " backupmode='incremental' incremental='{}' exportbitmap='{}'",
                escaped(base.as_str()),
                export_bitmap(&disk.target)
            ),
        };
        let (target, scratch) = (&disk.target, escaped(&disk.scratch.to_string_lossy()));
        put(
            &mut disks,
            format_args!(
                "<disk name='{target}' backup='yes' type='file' exportname='{target}'{incremental}>\
                 <scratch file='{scratch}'/></disk>"
            ),
        );
    }
    for target in &request.without {
        put(&mut disks, format_args!("<disk name='{target}' backup='no'/>"));
    }
    let socket = escaped(&socket.to_string_lossy());
    format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>{disks}</disks></domainbackup>"
    )
}

/// `<domaincheckpoint>` over the disks that are tracked. None: none is.
pub(super) fn checkpoint_of(request: &BackupRequest) -> Option<String> {
    let name = request.checkpoint.as_ref()?;
    let mut disks = String::new();
    for disk in &request.disks {
        let kind = if disk.tracking == DiskTracking::Untracked { "no" } else { "bitmap" };
        put(&mut disks, format_args!("<disk name='{}' checkpoint='{kind}'/>", disk.target));
    }
    for target in &request.without {
        put(&mut disks, format_args!("<disk name='{target}' checkpoint='no'/>"));
    }
    Some(format!(
        "<domaincheckpoint><name>{}</name><description>of virt-backup: what changes from here on is in the next \
         backup</description><disks>{disks}</disks></domaincheckpoint>",
        escaped(name.as_str())
    ))
}

/// `<domainsnapshot>` that gives each disk of a request its overlay.
pub(super) fn snapshot_of(request: &OverlayRequest) -> String {
    let mut disks = String::new();
    for overlay in &request.overlays {
        let (target, file) = (&overlay.target, escaped(&overlay.overlay.to_string_lossy()));
        put(
            &mut disks,
            format_args!(
                "<disk name='{target}' snapshot='external' type='file'><driver type='qcow2'/>\
                 <source file='{file}'/></disk>"
            ),
        );
    }
    for target in &request.without {
        put(&mut disks, format_args!("<disk name='{target}' snapshot='no'/>"));
    }
    let memory = request
        .memory
        .as_ref()
        .map(|file| format!("<memory snapshot='external' file='{}'/>", escaped(&file.to_string_lossy())));
    format!("<domainsnapshot>{}<disks>{disks}</disks></domainsnapshot>", memory.unwrap_or_default())
}

/// A disk of a domain, as far as a merge is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskNow {
    pub file: Option<PathBuf>,
    pub job: Option<CommitNow>,
}

/// An active commit that works on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommitNow {
    pub into: Option<PathBuf>,
    pub ready: bool,
}

/// None: the domain has no such disk.
pub(super) fn disk_now(domain: &str, target: &Target) -> Result<Option<DiskNow>, roxmltree::Error> {
    let document = Document::parse(domain)?;
    let Some(disk) = disk_node(&document, target) else { return Ok(None) };
    let job = child(disk, "mirror")
        .map(|mirror| CommitNow { into: file_of(mirror), ready: mirror.attribute("ready") == Some("yes") });
    Ok(Some(DiskNow { file: file_of(disk), job }))
}

/// Does any image of any disk have this path?
pub(super) fn mentions(domain: &str, file: &Path) -> Result<bool, roxmltree::Error> {
    let document = Document::parse(domain)?;
    let mut sources = document.descendants().filter(|node| node.has_tag_name("source"));
    Ok(sources.any(|source| source.attribute("file").is_some_and(|path| Path::new(path) == file)))
}

/// All files that a domain has: images, those below them, UEFI variables.
pub(super) fn files(domain: &str) -> Result<Vec<PathBuf>, roxmltree::Error> {
    let document = Document::parse(domain)?;
    let sources = document.descendants().filter(|node| node.has_tag_name("source"));
    let images = sources.filter_map(|source| source.attribute("file").or(source.attribute("dev")));
    let nvram = document.descendants().filter(|node| node.has_tag_name("nvram"));
    let nvram = nvram.filter_map(|node| node.text().or(node.children().find_map(|c| c.attribute("file"))));
    Ok(images.chain(nvram).map(|path| PathBuf::from(path.trim())).collect())
}

/// The definition of a domain with a disk on its image again, which it was before it got the overlay. Every other byte
/// stays. None: the disk is not on the overlay.
pub(super) fn without_overlay(domain: &str, overlay: &Overlay) -> Result<Option<String>, roxmltree::Error> {
    let document = Document::parse(domain)?;
    let Some(disk) = disk_node(&document, &overlay.target) else { return Ok(None) };
    if file_of(disk).as_deref() != Some(&overlay.overlay) {
        return Ok(None);
    }
    let mut splices: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    let file = child(disk, "source").and_then(|source| source.attribute_node("file"));
    splices.extend(file.map(|file| (file.range_value(), escaped(&overlay.base.to_string_lossy()))));
    let format = child(disk, "driver").and_then(|driver| driver.attribute_node("type"));
    splices.extend(format.map(|format| (format.range_value(), escaped(&overlay.base_format.to_string()))));
    if let Some(store) = child(disk, "backingStore") {
        let below = child(store, "backingStore").map(|below| domain[below.range()].to_owned());
        let mut range = store.range();
        if below.is_none() {
            // With the line it stands on.
            range.start = domain[..range.start].trim_end().len();
        }
        splices.push((range, below.unwrap_or_default()));
    }
    splices.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    let mut text = domain.to_owned();
    for (range, new) in splices {
        text.replace_range(range, &new);
    }
    Ok(Some(text))
}

fn disk_node<'a>(document: &'a Document<'_>, target: &Target) -> Option<Node<'a, 'a>> {
    let devices = document.root_element().children().find(|node| node.has_tag_name("devices"))?;
    devices
        .children()
        .filter(|node| node.has_tag_name("disk"))
        .find(|disk| child(*disk, "target").and_then(|node| node.attribute("dev")) == Some(target.as_str()))
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn file_of(disk: Node<'_, '_>) -> Option<PathBuf> {
    disk.children().find(|node| node.has_tag_name("source"))?.attribute("file").map(PathBuf::from)
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string does not fail");
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(character),
        }
    }
    out
}

/// The running backup job, by where it serves.
pub(super) fn job(xml: &str) -> Result<BackupJob, roxmltree::Error> {
    let document = Document::parse(xml)?;
    let server = document.root_element().children().find(|node| node.has_tag_name("server"));
    Ok(BackupJob { socket: server.and_then(|server| server.attribute("socket")).map(PathBuf::from) })
}

/// A checkpoint's disks that have a bitmap, each with whether a size is told of it.
pub(super) fn bitmaps(xml: &str) -> Result<BTreeMap<Target, bool>, roxmltree::Error> {
    let document = Document::parse(xml)?;
    let disks = document.descendants().filter(|node| node.has_tag_name("disk"));
    let tracked = disks.filter(|disk| disk.attribute("checkpoint") == Some("bitmap"));
    let target = |disk: &Node<'_, '_>| Target::new(disk.attribute("name")?).ok();
    Ok(tracked.filter_map(|disk| Some((target(&disk)?, disk.has_attribute("size")))).collect())
}

/// Is the guest agent there?
pub(super) fn agent(domain: &Document<'_>) -> Agent {
    let mut targets = domain.descendants().filter(|node| node.has_tag_name("target"));
    let connected = targets.any(|target| {
        target.attribute("name") == Some("org.qemu.guest_agent.0")
            && target.attribute("state") == Some("connected")
    });
    if connected { Agent::Connected } else { Agent::Absent }
}

/// The user and group that QEMU runs as, where libvirt tells.
pub(super) fn owner(domain: &Document<'_>) -> Option<(u32, u32)> {
    let labels = domain.descendants().filter(|node| node.has_tag_name("seclabel"));
    let mut dac = labels.filter(|label| label.attribute("model") == Some("dac"));
    let label = dac.find_map(|label| label.children().find(|node| node.has_tag_name("label"))?.text())?;
    let (user, group) = label.split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(user)?, number(group)?))
}

/// The targets of the disks that have a running job of their own, such as a block copy.
pub(super) fn mirrored(domain: &Document<'_>) -> BTreeSet<String> {
    let mirrors = domain.descendants().filter(|node| node.has_tag_name("mirror"));
    let target = |mirror: Node<'_, '_>| {
        let disk = mirror.parent()?;
        Some(disk.children().find(|node| node.has_tag_name("target"))?.attribute("dev")?.to_owned())
    };
    mirrors.filter_map(target).collect()
}

#[cfg(test)]
mod tests {
    use crate::core::domain::DomainId;
    use crate::core::names::{CheckpointName, JobId, Uuid, VmName};
    use crate::core::step::BackupDisk;
    use crate::core::units::Generation;

    use super::*;

    fn request() -> BackupRequest {
        let uuid = Uuid::new("a0b1c2d3-0000-4000-8000-00000000000f").unwrap();
        let name = |generation| CheckpointName::new(&uuid, Generation(generation), &JobId::from_bits(1));
        let target = |name: &str| Target::new(name).unwrap();
        let disk = |name: &str, tracking| BackupDisk {
            target: target(name),
            scratch: format!("/s/it's & <{name}>.qcow2").into(),
            tracking,
        };
        BackupRequest {
            checkpoint: Some(name(2)),
            disks: vec![
                disk("vda", DiskTracking::Since(name(1))),
                disk("vdb", DiskTracking::Untracked),
                disk("vdc", DiskTracking::Checkpoint),
            ],
            without: vec![target("sda")],
            socket: "/run/a&b/nbd.sock".into(),
            domain: DomainId { name: VmName::new("mail01").unwrap(), uuid },
        }
    }

    #[test]
    fn every_disk_is_named_and_no_path_can_leave_its_attribute() {
        let xml = backup_of(&request(), Path::new("/run/a&b/nbd.sock"));
        let document = Document::parse(&xml).unwrap();
        let disks: Vec<_> = document.descendants().filter(|node| node.has_tag_name("disk")).collect();
        let column =
            |name: &str| disks.iter().map(|disk| disk.attribute(name).unwrap_or("-")).collect::<Vec<_>>();
        assert_eq!(column("name"), ["vda", "vdb", "vdc", "sda"]);
        assert_eq!(column("backup"), ["yes", "yes", "yes", "no"]);
        assert_eq!(column("backupmode"), ["incremental", "full", "full", "-"]);
        assert_eq!(column("exportbitmap"), ["backup-vda", "-", "-", "-"]);
        let scratch = disks[0].children().next().unwrap().attribute("file");
        assert_eq!(scratch, Some("/s/it's & <vda>.qcow2"));
        assert_eq!(job(&xml).unwrap().socket, Some(PathBuf::from("/run/a&b/nbd.sock")));
    }

    #[test]
    fn a_checkpoint_covers_the_tracked_disks_alone() {
        let xml = checkpoint_of(&request()).unwrap();
        let covered: Vec<_> = bitmaps(&xml).unwrap().into_keys().map(String::from).collect();
        assert_eq!(covered, ["vda", "vdc"]);
        assert_eq!(checkpoint_of(&BackupRequest { checkpoint: None, ..request() }), None);
    }

    fn overlay() -> Overlay {
        let (target, base_format) = (Target::new("vda").unwrap(), crate::core::domain::Format::Raw);
        Overlay { target, overlay: "/i/it's.ov".into(), base: "/i/it's".into(), base_format }
    }

    #[test]
    fn a_definition_on_an_overlay_becomes_what_it_was() {
        let store = |inner: &str| {
            format!(
                "\n  <backingStore type='file'><format type='raw'/><source file='/i/it&apos;s'/>{inner}</backingStore>"
            )
        };
        let disk = |format: &str, file: &str, store: &str| {
            format!(
                "<domain><devices><!-- a --><disk><driver name='qemu' type='{format}'/>\n  \
                 <source file='/i/it&apos;s{file}'/>{store}\n  <target dev='vda'/></disk></devices></domain>"
            )
        };
        let below = "<backingStore type='file'><source file='/i/deep'/></backingStore>";
        for (before, during) in [
            (disk("raw", "", ""), disk("qcow2", ".ov", &store(""))),
            (disk("raw", "", &format!("\n  {below}")), disk("qcow2", ".ov", &store(below))),
        ] {
            assert_eq!(without_overlay(&during, &overlay()).unwrap(), Some(before.clone()));
            assert_eq!(without_overlay(&before, &overlay()).unwrap(), None, "as often as one likes");
            assert!(mentions(&during, Path::new("/i/it's.ov")).unwrap());
            assert!(!mentions(&before, Path::new("/i/it's.ov")).unwrap());
        }
    }

    #[test]
    fn a_commit_is_known_by_its_mirror() {
        let xml = "<domain><devices><disk><source file='/i/ov'/><mirror type='file' job='active-commit' ready='yes'>\
            <source file='/i/base'/></mirror><target dev='vda'/></disk></devices></domain>";
        let job = Some(CommitNow { into: Some("/i/base".into()), ready: true });
        let expected = DiskNow { file: Some("/i/ov".into()), job };
        assert_eq!(disk_now(xml, &overlay().target).unwrap(), Some(expected));
        assert_eq!(disk_now(xml, &Target::new("vdb").unwrap()).unwrap(), None);
    }

    #[test]
    fn what_the_live_xml_tells_is_found() {
        let xml = "<domain><devices><channel><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>\
            </channel><disk><mirror/><target dev='vdb'/></disk></devices>\
            <seclabel type='dynamic' model='dac'><label>+64055:+108</label></seclabel></domain>";
        let document = Document::parse(xml).unwrap();
        assert_eq!(agent(&document), Agent::Connected);
        assert_eq!(owner(&document), Some((64055, 108)));
        assert_eq!(mirrored(&document), BTreeSet::from(["vdb".to_owned()]));
    }
}
