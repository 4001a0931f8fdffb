//! Holds open files that CRIU cannot dump, and shows that they still work.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{Backlog, SockaddrIn, SockaddrLike, accept, bind, listen};
use nix::unistd::{ForkResult, fork, pause};
use serde_json::{Map, Value, json};

use super::probe;

/// The port of the socket of MPTCP.
const PORT: u16 = 7300;

/// What the files with a path hold.
const CONTENT: &str = "0123456789";

/// Opens all of KINDS, forks once so that all is shared, lists them in DIR/fds.json
/// (`{"kind": fd}`), creates DIR/ready and answers on DIR/control: `works KIND`, and what
/// [`probe`] does.
pub fn run(dir: &Path, kinds: &[String]) -> Result<()> {
    let control = UnixListener::bind(dir.join("control")).context("binding the control socket")?;
    let open = |kind: &String| {
        Ok((kind.clone(), open(dir, kind).with_context(|| format!("opening {kind}"))?))
    };
    let held = kinds.iter().map(open).collect::<Result<Vec<_>>>()?;
    let numbers: Map<String, Value> =
        held.iter().map(|(name, fd)| (name.clone(), json!(fd.as_raw_fd()))).collect();
    // SAFETY: there is one thread, so the child may do everything.
    if let ForkResult::Child = unsafe { fork() }? {
        drop(control);
        pause();
        return Ok(());
    }
    fs::write(dir.join("fds.json"), serde_json::to_vec(&numbers)?)?;
    File::create(dir.join("ready"))?;
    for stream in control.incoming() {
        // A caller who went away is no reason to end.
        let _ = serve(&stream?, &held);
    }
    Ok(())
}

fn serve(stream: &UnixStream, held: &[(String, OwnedFd)]) -> Result<()> {
    let mut request = String::new();
    BufReader::new(stream).read_line(&mut request)?;
    let answer = match request.trim_end().split_once(' ') {
        Some(("works", kind)) => {
            let held = held.iter().find(|(name, _)| name == kind);
            let (_, fd) = held.context("no such kind")?;
            works(kind, fd).map_or_else(|error| format!("{error:#}"), |()| "yes".to_owned())
        }
        _ => probe::answer(&request)?,
    };
    writeln!(&*stream, "{answer}")?;
    Ok(())
}

fn open(dir: &Path, kind: &str) -> Result<OwnedFd> {
    Ok(match kind {
        "fuse" => device("/dev/fuse")?.into(),
        "tun" => device("/dev/net/tun")?.into(),
        "mptcp" => mptcp()?,
        "vsock" => socket(libc::AF_VSOCK, 0)?,
        "xdp" => packets()?,
        "perf" => perf()?,
        "userfaultfd" => userfaultfd()?,
        "kvm" => device("/dev/kvm")?.into(),
        "block" => device("/dev/block")?.into(),
        "bpf-hash" => bpf_map(BPF_MAP_TYPE_HASH)?,
        "bpf-ring" => bpf_map(BPF_MAP_TYPE_RINGBUF)?,
        "bpf-program" => bpf_program()?,
        "io-uring" => io_uring()?,
        "queue" => queue()?,
        "unix" => UnixStream::connect(dir.join("outside"))?.into(),
        "private" => private(dir)?.into(),
        "overmounted" => overmounted(&dir.join("mount"))?.into(),
        "locked" => locked(dir)?,
        "taken" => taken(dir)?.into(),
        "mapped" => mapped(dir)?.into(),
        other => bail!("{other} is none that is known"),
    })
}

fn device(path: &str) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

fn socket(family: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
    owned(fd)
}

fn owned(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: a system call has just returned it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn mptcp() -> Result<OwnedFd> {
    let listener = socket(libc::AF_INET, libc::IPPROTO_MPTCP)?;
    bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, PORT))?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

/// A message queue that has lost its name.
fn queue() -> Result<OwnedFd> {
    let name = c"/odd";
    let nothing = std::ptr::null_mut::<libc::mq_attr>();
    let flags = libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the name ends with a NUL, and null stands for the default attributes (mq_open(3)).
    let fd = owned(unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, nothing) })?;
    // SAFETY: the name ends with a NUL.
    ensure!(unsafe { libc::mq_unlink(name.as_ptr()) } == 0, "{}", std::io::Error::last_os_error());
    Ok(fd)
}

fn io_uring() -> Result<OwnedFd> {
    let mut parameters = [0_u8; 120];
    // SAFETY: `struct io_uring_params` has 120 bytes, which the kernel writes to.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr()) };
    owned(fd as i32)
}

/// A counter of the kernel's that counts nothing yet.
fn perf() -> Result<OwnedFd> {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const SIZE: u32 = 64;
    let mut attributes = [0_u32; SIZE as usize / 4];
    attributes[0] = PERF_TYPE_SOFTWARE;
    attributes[1] = SIZE;
    let (this, any, none) = (0, -1, -1);
    // SAFETY: a `struct perf_event_attr` of the first version has 64 bytes (`PERF_ATTR_SIZE_VER0`).
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), this, any, none, 0)
    };
    owned(fd as i32)
}

/// A socket for packets that no protocol sees.
fn packets() -> Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory.
    owned(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })
}

fn userfaultfd() -> Result<OwnedFd> {
    /// linux/userfaultfd.h: without it a capability is needed.
    const UFFD_USER_MODE_ONLY: i32 = 1;
    // SAFETY: the call takes a number.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_NONBLOCK | UFFD_USER_MODE_ONLY) }
        as i32)
}

/// Types of `enum bpf_map_type` (linux/bpf.h).
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// A map of bpf(2), of four pages or pairs.
fn bpf_map(kind: u32) -> Result<OwnedFd> {
    const BPF_MAP_CREATE: i32 = 0;
    let (size, entries) = if kind == BPF_MAP_TYPE_HASH { (4, 4) } else { (0, 4 * 4096) };
    let attributes: [u32; 5] = [kind, size, size, entries, 0];
    bpf(BPF_MAP_CREATE, &attributes)
}

/// A filter for sockets that passes nothing.
fn bpf_program() -> Result<OwnedFd> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u64 = 1;
    // `r0 = 0; exit`
    let instructions: [u64; 2] = [0xb7, 0x95];
    let count = (instructions.len() as u64) << 32;
    let program = [
        BPF_PROG_TYPE_SOCKET_FILTER | count,
        instructions.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        0,
        0,
        0,
    ];
    bpf(BPF_PROG_LOAD, &program)
}

fn bpf<T>(command: i32, attributes: &[T]) -> Result<OwnedFd> {
    let (size, attributes) = (size_of_val(attributes), attributes.as_ptr());
    // SAFETY: the kernel reads so much of a `union bpf_attr`, and what that points to.
    owned(unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) } as i32)
}

/// On a file system that was mounted in a mount namespace of which nobody is any more.
fn private(dir: &Path) -> Result<File> {
    let place = dir.join("private");
    fs::create_dir(&place)?;
    let own = File::open("/proc/self/ns/mnt")?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("private"), &place, Some("tmpfs"), MsFlags::empty(), none)?;
    let file = file_at(&place.join("file"))?;
    setns(own, CloneFlags::CLONE_NEWNS)?;
    Ok(file)
}

/// On a file system over which another is mounted.
fn overmounted(place: &Path) -> Result<File> {
    fs::create_dir(place)?;
    let mount = || mount(Some("over"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>);
    mount()?;
    let file = file_at(&place.join("file"))?;
    mount()?;
    Ok(file)
}

/// As [`overmounted`], and locked.
fn locked(dir: &Path) -> Result<OwnedFd> {
    let file = overmounted(&dir.join("locked"))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let file = lock.try_clone()?.into();
    // It stays locked by the other descriptor of the open file.
    std::mem::forget(lock);
    Ok(file)
}

/// At a path where another file is mounted.
fn taken(dir: &Path) -> Result<File> {
    let (place, other) = (dir.join("taken"), dir.join("taker"));
    let file = file_at(&place)?;
    fs::write(&other, "")?;
    mount(Some(&other), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(file)
}

/// As [`taken`], and mapped.
fn mapped(dir: &Path) -> Result<File> {
    let file = taken(dir)?;
    let length = std::num::NonZero::new(CONTENT.len()).context("no content")?;
    // SAFETY: the kernel chooses where, and nothing uses it.
    unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }?;
    Ok(file)
}

fn file_at(path: &Path) -> Result<File> {
    fs::write(path, CONTENT)?;
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

/// Uses an open file for what it is.
fn works(kind: &str, fd: &OwnedFd) -> Result<()> {
    match kind {
        // Nobody has mounted anything through it.
        "fuse" => expect(probe::read_some(fd.as_fd()), "EPERM"),
        "tun" => attach(fd, ""),
        "mptcp" => connect(fd),
        "vsock" => vsock(fd),
        "xdp" => expect(family(fd)?.to_string(), &libc::AF_XDP.to_string()),
        "userfaultfd" => begin_faults(fd),
        "kvm" => expect(kvm_version(fd)?.to_string(), "12"),
        "block" => expect(block_size(fd)?.to_string(), "512"),
        "bpf-hash" | "bpf-ring" | "bpf-program" => is_bpf(fd),
        "perf" => Ok(File::from(fd.try_clone()?).read_exact(&mut [0; size_of::<u64>()])?),
        "io-uring" => probe_ring(fd),
        "queue" => is_queue(fd),
        "private" | "overmounted" | "locked" | "taken" | "mapped" => {
            let mut bytes = [0; CONTENT.len()];
            File::from(fd.try_clone()?).read_exact_at(&mut bytes, 0)?;
            expect(String::from_utf8_lossy(&bytes).into_owned(), CONTENT)
        }
        _ => bail!("ask the peer"),
    }
}

fn is_queue(fd: &OwnedFd) -> Result<()> {
    // SAFETY: zeroes are an `mq_attr`.
    let mut attributes = unsafe { std::mem::zeroed::<libc::mq_attr>() };
    // SAFETY: the library writes an `mq_attr` to it.
    checked(unsafe { libc::mq_getattr(fd.as_raw_fd(), &raw mut attributes) }.into())
}

fn expect(is: String, wanted: &str) -> Result<()> {
    if is == wanted { Ok(()) } else { bail!("{is}, not {wanted}") }
}

fn checked(result: i64) -> Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// Makes an interface of a tun device, or finds that it is one.
pub fn attach(fd: &impl AsRawFd, name: &str) -> Result<()> {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const TUNGETIFF: u64 = 0x8004_54d2;
    const IFF_TUN_NO_PI: i16 = 0x1001;
    // SAFETY: zeroes are an `ifreq`.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    // SAFETY: the kernel writes an `ifreq` to it.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) } == 0 {
        return Ok(());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TUN_NO_PI;
    // SAFETY: the kernel reads an `ifreq` from it.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) }.into())
}

fn connect(listener: &OwnedFd) -> Result<()> {
    let mut client = TcpStream::connect(("127.0.0.1", PORT))?;
    let mut server = File::from(owned(accept(listener.as_raw_fd())?)?);
    client.write_all(b"x")?;
    let mut byte = [0];
    server.read_exact(&mut byte)?;
    expect(String::from_utf8_lossy(&byte).into_owned(), "x")
}

fn vsock(fd: &OwnedFd) -> Result<()> {
    let address: nix::sys::socket::VsockAddr = nix::sys::socket::getsockname(fd.as_raw_fd())?;
    expect(format!("{:?}", address.family()), "Some(Vsock)")
}

/// The family of a socket that has no address.
fn family(fd: &OwnedFd) -> Result<i32> {
    let mut domain = 0;
    let mut length = size_of_val(&domain) as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_DOMAIN);
    // SAFETY: the kernel writes an integer to it.
    let result = unsafe {
        let value = (&raw mut domain).cast();
        libc::getsockopt(fd.as_raw_fd(), level, option, value, &raw mut length)
    };
    checked(result.into())?;
    Ok(domain)
}

/// Agrees with the kernel on the protocol, or finds that it has done so.
fn begin_faults(fd: &OwnedFd) -> Result<()> {
    /// linux/userfaultfd.h: `struct uffdio_api` is the version, features and requests.
    const UFFDIO_API: u64 = 0xc018_aa3f;
    let mut api = [0xaa_u64, 0, 0];
    // SAFETY: the kernel reads and writes three words.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
    match checked(result.into()) {
        Err(_) if nix::errno::Errno::last() == nix::errno::Errno::EINVAL => Ok(()),
        result => result,
    }
}

fn kvm_version(fd: &OwnedFd) -> Result<i32> {
    const KVM_GET_API_VERSION: u64 = 0xae00;
    // SAFETY: the request takes a number.
    let version = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    checked(version.into()).map(|()| version)
}

fn block_size(fd: &OwnedFd) -> Result<i32> {
    const BLKSSZGET: u64 = 0x1268;
    let mut size = 0_i32;
    // SAFETY: the kernel writes an integer to it.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET, &raw mut size) }.into())?;
    Ok(size)
}

/// Asks the kernel for what it knows of a map or a program.
fn is_bpf(fd: &OwnedFd) -> Result<()> {
    const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
    let mut info = [0_u32; 2];
    let number = fd.as_raw_fd() as u64;
    let attributes = [number | (size_of_val(&info) as u64) << 32, info.as_mut_ptr() as u64];
    // SAFETY: the kernel writes the first two words of what it knows.
    checked(unsafe {
        let attributes = attributes.as_ptr();
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, attributes, 16)
    })
}

fn probe_ring(fd: &OwnedFd) -> Result<()> {
    /// linux/io_uring.h
    const IORING_REGISTER_PROBE: u32 = 8;
    let mut found = [0_u64; 2];
    // SAFETY: a `struct io_uring_probe` for no operation has 16 bytes.
    let result = unsafe {
        let (number, found) = (fd.as_raw_fd(), found.as_mut_ptr());
        libc::syscall(libc::SYS_io_uring_register, number, IORING_REGISTER_PROBE, found, 0)
    };
    checked(result)
}
