//! forget: removes our checkpoints and the index of a VM, so that its next backup starts afresh.
//! Leftovers of a job go first, as in cleanup.

use crate::core::names::Places;
use crate::host::Host;
use crate::session::{Session, Unwound};
use crate::survey;

use super::Failure;
use crate::core::names::Names;

/// A domain that is gone keeps its checkpoints to itself; the index goes all the same.
pub fn forget(host: &dyn Host, places: &Places, vm: &str) -> Result<Unwound, Failure> {
    let name = super::name_of(host, vm)?;
    let domain = survey::domain(host, vm).ok().map(|domain| domain.id);
    let names = Names::new(places, &name);
    let mut session = Session::open_to_clean_up(host, &names)?;
    let mut unwound = session.clear(domain.as_ref());
    if !unwound.owes_nothing() {
        return Err(Failure::owing(&unwound));
    }
    remove_index(host, &names)?;
    // What no index names any more are now all checkpoints of ours.
    unwound = unwound.and(session.clear(domain.as_ref()));
    if !unwound.owes_nothing() {
        return Err(Failure::owing(&unwound));
    }
    session
        .release()
        .map_err(|error| Failure { exit_status: 3, story: format!("{error:#}: run cleanup") })?;
    Ok(unwound)
}

fn remove_index(host: &dyn Host, names: &Names) -> Result<(), Failure> {
    let dir = names.index_dir();
    for file in host.list(&dir)?.unwrap_or_default() {
        host.remove_file(&dir.join(file))?;
    }
    host.remove_dir(&dir)?;
    Ok(())
}
