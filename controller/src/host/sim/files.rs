//! The files of the simulated machine.
//! Every verb is on disk when it returns; `append` alone can be cut off half way.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::core::facts::Fingerprint;
use crate::core::tpm::Found;
use crate::core::units::Bytes;
use crate::host::{Created, Entry, Files, Guard, Removal};

use super::{Guest, Node, Power, SimHost, World};

impl Files for SimHost {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.ask(|world| match world.nodes.get(path) {
            None => Ok(None),
            Some(Node::File(content)) => Ok(Some(content.clone())),
            Some(_) => bail!("{} is not a plain file", path.display()),
        })
    }

    fn entry(&self, path: &Path) -> Result<Entry> {
        self.ask(|world| {
            Ok(match world.nodes.get(path) {
                None => Entry::Absent,
                Some(Node::Dir) => Entry::Directory,
                Some(_) => Entry::Other,
            })
        })
    }

    fn list(&self, dir: &Path) -> Result<Option<Vec<String>>> {
        self.ask(|world| Ok(world.nodes.contains_key(dir).then(|| world.names_in(dir))))
    }

    fn fingerprint(&self, path: &Path) -> Result<Option<Fingerprint>> {
        self.ask(|world| Ok(world.fingerprint(path)))
    }

    fn free(&self, _dir: &Path) -> Result<Bytes> {
        self.ask(|_| Ok(Bytes(1 << 40)))
    }

    fn create(&self, path: &Path, content: &[u8]) -> Result<Created> {
        self.effect("create", |world| {
            if world.nodes.contains_key(path) {
                return Ok(Created::WasThere);
            }
            put(world, path, content)?;
            Ok(Created::Now)
        })
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        self.effect("replace", |world| put(world, path, content))
    }

    fn append(&self, path: &Path, content: &[u8]) -> Result<()> {
        let half = &content[..content.len() / 2];
        self.effect_or_part(
            "append",
            |world| extend(world, path, content),
            |world| {
                // What was to be appended to is there, or there is no part either.
                drop(extend(world, path, half));
            },
        )
    }

    fn copy_file(&self, from: &Path, to: &Path) -> Result<blake3::Hash> {
        self.effect("copy_file", |world| match world.nodes.get(from) {
            Some(Node::File(content)) => put_copy(world, to, content.clone()),
            _ => bail!("{} is not a plain file", from.display()),
        })
    }

    fn bring_to_disk(&self, _paths: &[PathBuf]) -> Result<()> {
        self.effect("bring_to_disk", |_| Ok(()))
    }

    fn look_into(&self, dir: &Path) -> Result<Option<Vec<(String, Found)>>> {
        self.ask(|world| {
            let found = |name: String| match world.nodes.get(&dir.join(&name)) {
                Some(Node::File(content)) => (name, Found::File(Bytes(content.len() as u64))),
                _ => (name, Found::Other("something else".to_owned())),
            };
            let names = world.nodes.contains_key(dir).then(|| world.names_in(dir));
            Ok(names.map(|names| names.into_iter().map(found).collect()))
        })
    }

    fn copy_small(&self, dir: &Path, name: &str, at_most: Bytes, to: &Path) -> Result<blake3::Hash> {
        self.effect("copy_small", |world| match world.nodes.get(&dir.join(name)) {
            Some(Node::File(content)) if content.len() as u64 <= at_most.0 => {
                put_copy(world, to, content.clone())
            }
            _ => bail!("{} is not a small file", dir.join(name).display()),
        })
    }

    fn clone_file(&self, from: &Path, to: &Path) -> Result<()> {
        self.effect("clone_file", |world| {
            let Some(image) = world.image(from).cloned() else { bail!("{} is no image", from.display()) };
            let held = |guest: &Guest| guest.power == Power::Off || guest.suspended;
            let writer = world.guests.values().find(|guest| guest.disks.values().any(|path| path == from));
            if !writer.is_none_or(held) {
                world.violations.push(format!("{} is cloned while its guest writes", from.display()));
            }
            world.nodes.insert(to.to_owned(), Node::Clone(image));
            Ok(())
        })
    }

    fn make_dir(&self, path: &Path) -> Result<Created> {
        self.effect("make_dir", |world| {
            let was_there = world.nodes.contains_key(path);
            world.add_dirs(path);
            Ok(if was_there { Created::WasThere } else { Created::Now })
        })
    }

    fn make_private_dir(&self, path: &Path) -> Result<Created> {
        self.make_dir(path)
    }

    fn remove_file(&self, path: &Path) -> Result<Removal> {
        self.effect("remove_file", |world| match world.nodes.get(path) {
            None => Ok(Removal::AlreadyGone),
            Some(Node::Dir | Node::Image(_)) => bail!("{} must not be removed", path.display()),
            Some(_) => {
                world.nodes.remove(path);
                Ok(Removal::Removed)
            }
        })
    }

    fn remove_dir(&self, path: &Path) -> Result<Removal> {
        self.effect("remove_dir", |world| match world.nodes.get(path) {
            None => Ok(Removal::AlreadyGone),
            Some(Node::Dir) if world.mounts.contains_key(path) => {
                bail!("{} is a mount point", path.display())
            }
            Some(Node::Dir) if !world.names_in(path).is_empty() => bail!("{} is not empty", path.display()),
            Some(Node::Dir) => {
                world.nodes.remove(path);
                Ok(Removal::Removed)
            }
            Some(_) => bail!("{} is not a directory", path.display()),
        })
    }

    fn remove_tree(&self, path: &Path) -> Result<Removal> {
        self.effect("remove_tree", |world| {
            let before = world.nodes.len();
            world.nodes.retain(|node, _| !node.starts_with(path));
            Ok(if world.nodes.len() < before { Removal::Removed } else { Removal::AlreadyGone })
        })
    }

    fn guard(&self, path: &Path) -> Result<Option<Guard>> {
        // Gone with the process, as the kernel does it: the guard itself has nothing to give back before.
        let pid = self.pid;
        self.effect("guard", |world| {
            world.nodes.entry(path.to_owned()).or_insert(Node::File(Vec::new()));
            if world.guards.get(path).is_some_and(|holder| *holder != pid) {
                return Ok(None);
            }
            world.guards.insert(path.to_owned(), pid);
            Ok(Some(Guard::new(())))
        })
    }
}

fn put(world: &mut World, path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().and_then(|dir| world.nodes.get(dir));
    if parent != Some(&Node::Dir) {
        bail!("{} is in no directory", path.display());
    }
    if !matches!(world.nodes.get(path), None | Some(Node::File(_))) {
        bail!("{} is not a plain file", path.display());
    }
    world.nodes.insert(path.to_owned(), Node::File(content.to_vec()));
    Ok(())
}

fn put_copy(world: &mut World, path: &Path, content: Vec<u8>) -> Result<blake3::Hash> {
    put(world, path, &content)?;
    Ok(blake3::hash(&content))
}

fn extend(world: &mut World, path: &Path, content: &[u8]) -> Result<()> {
    match world.nodes.get_mut(path) {
        Some(Node::File(file)) => file.extend_from_slice(content),
        _ => bail!("{} is not there to append to", path.display()),
    }
    Ok(())
}
