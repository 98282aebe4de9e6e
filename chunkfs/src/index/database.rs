//! The index file itself: opening, locking, the schema, and errors that say what is wrong with it.
//! What the tables mean is elsewhere.

use super::IndexError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// "chkf", so that `file` and we can tell an index from other databases.
const APPLICATION_ID: i32 = 0x6368_6b66;
const SCHEMA_VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE generation (
        number INTEGER PRIMARY KEY,
        stamp  INTEGER NOT NULL,
        opened INTEGER NOT NULL,
        closed INTEGER
    ) STRICT;
    CREATE TABLE disk (
        slot        INTEGER PRIMARY KEY,
        name        TEXT NOT NULL UNIQUE,
        chunk_size  INTEGER NOT NULL,
        length      INTEGER NOT NULL,
        compared_to INTEGER NOT NULL,
        base        TEXT,
        last_seen   INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE run (
        slot   INTEGER NOT NULL,
        first  INTEGER NOT NULL,
        end    INTEGER NOT NULL,
        newest INTEGER NOT NULL,
        listed INTEGER NOT NULL,
        body   BLOB NOT NULL,
        sum    BLOB NOT NULL,
        PRIMARY KEY (slot, first)
    ) STRICT;
    CREATE INDEX run_newest ON run (slot, first, end, newest, listed);
    CREATE TABLE candidate (
        slot   INTEGER NOT NULL,
        leaf   INTEGER NOT NULL,
        chunks BLOB NOT NULL,
        sum    BLOB NOT NULL,
        PRIMARY KEY (slot, leaf)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE file (
        name   TEXT PRIMARY KEY,
        digest BLOB NOT NULL,
        stamp  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE seal (
        id  INTEGER PRIMARY KEY CHECK (id = 1),
        sum BLOB NOT NULL
    ) STRICT;
";

/// How an index is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Made when it is missing. Waits so long for another process that is about to close it.
    Write { wait: Duration },
    /// Must exist. Others may have it open.
    Read,
}

/// An open index.
///
/// Reads have a connection of their own, so that nobody who asks waits for a writer's fsync. What it sees is
/// what was committed: it cannot show what a power cut would take back.
#[derive(Debug)]
pub struct Index {
    pub(super) path: PathBuf,
    // Before the writer: only a connection that may write, and is the last, leaves one file behind instead of three.
    pub(super) reader: Mutex<Connection>,
    pub(super) writer: Mutex<Connection>,
    // After the connections: closing any descriptor of the file drops the locks that SQLite holds on it.
    _lock: Option<File>,
}

impl Index {
    pub fn open(path: &Path, access: Access) -> Result<Index, IndexError> {
        let Access::Write { wait } = access else {
            // Opening a FIFO would wait for a writer.
            return match std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
                true => Err(not_a_file(path)),
                false => Index::connect(path, None),
            };
        };
        let is_new = !path.exists();
        let opened = Index::connect(path, Some(lock(path, wait)?));
        if is_new && opened.is_err() {
            // No room for it, say. The error tells more than whether this worked.
            let _ = std::fs::remove_file(path);
        }
        opened
    }

    fn connect(path: &Path, lock: Option<File>) -> Result<Index, IndexError> {
        let mut writer = connect(path, lock.is_some())?;
        check_identity(path, &mut writer, lock.is_some())?;
        let reader = connect(path, false)?;
        let index = Index {
            path: path.to_owned(),
            reader: Mutex::new(reader),
            writer: Mutex::new(writer),
            _lock: lock,
        };
        index.check_seal()?;
        index.check_candidates()?;
        Ok(index)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `act` in one transaction. When this returns, its effects survive a power cut.
    pub(super) fn write<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let mut writer = self.writer.lock().expect("no panic while the index is written");
        let failed = |error| self.error(doing, error);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let value = act(&transaction)?;
        transaction.commit().map_err(failed)?;
        Ok(value)
    }

    /// Moves everything from the log into the file itself, so that who copies that has all of it.
    pub(super) fn gather(&self) {
        let writer = self.writer.lock().expect("no panic while the index is written");
        let gathered = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = gathered {
            // Nothing is lost: the log stays, and the next who opens the index reads it.
            tracing::warn!("{}", self.error("gathering the index in one file", error));
        }
    }

    pub(super) fn read<T>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        act(&self.reader.lock().expect("no panic while the index is read"))
    }

    /// As `read`, with all that is read being of one moment, whatever a writer stores in between.
    pub(super) fn read_at_once<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&Connection) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.read(|connection| {
            let transaction = connection.unchecked_transaction().map_err(|error| self.error(doing, error))?;
            act(&transaction)
        })
    }

    pub(super) fn error(&self, doing: &'static str, error: rusqlite::Error) -> IndexError {
        error_of(&self.path, doing, error)
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> IndexError {
        IndexError::Damaged { path: self.path.clone(), why: why.into() }
    }
}

pub(super) fn error_of(path: &Path, doing: &'static str, error: rusqlite::Error) -> IndexError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => IndexError::Foreign { path, why: "it is not a database".to_owned() },
        Some(ErrorCode::DatabaseCorrupt) => IndexError::Damaged { path, why: error.to_string() },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => IndexError::Busy { path },
        _ => match &error {
            // A column of another type or range than we ever write.
            rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..) => {
                IndexError::Damaged { path, why: error.to_string() }
            }
            _ => IndexError::Database { path, doing, error },
        },
    }
}

/// One process writes. `flock` knows nothing of the locks of SQLite, and goes with the process, however it ends.
fn lock(path: &Path, wait: Duration) -> Result<File, IndexError> {
    let failed = |doing| move |error| IndexError::Io { path: path.to_owned(), doing, error };
    let existed = path.exists();
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(failed("opening the index"))?;
    if !file.metadata().map_err(failed("opening the index"))?.is_file() {
        return Err(not_a_file(path));
    }
    if !existed {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("making the index durable in its directory"))?;
    }
    let deadline = Instant::now() + wait;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(IndexError::Busy { path: path.to_owned() }),
            Err(error) => return Err(failed("locking the index")(error.into())),
        }
    }
}

fn not_a_file(path: &Path) -> IndexError {
    IndexError::Foreign { path: path.to_owned(), why: "it is not a regular file".to_owned() }
}

/// To read where nothing can be written: SQLite then has no place for its locks, and there is nobody to lock out.
fn connect_unlocked(path: &Path) -> Result<Connection, IndexError> {
    let name = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)
        .map_err(|error| error_of(path, "opening the index", error))
}

/// Is the index one whole file, with no log beside it, on a file system that is mounted read-only?
fn is_frozen(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let is_read_only =
        |found: rustix::fs::StatVfs| found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    !Path::new(&log).exists() && rustix::fs::statvfs(path).is_ok_and(is_read_only)
}

fn connect(path: &Path, writable: bool) -> Result<Connection, IndexError> {
    if !writable && is_frozen(path) {
        return connect_unlocked(path);
    }
    let failed = |error| error_of(path, "opening the index", error);
    let flags = match writable {
        true => OpenFlags::SQLITE_OPEN_READ_WRITE,
        false => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let connection =
        Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    // The cache of pages: 4 MiB, for the process has to stay small.
    connection.pragma_update(None, "cache_size", -4096).map_err(failed)?;
    connection.pragma_update(None, "trusted_schema", false).map_err(failed)?;
    // Otherwise a statement is planned anew whenever it is asked about another leaf.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
    if writable {
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    }
    Ok(connection)
}

fn check_identity(path: &Path, connection: &mut Connection, writable: bool) -> Result<(), IndexError> {
    let failed = |error| error_of(path, "reading the index", error);
    let pragma =
        |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(failed);
    let foreign = |why: String| Err(IndexError::Foreign { path: path.to_owned(), why });
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION_ID, SCHEMA_VERSION) => {}
        (APPLICATION_ID, version) => {
            return foreign(format!("it has format {version}, this program knows {SCHEMA_VERSION}"));
        }
        _ if pragma("schema_version")? != 0 => return foreign("it is another program's database".to_owned()),
        _ if !writable => return foreign("it is empty".to_owned()),
        _ => create(connection).map_err(failed)?,
    }
    if writable {
        // Set once the file is known to be ours: this setting is stored in it.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    }
    Ok(())
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

/// The first 8 bytes of BLAKE3: rows carry it, so that a flipped bit is an error and not a wrong stamp.
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}
