//! A disk is read as of the point in time and written where it is to go.
//! What makes the bytes and keeps files whole is `carry`'s and `qemu-img`'s; here they are put together and watched over.

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use chunkfs::source::Source;
use chunkfs::source::ahead::ReadAhead;
use chunkfs::source::image::ImageSource;
use chunkfs::source::nbd::{NbdAddress, NbdOptions, NbdSource};
use chunkfs::watch::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::carry::{self, Carried, Directory, Existing};
use crate::core::names::partial_of;
use crate::core::options::Clusters;
use crate::core::step::{CopyRequest, CopyTo};
use crate::core::viewspec::{Feed, Room};

use super::{bitmaps, exec};

/// A disk of many TiB takes days; a job that hangs is the user's to interrupt.
const CONVERTED_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two looks at the room that is left.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What is done sooner is not worth a bar.
const SILENT: Duration = Duration::from_secs(1);

pub(super) fn copy(request: &CopyRequest, interrupted: &(dyn Fn() -> bool + Sync)) -> Result<String> {
    step_back();
    let going = Going::new(request, interrupted);
    let copied = match &request.to {
        CopyTo::Image { dir, name, compression } => to_image(request, dir, name, *compression, &going),
        CopyTo::Program { words, environment, compression } => {
            let source = open(&request.feed)?;
            let environment: Vec<_> =
                environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let options = options(request, *compression);
            carry::to_command(&*source, words, &environment, &options, &going)
                .map(digest_of)
                .map_err(Into::into)
        }
        CopyTo::AsItIs { dir, name } => to_image(request, dir, name, carry::Compression::None, &going)
            .and_then(|digest| without_bitmaps(&dir.join(name), digest, request, &going)),
        CopyTo::Qcow2 { dir, name, clusters } => convert(request, &dir.join(name), *clusters, &going),
    };
    going.bar.finish_and_clear();
    // Why it was stopped is told best by whoever stopped it.
    copied.map_err(|error: anyhow::Error| going.why().map_or(error, |why| anyhow!(why)))
}

fn to_image(
    request: &CopyRequest,
    dir: &Path,
    name: &str,
    compression: carry::Compression,
    going: &Going<'_>,
) -> Result<String> {
    let dir = Directory::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let source = open(&request.feed)?;
    Ok(digest_of(carry::to_file(&*source, &dir, name, &options(request, compression), going)?))
}

fn digest_of(carried: Carried) -> String {
    carried.digest.to_hex().to_string()
}

fn options<'a>(request: &'a CopyRequest, compression: carry::Compression) -> carry::Options<'a> {
    let (disk, bytes_per_sec) = (request.target.as_str(), request.pace);
    carry::Options { disk, compression, bytes_per_sec, existing: Existing::Refuse }
}

fn open(feed: &Feed) -> Result<Box<dyn Source>> {
    Ok(match feed {
        Feed::Image { path } => {
            let image = ImageSource::open(path).with_context(|| format!("open {}", path.display()))?;
            Box::new(ReadAhead::new(image))
        }
        Feed::Nbd { socket, export } => {
            let address = NbdAddress::new(socket, export).context("our sockets have short, plain paths")?;
            Box::new(NbdSource::connect(&address, NbdOptions::usual(Vec::new()))?)
        }
    })
}

/// The format that is read is given: what a server shows, and a raw image, are raw.
fn convert(request: &CopyRequest, to: &Path, clusters: Clusters, going: &Going<'_>) -> Result<String> {
    let name = to.file_name().and_then(|name| name.to_str()).context("a dump has a name")?;
    let partial = to.with_file_name(partial_of(name));
    // Its mode is private before a byte is in it.
    private_file(&partial)?;
    let mut words: Vec<OsString> = ["convert", "-q", "-f", "raw", "-O", "qcow2"].map(Into::into).to_vec();
    words.extend((clusters == Clusters::Compressed).then(|| "-c".into()));
    words.push(match &request.feed {
        Feed::Image { path } => path.into(),
        Feed::Nbd { socket, export } => {
            NbdAddress::new(socket, export).context("our sockets have short, plain paths")?.to_string().into()
        }
    });
    words.push(partial.clone().into());
    let stop = || going.is_stopped();
    let converted = exec::run_unless(Path::new("qemu-img"), &words, CONVERTED_WITHIN, &stop);
    let finished = converted.context("qemu-img convert").and_then(|()| {
        let digest = digest_of_file(&partial, request, going)?;
        File::open(&partial)?.sync_all().context("bring it to the disk")?;
        std::fs::rename(&partial, to).context("give it its name")?;
        File::open(to.parent().context("a file is in a directory")?)?.sync_all()?;
        Ok(digest)
    });
    if finished.is_err() {
        // The error is the story; the name is claimed, so cleanup removes it, too.
        drop(std::fs::remove_file(&partial));
    }
    finished
}

/// QEMU goes back to no snapshot of an image that has a dirty bitmap, and here nobody would go on with it. One that
/// cannot be removed is no reason to be without an archive. Gives the digest that the image has then.
fn without_bitmaps(image: &Path, digest: String, request: &CopyRequest, going: &Going<'_>) -> Result<String> {
    let stays = |what: &str, error: anyhow::Error| {
        tracing::warn!(
            "{}: {what} stays, and while it does no snapshot can be gone back to: {error:#}",
            image.display()
        );
    };
    let names = bitmaps::names(image).unwrap_or_else(|error| {
        stays("a dirty bitmap, if there is one,", error);
        Vec::new()
    });
    if names.is_empty() {
        return Ok(digest);
    }
    for name in &names {
        bitmaps::remove(image, name)
            .unwrap_or_else(|error| stays(&format!("the dirty bitmap {name}"), error));
    }
    File::open(image)?.sync_all().context("bring it to the disk")?;
    digest_of_file(image, request, going)
}

fn private_file(path: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    // One that a killed job left: the name is claimed.
    drop(std::fs::remove_file(path));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map(drop).with_context(|| format!("create {}", path.display()))
}

fn digest_of_file(path: &Path, request: &CopyRequest, going: &Going<'_>) -> Result<String> {
    let image = ImageSource::open(path).with_context(|| format!("open {}", path.display()))?;
    let options = carry::Options { bytes_per_sec: None, ..options(request, carry::Compression::None) };
    Ok(digest_of(carry::digest(&image, &options, &Quietly(going))?))
}

/// Heeds whoever stops the copy, and shows nothing.
struct Quietly<'a>(&'a Going<'a>);

impl Watch for Quietly<'_> {
    fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}

/// Guests go before backups: the lowest priority for the processor, and a low one for the disks, as far as we may.
fn step_back() {
    // A wish: whoever may not, copies at the priority it has.
    let _ = rustix::process::setpriority_process(None, 19);
    let us = std::process::id().to_string();
    let words: Vec<OsString> = ["-c", "2", "-n", "7", "-p", &us].map(Into::into).to_vec();
    drop(exec::run(Path::new("ionice"), &words, Duration::from_secs(5)));
}

/// Watches over a copy: the user, the room for the guest's writes, the bar.
struct Going<'a> {
    interrupted: &'a (dyn Fn() -> bool + Sync),
    room: Option<&'a Room>,
    state: Mutex<State>,
    bar: ProgressBar,
    begun: Instant,
}

struct State {
    looked: Instant,
    why: Option<String>,
}

impl<'a> Going<'a> {
    fn new(request: &'a CopyRequest, interrupted: &'a (dyn Fn() -> bool + Sync)) -> Going<'a> {
        let style =
            "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(style).expect("a constant");
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let bar = bar.with_style(style).with_message(request.target.to_string());
        let state = Mutex::new(State { looked: Instant::now(), why: None });
        Going { interrupted, room: request.room.as_ref(), state, bar, begun: Instant::now() }
    }

    fn why(&self) -> Option<String> {
        self.state.lock().expect("nobody panics with it").why.clone()
    }
}

impl Watch for Going<'_> {
    fn expect(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.bar.is_hidden() && self.begun.elapsed() > SILENT && std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    fn is_stopped(&self) -> bool {
        let mut state = self.state.lock().expect("nobody panics with it");
        if state.why.is_none() && (self.interrupted)() {
            state.why = Some("interrupted".to_owned());
        }
        if state.why.is_none() && state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            state.why = self.room.and_then(short_of_room);
        }
        state.why.is_some()
    }
}

/// A scratch file that cannot grow makes QEMU fail writes of the guest.
fn short_of_room(room: &Room) -> Option<String> {
    let stat = rustix::fs::statvfs(&room.dir).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    (free < room.least_free.0).then(|| {
        format!(
            "less than {} is left in {} for what the guest overwrites: the copy was ended before the guest would notice",
            room.least_free,
            room.dir.display()
        )
    })
}
