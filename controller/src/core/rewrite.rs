//! XML to XML: a domain, or a snapshot of one, as it has to be under another name and on other disks.
//! Pure, and keeps every byte that does not have to change; what cannot be told for certain is refused, not guessed.

mod disk;
mod domain;
mod edits;
mod isolated;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use thiserror::Error;

use super::domain::Format;
use super::names::{Target, Uuid, VmName};

pub use snapshot::{SnapshotSummary, summary};

/// What is to be different. What is not mentioned stays as it is, to the byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// None: keep.
    pub name: Option<VmName>,
    /// None: keep. Replaced where it stands, `<sysinfo>` included, which must agree; inserted where it does not.
    pub uuid: Option<Uuid>,
    pub macs: Macs,
    pub nvram: Nvram,
    pub surroundings: Surroundings,
    /// By target. A target that the domain does not have is an error, here and below.
    pub disks: BTreeMap<Target, NewDisk>,
    /// Disks that the domain is to have no more.
    pub without: BTreeSet<Target>,
    /// Drives that stay, without their medium.
    pub ejected: BTreeSet<Target>,
    /// In a snapshot: where the file of its memory is, if it has one of its own. None: keep.
    pub memory: Option<PathBuf>,
}

impl Changes {
    /// Nothing is different.
    pub fn none() -> Changes {
        Changes {
            name: None,
            uuid: None,
            macs: Macs::Keep,
            nvram: Nvram::Keep,
            surroundings: Surroundings::Kept,
            disks: BTreeMap::new(),
            without: BTreeSet::new(),
            ejected: BTreeSet::new(),
            memory: None,
        }
    }
}

/// Where a disk is from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    pub place: Place,
    /// The format that is declared for it.
    pub format: Format,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    Block(PathBuf),
}

/// What the new place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What the guest sees, in one image: there is no chain any more, no slice of a file, no encryption below the guest.
    Guest,
    /// The image itself, as it was, in one file: its chain has been flattened, its encryption and its own snapshots
    /// are still in it.
    Image,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Macs {
    Keep,
    /// libvirt draws new ones when it defines the domain.
    Remove,
    /// New ones, made of the old ones and this: the same in the domain and in all its snapshots.
    DerivedFrom(Uuid),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nvram {
    Keep,
    At(PathBuf),
    /// libvirt chooses by the name of the domain.
    Default,
}

/// What of the host the domain is connected to, besides its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Surroundings {
    Kept,
    /// Nothing that another domain, or somebody on the network, could notice: interfaces keep their card, with its link
    /// down; serial ports end in a file or in nothing; devices, directories and ports of the host go, as do words of its
    /// own to QEMU.
    Isolated {
        /// What the first serial port prints. A domain without one gets one.
        console: Option<PathBuf>,
    },
}

/// Why XML was not rewritten.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RewriteError {
    #[error("the XML cannot be parsed: {0}")]
    Xml(#[from] roxmltree::Error),
    #[error("the root element is <{found}>, not <{wanted}>")]
    Root { found: String, wanted: &'static str },
    #[error("<{parent}> has no <{child}>")]
    Missing { parent: String, child: &'static str },
    #[error("<{parent}> has more than one <{child}>: which one counts cannot be told")]
    Twice { parent: String, child: &'static str },
    #[error("the domain has no disk {0}")]
    NoSuchDisk(Target),
    #[error("two disks have the target {0}")]
    TargetTwice(Target),
    #[error("{what} {value:?} cannot be written in XML")]
    Unwritable { what: &'static str, value: String },
}

/// A `<domain>`, as `virsh dumpxml` prints it.
pub fn domain(xml: &str, changes: &Changes) -> Result<String, RewriteError> {
    let document = parse(xml, "domain")?;
    let mut edits = edits::Edits::new(xml);
    domain::edit(document.root_element(), changes, &mut edits)?;
    Ok(edits.apply())
}

/// A `<domainsnapshot>`, as `virsh snapshot-dumpxml` prints it, so that it can be redefined for the changed domain.
pub fn snapshot(xml: &str, changes: &Changes) -> Result<String, RewriteError> {
    let document = parse(xml, "domainsnapshot")?;
    let mut edits = edits::Edits::new(xml);
    snapshot::edit(document.root_element(), changes, &mut edits)?;
    Ok(edits.apply())
}

/// Refuses a DTD: nobody defines an entity here.
fn parse<'i>(xml: &'i str, wanted: &'static str) -> Result<roxmltree::Document<'i>, RewriteError> {
    let options = roxmltree::ParsingOptions { allow_dtd: false, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(xml, options)?;
    let root = document.root_element();
    if !edits::is(root, wanted) {
        return Err(RewriteError::Root { found: root.tag_name().name().to_owned(), wanted });
    }
    Ok(document)
}
