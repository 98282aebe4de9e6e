//! Serving a view: ready, asked, told to end, closed.

use super::assemble::{Assembled, Indexed, assemble, now};
use super::room;
use super::spec::ViewSpec;
use crate::core::stamp::Stamp;
use crate::error::CommandError;
use crate::mount::control::{self, Answer, DiskStatus, Request};
use crate::mount::daemon::{self, Report};
use crate::mount::points;
use crate::mount::session::{self, MountOptions, Mounted, SessionError, Unmounting};
use crate::source::Source;
use crate::view::{Owner, Reads, View};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How long a reader may keep a view that has been told to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// After this, whoever still holds a detached view loses it.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// How long another process may take to let go of the index, for one that was just unmounted is still closing it.
const INDEX_WAIT: Duration = Duration::from_secs(5);

/// How a view is to be served.
#[derive(Clone, Debug)]
pub struct Serving {
    pub point: PathBuf,
    pub owner: Owner,
    pub mount: MountOptions,
    pub log: Option<PathBuf>,
    /// Threads that compare.
    pub threads: usize,
}

/// Serves a chunk view until it is unmounted.
pub fn serve_view(spec: &ViewSpec, serving: &Serving) -> Result<(), CommandError> {
    // All that can be wrong is found out before the index is touched.
    let point = match spec.make_point {
        true => points::check_place(&serving.point)?,
        false => points::check(&serving.point)?,
    };
    let images = spec.disks.iter().filter_map(|disk| match &disk.source {
        super::SourceSpec::Image(path) => Some(path),
        super::SourceSpec::Nbd(_) => None,
    });
    let files = images.chain(&spec.index).chain(&serving.log);
    files.into_iter().try_for_each(|path| points::check_apart(&point, path))?;
    let Assembled { view, stamp, disks, sources, indexed } =
        assemble(spec, serving.owner, INDEX_WAIT, serving.threads)?;
    wait_for_clock(stamp);
    let room = spec.room.clone().map(room::watch).transpose();
    let room = room.map_err(CommandError::io("watching the free space"))?;
    let reads = Some(Arc::clone(view.reads()));
    let facts = Facts { stamp, disks, reads, sources, room, indexed: indexed.as_ref() };
    let served = match spec.make_point {
        true => with_point(&point, || serve(view, &point, serving, &facts)),
        false => serve(view, &point, serving, &facts),
    };
    // Whether it was ever mounted or not: nobody can see it any more.
    let closed = indexed.as_ref().map_or(Ok(()), close);
    // Before anybody hears that it is closed: its file is the only one then.
    drop(indexed);
    finish(served, closed)
}

/// Makes the mount point, and takes it away as soon as nothing is mounted there: no view, no directory.
fn with_point<T>(point: &Path, serve: impl FnOnce() -> Result<T, CommandError>) -> Result<T, CommandError> {
    match std::fs::create_dir(point) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(CommandError::io(format!("making the mount point {}", point.display()))(error));
        }
        _ => {}
    }
    let served = serve();
    // Somebody else may have removed it, or have mounted something there.
    let _ = std::fs::remove_dir(point);
    served
}

/// Serves a view that has no index.
pub fn serve_joined<V: View>(view: Arc<V>, stamp: Stamp, serving: &Serving) -> Result<(), CommandError> {
    let point = points::check(&serving.point)?;
    serving.log.iter().try_for_each(|path| points::check_apart(&point, path))?;
    session::check_device()?;
    finish(serve(view, &point, serving, &Facts::without_disks(stamp)), Ok(()))
}

/// Whoever asked for the unmount is answered when all is closed.
fn finish(
    served: Result<Option<UnixStream>, CommandError>,
    closed: Result<(), CommandError>,
) -> Result<(), CommandError> {
    let asked_by = served?;
    if let Some(mut stream) = asked_by {
        let answer = match &closed {
            Ok(()) => Answer::Unmounted,
            Err(error) => Answer::Failed(error.to_string()),
        };
        // Who asked may have gone; the view is closed all the same.
        let _ = control::send(&mut stream, &answer);
    }
    closed
}

fn close(indexed: &Indexed) -> Result<(), CommandError> {
    let stopped = indexed.resolver.stop();
    // Even if the progress could not be stored: the next view then compares more.
    indexed.index.close_generation(indexed.generation, now())?;
    Ok(stopped?)
}

/// A stamp is never in the future.
fn wait_for_clock(stamp: Stamp) {
    while now() < stamp {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a daemon can tell of its view.
struct Facts<'a> {
    stamp: Stamp,
    disks: Vec<DiskStatus>,
    reads: Option<Arc<Reads>>,
    sources: Vec<Arc<dyn Source>>,
    room: Option<room::Alarm>,
    indexed: Option<&'a Indexed>,
}

impl Facts<'_> {
    fn without_disks(stamp: Stamp) -> Self {
        Facts { stamp, disks: Vec::new(), reads: None, sources: Vec::new(), room: None, indexed: None }
    }

    fn disks_now(&self) -> Vec<DiskStatus> {
        let mut disks = self.disks.clone();
        for (place, disk) in disks.iter_mut().enumerate() {
            disk.read = self.reads.as_ref().map_or(disk.read, |reads| reads.of(place));
        }
        disks
    }

    fn troubles(&self) -> Vec<String> {
        let alarm = self.room.as_ref().and_then(|alarm| alarm.get()).cloned();
        let broken = self.sources.iter().filter_map(|source| source.check().err());
        alarm.into_iter().chain(broken.map(|error| error.to_string())).collect()
    }
}

/// What a daemon waits for.
enum Event {
    /// Nobody can reach the view any more.
    Ended,
    Signal,
    Asked(UnixStream),
}

/// Mounts, and serves until the end. Gives the connection of whoever asked for it.
fn serve<V: View>(
    view: Arc<V>,
    point: &Path,
    serving: &Serving,
    facts: &Facts<'_>,
) -> Result<Option<UnixStream>, CommandError> {
    if let Some(log) = &serving.log {
        daemon::open_log(log).map_err(CommandError::io(format!("opening the log {}", log.display())))?;
    }
    let (events, inbox) = mpsc::channel();
    // Before the mount, so that no signal finds a view that nobody would unmount.
    send_signals(events.clone())?;
    let ended = events.clone();
    // A receiver that has gone has no use for the news; so in all the threads here.
    let mounted = session::mount(view, point, &serving.mount, move || {
        let _ = ended.send(Event::Ended);
    })?;
    let listening = control::listen(&mounted.point).and_then(|(listener, name)| {
        match send_connections(listener, events) {
            Ok(()) => Ok(name),
            Err(error) => name.remove().and(Err(error)),
        }
    });
    let socket = match listening {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!("no control socket: {error}; `chunkfs umount` will not wait for the end");
            None
        }
    };
    // Who was interrupted while they waited expects that there is nothing.
    if daemon::is_child()
        && let Err(error) = daemon::report(&Report::Ready, serving.log.as_deref())
    {
        session::unmount_for_exit(&mounted.point, PATIENCE)?;
        let _ = socket.map(|name| name.remove());
        return Err(CommandError::io("telling the caller")(error));
    }
    tracing::info!("{} is mounted", point.display());
    let asked_by = serve_events(&mounted, facts, &inbox);
    // A name that cannot be removed is taken over by the next mount that gets its number.
    let _ = socket.map(|name| name.remove());
    asked_by
}

fn serve_events(
    mounted: &Mounted,
    facts: &Facts<'_>,
    inbox: &Receiver<Event>,
) -> Result<Option<UnixStream>, CommandError> {
    let mut asked_by = None;
    let mut last_moment: Option<Instant> = None;
    loop {
        let patience = last_moment.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        match inbox.recv_timeout(patience) {
            Ok(Event::Ended) => return Ok(asked_by),
            Ok(Event::Signal) if last_moment.is_some() => {}
            Ok(Event::Signal) => {
                session::unmount_for_exit(&mounted.point, PATIENCE)?;
                last_moment = Some(Instant::now() + LAST_PATIENCE);
            }
            Ok(Event::Asked(stream)) => {
                if let Some((stream, how)) = answer(stream, mounted, facts) {
                    asked_by = Some(stream);
                    if how == Unmounting::Plain {
                        // It was not busy, so it ends at once - unless another mount namespace has a copy of it,
                        // which nobody there knows to unmount.
                        last_moment = Some(Instant::now() + LAST_PATIENCE);
                    }
                }
            }
            Err(_) => {
                tracing::warn!("{} is still used; it ends now", mounted.point.path.display());
                return Ok(asked_by);
            }
        }
    }
}

/// Answers one request. Gives the connection back if it is to be answered at the end.
fn answer(mut stream: UnixStream, mounted: &Mounted, facts: &Facts<'_>) -> Option<(UnixStream, Unmounting)> {
    let answer = match control::receive(&stream) {
        Ok(Request::Status) => {
            let status = status(mounted, facts);
            Answer::Status(serde_json::to_value(status).expect("a status has only numbers and texts"))
        }
        Ok(Request::Unmount { lazy }) => {
            let how = if lazy { Unmounting::Lazy } else { Unmounting::Plain };
            match session::unmount(&mounted.point, how) {
                Ok(()) => return Some((stream, how)),
                Err(busy @ SessionError::Busy { .. }) => Answer::Busy(busy.to_string()),
                Err(error) => Answer::Failed(error.to_string()),
            }
        }
        Err(error) => Answer::Failed(error.to_string()),
    };
    // Who asked may have gone.
    let _ = control::send(&mut stream, &answer);
    None
}

fn status(mounted: &Mounted, facts: &Facts<'_>) -> control::Status {
    let counters = &mounted.counters;
    let disks = facts.disks_now();
    control::Status {
        pid: std::process::id(),
        mount_point: mounted.point.path.display().to_string(),
        source: mounted.point.source.clone(),
        generation: facts.indexed.map(|indexed| indexed.generation.0),
        stamp: facts.stamp.0,
        chunks: disks.iter().map(|disk| disk.chunks).sum(),
        chunks_read: disks.iter().map(|disk| disk.read.chunks).sum(),
        chunks_read_exact: disks.iter().all(|disk| disk.read.exact),
        disks,
        reads: counters.reads.load(Ordering::Relaxed),
        bytes_read: counters.bytes_read.load(Ordering::Relaxed),
        read_errors: counters.read_errors.load(Ordering::Relaxed),
        troubles: facts.troubles(),
        scan: facts.indexed.map(|indexed| indexed.resolver.progress()),
    }
}

fn send_signals(events: Sender<Event>) -> Result<(), CommandError> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(CommandError::io("catching signals"))?;
    let send = move || signals.forever().try_for_each(|_| events.send(Event::Signal));
    Builder::new().spawn(send).map(drop).map_err(CommandError::io("starting a thread"))
}

fn send_connections(listener: UnixListener, events: Sender<Event>) -> io::Result<()> {
    let send = move || listener.incoming().flatten().try_for_each(|stream| events.send(Event::Asked(stream)));
    Builder::new().spawn(send).map(drop)
}
