//! Opening what takes the place of open files, and checking that it fits.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::resolve::Resolved;
use super::rule::{Access, FileSource, Position, Rule, Source};
use crate::files::{FileId, FileKind, OpenFile};
use crate::sys;

/// A file descriptor that takes an open file's place.
#[derive(Debug)]
pub struct Replacement {
    /// The open file.
    pub id: FileId,
    /// The file descriptor, closed on exec.
    pub fd: OwnedFd,
}

/// A source that cannot take the place of an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// The identifier of the open file.
    pub file: FileId,
    /// Why not.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {}): {}", self.rule, self.rule.origin, self.why)
    }
}

/// All that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusals(pub Vec<Refusal>);

impl std::error::Error for Refusals {}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Refusal::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Opens the source of every rule.
///
/// All are checked first, and if any does not fit, nothing is made, truncated or moved: access
/// mode, directory or not, whether what an epoll instance watches can be polled, position.
///
/// A source may be of another type than the original, as in Kerrighed: a file for a socket, say.
/// The application will see errors from calls that only the original knew; CRIU does not care.
pub fn open(resolved: &[Resolved]) -> Result<Vec<Replacement>, Refusals> {
    let prepared = all(resolved, |resolved| prepare(&resolved.rule, &resolved.file))?;
    let mut prepared = prepared.into_iter();
    all(resolved, |resolved| {
        let prepared = prepared.next().ok_or("it was not prepared")?;
        let fd = prepared.finish()?;
        Ok(Replacement { id: resolved.file.id, fd })
    })
}

/// Does a step for every rule, and collects what is refused.
fn all<T>(
    resolved: &[Resolved],
    mut step: impl FnMut(&Resolved) -> Result<T, String>,
) -> Result<Vec<T>, Refusals> {
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for one in resolved {
        match step(one) {
            Ok(value) => done.push(value),
            Err(why) => {
                refused.push(Refusal { rule: one.rule.clone(), file: one.file.id, why });
            }
        }
    }
    if refused.is_empty() { Ok(done) } else { Err(Refusals(refused)) }
}

/// What is left to do once every rule was checked.
enum Prepared {
    /// Nothing: it belongs to the caller.
    Inherited(OwnedFd),
    /// A file that is there.
    File { fd: OwnedFd, flags: OFlags, truncate: bool, seek: Option<SeekFrom> },
    /// A file that has to be made.
    New { path: std::path::PathBuf, flags: OFlags, seek: Option<SeekFrom> },
}

fn prepare(rule: &Rule, file: &OpenFile) -> Result<Prepared, String> {
    match &rule.source {
        Source::Fd(number) => prepare_inherited(*number, file),
        Source::Null => prepare_file(&FileSource::new("/dev/null"), file),
        Source::File(source) => prepare_file(source, file),
    }
}

fn prepare_inherited(number: i32, file: &OpenFile) -> Result<Prepared, String> {
    let fd = sys::fd::duplicate(number).map_err(|error| match error.raw_os_error() {
        Some(libc::EBADF) => format!("fd {number} is not open"),
        _ => format!("duplicating fd {number}: {error}"),
    })?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| error.to_string())?;
    check_access(Access::of(flags.bits()), file)?;
    if flags.contains(OFlags::PATH) && file.flags & OFlags::PATH.bits() == 0 {
        return Err(format!("fd {number} was opened with O_PATH, the original was not"));
    }
    check_type(&fd, file)?;
    Ok(Prepared::Inherited(fd))
}

fn check_access(given: Access, file: &OpenFile) -> Result<(), String> {
    let expected = Access::of(file.flags);
    if file.flags & OFlags::PATH.bits() != 0 || given.covers(expected) {
        return Ok(());
    }
    Err(format!("it is opened {}, the original was {}", in_words(given), in_words(expected)))
}

fn in_words(access: Access) -> &'static str {
    match access {
        Access::Read => "for reading only",
        Access::Write => "for writing only",
        Access::Both => "for reading and writing",
    }
}

fn check_type(fd: &OwnedFd, file: &OpenFile) -> Result<(), String> {
    let kind = file_type(fd)?;
    match (file.kind == FileKind::Dir, kind == FileType::Directory) {
        (true, false) => return Err("the original is a directory, this is none".to_owned()),
        (false, true) => return Err("it is a directory, the original was none".to_owned()),
        _ => {}
    }
    if file.watched && !is_pollable(fd)? {
        return Err("an epoll instance watches the original, and this cannot be polled: a pipe, \
                    a socket or a terminal can"
            .to_owned());
    }
    Ok(())
}

fn file_type(fd: &OwnedFd) -> Result<FileType, String> {
    let stat = rustix::fs::fstat(fd).map_err(|error| error.to_string())?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Asks the kernel, by adding it to an epoll instance as CRIU will.
fn is_pollable(fd: &OwnedFd) -> Result<bool, String> {
    use rustix::event::epoll;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let data = epoll::EventData::new_u64(0);
    match epoll::add(&poll, fd.as_fd(), data, epoll::EventFlags::IN) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(error) => Err(format!("trying to poll it: {error}")),
    }
}

fn prepare_file(source: &FileSource, file: &OpenFile) -> Result<Prepared, String> {
    let access = source.access.unwrap_or_else(|| Access::of(file.flags));
    check_access(access, file)?;
    let flags = open_flags(source, access, file);
    let opening = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(source.path.as_path(), flags | opening, Mode::empty()) {
        Ok(fd) => prepare_open(source, file, fd, flags),
        Err(Errno::NOENT) if source.create => prepare_new(source, file, flags),
        Err(Errno::NOENT) => Err("there is no such file (with `create` it is made)".to_owned()),
        Err(Errno::NXIO) => Err("nobody reads from this pipe".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn open_flags(source: &FileSource, access: Access, file: &OpenFile) -> OFlags {
    let original = OFlags::from_bits_truncate(file.flags);
    let kept = original & (OFlags::APPEND | OFlags::NONBLOCK);
    let added = if source.append { OFlags::APPEND } else { OFlags::empty() };
    kept | added
        | match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::Both => OFlags::RDWR,
        }
}

fn prepare_open(
    source: &FileSource,
    file: &OpenFile,
    fd: OwnedFd,
    flags: OFlags,
) -> Result<Prepared, String> {
    check_type(&fd, file)?;
    let is_regular = file_type(&fd)? == FileType::RegularFile;
    if source.truncate && !(is_regular && flags.intersects(OFlags::WRONLY | OFlags::RDWR)) {
        return Err("`truncate` is for regular files opened for writing".to_owned());
    }
    if source.position.is_some() && !is_regular {
        return Err("`pos` is for regular files".to_owned());
    }
    let seek = if is_regular { seek(source, file)? } else { None };
    Ok(Prepared::File { fd, flags, truncate: source.truncate, seek })
}

fn prepare_new(source: &FileSource, file: &OpenFile, flags: OFlags) -> Result<Prepared, String> {
    let path = source.path.as_path();
    if !path.parent().is_some_and(std::path::Path::is_dir) {
        return Err("the directory to make it in is missing".to_owned());
    }
    if file.kind == FileKind::Dir || file.watched {
        return Err("a new file can be neither a directory nor polled".to_owned());
    }
    Ok(Prepared::New { path: path.to_owned(), flags, seek: seek(source, file)? })
}

/// Where a regular file goes on.
fn seek(source: &FileSource, file: &OpenFile) -> Result<Option<SeekFrom>, String> {
    let kept = match (source.position, file.position) {
        (Some(Position::End), _) => return Ok(Some(SeekFrom::End(0))),
        (Some(Position::Keep), None) => {
            return Err("`pos=keep`: the original has no position".to_owned());
        }
        (Some(Position::Start), _) | (None, None) => return Ok(None),
        (None, _) if source.truncate => return Ok(None),
        (_, Some(position)) => position,
    };
    if i64::try_from(kept).is_err() {
        return Err(format!("the original's position {kept} is beyond any file"));
    }
    Ok(Some(SeekFrom::Start(kept)))
}

impl Prepared {
    fn finish(self) -> Result<OwnedFd, String> {
        let text = |error: Errno| error.to_string();
        let (fd, seek) = match self {
            Self::Inherited(fd) => return Ok(fd),
            Self::File { fd, flags, truncate, seek } => {
                rustix::fs::fcntl_setfl(&fd, flags).map_err(text)?;
                if truncate {
                    rustix::fs::ftruncate(&fd, 0).map_err(text)?;
                }
                (fd, seek)
            }
            Self::New { path, flags, seek } => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(text)?;
                (fd, seek)
            }
        };
        if let Some(seek) = seek {
            rustix::fs::seek(&fd, seek).map_err(text)?;
        }
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Holder;
    use crate::substitute::{Origin, parse_rule};
    use std::os::fd::AsRawFd;
    use std::path::Path;

    fn original(flags: i32, position: Option<u64>) -> OpenFile {
        OpenFile {
            id: FileId(3),
            kind: FileKind::Reg,
            name: "/x".into(),
            flags: flags as u32,
            position,
            size: None,
            mode: None,
            deleted: false,
            holders: vec![Holder { pid: 1, fd: 3 }],
            external: None,
            watched: false,
            must_substitute: false,
        }
    }

    fn try_open(source: &str, file: OpenFile) -> Result<OwnedFd, String> {
        let rule = parse_rule(&format!("3={source}"), Origin::CommandLine).unwrap();
        let mut opened = open(&[Resolved { rule, file }]).map_err(|error| error.to_string())?;
        Ok(opened.pop().unwrap().fd)
    }

    fn state(fd: &OwnedFd) -> (OFlags, u64) {
        let flags = rustix::fs::fcntl_getfl(fd).unwrap();
        let shown = OFlags::ACCMODE | OFlags::APPEND | OFlags::NONBLOCK;
        (flags & shown, rustix::fs::tell(fd).unwrap())
    }

    fn file(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("file");
        std::fs::write(&path, "0123456789").unwrap();
        path
    }

    #[test]
    fn a_file_is_opened_as_the_original_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        let source = format!("file:{}", path.display());
        let fd = try_open(&source, original(libc::O_RDWR, Some(4))).unwrap();
        assert_eq!(state(&fd), (OFlags::RDWR, 4));
        let append = libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK;
        let fd = try_open(&source, original(append, Some(4))).unwrap();
        assert_eq!(state(&fd), (OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK, 4));
        let fd = try_open(&format!("{source},rw,pos=end"), original(0, Some(4))).unwrap();
        assert_eq!(state(&fd), (OFlags::RDWR, 10));
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789");
        let fd = try_open(&format!("{source},truncate"), original(1, Some(4))).unwrap();
        assert_eq!(state(&fd), (OFlags::WRONLY, 0));
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_missing_file_is_made_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let source = format!("file:{}/new", dir.path().display());
        let error = try_open(&source, original(1, None)).unwrap_err();
        assert!(error.contains("there is no such file"), "{error}");
        try_open(&format!("{source},create"), original(1, None)).unwrap();
        assert!(dir.path().join("new").exists());
        let deep = format!("file:{}/no/new,create", dir.path().display());
        let error = try_open(&deep, original(1, None)).unwrap_err();
        assert!(error.contains("directory to make it in"), "{error}");
    }

    #[test]
    fn nothing_changes_when_one_of_them_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        let rule = |text: String| parse_rule(&text, Origin::CommandLine).unwrap();
        let good = rule(format!("3=file:{},truncate", path.display()));
        let new = rule(format!("4=file:{}/new,create", dir.path().display()));
        let bad = rule("5=fd:1000000".to_owned());
        let resolved = [good, new, bad].map(|rule| Resolved { rule, file: original(1, None) });
        let error = open(&resolved).unwrap_err();
        assert_eq!(
            error.to_string(),
            "5=fd:1000000 (from the command line): fd 1000000 is not open"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789");
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn inherited_file_descriptors_keep_their_state() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::fs::File::open(file(dir.path())).unwrap();
        rustix::fs::seek(&own, SeekFrom::Start(6)).unwrap();
        let source = format!("fd:{}", own.as_raw_fd());
        let fd = try_open(&source, original(libc::O_NONBLOCK, Some(4))).unwrap();
        assert_eq!(state(&fd), (OFlags::RDONLY, 6));
        let error = try_open(&source, original(libc::O_RDWR, None)).unwrap_err();
        assert!(
            error.ends_with(
                "it is opened for reading only, the original was for reading and writing"
            ),
            "{error}"
        );
    }

    #[test]
    fn what_is_watched_must_be_pollable() {
        let watched = OpenFile { watched: true, ..original(0, None) };
        let error = try_open("null", watched.clone()).unwrap_err();
        assert!(error.contains("cannot be polled"), "{error}");
        let (reader, _writer) = std::io::pipe().unwrap();
        try_open(&format!("fd:{}", reader.as_raw_fd()), watched).unwrap();
        try_open("null", original(libc::O_RDWR, None)).unwrap();
    }

    #[test]
    fn directories_replace_directories() {
        let dir = tempfile::tempdir().unwrap();
        let source = format!("file:{}", dir.path().display());
        let error = try_open(&source, original(0, None)).unwrap_err();
        assert!(error.contains("it is a directory"), "{error}");
        let directory = OpenFile { kind: FileKind::Dir, ..original(0, Some(0)) };
        try_open(&source, directory.clone()).unwrap();
        assert!(try_open("null", directory).unwrap_err().contains("this is none"));
    }
}
