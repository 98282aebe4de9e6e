//! In what two snapshots of a thin volume differ, by what their pool knows of them: thin_delta of the thin-provisioning-tools.
//!
//! The metadata of a pool in use can be read only where they are held as of one moment, and a pool can hold one such moment. So a
//! lock on the metadata's device keeps our own processes apart, somebody else's hold is respected, and a file says whose hold is
//! ours before there is one.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use chunkfs::serve::Told;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::core::volume::{Delta, ThinChanges, ThinDelta, Volume};

use super::machine::Machine;
use super::volumes::{find, lvm_is_here};
use super::{Files, Removal, exec};

const THIN_DELTA: &str = "thin_delta";
/// For another backup to read the same pool's metadata.
const FREE_WITHIN: Duration = Duration::from_secs(60);
/// A message to the kernel.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Metadata have 16 GiB at most, see thin_metadata_size(8); most of them are read.
const COMPARED_WITHIN: Duration = Duration::from_secs(600);
/// The unit of `data_block_size`, see thin_delta(8).
const SECTOR: u64 = 512;

pub(super) fn possible() -> Delta {
    match exec::is_installed(Path::new(THIN_DELTA)) {
        true => Delta::Possible,
        false => Delta::Impossible {
            why: format!("{THIN_DELTA} is not installed: install thin-provisioning-tools"),
        },
    }
}

pub(super) fn delta(machine: &Machine, delta: &ThinDelta) -> Result<()> {
    let changes = match ask(machine, delta)? {
        Ok(ranges) => Told::Ranges(ranges),
        Err(why) => Told::Unknown(format!("{THIN_DELTA}: {why:#}")),
    };
    write(machine, &delta.to, &ThinChanges::Told(changes))
}

/// The outer error: the metadata may still be held.
fn ask(machine: &Machine, delta: &ThinDelta) -> Result<Result<Vec<(u64, u64)>>> {
    let ready = || {
        let id = |volume: &Volume| {
            let row = find(volume)?.ok_or_else(|| anyhow!("{volume} is gone"))?;
            anyhow::Ok(row.thin_id)
        };
        let ids = [id(&delta.since)?, id(&delta.snapshot)?];
        let pool = Pool::open(&delta.pool)?.ok_or_else(|| anyhow!("the pool {} is gone", delta.pool))?;
        if pool.is_held()? {
            bail!("the metadata of {} are held by another program", delta.pool);
        }
        Ok((ids, pool))
    };
    let (ids, pool) = match ready() {
        Ok(ready) => ready,
        Err(why) => return Ok(Err(why)),
    };
    write(machine, &delta.to, &ThinChanges::Holding { holding: delta.pool.clone() })?;
    if let Err(why) = pool.tell("reserve_metadata_snap") {
        // The pool has run full, or somebody was faster: what is held then is not ours.
        return Ok(Err(why));
    }
    let report = pool.compare(&ids);
    pool.tell("release_metadata_snap")?;
    Ok(report.and_then(|text| differences(&text)))
}

pub(super) fn free_metadata(machine: &Machine, file: &Path) -> Result<Removal> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Removal::AlreadyGone),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    // What is not whole was never in its place.
    let Ok(ThinChanges::Holding { holding: pool }) = serde_json::from_slice(&text) else {
        return Ok(Removal::AlreadyGone);
    };
    if lvm_is_here()
        && let Some(pool) = Pool::open(&pool)?
        && pool.is_held()?
    {
        pool.tell("release_metadata_snap")?;
    }
    machine.remove_file(file)
}

fn write(machine: &Machine, file: &Path, changes: &ThinChanges) -> Result<()> {
    let text = serde_json::to_vec(changes).context("plain data")?;
    machine.replace(file, &text)
}

/// A pool that no other process of ours looks into.
struct Pool {
    /// The device that takes messages.
    device: PathBuf,
    metadata: PathBuf,
    _lock: File,
}

impl Pool {
    /// None: there is no such pool.
    fn open(pool: &Volume) -> Result<Option<Pool>> {
        let Some(row) = find(pool)? else { return Ok(None) };
        // The volume's own device is for users of LVM; the kernel's target and its metadata are below.
        let below = |suffix: &str| PathBuf::from(format!("{}{suffix}", row.lv_dm_path));
        let (device, metadata) = (below("-tpool"), below("_tmeta"));
        let failed = || format!("open {}", metadata.display());
        let lock = File::open(&metadata).with_context(failed)?;
        let deadline = Instant::now() + FREE_WITHIN;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Pool { device, metadata, _lock: lock })),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(error).with_context(|| format!("lock {}", metadata.display())),
            }
        }
    }

    fn is_held(&self) -> Result<bool> {
        let text = dmsetup(&["status".as_ref(), self.device.as_os_str()])?;
        held(&text).with_context(|| format!("understand the state of {}: {text}", self.device.display()))
    }

    fn tell(&self, message: &str) -> Result<()> {
        let words = ["message".as_ref(), self.device.as_os_str(), "0".as_ref(), message.as_ref()];
        dmsetup(&words).map(drop)
    }

    fn compare(&self, [since, now]: &[String; 2]) -> Result<String> {
        let words = ["--metadata-snap", "--snap1", since, "--snap2", now].map(OsStr::new);
        let arguments = exec::arguments(words.into_iter().chain([self.metadata.as_os_str()]));
        let text = exec::output(Path::new(THIN_DELTA), &arguments, COMPARED_WITHIN)?;
        String::from_utf8(text).context("understand what it says")
    }
}

fn dmsetup(words: &[&OsStr]) -> Result<String> {
    let arguments = exec::arguments(words.iter().copied());
    let text = exec::output(Path::new("dmsetup"), &arguments, TOLD_WITHIN).context("dmsetup")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `0 1048576 thin-pool 4 16/1024 128/8192 - rw ...`: the seventh word is the moment that is held, see the kernel's
/// documentation of thin provisioning.
fn held(status: &str) -> Option<bool> {
    let mut words = status.split_whitespace();
    (words.nth(2)? == "thin-pool").then_some(())?;
    Some(words.nth(3)? != "-")
}

/// The parts of a report that are not the same, in bytes, in order.
fn differences(report: &str) -> Result<Vec<(u64, u64)>> {
    let document = roxmltree::Document::parse(report).context("understand what it says")?;
    let number = |node: &roxmltree::Node<'_, '_>, name: &str| -> Result<u64> {
        let text =
            node.attribute(name).with_context(|| format!("<{}> has no {name}", node.tag_name().name()))?;
        text.parse().with_context(|| format!("understand {name}={text:?}"))
    };
    let root = document.root_element();
    let block = number(&root, "data_block_size")?.checked_mul(SECTOR).context("an odd size of blocks")?;
    let diff = root.children().find(|node| node.has_tag_name("diff")).context("it compares nothing")?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for node in diff.children().filter(roxmltree::Node::is_element) {
        match node.tag_name().name() {
            "same" => continue,
            "different" | "left_only" | "right_only" => {}
            other => bail!("nobody knows what <{other}> means"),
        }
        let (begin, length) = (number(&node, "begin")?, number(&node, "length")?);
        let bytes =
            |blocks: Option<u64>| blocks.and_then(|blocks| blocks.checked_mul(block)).context("an odd range");
        let range = (bytes(Some(begin))?, bytes(begin.checked_add(length))?);
        match ranges.last_mut() {
            Some(last) if last.1 == range.0 => last.1 = range.1,
            _ => ranges.push(range),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_that_is_not_the_same_is_a_difference() {
        let report = r#"<superblock uuid="" time="1" transaction="3" data_block_size="128" nr_data_blocks="8192">
              <diff left="1" right="2">
                <same begin="0" length="2"/>
                <different begin="2" length="1"/>
                <right_only begin="3" length="2"/>
                <same begin="5" length="9"/>
                <left_only begin="16" length="4"/>
              </diff>
            </superblock>"#;
        assert_eq!(differences(report).unwrap(), [(2 << 16, 5 << 16), (16 << 16, 20 << 16)]);
        let none =
            report.replace("different", "same").replace("right_only", "same").replace("left_only", "same");
        assert_eq!(differences(&none).unwrap(), []);
    }

    #[test]
    fn what_is_not_understood_is_never_taken_for_the_same() {
        let report =
            |inner: &str| format!("<superblock data_block_size='128'><diff>{inner}</diff></superblock>");
        for text in [
            "",
            "<superblock data_block_size='128'/>",
            "<superblock><diff/></superblock>",
            &report("<perhaps begin='0' length='1'/>"),
            &report("<different begin='0'/>"),
            &report("<different begin='18446744073709551615' length='1'/>"),
            &report("<different begin='-1' length='1'/>"),
        ] {
            assert!(differences(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_kernel_tells_whether_metadata_are_held() {
        let status =
            |held: &str| format!("0 1048576 thin-pool 4 16/1024 128/8192 {held} rw discard_passdown - 1024");
        assert_eq!(held(&status("-")), Some(false));
        assert_eq!(held(&status("77")), Some(true));
        assert_eq!(held("0 1048576 linear 254:0 2048"), None);
        assert_eq!(held("0 1048576 thin-pool Fail"), None);
    }
}
