//! Method offline: the images of a guest that is shut off, raw ones read directly, others through `qemu-nbd`.
//! Nothing keeps the guest from being started: then the images change and the view's reads fail.

use crate::core::domain::{Format, LeftOut, Sharing};
use crate::core::facts::{Chain, ChainLayer, Storage};
use crate::core::step::{ImageService, Step};
use crate::core::viewspec::{Feed, Method, ShownDisk};

use super::{Case, DiskDecision, Plan, Wanted, candidates};

/// Why this disk cannot be read while its guest is off.
pub(super) fn obstacle(wanted: &Wanted<'_>) -> Option<String> {
    let target = &wanted.disk.target;
    if wanted.disk.sharing == Sharing::Shareable {
        return Some(format!(
            "it is shareable: other guests may write to it: leave it out with --exclude={target}"
        ));
    }
    match &wanted.facts.chain {
        Chain::Known(layers) if layers.iter().any(|layer| layer.storage == Storage::Device) => Some(format!(
            "a block device does not tell when a guest that is started writes to it: start the guest, or leave the \
             disk out with --exclude={target}"
        )),
        Chain::Known(layers) if !layers.is_empty() => None,
        Chain::Known(_) => Some(format!("{} has no image", wanted.disk.source)),
        Chain::Unknown { why } => {
            Some(format!("{why}: start the guest, or leave it out with --exclude={target}"))
        }
    }
}

pub(super) fn plan(case: &Case<'_>, wanted: &[Wanted<'_>], left_out: Vec<LeftOut>) -> Plan {
    let (mut shown, mut services, mut decisions) = (Vec::new(), Vec::new(), Vec::new());
    for disk in wanted {
        let Chain::Known(chain) = &disk.facts.chain else { unreachable!("obstacle() refused it") };
        let target = disk.disk.target.clone();
        let candidates = candidates::by_fingerprint(case, disk);
        decisions.push(DiskDecision { target: target.clone(), what: candidates::describe(&candidates) });
        let feed = feed(case, disk, chain);
        if let Feed::Nbd { socket, .. } = &feed {
            let socket = socket.clone();
            services.push(ImageService { target: target.clone(), socket, chain: chain.clone() });
        }
        shown.push(ShownDisk {
            name: case.names.shown_disk(&target),
            feed,
            capacity: disk.facts.capacity,
            candidates,
            // A bitmap that counts from an earlier generation goes on to hold all that changes after this one.
            checkpoint_after: candidates::usable_base(case, disk)
                .ok()
                .filter(|_| super::wants_checkpoints(case)),
            images: chain.clone(),
            base: super::base(case, &target),
            target,
        });
    }

    let mut steps = super::opening(case);
    steps.extend(services.iter().map(|s| Step::ClaimFile { path: s.socket.clone() }));
    steps.extend(super::spec(case, Method::Offline, shown, &left_out, None));
    steps.extend(services.into_iter().map(Step::ServeImage));
    steps.push(super::start_view(case));
    let generation = super::next_generation(case);
    let notes =
        vec!["a guest that is started while its view is mounted makes the view's reads fail".to_owned()];
    Plan {
        domain: case.domain.id.clone(),
        method: Method::Offline,
        generation,
        disks: decisions,
        left_out,
        notes,
        steps,
    }
}

fn feed(case: &Case<'_>, disk: &Wanted<'_>, chain: &[ChainLayer]) -> Feed {
    match chain {
        [only] if only.format == Format::Raw => Feed::Image { path: only.path.clone() },
        _ => Feed::Nbd { socket: case.names.image_socket(&disk.disk.target), export: String::new() },
    }
}
