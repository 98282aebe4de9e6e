//! The real daemon is killed at random moments of a first and of a later scan, while somebody looks around.
//! What was shown before is kept here: no stamp may ever come back for other content.
//!
//! 200 lives, many at a time, since most of each is waiting. Needs FUSE and the right to mount; `$CHUNKFS` is the
//! program, else target/release/chunkfs. CHUNKFS_KILL_LIVES=n lives fewer or more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LIVES: u64 = 200;
const AT_A_TIME: u64 = 20;
const CHUNK: usize = 8192;
const CHUNKS: u64 = 8192;
const LEAVES: u64 = CHUNKS / 256;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn fuse_a_killed_daemon_never_shows_a_stamp_again_for_other_content() {
    let lives = std::env::var("CHUNKFS_KILL_LIVES").map_or(LIVES, |text| text.parse().unwrap());
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let (next, totals, started) = (AtomicU64::new(0), Totals::default(), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let life = next.fetch_add(1, Ordering::SeqCst);
                    if life >= lives {
                        return;
                    }
                    Life::new(seed.wrapping_add(life * 1000)).live(&totals);
                }
            });
        }
    });
    println!("{totals:?} in {:.0} s", started.elapsed().as_secs_f64());
    // A walker that always comes too late sees nothing.
    assert!(totals.shown_to_the_end.load(Ordering::SeqCst) >= lives * CHUNKS);
    assert!(totals.cut_short.load(Ordering::SeqCst) > 0, "no kill hit a walk: {totals:?}");
}

#[derive(Debug, Default)]
struct Totals {
    kills: AtomicU64,
    /// Kills that hit somebody who was looking.
    cut_short: AtomicU64,
    shown_before_kills: AtomicU64,
    shown_to_the_end: AtomicU64,
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// An image, its index, a mount point, and all that was ever shown there.
struct Life {
    chance: Chance,
    home: PathBuf,
    /// What each chunk holds: so many bytes of this value.
    values: Vec<u8>,
    shown: Shown,
}

/// What each chunk's stamps have stood for.
#[derive(Default)]
struct Shown {
    chunks: HashMap<u64, BTreeMap<i64, u8>>,
    inodes: HashMap<u64, u64>,
}

impl Shown {
    fn see(&mut self, chunk: u64, metadata: &fs::Metadata, value: u8) {
        let stamp = metadata.mtime();
        assert_eq!((metadata.ctime(), metadata.atime()), (stamp, stamp));
        assert_eq!((metadata.mtime_nsec(), metadata.nlink()), (0, 1));
        assert_eq!(metadata.size(), CHUNK as u64);
        assert!(metadata.blocks() == CHUNK as u64 / 512 || (metadata.blocks() == 0 && value == 0));
        assert_eq!(*self.inodes.entry(chunk).or_insert(metadata.ino()), metadata.ino());
        let known = self.chunks.entry(chunk).or_default();
        let before = *known.entry(stamp).or_insert(value);
        assert_eq!(before, value, "chunk {chunk}: stamp {stamp} has stood for other content");
        assert_eq!(known.last_key_value().unwrap().0, &stamp, "chunk {chunk}: the stamp has gone back");
    }

    fn stamp(&self, chunk: u64) -> Option<i64> {
        self.chunks.get(&chunk).map(|known| *known.last_key_value().unwrap().0)
    }
}

impl Life {
    fn new(seed: u64) -> Life {
        let fast = Path::new("/dev/shm");
        let place = if fast.is_dir() { fast.to_owned() } else { std::env::temp_dir() };
        let home = place.join(format!("chunkfs-kill-{}-{seed:x}", std::process::id()));
        fs::create_dir(&home).unwrap();
        fs::create_dir(home.join("mnt")).unwrap();
        let image = fs::File::create(home.join("image")).unwrap();
        image.set_len(CHUNKS * CHUNK as u64).unwrap();
        let mut life =
            Life { chance: Chance(seed), home, values: vec![0; CHUNKS as usize], shown: Shown::default() };
        (0..40).for_each(|_| life.write());
        life
    }

    /// Fills some neighbouring chunks with one of few values, zero among them.
    fn write(&mut self) {
        let first = self.chance.below(CHUNKS);
        let longest = [1, 3, 200][self.chance.below(3) as usize];
        let last = (first + self.chance.below(longest) + 1).min(CHUNKS);
        let value = self.chance.below(4) as u8;
        let image = fs::OpenOptions::new().write(true).open(self.home.join("image")).unwrap();
        let bytes = vec![value; (last - first) as usize * CHUNK];
        image.write_all_at(&bytes, first * CHUNK as u64).unwrap();
        self.values[first as usize..last as usize].fill(value);
    }

    fn live(mut self, totals: &Totals) {
        self.mount_and_kill(totals);
        if self.chance.below(2) == 0 {
            (0..10).for_each(|_| self.write());
        }
        let first = self.mount_and_look_at_all(totals);
        // So that the next one needs not wait for the clock, and is looked at while it compares.
        std::thread::sleep(Duration::from_millis(6200));
        (0..30).for_each(|_| self.write());
        let before = self.values.clone();
        self.mount_and_kill(totals);
        if self.chance.below(2) == 0 {
            (0..10).for_each(|_| self.write());
        }
        let last = self.mount_and_look_at_all(totals);
        for chunk in 0..CHUNKS {
            let at = chunk as usize;
            let untouched = first.0[at] == before[at] && before[at] == self.values[at];
            assert!(
                !untouched || first.1[at] == last.1[at],
                "chunk {chunk} is unchanged, but its stamp is not"
            );
        }
        fs::remove_dir_all(&self.home).unwrap();
    }

    fn start(&self) -> Daemon {
        let mount = self.home.join("mnt");
        let mut command = Command::new(program());
        command.args(["mount", "--foreground", "--name", "vda", "--chunk-size", "8192", "--index"]);
        command.arg(self.home.join("index")).arg(self.home.join("image")).arg(&mount);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        Daemon { child: Some(child), mount }
    }

    fn mount_and_kill(&mut self, totals: &Totals) {
        let mut daemon = self.start();
        let delay = Duration::from_micros(self.chance.below(150_000));
        // From its start, when it may not be ready, or from when it is.
        let from_start = self.chance.below(4) == 0;
        let (killed, appeared) = (AtomicBool::new(false), AtomicBool::new(from_start));
        let from = self.chance.below(LEAVES);
        let (values, shown, home) = (&self.values, &mut self.shown, &self.home);
        let (seen, cut_short) = std::thread::scope(|scope| {
            let walker = scope.spawn(|| walk(&home.join("mnt/vda"), from, values, shown, &killed, &appeared));
            let started = Instant::now();
            while !appeared.load(Ordering::SeqCst) && started.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(delay);
            daemon.kill();
            killed.store(true, Ordering::SeqCst);
            walker.join().unwrap()
        });
        totals.kills.fetch_add(1, Ordering::SeqCst);
        totals.cut_short.fetch_add(u64::from(cut_short && seen > 0), Ordering::SeqCst);
        totals.shown_before_kills.fetch_add(seen, Ordering::SeqCst);
        daemon.unmount();
    }

    /// What every chunk holds and shows.
    fn mount_and_look_at_all(&mut self, totals: &Totals) -> (Vec<u8>, Vec<i64>) {
        let mut daemon = self.start();
        let from = self.chance.below(LEAVES);
        let (killed, appeared) = (AtomicBool::new(false), AtomicBool::new(false));
        let tree = self.home.join("mnt/vda");
        let (seen, _) = walk(&tree, from, &self.values, &mut self.shown, &killed, &appeared);
        assert_eq!(seen, CHUNKS);
        totals.shown_to_the_end.fetch_add(seen, Ordering::SeqCst);
        daemon.unmount();
        let stamps = (0..CHUNKS).map(|chunk| self.shown.stamp(chunk).unwrap()).collect();
        (self.values.clone(), stamps)
    }
}

/// Looks at all chunks of a view, leaf by leaf, and reads some. Waits for the view to be there. Ends early when the
/// daemon was killed; gives how many chunks it saw, and whether it ended so.
fn walk(
    tree: &Path,
    from: u64,
    values: &[u8],
    shown: &mut Shown,
    killed: &AtomicBool,
    appeared: &AtomicBool,
) -> (u64, bool) {
    let started = Instant::now();
    while !tree.exists() {
        if killed.load(Ordering::SeqCst) {
            return (0, true);
        }
        assert!(started.elapsed() < PATIENCE, "{} does not appear", tree.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    appeared.store(true, Ordering::SeqCst);
    let mut seen = 0;
    for leaf in (0..LEAVES).map(|leaf| (leaf + from) % LEAVES) {
        let directory = tree.join(format!("00/00/00/00/00/00/{leaf:02x}"));
        for slot in 0..256 {
            let chunk = leaf * 256 + slot;
            let looked = look(&directory.join(format!("{slot:02x}")), chunk, values[chunk as usize], shown);
            match looked {
                Ok(()) => seen += 1,
                // ENOTCONN, ECONNABORTED: nobody answers any more.
                Err(error) => {
                    let is_end =
                        matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::ConnectionAborted);
                    let deadline = Instant::now() + Duration::from_secs(5);
                    // The kernel may tell before the test knows itself.
                    while !killed.load(Ordering::SeqCst) && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    assert!(
                        killed.load(Ordering::SeqCst) && (is_end || error.raw_os_error() == Some(5)),
                        "{error}"
                    );
                    return (seen, true);
                }
            }
        }
    }
    (seen, false)
}

fn look(path: &Path, chunk: u64, value: u8, shown: &mut Shown) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    shown.see(chunk, &metadata, value);
    if chunk.is_multiple_of(37) {
        let mut bytes = Vec::new();
        fs::File::open(path)?.read_to_end(&mut bytes)?;
        assert!(bytes.len() == CHUNK && bytes.iter().all(|byte| *byte == value), "{}", path.display());
    }
    Ok(())
}

/// The daemon of a view; unmounted whatever happens.
struct Daemon {
    child: Option<Child>,
    mount: PathBuf,
}

impl Daemon {
    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As a user would: `chunkfs umount`, for a living daemon and for a dead mount.
    fn unmount(&mut self) {
        if is_mounted(&self.mount) {
            let status = Command::new(program()).arg("umount").arg(&self.mount).status().unwrap();
            assert!(status.success(), "chunkfs umount {}: {status}", self.mount.display());
        }
        if let Some(mut child) = self.child.take() {
            assert!(child.wait().unwrap().success());
        }
        assert!(!is_mounted(&self.mount));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; what counts is that it does not stay.
            let _ = child.kill();
            let _ = child.wait();
        }
        if is_mounted(&self.mount) {
            // Told by the exit status, which changes nothing here.
            let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn program() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/chunkfs");
    std::env::var_os("CHUNKFS").map_or(built, PathBuf::from)
}
