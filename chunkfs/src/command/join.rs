//! `chunkfs join`: shows a directory of chunks as one image file.

use super::mount::{in_background, serving_of};
use super::verification_of;
use crate::cli::Join;
use crate::error::{CommandError, Status};
use crate::mount::points;
use crate::serve::serve_joined;
use crate::source::chunks::ChunksSource;
use crate::source::shape::Known;
use crate::view::{JoinedImage, check_names};
use std::iter;
use std::sync::Arc;

pub(super) fn run(args: Join) -> Result<Status, CommandError> {
    let name = args.chunkdir.file_name().map_or_else(|| "image".into(), |name| name.to_string_lossy());
    check_names(iter::once(args.name.as_str()), iter::empty())?;
    let serving = serving_of(&name, &args.mountpoint, &args.serving)?;
    in_background(args.serving.foreground, || {
        let known = Known { chunk_size: args.chunk_size, len: None };
        let source = ChunksSource::open(&args.chunkdir, verification_of(args.no_verify), known)?;
        points::check_apart(&serving.point, source.path())?;
        if !source.is_verified() {
            tracing::warn!("{}: read without comparing its chunks with digests", args.chunkdir.display());
        }
        let stamp = crate::serve::now();
        let joined = JoinedImage::new(Arc::new(source), args.name, stamp, serving.owner);
        serve_joined(Arc::new(joined), stamp, &serving)
    })
}
