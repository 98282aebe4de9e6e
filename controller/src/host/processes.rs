//! This machine's processes and mounts: the `chunkfs` daemon of a view, `qemu-nbd` for images, and what they leave.
//! A daemon is found by its arguments, so that a later process can stop what an earlier one started.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use chunkfs::index::{Access, Index};
use chunkfs::mount::{control, points};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::core::domain::Format;
use crate::core::facts::{ChainLayer, IndexedDisk, Storage, Trust};
use crate::core::lock::{BootId, ProcessId};
use crate::core::names::{JobId, Names, Target, Uuid, index_file, target_of_shown};
use crate::core::options::ChunkSize;
use crate::core::point::Point;
use crate::core::step::{CopyRequest, ImageService, ViewService};
use crate::core::units::{Bytes, Generation};
use crate::core::viewspec::ViewSpec;

use super::machine::Machine;
use super::{Files, Processes, Removal, copying, exec, scope};

/// Until a view can be read: its index is opened, its sources asked, a sample compared.
const VIEW_STARTS_WITHIN: Duration = Duration::from_secs(120);
/// Told to end, the daemon waits for readers and stores what it knows; after this it is killed.
const VIEW_ENDS_WITHIN: Duration = Duration::from_secs(45);
/// What a process asked of libvirt before it was killed goes on without it.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
const SERVER_STARTS_WITHIN: Duration = Duration::from_secs(30);
const SERVER_ENDS_WITHIN: Duration = Duration::from_secs(5);
/// For another process to let go of the index.
const INDEX_WAIT: Duration = Duration::from_secs(10);

impl Machine {
    pub fn new_uuid(&self) -> Result<Uuid> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("draw a UUID")?;
        Ok(Uuid::from_bits(u128::from_le_bytes(bytes)))
    }
}

impl Processes for Machine {
    fn this_process(&self) -> Result<ProcessId> {
        process_id(std::process::id())?.context("this process is not in /proc")
    }

    fn epoch(&self) -> Result<u64> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(since.context("the clock stands before 1970")?.as_secs())
    }

    fn boot_id(&self) -> Result<BootId> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
        Ok(BootId(id.trim().to_owned()))
    }

    fn new_job_id(&self) -> Result<JobId> {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .context("draw a job id")?;
        Ok(JobId::from_bits(u64::from_le_bytes(bytes)))
    }

    fn let_settle(&self, last_sign: &Path) -> Result<()> {
        let changed = fs::metadata(last_sign).and_then(|metadata| metadata.modified());
        // A clock that was set back, or a file that is gone, is nothing to wait for.
        let since = changed.ok().and_then(|time| time.elapsed().ok());
        if let Some(left) = since.and_then(|since| SETTLES_WITHIN.checked_sub(since)) {
            std::thread::sleep(left);
        }
        Ok(())
    }

    fn lives(&self, process: &ProcessId) -> Result<bool> {
        Ok(process_id(process.pid)?.as_ref() == Some(process))
    }

    fn mounted_at(&self, path: &Path) -> Result<Option<String>> {
        Ok(mount_at(path)?.map(|mount| mount.source))
    }

    fn mounted_below(&self, dir: &Path) -> Result<Option<PathBuf>> {
        Ok(points::below(dir).context("read the mount table")?.map(|mount| mount.path))
    }

    fn start_view(&self, service: &ViewService) -> Result<ProcessId> {
        let spec = read_spec(self, &service.spec)?.context("there is no specification of the view")?;
        self.make_dir(&spec.index_dir)?;
        let log = Names::log_beside(&service.spec);
        self.replace(&log, b"")?;
        let words = exec::arguments([
            OsStr::new("mount"),
            "--view".as_ref(),
            service.spec.as_os_str(),
            "--log".as_ref(),
            log.as_os_str(),
            "--".as_ref(),
            service.mount_point.as_os_str(),
        ]);
        let what = format!("view at {}", service.mount_point.display());
        scope::run_apart(&what, &self.chunkfs, &words, VIEW_STARTS_WITHIN).context("chunkfs")?;
        let daemons = daemons_of(&service.spec)?;
        daemons
            .into_iter()
            .next()
            .with_context(|| format!("chunkfs has ended already: see {}", log.display()))
    }

    fn stop_view(&self, service: &ViewService) -> Result<Removal> {
        stop(&daemons_of(&service.spec)?, VIEW_ENDS_WITHIN)
    }

    fn unmount(&self, path: &Path) -> Result<Removal> {
        let Some(mount) = mount_at(path)? else { return Ok(Removal::AlreadyGone) };
        // That of a daemon that was killed; one that ended has removed it. Before the mount has gone: after that its device
        // number, and so the name of the socket, may be another mount's.
        self.remove_file(&control::path_of(&mount))?;
        rustix::mount::unmount(&mount.path, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", path.display()))?;
        if mount_at(path)?.is_some_and(|still| still.device == mount.device) {
            bail!("{} is still mounted", path.display());
        }
        Ok(Removal::Removed)
    }

    fn serve_image(&self, service: &ImageService) -> Result<ProcessId> {
        let words = [
            "--read-only".into(),
            "--persistent".into(),
            "--shared=0".into(),
            "--fork".into(),
            socket_word(&service.socket),
            format!("json:{}", image_of(&service.chain)).into(),
        ];
        let what = format!("images for {}", service.socket.display());
        scope::run_apart(&what, Path::new("qemu-nbd"), &words, SERVER_STARTS_WITHIN).context("qemu-nbd")?;
        let servers = servers_of(&service.socket)?;
        servers.into_iter().next().context("qemu-nbd has ended already")
    }

    fn stop_image(&self, socket: &Path) -> Result<Removal> {
        let stopped = stop(&servers_of(socket)?, SERVER_ENDS_WITHIN)?;
        let removed = self.remove_file(socket)?;
        Ok(if stopped == Removal::Removed { stopped } else { removed })
    }

    fn copy_disk(&self, copy: &CopyRequest, interrupted: &(dyn Fn() -> bool + Sync)) -> Result<String> {
        copying::copy(copy, interrupted)
    }

    fn indexes(&self, dir: &Path) -> Result<BTreeMap<Target, IndexedDisk>> {
        let path = index_file(dir);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let index = Index::open(&path, Access::Read)?;
        let generation = index.generations()?.last().map_or(0, |last| last.number.0);
        let mut disks = BTreeMap::new();
        for disk in index.points()? {
            let chunk_size = ChunkSize::new(disk.chunk_size);
            let (Some(target), Some(chunk_size)) = (target_of_shown(dir, &disk.name), chunk_size) else {
                continue;
            };
            let point = disk.point.as_deref().and_then(Point::parse);
            let (checkpoint, images, thin) =
                point.map_or((None, None, None), |point| (point.checkpoint, point.images, point.thin));
            let (generation, capacity) = (Generation(generation), Bytes(disk.length));
            let trust = Trust::AsRecorded;
            disks.insert(
                target,
                IndexedDisk { generation, capacity, chunk_size, checkpoint, images, thin, trust },
            );
        }
        Ok(disks)
    }

    /// The daemon has written down what the index names when it opened the generation; here that is ended.
    fn close_generation(&self, spec: &Path) -> Result<Removal> {
        let Some(spec) = read_spec(self, spec)? else { return Ok(Removal::AlreadyGone) };
        let path = index_file(&spec.index_dir);
        if !path.exists() {
            return Ok(Removal::AlreadyGone);
        }
        let index = Index::open(&path, Access::Write { wait: INDEX_WAIT })?;
        let closed = index.close_abandoned(chunkfs::serve::now())?;
        let shown: Vec<_> = spec.disks.iter().map(|disk| disk.name.as_str()).collect();
        index.forget_points_except(&shown)?;
        Ok(if closed.is_some() { Removal::Removed } else { Removal::AlreadyGone })
    }
}

fn read_spec(files: &dyn Files, path: &Path) -> Result<Option<ViewSpec>> {
    let Some(text) = files.read(path)? else { return Ok(None) };
    let spec = ViewSpec::from_json(&text).with_context(|| format!("understand {}", path.display()))?;
    Ok(Some(spec))
}

fn mount_at(path: &Path) -> Result<Option<points::MountPoint>> {
    // Where the directory above is not there, nothing is mounted.
    let Ok(path) = points::absolute(path) else { return Ok(None) };
    points::at(&path).context("read the mount table")
}

/// None: there is no such process, or it has ended and only waits to be collected.
fn process_id(pid: u32) -> Result<Option<ProcessId>> {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return Ok(None) };
    // The name stands in parentheses, and may hold some itself.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let start = fields.get(19).and_then(|ticks| ticks.parse().ok());
    let start_ticks = start.with_context(|| format!("understand /proc/{pid}/stat"))?;
    let ended = matches!(fields[0], "Z" | "X");
    Ok((!ended).then_some(ProcessId { pid, start_ticks }))
}

/// The `chunkfs` that were started with this specification.
fn daemons_of(spec: &Path) -> Result<Vec<ProcessId>> {
    processes(|words| {
        let view = words.iter().position(|word| *word == b"--view");
        view.is_some_and(|at| words.get(at + 1) == Some(&spec.as_os_str().as_bytes()))
            && words.get(1) == Some(&&b"mount"[..])
    })
}

fn servers_of(socket: &Path) -> Result<Vec<ProcessId>> {
    let word = socket_word(socket);
    processes(|words| {
        words.first().is_some_and(|name| name.ends_with(b"qemu-nbd")) && words.contains(&word.as_bytes())
    })
}

fn socket_word(socket: &Path) -> OsString {
    let mut word = OsString::from("--socket=");
    word.push(socket);
    word
}

/// Processes of ours by their arguments, without this one.
pub(super) fn find(wanted: impl Fn(&[&[u8]]) -> bool) -> Result<Vec<ProcessId>> {
    processes(wanted)
}

pub(super) fn kill(process: &ProcessId) -> Result<()> {
    stop(std::slice::from_ref(process), SERVER_ENDS_WITHIN).map(drop)
}

/// The processes whose arguments are the wanted ones.
fn processes(wanted: impl Fn(&[&[u8]]) -> bool) -> Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile is none.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let words: Vec<_> = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0).collect();
        if pid != std::process::id() && wanted(&words) {
            found.extend(process_id(pid)?);
        }
    }
    Ok(found)
}

/// Asks them to end, and kills those that do not in time.
fn stop(processes: &[ProcessId], within: Duration) -> Result<Removal> {
    if processes.is_empty() {
        return Ok(Removal::AlreadyGone);
    }
    for (signal, within) in [(Signal::TERM, within), (Signal::KILL, Duration::from_secs(10))] {
        processes.iter().try_for_each(|process| send(process, signal))?;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            let mut left = false;
            for process in processes {
                left |= process_id(process.pid)?.as_ref() == Some(process);
            }
            if !left {
                return Ok(Removal::Removed);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    bail!("process {} does not end, not even when it is killed", processes[0].pid)
}

fn send(process: &ProcessId, signal: Signal) -> Result<()> {
    if process_id(process.pid)?.as_ref() != Some(process) {
        return Ok(());
    }
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).context("a process has a number")?;
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("signal {process}")),
    }
}

/// The image with all layers below it, each with its format. Without locks: a guest that is started meanwhile must
/// not be kept from its disk; what it writes is noticed by the times of the files.
fn image_of(chain: &[ChainLayer]) -> serde_json::Value {
    let mut image = serde_json::Value::Null;
    for layer in chain.iter().rev() {
        let driver = match layer.storage {
            Storage::File => "file",
            Storage::Device => "host_device",
        };
        let file = json!({ "driver": driver, "filename": layer.path, "locking": "off" });
        let backing =
            std::mem::replace(&mut image, json!({ "driver": layer.format, "read-only": true, "file": file }));
        if layer.format != Format::Raw {
            image["backing"] = backing;
        }
    }
    image
}
