//! A copy of every disk as of the point in time, in one directory; then all else is taken back at once.
//! Each disk's file has its name only when it is whole, and the list of digests is there only when all of them are.

use crate::core::compression::Compression;
use crate::core::dumpcmd::{DISK_VARIABLE, DumpCommandError, VM_VARIABLE};
use crate::core::names::{Target, partial_of};
use crate::core::options::{Dump, DumpForm};
use crate::core::step::{CopyRequest, CopyTo, DumpRecord, Step};
use crate::core::units::Generation;
use crate::core::viewspec::ShownDisk;

use super::{
    Case, DiskDecision, Plan, PointInTime, Reason, Refusal, before_it_goes_on, choose, copy_nvram, copy_tpm,
    point_in_time,
};

/// The plan that dumps a VM's disks to `B/<vm>`.
pub fn dump(case: Case<'_>, options: &Dump) -> Result<Plan, Refusal> {
    let choice = choose::choose(&case)?;
    let point = point_in_time(&case, &choice);
    let refused = |error: DumpCommandError| Refusal {
        domain: case.domain.id.clone(),
        reasons: vec![Reason { target: None, why: error.to_string() }],
    };
    let copies = point.disks.iter().map(|disk| copy(&case, options, &point, disk));
    let copies = copies.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let decisions =
        copies.iter().map(|copy| DiskDecision { target: copy.target.clone(), what: copy.to_string() });
    let decisions = decisions.collect();

    let names = case.names;
    let dir = names.dump_dir();
    let mut steps = vec![
        Step::MakeDir { path: names.socket_dir() },
        Step::ClaimFile { path: names.dump_record() },
        Step::MakePrivateDir { path: dir.clone() },
    ];
    let mut record = DumpRecord {
        names: vec![names.shown_xml()],
        digests: names.dump_digests(),
        record: Some(names.dump_record()),
        manifest: None,
        dir: dir.clone(),
    };
    record.names.extend(copies.iter().filter_map(|copy| Some(file_of(copy)?.to_owned())));
    record.names.push(record.digests.clone());
    for name in record.names.iter().flat_map(|name| [partial_of(name), name.clone()]) {
        steps.push(Step::ClaimFile { path: dir.join(name) });
    }
    let xml = Step::WriteFile { path: dir.join(names.shown_xml()), content: case.definition_xml.to_owned() };
    steps.extend(point.claims);
    let nvram = copy_nvram(&case, &dir.join(names.shown_nvram()));
    record.names.extend(nvram.iter().map(|_| names.shown_nvram()));
    let tpm_dir = dir.join(names.shown_tpm());
    if let Some(state) = case.facts.tpm.state() {
        steps.push(Step::MakePrivateDir { path: tpm_dir.clone() });
        record.names.extend(state.names().map(|name| format!("{}/{name}", names.shown_tpm())));
    }
    steps.extend(before_it_goes_on(point.take, nvram.into_iter().chain(copy_tpm(&case, &tpm_dir))));
    steps.push(xml);
    for copy in copies {
        let release = point.release.get(&copy.target).cloned().unwrap_or_default();
        steps.push(Step::CopyDisk(Box::new(copy)));
        steps.extend(release.into_iter().map(Step::Release));
    }
    steps.push(Step::KeepDump(record));
    let (method, left_out) = (choice.method, choice.left_out);
    let notes = choice.notes.into_iter().chain(point.notes).chain(case.facts.tpm.note()).collect();
    let (domain, generation) = (case.domain.id.clone(), Generation::NONE);
    Ok(Plan { domain, method, generation, disks: decisions, left_out, notes, steps })
}

fn copy(
    case: &Case<'_>,
    options: &Dump,
    point: &PointInTime,
    disk: &ShownDisk,
) -> Result<CopyRequest, DumpCommandError> {
    let (names, dir) = (case.names, case.names.dump_dir());
    let image =
        |compression: Compression| names.dump_file(&disk.target, &format!(".img{}", compression.extension()));
    let memory = disk.name == names.shown_state();
    let to = match &options.form {
        _ if memory => CopyTo::Image { dir, name: names.shown_state(), compression: Compression::None },
        DumpForm::Image(compression) => {
            CopyTo::Image { dir, name: image(*compression), compression: *compression }
        }
        DumpForm::Qcow2(clusters) => {
            CopyTo::Qcow2 { dir, name: names.dump_file(&disk.target, ".qcow2"), clusters: *clusters }
        }
        DumpForm::Piped(command, compression) => CopyTo::Program {
            words: command.words(names.vm(), &disk.target)?,
            environment: environment(case, &disk.target),
            compression: *compression,
        },
    };
    // The digest is of what the guest sees, but for an image whose bytes are qemu-img's.
    let digest_of = match &to {
        CopyTo::Qcow2 { name, .. } => name.clone(),
        _ if memory => names.shown_state(),
        _ => image(Compression::None),
    };
    let (target, feed, pace) = (disk.target.clone(), disk.feed.clone(), options.pace);
    Ok(CopyRequest { target, feed, to, pace, room: point.room.clone(), digest_of })
}

fn environment(case: &Case<'_>, target: &Target) -> Vec<(String, String)> {
    let pairs = [(VM_VARIABLE, case.names.vm().to_string()), (DISK_VARIABLE, target.to_string())];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

fn file_of(copy: &CopyRequest) -> Option<&str> {
    copy.to.file().map(|(_, name)| name)
}
