//! `chunkfs mount`: shows an image as chunks.

use crate::cli::{Mount, Serving as ServingArgs};
use crate::error::{CommandError, Status};
use crate::fuse::Caching;
use crate::mount::daemon::{self, Report};
use crate::mount::points;
use crate::mount::session::MountOptions;
use crate::serve::{ChangesSpec, DiskSpec, Serving, SourceSpec, ViewSpec, serve_view};
use crate::view::Owner;
use std::path::Path;

/// The name of a disk that was given none, in its index.
const UNNAMED: &str = "disk";

pub(super) fn run(args: Mount) -> Result<Status, CommandError> {
    let spec = match &args.view {
        Some(file) => read_spec(file)?,
        None => spec_of(&args)?,
    };
    let serving = serving_of(&spec.name, &args.mountpoint, &args.serving)?;
    in_background(args.serving.foreground, || serve_view(&spec, &serving))
}

/// Serves here, or lets a process do it that stays when this one ends.
pub(super) fn in_background(
    foreground: bool,
    serve: impl FnOnce() -> Result<(), CommandError>,
) -> Result<Status, CommandError> {
    if daemon::is_child() {
        daemon::leave_session();
    } else if !foreground {
        return match daemon::start().map_err(CommandError::io("starting the daemon"))? {
            Report::Ready => Ok(Status::Done),
            Report::Failed { status, message } => Err(CommandError::Reported { status, message }),
        };
    }
    serve().map(|()| Status::Done)
}

fn spec_of(args: &Mount) -> Result<ViewSpec, CommandError> {
    let image = args.image.as_ref().expect("clap asks for an image where there is no --view");
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(CommandError::io(format!("finding {}", path.display())))
    };
    let name = args.name.clone().unwrap_or_else(|| UNNAMED.to_owned());
    let changes = match args.compare_all {
        true => ChangesSpec::Digests { why: "--compare-all was given".to_owned() },
        false => ChangesSpec::Times,
    };
    let disk = DiskSpec {
        name: name.clone(),
        source: match image.to_str().filter(|word| word.starts_with("nbd+unix://")) {
            Some(uri) => SourceSpec::Nbd(uri.to_owned()),
            None => SourceSpec::Image(absolute(image)?),
        },
        chunk_size: args.chunk_size.bytes(),
        changes,
        unchanged: Vec::new(),
        readable: Vec::new(),
    };
    Ok(ViewSpec {
        name,
        index: args.index.as_deref().map(absolute).transpose()?,
        bare: args.name.is_none(),
        disks: vec![disk],
        files: Vec::new(),
        make_point: false,
        room: None,
        about: serde_json::Value::Null,
    })
}

fn read_spec(file: &Path) -> Result<ViewSpec, CommandError> {
    let text = std::fs::read(file).map_err(CommandError::io(format!("reading {}", file.display())))?;
    let spec: ViewSpec = serde_json::from_slice(&text).map_err(|error| {
        CommandError::Usage(format!("{}: not the description of a view: {error}", file.display()))
    })?;
    match spec.bare && (spec.disks.len() != 1 || !spec.files.is_empty()) {
        true => {
            Err(CommandError::Usage(format!("{}: a bare view is of one disk, without files", file.display())))
        }
        false => Ok(spec),
    }
}

/// Parses `-o`. Options of every mount that are ours anyway are taken, too.
pub(super) fn serving_of(name: &str, point: &Path, args: &ServingArgs) -> Result<Serving, CommandError> {
    let mut owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: 0o400,
    };
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4));
    let mut mount =
        MountOptions { name: name.to_owned(), caching: Caching::Direct, allow_other: false, threads };
    for option in args.options.iter().filter(|option| !option.is_empty()) {
        let unknown = |why: &str| CommandError::Usage(format!("-o {option}: {why}"));
        match option.split_once('=').unwrap_or((option, "")) {
            ("allow_other", "") => mount.allow_other = true,
            ("direct_io", "") => mount.caching = Caching::Direct,
            ("kernel_cache", "") => mount.caching = Caching::Buffered,
            ("uid", id) => owner.uid = id.parse().map_err(|_| unknown("not a number"))?,
            ("gid", id) => owner.gid = id.parse().map_err(|_| unknown("not a number"))?,
            ("mode", mode) => {
                let mode = u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
                // Bits for writing are shown if they are asked for: a backup made before may have them.
                owner.mode = mode.ok_or_else(|| unknown("not an octal mode up to 777"))?;
            }
            ("ro" | "nosuid" | "nodev" | "noatime" | "default_permissions" | "defaults", "") => {}
            _ => {
                return Err(unknown(
                    "not an option; there are allow_other, uid, gid, mode, direct_io, kernel_cache",
                ));
            }
        }
    }
    let log = args.log.as_deref().map(std::path::absolute).transpose();
    Ok(Serving {
        point: points::absolute(point).unwrap_or_else(|_| point.to_owned()),
        owner,
        mount,
        log: log.map_err(CommandError::io("finding the log"))?,
        threads,
    })
}
