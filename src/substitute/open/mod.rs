//! Opening what takes the place of open files, and checking that it fits.
//!
//! [`prepare`] checks every rule and has no effect on anything: it opens what is there. [`open`]
//! then connects and asks programs, and only when all of that succeeded makes and truncates files.

mod conflicts;
mod container;
mod file;
mod inherited;
mod locks;
mod program;
mod socket;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::callers::Callers;
use super::resolve::Resolved;
use super::rewrite::{How, Treatment};
use super::rule::Rule;
use super::source::{Access, FileSource, Source};
use crate::criu::interposer;
use crate::files::{FileId, FileKind, FoundFile, OpenFile};
use crate::sys::descriptors;

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
    pub rule: Arc<Rule>,
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

/// How many refusals an error tells.
const SHOWN: usize = 50;

/// All that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusals(pub Vec<Refusal>);

impl std::error::Error for Refusals {}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().take(SHOWN).map(Refusal::to_string).collect();
        f.write_str(&lines.join("\n"))?;
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, "\nand {more} more"),
            _ => Ok(()),
        }
    }
}

/// What is around the open files.
pub struct Around<'a> {
    /// The container's name.
    pub container: &'a str,
    /// Who hands in descriptors and a terminal.
    pub callers: &'a Callers,
    /// What will be at a path of the container once its files are put back.
    pub site: &'a dyn Fn(&Path) -> Site,
    /// Locked files of the container that no rule replaces.
    pub locked: &'a [OpenFile],
}

impl fmt::Debug for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around").field("container", &self.container).finish_non_exhaustive()
    }
}

/// A path of the container.
#[derive(Clone, Debug)]
pub struct Site {
    /// What will be there.
    pub found: FoundFile,
    /// What the path is below, on the host; `None` for a file system that only the container has.
    pub directory: Option<PathBuf>,
    /// The rest of the path.
    pub relative: PathBuf,
    /// Whether the container may write there.
    pub writable: bool,
}

/// A rule that was checked for an open file.
#[derive(Debug)]
pub struct Prepared {
    rule: Arc<Rule>,
    file: OpenFile,
    work: Work,
}

/// What is left to do.
#[derive(Debug)]
enum Work {
    /// Nothing: this takes its place.
    Ready(OwnedFd),
    /// A file of the host.
    File(file::Pending),
    /// A connection, or a socket that listens.
    Socket(socket::Endpoint),
    /// A program is to be asked.
    Program(program::Question),
    /// CRIU opens it.
    Container(container::Reopen),
    /// It goes.
    Close,
    /// Nothing any more: what takes its place has been handed on.
    Done,
}

/// Checks every rule: access mode, directory or not, whether what an epoll instance watches can
/// be polled, position. Nothing is made, moved, truncated, connected to or run.
///
/// A source may be of another type than the original, as in Kerrighed: a file for a socket, say.
/// The application will see errors from calls that only the original knew; CRIU does not care.
pub fn prepare(resolved: &[Resolved], around: &Around<'_>) -> Result<Vec<Prepared>, Refusals> {
    make_room(resolved)?;
    let prepared = each(resolved, |Resolved { rule, file, .. }| {
        let refusal = |why| Box::new(Refusal { rule: Arc::clone(rule), file: file.id, why });
        let file = what_stays(rule, file);
        let work = Work::of(rule, &file, around).map_err(refusal)?;
        Ok(Prepared { rule: Arc::clone(rule), file, work })
    })?;
    check_locks(&prepared, around)?;
    Ok(prepared)
}

/// Sees to it that a descriptor can be opened for each file that needs one.
fn make_room(resolved: &[Resolved]) -> Result<(), Refusals> {
    /// What else is open for a moment.
    const SPARE: u64 = 128;
    let needs_none =
        |one: &&Resolved| matches!(one.rule.source, Source::Closed | Source::Container(_));
    let opened: Vec<&Resolved> = resolved.iter().filter(|one| !needs_none(one)).collect();
    let most = interposer::room();
    let refused = |one: &Resolved, why| {
        Refusals(vec![Refusal { rule: Arc::clone(&one.rule), file: one.file.id, why }])
    };
    if let Some(one) = opened.get(most) {
        let why = format!(
            "more than {most} open files are replaced by something that is opened for them, which is \
             all that the limit on open files (`ulimit -Hn`) leaves room for"
        );
        return Err(refused(one, why));
    }
    let Some(one) = opened.first() else { return Ok(()) };
    let raised = descriptors::open()
        .and_then(|open| descriptors::make_room(open + opened.len() as u64 + SPARE));
    raised.map_err(|error| refused(one, format!("raising the limit on open files: {error}")))
}

/// First those among each other: to try one is to take it.
fn check_locks(prepared: &[Prepared], around: &Around<'_>) -> Result<(), Refusals> {
    let refused = conflicts::check(prepared, around);
    if !refused.is_empty() {
        return Err(Refusals(refused));
    }
    each(prepared, |one| locks::check(&one.work, &one.file).map_err(|why| one.refusal(why)))?;
    Ok(())
}

/// The original as far as its replacement has to be like it: what the rule drops asks nothing.
fn what_stays(rule: &Rule, file: &OpenFile) -> OpenFile {
    let mut file = file.clone();
    if rule.drop {
        file.watched = false;
        file.locks.clear();
    }
    file
}

/// Connects, asks, makes and truncates; returns what CRIU inherits, in the order of the rules.
pub fn open(prepared: &mut [Prepared], around: &Around<'_>) -> Result<Vec<Replacement>, Refusals> {
    each(prepared.iter_mut(), |one| one.contact().map_err(|why| one.refusal(why)))?;
    check_locks(prepared, around)?;
    let opened = each(prepared.iter_mut(), |one| one.finish().map_err(|why| one.refusal(why)))?;
    Ok(opened.into_iter().flatten().collect())
}

/// Makes and truncates what CRIU will open in the container: when its files have been put back.
pub fn settle(prepared: &[Prepared]) -> Result<(), Refusals> {
    each(prepared, |one| match &one.work {
        Work::Container(reopen) => reopen.settle().map_err(|why| one.refusal(why)),
        _ => Ok(()),
    })?;
    Ok(())
}

/// Does a step for every rule, and collects what is refused.
fn each<T, U>(
    items: impl IntoIterator<Item = T>,
    mut step: impl FnMut(T) -> Result<U, Box<Refusal>>,
) -> Result<Vec<U>, Refusals> {
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for item in items {
        match step(item) {
            Ok(value) => done.push(value),
            Err(refusal) => refused.push(*refusal),
        }
    }
    if refused.is_empty() { Ok(done) } else { Err(Refusals(refused)) }
}

impl Prepared {
    /// What becomes of the open file in the images.
    pub fn treatment(&self) -> Treatment {
        let how = match &self.work {
            Work::Close => How::Close,
            Work::Container(reopen) => reopen.how(),
            _ => How::Inherit,
        };
        Treatment { id: self.file.id, how, drop: self.rule.drop }
    }

    fn refusal(&self, why: String) -> Box<Refusal> {
        Box::new(Refusal { rule: Arc::clone(&self.rule), file: self.file.id, why })
    }

    /// What others may refuse.
    fn contact(&mut self) -> Result<(), String> {
        let made = match &mut self.work {
            Work::Socket(endpoint) => endpoint.contact(&self.file)?,
            Work::Program(question) => question.ask(&self.file)?,
            _ => return Ok(()),
        };
        if let Some(fd) = made {
            check_type(&fd, &self.file)?;
            self.work = Work::Ready(fd);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Replacement>, String> {
        if matches!(self.work, Work::Container(_) | Work::Close) {
            return Ok(None);
        }
        let fd = match std::mem::replace(&mut self.work, Work::Done) {
            Work::Ready(fd) => fd,
            Work::File(pending) => pending.finish()?,
            Work::Socket(endpoint) => endpoint.listen_at_path(&self.file)?,
            Work::Program(_) => return Err("it was not asked".to_owned()),
            Work::Container(_) | Work::Close | Work::Done => return Ok(None),
        };
        Ok(Some(Replacement { id: self.file.id, fd }))
    }
}

impl Work {
    fn of(rule: &Rule, file: &OpenFile, around: &Around<'_>) -> Result<Self, String> {
        let host = |source: &FileSource| file::prepare(source, &rule.origin, file).map(Self::File);
        match &rule.source {
            Source::Fd(_) | Source::FdName(_) => {
                inherited::take(rule, file, around.callers).map(Self::Ready)
            }
            Source::File(source) => host(source),
            Source::Null => host(&FileSource::new("/dev/null")),
            Source::Empty => match socket::empty(file)? {
                Some(fd) => Ok(Self::Ready(fd)),
                None => host(&FileSource::new("/dev/null")),
            },
            Source::Tty => terminal(rule, file, around.callers).map(Self::Ready),
            Source::Container(source) => {
                container::prepare(source, file, around).map(Self::Container)
            }
            Source::Unix(unix) => socket::unix(unix, &rule.origin, file).map(Self::Socket),
            Source::Tcp(tcp) => socket::tcp(tcp, file).map(Self::Socket),
            Source::Reset => socket::reset(file).map(Self::Ready),
            Source::Exec(program) => program::prepare(program, file, around).map(Self::Program),
            Source::Closed => Ok(Self::Close),
        }
    }
}

/// The caller's terminal, if it fits.
fn terminal(rule: &Rule, file: &OpenFile, callers: &Callers) -> Result<OwnedFd, String> {
    let fd = callers.terminal(rule, file)?;
    check_type(&fd, file)?;
    set_nonblocking(&fd, file)?;
    Ok(fd)
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
    check_directory(file_type(fd)? == FileType::Directory, file)?;
    if file.watched && !is_pollable(fd)? {
        return Err("an epoll instance watches the original, and this cannot be polled: a pipe, \
                    a socket or a terminal can, or with `,drop` behind the rule it is watched no more"
            .to_owned());
    }
    Ok(())
}

/// A directory takes the place of directories only.
fn check_directory(is_directory: bool, file: &OpenFile) -> Result<(), String> {
    match (file.kind == FileKind::Dir, is_directory) {
        (true, false) => Err("the original is a directory, this is none".to_owned()),
        (false, true) => Err("it is a directory, the original was none".to_owned()),
        _ => Ok(()),
    }
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

/// Gives what was opened for this the `O_NONBLOCK` of the original.
fn set_nonblocking(fd: &OwnedFd, file: &OpenFile) -> Result<(), String> {
    let flags = OFlags::from_bits_truncate(file.flags) & OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(fd, flags).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Holder;
    use crate::substitute::{Origin, parse_rule};
    use crate::sys::pid::InnerPid;
    use rustix::fs::SeekFrom;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    pub(super) fn original(flags: i32, position: Option<u64>) -> OpenFile {
        OpenFile {
            id: FileId(3),
            kind: FileKind::Reg,
            name: "/x".into(),
            flags: flags as u32,
            position,
            size: None,
            mode: None,
            deleted: false,
            holders: vec![Holder { pid: InnerPid(1), fd: 3 }],
            external: None,
            watched: false,
            locks: Vec::new(),
            in_flight: false,
            must_substitute: false,
            unsupported: None,
        }
    }

    fn prepare_and_open(resolved: &[Resolved]) -> Result<Vec<Replacement>, Refusals> {
        let nowhere = |_: &Path| Site {
            found: FoundFile::Unknown,
            directory: None,
            relative: PathBuf::new(),
            writable: false,
        };
        let callers = Callers::default();
        let around = Around { container: "web", callers: &callers, site: &nowhere, locked: &[] };
        open(&mut prepare(resolved, &around)?, &around)
    }

    fn resolved(rule: Rule, file: OpenFile) -> Resolved {
        Resolved { rule: Arc::new(rule), file, beaten: Vec::new() }
    }

    fn try_open(source: &str, file: OpenFile) -> Result<OwnedFd, String> {
        let rule = parse_rule(&format!("3={source}"), Origin::CommandLine).unwrap();
        let opened = prepare_and_open(&[resolved(rule, file)]);
        Ok(opened.map_err(|error| error.to_string())?.pop().unwrap().fd)
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
        let resolved = [good, new, bad].map(|rule| resolved(rule, original(1, None)));
        let error = prepare_and_open(&resolved).unwrap_err();
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

    fn socket(kind: FileKind, name: &str) -> OpenFile {
        OpenFile { kind, name: name.into(), ..original(libc::O_RDWR, None) }
    }

    #[test]
    fn empty_is_at_its_end() {
        let pipe = OpenFile { kind: FileKind::Pipe, watched: true, ..original(0, None) };
        let mut empty = std::fs::File::from(try_open("empty", pipe).unwrap());
        assert_eq!(empty.read(&mut [0]).unwrap(), 0);
        let writer = OpenFile { kind: FileKind::Pipe, ..original(1, None) };
        let mut empty = std::fs::File::from(try_open("empty", writer.clone()).unwrap());
        empty.write_all(b"dropped").unwrap();
        let watched = OpenFile { watched: true, ..writer };
        assert!(try_open("empty", watched).unwrap_err().contains("cannot be polled"));
    }

    #[test]
    fn the_peer_of_a_reset_socket_is_gone() {
        for (kind, name) in [
            (FileKind::Inet, "tcp 127.0.0.1:1 -> 127.0.0.1:2 established"),
            (FileKind::Inet, "tcp [::1]:1 -> [::1]:2 established"),
            (FileKind::Unix, "unix stream [7]"),
            (FileKind::Unix, "unix seqpacket [7]"),
        ] {
            let mut reset = std::fs::File::from(try_open("reset", socket(kind, name)).unwrap());
            let error = reset.read(&mut [0]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{name}");
        }
        for (kind, name) in [
            (FileKind::Inet, "udp 127.0.0.1:1"),
            (FileKind::Unix, "unix dgram [7]"),
            (FileKind::Reg, "/x"),
        ] {
            let error = try_open("reset", socket(kind, name)).unwrap_err();
            assert!(error.contains("connection"), "{error}");
        }
    }

    #[test]
    fn sockets_connect_and_listen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let original = || socket(FileKind::Inet, "tcp 127.0.0.1:1 -> 127.0.0.1:2 established");
        let mut fd = std::fs::File::from(try_open(&format!("tcp:{address}"), original()).unwrap());
        let (mut peer, _) = listener.accept().unwrap();
        fd.write_all(b"x").unwrap();
        peer.read_exact(&mut [0]).unwrap();
        let busy = try_open(&format!("tcp:{address},listen"), original()).unwrap_err();
        assert!(busy.contains("in use"), "{busy}");
        drop(listener);
        try_open("tcp:127.0.0.1:0,listen", original()).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let source = format!("unix:{}/socket", dir.path().display());
        let unix = || socket(FileKind::Unix, "unix seqpacket [7]");
        assert!(try_open(&source, unix()).unwrap_err().contains("connecting"));
        let listening = try_open(&format!("{source},listen"), unix()).unwrap();
        let connected = try_open(&source, unix()).unwrap();
        let kind = rustix::net::sockopt::socket_type(&connected).unwrap();
        assert_eq!(kind, rustix::net::SocketType::SEQPACKET);
        assert!(rustix::net::sockopt::socket_acceptconn(&listening).unwrap());
        let taken = try_open(&format!("{source},listen"), unix()).unwrap_err();
        assert!(taken.contains("is there already"), "{taken}");
    }

    fn script(dir: &Path, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("exec:{}", path.display())
    }

    #[test]
    fn a_program_that_returns_nothing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let failed = try_open(&script(dir.path(), "exit 3"), original(0, None)).unwrap_err();
        assert!(failed.contains("returned nothing") && failed.contains('3'), "{failed}");
        let missing = try_open("exec:/nowhere/at/all", original(0, None)).unwrap_err();
        assert!(missing.contains("no program"), "{missing}");
    }

    #[test]
    fn what_an_annotation_names_is_reached_through_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        let text = format!("3=file:{}/link", dir.path().display());
        let open_from = |origin| {
            let rule = parse_rule(&text, origin).unwrap();
            let file = original(0, None);
            prepare_and_open(&[resolved(rule, file)])
        };
        open_from(Origin::CommandLine).unwrap();
        let error = open_from(Origin::Annotation("a".into())).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
    }
}
