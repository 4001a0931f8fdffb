//! Subvolumes of btrfs: the few ioctls of include/uapi/linux/btrfs.h that snapshots need.
#![expect(unsafe_code, reason = "ioctls take pointers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

const MAGIC: u64 = 0x9123_683e;
/// The inode number of the top of every subvolume (BTRFS_FIRST_FREE_OBJECTID).
const TOP: u64 = 256;
/// The subvolume that holds all others (BTRFS_FS_TREE_OBJECTID).
const TOP_LEVEL: &str = "5";
const SNAP_DESTROY: u32 = request(1, 15, 4096);
const SNAP_CREATE_V2: u32 = request(1, 23, 4096);
const SUBVOL_GETFLAGS: u32 = request(2, 25, 8);
const SUBVOL_SETFLAGS: u32 = request(1, 26, 8);
const GET_SUBVOL_ROOTREF: u32 = request(3, 61, 4096);
const READ_ONLY: u64 = 1 << 1;
/// BTRFS_SUBVOL_NAME_MAX of the second version.
const NAME_LIMIT: usize = 4039;

/// `_IOC(direction, BTRFS_IOCTL_MAGIC, number, size)` of asm-generic/ioctl.h.
const fn request(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | 0x94 << 8 | number
}

/// struct btrfs_ioctl_vol_args
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

/// struct btrfs_ioctl_vol_args_v2
#[repr(C)]
struct NamedV2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_LIMIT + 1],
}

/// struct btrfs_ioctl_get_subvol_rootref_args
#[repr(C)]
struct Below {
    least: u64,
    /// Of each subvolume its number and the directory's that it is in.
    found: [[u64; 2]; 255],
    count: u8,
    align: [u8; 7],
}

/// Whether this is the top of a subvolume.
pub fn is_subvolume(directory: impl AsFd) -> io::Result<bool> {
    let is_top = rustix::fs::fstat(&directory)?.st_ino == TOP;
    Ok(is_top && rustix::fs::fstatfs(directory)?.f_type as u64 & 0xffff_ffff == MAGIC)
}

/// Makes a snapshot of a subvolume, under a name in another directory of the same file system.
/// Subvolumes inside of it are empty directories there.
pub fn snapshot(
    subvolume: impl AsFd,
    directory: impl AsFd,
    name: &str,
    read_only: bool,
) -> io::Result<()> {
    let subvolume = readable(subvolume)?;
    let mut arguments = NamedV2 {
        fd: subvolume.as_raw_fd().into(),
        transaction: 0,
        flags: if read_only { READ_ONLY } else { 0 },
        unused: [0; 4],
        name: [0; NAME_LIMIT + 1],
    };
    fill(&mut arguments.name, name.as_bytes())?;
    call(&readable(directory)?, SNAP_CREATE_V2, &raw mut arguments)
}

/// Destroys the subvolume of that name. Its space is given back later, in the background.
///
/// # Errors
/// `ENOTEMPTY` when there is another subvolume in it.
pub fn destroy(directory: impl AsFd, name: &[u8]) -> io::Result<()> {
    let mut arguments = Named { fd: 0, name: [0; 4088] };
    fill(&mut arguments.name, name)?;
    call(&readable(directory)?, SNAP_DESTROY, &raw mut arguments)
}

/// Whether nothing can be written to a subvolume.
pub fn is_read_only(subvolume: impl AsFd) -> io::Result<bool> {
    let mut flags = 0_u64;
    call(&readable(subvolume)?, SUBVOL_GETFLAGS, &raw mut flags)?;
    Ok(flags & READ_ONLY != 0)
}

/// Lets a subvolume be written to.
pub fn set_writable(subvolume: impl AsFd) -> io::Result<()> {
    let mut flags = 0_u64;
    call(&readable(subvolume)?, SUBVOL_SETFLAGS, &raw mut flags)
}

/// Whether there are other subvolumes inside a subvolume (Linux 4.18).
pub fn holds_others(subvolume: impl AsFd) -> io::Result<bool> {
    let mut arguments = Below { least: 0, found: [[0; 2]; 255], count: 0, align: [0; 7] };
    match call(&readable(subvolume)?, GET_SUBVOL_ROOTREF, &raw mut arguments) {
        // More than fit.
        Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Ok(arguments.count > 0),
    }
}

/// Mounts the subvolume that holds all others of a file system, attached nowhere.
pub fn top_level(device: &[u8]) -> io::Result<OwnedFd> {
    let context = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", device)?;
    fsconfig_set_string(&context, "subvolid", TOP_LEVEL)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// An ioctl wants no `O_PATH` descriptor.
fn readable(directory: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, ".", flags, Mode::empty())?)
}

fn fill(field: &mut [u8], name: &[u8]) -> io::Result<()> {
    if name.is_empty() || name.len() >= field.len() || name.contains(&0) || name.contains(&b'/') {
        return Err(Errno::INVAL.into());
    }
    field[..name.len()].copy_from_slice(name);
    Ok(())
}

fn call<T>(directory: &OwnedFd, request: u32, argument: *mut T) -> io::Result<()> {
    // SAFETY: each request above carries the size of what its argument points to, a live value of
    // the type that the kernel's header names for it.
    match unsafe { libc::ioctl(directory.as_raw_fd(), request.into(), argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_as_large_as_the_requests_say() {
        assert_eq!(size_of::<Named>(), 4096);
        assert_eq!(size_of::<NamedV2>(), 4096);
        assert_eq!(size_of::<Below>(), 4096);
        // The numbers that <linux/btrfs.h> gives.
        assert_eq!(SNAP_CREATE_V2, 0x5000_9417);
        assert_eq!(SNAP_DESTROY, 0x5000_940f);
        assert_eq!(SUBVOL_GETFLAGS, 0x8008_9419);
    }

    #[test]
    fn what_is_no_btrfs_has_no_subvolume() {
        let directory = tempfile::tempdir().unwrap();
        let directory = std::fs::File::open(directory.path()).unwrap();
        assert!(!is_subvolume(&directory).unwrap());
        assert!(destroy(&directory, b"a/b").is_err() && destroy(&directory, b"").is_err());
    }
}
