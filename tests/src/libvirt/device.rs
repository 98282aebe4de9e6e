//! A loop device for an image, which counts what is read from it.
//! The kernel detaches it when its last user is gone, however a test ends.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    /// A device of at least so many bytes.
    pub fn attach(image: &Path, at_least: u64) -> LoopDevice {
        let file = fs::OpenOptions::new().write(true).open(image).unwrap();
        file.set_len(file.metadata().unwrap().len().max(at_least)).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        LoopDevice { path: PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()) }
    }

    /// So far.
    pub(super) fn bytes_read(&self) -> u64 {
        let name = self.path.file_name().unwrap();
        let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat")).unwrap();
        // Documentation/block/stat.rst: sectors of 512 bytes, whatever the device's own are.
        let sectors: u64 = stat.split_whitespace().nth(2).unwrap().parse().unwrap();
        sectors * 512
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // While a guest has it, this is a wish for later. That it fails is seen by whoever looks at the devices.
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).output();
    }
}
