//! Opens the source of a disk, and asks it for what is known of changes.
//! Nothing of the index: whether that is believed is decided there.

use super::spec::{ChangesSpec, DiskSpec, SourceSpec, Told};
use crate::core::changes::ChangeSet;
use crate::core::geometry::{ByteRange, ChunkSize, Geometry};
use crate::error::CommandError;
use crate::index::{DiskAtOpen, DiskState, Evidence, Tracking};
use crate::source::Source;
use crate::source::ahead::ReadAhead;
use crate::source::guarded::GuardedSource;
use crate::source::image::{Identity, ImageSource};
use crate::source::nbd::{NbdAddress, NbdOptions, NbdSource};
use std::sync::Arc;

/// A disk whose source is open.
#[derive(Debug)]
pub(super) struct OpenedDisk {
    pub source: Arc<dyn Source>,
    pub at_open: DiskAtOpen,
    dirty: Option<Dirty>,
}

/// An export, and what a bitmap calls dirty on it.
#[derive(Debug)]
struct Dirty {
    export: Arc<NbdSource>,
    ranges: Vec<ByteRange>,
}

impl OpenedDisk {
    pub(super) fn open(disk: &DiskSpec) -> Result<OpenedDisk, CommandError> {
        let chunk_size = ChunkSize::new(disk.chunk_size).ok_or_else(|| {
            CommandError::Usage(format!(
                "{} is not a chunk size: give a multiple of 4096 from 4K to 64M",
                disk.chunk_size
            ))
        })?;
        let (source, identity, dirty) = open_source(disk)?;
        let geometry = Geometry::new(source.len(), chunk_size);
        let changes = told(&disk.changes)?;
        let evidence = evidence_of(&changes, identity, &geometry, dirty.as_ref());
        let source = match disk.unchanged.is_empty() && disk.readable.is_empty() {
            true => source,
            false => Arc::new(GuardedSource::new(source, &disk.unchanged, &disk.readable)?),
        };
        let at_open = DiskAtOpen { name: disk.name.clone(), geometry, evidence };
        Ok(OpenedDisk { source, at_open, dirty })
    }

    /// When nothing but dirty chunks is going to be compared, nothing else is worth reading ahead.
    pub(super) fn confine_read_ahead(&self, state: &DiskState) {
        let only_changes = matches!(state.tracking, Tracking::Changes { .. });
        let compared = state.compared_to >= state.geometry.leaf_count();
        if let Some(dirty) = self.dirty.as_ref().filter(|_| only_changes && compared) {
            dirty.export.confine_read_ahead(dirty.ranges.clone());
        }
    }
}

type Opened = (Arc<dyn Source>, Option<Identity>, Option<Dirty>);

fn open_source(disk: &DiskSpec) -> Result<Opened, CommandError> {
    match (&disk.source, &disk.changes) {
        (SourceSpec::Image(_), ChangesSpec::Bitmap { context, .. }) => Err(CommandError::Usage(format!(
            "disk {}: an image has no metadata context {context}: only an NBD export has",
            disk.name
        ))),
        (SourceSpec::Image(path), _) => {
            let image =
                ImageSource::open(path).map_err(|error| CommandError::Image { path: path.clone(), error })?;
            let identity = image.identity();
            Ok((Arc::new(ReadAhead::new(image)), identity, None))
        }
        (SourceSpec::Nbd(uri), ChangesSpec::Bitmap { context, .. }) => {
            let export = Arc::new(connect(uri, vec![context.clone()])?);
            let ranges = export.dirty_ranges(context)?.collect::<Result<Vec<_>, _>>()?;
            Ok((Arc::clone(&export) as Arc<dyn Source>, None, Some(Dirty { export, ranges })))
        }
        (SourceSpec::Nbd(uri), _) => Ok((Arc::new(connect(uri, Vec::new())?), None, None)),
    }
}

fn connect(uri: &str, contexts: Vec<String>) -> Result<NbdSource, CommandError> {
    let address = uri.parse::<NbdAddress>().map_err(|error| CommandError::Usage(error.to_string()))?;
    Ok(NbdSource::connect(&address, NbdOptions::usual(contexts))?)
}

/// With what a file says put in its place.
fn told(changes: &ChangesSpec) -> Result<ChangesSpec, CommandError> {
    let ChangesSpec::Told { since, point, file } = changes else { return Ok(changes.clone()) };
    let failed = |error| CommandError::io(format!("reading {}", file.display()))(error);
    let text = std::fs::read(file).map_err(failed)?;
    let told = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let (since, point) = (since.clone(), point.clone());
    Ok(match told {
        Told::Ranges(ranges) => ChangesSpec::Ranges { since, point, ranges },
        Told::Unknown(why) => ChangesSpec::Start { point, why },
    })
}

fn evidence_of(
    changes: &ChangesSpec,
    identity: Option<Identity>,
    geometry: &Geometry,
    dirty: Option<&Dirty>,
) -> Evidence {
    let among = |ranges: &mut dyn Iterator<Item = ByteRange>| {
        let mut changes = ChangeSet::default();
        ranges.for_each(|range| changes.insert(geometry, range));
        changes
    };
    match (changes, identity) {
        (ChangesSpec::Times, Some(identity)) => Evidence::File(identity),
        (ChangesSpec::Times, None) => {
            Evidence::None { why: "a device or an export has no times to tell changes by".to_owned() }
        }
        (ChangesSpec::Digests { why }, _) => Evidence::None { why: why.clone() },
        (ChangesSpec::Everything { why }, _) => Evidence::Renewed { why: why.clone() },
        (ChangesSpec::Start { point, why }, _) => Evidence::Start { point: point.clone(), why: why.clone() },
        (ChangesSpec::Ranges { since, point, ranges }, _) => {
            let changes = among(&mut ChangesSpec::ranges(ranges));
            Evidence::Changes { since: since.clone(), point: point.clone(), changes }
        }
        (ChangesSpec::Told { .. }, _) => unreachable!("told() has read it"),
        (ChangesSpec::Bitmap { since, point, .. }, _) => {
            let ranges = dirty.map(|dirty| dirty.ranges.as_slice()).unwrap_or_default();
            let changes = among(&mut ranges.iter().copied());
            Evidence::Changes { since: since.clone(), point: point.clone(), changes }
        }
    }
}
