//! The list itself: its types, its JSON and its rows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::container::{FileKind, Holder};
use crate::proc::fdinfo::LockKind;
use crate::sys::pid::InnerPid;

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;

/// Names one open file description within one table.
///
/// In a table from images it is CRIU's identifier; in one from live processes a count from 1,
/// which holds for that table only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub u32);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FileId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A file from outside the container's mounts, as CRIU names it: `file[<mount>:<inode>]`, both in
/// hexadecimal (`dump_one_reg_file` in criu/files-reg.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalFile {
    /// The number of its mount.
    pub mount: i32,
    /// Its inode number.
    pub inode: u64,
}

impl fmt::Display for ExternalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file[{:x}:{:x}]", self.mount, self.inode)
    }
}

impl ExternalFile {
    /// Reads the name that an image gives it.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let inner = name.strip_prefix(b"file[")?.strip_suffix(b"]")?;
        let (mount, inode) = std::str::from_utf8(inner).ok()?.split_once(':')?;
        let mount = u32::from_str_radix(mount, 16).ok()? as i32;
        Some(Self { mount, inode: u64::from_str_radix(inode, 16).ok()? })
    }
}

/// A lock that is held on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// What kind of lock.
    pub kind: LockKind,
    /// Whether nobody else may have one.
    pub exclusive: bool,
    /// Where it begins.
    pub start: i64,
    /// How long it is, 0 for ever.
    pub length: i64,
    /// The process that has it, or had it opened first, as the container sees it.
    #[serde(default)]
    pub pid: InnerPid,
}

/// One open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Its name within the table.
    pub id: FileId,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// How it is shown: a path, `pipe:[inode]`, `tcp 127.0.0.1:80 listen`.
    pub name: ByteString,
    /// Its `O_…` flags, without `O_CLOEXEC`, which belongs to a file descriptor.
    pub flags: u32,
    /// The position, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// The size in bytes, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Type and permissions, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Whether its name is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The file descriptors that refer to it, sorted.
    pub holders: Vec<Holder>,
    /// What it is called by CRIU, if it comes from outside the container's mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalFile>,
    /// Whether an epoll instance watches it: then whatever takes its place must be pollable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watched: bool,
    /// The locks that are held through it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
    /// Whether a message that waits in a unix socket carries it; then it may have no holder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_flight: bool,
    /// Whether it cannot be restored unless something takes its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub must_substitute: bool,
    /// Why CRIU could not dump it, if it could not: then it is known from its processes alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
}

impl OpenFile {
    /// Whether it is a tun device that is attached to an interface of the container's network.
    pub fn has_interface(&self) -> bool {
        self.kind == FileKind::Tun && self.name.as_bytes().starts_with(b"tun ")
    }

    /// The flags as words, such as `O_RDWR|O_APPEND`.
    pub fn flags_text(&self) -> String {
        flags_text(self.flags)
    }

    /// The holders as `pid:fd` with commas.
    pub fn holders_text(&self) -> String {
        let holders: Vec<_> = self.holders.iter().map(Holder::to_string).collect();
        holders.join(",")
    }

    /// The headings of [`OpenFile::row`].
    pub const HEADINGS: [&str; 6] = ["ID", "TYPE", "FLAGS", "POSITION", "HOLDERS", "NAME"];

    /// The cells of a table for people.
    pub fn row(&self) -> [String; 6] {
        let mut name = self.name.to_string();
        if self.deleted {
            name.push_str(" (deleted)");
        }
        if self.unsupported.is_some() {
            name.push_str(" (unsupported)");
        } else if self.must_substitute {
            name.push_str(" (from outside)");
        }
        if self.in_flight {
            name.push_str(" (in flight)");
        }
        let position = match (self.position, self.size) {
            (Some(position), Some(size)) => format!("{position}/{size}"),
            (Some(position), None) => position.to_string(),
            (None, _) => "-".to_owned(),
        };
        [
            self.id.to_string(),
            self.kind.to_string(),
            self.flags_text(),
            position,
            self.holders_text(),
            name,
        ]
    }
}

/// Shows `O_…` flags as words; what has no name as an octal number.
pub fn flags_text(flags: u32) -> String {
    const NAMES: [(i32, &str); 11] = [
        (libc::O_APPEND, "O_APPEND"),
        (libc::O_NONBLOCK, "O_NONBLOCK"),
        (libc::O_SYNC, "O_SYNC"),
        (libc::O_DSYNC, "O_DSYNC"),
        (libc::O_ASYNC, "O_ASYNC"),
        (libc::O_DIRECT, "O_DIRECT"),
        (libc::O_TMPFILE, "O_TMPFILE"),
        (libc::O_DIRECTORY, "O_DIRECTORY"),
        (libc::O_NOFOLLOW, "O_NOFOLLOW"),
        (libc::O_NOATIME, "O_NOATIME"),
        (libc::O_PATH, "O_PATH"),
    ];
    /// What a 64-bit kernel adds to every file of its own accord: `O_LARGEFILE` of x86, which the
    /// C library gives as zero there.
    const LARGEFILE: u32 = 0o100000;
    let mut words = vec![
        match flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => "O_RDONLY",
            libc::O_WRONLY => "O_WRONLY",
            _ => "O_RDWR",
        }
        .to_owned(),
    ];
    let mut rest = flags & !(libc::O_ACCMODE as u32) & !LARGEFILE;
    for (flag, name) in NAMES.map(|(flag, name)| (flag as u32, name)) {
        if rest & flag == flag {
            words.push(name.to_owned());
            rest &= !flag;
        }
    }
    if rest != 0 {
        words.push(format!("{rest:#o}"));
    }
    words.join("|")
}

/// The open files of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The version of this form.
    pub schema: u32,
    /// Every open file description once, sorted by identifier.
    pub files: Vec<OpenFile>,
}

impl Table {
    /// Puts a table together, sorted.
    pub(super) fn new(mut files: Vec<OpenFile>) -> Self {
        for file in &mut files {
            file.holders.sort_unstable();
            file.holders.dedup();
        }
        files.sort_by_key(|file| file.id);
        Self { schema: SCHEMA, files }
    }

    /// The open file with that identifier.
    pub fn find(&self, id: FileId) -> Option<&OpenFile> {
        self.files.iter().find(|file| file.id == id)
    }

    /// The open file behind a file descriptor.
    pub fn held_by(&self, holder: Holder) -> Option<&OpenFile> {
        self.files.iter().find(|file| file.holders.binary_search(&holder).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> OpenFile {
        OpenFile {
            id: FileId(17),
            kind: FileKind::Reg,
            name: "/var/log/x".into(),
            flags: 0o102001 | libc::O_NONBLOCK as u32,
            position: Some(5),
            size: Some(9),
            mode: Some(0o100644),
            deleted: true,
            holders: vec![Holder { pid: InnerPid(1), fd: 3 }, Holder { pid: InnerPid(7), fd: 0 }],
            external: None,
            watched: false,
            locks: Vec::new(),
            in_flight: false,
            must_substitute: false,
            unsupported: None,
        }
    }

    #[test]
    fn json_form() {
        let table = Table::new(vec![sample()]);
        let json = serde_json::to_string(&table).unwrap();
        assert_eq!(
            json,
            r#"{"schema":1,"files":[{"id":17,"type":"reg","name":"/var/log/x","flags":35841,"position":5,"size":9,"mode":33188,"deleted":true,"holders":[{"pid":1,"fd":3},{"pid":7,"fd":0}]}]}"#
        );
        assert_eq!(serde_json::from_str::<Table>(&json).unwrap(), table);
    }

    #[test]
    fn rows() {
        assert_eq!(
            sample().row(),
            ["17", "reg", "O_WRONLY|O_APPEND|O_NONBLOCK", "5/9", "1:3,7:0", "/var/log/x (deleted)"]
        );
    }

    #[test]
    fn flags_have_names() {
        assert_eq!(flags_text(0), "O_RDONLY");
        assert_eq!(flags_text(0o102), "O_RDWR|0o100");
        assert_eq!(flags_text(libc::O_SYNC as u32 | 1), "O_WRONLY|O_SYNC");
        assert_eq!(flags_text(libc::O_DSYNC as u32), "O_RDONLY|O_DSYNC");
    }

    #[test]
    fn external_names() {
        let file = ExternalFile { mount: 0x2b, inode: 0x1f3 };
        assert_eq!(file.to_string(), "file[2b:1f3]");
        assert_eq!(ExternalFile::parse(b"file[2b:1f3]"), Some(file));
        for bad in [&b"file[2b]"[..], b"file[2b:1f3", b"/file[2b:1f3]", b"file[:]", b"file[x:\xff]"]
        {
            assert_eq!(ExternalFile::parse(bad), None);
        }
    }

    #[test]
    fn kinds_have_their_names() {
        for kind in FileKind::ALL {
            assert_eq!(kind.as_str().parse::<FileKind>().unwrap(), *kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!("socket".parse::<FileKind>().is_err());
    }
}
