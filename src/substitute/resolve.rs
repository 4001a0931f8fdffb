//! Which open file each rule means.

use std::fmt;
use std::sync::Arc;

use super::rule::{Origin, Rule};
use crate::files::{OpenFile, Table};

/// An open file and the rule that won for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The rule; one may win for many open files.
    pub rule: Arc<Rule>,
    /// The open file.
    pub file: OpenFile,
    /// The strongest of the rules that lost, the strongest first.
    pub beaten: Vec<Arc<Rule>>,
}

/// How many of the rules that lost are kept: of many rules for many open files the product would be.
const BEATEN: usize = 16;

impl Resolved {
    /// Why the rule won.
    pub fn why(&self) -> String {
        match self.beaten.first() {
            None => "the only rule".to_owned(),
            Some(other) if other.origin.rank() < self.rule.origin.rank() => {
                format!("{} comes before {}", self.rule.origin, other.origin)
            }
            Some(other) if other.does_as(&self.rule) => "another says the same".to_owned(),
            Some(other) if other.strength() == self.rule.strength() => {
                format!("it stands behind {other}")
            }
            Some(other) => {
                format!("{} is more specific than {}", self.rule.selector, other.selector)
            }
        }
    }
}

/// Why a rule, or an open file, is left over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// A rule means no open file.
    None {
        /// The rule.
        rule: Rule,
        /// Open files that might have been meant.
        near: Vec<OpenFile>,
    },
    /// A rule means several open files.
    Several {
        /// The rule.
        rule: Rule,
        /// The open files.
        files: Vec<OpenFile>,
    },
    /// Two rules that differ mean the same open file, and neither comes before the other.
    Twice {
        /// The rules.
        rules: Box<[Rule; 2]>,
        /// The open file.
        file: OpenFile,
    },
    /// An open file cannot be restored, and no rule puts anything in its place.
    Needed {
        /// The open file.
        file: OpenFile,
    },
}

/// All that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatches(pub Vec<Mismatch>);

impl std::error::Error for Mismatches {}

impl fmt::Display for Mismatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mismatch) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            mismatch.fmt(f)?;
        }
        Ok(())
    }
}

/// How many open files an error lists.
const SHOWN: usize = 10;

fn list(f: &mut fmt::Formatter<'_>, files: &[OpenFile]) -> fmt::Result {
    for file in files.iter().take(SHOWN) {
        write!(f, "\n  {}", Line(file))?;
    }
    match files.len().checked_sub(SHOWN) {
        Some(more @ 1..) => write!(f, "\n  and {more} more"),
        _ => Ok(()),
    }
}

/// An open file in one line of an error.
struct Line<'a>(&'a OpenFile);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.0;
        write!(f, "{}: {} {}, {}", file.id, file.kind, file.name, file.flags_text())?;
        write!(f, ", held as {}", file.holders_text())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None { rule, near } => {
                write!(f, "{rule} (from {}): no open file matches {}", rule.origin, rule.selector)?;
                list(f, near)
            }
            Self::Several { rule, files } => {
                let (origin, count) = (&rule.origin, files.len());
                write!(
                    f,
                    "{rule} (from {origin}): {count} open files match, name one of them \
                     or write `all` before the selector:"
                )?;
                list(f, files)
            }
            Self::Twice { rules, file } => {
                let [first, second] = &**rules;
                write!(f, "{first} (from {}) and {second} (from {})", first.origin, second.origin)?;
                write!(f, " mean the same open file:\n  {}", Line(file))
            }
            Self::Needed { file } => {
                let why = match &file.unsupported {
                    Some(why) => format!("is not in the checkpoint ({why})"),
                    None => "comes from outside the container".to_owned(),
                };
                let id = file.id;
                write!(f, "open file {id} {why} and needs a replacement, such as -s {id}=fd:N")?;
                write!(f, "\n  {}", Line(file))
            }
        }
    }
}

/// Finds the open files that each rule means, and for each of them the rule that wins: the command
/// line's before that of `ocicle with`, the configuration's, an annotation's; of one origin the more
/// specific one; and of two that are as specific, but have the same selector or stand in the
/// configuration, the later one.
///
/// A rule of the configuration is written for many containers, so it may mean nothing here.
pub fn resolve(rules: &[Rule], table: &Table) -> Result<Vec<Resolved>, Mismatches> {
    let (resolved, wrong) = judge(rules, table);
    if wrong.is_empty() { Ok(resolved) } else { Err(Mismatches(wrong)) }
}

/// As [`resolve`], with what matches beside what does not.
pub fn judge(rules: &[Rule], table: &Table) -> (Vec<Resolved>, Vec<Mismatch>) {
    let mut wrong: Vec<_> = rules.iter().filter_map(|rule| mismatch(rule, table)).collect();
    let rules: Vec<_> = rules.iter().cloned().map(Arc::new).collect();
    let mut resolved = Vec::new();
    for file in &table.files {
        match winner(&rules, file) {
            Ok(Some(winner)) => resolved.push(winner),
            Ok(None) if file.must_substitute => wrong.push(Mismatch::Needed { file: file.clone() }),
            Ok(None) => {}
            Err(twice) => wrong.push(*twice),
        }
    }
    (resolved, wrong)
}

/// What is wrong with the number of open files that a rule means.
fn mismatch(rule: &Rule, table: &Table) -> Option<Mismatch> {
    let matching: Vec<_> = table.files.iter().filter(|file| rule.selector.matches(file)).collect();
    let is_general = matches!(rule.origin, Origin::Configuration(_));
    match matching[..] {
        [] if !is_general => {
            let near = table.files.iter().filter(|file| rule.selector.near(file));
            Some(Mismatch::None { rule: rule.clone(), near: near.cloned().collect() })
        }
        [_, _, ..] if !rule.selector.may_mean_several() => Some(Mismatch::Several {
            rule: rule.clone(),
            files: matching.into_iter().cloned().collect(),
        }),
        _ => None,
    }
}

/// The rule that wins for an open file.
fn winner(rules: &[Arc<Rule>], file: &OpenFile) -> Result<Option<Resolved>, Box<Mismatch>> {
    // From the last to the first: sorting keeps that order among equals.
    let mut matching: Vec<&Arc<Rule>> =
        rules.iter().rev().filter(|rule| rule.selector.matches(file)).collect();
    matching.sort_by_key(|rule| std::cmp::Reverse(rule.strength()));
    let Some((best, beaten)) = matching.split_first() else { return Ok(None) };
    let mut equal = beaten.iter().take_while(|other| other.strength() == best.strength());
    if let Some(other) = equal.find(|other| !best.may_override(other)) {
        return Err(Box::new(Mismatch::Twice {
            rules: Box::new([other.as_ref().clone(), best.as_ref().clone()]),
            file: file.clone(),
        }));
    }
    Ok(Some(Resolved {
        rule: Arc::clone(best),
        file: file.clone(),
        beaten: beaten.iter().take(BEATEN).map(|rule| Arc::clone(rule)).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Holder;
    use crate::files::{ExternalFile, FileId, FileKind};
    use crate::substitute::parse_rule;
    use crate::sys::pid::InnerPid;

    fn file(id: u32, name: &str, holders: &[(i32, i32)]) -> OpenFile {
        OpenFile {
            id: FileId(id),
            kind: FileKind::Reg,
            name: name.into(),
            flags: 0o2001,
            position: None,
            size: None,
            mode: None,
            deleted: false,
            holders: holders
                .iter()
                .map(|(pid, fd)| Holder { pid: InnerPid(*pid), fd: *fd })
                .collect(),
            external: None,
            watched: false,
            locks: Vec::new(),
            in_flight: false,
            must_substitute: false,
            unsupported: None,
        }
    }

    fn table() -> Table {
        let outside = ExternalFile { mount: 0x2b, inode: 0x1f3 };
        let mut external = file(9, "file[2b:1f3]", &[(1, 1)]);
        external.external = Some(outside);
        external.must_substitute = true;
        Table {
            schema: 1,
            files: vec![
                file(3, "/var/log/x", &[(1, 3), (7, 3)]),
                file(4, "/var/log/x", &[(7, 4)]),
                file(5, "/tmp/y", &[(7, 5)]),
                external,
            ],
        }
    }

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| parse_rule(text, Origin::CommandLine).unwrap()).collect()
    }

    #[test]
    fn each_rule_finds_its_file() {
        let rules = rules(&["7:3=fd:9", "3=fd:9", "/tmp/y=null", "9=null"]);
        let resolved = resolve(&rules, &table()).unwrap();
        let ids: Vec<_> = resolved.iter().map(|resolved| resolved.file.id.0).collect();
        assert_eq!(ids, [3, 5, 9]);
    }

    fn from(origin: Origin, text: &str) -> Rule {
        parse_rule(text, origin).unwrap()
    }

    /// The source that wins for each open file.
    fn winners(rules: &[Rule], table: &Table) -> Vec<(u32, String)> {
        let resolved = resolve(rules, table).unwrap_or_else(|error| panic!("{error}"));
        resolved.iter().map(|one| (one.file.id.0, one.rule.source.to_string())).collect()
    }

    fn sockets() -> Table {
        let socket = |id, kind, name: &str, holders| OpenFile { kind, ..file(id, name, holders) };
        Table {
            schema: 1,
            files: vec![
                socket(1, FileKind::Tty, "/dev/pts/0", &[(1, 0), (1, 1)]),
                socket(2, FileKind::Pipe, "pipe:[9]", &[(1, 2), (5, 1)]),
                socket(3, FileKind::Inet, "tcp 127.0.0.1:80 listen", &[(1, 3)]),
                socket(4, FileKind::Inet, "tcp [::1]:80 -> [::1]:5432 established", &[(1, 4)]),
                socket(5, FileKind::Unix, "unix stream listen /run/x", &[(1, 5)]),
                socket(7, FileKind::Tty, "/dev/pts/ptmx", &[(1, 7)]),
                socket(6, FileKind::Unix, "unix dgram @tcp 127.0.0.1:80", &[(1, 6)]),
            ],
        }
    }

    #[test]
    fn every_selector() {
        for (selector, expected) in [
            ("2", &[2][..]),
            ("5:1", &[2]),
            ("fd:3", &[3]),
            ("all fd:1", &[1, 2]),
            ("all type:unix", &[5, 6]),
            ("/dev/pts/0*", &[1]),
            ("/run/x", &[5]),
            ("local:127.0.0.1:80", &[3]),
            ("all local:*:80", &[3, 4]),
            ("remote:*:5432", &[4]),
            ("remote:[::1]:*", &[4]),
            ("tty", &[1]),
            ("stdio", &[1, 2]),
            ("stdio and type:pipe", &[2]),
            ("all type:inet and remote:*:*", &[4]),
        ] {
            let rule = from(Origin::CommandLine, &format!("{selector}=null"));
            let ids: Vec<_> = winners(&[rule], &sockets()).into_iter().map(|(id, _)| id).collect();
            assert_eq!(ids, expected, "{selector}");
        }
    }

    #[test]
    fn the_later_and_more_specific_rule_wins() {
        let configuration = || Origin::Configuration("ocicle.toml".into());
        let annotation = || Origin::Annotation("a".into());
        let rules = [
            from(configuration(), "1=fd:9"),
            from(annotation(), "stdio=null"),
            from(annotation(), "stdio and type:tty=empty"),
            from(Origin::With, "tty=null"),
            from(Origin::CommandLine, "tty=tty"),
            from(configuration(), "all /nowhere=closed"),
        ];
        let table = sockets();
        let expected = [(1, "tty".to_owned()), (2, "null".to_owned())];
        assert_eq!(winners(&rules, &table), expected);
        let resolved = resolve(&rules, &table).unwrap();
        assert_eq!(resolved[0].why(), "the command line comes before `ocicle with`");
        assert_eq!(resolved[0].beaten.len(), 4);
        assert_eq!(resolved[1].why(), "the only rule");
        let why = |rules: &[Rule]| resolve(rules, &table).unwrap()[0].why();
        assert_eq!(why(&rules[..4]), "`ocicle with` comes before ocicle.toml");
        assert_eq!(why(&rules[..3]), "ocicle.toml comes before annotation a");
        assert_eq!(why(&rules[1..3]), "stdio and type:tty is more specific than stdio");
    }

    #[test]
    fn of_equals_the_later_one_wins_where_that_is_meant() {
        let configuration = |text| from(Origin::Configuration("ocicle.toml".into()), text);
        let table = sockets();
        let tables = [configuration("1:2=null"), configuration("2=empty")];
        assert_eq!(winners(&tables, &table), [(2, "empty".to_owned())]);
        let why = resolve(&tables, &table).unwrap()[0].why();
        assert_eq!(why, "it stands behind 1:2=null");
        let again = rules(&["tty=null", "tty=empty"]);
        assert_eq!(winners(&again, &table), [(1, "empty".to_owned())]);
    }

    #[test]
    fn equals_must_say_the_same() {
        let rule = |text| from(Origin::CommandLine, text);
        assert_eq!(winners(&[rule("1:2=null"), rule("2=null")], &sockets()).len(), 1);
        assert!(resolve(&[rule("1:2=null"), rule("2=empty")], &sockets()).is_err());
        // Who loses anyway may say what he likes.
        let settled = [rule("stdio=null"), rule("stdio=empty"), rule("1=fd:3"), rule("2=fd:4")];
        assert_eq!(winners(&settled, &sockets()).len(), 2);
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let rules = rules(&["7:9=null", "/var/log/x=null", "3=null", "1:3=fd:4", "/y=null", "8,1"]);
        insta::assert_snapshot!(resolve(&rules, &table()).unwrap_err());
    }
}
