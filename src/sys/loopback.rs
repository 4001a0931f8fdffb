//! The loopback interface of a network namespace.
#![expect(unsafe_code, reason = "ioctls take pointers, and an `ifreq` is a union")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Whether it is up in a namespace, such as `/proc/PID/ns/net`.
pub fn is_up(namespace: &Path) -> io::Result<bool> {
    Ok(is_set(&flags(&socket_in(namespace)?)?))
}

/// Sets it up: the kernel gives it its addresses then (`inetdev_event` in net/ipv4/devinet.c).
pub fn set_up(namespace: &Path) -> io::Result<()> {
    let socket = socket_in(namespace)?;
    let mut request = flags(&socket)?;
    if is_set(&request) {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = of(&request) | libc::IFF_UP as i16;
    // SAFETY: the call reads an `ifreq`, as netdevice(7) says.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// A socket belongs to the namespace that it was made in. A thread of its own enters that, and ends in
/// it.
fn socket_in(namespace: &Path) -> io::Result<OwnedFd> {
    let namespace = File::open(namespace)?;
    let make = || -> io::Result<OwnedFd> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
        Ok(rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?)
    };
    std::thread::scope(|scope| {
        let made = scope.spawn(make).join();
        made.map_err(|_| io::Error::other("the thread panicked"))?
    })
}

fn flags(socket: &OwnedFd) -> io::Result<libc::ifreq> {
    // SAFETY: zeroes are an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = byte.cast_signed() as libc::c_char;
    }
    // SAFETY: the call reads and writes an `ifreq`, as netdevice(7) says.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    Ok(request)
}

fn is_set(request: &libc::ifreq) -> bool {
    i32::from(of(request)) & libc::IFF_UP != 0
}

fn of(request: &libc::ifreq) -> i16 {
    // SAFETY: SIOCGIFFLAGS has set that member.
    unsafe { request.ifr_ifru.ifru_flags }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
