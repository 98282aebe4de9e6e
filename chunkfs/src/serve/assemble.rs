//! Puts a view together: opens the sources, begins the generation, checks a sample of what a tracker calls clean.

use super::open::OpenedDisk;
use super::spec::{FileSpec, ViewSpec};
use crate::core::geometry::Geometry;
use crate::core::layout::DiskSlot;
use crate::core::stamp::{Generation, HEAD_START_SECS, Stamp};
use crate::error::CommandError;
use crate::index::{Access, DiskAtOpen, Index, Tracking};
use crate::mount::control::DiskStatus;
use crate::mount::session;
use crate::resolve::{Resolver, Tracked, check_sample};
use crate::source::Source;
use crate::source::image::open_whatever;
use crate::view::{ChunksRead, Disk, Layout, Owner, PlainFile, Stamps, WholeView, check_names};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A view that can be mounted as soon as the clock has reached its stamp.
#[derive(Debug)]
pub(super) struct Assembled {
    pub view: Arc<WholeView>,
    pub stamp: Stamp,
    pub disks: Vec<DiskStatus>,
    pub sources: Vec<Arc<dyn Source>>,
    pub indexed: Option<Indexed>,
}

/// The index behind a view, in an open generation.
#[derive(Debug)]
pub(super) struct Indexed {
    pub index: Arc<Index>,
    pub generation: Generation,
    pub resolver: Arc<Resolver>,
}

/// The clock, in whole seconds.
pub fn now() -> Stamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Stamp(since.map_or(0, |time| time.as_secs() as i64))
}

/// `wait`: for another process to let go of the index. `threads`: for the comparison.
pub(super) fn assemble(
    spec: &ViewSpec,
    owner: Owner,
    wait: Duration,
    threads: usize,
) -> Result<Assembled, CommandError> {
    // All that can be wrong is found out before the index is touched.
    check_names(
        spec.disks.iter().map(|disk| disk.name.as_str()),
        spec.files.iter().map(|file| file.name.as_str()),
    )?;
    let opened = spec.disks.iter().map(OpenedDisk::open).collect::<Result<Vec<_>, _>>()?;
    session::check_device()?;
    let index = spec.index.as_ref().map(|path| Index::open(path, Access::Write { wait })).transpose()?;
    match index {
        None => without_index(spec, opened, owner),
        Some(index) => with_index(spec, opened, owner, Arc::new(index), threads),
    }
}

fn without_index(spec: &ViewSpec, opened: Vec<OpenedDisk>, owner: Owner) -> Result<Assembled, CommandError> {
    let stamp = now().plus(-HEAD_START_SECS);
    tracing::warn!("without --index nothing is known of changes: every chunk shows the time of this mount");
    let mut disks = Vec::new();
    let mut states = Vec::new();
    let sources = opened.iter().map(|disk| Arc::clone(&disk.source)).collect();
    for (number, OpenedDisk { source, at_open: DiskAtOpen { name, geometry, .. }, .. }) in
        opened.into_iter().enumerate()
    {
        let slot = DiskSlot::new(number as u64 + 1)
            .ok_or_else(|| CommandError::Usage("more than 1023 disks".to_owned()))?;
        states.push(status_of(&name, &geometry, None));
        disks.push(Disk::new(name, slot, geometry, source, Stamps::Fixed(stamp)));
    }
    let files = spec.files.iter().map(|file| plain_file(file, stamp, None)).collect::<Result<_, _>>()?;
    let view = WholeView::new(disks, files, layout_of(spec), owner, None)?;
    Ok(Assembled { view: Arc::new(view), stamp, disks: states, sources, indexed: None })
}

fn with_index(
    spec: &ViewSpec,
    opened: Vec<OpenedDisk>,
    owner: Owner,
    index: Arc<Index>,
    threads: usize,
) -> Result<Assembled, CommandError> {
    let sources: Vec<_> = opened.iter().map(|disk| Arc::clone(&disk.source)).collect();
    let at_open: Vec<_> = opened.iter().map(|disk| disk.at_open.clone()).collect();
    let generation = index.open_generation(&at_open, now())?;
    let (mut disks, mut states, mut all_tracked) = (Vec::new(), Vec::new(), Vec::new());
    for (disk, mut state) in opened.into_iter().zip(generation.disks) {
        disk.confine_read_ahead(&state);
        let source = disk.source;
        check_sample(&index, &*source, &mut state)?;
        if let Tracking::Digests { why } = &state.tracking {
            tracing::info!("disk {}: all chunks are compared, for {why}", state.name);
        }
        let tracked =
            Arc::new(Tracked::new(Arc::clone(&index), Arc::clone(&source), &state, generation.stamp)?);
        all_tracked.push(Arc::clone(&tracked));
        states.push(status_of(&state.name, &state.geometry, Some(state.tracking)));
        disks.push(Disk::new(state.name, state.slot, state.geometry, source, Stamps::Tracked(tracked)));
    }
    let plain = |file| plain_file(file, generation.stamp, Some(&index));
    let files = spec.files.iter().map(plain).collect::<Result<_, _>>()?;
    let resolver = Resolver::start(Arc::clone(&index), all_tracked, threads)
        .map_err(CommandError::io("starting the comparing threads"))?;
    let resolver = Arc::new(resolver);
    let view = WholeView::new(disks, files, layout_of(spec), owner, Some(Arc::clone(&resolver)))?;
    let indexed = Indexed { index, generation: generation.generation, resolver };
    Ok(Assembled {
        view: Arc::new(view),
        stamp: generation.stamp,
        disks: states,
        sources,
        indexed: Some(indexed),
    })
}

/// Of a regular file: a device may have no end, and a FIFO no writer.
fn read_plain(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = open_whatever(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

fn plain_file(file: &FileSpec, stamp: Stamp, index: Option<&Index>) -> Result<PlainFile, CommandError> {
    let failed = |error| CommandError::Image { path: file.path.clone(), error };
    let content = read_plain(&file.path).map_err(failed)?;
    let stamp = match (file.newest, index) {
        (true, _) => stamp.plus(1),
        (false, Some(index)) => index.stamp_of_file(&file.name, &content, stamp)?,
        (false, None) => stamp,
    };
    Ok(PlainFile {
        name: file.name.clone(),
        source: Arc::new(crate::source::memory::MemorySource::new(content)),
        stamp,
    })
}

fn layout_of(spec: &ViewSpec) -> Layout {
    if spec.bare { Layout::Bare } else { Layout::Named }
}

fn status_of(name: &str, geometry: &Geometry, tracking: Option<Tracking>) -> DiskStatus {
    DiskStatus {
        name: name.to_owned(),
        length: geometry.image_len().bytes(),
        chunk_size: geometry.chunk_size().bytes(),
        chunks: geometry.chunk_count(),
        read: ChunksRead { chunks: 0, exact: true },
        tracking,
    }
}
