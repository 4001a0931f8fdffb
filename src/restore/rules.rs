//! The rules of substitution that hold for a restore, and who may write which.

use anyhow::{Context, Result, anyhow};

use super::Request;
use crate::config::{self, Allow};
use crate::container::Bundle;
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
        rules.extend(parsed.with_context(|| format!("annotation {name}"))?);
    }
    for text in &request.rules {
        rules.push(
            parse_rule(text, Origin::CommandLine).context("reading a rule of the command line")?,
        );
    }
    Ok(rules)
}

/// Refuses what an annotation may not use: whoever wrote it need not be the administrator.
pub(super) fn ensure_allowed(resolved: &[Resolved], allow: &Allow) -> Result<()> {
    for Resolved { rule, .. } in resolved {
        if let (Origin::Annotation(name), Source::File(file)) = (&rule.origin, &rule.source) {
            let allowed =
                allow.files.iter().any(|pattern| matches(pattern.as_bytes(), file.path.as_bytes()));
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
        if let Source::Fd(number) = rule.source {
            if !inherited.contains(number) {
                return Err(anyhow!("{rule} (from {}): fd {number} is not open", rule.origin)
                    .hint(format!("open it for this command: {number}<>FILE behind it in a shell")));
            }
        }
    }
    Ok(())
}

/// Whether a path has the form of a pattern: `*` stands for any part of one name, `**` for any
/// number of names. A path with `..` in it has no form.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let climbs = path.split(|byte| *byte == b'/').any(|name| name == b"..");
    !climbs && matches_from(pattern, path)
}

fn matches_from(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| matches_from(rest, &path[at..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
            (0..=end).any(|at| matches_from(rest, &path[at..]))
        }
        [first, rest @ ..] => path.first() == Some(first) && matches_from(rest, &path[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("/var/log/*.log", "/var/log/a.log", true),
            ("/var/log/*.log", "/var/log/a/b.log", false),
            ("/var/log/**", "/var/log/a/b.log", true),
            ("/var/log/**", "/var/log/../../etc/shadow", false),
            ("/a", "/a", true),
            ("/a", "/ab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }
}
