//! Holds one thing that a checkpoint may fail over, for whoever foretells it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::{ForkResult, fork, pause, pipe2};

/// Gets into the trouble named, creates DIR/ready and waits for a signal.
pub fn run(kind: &str, dir: &Path) -> Result<()> {
    let held = hold(kind, dir).with_context(|| format!("making {kind}"))?;
    File::create(dir.join("ready"))?;
    pause();
    drop(held);
    Ok(())
}

fn hold(kind: &str, dir: &Path) -> Result<Vec<OwnedFd>> {
    Ok(match kind {
        "none" => Vec::new(),
        "connected" | "backlog" | "time-wait" => tcp(kind)?,
        "corked" => vec![corked()?],
        "raw" => vec![socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?],
        "packet" => vec![socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?],
        "vsock" => vec![socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)?],
        "mptcp" => vec![socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?],
        "netlink" => vec![socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)?],
        "netlink-unread" => vec![unread()?],
        "unix-stream" => vec![UnixStream::connect(dir.join("host/stream"))?.into()],
        "unix-dgram" => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(dir.join("host/dgram"))?;
            vec![socket.into()]
        }
        "unix-pending" | "unix-pending-closed" => pending(kind, dir)?,
        "unix-half" => vec![UnixStream::pair()?.0.into()],
        "lock" => {
            let lock = Flock::lock(File::create(dir.join("locked"))?, FlockArg::LockExclusive)
                .map_err(|(_, error)| error)?;
            let copy = lock.try_clone()?;
            std::mem::forget(lock);
            vec![copy.into()]
        }
        "posix-lock" => vec![posix_lock(dir)?],
        "ghost" | "ghost-mapped" | "sparse-ghost" => ghost(kind, dir)?,
        "unlinked" => {
            fs::write(dir.join("kept"), "x")?;
            fs::hard_link(dir.join("kept"), dir.join("gone"))?;
            opened_and_removed(&dir.join("gone"))?
        }
        "lower-removed" => opened_and_removed(Path::new("/etc/motd"))?,
        "directory-removed" => {
            fs::create_dir(dir.join("cwd"))?;
            std::env::set_current_dir(dir.join("cwd"))?;
            fs::remove_dir(dir.join("cwd"))?;
            Vec::new()
        }
        "overmounted" => {
            fs::create_dir(dir.join("over"))?;
            tmpfs(&dir.join("over"))?;
            let below = File::create(dir.join("over/file"))?;
            tmpfs(&dir.join("over"))?;
            vec![below.into()]
        }
        "covered" => {
            fs::create_dir(dir.join("over"))?;
            let file = File::create(dir.join("over/file"))?;
            tmpfs(&dir.join("over"))?;
            vec![file.into()]
        }
        "taken" => {
            fs::create_dir(dir.join("over"))?;
            let file = File::create(dir.join("over/file"))?;
            tmpfs(&dir.join("over"))?;
            File::create(dir.join("over/file"))?;
            vec![file.into()]
        }
        "inotify-overlay" => vec![watch(dir)?],
        "inotify-etc" => vec![watch(Path::new("/etc"))?],
        "inotify-tmpfs" => vec![watch(Path::new("/dev/shm"))?],
        "packet-pipe" => {
            let (reader, writer) = pipe2(OFlag::O_DIRECT)?;
            vec![reader, writer]
        }
        "pidfd" => vec![pidfd(std::process::id() as i32, 0)?],
        "pidfd-thread" => vec![pidfd(std::process::id() as i32, libc::PIDFD_THREAD)?],
        "io-uring" => vec![io_uring()?],
        "io-uring-mapped" => {
            let ring = io_uring()?;
            map(&ring, 4096)?;
            Vec::new()
        }
        "userfaultfd" => vec![owned(syscall(libc::SYS_userfaultfd, [0; 4]))?],
        "device" => vec![device(libc::S_IFCHR, 10, 229)?],
        "block-device" => vec![device(libc::S_IFBLK, 7, 0)?],
        "tun" => vec![device(libc::S_IFCHR, 10, 200)?],
        "other-namespace" => {
            let file = other_namespace(CloneFlags::CLONE_NEWUTS, "uts")?;
            vec![file.into()]
        }
        "ramfs" => {
            fs::create_dir(dir.join("ram"))?;
            mount(Some("ram"), &dir.join("ram"), Some("ramfs"), MsFlags::empty(), None::<&str>)?;
            Vec::new()
        }
        "tmpfs" => {
            fs::create_dir(dir.join("ram"))?;
            tmpfs(&dir.join("ram"))?;
            vec![File::create(dir.join("ram/file"))?.into()]
        }
        "bind" => {
            fs::create_dir(dir.join("bound"))?;
            let (from, none) = (Some(Path::new("/etc")), None::<&str>);
            mount(from, &dir.join("bound"), none, MsFlags::MS_BIND, none)?;
            Vec::new()
        }
        "nested-pid" => in_child(CloneFlags::CLONE_NEWPID)?,
        "nested-uts" => in_child(CloneFlags::CLONE_NEWUTS)?,
        "nested-user" => in_child(CloneFlags::CLONE_NEWUSER)?,
        "nested-ipc" => in_child(CloneFlags::CLONE_NEWIPC)?,
        "nested-mount" => in_child(CloneFlags::CLONE_NEWNS)?,
        "nested-net" => in_child(CloneFlags::CLONE_NEWNET)?,
        "traced" => traced()?,
        "zombie" => {
            // SAFETY: there is one thread, so the child may do everything.
            if let ForkResult::Child = unsafe { fork() }? {
                std::process::exit(0);
            }
            Vec::new()
        }
        "terminal" => {
            let terminal = nix::pty::openpty(None, None)?;
            vec![terminal.master, terminal.slave]
        }
        other => bail!("{other} is no trouble that is known"),
    })
}

fn owned(number: libc::c_long) -> Result<OwnedFd> {
    let number = RawFd::try_from(Errno::result(number)?)?;
    // SAFETY: the kernel has just given us this number, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn syscall(number: libc::c_long, [a, b, c, d]: [libc::c_long; 4]) -> libc::c_long {
    // SAFETY: the callers give numbers, and pointers to memory that lives longer than the call.
    unsafe { libc::syscall(number, a, b, c, d) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: a call that takes numbers only.
    owned(unsafe { libc::socket(family, kind, protocol) }.into())
}

fn tcp(kind: &str) -> Result<Vec<OwnedFd>> {
    let listener = TcpListener::bind(("127.0.0.1", 7200))?;
    let client = TcpStream::connect(("127.0.0.1", 7200))?;
    if kind == "backlog" {
        return Ok(vec![listener.into(), client.into()]);
    }
    let (server, _) = listener.accept()?;
    if kind == "time-wait" {
        drop((client, server));
        return Ok(vec![listener.into()]);
    }
    Ok(vec![client.into(), server.into()])
}

fn corked() -> Result<OwnedFd> {
    const UDP_CORK: i32 = 1;
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    let on = 1_i32;
    // SAFETY: the option is an int, and the pointer is to one.
    let done = unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_UDP, UDP_CORK, value, 4)
    };
    Errno::result(done)?;
    socket.send_to(b"half", ("127.0.0.1", 7201))?;
    Ok(socket.into())
}

/// A netlink socket to which the kernel has answered.
fn unread() -> Result<OwnedFd> {
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    // RTM_GETLINK for everything: a header, and a body of zeros.
    let mut request = [0_u8; 32];
    request[..4].copy_from_slice(&32_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
    let flags = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::send(socket.as_raw_fd(), &request, flags)?;
    Ok(socket)
}

fn pending(kind: &str, dir: &Path) -> Result<Vec<OwnedFd>> {
    let listener = UnixListener::bind(dir.join("listener"))?;
    let client = UnixStream::connect(dir.join("listener"))?;
    let keep = kind == "unix-pending";
    Ok(if keep { vec![listener.into(), client.into()] } else { vec![listener.into()] })
}

fn posix_lock(dir: &Path) -> Result<OwnedFd> {
    let file = File::create(dir.join("locked"))?;
    // SAFETY: a plain structure of numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    // SAFETY: the pointer is to a structure that lives longer than the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) })?;
    Ok(file.into())
}

/// A deleted file of 4 MiB: open, mapped, or all hole but its last byte.
fn ghost(kind: &str, dir: &Path) -> Result<Vec<OwnedFd>> {
    const SIZE: usize = 4 << 20;
    let path = dir.join("ghost");
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
    match kind {
        "sparse-ghost" => file.set_len(SIZE as u64)?,
        _ => file.write_all(&vec![7; SIZE])?,
    }
    file.sync_all()?;
    fs::remove_file(&path)?;
    let file = OwnedFd::from(file);
    if kind == "ghost-mapped" {
        map(&file, SIZE)?;
        return Ok(Vec::new());
    }
    Ok(vec![file])
}

fn map(file: &OwnedFd, length: usize) -> Result<()> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let length = std::num::NonZeroUsize::new(length).context("a mapping of nothing")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping that nothing refers to.
    unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
    Ok(())
}

fn opened_and_removed(path: &Path) -> Result<Vec<OwnedFd>> {
    let file = File::open(path)?;
    fs::remove_file(path)?;
    Ok(vec![file.into()])
}

fn tmpfs(at: &Path) -> Result<()> {
    Ok(mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>)?)
}

fn watch(path: &Path) -> Result<OwnedFd> {
    let watch = Inotify::init(InitFlags::empty())?;
    watch.add_watch(path, AddWatchFlags::IN_CREATE)?;
    Ok(watch.into())
}

fn pidfd(pid: i32, flags: u32) -> Result<OwnedFd> {
    owned(syscall(libc::SYS_pidfd_open, [pid.into(), flags.into(), 0, 0]))
}

fn io_uring() -> Result<OwnedFd> {
    // `struct io_uring_params`.
    let mut parameters = [0_u8; 120];
    let pointer = parameters.as_mut_ptr() as libc::c_long;
    owned(syscall(libc::SYS_io_uring_setup, [4, pointer, 0, 0]))
}

fn device(kind: libc::mode_t, major: u32, minor: u32) -> Result<OwnedFd> {
    let kind = nix::sys::stat::SFlag::from_bits_truncate(kind);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let path = format!("/dev/{major}-{minor}");
    nix::sys::stat::mknod(
        path.as_str(),
        kind,
        mode,
        nix::sys::stat::makedev(major.into(), minor.into()),
    )?;
    Ok(File::open(path)?.into())
}

/// What a child does once it is as wanted, which the closing of its pipe tells.
fn stay(pipe: (OwnedFd, OwnedFd)) -> ! {
    drop(pipe);
    loop {
        pause();
    }
}

/// Waits until every child has closed its end.
fn await_closed(reader: &OwnedFd, writer: OwnedFd) -> Result<()> {
    drop(writer);
    nix::unistd::read(reader, &mut [0])?;
    Ok(())
}

/// A namespace that no process is in: of a child that has ended.
fn other_namespace(kind: CloneFlags, name: &str) -> Result<File> {
    let (reader, writer) = nix::unistd::pipe()?;
    // SAFETY: there is one thread, so the child may do everything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            unshare(kind)?;
            drop(writer);
            pause();
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            await_closed(&reader, writer)?;
            let file = File::open(format!("/proc/{child}/ns/{name}"))?;
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
            nix::sys::wait::waitpid(child, None)?;
            Ok(file)
        }
    }
}

/// A child that is in a namespace of its own.
fn in_child(kind: CloneFlags) -> Result<Vec<OwnedFd>> {
    let (reader, writer) = nix::unistd::pipe()?;
    // A process namespace is that of children; the others are entered by who makes them.
    let is_for_children = kind == CloneFlags::CLONE_NEWPID;
    if is_for_children {
        unshare(kind)?;
    }
    // SAFETY: there is one thread, so the child may do everything.
    if let ForkResult::Child = unsafe { fork() }? {
        if !is_for_children {
            unshare(kind)?;
        }
        stay((reader, writer));
    }
    await_closed(&reader, writer)?;
    Ok(Vec::new())
}

/// A child that another child traces.
fn traced() -> Result<Vec<OwnedFd>> {
    let (reader, writer) = nix::unistd::pipe()?;
    // SAFETY: there is one thread, so the child may do everything.
    let tracee = match unsafe { fork() }? {
        ForkResult::Child => {
            stay((reader, writer));
        }
        ForkResult::Parent { child } => child,
    };
    // SAFETY: as above.
    if let ForkResult::Child = unsafe { fork() }? {
        nix::sys::ptrace::seize(tracee, nix::sys::ptrace::Options::empty())?;
        stay((reader, writer));
    }
    await_closed(&reader, writer)?;
    Ok(Vec::new())
}
