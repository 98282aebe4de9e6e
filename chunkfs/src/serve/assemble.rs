//! Puts a view together: opens the sources, begins the generation, checks a sample of what a tracker calls clean.

use super::spec::{ChangesSpec, DiskSpec, FileSpec, SourceSpec, ViewSpec};
use crate::core::changes::ChangeSet;
use crate::core::geometry::{ChunkIndex, ChunkSize, Geometry};
use crate::core::layout::DiskSlot;
use crate::core::stamp::{Generation, HEAD_START_SECS, Stamp};
use crate::error::CommandError;
use crate::index::record::Content;
use crate::index::{Access, DiskAtOpen, DiskState, Evidence, Index, Tracking};
use crate::mount::control::DiskStatus;
use crate::mount::session;
use crate::resolve::{Buffer, Resolver, Tracked, content_of};
use crate::source::Source;
use crate::source::image::{Identity, ImageSource};
use crate::source::nbd::{NbdAddress, NbdOptions, NbdSource};
use crate::view::{Disk, Layout, Owner, PlainFile, Stamps, WholeView, check_names};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many clean chunks of a disk are read all the same (T4).
const SAMPLE: u64 = 16;

/// A view that can be mounted as soon as the clock has reached its stamp.
#[derive(Debug)]
pub(super) struct Assembled {
    pub view: Arc<WholeView>,
    pub stamp: Stamp,
    pub disks: Vec<DiskStatus>,
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
    let opened = spec.disks.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    session::check_device()?;
    let index = spec.index.as_ref().map(|path| Index::open(path, Access::Write { wait })).transpose()?;
    match index {
        None => without_index(spec, opened, owner),
        Some(index) => with_index(spec, opened, owner, Arc::new(index), threads),
    }
}

struct OpenedDisk {
    source: Arc<dyn Source>,
    at_open: DiskAtOpen,
}

fn open(disk: &DiskSpec) -> Result<OpenedDisk, CommandError> {
    let chunk_size = ChunkSize::new(disk.chunk_size).ok_or_else(|| {
        CommandError::Usage(format!(
            "{} is not a chunk size: give a multiple of 4096 from 4K to 64M",
            disk.chunk_size
        ))
    })?;
    let (source, identity) = open_source(&disk.source)?;
    let geometry = Geometry::new(source.len(), chunk_size);
    let evidence = match (&disk.changes, identity) {
        (ChangesSpec::Times, Some(identity)) => Evidence::File(identity),
        (ChangesSpec::Times, None) => {
            Evidence::None { why: "a device or an export has no times to tell changes by".to_owned() }
        }
        (ChangesSpec::Digests { why }, _) => Evidence::None { why: why.clone() },
        (ChangesSpec::Start { point, why }, _) => Evidence::Start { point: point.clone(), why: why.clone() },
        (ChangesSpec::Ranges { since, point, ranges }, _) => {
            let mut changes = ChangeSet::default();
            ChangesSpec::ranges(ranges).for_each(|range| changes.insert(&geometry, range));
            Evidence::Changes { since: since.clone(), point: point.clone(), changes }
        }
    };
    Ok(OpenedDisk { source, at_open: DiskAtOpen { name: disk.name.clone(), geometry, evidence } })
}

fn open_source(spec: &SourceSpec) -> Result<(Arc<dyn Source>, Option<Identity>), CommandError> {
    match spec {
        SourceSpec::Image(path) => {
            let image =
                ImageSource::open(path).map_err(|error| CommandError::Image { path: path.clone(), error })?;
            let identity = image.identity();
            Ok((Arc::new(image), identity))
        }
        SourceSpec::Nbd(uri) => {
            let address =
                uri.parse::<NbdAddress>().map_err(|error| CommandError::Usage(error.to_string()))?;
            Ok((Arc::new(NbdSource::connect(&address, NbdOptions::usual(Vec::new()))?), None))
        }
    }
}

fn without_index(spec: &ViewSpec, opened: Vec<OpenedDisk>, owner: Owner) -> Result<Assembled, CommandError> {
    let stamp = now().plus(-HEAD_START_SECS);
    tracing::warn!("without --index nothing is known of changes: every chunk shows the time of this mount");
    let mut disks = Vec::new();
    let mut states = Vec::new();
    for (number, OpenedDisk { source, at_open: DiskAtOpen { name, geometry, .. } }) in
        opened.into_iter().enumerate()
    {
        let slot = DiskSlot::new(number as u64 + 1)
            .ok_or_else(|| CommandError::Usage("more than 1023 disks".to_owned()))?;
        states.push(status_of(&name, &geometry, None));
        disks.push(Disk::new(name, slot, geometry, source, Stamps::Fixed(stamp)));
    }
    let files = spec.files.iter().map(|file| plain_file(file, stamp, None)).collect::<Result<_, _>>()?;
    let view = WholeView::new(disks, files, layout_of(spec), owner, None)?;
    Ok(Assembled { view: Arc::new(view), stamp, disks: states, indexed: None })
}

fn with_index(
    spec: &ViewSpec,
    opened: Vec<OpenedDisk>,
    owner: Owner,
    index: Arc<Index>,
    threads: usize,
) -> Result<Assembled, CommandError> {
    let (sources, at_open): (Vec<_>, Vec<_>) =
        opened.into_iter().map(|disk| (disk.source, disk.at_open)).unzip();
    let generation = index.open_generation(&at_open, now())?;
    let (mut disks, mut states, mut all_tracked) = (Vec::new(), Vec::new(), Vec::new());
    for (source, mut state) in sources.into_iter().zip(generation.disks) {
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
    Ok(Assembled { view: Arc::new(view), stamp: generation.stamp, disks: states, indexed: Some(indexed) })
}

/// Reads some chunks that are said to be unchanged. One that is not makes this generation and the next compare
/// everything: nothing has been shown yet, so nothing wrong ever is.
fn check_sample(index: &Index, source: &dyn Source, state: &mut DiskState) -> Result<(), CommandError> {
    if matches!(state.tracking, Tracking::Digests { .. }) {
        return Ok(());
    }
    let settled = state.compared_to * crate::core::geometry::CHUNKS_PER_LEAF;
    let clean_to = settled.min(state.geometry.chunk_count());
    let mut buffer = Buffer::default();
    for number in random_numbers(clean_to)? {
        let chunk = ChunkIndex(number);
        let record = index.run_at(state.slot, chunk.leaf())?.record;
        let known = record.chunk(chunk.slot_in_leaf()).content;
        let candidate = index.candidates(state.slot, chunk.leaf())?.contains(chunk.slot_in_leaf());
        if candidate || known == Content::Unknown {
            continue;
        }
        let range = state.geometry.range_of(chunk).expect("the chunk is in the image");
        // What cannot be read is found out by whoever reads it.
        let Ok(now) = content_of(source, range, &mut buffer, &mut 0) else { continue };
        if now != known {
            let why = format!("chunk {number} was said to be unchanged, and is not");
            tracing::error!("disk {}: {why}; this view and the next compare all chunks", state.name);
            index.distrust(state.slot)?;
            state.compared_to = 0;
            state.tracking = Tracking::Digests { why };
            break;
        }
    }
    Ok(())
}

/// Up to `SAMPLE` numbers below `below`.
fn random_numbers(below: u64) -> Result<Vec<u64>, CommandError> {
    if below == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = [0; 8 * SAMPLE as usize];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(CommandError::io("reading random numbers"))?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_le_bytes(*word) % below).collect())
}

fn plain_file(file: &FileSpec, stamp: Stamp, index: Option<&Index>) -> Result<PlainFile, CommandError> {
    let failed = |error| CommandError::Image { path: file.path.clone(), error };
    let content = std::fs::read(&file.path).map_err(failed)?;
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
        tracking,
    }
}
