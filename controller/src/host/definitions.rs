//! What restoring asks of libvirt: which domains there are and what they use, and to know one more.
//! No implementation: `libvirt/definitions` is that of this machine; the test of the undo has one in memory.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::core::domain::DomainId;
use crate::core::names::{Target, Uuid};
use crate::core::restore::{InUse, Known};
use crate::core::rewrite::NewDisk;

use super::Removal;

/// The domains that libvirt knows. New ones are made on the first libvirt that was named.
pub trait Definitions {
    fn by_name(&self, name: &str) -> Result<Option<Known>>;
    fn by_uuid(&self, uuid: &Uuid) -> Result<Option<Known>>;
    /// All images of all domains, those below others too, as they run and as they are defined.
    fn images_in_use(&self) -> Result<Vec<InUse>>;

    /// Also puts a definition in the place of the one that the same domain had.
    fn define(&self, xml: &str) -> Result<()>;
    /// With what libvirt knows of its snapshots, without any of its files. An error while it runs.
    fn undefine(&self, id: &DomainId) -> Result<Removal>;
    /// Tells libvirt of a snapshot that its images have.
    fn redefine_snapshot(&self, id: &DomainId, xml: &str) -> Result<()>;
    fn begin(&self, id: &DomainId) -> Result<()>;
    /// Starts it from a file of saved memory, on these disks.
    fn resume_from(&self, memory: &Path, disks: &BTreeMap<Target, NewDisk>) -> Result<()>;

    /// Starts a domain that libvirt forgets when it ends.
    fn run(&self, xml: &str) -> Result<()>;
    /// Ends such a domain at once; leaves one that is defined alone, with an error.
    fn destroy(&self, id: &DomainId) -> Result<Removal>;
    /// Copies to a disk's image what lies below it, while the guest runs, until nothing does.
    fn pull(&self, id: &DomainId, target: &Target, stopped: &dyn Fn() -> bool) -> Result<()>;
    /// Does a program in the guest answer us?
    fn agent_answers(&self, id: &DomainId) -> Result<bool>;
    /// The user and group that QEMU reads files as.
    fn qemu_owner(&self) -> Result<(u32, u32)>;
    /// The user and group that libvirt runs emulators of TPMs as.
    fn tpm_owner(&self) -> Result<(u32, u32)>;
}
