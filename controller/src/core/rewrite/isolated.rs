//! A domain that touches nothing of its host but its disks: for a guest that runs beside its original.
//! What is not known to be harmless goes; so does the program that runs it: libvirt knows which one it has for its machine.

use std::path::Path;

use roxmltree::Node;

use super::RewriteError;
use super::edits::{Done, Edits, child, children, escape_attribute, is, path_text};

/// Devices that are QEMU's own, and have nothing of the host behind them.
const HARMLESS: [&str; 14] = [
    "disk",
    "controller",
    "input",
    "video",
    "sound",
    "watchdog",
    "memballoon",
    "panic",
    "iommu",
    "hub",
    "nvram",
    "rng",
    "tpm",
    "crypto",
];
/// What belongs to a network card, not to what it is connected to.
const OF_THE_CARD: [&str; 9] = ["mac", "model", "driver", "address", "alias", "boot", "rom", "acpi", "link"];
/// What belongs to a drive, not to what is in it.
const OF_THE_DRIVE: [&str; 5] = ["target", "readonly", "address", "alias", "boot"];
/// What belongs to a port, not to what it is connected to.
const OF_THE_PORT: [&str; 3] = ["target", "address", "alias"];
/// libvirt's elements for words to QEMU, in a namespace of their own.
const WORDS_TO_QEMU: [&str; 4] = ["commandline", "override", "capabilities", "deprecation"];

pub(super) fn edit(domain: Node<'_, '_>, console: Option<&Path>, edits: &mut Edits<'_>) -> Done {
    let foreign = domain
        .children()
        .filter(|node| node.tag_name().namespace().is_some_and(|uri| uri.contains("libvirt")));
    foreign
        .filter(|node| WORDS_TO_QEMU.contains(&node.tag_name().name()))
        .for_each(|node| edits.remove(node));
    let mut has_serial = false;
    for devices in children(domain, "devices") {
        for node in devices.children().filter(|node| node.is_element()) {
            let name = node.tag_name().name();
            match name {
                _ if goes(node) => edits.remove(node),
                "interface" => unplug(node, edits)?,
                "disk" if matches!(node.attribute("device"), Some("cdrom" | "floppy")) => eject(node, edits)?,
                "graphics" => {
                    edits.replace(node, "<graphics type='vnc' autoport='yes' listen='127.0.0.1'/>".to_owned())
                }
                "audio" => edits.set_attribute(node, "type", "none")?,
                "serial" if !has_serial => {
                    has_serial = true;
                    port(node, console, edits)?;
                }
                "serial" | "parallel" => port(node, None, edits)?,
                _ => {}
            }
        }
    }
    match (has_serial, console, children(domain, "devices").next()) {
        (false, Some(console), Some(devices)) => {
            let path = escape_attribute("the path", path_text(console)?)?;
            edits.insert_first(devices, format!("<serial type='file'><source path='{path}'/></serial>"));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A device that cannot stay, whatever is changed in it.
pub(super) fn goes(node: Node<'_, '_>) -> bool {
    let kind = node.attribute("type");
    let backend = |wanted: &str| {
        let backends = node.children().filter(|child| is(*child, "backend"));
        backends
            .filter_map(|backend| backend.attribute("type").or(backend.attribute("model")))
            .all(|b| b == wanted)
    };
    let name = node.tag_name().name();
    if node.tag_name().namespace().is_some() {
        return true;
    }
    match name {
        "interface" => kind == Some("hostdev"),
        "serial" | "parallel" | "graphics" | "audio" => false,
        // The agent's, where libvirt chooses the socket; others lead to sockets and ports that somebody chose.
        "channel" => kind != Some("unix") || node.children().any(|child| is(child, "source")),
        "rng" => !backend("random"),
        "tpm" => !backend("emulator"),
        other => !HARMLESS.contains(&other),
    }
}

/// A drive stays, and what was in it does not.
fn eject(drive: Node<'_, '_>, edits: &mut Edits<'_>) -> Done {
    for inner in drive.children().filter(|inner| inner.is_element()) {
        if !OF_THE_DRIVE.iter().any(|name| is(inner, name)) {
            edits.remove(inner);
        }
    }
    edits.set_attribute(drive, "type", "file")
}

/// The guest keeps its card. `user` needs nothing of the host, and with its link down nothing passes.
fn unplug(interface: Node<'_, '_>, edits: &mut Edits<'_>) -> Done {
    edits.set_attribute(interface, "type", "user")?;
    for attribute in ["managed", "trustGuestRxFilters"] {
        edits.remove_attribute(interface, attribute);
    }
    for node in interface.children().filter(|node| node.is_element()) {
        if !OF_THE_CARD.iter().any(|name| is(node, name)) {
            edits.remove(node);
        }
    }
    match child(interface, "link")? {
        Some(link) => edits.set_attribute(link, "state", "down"),
        None => {
            edits.insert_first(interface, "<link state='down'/>".to_owned());
            Ok(())
        }
    }
}

/// What the guest prints goes to a file, or nowhere.
fn port(node: Node<'_, '_>, file: Option<&Path>, edits: &mut Edits<'_>) -> Result<(), RewriteError> {
    for inner in node.children().filter(|inner| inner.is_element()) {
        if !OF_THE_PORT.iter().any(|name| is(inner, name)) {
            edits.remove(inner);
        }
    }
    edits.remove_attribute(node, "tty");
    match file {
        Some(file) => {
            edits.set_attribute(node, "type", "file")?;
            let path = escape_attribute("the path", path_text(file)?)?;
            edits.insert_first(node, format!("<source path='{path}'/>"));
            Ok(())
        }
        None => edits.set_attribute(node, "type", "null"),
    }
}
