//! Holds open files and does with them what it is asked to: whoever replaced one sees the effect.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek, pipe, read, write};
use serde_json::{Map, Value, json};

/// Opens everything in DIR, lists it in DIR/fds.json (`{"name": fd}`), creates DIR/ready and
/// answers on DIR/control: `read FD`, `ready FD` (whether there is something to read), `write FD TEXT`, `position FD`, `wait FD` (which of the
/// watched are ready, by an epoll instance), `at FD NAME` (a file in a directory), `receive FD` (a
/// message and the files with it), `lease FD` (which one it has), `terminal FD` (of the session; the number does not matter).
pub fn run(dir: &Path) -> Result<()> {
    let control = UnixListener::bind(dir.join("control")).context("binding the control socket")?;
    let held = open(dir)?;
    let numbers: Map<String, Value> =
        held.iter().map(|(name, fd)| ((*name).to_owned(), json!(fd.as_raw_fd()))).collect();
    fs::write(dir.join("fds.json"), serde_json::to_vec(&numbers)?)?;
    File::create(dir.join("ready"))?;
    answer_at(&control)
}

/// Answers, one request a connection.
pub fn answer_at(control: &UnixListener) -> Result<()> {
    for stream in control.incoming() {
        // A caller who went away is no reason to end.
        let _ = serve(&stream?);
    }
    Ok(())
}

fn open(dir: &Path) -> Result<Vec<(&'static str, OwnedFd)>> {
    let mut held: Vec<(&'static str, OwnedFd)> = Vec::new();
    fs::write(dir.join("new"), "a file of the container\n")?;
    for name in ["file", "other"] {
        fs::write(dir.join(name), "0123456789")?;
        let mut file = OpenOptions::new().read(true).write(true).open(dir.join(name))?;
        file.read_exact(&mut [0; 4])?;
        held.push((name, file.into()));
    }
    fs::write(dir.join("locked"), "")?;
    let lock = Flock::lock(File::open(dir.join("locked"))?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)?;
    held.push(("locked", lock.try_clone()?.into()));
    // It stays locked by the other descriptor of the open file as well.
    std::mem::forget(lock);
    let (reader, writer) = pipe()?;
    let (quiet, quiet_writer) = pipe()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    epoll.add(&quiet, EpollEvent::new(EpollFlags::EPOLLIN, 2))?;
    let (left, right) = UnixStream::pair()?;
    let listener = TcpListener::bind(("127.0.0.1", 7100)).context("binding the TCP port")?;
    let client = TcpStream::connect(("127.0.0.1", 7100))?;
    let (server, _) = listener.accept()?;
    let terminal = openpty(None, None)?;
    held.extend([
        ("pipe-read", reader),
        ("pipe-write", writer),
        ("quiet-read", quiet),
        ("quiet-write", quiet_writer),
        ("epoll", epoll.0),
        ("unix-left", left.into()),
        ("unix-right", right.into()),
        ("tcp-listener", listener.into()),
        ("tcp-client", client.into()),
        ("tcp-server", server.into()),
        ("terminal", terminal.slave),
        ("terminal-master", terminal.master),
    ]);
    Ok(held)
}

fn serve(stream: &UnixStream) -> Result<()> {
    let mut request = String::new();
    BufReader::new(stream).read_line(&mut request)?;
    writeln!(&*stream, "{}", answer(&request)?)?;
    Ok(())
}

/// The answer to a request.
pub fn answer(request: &str) -> Result<String> {
    let words: Vec<&str> = request.split_whitespace().collect();
    let fd: RawFd = words.get(1).context("no descriptor")?.parse()?;
    // SAFETY: whether it is open is what the caller wants to know: then the calls below fail.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let answer = match words[..] {
        ["read", _] => read_now(fd),
        ["ready", _] => is_ready(fd).map(|is| if is { "yes" } else { "no" }.to_owned()),
        ["write", _, text] => write(fd, text.as_bytes()).map(|count| count.to_string()),
        ["position", _] => lseek(fd, 0, Whence::SeekCur).map(|position| position.to_string()),
        ["wait", _] => wait(fd),
        ["at", _, name] => read_at(fd, name),
        ["receive", _] => receive(fd),
        ["lease", _] => lease(fd),
        ["terminal", _] => terminal(),
        _ => Ok("unknown request".to_owned()),
    };
    Ok(answer.unwrap_or_else(|error| format!("{error:?}")))
}

/// What a read says, at most some bytes.
pub fn read_some(fd: BorrowedFd<'_>) -> String {
    let mut bytes = [0; 256];
    match read(fd, &mut bytes) {
        Ok(count) => format!("{:?}", String::from_utf8_lossy(&bytes[..count])),
        Err(error) => format!("{error:?}"),
    }
}

fn is_ready(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::from(100_u16))? > 0)
}

/// What can be read without waiting.
fn read_now(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    if !is_ready(fd)? {
        return Ok("nothing".to_owned());
    }
    let mut bytes = [0; 256];
    let count = read(fd, &mut bytes)?;
    Ok(format!("{:?}", String::from_utf8_lossy(&bytes[..count])))
}

/// What a file of a directory holds.
fn read_at(fd: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let file = openat(fd, name, OFlag::O_RDONLY, Mode::empty())?;
    let mut bytes = [0; 256];
    let count = read(&file, &mut bytes)?;
    Ok(format!("{:?}", String::from_utf8_lossy(&bytes[..count])))
}

/// A message that waits in a socket, and what can be read from the files that it carries.
fn receive(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut bytes = [0; 256];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!([RawFd; 8]);
    let message =
        recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let mut carried = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            carried.extend(fds);
        }
    }
    let count = message.bytes;
    let mut said = format!("{:?}", String::from_utf8_lossy(&bytes[..count]));
    for fd in carried {
        // SAFETY: it was received a moment ago.
        said += &format!(" {}", read_now(unsafe { BorrowedFd::borrow_raw(fd) })?);
    }
    Ok(said)
}

/// What lease an open file has.
fn lease(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    // SAFETY: the request takes nothing.
    let lease = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETLEASE) })?;
    Ok(match lease {
        libc::F_RDLCK => "to read",
        libc::F_WRLCK => "to write",
        _ => "none",
    }
    .to_owned())
}

/// Whether the session has a controlling terminal.
fn terminal() -> Result<String, Errno> {
    let tty = nix::fcntl::open("/dev/tty", OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty())?;
    nix::unistd::tcgetpgrp(&tty).map(|_| "a terminal".to_owned())
}

/// What an epoll instance says at once.
fn wait(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    let epoll = Epoll(fd.try_clone_to_owned().map_err(|_| Errno::EBADF)?);
    let mut events = [EpollEvent::empty(); 8];
    let count = epoll.wait(&mut events, 0_u8)?;
    let ready: Vec<_> = events[..count].iter().map(|event| event.data().to_string()).collect();
    Ok(format!("[{}]", ready.join(" ")))
}
