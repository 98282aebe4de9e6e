//! What a target is after a restore, after a failed one, and after one that was interrupted.

use super::*;
use crate::source::chunks::{ChunksSource, Verification};
use crate::source::faulty::FaultySource;
use crate::source::memory::MemorySource;
use crate::source::shape::Known;
use crate::split::{pattern, split};
use crate::watch::Unwatched;
use proptest::prelude::*;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

const MIB: usize = 1 << 20;

fn copy(bytes: &[u8], target: &Path, mode: Mode) -> Result<Outcome, RestoreError> {
    restore(&MemorySource::new(bytes.to_vec()), ChunkSize::MIN, target, mode, &Unwatched)
}

/// A copy of which the source fails in the last third.
fn failing_copy(bytes: &[u8], target: &Path, mode: Mode) -> RestoreError {
    let (source, faults) = FaultySource::new(MemorySource::new(bytes.to_vec()));
    let at = bytes.len() as u64 * 2 / 3;
    faults.fail_in(ByteRange::new(at, at + 1));
    restore(&source, ChunkSize::MIN, target, mode, &Unwatched).unwrap_err()
}

/// The names in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn stored(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn a_new_file_is_whole_private_and_sparse() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    let mut image = vec![0; 8 * MIB + 5];
    image[3 * MIB] = 1;
    image[5 * MIB..5 * MIB + 4096].fill(2);
    let outcome = copy(&image, &target, Mode::New).unwrap();
    assert_eq!(outcome, Outcome { bytes: 8 * MIB as u64 + 5, written: 8192, zeroed: 0, beyond: 0 });
    assert!(fs::read(&target).unwrap() == image);
    assert_eq!(target.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(stored(&target) <= 64 << 10, "{}", stored(&target));
    assert_eq!(names(home.path()), ["disk.img"]);
    for len in [0, 1, 4095, 4096, 4097] {
        copy(&pattern(len), &target, Mode::Replace).unwrap();
        assert!(fs::read(&target).unwrap() == pattern(len), "{len}");
    }
}

#[test]
fn a_file_that_exists_is_replaced_only_when_asked() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    fs::write(&target, "mine").unwrap();
    assert!(matches!(copy(b"new", &target, Mode::New), Err(RestoreError::Exists { .. })));
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    copy(b"new", &target, Mode::Replace).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert_eq!(names(home.path()), ["disk.img"]);
}

#[test]
fn a_failed_restore_to_a_file_leaves_everything_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    let image = pattern(5 * MIB);
    for mode in [Mode::New, Mode::Replace, Mode::InPlace] {
        assert!(matches!(failing_copy(&image, &target, mode), RestoreError::Source(_)), "{mode:?}");
        assert_eq!(names(home.path()), [""; 0], "{mode:?}");
    }
    fs::write(&target, "mine").unwrap();
    assert!(matches!(failing_copy(&image, &target, Mode::Replace), RestoreError::Source(_)));
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    // In place, all was the same up to the error: nothing was changed.
    fs::write(&target, &image).unwrap();
    assert!(matches!(failing_copy(&image, &target, Mode::InPlace), RestoreError::Source(_)));
    assert_eq!(names(home.path()), ["disk.img"]);
}

#[test]
fn what_an_interrupted_restore_has_left_is_replaced_but_nothing_else_is() {
    let home = tempfile::tempdir().unwrap();
    let (target, partial) = (home.path().join("disk.img"), home.path().join("disk.img.partial"));
    fs::write(&partial, "left over, and longer than what comes").unwrap();
    copy(b"new", &target, Mode::New).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert_eq!(names(home.path()), ["disk.img"]);

    fs::write(home.path().join("other"), "other").unwrap();
    symlink("other", &partial).unwrap();
    for mode in [Mode::Replace, Mode::InPlace] {
        assert!(matches!(copy(b"newer", &target, mode), Err(RestoreError::NotAFile { .. })));
    }
    fs::remove_file(&partial).unwrap();
    fs::create_dir(&partial).unwrap();
    assert!(matches!(copy(b"newer", &target, Mode::Replace), Err(RestoreError::NotAFile { .. })));
    assert_eq!(fs::read(home.path().join("other")).unwrap(), b"other");
    assert_eq!(fs::read(&target).unwrap(), b"new");
}

#[test]
fn two_restores_to_one_file_do_not_take_each_others() {
    let home = tempfile::tempdir().unwrap();
    let (target, partial) = (home.path().join("disk.img"), home.path().join("disk.img.partial"));
    let other = File::create(&partial).unwrap();
    other.lock().unwrap();
    for mode in [Mode::New, Mode::Replace, Mode::InPlace] {
        assert!(matches!(copy(b"new", &target, mode), Err(RestoreError::Busy { .. })), "{mode:?}");
    }
    assert_eq!(names(home.path()), ["disk.img.partial"]);
    drop(other);
    copy(b"new", &target, Mode::New).unwrap();
}

#[test]
fn in_place_only_what_differs_is_written() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    let mut image = pattern(6 * MIB + 100);
    fs::write(&target, &image).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    let inode = target.metadata().unwrap().ino();
    image[2 * MIB + 5] ^= 1;
    image[4 * MIB..4 * MIB + 8192].fill(0);
    let outcome = copy(&image, &target, Mode::InPlace).unwrap();
    assert_eq!(outcome.written, 4096);
    assert!(fs::read(&target).unwrap() == image);
    let metadata = target.metadata().unwrap();
    assert_eq!((metadata.ino(), metadata.permissions().mode() & 0o777), (inode, 0o640));
    // Every fifth block of the pattern is zero, and was stored.
    assert!(stored(&target) < 5 * MIB as u64, "{}", stored(&target));
    assert_eq!(names(home.path()), ["disk.img"]);
    let outcome = copy(&image, &target, Mode::InPlace).unwrap();
    assert_eq!((outcome.written, outcome.zeroed), (0, 0));
}

#[test]
fn in_place_a_file_gets_the_length_of_the_image() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    let image = pattern(2 * MIB + 77);
    for old in [0, 1, 4096, 2 * MIB, 2 * MIB + 76, 3 * MIB] {
        fs::write(&target, vec![9; old]).unwrap();
        copy(&image, &target, Mode::InPlace).unwrap();
        assert!(fs::read(&target).unwrap() == image, "{old}");
    }
    fs::remove_file(&target).unwrap();
    copy(&image, &target, Mode::InPlace).unwrap();
    assert!(fs::read(&target).unwrap() == image);
}

#[test]
fn in_place_an_interrupted_restore_has_another_name_and_is_resumed() {
    let home = tempfile::tempdir().unwrap();
    let (target, partial) = (home.path().join("disk.img"), home.path().join("disk.img.partial"));
    let image = pattern(6 * MIB);
    fs::write(&target, vec![9; 6 * MIB]).unwrap();
    let error = failing_copy(&image, &target, Mode::InPlace);
    assert!(matches!(&error, RestoreError::Unfinished { path, .. } if path.ends_with("disk.img.partial")));
    assert_eq!(names(home.path()), ["disk.img.partial"]);
    // Even one that fails before it changes anything: the file is no whole one.
    let (source, faults) = FaultySource::new(MemorySource::new(image.clone()));
    faults.vanish();
    let again = restore(&source, ChunkSize::MIN, &target, Mode::InPlace, &Unwatched);
    assert!(matches!(again, Err(RestoreError::Unfinished { .. })));
    assert_eq!(names(home.path()), ["disk.img.partial"]);
    assert!(partial.exists());

    let outcome = copy(&image, &target, Mode::InPlace).unwrap();
    assert!(outcome.written < 5 * MIB as u64, "it began afresh: {}", outcome.written);
    assert!(fs::read(&target).unwrap() == image);
    assert_eq!(names(home.path()), ["disk.img"]);
}

#[test]
fn a_file_with_several_names_is_not_rewritten_in_place() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    fs::write(&target, "old").unwrap();
    fs::hard_link(&target, home.path().join("daily.1")).unwrap();
    assert!(matches!(copy(b"new", &target, Mode::InPlace), Err(RestoreError::HardLinked { names: 2, .. })));
    copy(b"new", &target, Mode::Replace).unwrap();
    assert_eq!(fs::read(home.path().join("daily.1")).unwrap(), b"old");
    assert_eq!(fs::read(&target).unwrap(), b"new");
}

#[test]
fn a_panic_leaves_no_file_behind() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    let (source, faults) = FaultySource::new(MemorySource::new(pattern(4 * MIB)));
    faults.panic_on_read();
    let restored = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        restore(&source, ChunkSize::MIN, &target, Mode::New, &Unwatched)
    }));
    assert!(restored.is_err());
    assert_eq!(names(home.path()), [""; 0]);
}

#[test]
fn a_restore_that_is_stopped_leaves_nothing_behind() {
    struct Stopped;
    impl Watch for Stopped {
        fn is_stopped(&self) -> bool {
            true
        }
    }
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("disk.img");
    let source = MemorySource::new(pattern(MIB));
    let error = restore(&source, ChunkSize::MIN, &target, Mode::New, &Stopped).unwrap_err();
    assert!(matches!(error, RestoreError::Stopped));
    assert_eq!(names(home.path()), [""; 0]);
}

#[test]
fn what_is_no_target_is_refused() {
    let home = tempfile::tempdir().unwrap();
    symlink("nowhere", home.path().join("dangling")).unwrap();
    for target in [
        home.path().to_owned(),
        home.path().join("dangling"),
        home.path().join("none/disk.img"),
        home.path().join(".."),
        "/dev/null".into(),
        "/dev/no-such-device".into(),
        "/".into(),
        "".into(),
    ] {
        for mode in [Mode::New, Mode::Replace, Mode::InPlace] {
            let error = copy(b"new", &target, mode).unwrap_err();
            assert!(!matches!(error, RestoreError::Unfinished { .. }), "{target:?}: {error}");
        }
    }
    assert_eq!(names(home.path()), ["dangling"]);
}

#[test]
fn a_link_to_a_file_leads_to_the_file() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("real")).unwrap();
    fs::write(home.path().join("real/disk.img"), "old").unwrap();
    symlink("real/disk.img", home.path().join("link")).unwrap();
    for (mode, bytes) in [(Mode::Replace, b"new"), (Mode::InPlace, b"abc")] {
        copy(bytes, &home.path().join("link"), mode).unwrap();
        assert_eq!(fs::read(home.path().join("real/disk.img")).unwrap(), bytes);
    }
    assert_eq!(names(home.path()), ["link", "real"]);
}

#[test]
fn a_damaged_chunk_stops_the_restore_and_is_named() {
    let tree = split(&pattern(3 * MIB), 4096);
    fs::write(tree.chunk(700), [0; 4096]).unwrap();
    let source = ChunksSource::open(&tree.chunks(), Verification::Digests, Known::NOTHING).unwrap();
    let target = tree.home().join("disk.img");
    let error = restore(&source, ChunkSize::MIN, &target, Mode::New, &Unwatched).unwrap_err();
    assert!(error.to_string().ends_with("vda/00/00/00/00/00/00/02/bc: stale or damaged: its digest differs"));
    assert!(!target.exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn split_then_restore_gives_the_same_file_whatever_was_there(
        len in 0usize..2_000_000, chunk in 1u64..80, holes in prop::collection::vec((0usize..2_000_000, 0usize..900_000), 0..4),
        old in prop::option::of(0usize..2_500_000),
    ) {
        let mut image = pattern(len);
        for (at, hole) in holes {
            image[at.min(len)..(at + hole).min(len)].fill(0);
        }
        let tree = split(&image, chunk * 4096);
        let source = ChunksSource::open(&tree.chunks(), Verification::Digests, Known::NOTHING).unwrap();
        let target = tree.home().join("disk.img");
        if let Some(old) = old {
            fs::write(&target, pattern(old)).unwrap();
        }
        restore(&source, source.geometry().chunk_size(), &target, Mode::InPlace, &Unwatched).unwrap();
        prop_assert!(fs::read(&target).unwrap() == image);
        restore(&source, source.geometry().chunk_size(), &target, Mode::Replace, &Unwatched).unwrap();
        prop_assert!(fs::read(&target).unwrap() == image);
    }
}

/// A loop device over a file of its own; both are gone afterwards.
struct LoopDevice {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl LoopDevice {
    fn new(bytes: &[u8]) -> LoopDevice {
        let file = tempfile::Builder::new().prefix("chunkfs-test-").tempfile().unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        let found = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output().unwrap();
        assert!(found.status.success(), "needs root and loop devices: {found:?}");
        let path = String::from_utf8(found.stdout).unwrap().trim().into();
        LoopDevice { file, path }
    }

    /// What the device holds, past every cache of it.
    fn bytes(&self) -> Vec<u8> {
        File::open(&self.path).unwrap().sync_all().unwrap();
        fs::read(self.file.path()).unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.path).status().unwrap();
    }
}

#[test]
fn root_a_device_holds_the_image_and_keeps_what_is_beyond() {
    let image = pattern(5 * MIB + 100);
    let mut expected = vec![9; 6 * MIB];
    expected[..image.len()].copy_from_slice(&image);
    for mode in [Mode::New, Mode::Replace, Mode::InPlace] {
        let device = LoopDevice::new(&vec![9; 6 * MIB]);
        let outcome = copy(&image, &device.path, mode).unwrap();
        assert_eq!((outcome.bytes, outcome.beyond), (5 * MIB as u64 + 100, MIB as u64 - 100));
        assert!(device.bytes() == expected, "{mode:?}");
        let again = copy(&image, &device.path, Mode::InPlace).unwrap();
        assert_eq!((again.written, again.zeroed), (0, 0));
    }
}

#[test]
fn root_zeros_give_a_devices_blocks_back() {
    let device = LoopDevice::new(&vec![9; 16 * MIB]);
    let mut image = vec![0; 16 * MIB];
    image[..4096].fill(1);
    copy(&image, &device.path, Mode::New).unwrap();
    assert!(device.bytes() == image);
    assert!(stored(device.file.path()) <= 2 * MIB as u64, "{}", stored(device.file.path()));
}

#[test]
fn root_in_place_a_device_changes_only_where_it_differs() {
    let image = pattern(5 * MIB);
    for at in [10, 3 * MIB] {
        let mut old = image.clone();
        old[at] ^= 1;
        let device = LoopDevice::new(&old);
        let outcome = copy(&image, &device.path, Mode::InPlace).unwrap();
        assert!(device.bytes() == image, "{at}");
        // The block, and the first piece, that was held back.
        assert!(outcome.written <= MIB as u64 + 4096, "{}", outcome.written);
    }
}

#[test]
fn root_an_interrupted_restore_leaves_the_first_chunk_of_a_device_zero() {
    let image = pattern(6 * MIB);
    for mode in [Mode::New, Mode::InPlace] {
        let device = LoopDevice::new(&vec![9; 6 * MIB]);
        let error = failing_copy(&image, &device.path, mode);
        assert!(matches!(error, RestoreError::Unfinished { .. }), "{error}");
        assert!(device.bytes()[..MIB].iter().all(|byte| *byte == 0));
        copy(&image, &device.path, Mode::InPlace).unwrap();
        assert!(device.bytes() == image);
    }
}

#[test]
fn root_a_device_is_untouched_when_the_restore_cannot_begin() {
    let old = vec![9; 2 * MIB];
    let device = LoopDevice::new(&old);
    let too_long = copy(&pattern(2 * MIB + 1), &device.path, Mode::New).unwrap_err();
    assert_eq!(
        too_long.to_string(),
        format!("{} has 2097152 bytes, but the image has 2097153", device.path.display())
    );
    let (source, faults) = FaultySource::new(MemorySource::new(pattern(MIB)));
    faults.fail_in(ByteRange::new(0, 1));
    let error = restore(&source, ChunkSize::MIN, &device.path, Mode::New, &Unwatched).unwrap_err();
    assert!(matches!(error, RestoreError::Source(_)));
    assert!(device.bytes() == old);
}

#[test]
fn root_a_device_in_use_is_refused() {
    let device = LoopDevice::new(&vec![0; 8 * MIB]);
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&device.path).status().unwrap().success());
    let mount = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").arg(&device.path).arg(mount.path()).status().unwrap();
    assert!(mounted.success(), "needs root");
    let refused = copy(&pattern(MIB), &device.path, Mode::New);
    assert!(Command::new("umount").arg(mount.path()).status().unwrap().success());
    assert!(matches!(refused, Err(RestoreError::InUse { .. })), "{refused:?}");
}

#[test]
fn root_a_full_file_system_is_an_error_and_left_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let mount =
        |action: &[&str]| Command::new(action[0]).args(&action[1..]).arg(home.path()).status().unwrap();
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=2m", "chunkfs-test"]).success(), "needs root");
    let target = home.path().join("disk.img");
    fs::write(&target, "mine").unwrap();
    let anew = copy(&pattern(4 * MIB), &target, Mode::Replace);
    let after_anew = names(home.path());
    // In place the file may no longer be what it was, so it has lost its name.
    let in_place = copy(&pattern(4 * MIB), &target, Mode::InPlace);
    let after_in_place = names(home.path());
    assert!(mount(&["umount"]).success());
    match anew {
        Err(RestoreError::Target { error, .. }) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    assert_eq!(after_anew, ["disk.img"]);
    assert!(matches!(in_place, Err(RestoreError::Unfinished { .. })), "{in_place:?}");
    assert_eq!(after_in_place, ["disk.img.partial"]);
}
