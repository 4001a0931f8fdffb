//! The rules of substitution that hold for a restore.

use anyhow::{Context, Result};

use super::RestoreRequest;
use crate::container::{Bundle, Identity};
use crate::lend::Loan;
use crate::substitute::{Callers, Origin, Rule, parse_each, standing_rules};

/// Asks `ocicle with`, wherever one runs, for what it lends to this container.
pub(super) fn callers(request: &RestoreRequest, identity: &Identity) -> Result<Callers> {
    let loan = Loan::find(identity).context("asking `ocicle with`")?;
    Ok(Callers::new(request.inherited.clone(), request.handed.clone(), loan))
}

/// The rules of the container's annotations, of the configuration, of `ocicle with` and of the
/// command line.
pub(super) fn gather(
    request: &RestoreRequest,
    bundle: &Bundle,
    identity: &Identity,
    callers: &Callers,
) -> Result<Vec<Rule>> {
    let mut rules = standing_rules(identity, &request.configured, bundle)?;
    rules.extend(parse_each(callers.rules(), &Origin::With)?);
    rules.extend(parse_each(&request.rules, &Origin::CommandLine)?);
    Ok(rules)
}
