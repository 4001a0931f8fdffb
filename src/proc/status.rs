//! `/proc/PID/status`, as proc_pid_status(5) describes it: lines of a name, a colon and words.

use anyhow::{Context, Result};

use crate::sys::pid::InnerPid;

/// What stands behind a name.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The numbers of a process in the namespaces that it is in, from ours inwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacedPids(Vec<i32>);

impl NamespacedPids {
    /// In how many namespaces it has one, ours among them.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// The number in the namespace of that depth, such as a container's; `None` if it is not in it.
    pub fn at(&self, depth: usize) -> Option<InnerPid> {
        self.0.get(depth.checked_sub(1)?).copied().map(InnerPid)
    }
}

/// The numbers behind a name (`NSpid`, `NSsid`).
///
/// # Errors
/// The line is not there, or holds something else.
pub fn parse_pids(text: &str, name: &str) -> Result<NamespacedPids> {
    let line = field(text, name).with_context(|| format!("it has no {name}"))?;
    let numbers = line.split_ascii_whitespace().map(|number| Ok(number.parse()?));
    numbers.collect::<Result<_>>().map(NamespacedPids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_of_each_namespace() {
        let pids = parse_pids("Name:\tx\nNSpid:\t812\t7\n", "NSpid").unwrap();
        assert_eq!(pids, NamespacedPids(vec![812, 7]));
        assert_eq!((pids.depth(), pids.at(2)), (2, Some(InnerPid(7))));
        assert_eq!((pids.at(0), pids.at(3)), (None, None));
        assert!(parse_pids("Name:\tx\n", "NSpid").is_err());
        assert!(parse_pids("NSpid:\tx\n", "NSpid").is_err());
        assert_eq!(field("NSpidx:\t1\n", "NSpid"), None);
    }

    #[test]
    fn fields_by_their_names() {
        const TEXT: &str =
            "Name:\ta: b\nUmask:\t0022\nState:\tS (sleeping)\nGroups:\t\nNSpid:\t8\n";
        for (name, value) in [
            ("Name", Some("a: b")),
            ("State", Some("S (sleeping)")),
            ("Groups", Some("")),
            ("Umas", None),
            ("a", None),
            ("sleeping", None),
        ] {
            assert_eq!(field(TEXT, name), value, "{name}");
        }
        for (text, numbers) in [
            ("NSpid:\t1", Some(vec![1])),
            ("NSpid:  1  2\t3 ", Some(vec![1, 2, 3])),
            ("NSpid:", Some(vec![])),
            ("NSpid:\t1 x", None),
            ("NSpid:\t99999999999", None),
            ("nspid:\t1", None),
        ] {
            assert_eq!(parse_pids(text, "NSpid").ok(), numbers.map(NamespacedPids), "{text:?}");
        }
    }
}
