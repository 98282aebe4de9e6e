//! A `<domainsnapshot>`: the domain in it, what it says of its disks, and where its memory is.
//! Also tells what a snapshot is, for whoever has to decide whether it can be carried at all.

use std::path::PathBuf;

use roxmltree::Node;

use super::edits::{Done, Edits, child, children, path_text, text_of};
use super::{Changes, RewriteError, disk, domain};
use crate::core::names::Target;

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSummary {
    pub name: String,
    /// None: it is the first.
    pub parent: Option<String>,
    pub created: u64,
    /// Disks whose state is in a file of its own, not in the image.
    pub external: Vec<String>,
    /// The memory, where it is in a file of its own.
    pub memory: Option<PathBuf>,
}

/// Reads what `virsh snapshot-dumpxml` prints.
pub fn summary(xml: &str) -> Result<SnapshotSummary, RewriteError> {
    let document = super::parse(xml, "domainsnapshot")?;
    let root = document.root_element();
    let text = |node: Node<'_, '_>| text_of(node).trim().to_owned();
    let name = child(root, "name")?.map(text_of);
    let missing = |child| RewriteError::Missing { parent: "domainsnapshot".to_owned(), child };
    let parent = child(root, "parent")?.map(|parent| child(parent, "name")).transpose()?.flatten();
    let created = child(root, "creationTime")?.map(text).and_then(|text| text.parse().ok());
    let memory = child(root, "memory")?.filter(|memory| memory.attribute("snapshot") == Some("external"));
    Ok(SnapshotSummary {
        name: name.ok_or_else(|| missing("name"))?,
        parent: parent.map(text_of),
        created: created.ok_or_else(|| missing("creationTime"))?,
        external: disks(root)?
            .filter(|disk| disk.attribute("snapshot") == Some("external"))
            .map(|disk| disk.attribute("name").unwrap_or_default().to_owned())
            .collect(),
        memory: memory.and_then(|memory| memory.attribute("file")).map(PathBuf::from),
    })
}

pub(super) fn edit(root: Node<'_, '_>, changes: &Changes, edits: &mut Edits<'_>) -> Done {
    let inside = child(root, "domain")?;
    let inside =
        inside.ok_or(RewriteError::Missing { parent: "domainsnapshot".to_owned(), child: "domain" })?;
    domain::edit(inside, changes, edits)?;
    // What the domain would have been after its next start, where that differed.
    if let Some(inactive) = child(root, "inactiveDomain")? {
        let known: Vec<_> = domain::disks_of(inactive)?.into_iter().map(|(target, _)| target).collect();
        let mut narrowed = changes.clone();
        let has = |target: &Target| known.iter().any(|name| name == target.as_str());
        narrowed.disks.retain(|target, _| has(target));
        narrowed.without.retain(|target| has(target));
        narrowed.ejected.retain(|target| has(target));
        domain::edit(inactive, &narrowed, edits)?;
    }
    for node in disks(root)? {
        edit_disk(node, inside, changes, edits)?;
    }
    if let (Some(memory), Some(path)) = (child(root, "memory")?, &changes.memory)
        && memory.attribute("file").is_some()
    {
        edits.set_attribute(memory, "file", path_text(path)?)?;
    }
    Ok(())
}

/// A disk in `<disks>` is named by its target, or by the path of its source when it was asked for so.
fn edit_disk(node: Node<'_, '_>, inside: Node<'_, '_>, changes: &Changes, edits: &mut Edits<'_>) -> Done {
    let name = node.attribute("name").unwrap_or_default();
    let mut target = Target::new(name).ok().filter(|target| changes.disks.contains_key(target));
    if target.is_none() {
        let named_by_source = domain::disks_of(inside)?.into_iter().find(|(_, disk)| {
            let source = child(*disk, "source").ok().flatten();
            let path = source.and_then(|source| source.attribute("file").or(source.attribute("dev")));
            path.is_some_and(|path| path == name)
        });
        target = named_by_source.and_then(|(target, _)| Target::new(&target).ok());
        if let Some(target) = target.as_ref().filter(|target| changes.disks.contains_key(target)) {
            edits.set_attribute(node, "name", target.as_str())?;
        }
    }
    if target
        .as_ref()
        .or(Target::new(name).ok().as_ref())
        .is_some_and(|target| changes.without.contains(target))
    {
        edits.remove(node);
        return Ok(());
    }
    let Some(new) = target.and_then(|target| changes.disks.get(&target)) else { return Ok(()) };
    // Only a snapshot with files of its own says where they are.
    match child(node, "source")? {
        Some(_) => disk::edit(node, new, edits),
        None => Ok(()),
    }
}

fn disks<'a, 'i>(root: Node<'a, 'i>) -> Result<impl Iterator<Item = Node<'a, 'i>>, RewriteError> {
    Ok(child(root, "disks")?.into_iter().flat_map(|disks| children(disks, "disk")))
}
