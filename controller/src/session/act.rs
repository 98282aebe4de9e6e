//! A step to the host's verbs.
//! Decides nothing, and undoes nothing: that is `undo`.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::core::lock::ProcessId;
use crate::core::step::Step;
use crate::host::{Entry, Host};

/// How long a guest may stay frozen at most.
const FREEZE_WITHIN: Duration = Duration::from_secs(10);

/// What must hold before a step may be intended: what is in the way now is not ours, and must not become owed.
pub(super) fn check(host: &dyn Host, step: &Step) -> Result<()> {
    match step {
        Step::ClaimFile { path } if host.entry(path)? != Entry::Absent => {
            bail!("something is there already, and no journal says that it is ours")
        }
        Step::ClaimCheckpoint { domain, name, .. } => {
            let taken = host.checkpoints(domain)?.iter().any(|c| c.name == name.as_str());
            if taken { bail!("the domain has a checkpoint of this name already") } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

pub(super) fn act(host: &dyn Host, step: &Step) -> Result<Option<ProcessId>> {
    match step {
        // Claiming is the intent in the journal itself.
        Step::ClaimFile { .. } | Step::ClaimCheckpoint { .. } => {}
        Step::MakeDir { path } => {
            host.make_dir(path)?;
        }
        Step::WriteFile { path, content } => host.replace(path, content.as_bytes())?,
        Step::WriteSpec { path, spec } => host.replace(path, spec.to_json().as_bytes())?,
        Step::Freeze { domain, .. } => host.freeze(domain, FREEZE_WITHIN)?,
        Step::BeginBackup(request) => host.begin_backup(request)?,
        Step::ServeImage(service) => {
            host.serve_image(service)?;
        }
        Step::StartView(service) => return host.start_view(service).map(Some),
        Step::Early(_) => unreachable!("the session pays debts itself"),
    }
    Ok(None)
}
