//! `user_info.txt`, the list that Kerrighed's checkpoint left for its restart:
//! `type|file_identifier|symbolic name|pid:fd,pid:fd`, one open file a line.
//!
//! A bar in a name is written `\x7c`; everything else is escaped as [`ByteString`] does it.

use anyhow::{Context, Result, ensure};

use super::table::{FileId, Table};
use crate::bytes::ByteString;
use crate::container::{FileKind, Holder};

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserInfo {
    /// What the open file is.
    pub kind: FileKind,
    /// Its identifier.
    pub id: FileId,
    /// Its symbolic name.
    pub name: ByteString,
    /// The file descriptors that refer to it.
    pub holders: Vec<Holder>,
}

/// Writes the list of a table.
pub fn write_user_info(table: &Table) -> String {
    let mut text = String::new();
    for file in table.files.iter().filter(|file| !file.holders.is_empty()) {
        let name = file.name.to_string().replace('|', "\\x7c");
        text.push_str(&format!("{}|{}|{name}|{}\n", file.kind, file.id, file.holders_text()));
    }
    text
}

/// Reads a list back.
pub fn parse_user_info(text: &str) -> Result<Vec<UserInfo>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(at, line)| parse_line(line).with_context(|| format!("line {}", at + 1))).collect()
}

fn parse_line(line: &str) -> Result<UserInfo> {
    let fields: Vec<_> = line.split('|').collect();
    let [kind, id, name, holders] = fields[..] else {
        anyhow::bail!("it has {} fields instead of 4", fields.len());
    };
    Ok(UserInfo {
        kind: kind.parse().context("its type")?,
        id: id.parse().context("its identifier")?,
        name: ByteString::parse(name).context("its name")?,
        holders: parse_holders(holders).context("its holders")?,
    })
}

fn parse_holders(text: &str) -> Result<Vec<Holder>> {
    ensure!(!text.is_empty(), "there is none");
    text.split(',')
        .map(|holder| {
            let (pid, fd) = holder.split_once(':').context("one has no colon")?;
            Ok(Holder { pid: pid.parse()?, fd: fd.parse()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::OpenFile;
    use crate::sys::pid::InnerPid;
    use proptest::prelude::*;

    fn file(id: u32, name: &[u8], holders: Vec<Holder>) -> OpenFile {
        OpenFile {
            id: FileId(id),
            kind: FileKind::Pipe,
            name: name.into(),
            flags: 0,
            position: None,
            size: None,
            mode: None,
            deleted: false,
            holders,
            external: None,
            watched: false,
            locks: Vec::new(),
            in_flight: false,
            must_substitute: false,
            unsupported: None,
        }
    }

    #[test]
    fn a_name_cannot_make_a_second_line_or_field() {
        let table = Table::new(vec![file(3, b"/a|b\nc", vec![Holder { pid: InnerPid(1), fd: 2 }])]);
        assert_eq!(write_user_info(&table), "pipe|3|/a\\x7cb\\x0ac|1:2\n");
    }

    #[test]
    fn bad_lines_are_named() {
        let error = parse_user_info("pipe|3|x|1:2\npipe|3|x\n").unwrap_err();
        assert_eq!(format!("{error:#}"), "line 2: it has 3 fields instead of 4");
        for bad in ["p|3|x|1:2", "pipe|-|x|1:2", "pipe|3|\\|1:2", "pipe|3|x|", "pipe|3|x|1"] {
            assert!(parse_user_info(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            names in prop::collection::vec(any::<Vec<u8>>(), 1..5),
            pid: i32,
            fd: i32,
        ) {
            let holders = vec![Holder { pid: InnerPid(pid), fd }];
            let files = names.iter().zip(1..).map(|(name, id)| file(id, name, holders.clone()));
            let table = Table::new(files.collect());
            let lines = parse_user_info(&write_user_info(&table)).unwrap();
            let expected: Vec<_> = table.files.iter().map(|file| UserInfo {
                kind: file.kind, id: file.id, name: file.name.clone(), holders: holders.clone(),
            }).collect();
            prop_assert_eq!(lines, expected);
        }
    }
}
