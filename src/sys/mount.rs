//! Mounts that are attached nowhere: seen through their descriptor, gone with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

/// A copy of the mount at `path` without the mounts on top of it (open_tree(2), Linux 5.2).
pub fn clone_of(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

/// Mounts an empty tmpfs that only root enters.
pub fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0700")?;
    // Not half of the memory, as is usual: the caller knows how much there is room for.
    fsconfig_set_string(&context, "size", "0")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The layers of a read-only overlay, and the options that decide what it shows.
#[derive(Default)]
pub struct Lowers<'a> {
    /// Directories that are merged, the uppermost first.
    pub layers: &'a [OwnedFd],
    /// Directories that only give the data of metacopy files.
    pub data_only: &'a [OwnedFd],
    /// `metacopy=on`
    pub metacopy: bool,
    /// `redirect_dir=follow`
    pub redirect: bool,
    /// `userxattr`
    pub user_xattr: bool,
}

/// Mounts an overlay of lower layers alone, read-only and attached nowhere.
///
/// The layers are named by `/proc/self/fd/N`, which needs no escape and stays below the 256 bytes
/// that fsconfig(2) takes.
pub fn overlay_of_lowers(lowers: &Lowers<'_>) -> io::Result<OwnedFd> {
    match mount_lowers(lowers, true) {
        // `lowerdir+` came with Linux 6.7.
        Err(Errno::INVAL) => Ok(mount_lowers(lowers, false)?),
        other => Ok(other?),
    }
}

fn mount_lowers(lowers: &Lowers<'_>, one_by_one: bool) -> Result<OwnedFd, Errno> {
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if lowers.user_xattr {
        fsconfig_set_flag(&context, "userxattr")?;
    }
    if lowers.metacopy {
        fsconfig_set_string(&context, "metacopy", "on")?;
    }
    if lowers.redirect {
        fsconfig_set_string(&context, "redirect_dir", "follow")?;
    }
    if one_by_one {
        for layer in lowers.layers {
            fsconfig_set_string(&context, "lowerdir+", name(layer))?;
        }
        for layer in lowers.data_only {
            fsconfig_set_string(&context, "datadir+", name(layer))?;
        }
    } else {
        let mut list = lowers.layers.iter().map(name).collect::<Vec<_>>().join(":");
        for layer in lowers.data_only {
            list.push_str("::");
            list.push_str(&name(layer));
        }
        fsconfig_set_string(&context, "lowerdir", list)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs;

    /// The one way is that of Linux before 6.7, which takes a list.
    #[test]
    fn layers_in_a_list_show_what_they_show_one_by_one() {
        let top = tempfile::tempdir().unwrap();
        let layer = |name: &str, files: &[&str]| {
            let path = top.path().join(name);
            std::fs::create_dir(&path).unwrap();
            files.iter().for_each(|file| std::fs::write(path.join(file), name).unwrap());
            fs::open_host_dir(&path).unwrap()
        };
        let layers = [layer("upper", &["both", "first"]), layer("lower", &["both", "second"])];
        let lowers = Lowers {
            layers: &layers,
            data_only: &[],
            metacopy: false,
            redirect: false,
            user_xattr: false,
        };
        for one_by_one in [true, false] {
            let shown = match mount_lowers(&lowers, one_by_one) {
                // This kernel has only the other way.
                Err(Errno::INVAL) if one_by_one => continue,
                shown => shown.unwrap(),
            };
            let mut names = fs::names(fs::open_dir(&shown, b"").unwrap()).unwrap();
            names.sort();
            assert_eq!(names, [&b"both"[..], b"first", b"second"], "{one_by_one}");
            let both = fs::open_for_reading(fs::open_entry(&shown, b"both").unwrap().unwrap());
            let text = std::io::read_to_string(std::fs::File::from(both.unwrap())).unwrap();
            assert_eq!(text, "upper", "{one_by_one}");
        }
    }
}
