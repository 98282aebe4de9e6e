//! Where the images of a lab's guests are kept, when it matters: a file system of a kind and a size, on a loop device.
//! In the mount namespace of the test, gone with it.

use std::fs;
use std::path::PathBuf;

use super::Lab;
use crate::process::run_well;

/// The images of the lab are on this file system for as long as it lives.
#[derive(Debug)]
pub struct OwnFileSystem {
    point: PathBuf,
}

impl OwnFileSystem {
    /// `kind` as in `mkfs.KIND`, `size` as for truncate(1).
    pub fn mount(lab: &Lab, kind: &str, size: &str) -> OwnFileSystem {
        let (image, point) = (lab.path("fs.img"), lab.path("images"));
        // The one before, if there was one.
        drop(fs::remove_file(&image));
        let (image, dir) = (image.to_str().unwrap(), point.to_str().unwrap());
        run_well("truncate", &["-s", size, image]);
        run_well(&format!("mkfs.{kind}"), &["-q", image]);
        run_well("mount", &["-o", "loop", image, dir]);
        OwnFileSystem { point }
    }
}

impl Drop for OwnFileSystem {
    fn drop(&mut self) {
        run_well("umount", &["-l", self.point.to_str().unwrap()]);
    }
}
