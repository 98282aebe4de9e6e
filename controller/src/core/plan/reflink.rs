//! Method reflink: each image is cloned by sharing its blocks, on file systems that can, while the guest is suspended for
//! that moment; the clones are read. Cleanup removes them.

use std::collections::BTreeMap;

use crate::core::domain::{Sharing, Source};
use crate::core::facts::{Chain, Reflink};
use crate::core::names::clone_of;
use crate::core::step::{Step, Undo};

use super::{Case, PointInTime, Wanted, hold, offline};

/// Works for every guest, also one that is paused or shut off.
pub(super) fn unfit(_case: &Case<'_>) -> Option<String> {
    None
}

/// Why this disk's image cannot be cloned.
pub(super) fn obstacle(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let disk = wanted.disk;
    let Source::File(_) = &disk.source else {
        return Some(format!("{} is no image file, which could be cloned", disk.source));
    };
    if disk.sharing == Sharing::Shareable {
        return Some("it is shareable: writes of other guests break the point in time".to_owned());
    }
    match &wanted.facts.reflink {
        Reflink::Impossible { why } => Some(why.clone()),
        Reflink::Possible => offline::unreadable(case, wanted),
    }
}

pub(super) fn point(case: &Case<'_>, wanted: &[Wanted<'_>]) -> PointInTime {
    let (mut claims, mut clones, mut images) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut originals = Vec::new();
    for disk in wanted {
        let Chain::Known(chain) = &disk.facts.chain else { unreachable!("obstacle() refused it") };
        let from = chain[0].path.clone();
        let to = clone_of(&from, case.job);
        images.insert(disk.disk.target.clone(), to.clone());
        claims.push(Step::ClaimFile { path: to.clone() });
        originals.push(from.clone());
        clones.push(Step::CloneFile { from, to });
    }
    let (disks, services) = offline::shown(case, wanted, offline::Read::Instead(&images));
    claims.extend(services.iter().map(|service| Step::ClaimFile { path: service.socket.clone() }));
    let mut release = offline::stops(&services);
    for (disk, clone) in wanted.iter().zip(&clones) {
        let Step::CloneFile { to, .. } = clone else { unreachable!("they are all clones") };
        release.entry(disk.disk.target.clone()).or_default().push(Undo::RemoveFile { path: to.clone() });
    }
    // A file system brings a file to the disk before it shares its blocks.
    let mut take = vec![Step::BringToDisk { paths: originals }];
    take.extend(hold::suspended(case, clones));
    take.extend(services.into_iter().map(Step::ServeImage));
    PointInTime { disks, notes: hold::notes(case), room: None, checkpoint: None, claims, take, release }
}
