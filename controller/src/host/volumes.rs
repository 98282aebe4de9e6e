//! Logical volumes of this machine: which one is behind an image, and snapshots of it, by the programs of LVM.
//! Never probes what is on a volume: its file system is what the kernel has mounted.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use chunkfs::mount::points;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::Deserialize;

use crate::core::domain::{Disk, Source};
use crate::core::names::Uuid;
use crate::core::units::Bytes;
use crate::core::volume::{
    Behind, FileSystem, Place, Stays, ThinDelta, Volume, VolumeFacts, VolumeKind, VolumeMount,
    VolumeSnapshot, is_below, tag_of,
};

use super::machine::Machine;
use super::{Removal, Volumes, exec, thin};

/// LVM waits for its locks, and for devices to settle.
const LVM_WITHIN: Duration = Duration::from_secs(60);
/// For whoever still has a volume open to let go of it: a daemon that ends, udev that looks at it.
const FREE_WITHIN: Duration = Duration::from_secs(10);
const MAPPER: &str = "/dev/mapper/control";

/// A volume, as `lvs` tells of it; see lvs(8) for what the letters of `lv_attr` mean.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    vg_name: String,
    lv_name: String,
    pub(super) lv_dm_path: String,
    lv_size: String,
    lv_attr: String,
    segtype: String,
    pool_lv: String,
    origin: String,
    pub(super) thin_id: String,
    vg_free: String,
    data_percent: String,
    metadata_percent: String,
    lv_tags: String,
    lv_snapshot_invalid: String,
}

#[derive(Debug, Deserialize)]
struct Report {
    report: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    lv: Vec<Row>,
}

impl Volumes for Machine {
    fn volume_exists(&self, volume: &Volume) -> Result<bool> {
        Ok(find(volume)?.is_some())
    }

    fn snapshot_volume(&self, snapshot: &VolumeSnapshot) -> Result<()> {
        let mut words = vec!["--yes".to_owned(), "--quiet".to_owned(), "--snapshot".to_owned()];
        words.extend(["--name".to_owned(), snapshot.snapshot.name().to_owned()]);
        words.extend(["--addtag".to_owned(), tag_of(&snapshot.owner)]);
        words.extend(match snapshot.room {
            Some(room) => ["--size".to_owned(), format!("{}b", room.0)],
            None => ["--setactivationskip".to_owned(), "n".to_owned()],
        });
        if let Stays::WhileNamed = snapshot.stays {
            words.extend(["--permission".to_owned(), "r".to_owned()]);
        }
        words.push(snapshot.origin.to_string());
        lvm("lvcreate", &words)
    }

    fn remove_volume(&self, volume: &Volume, owner: &Uuid) -> Result<Removal> {
        match find(volume)?.filter(|row| row.has_tag(owner)) {
            Some(row) => row.remove(volume),
            None => Ok(Removal::AlreadyGone),
        }
    }

    fn settle_volumes(&self, owner: &Uuid, keep: &[Volume]) -> Result<Removal> {
        if !lvm_is_here() || !has_made_any()? {
            return Ok(Removal::AlreadyGone);
        }
        let mut settled = Removal::AlreadyGone;
        for row in tagged(owner)? {
            let Some(volume) = Volume::new(&row.vg_name, &row.lv_name) else { continue };
            match keep.contains(&volume) {
                true => row.put_to_rest(&volume)?,
                false => settled = settled.and(row.remove(&volume)?),
            }
        }
        Ok(settled)
    }

    fn thin_delta(&self, delta: &ThinDelta) -> Result<()> {
        thin::delta(self, delta)
    }

    fn free_thin_metadata(&self, file: &Path) -> Result<Removal> {
        thin::free_metadata(self, file)
    }

    fn mount_volume(&self, mount: &VolumeMount) -> Result<()> {
        let (device, file_system) = (mount.snapshot.device(), mount.file_system);
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        let options = file_system
            .mount_options()
            .map(|options| std::ffi::CString::new(options).expect("they are constant, without a zero byte"));
        rustix::mount::mount(&device, &mount.point, file_system.name(), flags, options.as_deref())
            .with_context(|| format!("mount {} as {}", device.display(), file_system.name()))
    }

    fn unmount_volume(&self, point: &Path) -> Result<Removal> {
        let Ok(path) = points::absolute(point) else { return Ok(Removal::AlreadyGone) };
        if points::at(&path).context("read the mount table")?.is_none() {
            return Ok(Removal::AlreadyGone);
        }
        let deadline = Instant::now() + FREE_WITHIN;
        loop {
            match rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW) {
                Ok(()) => return Ok(Removal::Removed),
                Err(Errno::BUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(error).with_context(|| format!("unmount {}", path.display())),
            }
        }
    }
}

impl Machine {
    /// The volume groups and what each has free. None: this machine has no LVM.
    pub fn volume_groups(&self) -> Result<Option<Vec<(String, Bytes)>>> {
        if !lvm_is_here() {
            return Ok(None);
        }
        let words = ["--noheadings", "--units", "b", "--nosuffix", "--options", "vg_name,vg_free"];
        let arguments = exec::arguments(words.map(OsStr::new));
        let text = exec::output(Path::new("vgs"), &arguments, LVM_WITHIN).context("vgs")?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let group = |line: &str| {
            let (name, free) = line.trim().split_once(' ')?;
            Some((name.to_owned(), Bytes(free.trim().parse().ok()?)))
        };
        Ok(Some(text.lines().filter_map(group).collect()))
    }
}

/// `owner`: the domain whose snapshots are ours. `told`: the volume behind an image file, where the user knows better.
pub(super) fn behind(disk: &Disk, owner: &Uuid, told: Option<&Volume>) -> Behind {
    match find_behind(disk, owner, told) {
        Ok(facts) => Behind::Volume(facts),
        Err(why) => Behind::Nothing { why: format!("{why:#}") },
    }
}

fn find_behind(disk: &Disk, owner: &Uuid, told: Option<&Volume>) -> Result<VolumeFacts> {
    let (Source::File(path) | Source::Block(path)) = &disk.source else {
        bail!("{} is neither a logical volume nor a file on one", disk.source);
    };
    let path = fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
    let metadata = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
    let (device, place) = match metadata.file_type().is_block_device() {
        true => (metadata.rdev(), Place::Whole),
        false => (metadata.dev(), place_of(&path, &metadata)?),
    };
    let row = match (told, &place) {
        (Some(volume), Place::Within { .. }) => {
            find(volume)?.ok_or_else(|| anyhow!("there is no logical volume {volume}"))?
        }
        _ => row_of(device).with_context(|| format!("the device of {}", path.display()))?,
    };
    row.facts(place, owner)
}

/// Where a file is within its file system.
fn place_of(path: &Path, metadata: &Metadata) -> Result<Place> {
    let mounts = points::all().context("read the mount table")?;
    // Of those at the same place the last one is seen.
    let mount = mounts.iter().filter(|mount| path.starts_with(&mount.path));
    let mount = mount.max_by_key(|mount| mount.path.components().count());
    let mount = mount.with_context(|| format!("{} is on no file system", path.display()))?;
    let file_system = FileSystem::of_kernel(&mount.fs_type).with_context(|| {
        format!(
            "the file system of {} is {}: only ext4 and XFS can be mounted once more from a snapshot",
            path.display(),
            mount.fs_type
        )
    })?;
    let device = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    if mount.device != format!("{}:{}", device.0, device.1) {
        bail!("{} is not on {}, where it seems to be", path.display(), mount.source);
    }
    let below = path.strip_prefix(&mount.path)?;
    let path = mount.root.join(below);
    let path = path.strip_prefix("/").unwrap_or(&path).to_owned();
    if !is_below(&path) {
        bail!("{} has no plain path within its file system", path.display());
    }
    Ok(Place::Within { file_system, path })
}

/// What the kernel says of a device: whether it is LVM's, without starting any program.
fn row_of(device: u64) -> Result<Row> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let told = |file: &str| fs::read_to_string(format!("/sys/dev/block/{number}/dm/{file}"));
    match told("uuid") {
        Ok(uuid) if uuid.starts_with("LVM-") => {}
        _ => bail!("{number} is no logical volume"),
    }
    let name = told("name").context("ask the kernel for its name")?;
    let path = Path::new("/dev/mapper").join(name.trim());
    let rows = lvs(&[path.as_os_str()])?;
    rows.into_iter().next().with_context(|| format!("lvs does not know {}", path.display()))
}

pub(super) fn find(volume: &Volume) -> Result<Option<Row>> {
    let select = format!("vg_name=\"{}\" && lv_name=\"{}\"", volume.group(), volume.name());
    Ok(lvs(&["--select".as_ref(), select.as_ref()])?.into_iter().next())
}

pub(super) fn lvm_is_here() -> bool {
    Path::new(MAPPER).exists() && exec::is_installed(Path::new("lvs"))
}

/// LVM looks into every device of the machine to tell which volumes there are, guests' disks, too. That is spared where
/// it has never made one, as far as it has written down what it did, and the kernel has none.
fn has_made_any() -> Result<bool> {
    let written_down = |dir: &str| fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some());
    if written_down("/etc/lvm/backup") || written_down("/etc/lvm/archive") {
        return Ok(true);
    }
    for device in fs::read_dir("/sys/block").context("ask the kernel for its devices")? {
        let uuid = device.context("ask the kernel for its devices")?.path().join("dm/uuid");
        if fs::read_to_string(uuid).is_ok_and(|uuid| uuid.starts_with("LVM-")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lvs(words: &[&OsStr]) -> Result<Vec<Row>> {
    const FIELDS: &str = "vg_name,lv_name,lv_dm_path,lv_size,lv_attr,segtype,pool_lv,origin,thin_id,vg_free,\
                          data_percent,metadata_percent,lv_tags,lv_snapshot_invalid";
    let mut arguments = exec::arguments(
        ["--reportformat", "json", "--units", "b", "--nosuffix", "--options", FIELDS].map(OsStr::new),
    );
    arguments.extend(exec::arguments(words.iter().copied()));
    let text = exec::output(Path::new("lvs"), &arguments, LVM_WITHIN).context("lvs")?;
    let report: Report = serde_json::from_slice(&text).context("understand what lvs says")?;
    Ok(report.report.into_iter().flat_map(|group| group.lv).collect())
}

/// All that have the tag of this owner.
fn tagged(owner: &Uuid) -> Result<Vec<Row>> {
    let select = format!("lv_tags=\"{}\"", tag_of(owner));
    let rows = lvs(&["--select".as_ref(), select.as_ref()])?;
    Ok(rows.into_iter().filter(|row| row.has_tag(owner)).collect())
}

/// Tries again for a while.
fn until_it_is_free(act: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + FREE_WITHIN;
    loop {
        match act() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            done => return done,
        }
    }
}

fn lvm(program: &str, words: &[String]) -> Result<()> {
    let arguments: Vec<_> = words.iter().map(OsString::from).collect();
    exec::run(Path::new(program), &arguments, LVM_WITHIN).context(program.to_owned())
}

impl Row {
    fn has_tag(&self, owner: &Uuid) -> bool {
        let tag = tag_of(owner);
        self.lv_tags.split(',').any(|word| word == tag)
    }

    fn remove(&self, volume: &Volume) -> Result<Removal> {
        let words = ["--yes".to_owned(), "--quiet".to_owned(), volume.to_string()];
        until_it_is_free(|| match lvm("lvremove", &words) {
            Err(_) if find(volume)?.is_none() => Ok(()),
            done => done,
        })?;
        Ok(match self.is_invalid() {
            true => Removal::Spoilt(format!(
                "the snapshot {volume} overflowed: what was read of it after that failed, and this backup is not whole: \
                 see --snapsize"
            )),
            false => Removal::Removed,
        })
    }

    fn put_to_rest(&self, volume: &Volume) -> Result<()> {
        if !self.is_active() {
            return Ok(());
        }
        let words = ["--quiet", "--activate", "n", "--setactivationskip", "y"].map(str::to_owned);
        let words: Vec<_> = words.into_iter().chain([volume.to_string()]).collect();
        until_it_is_free(|| lvm("lvchange", &words))
    }

    fn is_active(&self) -> bool {
        self.lv_attr.as_bytes().get(4) == Some(&b'a')
    }

    /// A snapshot that overflowed; the fifth letter of the attributes is its state.
    fn is_invalid(&self) -> bool {
        self.lv_snapshot_invalid == "snapshot invalid"
            || matches!(self.lv_attr.as_bytes().get(4), Some(b'I' | b'S'))
    }

    /// A snapshot of that volume which nobody can write to; the second letter of the attributes is who can.
    fn is_kept_of(&self, volume: &Volume) -> bool {
        let read_only = self.lv_attr.as_bytes().get(1) == Some(&b'r');
        read_only && self.vg_name == volume.group() && self.origin == volume.name()
    }

    fn facts(&self, place: Place, owner: &Uuid) -> Result<VolumeFacts> {
        let volume = Volume::new(&self.vg_name, &self.lv_name).context("it has an odd name")?;
        if self.lv_attr.starts_with(['s', 'S']) {
            bail!("{volume} is itself a snapshot");
        }
        let bytes =
            |text: &str| text.parse().map(Bytes).with_context(|| format!("understand the size {text:?}"));
        let kind = match self.segtype.as_str() {
            "thin" => self.thin(&volume, owner)?,
            _ => VolumeKind::Thick { size: bytes(&self.lv_size)?, free: bytes(&self.vg_free)? },
        };
        Ok(VolumeFacts { volume, kind, place })
    }

    fn thin(&self, volume: &Volume, owner: &Uuid) -> Result<VolumeKind> {
        let pool = Volume::new(&self.vg_name, &self.pool_lv).context("its pool has an odd name")?;
        let row = find(&pool)?.with_context(|| format!("there is no pool {pool}"))?;
        let percent = |text: &str| {
            let exact: f64 = text.parse().with_context(|| format!("understand how full {pool} is"))?;
            // Rounded down; a cast keeps within 0 and 255.
            anyhow::Ok(exact as u8)
        };
        let kept = tagged(owner)?.into_iter().filter(|row| row.is_kept_of(volume));
        Ok(VolumeKind::Thin {
            data_percent: percent(&row.data_percent)?,
            metadata_percent: percent(&row.metadata_percent)?,
            kept: kept.filter_map(|row| Volume::new(&row.vg_name, &row.lv_name)).collect(),
            delta: thin::possible(),
            pool,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(attr: &str, segtype: &str) -> Row {
        let text = format!(
            r#"{{"vg_name":"vg0","lv_name":"mail01","lv_dm_path":"/dev/mapper/vg0-mail01","lv_size":"67108864","lv_attr":"{attr}","segtype":"{segtype}",
            "pool_lv":"","origin":"root","thin_id":"","vg_free":"3930062848","data_percent":"","metadata_percent":"",
            "lv_tags":"nightly,virt-backup:c7a5fdbd-edaf-9455-926a-d65c16db1809","lv_snapshot_invalid":"unknown"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_lvs_says_is_understood() {
        let owner = Uuid::new("c7a5fdbd-edaf-9455-926a-d65c16db1809").unwrap();
        let facts = row("-wi-ao----", "linear").facts(Place::Whole, &owner).unwrap();
        assert_eq!(facts.kind, VolumeKind::Thick { size: Bytes(64 << 20), free: Bytes(3_930_062_848) });
        assert!(row("swi-a-s---", "linear").facts(Place::Whole, &owner).is_err(), "a snapshot has none");
        assert!(!row("swi-a-s---", "linear").is_invalid());
        assert!(row("swi-I-s---", "linear").is_invalid());
        let volume = |name| Volume::new("vg0", name).unwrap();
        assert!(row("Vri-a-tz--", "thin").is_active() && !row("Vri---tz-k", "thin").is_active());
        assert!(row("Vri---tz-k", "thin").is_kept_of(&volume("root")));
        assert!(!row("Vwi-a-tz--", "thin").is_kept_of(&volume("root")), "somebody may have written to it");
        assert!(!row("Vri-a-tz--", "thin").is_kept_of(&volume("mail01")));
    }

    #[test]
    fn only_the_tag_of_its_owner_makes_a_volume_ours() {
        let ours = Uuid::new("c7a5fdbd-edaf-9455-926a-d65c16db1809").unwrap();
        let other = Uuid::new("c7a5fdbd-edaf-9455-926a-d65c16db1800").unwrap();
        assert!(row("swi-a-s---", "linear").has_tag(&ours));
        assert!(!row("swi-a-s---", "linear").has_tag(&other));
    }
}
