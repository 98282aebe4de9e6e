//! cleanup: takes back whatever is left of a job, however it ended.
//! Harmless where nothing is left, and as often as one likes.

use crate::core::names::{Names, Places, VmName};
use crate::host::{Entry, Host, Removal};
use crate::session::{Session, Unwound};
use crate::survey;

use super::Failure;

/// Was there ever a job on a VM of this name?
fn something_of_ours(host: &dyn Host, names: &Names) -> Result<bool, Failure> {
    let paths = [names.home(), names.lock()].map(|path| host.entry(&path));
    for entry in paths {
        if entry? != Entry::Absent {
            return Ok(true);
        }
    }
    Ok(host.mounted_at(&names.mount_point())?.is_some())
}

/// Undoes what the journal owes, then what is there under names of ours, then gives back the lock.
pub fn cleanup(host: &dyn Host, places: &Places, vm: &str) -> Result<Unwound, Failure> {
    // A domain that is gone, or whose XML makes no sense any more, must not keep its leftovers alive.
    let (domain, why_not) = match survey::domain(host, vm) {
        Ok(domain) => (Some(domain.id), None),
        Err(error) => (None, Some(error)),
    };
    let name = match &domain {
        Some(id) => id.name.clone(),
        None => VmName::new(vm).map_err(anyhow::Error::from)?,
    };
    let names = Names::new(places, &name);
    if let Some(error) = &why_not
        && !something_of_ours(host, &names)?
    {
        return Err(Failure { exit_status: 1, story: format!("{error:#}") });
    }
    let mut session = Session::open_to_clean_up(host, &names)?;
    let mut unwound = session.clear(domain.as_ref());
    if !unwound.owes_nothing() {
        return Err(Failure::owing(&unwound));
    }
    if super::dump::forget_dump(host, &names)? == Removal::Removed {
        unwound.done.push("remove the dump".to_owned());
    }
    unwound
        .notes
        .extend(why_not.map(|error| format!("{error:#}: what it may hold of ours was not looked at")));
    session
        .release()
        .map_err(|error| Failure { exit_status: 3, story: format!("{error:#}: run cleanup") })?;
    match unwound.spoilt.is_empty() {
        true => Ok(unwound),
        false => Err(Failure { exit_status: 1, story: unwound.spoilt.join("; ") }),
    }
}
