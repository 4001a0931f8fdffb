//! Which open file each rule means.

use std::fmt;

use super::rule::{Rule, Selector};
use crate::files::{FileId, Holder, OpenFile, Table};

/// A rule and the open file it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The rule.
    pub rule: Rule,
    /// The open file.
    pub file: OpenFile,
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
    /// Two rules that differ mean the same open file.
    Twice {
        /// The rules.
        rules: [Rule; 2],
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
                write!(f, "{rule} (from {origin}): {count} open files match, name one of them:")?;
                list(f, files)
            }
            Self::Twice { rules: [first, second], file } => {
                write!(f, "{first} (from {}) and {second} (from {})", first.origin, second.origin)?;
                write!(f, " mean the same open file:\n  {}", Line(file))
            }
            Self::Needed { file } => {
                write!(
                    f,
                    "open file {} comes from outside the container and needs a replacement, such \
                     as -s {}=fd:N\n  {}",
                    file.id,
                    file.id,
                    Line(file)
                )
            }
        }
    }
}

impl Selector {
    fn matches(&self, file: &OpenFile) -> bool {
        match self {
            Self::Id(id) => file.id == *id,
            Self::Holder(holder) => file.holders.binary_search(holder).is_ok(),
            Self::Path(path) => file.name == *path,
        }
    }

    /// Open files that might be meant where none is: of the same process, or of the same name in
    /// another directory.
    fn near(&self, file: &OpenFile) -> bool {
        match self {
            Self::Id(_) => false,
            Self::Holder(Holder { pid, .. }) => file.holders.iter().any(|h| h.pid == *pid),
            Self::Path(path) => {
                let name = path.as_path().file_name();
                name.is_some() && name == file.name.as_path().file_name()
            }
        }
    }
}

/// Finds the one open file that each rule means. Rules that say the same count once.
pub fn resolve(rules: &[Rule], table: &Table) -> Result<Vec<Resolved>, Mismatches> {
    let mut resolved: Vec<Resolved> = Vec::new();
    let mut wrong = Vec::new();
    for rule in rules {
        match find(rule, table) {
            Ok(file) => match resolved.iter().find(|other| other.file.id == file.id) {
                None => resolved.push(Resolved { rule: rule.clone(), file: file.clone() }),
                Some(other) if other.rule.source == rule.source => {}
                Some(other) => wrong.push(Mismatch::Twice {
                    rules: [other.rule.clone(), rule.clone()],
                    file: file.clone(),
                }),
            },
            Err(mismatch) => wrong.push(*mismatch),
        }
    }
    let has_rule = |id: FileId| resolved.iter().any(|resolved| resolved.file.id == id);
    let needed = table.files.iter().filter(|file| file.must_substitute && !has_rule(file.id));
    wrong.extend(needed.cloned().map(|file| Mismatch::Needed { file }));
    if wrong.is_empty() { Ok(resolved) } else { Err(Mismatches(wrong)) }
}

fn find<'a>(rule: &Rule, table: &'a Table) -> Result<&'a OpenFile, Box<Mismatch>> {
    let matching: Vec<_> = table.files.iter().filter(|file| rule.selector.matches(file)).collect();
    match matching[..] {
        [file] => Ok(file),
        [] => {
            let near = table.files.iter().filter(|file| rule.selector.near(file));
            Err(Box::new(Mismatch::None { rule: rule.clone(), near: near.cloned().collect() }))
        }
        _ => Err(Box::new(Mismatch::Several {
            rule: rule.clone(),
            files: matching.into_iter().cloned().collect(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{ExternalFile, FileKind};
    use crate::substitute::{Origin, parse_rule};

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
            holders: holders.iter().map(|(pid, fd)| Holder { pid: *pid, fd: *fd }).collect(),
            external: None,
            watched: false,
            must_substitute: false,
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

    #[test]
    fn everything_that_is_wrong_is_said() {
        let rules = rules(&["7:9=null", "/var/log/x=null", "3=null", "1:3=fd:4", "/y=null", "8,1"]);
        insta::assert_snapshot!(resolve(&rules, &table()).unwrap_err());
    }
}
