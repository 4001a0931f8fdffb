//! Holds several open files of one kind, with another process that shares them.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::pty::openpty;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
    socketpair,
};
use nix::sys::stat::Mode;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::{ForkResult, fork, mkfifo, pipe};
use serde_json::{Map, Value, json};

use crate::memory::words_of;
use crate::{odd, probe};

/// Opens COUNT files of a kind in DIR, named `KIND.0` and so on, forks so that all are shared,
/// lists them in DIR/fds.json (`{"name": fd}`), creates DIR/ready, and answers on DIR/control and
/// DIR/control-child as the probe does.
pub fn run(dir: &Path, kind: &str, count: usize) -> Result<()> {
    let control = UnixListener::bind(dir.join("control"))?;
    let control_of_child = UnixListener::bind(dir.join("control-child"))?;
    let mut held = Held { dir, kind: kind.to_owned(), fds: Vec::new() };
    held.witnesses()?;
    for number in 0..count {
        held.open(number).with_context(|| format!("opening {kind}.{number}"))?;
    }
    let (ready, child_is_ready) = pipe()?;
    // SAFETY: there is one thread, so the child may do everything.
    if let ForkResult::Child = unsafe { fork() }? {
        drop((control, ready));
        held.lock_every_other(1)?;
        held.lock_what_is_shared()?;
        held.lock_by_another_of_the_table()?;
        drop(child_is_ready);
        return probe::answer_at(&control_of_child);
    }
    drop((control_of_child, child_is_ready));
    held.lock_every_other(0)?;
    held.lock_another_range()?;
    File::from(ready).read_to_end(&mut Vec::new())?;
    let numbers: Map<String, Value> =
        held.fds.iter().map(|(name, fd)| (name.clone(), json!(fd.as_raw_fd()))).collect();
    fs::write(dir.join("fds.json"), serde_json::to_vec(&numbers)?)?;
    File::create(dir.join("ready"))?;
    probe::answer_at(&control)
}

struct Held<'a> {
    dir: &'a Path,
    kind: String,
    fds: Vec<(String, OwnedFd)>,
}

impl Held<'_> {
    fn keep(&mut self, name: String, file: impl Into<OwnedFd>) {
        self.fds.push((name, file.into()));
    }

    /// Files that nobody replaces, of which something can be said afterwards.
    fn witnesses(&mut self) -> Result<()> {
        self.keep("witness".into(), positioned(&self.dir.join("witness"))?);
        let (reader, writer) = pipe()?;
        nix::unistd::write(&writer, b"in the pipe")?;
        self.keep("witness-read".into(), reader);
        self.keep("witness-write".into(), writer);
        Ok(())
    }

    /// Locks of ranges belong to a process: of every second file the one has it, of the rest the
    /// other, through an opening of its own with the same number.
    fn lock_every_other(&mut self, first: usize) -> Result<()> {
        let is_one = |(name, _): &&mut (String, OwnedFd)| name.starts_with("locked-by-turns");
        for (name, file) in self.fds.iter_mut().filter(is_one).skip(first).step_by(2) {
            let path = self.dir.join(&*name);
            let own = OpenOptions::new().read(true).write(true).open(path)?;
            nix::unistd::dup2(&own, file)?;
            drop(own);
            fcntl(&*file, FcntlArg::F_SETLK(&range()))?;
        }
        Ok(())
    }

    /// The same through the open files that both have.
    fn lock_what_is_shared(&self) -> Result<()> {
        let is_one = |(name, _): &&(String, OwnedFd)| {
            name.starts_with("locked-by-child") || name.starts_with("locked-by-both")
        };
        for (_, file) in self.fds.iter().filter(is_one) {
            fcntl(file, FcntlArg::F_SETLK(&range()))?;
        }
        Ok(())
    }

    /// What the other process has locked, a range behind it.
    fn lock_another_range(&self) -> Result<()> {
        let is_one = |(name, _): &&(String, OwnedFd)| name.starts_with("locked-by-both");
        for (_, file) in self.fds.iter().filter(is_one) {
            fcntl(file, FcntlArg::F_SETLK(&libc::flock { l_start: 7, ..range() }))?;
        }
        Ok(())
    }

    /// A process that has the same table of file descriptors takes the lock, and waits for ever.
    fn lock_by_another_of_the_table(&self) -> Result<()> {
        if self.kind != "locked-by-table" {
            return Ok(());
        }
        let (locked, is_locked) = pipe()?;
        // SAFETY: there is one thread, and without a stack of its own the child goes on as after a fork.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0) };
        if Errno::result(child)? == 0 {
            let is_one = |(name, _): &&(String, OwnedFd)| name.starts_with("locked-by-table");
            for (_, file) in self.fds.iter().filter(is_one) {
                fcntl(file, FcntlArg::F_SETLK(&range()))?;
            }
            nix::unistd::write(&is_locked, b"x")?;
            loop {
                nix::unistd::pause();
            }
        }
        File::from(locked).read_exact(&mut [0])?;
        Ok(())
    }

    /// Opens one, and whatever is its other end as `KIND.N.other`.
    fn open(&mut self, number: usize) -> Result<()> {
        let name = format!("{}.{number}", self.kind);
        let path = self.dir.join(&name);
        let port = 8000 + u16::try_from(number)?;
        let kind = self.kind.clone();
        let (file, other): (OwnedFd, Option<OwnedFd>) = match kind.as_str() {
            "file" => (positioned(&path)?.into(), None),
            "deleted" => {
                let file = positioned(&path)?;
                fs::remove_file(&path)?;
                (file.into(), None)
            }
            "directory" => {
                fs::create_dir(&path)?;
                fs::write(path.join("name"), "original")?;
                (File::open(&path)?.into(), None)
            }
            // Opened to read, to write, for both; and again.
            "opened" => (opened(&path, number % 3)?.into(), None),
            "device" => (OpenOptions::new().read(true).write(true).open("/dev/zero")?.into(), None),
            "pipe-read" | "pipe-write" => ends(kind == "pipe-read", pipe()?)?,
            "fifo-read" | "fifo-write" => {
                mkfifo(&path, Mode::from_bits_truncate(0o600))?;
                let reader =
                    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
                let writer = OpenOptions::new().write(true).open(&path)?;
                ends(kind == "fifo-read", (reader.into(), writer.into()))?
            }
            "tty-slave" | "tty-master" => {
                let pair = openpty(None, None)?;
                match kind == "tty-slave" {
                    true => {
                        nix::unistd::write(&pair.master, b"typed\n")?;
                        (pair.slave, Some(pair.master))
                    }
                    false => (pair.master, Some(pair.slave)),
                }
            }
            "unix-pair" => pair(SockType::Stream)?,
            "unix-dgram-pair" => pair(SockType::Datagram)?,
            "unix-seqpacket-pair" => pair(SockType::SeqPacket)?,
            "unix-listen" => {
                let listener = UnixListener::bind(&path)?;
                (listener.into(), Some(UnixStream::connect(&path)?.into()))
            }
            "unix-connected" => {
                let listener = UnixListener::bind(&path)?;
                let client = UnixStream::connect(&path)?;
                let (server, _) = listener.accept()?;
                nix::unistd::write(&client, b"queued")?;
                self.keep(format!("{name}.listener"), listener);
                (client.into(), Some(server.into()))
            }
            "unix-dgram" => {
                let bound = UnixDatagram::bind(&path)?;
                let client = UnixDatagram::unbound()?;
                client.connect(&path)?;
                (bound.into(), Some(client.into()))
            }
            "unix-seqpacket-listen" => {
                let socket = socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?;
                nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
                nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(5)?)?;
                let client = connected_to(&path)?;
                let server = nix::sys::socket::accept(socket.as_raw_fd())?;
                // SAFETY: accept has just returned it.
                let server = unsafe { OwnedFd::from_raw_fd(server) };
                self.keep(format!("{name}.client"), client);
                self.keep(format!("{name}.server"), server);
                (socket, Some(connected_to(&path)?))
            }
            "tcp-listen" => (TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.into(), None),
            "tcp6-listen" => (TcpListener::bind((Ipv6Addr::LOCALHOST, port))?.into(), None),
            "tcp" => connected(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?)?,
            "tcp6" => connected(TcpListener::bind((Ipv6Addr::LOCALHOST, port))?)?,
            "udp" => (UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?.into(), None),
            "udp6" => (UdpSocket::bind((Ipv6Addr::LOCALHOST, port))?.into(), None),
            "udp-connected" => {
                let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
                let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                client.connect((Ipv4Addr::LOCALHOST, port))?;
                (client.into(), Some(peer.into()))
            }
            "raw" => (socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?, None),
            "packet" => {
                let everything = i32::from((libc::ETH_P_ALL as u16).to_be());
                (socket(libc::AF_PACKET, libc::SOCK_DGRAM, everything)?, None)
            }
            "netlink" => (socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?, None),
            "eventfd" => (EventFd::from_value(3)?.into(), None),
            "epoll" => {
                let epoll = Epoll::new(EpollCreateFlags::empty())?;
                let (reader, writer) = pipe()?;
                epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 7))?;
                nix::unistd::write(&writer, b"queued")?;
                self.keep(format!("{name}.watched"), reader);
                (epoll.0, Some(writer))
            }
            "timerfd" => {
                (TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())?.into(), None)
            }
            "signalfd" => {
                let mut set = SigSet::empty();
                set.add(Signal::SIGUSR2);
                set.thread_block()?;
                nix::sys::signal::raise(Signal::SIGUSR2)?;
                (SignalFd::new(&set)?.into(), None)
            }
            "inotify" => {
                // A file system whose files CRIU finds again, which overlayfs is not.
                let watched = Path::new("/dev/shm").join(&name);
                fs::create_dir(&watched)?;
                let inotify = Inotify::init(InitFlags::IN_NONBLOCK)?;
                inotify.add_watch(&watched, AddWatchFlags::IN_CREATE)?;
                (inotify.into(), None)
            }
            "memfd" => {
                let mut memory = File::from(memfd_create(
                    CString::new(name.clone())?.as_c_str(),
                    MFdFlags::empty(),
                )?);
                memory.write_all(b"in memory")?;
                (memory.into(), None)
            }
            "pidfd" => (pidfd_of_ourselves()?, None),
            "fanotify" => (watched_by_fanotify(&Path::new("/dev/shm").join(&name))?, None),
            "symlink" => {
                std::os::unix::fs::symlink("witness", &path)?;
                let link = libc::O_PATH | libc::O_NOFOLLOW;
                (OpenOptions::new().read(true).custom_flags(link).open(&path)?.into(), None)
            }
            "tun" => (OpenOptions::new().read(true).write(true).open("/dev/net/tun")?.into(), None),
            "tun-interface" => (interface(number)?.into(), None),
            "namespace" => (File::open("/proc/self/ns/uts")?.into(), None),
            "leased-read" | "leased-write" => (leased(&path, &kind)?.into(), None),
            "locked-flock" | "locked-posix" | "locked-ofd" => (locked(&path, &kind)?.into(), None),
            "locked-by-turns" | "locked-by-child" | "locked-by-both" | "locked-by-table" => {
                (positioned(&path)?.into(), None)
            }
            "locked-in-flight" => {
                let (left, right) = UnixStream::pair()?;
                let file = locked(&path, "locked-flock")?;
                send(&left, &file)?;
                self.keep(format!("{name}.file"), file);
                (right.into(), Some(left.into()))
            }
            "locked-deleted" => {
                let file = locked(&path, "locked-flock")?;
                fs::remove_file(&path)?;
                (file.into(), None)
            }
            "locked-directory" => {
                fs::create_dir(&path)?;
                (flocked(File::open(&path)?)?.into(), None)
            }
            "watched" => {
                let (reader, writer) = pipe()?;
                let epoll = Epoll::new(EpollCreateFlags::empty())?;
                epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 7))?;
                nix::unistd::write(&writer, b"queued")?;
                self.keep(format!("{name}.epoll"), epoll.0);
                (reader, Some(writer))
            }
            "in-flight" => {
                let (left, right) = UnixStream::pair()?;
                send(&left, &positioned(&self.dir.join(format!("carried.{number}")))?)?;
                (right.into(), Some(left.into()))
            }
            "locked-mapped" => {
                let file = locked(&path, "locked-posix")?;
                words_of::<1>(&file)?[0].store(1, Ordering::SeqCst);
                (file.into(), None)
            }
            "mapped-file" | "mapped-memfd" => {
                let mut file = match kind.as_str() {
                    "mapped-file" => positioned(&path)?,
                    _ => File::from(memfd_create(c"mapped", MFdFlags::empty())?),
                };
                words_of::<1>(&file)?[0].store(u64::try_from(number)? + 1, Ordering::SeqCst);
                file.rewind()?;
                (file.into(), None)
            }
            // The first process of a container leads its session.
            "console" | "console-current" => {
                let pair = openpty(None, None)?;
                set_controlling_terminal(&pair.slave)?;
                if kind == "console-current" {
                    let current = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
                    self.keep(format!("{name}.current"), current);
                }
                (pair.slave, Some(pair.master))
            }
            other => bail!("no kind {other}"),
        };
        self.keep(name.clone(), file);
        if let Some(other) = other {
            self.keep(format!("{name}.other"), other);
        }
        Ok(())
    }
}

/// A file of ten bytes, of which four have been read.
fn positioned(path: &Path) -> Result<File> {
    fs::write(path, "0123456789")?;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    file.read_exact(&mut [0; 4])?;
    Ok(file)
}

/// A file with a lock of its kind on bytes 2 to 4, or on all of it.
fn locked(path: &Path, kind: &str) -> Result<File> {
    let file = positioned(path)?;
    match kind {
        "locked-flock" => return flocked(file),
        "locked-posix" => drop(fcntl(&file, FcntlArg::F_SETLK(&range()))?),
        _ => drop(fcntl(&file, FcntlArg::F_OFD_SETLK(&range()))?),
    }
    Ok(file)
}

fn flocked(file: File) -> Result<File> {
    let lock = Flock::lock(file.try_clone()?, FlockArg::LockExclusive);
    // It stays locked by the other descriptor of the open file.
    std::mem::forget(lock.map_err(|(_, error)| error)?);
    Ok(file)
}

/// Bytes 2 to 4, to write.
fn range() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 2,
        l_len: 3,
        l_pid: 0,
    }
}

/// A file of ten bytes, opened to read, to write or for both, at the fourth.
fn opened(path: &Path, mode: usize) -> Result<File> {
    fs::write(path, "0123456789")?;
    let mut file = OpenOptions::new().read(mode != 1).write(mode != 0).open(path)?;
    file.seek(std::io::SeekFrom::Start(4))?;
    Ok(file)
}

/// A connection to a socket of packets.
fn connected_to(path: &Path) -> Result<OwnedFd> {
    let client = socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client)
}

/// A file with a lease, of the only kind that it can have as it is opened.
fn leased(path: &Path, kind: &str) -> Result<File> {
    let (file, lease) = match kind {
        "leased-read" => {
            drop(positioned(path)?);
            let mut file = File::open(path)?;
            file.read_exact(&mut [0; 4])?;
            (file, libc::F_RDLCK)
        }
        _ => (positioned(path)?, libc::F_WRLCK),
    };
    // SAFETY: the request takes a number.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) })?;
    Ok(file)
}

/// A tun device, with an interface of its own in the container's network.
fn interface(number: usize) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    odd::attach(&file, &format!("tun{number}"))?;
    Ok(file)
}

/// Sends "queued" with an open file, which nobody else has.
fn send(socket: &UnixStream, carried: &File) -> Result<()> {
    let fds = [carried.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let text = [IoSlice::new(b"queued")];
    sendmsg::<()>(socket.as_raw_fd(), &text, &control, MsgFlags::empty(), None)?;
    Ok(())
}

fn set_controlling_terminal(slave: &OwnedFd) -> Result<()> {
    // SAFETY: the request takes a number.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

fn watched_by_fanotify(path: &Path) -> Result<OwnedFd> {
    use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
    fs::write(path, "")?;
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK;
    let group = Fanotify::init(flags, EventFFlags::O_RDONLY)?;
    group.mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_MODIFY, nix::fcntl::AT_FDCWD, Some(path))?;
    Ok(group.into())
}

/// The one end and the other, with something between them.
fn ends(reading: bool, (reader, writer): (OwnedFd, OwnedFd)) -> Result<(OwnedFd, Option<OwnedFd>)> {
    nix::unistd::write(&writer, b"queued")?;
    Ok(if reading { (reader, Some(writer)) } else { (writer, Some(reader)) })
}

/// Two connected sockets, with something to read in each.
fn pair(kind: SockType) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let (left, right) = socketpair(AddressFamily::Unix, kind, None, SockFlag::empty())?;
    nix::unistd::write(&left, b"queued")?;
    nix::unistd::write(&right, b"queued")?;
    Ok((left, Some(right)))
}

fn connected(listener: TcpListener) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((client.into(), Some(server.into())))
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: the call takes three numbers; what it returns is a new descriptor or an error.
    let fd = Errno::result(unsafe { libc::socket(domain, kind, protocol) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pidfd_of_ourselves() -> Result<OwnedFd> {
    // SAFETY: the call takes two numbers; what it returns is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(libc::getpid()), 0) };
    let fd = i32::try_from(Errno::result(fd)?)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
