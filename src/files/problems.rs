//! What CRIU will check of files at restore, checked before: all of it, not the first only.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use super::table::FileId;
use crate::bytes::ByteString;
use crate::container::{FileKind, Holder};
use crate::criu::images::Images;
use crate::criu::images::entries::{FileBody, RegFile, Remap, RemapKind};
use crate::sys::pid::InnerPid;

/// What will be at a path at restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundFile {
    /// Nothing.
    Missing,
    /// Nothing, since this prefix of the path is no directory.
    NotADirectory(ByteString),
    /// A file.
    Present {
        /// Type and permissions, `st_mode`.
        mode: u32,
        /// The size in bytes.
        size: u64,
    },
    /// It cannot be said now, such as for a file system that CRIU itself fills: not checked.
    Unknown,
}

/// How a process uses a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Through a file descriptor.
    Fd(i32),
    /// It is mapped.
    Mapping,
    /// It is the program.
    Exe,
    /// It is the working directory.
    Cwd,
    /// It is the root directory.
    Root,
}

/// A process that uses a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileUser {
    /// The process, as the container sees it.
    pub pid: InnerPid,
    /// What for.
    pub role: Role,
}

impl fmt::Display for FileUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        match self.role {
            Role::Fd(fd) => write!(f, "fd {fd} of pid {pid}"),
            Role::Mapping => write!(f, "mapping of pid {pid}"),
            Role::Exe => write!(f, "program of pid {pid}"),
            Role::Cwd => write!(f, "working directory of pid {pid}"),
            Role::Root => write!(f, "root directory of pid {pid}"),
        }
    }
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not there.
    Missing,
    /// A prefix of its path is no directory.
    NotADirectory(ByteString),
    /// It is of another type.
    Type {
        /// The type there.
        found: FileKind,
        /// The type at the checkpoint.
        expected: FileKind,
    },
    /// It has another size.
    Size {
        /// The size there.
        found: u64,
        /// The size at the checkpoint.
        expected: u64,
    },
    /// It has other permissions.
    Mode {
        /// The permissions there.
        found: u32,
        /// The permissions at the checkpoint.
        expected: u32,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it is missing"),
            Self::NotADirectory(prefix) => write!(f, "{prefix} is not a directory"),
            Self::Type { found, expected } => write!(f, "it is a {found}, it was a {expected}"),
            Self::Size { found, expected } => {
                write!(f, "it has {found} bytes, it had {expected} at the checkpoint")
            }
            Self::Mode { found, expected } => {
                write!(f, "its mode is {found:04o}, it was {expected:04o}")
            }
        }
    }
}

/// A file over which CRIU would fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its identifier.
    pub file: FileId,
    /// Its path in the container.
    pub path: ByteString,
    /// Who uses it: file descriptors first.
    pub users: Vec<FileUser>,
    /// What is wrong.
    pub wrong: Wrong,
}

impl Problem {
    /// What to do: replace it, if it is held by file descriptors and by nothing else.
    pub fn hint(&self) -> String {
        match self.users.first() {
            Some(FileUser { pid, role: Role::Fd(fd) })
                if self.users.iter().all(|user| matches!(user.role, Role::Fd(_))) =>
            {
                let replaced = format!("let something take its place: -s {pid}:{fd}=SOURCE");
                match self.policy() {
                    Some(policy) => {
                        format!("put it back, allow it with --policy {policy}, or {replaced}")
                    }
                    None => format!("put it back, or {replaced}"),
                }
            }
            _ => "put it back as it was: what is mapped, a program or a directory that a process \
                  stands in cannot be replaced"
                .to_owned(),
        }
    }
}

impl Problem {
    /// The policy that would help.
    fn policy(&self) -> Option<String> {
        let said = match self.wrong {
            Wrong::Missing => "missing=recreate",
            Wrong::Size { found, expected } if found > expected => "grown=truncate",
            Wrong::Size { .. } => "shrunk=accept",
            Wrong::NotADirectory(_) | Wrong::Type { .. } | Wrong::Mode { .. } => return None,
        };
        Some(format!("{said}:{}", self.path))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.users.first() else {
            return write!(f, "{}: {}", self.path, self.wrong);
        };
        write!(f, "{first} ({})", self.path)?;
        if self.users.len() > 1 {
            write!(f, " and {} more", self.users.len() - 1)?;
        }
        write!(f, ": {}", self.wrong)
    }
}

/// Checks every file that CRIU will reopen by its path, except those that something else will
/// take the place of, against what `lookup` says will be there.
///
/// The checks are those of `open_path` in criu/files-reg.c: type and permissions, and the size if
/// the image has one, which it has unless the file was open for appending only.
pub fn preflight(
    images: &Images,
    substituted: &[FileId],
    lookup: &dyn Fn(&Path) -> FoundFile,
) -> Vec<Problem> {
    let users = users(images, substituted);
    let remaps: HashMap<u32, &Remap> = images.remaps.iter().map(|r| (r.file, r)).collect();
    let files: HashMap<u32, &RegFile> = images.files.iter().filter_map(as_reg).collect();
    let mut problems = Vec::new();
    for entry in &images.files {
        let (Some(users), Some(reg)) = (users.get(&entry.id), files.get(&entry.id)) else {
            continue;
        };
        let wrong = match remaps.get(&entry.id).map(|remap| (remap.kind, remap.target)) {
            None if !reg.external => wrong(reg, lookup(reg.name.as_path())),
            // CRIU links the file to its old name from another that must be there.
            Some((RemapKind::Linked, target)) => {
                files.get(&target).and_then(|link| wrong(reg, lookup(link.name.as_path())))
            }
            _ => None,
        };
        problems.extend(wrong.map(|wrong| Problem {
            file: FileId(entry.id),
            path: reg.name.clone(),
            users: users.clone(),
            wrong,
        }));
    }
    problems
}

fn as_reg(entry: &crate::criu::images::entries::FileEntry) -> Option<(u32, &RegFile)> {
    match &entry.body {
        FileBody::Reg(reg) => Some((entry.id, reg)),
        _ => None,
    }
}

/// Who uses each entry of type REG. The path of a named pipe or terminal is an entry of its own.
fn users(images: &Images, substituted: &[FileId]) -> HashMap<u32, Vec<FileUser>> {
    let substituted: HashSet<u32> = substituted.iter().map(|id| id.0).collect();
    let paths: HashMap<u32, u32> = images.files.iter().filter_map(path_entry).collect();
    let mut users: HashMap<u32, Vec<FileUser>> = HashMap::new();
    for (pid, fd) in images.fds().filter(|(_, fd)| !substituted.contains(&fd.file)) {
        let file = paths.get(&fd.file).copied().unwrap_or(fd.file);
        users.entry(file).or_default().push(FileUser { pid, role: Role::Fd(fd.fd) });
    }
    for task in &images.tasks {
        let pid = task.tree.pid;
        let mut add = |file, role| users.entry(file).or_default().push(FileUser { pid, role });
        if let Some(mm) = &task.mm {
            mm.mapped.iter().for_each(|file| add(*file, Role::Mapping));
            add(mm.exe, Role::Exe);
        }
        if let Some(fs) = task.fs {
            add(fs.cwd, Role::Cwd);
            add(fs.root, Role::Root);
        }
    }
    users.values_mut().for_each(|users| users.sort_by_key(|user| (user.role_order(), *user)));
    users
}

impl FileUser {
    fn role_order(self) -> bool {
        !matches!(self.role, Role::Fd(_))
    }

    /// The file descriptor, if it is one.
    pub fn holder(self) -> Option<Holder> {
        match self.role {
            Role::Fd(fd) => Some(Holder { pid: self.pid, fd }),
            _ => None,
        }
    }
}

fn path_entry(entry: &crate::criu::images::entries::FileEntry) -> Option<(u32, u32)> {
    match entry.body {
        FileBody::Fifo { path: Some(path) } | FileBody::Tty { path: Some(path), .. } => {
            Some((entry.id, path))
        }
        _ => None,
    }
}

fn missing(found: FoundFile) -> Option<Wrong> {
    match found {
        FoundFile::Missing => Some(Wrong::Missing),
        FoundFile::NotADirectory(prefix) => Some(Wrong::NotADirectory(prefix)),
        FoundFile::Present { .. } | FoundFile::Unknown => None,
    }
}

fn wrong(reg: &RegFile, found: FoundFile) -> Option<Wrong> {
    let FoundFile::Present { mode, size } = found else { return missing(found) };
    let saved = reg.mode.unwrap_or(mode);
    let (is, was) = (FileKind::of_mode(mode), FileKind::of_mode(saved));
    if mode & libc::S_IFMT != saved & libc::S_IFMT {
        return Some(Wrong::Type { found: is, expected: was });
    }
    if let Some(expected) = reg.size.filter(|expected| *expected != size) {
        return Some(Wrong::Size { found: size, expected });
    }
    (mode != saved).then_some(Wrong::Mode { found: mode & 0o7777, expected: saved & 0o7777 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reg(size: Option<u64>, mode: u32) -> RegFile {
        RegFile {
            position: 0,
            name: "/x".into(),
            mount: None,
            size,
            external: false,
            mode: Some(mode),
        }
    }

    #[test]
    fn what_criu_would_say() {
        let file = reg(Some(5), 0o100644);
        let there = |mode, size| wrong(&file, FoundFile::Present { mode, size });
        assert_eq!(there(0o100644, 5), None);
        assert_eq!(there(0o100644, 6), Some(Wrong::Size { found: 6, expected: 5 }));
        assert_eq!(there(0o100600, 5), Some(Wrong::Mode { found: 0o600, expected: 0o644 }));
        let expected = Wrong::Type { found: FileKind::Dir, expected: FileKind::Reg };
        assert_eq!(there(0o040644, 5), Some(expected));
        let log = reg(None, 0o100644);
        assert_eq!(wrong(&log, FoundFile::Present { mode: 0o100644, size: 99 }), None);
        assert_eq!(wrong(&log, FoundFile::Missing), Some(Wrong::Missing));
        assert_eq!(wrong(&log, FoundFile::Unknown), None);
    }

    #[test]
    fn problems_name_their_users() {
        let mut problem = Problem {
            file: FileId(3),
            path: "/var/log/x".into(),
            users: vec![
                FileUser { pid: InnerPid(7), role: Role::Fd(3) },
                FileUser { pid: InnerPid(8), role: Role::Fd(3) },
            ],
            wrong: Wrong::Size { found: 30, expected: 27 },
        };
        assert_eq!(
            problem.to_string(),
            "fd 3 of pid 7 (/var/log/x) and 1 more: it has 30 bytes, it had 27 at the checkpoint"
        );
        let hint = "put it back, allow it with --policy grown=truncate:/var/log/x, or let something \
                    take its place: -s 7:3=SOURCE";
        assert_eq!(problem.hint(), hint);
        problem.users.push(FileUser { pid: InnerPid(8), role: Role::Mapping });
        assert!(problem.hint().contains("cannot be replaced"));
    }
}
