//! The table from live processes.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, Result};

use super::descriptors::{Observed, is_gone, observe};
use super::name;
use super::sockets::Sockets;
use super::table::{FileId, OpenFile, Table};
use super::unreachable::Reach;
use crate::bytes::ByteString;
use crate::container::Process;
use crate::container::{FileKind, Holder};
use crate::freezer::Still;
use crate::sys::kcmp;

/// Open files, and the file descriptors that were read for them.
pub(super) struct Survey {
    pub(super) table: Table,
    pub(super) fds: Vec<Observed>,
    pub(super) reach: Reach,
}

impl Table {
    /// The open files of processes, numbered from 1.
    ///
    /// When they are frozen, whatever vanishes while this reads is an error; else it is left out.
    pub fn from_processes(processes: &[Process], still: Still<'_>) -> Result<Self> {
        Ok(survey(processes, still)?.table)
    }
}

/// Reads the open files of processes.
pub(super) fn survey(processes: &[Process], still: Still<'_>) -> Result<Survey> {
    let fds = observe(processes, still)?;
    let classes = classify(&fds, still)?;
    let reach = Reach::of(processes, still)?;
    let mut sockets = Sockets::default();
    let mut files: Vec<_> =
        classes.iter().map(|class| describe(&fds, class, &mut sockets, &reach)).collect();
    files.sort_by_key(|file| file.holders.first().copied());
    for (file, id) in files.iter_mut().zip(1..) {
        file.id = FileId(id);
    }
    mark_watched(&mut files, &fds);
    Ok(Survey { table: Table::new(files), fds, reach })
}

/// File descriptors (by index) of one open file description.
type Class = Vec<usize>;

/// Tells equal open files from different ones: by cheap identity first, by the kernel's order
/// among those that have the same.
fn classify(fds: &[Observed], still: Still<'_>) -> Result<Vec<Class>> {
    let mut groups: BTreeMap<_, Vec<Class>> = BTreeMap::new();
    for (index, fd) in fds.iter().enumerate() {
        let classes = groups.entry(fd.key()).or_default();
        place(fds, classes, index, still).with_context(|| {
            format!("comparing fd {} of pid {} with others", fd.fd, fd.process.inner)
        })?;
    }
    Ok(groups.into_values().flatten().collect())
}

/// Puts a file descriptor into its class, or into a new one at the place that keeps the order.
fn place(
    fds: &[Observed],
    classes: &mut Vec<Class>,
    new: usize,
    still: Still<'_>,
) -> io::Result<()> {
    loop {
        match search(fds, classes, new) {
            Ok(Ok(class)) => {
                classes[class].push(new);
                return Ok(());
            }
            Ok(Err(at)) => {
                classes.insert(at, vec![new]);
                return Ok(());
            }
            Err((_, error)) if still.is_frozen() || !is_gone(&error) => return Err(error),
            Err(_) if !fds[new].is_there() => return Ok(()),
            Err((class, _)) => forget_gone(fds, classes, class),
        }
    }
}

/// Leaves out of a class what went away. The first of it did, or it would have been comparable.
fn forget_gone(fds: &[Observed], classes: &mut Vec<Class>, class: usize) {
    classes[class].remove(0);
    classes[class].retain(|member| fds[*member].is_there());
    if classes[class].is_empty() {
        classes.remove(class);
    }
}

/// A binary search: the class, or where a new one belongs; with an error, the class it came from.
fn search(
    fds: &[Observed],
    classes: &[Class],
    new: usize,
) -> Result<Result<usize, usize>, (usize, io::Error)> {
    let (mut low, mut high) = (0, classes.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let first = &fds[classes[middle][0]];
        match kcmp::compare_files(first.here(), fds[new].here()) {
            Ok(std::cmp::Ordering::Equal) => return Ok(Ok(middle)),
            Ok(std::cmp::Ordering::Less) => low = middle + 1,
            Ok(std::cmp::Ordering::Greater) => high = middle,
            Err(error) => return Err((middle, error)),
        }
    }
    Ok(Err(low))
}

fn describe(fds: &[Observed], class: &Class, sockets: &mut Sockets, reach: &Reach) -> OpenFile {
    let fd = &fds[class[0]];
    let mut holders: Vec<_> = class.iter().map(|member| fds[*member].holder()).collect();
    holders.sort_unstable();
    let (kind, text) = name_of(fd, sockets);
    let (text, deleted) = strip_deleted(fd, text, reach);
    let external = class.iter().find_map(|member| reach.unreachable(&fds[*member]));
    let mode = fd.stat.st_mode;
    let has_path = FileKind::of_mode(mode) == kind && kind != FileKind::Unknown;
    let has_position = (has_path && kind != FileKind::Fifo) || kind == FileKind::Memfd;
    OpenFile {
        id: FileId(0),
        kind,
        name: text,
        flags: fd.info.flags,
        position: has_position.then_some(fd.info.position),
        size: matches!(kind, FileKind::Reg | FileKind::Memfd).then_some(fd.stat.st_size),
        mode: has_path.then_some(mode),
        deleted,
        holders,
        external,
        watched: false,
        locks: Vec::new(),
        in_flight: false,
        must_substitute: external.is_some(),
        unsupported: None,
    }
}

/// Kind and name of an open file.
fn name_of(fd: &Observed, sockets: &mut Sockets) -> (FileKind, ByteString) {
    if fd.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK {
        return sockets.name(fd);
    }
    let kind = fd.kind();
    let name = match kind {
        FileKind::Memfd => {
            let name = fd.link.strip_prefix(b"/").unwrap_or(&fd.link);
            name.strip_suffix(b" (deleted)").unwrap_or(name).into()
        }
        FileKind::Pidfd => fd.info.pid.map_or("pidfd".into(), |pid| format!("pidfd {pid}").into()),
        FileKind::Tun => match &fd.info.interface {
            Some(interface) => name::join("tun ", &interface.as_str().into()),
            None => "tun".into(),
        },
        FileKind::Unknown => fd.link.as_slice().into(),
        _ if fd.link.starts_with(b"anon_inode:") => kind.as_str().into(),
        _ => fd.link.as_slice().into(),
    };
    (kind, name)
}

/// Takes away what the kernel appends to the path of a file whose name is gone.
fn strip_deleted(fd: &Observed, name: ByteString, reach: &Reach) -> (ByteString, bool) {
    let has_path = fd.link.starts_with(b"/") && fd.link == name.as_bytes();
    let Some(stripped) = name.as_bytes().strip_suffix(b" (deleted)").filter(|_| has_path) else {
        return (name, false);
    };
    if fd.stat.st_nlink > 0 && is_named_so(fd, &name, reach) {
        return (name, false);
    }
    (stripped.into(), true)
}

/// Whether a file in the container really ends in ` (deleted)`.
fn is_named_so(fd: &Observed, name: &ByteString, reach: &Reach) -> bool {
    let found = reach.stat_at(fd.process.host, name.as_bytes());
    found.is_ok_and(|stat| stat.inode == fd.stat.inode)
}

/// Marks the files that epoll instances watch, by the numbers that each holder has for them.
fn mark_watched(files: &mut [OpenFile], fds: &[Observed]) {
    let watched: std::collections::HashSet<_> = fds
        .iter()
        .flat_map(|fd| {
            fd.info.watched.iter().map(|number| Holder { pid: fd.process.inner, fd: *number })
        })
        .collect();
    for file in files {
        file.watched = file.holders.iter().any(|holder| watched.contains(holder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freezer::Frozen;
    use crate::proc::is_zombie;
    use crate::sys::pid::InnerPid;
    use crate::sys::pid::Pid;
    use std::os::fd::AsRawFd;

    fn own() -> Process {
        Process { host: Pid::own(), inner: InnerPid(1) }
    }

    fn held(table: &Table, file: &impl AsRawFd) -> OpenFile {
        let holder = Holder { pid: InnerPid(1), fd: file.as_raw_fd() };
        table.held_by(holder).unwrap_or_else(|| panic!("{holder}")).clone()
    }

    #[test]
    fn our_own_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data (deleted)");
        std::fs::write(&path, "12345").unwrap();
        let first = std::fs::File::open(&path).unwrap();
        rustix::fs::seek(&first, rustix::fs::SeekFrom::Start(3)).unwrap();
        let copy = first.try_clone().unwrap();
        let second = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = tempfile::tempfile_in(dir.path()).unwrap();

        let table = Table::from_processes(&[own()], Still::Running).unwrap();
        let file = held(&table, &first);
        assert_eq!(file.name, path.as_path().into());
        assert_eq!((file.kind, file.position, file.size), (FileKind::Reg, Some(3), Some(5)));
        assert!(!file.deleted);
        assert_eq!(held(&table, &copy).id, file.id);
        assert_ne!(held(&table, &second).id, file.id);
        assert_eq!(held(&table, &second).flags_text(), "O_WRONLY|O_APPEND");
        assert_ne!(held(&table, &reader).id, held(&table, &writer).id);
        assert_eq!(held(&table, &reader).name, held(&table, &writer).name);
        let name = format!("tcp {} listen", socket.local_addr().unwrap());
        assert_eq!(held(&table, &socket).name.to_string(), name);
        assert!(held(&table, &gone).deleted);
        assert!(table.files.iter().zip(1..).all(|(file, id)| file.id == FileId(id)));
    }

    #[test]
    fn what_an_epoll_instance_watches() {
        use rustix::event::epoll;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(1);
        epoll::add(&poll, &event, data, epoll::EventFlags::IN).unwrap();
        let table = Table::from_processes(&[own()], Still::Running).unwrap();
        assert!(held(&table, &event).watched);
        assert!(!held(&table, &poll).watched);
        assert_eq!(held(&table, &poll).kind, FileKind::Epoll);
        assert_eq!(held(&table, &event).name.to_string(), "eventfd");
    }

    #[test]
    fn a_process_that_has_ended_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let host = Pid::of(&child);
        let pid = rustix::process::Pid::from_child(&child);
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        assert!(is_zombie(host));
        let zombie = Process { host, inner: InnerPid(2) };
        assert!(
            Table::from_processes(&[zombie], Still::Frozen(&Frozen::of_nobody()))
                .unwrap()
                .files
                .is_empty()
        );
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let gone = Process { host: Pid::of(&child), inner: InnerPid(2) };
        assert!(Table::from_processes(&[gone], Still::Running).unwrap().files.is_empty());
        let error =
            Table::from_processes(&[gone], Still::Frozen(&Frozen::of_nobody())).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("reading the file descriptors of pid 2"), "{text}");
    }
}
