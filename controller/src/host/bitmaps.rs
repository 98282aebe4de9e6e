//! The dirty bitmaps in a qcow2 image that no guest uses, by `qemu-img`.
//! Only of images that are declared to be qcow2: nothing here finds out what a file is.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::exec;

/// Limited by the disks alone: an image that was in use when its host fell is repaired first.
const WITHIN: Duration = Duration::from_secs(24 * 3600);

pub(super) fn names(image: &Path) -> Result<Vec<String>> {
    let mut words: Vec<OsString> = ["info", "-f", "qcow2", "--output=json"].map(Into::into).to_vec();
    words.push(image.into());
    let text =
        exec::output(Path::new("qemu-img"), &words, Duration::from_secs(60)).context("qemu-img info")?;
    let info: Value = serde_json::from_slice(&text).context("understand qemu-img")?;
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array();
    let names = bitmaps.into_iter().flatten().filter_map(|bitmap| bitmap["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// What one of an image above it says is said by the one of the same name in `image` as well.
pub(super) fn merge(image: &Path, name: &str, above: &Path) -> Result<()> {
    let mut words: Vec<OsString> = ["bitmap", "-f", "qcow2", "--merge", name].map(Into::into).to_vec();
    words.extend(["-b".into(), above.into(), "-F".into(), "qcow2".into(), image.into(), name.into()]);
    exec::run(Path::new("qemu-img"), &words, WITHIN).with_context(|| format!("merge bitmap {name}"))
}

pub(super) fn remove(image: &Path, name: &str) -> Result<()> {
    let mut words: Vec<OsString> = ["bitmap", "-f", "qcow2", "--remove"].map(Into::into).to_vec();
    words.extend([image.into(), name.into()]);
    exec::run(Path::new("qemu-img"), &words, WITHIN).with_context(|| format!("remove bitmap {name}"))
}
