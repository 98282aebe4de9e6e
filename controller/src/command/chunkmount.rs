//! chunkmount: a point in time of all disks of a VM, shown as chunks under `B/<vm>`.
//! Returns when the view can be read; `cleanup` takes it back.

use crate::core::domain::Domain;
use crate::core::names::{JobId, Names, Places};
use crate::core::options::{Chunkmount, JobLimit};
use crate::core::plan::{self, Case, Outlook, Plan, Purpose};
use crate::host::Host;
use crate::session::{Interrupted, Unwound};
use crate::survey;

use super::Failure;
use super::opening::{self, Opened, give_back};

/// A view that is ready.
#[derive(Debug)]
pub struct Mounted {
    pub plan: Plan,
    /// What an earlier job had left and this one cleared first.
    pub cleared: Unwound,
    pub notes: Vec<String>,
}

/// Shows the disks of one VM.
pub fn chunkmount(
    host: &dyn Host,
    places: &Places,
    vm: &str,
    options: &Chunkmount,
    limit: JobLimit,
    interrupted: &Interrupted<'_>,
) -> Result<Mounted, Failure> {
    let Opened { mut session, names, domain, cleared } = opening::open(host, places, vm, limit)?;
    let outcome = decide(host, &domain, &names, session.job(), options)
        .and_then(|plan| Ok((session.run(&plan, interrupted)?, plan)));
    match outcome {
        Ok((notes, plan)) => Ok(Mounted { plan, cleared, notes }),
        Err(failure) => Err(give_back(session, failure)),
    }
}

/// The plan of `--dry-run`: takes no lock, so what an earlier job left may stand in its way.
pub fn plan(host: &dyn Host, places: &Places, vm: &str, options: &Chunkmount) -> Result<Plan, Failure> {
    let domain = survey::domain(host, vm)?;
    let names = Names::new(places, &domain.id.name);
    decide(host, &domain, &names, &JobId::from_bits(0), options)
}

/// What a backup of this VM would be, as things are.
pub fn outlook(host: &dyn Host, places: &Places, vm: &str, options: &Chunkmount) -> anyhow::Result<Outlook> {
    let domain = survey::domain(host, vm)?;
    let names = Names::new(places, &domain.id.name);
    let facts = survey::facts(host, &domain, &names, options)?;
    let (definition_xml, job, purpose) = ("", &JobId::from_bits(0), Purpose::View);
    let case = Case { domain: &domain, definition_xml, facts: &facts, options, names: &names, job, purpose };
    Ok(plan::outlook(&case))
}

fn decide(
    host: &dyn Host,
    domain: &Domain,
    names: &Names,
    job: &JobId,
    options: &Chunkmount,
) -> Result<Plan, Failure> {
    let definition_xml = survey::definition(host, domain)?;
    let facts = survey::facts(host, domain, names, options)?;
    let purpose = Purpose::View;
    let case = Case { domain, definition_xml: &definition_xml, facts: &facts, options, names, job, purpose };
    plan::chunkmount(case).map_err(|refusal| Failure { exit_status: 1, story: refusal.to_string() })
}
