//! The rules of substitution that hold for a restore, and who may write which.

use anyhow::{Context, Result, anyhow};

use super::Request;
use crate::config::{self, Allow};
use crate::container::Bundle;
use crate::glob;
use crate::hint::WithHint;
use crate::substitute::{Origin, Resolved, Rule, Source, parse_list, parse_rule};
use crate::sys::process::InheritedFds;

/// The annotation that holds rules; `ANNOTATION.NAME` does too.
pub(super) const ANNOTATION: &str = "org.ocicle.substitute";

/// The rules of the container's annotations and of the command line.
pub(super) fn gather(request: &Request, bundle: &Bundle) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (name, value) in bundle.annotations(ANNOTATION) {
        let parsed = parse_list(&value, &Origin::Annotation(name.clone()));
        rules.extend(
            parsed
                .with_context(|| format!("annotation {name}"))
                .hint("correct it in config.json")?,
        );
    }
    for text in &request.rules {
        rules.push(
            parse_rule(text, Origin::CommandLine)
                .context("reading a rule of the command line")
                .hint("such as 7=file:/var/log/new or 1:3=null; `ocicle restore --help` has the forms")?,
        );
    }
    Ok(rules)
}

/// Refuses what an annotation may not use: whoever wrote it need not be the administrator.
pub(super) fn ensure_allowed(resolved: &[Resolved], allow: &Allow) -> Result<()> {
    for Resolved { rule, .. } in resolved {
        if let (Origin::Annotation(name), Source::File(file)) = (&rule.origin, &rule.source) {
            let allowed = allow
                .files
                .iter()
                .any(|pattern| glob::matches(pattern.as_bytes(), file.path.as_bytes()));
            if !allowed {
                return Err(anyhow!(
                    "annotation {name} names the host's file {}, which needs the administrator's \
                     leave",
                    file.path
                )
                .hint(format!(
                    "the leave is a line `files = [\"{}\"]` below [allow] in {}",
                    file.path,
                    config::PATH
                )));
            }
        }
    }
    Ok(())
}

/// Refuses descriptors that are open here, and were not given to us.
pub(super) fn ensure_inherited(resolved: &[Resolved], inherited: &InheritedFds) -> Result<()> {
    for Resolved { rule, .. } in resolved {
        if let Source::Fd(number) = rule.source
            && !inherited.contains(number)
        {
            return Err(anyhow!("{rule} (from {}): fd {number} is not open", rule.origin)
                .hint(format!("open it for this command: {number}<>FILE behind it in a shell")));
        }
    }
    Ok(())
}
