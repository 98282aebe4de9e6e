//! An index with a flipped bit anywhere: an error, or exactly the right stamps; never a wrong one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tests::image::noise;
use tests::metadata::{Shown, shown, tree};
use tests::{Home, Image};

/// With `disk.img` and an index of three generations, old enough for views that follow at once.
fn home() -> Home {
    let home = Home::new("damaged");
    let image = Image::full(&home.path("disk.img"), 600 * 4096);
    image.write(300 * 4096, &vec![0; 100 * 4096]);
    for changed in [&[][..], &[3, 299], &[599]] {
        changed.iter().for_each(|number| image.write(number * 4096, &noise(number + 7000, 50)));
        home.mount("--chunk-size 4096 --name vda --index i disk.img");
        home.unmount();
    }
    std::thread::sleep(std::time::Duration::from_secs(7));
    home.mount("--chunk-size 4096 --name vda --index i disk.img");
    home.unmount();
    std::thread::sleep(std::time::Duration::from_secs(7));
    home
}

/// Which of what can be seen is not as it should be. Times of directories and of lists of digests are left
/// out: they come from columns of the index that have no checksum, so that a flipped bit there shows.
fn wrong(root: &Path, truth: &BTreeMap<PathBuf, Shown>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, expected) in truth {
        if rustix::fs::lstat(root.join(path)).is_ok() {
            let mut found = shown(root.join(path));
            if found.mode & 0o170000 == 0o040000 || path.starts_with("vda.b3") {
                found.mtime = expected.mtime;
            }
            if found != *expected {
                wrong.push(format!("{}: {found:?} instead of {expected:?}", path.display()));
            }
        }
    }
    wrong
}

#[test]
fn fuse_a_flipped_bit_anywhere_in_an_index_is_an_error_or_changes_nothing() {
    let home = home();
    home.run("cp i truth").ok();
    home.mount("--chunk-size 4096 --name vda --index truth disk.img");
    let truth = tree(&home.path("mnt"));
    home.unmount();
    // 600 chunks in 3 leaves below 7 directories, 3 lists of digests below 7, and the root of it all.
    assert_eq!(truth.len(), 600 + 3 + 7 + 3 + 7 + 1);
    let whole = std::fs::read(home.path("i")).unwrap();
    let pages = (0..whole.len()).step_by(4096).flat_map(|page| page..page + 16);
    let all: Vec<usize> = (0..100).chain(pages).chain((0..whole.len()).step_by(211)).collect();
    let (mut refused, mut failures) = (0, Vec::new());
    let results: Vec<(usize, bool, Vec<String>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let (home, all, whole, truth) = (&home, &all, &whole, &truth);
                scope.spawn(move || {
                    let (index, point) = (format!("damaged{worker}"), format!("point{worker}"));
                    std::fs::create_dir(home.path(&point)).unwrap();
                    let mine = all.iter().skip(worker).step_by(2);
                    mine.map(|offset| {
                        let mut bytes = whole.clone();
                        bytes[*offset] ^= 1 << (offset % 7);
                        for suffix in ["", "-wal", "-shm", "-journal"] {
                            let _ = std::fs::remove_file(home.path(format!("{index}{suffix}")));
                        }
                        std::fs::write(home.path(&index), bytes).unwrap();
                        let mounted = home.run(&format!(
                            "chunkfs mount --chunk-size 4096 --name vda --index {index} disk.img {point}"
                        ));
                        if mounted.status != 0 {
                            mounted.failed(1, &["damaged"]);
                            return (*offset, true, Vec::new());
                        }
                        let found = wrong(&home.path(&point), truth);
                        home.run(&format!("chunkfs umount {point}"));
                        assert!(!home.is_mounted(&point), "offset {offset}");
                        (*offset, false, found)
                    })
                    .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    for (offset, error, found) in results {
        refused += u32::from(error);
        if !found.is_empty() {
            failures.push(format!("offset {offset}: {} wrong, first {}", found.len(), found[0]));
        }
    }
    assert!(refused > 50, "only {refused} were refused");
    assert!(failures.is_empty(), "{} of {} offsets:\n{}", failures.len(), all.len(), failures.join("\n"));
}

#[test]
fn fuse_an_index_that_was_cut_off_or_has_holes_is_an_error_or_tells_the_same() {
    let home = home();
    let whole = std::fs::read(home.path("i")).unwrap();
    let shown = home.run("chunkfs index check i").ok();
    let cut = [1, 99, 100, 4095, 4096, 8192, whole.len() / 2, whole.len() - 4096, whole.len() - 1];
    let cuts = cut.iter().map(|length| (format!("cut to {length}"), whole[..*length].to_vec()));
    let holes = (0..whole.len() / 4096).map(|page| {
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0);
        (format!("page {page}"), bytes)
    });
    for (what, bytes) in cuts.chain(holes) {
        std::fs::write(home.path("cut"), bytes).unwrap();
        let checked = home.run("chunkfs index check cut");
        let same = checked.status == 0 && checked.stdout == shown;
        assert!(same || (checked.status == 1 && checked.stderr.contains("cut: ")), "{what}: {checked:?}");
        if !same {
            let mounted = home.run("chunkfs mount --chunk-size 4096 --name vda --index cut disk.img mnt");
            assert!(mounted.status == 1 || home.run("chunkfs umount mnt").status == 0, "{what}");
        }
        for suffix in ["-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(home.path(format!("cut{suffix}")));
        }
    }
}
