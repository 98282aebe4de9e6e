//! This machine, for real: its files, its processes, its guests through libvirt.
//! Only what is needed to reach them; the verbs are in `local`, `processes` and `libvirt`.

use std::path::PathBuf;

use super::libvirt::Connections;
use super::local::OnThisMachine;

#[derive(Debug)]
pub struct Machine {
    pub(super) chunkfs: PathBuf,
    pub(super) guests: Connections,
    /// How a program calls us back, up to the subcommand.
    pub(super) own_command: Vec<String>,
}

impl Machine {
    /// `uris`: where the guests are, the first before the second. Nothing is connected to before it is needed.
    pub fn new(chunkfs: PathBuf, uris: Vec<String>, own_command: Vec<String>) -> Machine {
        Machine { chunkfs, guests: Connections::new(uris), own_command }
    }
}

impl OnThisMachine for Machine {}
