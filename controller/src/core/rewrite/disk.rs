//! One `<disk>` of a domain: another source, another format, no chain.
//! What the guest sees of the disk stays: its bus, its address, its serial number.

use roxmltree::Node;

use super::edits::{Done, Edits, child, children, escape_attribute, path_text};
use super::{Content, NewDisk, Place, RewriteError};
use crate::core::domain::Format;

/// What only a LUN can have (libvirt's formatdomain, "Hard drives, floppy disks, CDROMs").
const OF_LUNS: [&str; 2] = ["sgio", "rawio"];

pub(super) fn edit(disk: Node<'_, '_>, new: &NewDisk, edits: &mut Edits<'_>) -> Done {
    let (kind, _) = attribute_of(&new.place);
    // A SCSI device whose commands go through to the host's has to be a device of the host.
    if disk.attribute("device") == Some("lun") && kind == "file" {
        edits.set_attribute(disk, "device", "disk")?;
        OF_LUNS.iter().for_each(|name| edits.remove_attribute(disk, name));
    }
    let was = disk.attribute("type").unwrap_or("file");
    if was != kind {
        edits.set_attribute(disk, "type", kind)?;
    }
    driver(disk, &new.format, edits)?;
    source(disk, was, new, edits)?;
    // A copy that was underway, and who may read what was on the network, are both of the old source.
    children(disk, "mirror").chain(children(disk, "auth")).for_each(|gone| edits.remove(gone));
    if new.content == Content::Guest {
        children(disk, "encryption").for_each(|gone| edits.remove(gone));
    }
    for chain in children(disk, "backingStore") {
        if chain.children().any(|node| node.is_element()) || chain.attributes().len() > 0 {
            // Declares that nothing lies below, so that nobody looks for it in the header of the image.
            edits.replace(chain, "<backingStore/>".to_owned());
        }
    }
    Ok(())
}

/// No declaration means raw, to libvirt as to us.
fn driver(disk: Node<'_, '_>, format: &Format, edits: &mut Edits<'_>) -> Done {
    let driver = child(disk, "driver")?;
    let declared = driver.and_then(|driver| driver.attribute("type")).unwrap_or("raw");
    let wanted = format.to_string();
    match driver {
        _ if declared == wanted => Ok(()),
        Some(driver) => edits.set_attribute(driver, "type", &wanted),
        None => {
            let format = escape_attribute("the format", &wanted)?;
            edits.insert_first(disk, format!("<driver name='qemu' type='{format}'/>"));
            Ok(())
        }
    }
}

fn source(disk: Node<'_, '_>, was: &str, new: &NewDisk, edits: &mut Edits<'_>) -> Done {
    let (kind, attribute) = attribute_of(&new.place);
    let path = match &new.place {
        Place::File(path) | Place::Block(path) => path_text(path)?,
    };
    let element = |startup: Option<&str>| -> Result<String, RewriteError> {
        let policy = match startup {
            Some(policy) => {
                format!(" startupPolicy='{}'", escape_attribute("the startup policy", policy)?)
            }
            None => String::new(),
        };
        Ok(format!("<source {attribute}='{}'{policy}/>", escape_attribute("the path", path)?))
    };
    match child(disk, "source")? {
        // Whatever else stands in it is of the old kind: hosts, a pool, a reservation.
        Some(source) if was != kind => {
            edits.replace(source, element(source.attribute("startupPolicy"))?);
        }
        Some(source) => {
            edits.set_attribute(source, attribute, path)?;
            let gone: &[&str] = match new.content {
                Content::Guest => &["slices", "encryption", "dataStore"],
                Content::Image => &["slices", "dataStore"],
            };
            gone.iter().for_each(|name| children(source, name).for_each(|gone| edits.remove(gone)));
        }
        None => match (child(disk, "driver")?, child(disk, "target")?) {
            (Some(driver), _) => edits.insert_after(driver, element(None)?),
            (None, Some(target)) => edits.insert_before(target, element(None)?),
            (None, None) => edits.insert_first(disk, element(None)?),
        },
    }
    Ok(())
}

/// The `type` of a disk, and the attribute of `<source>` that then has the path.
pub(super) fn attribute_of(place: &Place) -> (&'static str, &'static str) {
    match place {
        Place::File(_) => ("file", "file"),
        Place::Block(_) => ("block", "dev"),
    }
}
