//! `/proc/PID/mountinfo`, as proc_pid_mountinfo(5) describes it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::cgroup::Membership;
use crate::bytes::ByteString;
use crate::sys::inode::Device;

/// One mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number, the `mnt_id` of an fd's fdinfo.
    pub id: u32,
    /// The number of the mount that this one is mounted on.
    pub parent: u32,
    /// The file system's device, that of its files.
    pub device: Device,
    /// The directory of the file system that is mounted here.
    pub root: ByteString,
    /// Where it is mounted, seen from the reading process's root.
    pub point: ByteString,
    /// Options of this mount (`ro`, `nosuid`, …).
    pub options: ByteString,
    /// Whether changes of the tree below propagate to other mounts.
    pub shared: bool,
    /// The file system's type (`overlay`, `ext4`, …).
    pub kind: String,
    /// What is mounted: a device, or a name without meaning.
    pub source: ByteString,
    /// Options of the file system (`lowerdir=…`).
    pub super_options: ByteString,
}

impl Mount {
    /// Whether it is the hierarchy of version 1 that has a controller.
    pub fn has_controller(&self, controller: &str) -> bool {
        let mut options = self.super_options.as_bytes().split(|byte| *byte == b',');
        self.kind == "cgroup" && options.any(|option| option == controller.as_bytes())
    }

    /// Whether it is the hierarchy that a group is in.
    pub fn shows(&self, group: &Membership) -> bool {
        match group.controllers.first() {
            None => self.kind == "cgroup2",
            Some(first) => self.has_controller(first),
        }
    }

    /// Whether nothing can be written through this mount.
    pub fn is_read_only(&self) -> bool {
        let read_only =
            |options: &ByteString| options.as_bytes().split(|b| *b == b',').any(|o| o == b"ro");
        read_only(&self.options) || read_only(&self.super_options)
    }
}

impl Mount {
    /// Whether it is a FUSE file system: some process serves it.
    pub fn is_fuse(&self) -> bool {
        ["fuse", "fuseblk"].contains(&self.kind.as_str()) || self.kind.starts_with("fuse.")
    }

    /// Whether somebody else than the kernel may have to be asked: a name that is looked up in it, or
    /// a file that is opened, may take any time.
    pub fn is_remote(&self) -> bool {
        const REMOTE: [&str; 12] = [
            "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "autofs", "virtiofs", "lustre",
            "ocfs2", "gfs2",
        ];
        self.is_fuse() || REMOTE.contains(&self.kind.as_str())
    }
}

/// Parses the whole file, in the order of mounting.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<Mount>> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).with_context(|| format!("mountinfo line {:?}", ByteString::from(line)))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Result<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = |what: &'static str| fields.next().with_context(|| format!("it has no {what}"));
    let id = number(next("mount number")?)?;
    let parent = number(next("parent")?)?;
    let device = std::str::from_utf8(next("device")?)?;
    let (major, minor) = device.split_once(':').context("its device has no colon")?;
    let device = Device::new(major.parse()?, minor.parse()?);
    let root = unescape(next("root")?);
    let point = unescape(next("mount point")?);
    let options = unescape(next("options")?);
    let mut shared = false;
    loop {
        match next("separator")? {
            b"-" => break,
            tag => shared |= tag.starts_with(b"shared:"),
        }
    }
    let kind = String::from_utf8_lossy(next("type")?).into_owned();
    let source = unescape(next("source")?);
    let super_options = unescape(next("file system options")?);
    Ok(Mount { id, parent, device, root, point, options, shared, kind, source, super_options })
}

fn number(field: &[u8]) -> Result<u32> {
    Ok(std::str::from_utf8(field)?.parse()?)
}

/// Undoes the kernel's `\ooo` (seq_path and seq_escape in fs/seq_file.c).
fn unescape(field: &[u8]) -> ByteString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                after
            }
            _ => {
                bytes.push(first);
                tail
            }
        };
    }
    bytes.into()
}

/// The mount that holds `path`: the deepest one above it, and of several on one point the last.
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| path.starts_with(mount.point.as_path()))
        .max_by_key(|(order, mount)| (mount.point.as_path().as_os_str().as_bytes().len(), *order))
        .map(|(_, mount)| mount)
}

/// Whether another mount lies over this one, so that nothing leads to it: at the same point on top
/// of it, or above it beside it or one of its parents (`mnt_is_overmounted` in criu/mount.c).
pub fn is_covered(mount: &Mount, mounts: &[Mount]) -> bool {
    let children = |of: u32| mounts.iter().filter(move |child| child.parent == of);
    let mut at = mount;
    // A tree is no deeper than it has mounts.
    for _ in mounts {
        let beside = children(at.parent).filter(|other| other.id != at.id && other.id != at.parent);
        let mut above =
            beside.filter(|other| at.point.as_path().starts_with(other.point.as_path()));
        let parent = mounts.iter().find(|parent| parent.id == at.parent && parent.id != at.id);
        let Some(parent) = parent else { break };
        if above.next().is_some() {
            return true;
        }
        at = parent;
    }
    children(mount.id).any(|child| child.id != mount.id && child.point == mount.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_over_others() {
        let text = b"1 0 0:1 / / rw - ext4 a rw\n\
            2 1 0:2 / /data rw - ext4 b rw\n\
            3 2 0:3 / /data/deep rw - ext4 c rw\n\
            4 2 0:4 / /data rw - tmpfs d rw\n\
            5 1 0:5 / /other rw - tmpfs e rw\n";
        let mounts = parse_mountinfo(text).unwrap();
        let covered: Vec<_> = mounts
            .iter()
            .filter(|mount| is_covered(mount, &mounts))
            .map(|mount| mount.id)
            .collect();
        assert_eq!(covered, [2, 3]);
    }

    const SAMPLE: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        36 22 0:31 / /a\\040b rw,nosuid shared:7 master:2 - overlay overlay ro,lowerdir=/l\\054x:/m,upperdir=/u\n";

    #[test]
    fn fields_and_escapes() {
        let mounts = parse_mountinfo(SAMPLE).unwrap();
        assert_eq!(mounts[0].device, Device::new(254, 0));
        assert!(!mounts[0].shared && !mounts[0].is_read_only());
        assert_eq!(mounts[1].point.as_bytes(), b"/a b");
        assert_eq!(mounts[1].super_options.as_bytes(), b"ro,lowerdir=/l,x:/m,upperdir=/u");
        assert!(mounts[1].shared && mounts[1].is_read_only());
    }

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mounts = parse_mountinfo(SAMPLE).unwrap();
        assert_eq!(mount_of(&mounts, Path::new("/a b/c")).unwrap().id, 36);
        assert_eq!(mount_of(&mounts, Path::new("/a bc")).unwrap().id, 22);
    }

    #[test]
    fn a_cut_line_is_an_error() {
        for end in [3, 10, 20, 42] {
            assert!(parse_mountinfo(&SAMPLE[..end]).is_err(), "{end}");
        }
    }

    fn line(text: &str) -> Result<Mount> {
        parse_line(text.as_bytes())
    }

    #[test]
    fn lines_of_another_form_are_errors() {
        const WHOLE: &str = "1 0 0:1 / / rw - ext4 a rw";
        assert!(line(WHOLE).is_ok());
        for (what, instead) in [
            ("1 0", "x 0"),
            ("1 0", "-1 0"),
            ("1 0", "1 x"),
            ("0:1", "01"),
            ("0:1", "0:x"),
            ("0:1", "0:4294967296"),
            (" - ", " "),
            (" rw - ext4 a rw", ""),
            (" - ext4 a rw", " - ext4 a"),
        ] {
            let other = WHOLE.replacen(what, instead, 1);
            assert!(line(&other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn optional_fields_end_at_the_dash() {
        for (fields, shared) in [
            ("", false),
            (" shared:7", true),
            (" master:1 shared:7", true),
            (" master:1 propagate_from:2 unbindable", false),
            (" unshared:7", false),
        ] {
            let mount = line(&format!("1 0 0:1 / /m rw{fields} - ext4 - rw")).unwrap();
            assert_eq!((mount.shared, mount.kind.as_str()), (shared, "ext4"), "{fields:?}");
            assert_eq!(mount.source.as_bytes(), b"-");
        }
    }

    #[test]
    fn names_are_bytes() {
        for (written, name) in [
            (&br"/a\040b"[..], &b"/a b"[..]),
            (br"/\011\012\134", b"/\t\n\\"),
            (br"/\377\000", b"/\xff\0"),
            // What the kernel does not write stays as it is.
            (br"/\400\08", br"/\400\08"),
            (br"/\04", br"/\04"),
            (b"/\xc3\x28", b"/\xc3\x28"),
        ] {
            assert_eq!(unescape(written).as_bytes(), name);
        }
    }

    #[test]
    fn who_has_to_be_asked() {
        for (kind, is_fuse, is_remote) in [
            ("ext4", false, false),
            ("overlay", false, false),
            ("nfs4", false, true),
            ("fuse", true, true),
            ("fuse.sshfs", true, true),
            ("fuseblk", true, true),
            ("fusectl", false, false),
        ] {
            let mount = line(&format!("1 0 0:1 / /m rw - {kind} - rw")).unwrap();
            assert_eq!((mount.is_fuse(), mount.is_remote()), (is_fuse, is_remote), "{kind}");
        }
    }

    #[test]
    fn hierarchies_show_their_groups() {
        let unified = line("1 0 0:1 / /c rw - cgroup2 cgroup2 rw,nsdelegate").unwrap();
        let cpu = line("2 0 0:2 / /c rw - cgroup cgroup rw,cpu,cpuacct").unwrap();
        let named = line("3 0 0:3 / /c rw - cgroup cgroup rw,name=systemd").unwrap();
        let text = "0::/d\n5:cpuacct,cpu:/d\n1:name=systemd:/d\n7:memory:/d\n";
        let groups = super::super::cgroup::parse_cgroup(text).unwrap();
        for (mount, shown) in [
            (&unified, [true, false, false, false]),
            (&cpu, [false, true, false, false]),
            (&named, [false, false, true, false]),
        ] {
            let shows: Vec<bool> = groups.iter().map(|group| mount.shows(group)).collect();
            assert_eq!(shows, shown, "{}", mount.super_options);
        }
    }
}
