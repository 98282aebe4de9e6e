//! A damaged index is an error, or tells what it always told: never something else.

use super::sample::{answers, kept};
use crate::core::stamp::Stamp;
use crate::index::{Access, Index, IndexError};
use std::path::Path;
use std::time::Duration;

/// What decides whether a chunk, a list of digests or a plain file is read by a backup: asked as a view does it,
/// without checking all of the index before.
fn of_a_view(path: &Path) -> Result<String, IndexError> {
    let index = Index::open(path, Access::Write { wait: Duration::ZERO })?;
    let mut text = format!("{:?}", index.generations()?);
    for (slot, leaves) in [(1, 4), (2, 2)] {
        let slot = crate::core::layout::DiskSlot::new(slot).expect("from 1 to 1023");
        text += &format!("{:?}", index.candidate_leaves(slot)?);
        for leaf in 0..leaves {
            text += &format!("{:?}", index.leaf_at(slot, crate::core::geometry::LeafIndex(leaf))?);
        }
    }
    for (name, content) in [("mail01.xml", &b"<domain type='kvm'/>"[..]), ("mail01.nvram", b"")] {
        text += &format!("{}", index.stamp_of_file(name, content, Stamp(1_700_000_007))?);
    }
    Ok(text)
}

#[test]
fn no_flipped_byte_of_an_index_changes_an_answer() {
    let home = super::home();
    let path = home.path().join("index");
    let write = |bytes: &[u8]| {
        for name in ["index-wal", "index-shm"] {
            // There is none after an index was closed.
            let _ = std::fs::remove_file(home.path().join(name));
        }
        std::fs::write(&path, bytes).unwrap();
    };
    let whole = std::fs::read(kept()).unwrap();
    write(&whole);
    let expected = (of_a_view(&path).unwrap(), of_index(&path).unwrap());
    let (mut same, mut errors, mut wrong) = (0, 0, Vec::new());
    // Every byte in a few runs of the tests, one bit of each.
    const EACH: usize = 9;
    for at in (std::process::id() as usize % EACH..whole.len()).step_by(EACH) {
        // Page after page is empty: one byte in 16 of those is enough.
        let is_empty =
            whole[at] == 0 && at > 4 && whole[at - 4..(at + 4).min(whole.len())].iter().all(|b| *b == 0);
        if is_empty && at % 16 != 0 {
            continue;
        }
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        write(&damaged);
        // Asking about files stores them, so the view comes last.
        for (found, expected) in [(of_index(&path), &expected.1), (of_a_view(&path), &expected.0)] {
            match found {
                Ok(text) if text == *expected => same += 1,
                Ok(_) => wrong.push(at),
                Err(_) => errors += 1,
            }
        }
    }
    println!("{errors} flips were errors, {same} made no difference");
    assert!(wrong.is_empty(), "flips that gave other answers: {wrong:?}");
}

/// What `chunkfs index check` and `diff` tell.
fn of_index(path: &Path) -> Result<String, IndexError> {
    answers(&Index::open(path, Access::Read)?)
}

#[test]
fn what_is_not_an_index_is_left_as_it_is() {
    let home = super::home();
    let path = home.path().join("index");
    let open = || Index::open(&path, Access::Write { wait: Duration::ZERO }).map(drop);
    std::fs::write(&path, b"a letter to the editor, long enough to be taken for a header of a database")
        .unwrap();
    assert!(matches!(open(), Err(IndexError::Foreign { .. })));
    std::fs::write(&path, b"").unwrap();
    open().unwrap();
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE other (a)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(open(), Err(IndexError::Foreign { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(open().is_err());
    assert!(matches!(Index::open(&home.path().join("none"), Access::Read), Err(IndexError::Database { .. })));
}

#[test]
fn a_closed_index_is_one_file() {
    let home = super::home();
    let index = super::open(&home);
    super::begin(&index, 4096, super::none(), 1000).unwrap();
    index.summary().unwrap();
    drop(index);
    let files: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["index"]);
}

#[test]
fn one_process_at_a_time_writes_and_others_may_read() {
    let home = super::home();
    let first = super::open(&home);
    super::begin(&first, 4096, super::none(), 1000).unwrap();
    let path = home.path().join("index");
    let second = Index::open(&path, Access::Write { wait: Duration::from_millis(50) });
    assert!(matches!(second, Err(IndexError::Busy { .. })));
    assert_eq!(Index::open(&path, Access::Read).unwrap().generations().unwrap().len(), 1);
    drop(first);
    Index::open(&path, Access::Write { wait: Duration::ZERO }).unwrap();
}
