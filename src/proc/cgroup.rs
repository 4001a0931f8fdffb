//! `/proc/PID/cgroup`, as cgroups(7) describes it: the group of a process in each hierarchy.

use anyhow::{Context, Result};

/// The group of a process in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The controllers of a hierarchy of version 1; none of version 2's.
    pub controllers: Vec<String>,
    /// Its path from the root of the hierarchy.
    pub path: String,
}

impl Membership {
    /// Whether the hierarchy is that of version 2.
    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether the hierarchy is one of version 1 that has this controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|one| one == controller)
    }
}

/// Parses the whole file.
///
/// # Errors
/// A line is of another form: nothing is known of the process then.
pub fn parse_cgroup(text: &str) -> Result<Vec<Membership>> {
    text.lines()
        .map(|line| parse_line(line).with_context(|| format!("the line {line:?}")))
        .collect()
}

fn parse_line(line: &str) -> Option<Membership> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let controllers = controllers.split(',').filter(|one| !one.is_empty());
    let controllers = controllers.map(str::to_owned).collect();
    Some(Membership { controllers, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let all = parse_cgroup("3:cpu,cpuacct:/a:b\n1:name=systemd:/c\n0::/d\n").unwrap();
        assert_eq!(all.len(), 3);
        assert!(all[0].has("cpuacct") && !all[0].has("cp") && all[0].path == "/a:b");
        assert!(all[1].has("name=systemd") && !all[1].is_unified());
        assert!(all[2].is_unified() && all[2].path == "/d");
    }

    #[test]
    fn lines_and_what_they_mean() {
        let of = |controllers: &[&str], path: &str| Membership {
            controllers: controllers.iter().map(|one| (*one).to_owned()).collect(),
            path: path.to_owned(),
        };
        for (text, expected) in [
            ("", Some(vec![])),
            ("0::/", Some(vec![of(&[], "/")])),
            ("5:cpu,,cpuset:/x", Some(vec![of(&["cpu", "cpuset"], "/x")])),
            ("5:cpu:", Some(vec![of(&["cpu"], "")])),
            // The path is all that is behind the second colon, whatever somebody has called it.
            ("0::/a:b c:/../d", Some(vec![of(&[], "/a:b c:/../d")])),
            ("0::/d\nnone\n", None),
            ("0:/d", None),
            ("\n", None),
        ] {
            assert_eq!(parse_cgroup(text).ok(), expected, "{text:?}");
        }
    }
}
