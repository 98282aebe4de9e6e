//! The crash sweep of restoring: cut off before any change that it makes, what is owed is taken back and a repeat succeeds.
//! Files are real, libvirt is a map in memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use chunkfs::watch::Unwatched;

use super::*;
use crate::core::domain::{Domain, DomainId};
use crate::core::facts::{Definition, Fingerprint};
use crate::core::names::VmName;
use crate::core::restore::{Activity, Existing, InUse, Known, MacWish, Then, Writing};
use crate::core::rewrite::NewDisk;
use crate::core::tpm::Found;
use crate::host::local::OnThisMachine;
use crate::host::{Created, Entry, Removal};

/// Real files, behind which the power may go.
struct Here;
impl OnThisMachine for Here {}

/// A host that stops at its n-th change: as if it had been killed, what is undone then is not done either.
struct Fragile {
    domains: RefCell<BTreeMap<String, String>>,
    changes_left: Cell<usize>,
    changes: Cell<usize>,
}

impl Fragile {
    fn new() -> Fragile {
        Fragile { domains: RefCell::default(), changes_left: Cell::new(usize::MAX), changes: Cell::new(0) }
    }

    fn change(&self) -> Result<()> {
        let left = self.changes_left.get();
        if left == 0 {
            bail!("the machine is off");
        }
        self.changes_left.set(left - 1);
        self.changes.set(self.changes.get() + 1);
        Ok(())
    }

    fn known(&self, wanted: impl Fn(&DomainId) -> bool) -> Option<Known> {
        let domains = self.domains.borrow();
        domains.values().find_map(|xml| {
            let id = Domain::parse(xml).unwrap().id;
            let activity = Activity::Inactive;
            let persistence = Definition::Persistent;
            wanted(&id).then(|| Known { id, activity, persistence, definition: xml.clone() })
        })
    }
}

impl Definitions for Fragile {
    fn by_name(&self, name: &str) -> Result<Option<Known>> {
        Ok(self.known(|id| id.name.as_str() == name))
    }

    fn by_uuid(&self, uuid: &Uuid) -> Result<Option<Known>> {
        Ok(self.known(|id| id.uuid == *uuid))
    }

    fn images_in_use(&self) -> Result<Vec<InUse>> {
        Ok(Vec::new())
    }

    fn define(&self, xml: &str) -> Result<()> {
        self.change()?;
        self.domains.borrow_mut().insert(Domain::parse(xml)?.id.uuid.to_string(), xml.to_owned());
        Ok(())
    }

    fn undefine(&self, id: &DomainId) -> Result<Removal> {
        self.change()?;
        let removed = self.domains.borrow_mut().remove(id.uuid.as_str());
        Ok(if removed.is_some() { Removal::Removed } else { Removal::AlreadyGone })
    }

    fn redefine_snapshot(&self, _: &DomainId, _: &str) -> Result<()> {
        self.change()
    }

    fn begin(&self, _: &DomainId) -> Result<()> {
        self.change()
    }

    fn resume_from(&self, _: &Path, _: &BTreeMap<Target, NewDisk>) -> Result<()> {
        self.change()
    }

    fn run(&self, _: &str) -> Result<()> {
        bail!("nothing runs here")
    }

    fn destroy(&self, _: &DomainId) -> Result<Removal> {
        Ok(Removal::AlreadyGone)
    }

    fn pull(&self, _: &DomainId, _: &Target, _: &dyn Fn() -> bool) -> Result<()> {
        bail!("nothing runs here")
    }

    fn agent_answers(&self, _: &DomainId) -> Result<bool> {
        Ok(false)
    }

    fn qemu_owner(&self) -> Result<(u32, u32)> {
        Ok((0, 0))
    }

    fn tpm_owner(&self) -> Result<(u32, u32)> {
        Ok((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()))
    }
}

/// Reading costs nothing.
impl Files for Fragile {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        Here.read(path)
    }
    fn entry(&self, path: &Path) -> Result<Entry> {
        Here.entry(path)
    }
    fn list(&self, dir: &Path) -> Result<Option<Vec<String>>> {
        Here.list(dir)
    }
    fn fingerprint(&self, path: &Path) -> Result<Option<Fingerprint>> {
        Here.fingerprint(path)
    }
    fn free(&self, dir: &Path) -> Result<Bytes> {
        Here.free(dir)
    }
    fn look_into(&self, dir: &Path) -> Result<Option<Vec<(String, Found)>>> {
        Here.look_into(dir)
    }
    fn copy_small(&self, dir: &Path, name: &str, at_most: Bytes, to: &Path) -> Result<blake3::Hash> {
        self.change()?;
        Here.copy_small(dir, name, at_most, to)
    }
    fn create(&self, path: &Path, content: &[u8]) -> Result<Created> {
        self.change()?;
        Here.create(path, content)
    }
    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        self.change()?;
        Here.replace(path, content)
    }
    /// Cut off in the middle, a part of the line is there.
    fn append(&self, path: &Path, content: &[u8]) -> Result<()> {
        if let Err(off) = self.change() {
            Here.append(path, &content[..content.len() / 2])?;
            return Err(off);
        }
        Here.append(path, content)
    }
    fn copy_file(&self, from: &Path, to: &Path) -> Result<blake3::Hash> {
        self.change()?;
        Here.copy_file(from, to)
    }
    fn bring_to_disk(&self, paths: &[PathBuf]) -> Result<()> {
        self.change()?;
        Here.bring_to_disk(paths)
    }
    fn clone_file(&self, from: &Path, to: &Path) -> Result<()> {
        self.change()?;
        Here.clone_file(from, to)
    }
    fn make_dir(&self, path: &Path) -> Result<Created> {
        self.change()?;
        Here.make_dir(path)
    }
    fn remove_file(&self, path: &Path) -> Result<Removal> {
        self.change()?;
        Here.remove_file(path)
    }
    fn make_private_dir(&self, path: &Path) -> Result<Created> {
        self.change()?;
        Here.make_private_dir(path)
    }
    fn remove_tree(&self, path: &Path) -> Result<Removal> {
        self.change()?;
        Here.remove_tree(path)
    }
    fn remove_dir(&self, path: &Path) -> Result<Removal> {
        self.change()?;
        Here.remove_dir(path)
    }
    fn guard(&self, path: &Path) -> Result<Option<Guard>> {
        Here.guard(path)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tpm {
    None,
    /// The guest has one, with a state that is not there any more.
    Gone,
    There,
}

/// A dump of two raw disks and the UEFI variables of a guest whose own images lie in `images`, its TPM in `tpm`.
fn world_with(home: &Path, tpm: Tpm) -> String {
    let xml = world(home);
    if tpm == Tpm::None {
        return xml;
    }
    let source = format!("<source type='dir' path='{}'/>", home.join("tpm").display());
    let device = format!("<tpm><backend type='emulator' version='2.0'>{source}</backend></tpm></devices>");
    let xml = xml.replace("</devices>", &device);
    fs::write(home.join("dump/mail01.xml"), &xml).unwrap();
    fs::create_dir(home.join("dump/mail01.tpm")).unwrap();
    fs::write(home.join("dump/mail01.tpm/tpm2-00.permall"), "new state").unwrap();
    if tpm == Tpm::There {
        fs::create_dir(home.join("tpm")).unwrap();
        fs::write(home.join("tpm/tpm2-00.permall"), "old state").unwrap();
    }
    xml
}

/// The same without a TPM.
fn world(home: &Path) -> String {
    for dir in ["dump", "images", "to", "state"] {
        fs::create_dir(home.join(dir)).unwrap();
    }
    let images = home.join("images");
    let disk = |letter: char| {
        format!(
            "<disk type='file'><driver type='raw'/><source file='{}'/><target dev='vd{letter}'/></disk>",
            images.join(format!("{letter}.img")).display()
        )
    };
    let xml = format!(
        "<domain type='kvm'><name>mail01</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><memory>1</memory>\
         <os><nvram>{}</nvram></os><devices>{}{}</devices></domain>",
        images.join("vars.fd").display(),
        disk('a'),
        disk('b')
    );
    fs::write(home.join("dump/mail01.xml"), &xml).unwrap();
    fs::write(home.join("dump/mail01.nvram"), "new variables").unwrap();
    for letter in ['a', 'b'] {
        fs::write(home.join(format!("dump/mail01_vd{letter}.img")), vec![letter as u8; 10_000]).unwrap();
        fs::write(images.join(format!("{letter}.img")), "what was there").unwrap();
    }
    fs::write(images.join("vars.fd"), "old variables").unwrap();
    xml
}

fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(tree(&path)),
            false => drop(files.insert(path.clone(), fs::read(path).unwrap())),
        }
    }
    files
}

fn request(home: &Path, wish: Wish) -> Request {
    Request {
        from: home.join("dump"),
        vm: None,
        wish,
        verification: Verification::Before,
        places: Places {
            backup_dir: home.to_owned(),
            lock_dir: home.to_owned(),
            state_dir: home.join("state"),
        },
        chunkfs: "chunkfs".into(),
    }
}

fn own_place() -> Wish {
    Wish {
        name: None,
        to: None,
        disks: BTreeMap::new(),
        exclude: BTreeSet::new(),
        format: None,
        writing: Writing::Whole,
        existing: Existing::Replaceable,
        macs: MacWish::ByName,
        then: Then::Define,
    }
}

#[test]
fn a_restore_that_is_cut_off_before_any_change_is_taken_back_or_kept_and_a_repeat_succeeds() {
    let mut beside_was_cut_off = 0;
    for (beside, tpm) in [(true, Tpm::None), (false, Tpm::Gone), (false, Tpm::There)] {
        for crash_at in 0.. {
            let home = tempfile::tempdir().unwrap();
            let xml = world_with(home.path(), tpm);
            let host = Fragile::new();
            let definition = xml.replace("<memory>1<", "<memory>2<");
            if !beside {
                host.domains
                    .borrow_mut()
                    .insert("c7a5fdbd-edaf-9455-926a-d65c16db1809".to_owned(), definition.clone());
            }
            let wish = match beside {
                true => Wish {
                    name: Some(VmName::new("copy").unwrap()),
                    to: Some(home.path().join("to")),
                    ..own_place()
                },
                false => own_place(),
            };
            let request = request(home.path(), wish);
            let before = (tree(&home.path().join("images")), host.domains.borrow().clone());

            host.changes_left.set(crash_at);
            let cut_off = restore(&host, &request, &Unwatched);
            host.changes_left.set(usize::MAX);
            if cut_off.is_ok() {
                assert!(crash_at > 12, "only {crash_at} changes");
                beside_was_cut_off += usize::from(beside) * crash_at;
                break;
            }
            let state = || fs::read(home.path().join("tpm/tpm2-00.permall")).unwrap();
            if tpm == Tpm::There {
                // Under its name there is always one of the two.
                assert!([&b"old state"[..], b"new state"].contains(&&*state()), "crash at {crash_at}");
            }
            // A domain that is defined as it should be has all of its files.
            let defined: Vec<_> = host.domains.borrow().values().cloned().collect();
            for xml in defined.iter().filter(|xml| **xml != definition) {
                for disk in Domain::parse(xml).unwrap().disks {
                    let crate::core::domain::Source::File(path) = disk.source else { panic!("{xml}") };
                    assert_eq!(
                        fs::read(&path).unwrap().len(),
                        10_000,
                        "crash at {crash_at}: {}",
                        path.display()
                    );
                }
            }
            if crash_at % 2 == 1 {
                let name = VmName::new(if beside { "copy" } else { "mail01" }).unwrap();
                let journal = home.path().join(format!("state/{name}/restore"));
                let was_kept = fs::read_to_string(&journal).unwrap_or_default().contains("kept");
                let owed = underway(&host, &request.places, &name).unwrap();
                assert_eq!(owed.as_ref().map(|owed| owed.goes_on), journal.exists().then_some(false));
                clear(&host, &Names::new(&request.places, &name)).unwrap();
                assert!(!journal.exists());
                let now = (tree(&home.path().join("images")), host.domains.borrow().clone());
                assert!(was_kept || now == before, "crash at {crash_at}: {:?} {:?}", now.0.keys(), now.1);
            }
            let again = restore(&host, &request, &Unwatched);
            let was_done =
                again.as_ref().is_err_and(|failure| failure.story.contains("there is a domain copy already"));
            assert!(again.is_ok() || was_done, "crash at {crash_at}: {}", again.unwrap_err());
            let dir = home.path().join(if beside { "to" } else { "images" });
            let restored = tree(&dir);
            assert!(
                restored.values().filter(|bytes| bytes.len() == 10_000).count() == 2,
                "crash at {crash_at}"
            );
            let partial = |path: &PathBuf| path.to_string_lossy().contains(".partial");
            assert!(!restored.keys().any(partial), "crash at {crash_at}: {:?}", restored.keys());
            assert!(!home.path().join("state/copy/restore").exists());
            assert!(!home.path().join("state/mail01/restore").exists());
            if tpm != Tpm::None {
                assert_eq!(state(), b"new state", "crash at {crash_at}");
                assert_eq!(tree(&home.path().join("tpm")).len(), 1, "crash at {crash_at}");
            }
            let images = tree(&home.path().join("images"));
            if beside {
                let own: BTreeMap<_, _> =
                    images.into_iter().filter(|(path, _)| !path.ends_with("copy_VARS.fd")).collect();
                assert_eq!((own, host.domains.borrow().len()), (before.0, 1), "crash at {crash_at}");
            } else {
                assert_eq!(images.len(), 3, "crash at {crash_at}");
                assert_eq!(host.domains.borrow().values().next(), Some(&xml), "crash at {crash_at}");
            }
        }
    }
    assert!(beside_was_cut_off > 0);
}

#[test]
fn what_fails_is_taken_back_to_the_last_byte() {
    let home = tempfile::tempdir().unwrap();
    world_with(home.path(), Tpm::Gone);
    let host = Fragile::new();
    let before = tree(&home.path().join("images"));
    // The second disk cannot be made, and what is in its way cannot be removed: the rest is undone all the same.
    let wish =
        Wish { disks: [(Target::new("vdb").unwrap(), home.path().join("to/b"))].into(), ..own_place() };
    fs::create_dir(home.path().join("to/b.partial")).unwrap();
    let failure = restore(&host, &request(home.path(), wish), &Unwatched).unwrap_err();
    assert_eq!(failure.exit_status, 3, "{failure}");
    assert_eq!(tree(&home.path().join("images")), before, "{failure}");
    assert!(!home.path().join("tpm").exists());
    assert!(host.domains.borrow().is_empty());
}

fn names(home: &Path) -> Names {
    Names::new(&request(home, own_place()).places, &VmName::new("mail01").unwrap())
}

/// Cut off before it is defined: the new files have their names, the old ones are called `.partial`.
fn cut_off_with_its_names(host: &Fragile, home: &Path) {
    let images = home.join("images");
    for crash_at in 0.. {
        host.changes_left.set(crash_at);
        restore(host, &request(home, own_place()), &Unwatched).unwrap_err();
        host.changes_left.set(usize::MAX);
        if fs::read(images.join("a.img")).is_ok_and(|bytes| bytes.len() == 10_000) {
            break;
        }
        clear(host, &names(home)).unwrap();
    }
    assert_eq!(fs::read(images.join("a.img.partial")).unwrap(), b"what was there");
}

#[test]
fn what_was_used_since_it_has_its_name_is_not_taken_from_there() {
    let home = tempfile::tempdir().unwrap();
    world(home.path());
    let host = Fragile::new();
    cut_off_with_its_names(&host, home.path());
    // Its guest was started, wrote, and was shut off.
    let image = fs::OpenOptions::new().write(true).open(home.path().join("images/a.img")).unwrap();
    image.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
    let before = tree(home.path());
    let failure = restore(&host, &request(home.path(), own_place()), &Unwatched).unwrap_err();
    assert_eq!(failure.exit_status, 3, "{failure}");
    assert!(failure.story.contains("a.img was used since"), "{failure}");
    assert_eq!(tree(home.path()), before);
}

#[test]
fn what_was_replaced_is_put_back_after_a_reboot_by_which_file_systems_have_other_numbers() {
    let home = tempfile::tempdir().unwrap();
    world(home.path());
    let before = tree(&home.path().join("images"));
    let host = Fragile::new();
    cut_off_with_its_names(&host, home.path());
    let journal = names(home.path()).home().join("restore");
    let text = fs::read_to_string(&journal).unwrap();
    assert!(text.contains("\"device\":"), "{text}");
    fs::write(&journal, text.replace("\"device\":", "\"device\":9")).unwrap();
    // Where they are is not mounted yet: nothing is forgotten.
    let (images, away) = (home.path().join("images"), home.path().join("away"));
    fs::rename(&images, &away).unwrap();
    fs::create_dir(&images).unwrap();
    let failure = clear(&host, &names(home.path())).unwrap_err();
    assert_eq!(failure.exit_status, 3, "{failure}");
    fs::remove_dir(&images).unwrap();
    fs::rename(&away, &images).unwrap();

    clear(&host, &names(home.path())).unwrap();
    assert_eq!(tree(&images), before);
    assert!(!journal.exists());
}

#[test]
fn what_was_replaced_is_never_removed_when_it_could_not_be_put_back() {
    let home = tempfile::tempdir().unwrap();
    world(home.path());
    let host = Fragile::new();
    cut_off_with_its_names(&host, home.path());
    let images = home.path().join("images");
    let old = |name: &str| fs::read(images.join(name)).ok();
    // Somebody tidies up by hand.
    fs::remove_file(images.join("a.img")).unwrap();
    let failure = restore(&host, &request(home.path(), own_place()), &Unwatched).unwrap_err();
    assert_eq!(failure.exit_status, 3, "{failure}");
    assert!(failure.story.contains("it is what was replaced"), "{failure}");
    assert_eq!(old("a.img.partial").unwrap(), b"what was there");
}
