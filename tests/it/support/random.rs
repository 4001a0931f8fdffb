//! Everything that a container might do to its files, at random.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use ocicle::snapshot::{PackedPart, ShownAt, Shows};

/// A seeded source of choices (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    pub fn name(&mut self) -> Vec<u8> {
        match self.below(12) {
            0 => vec![b'n', 0xff, b'0' + self.below(4) as u8],
            1 => [vec![b'l'; 254], vec![b'0' + self.below(3) as u8]].concat(),
            2 => format!(".wh.x{}", self.below(3)).into_bytes(),
            3 => format!("a b\n{}", self.below(3)).into_bytes(),
            4 => format!("d{}", self.below(4)).into_bytes(),
            _ => format!("f{}", self.below(12)).into_bytes(),
        }
    }
}

pub fn all_paths(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut dirs, mut files) = (vec![root.to_owned()], Vec::new());
    let mut at = 0;
    while at < dirs.len() {
        for entry in fs::read_dir(&dirs[at]).unwrap() {
            let entry = entry.unwrap();
            let list = if entry.file_type().unwrap().is_dir() { &mut dirs } else { &mut files };
            list.push(entry.path());
        }
        at += 1;
    }
    dirs.sort();
    files.sort();
    (dirs, files)
}

/// What a snapshot shows at every path of a root that a system call takes, and at paths that are not
/// there.
pub fn shown_at_all(snapshot: &dyn Shows, root: &Path) -> Vec<(PathBuf, ShownAt)> {
    let mut there = vec![root.to_owned()];
    let mut at = 0;
    while at < there.len() {
        if there[at].symlink_metadata().is_ok_and(|found| found.is_dir()) {
            let entries = fs::read_dir(&there[at]).unwrap().map(|entry| entry.unwrap().path());
            there.extend(entries.filter(|path| path.symlink_metadata().is_ok()));
        }
        at += 1;
    }
    let absent: Vec<_> = there.iter().map(|path| path.join("nothing of this name")).collect();
    let paths = absent.into_iter().chain(there);
    let below = |path: PathBuf| path.strip_prefix(root).unwrap().to_owned();
    let shown = |path: PathBuf| (snapshot.shows(path.as_os_str().as_bytes()), path);
    paths.map(below).map(shown).map(|(shown, path)| (path, shown)).collect()
}

/// Once it is packed, it shows the same.
#[track_caller]
pub fn assert_still_shown(part: &PackedPart, before: &[(PathBuf, ShownAt)]) {
    for (path, shown) in before {
        assert_eq!(part.shows(path.as_os_str().as_bytes()), *shown, "{}", path.display());
    }
}

pub fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

pub fn node(path: &Path, kind: SFlag, device: u64) -> nix::Result<()> {
    mknod(path, kind, Mode::from_bits_truncate(0o640), device)
}

/// user::rw-, user:7:rw-, group::r--, mask::rw-, other::r-- (include/uapi/linux/posix_acl_xattr.h)
pub fn acl(mask: u8) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (1_u16, 6_u8, u32::MAX),
        (2, 6, 7),
        (4, 4, u32::MAX),
        (0x10, mask, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(u16::from(rights).to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// cap_net_bind_service+ep, version 2
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One thing that a container might do. What the kernel refuses is no change.
pub fn change(root: &Path, dice: &mut Dice) {
    let (dirs, files) = all_paths(root);
    let dir = dirs[dice.below(dirs.len())].clone();
    let new = dir.join(OsStr::from_bytes(&dice.name()));
    let old = if files.is_empty() { new.clone() } else { files[dice.below(files.len())].clone() };
    let is_file = old.symlink_metadata().is_ok_and(|stat| stat.is_file());
    let any = if dice.below(3) == 0 { dir.clone() } else { old.clone() };
    if any.symlink_metadata().is_err() {
        return;
    }
    let any_is_link = any.is_symlink();
    let length = [0, 1, 511, 4096, 70_000][dice.below(5)];
    match dice.below(24) {
        // Never into a device or a fifo that stands there.
        0..=3 if new.symlink_metadata().map_or(true, |stat| stat.is_file()) => {
            fs::write(&new, dice.bytes(length)).unwrap();
        }
        4 | 5 if is_file => {
            let file = File::options().write(true).open(&old).unwrap();
            file.write_all_at(&dice.bytes(10), dice.below(5000) as u64).unwrap();
        }
        6 if is_file => {
            drop(File::options().write(true).open(&old).unwrap().set_len(length as u64));
        }
        7 if is_file => {
            let file = File::options().write(true).open(&old).unwrap();
            file.write_all_at(&dice.bytes(1000), (dice.below(40) * 100_000) as u64).unwrap();
        }
        8 | 9 => drop(fs::rename(&old, &new)),
        10 if dir != root => drop(fs::rename(&dir, &new)),
        11 | 12 => drop(fs::remove_file(&old)),
        13 if dir != root && dice.below(2) == 0 => fs::remove_dir_all(&dir).unwrap(),
        14 | 15 => drop(fs::create_dir(&new)),
        16 => drop(symlink(OsStr::from_bytes(&dice.name()), &new)),
        17 => drop(fs::hard_link(&old, &new)),
        18 => {
            let device = makedev(dice.below(9) as u64 + 1, dice.below(70_000) as u64);
            let kinds = [SFlag::S_IFCHR, SFlag::S_IFBLK, SFlag::S_IFIFO, SFlag::S_IFSOCK];
            let _ = node(&new, kinds[dice.below(4)], device);
        }
        19 if !any_is_link => {
            let mode = [0o644, 0o4755, 0o2711, 0o1777, 0o000, 0o600][dice.below(6)];
            fs::set_permissions(&any, fs::Permissions::from_mode(mode)).unwrap();
        }
        20 => {
            let (uid, gid) = (dice.below(3) as u32 * 1000, dice.below(4_000_000) as u32);
            std::os::unix::fs::lchown(&any, Some(uid), Some(gid)).unwrap();
        }
        21 if !any_is_link && (is_file || any == dir) => {
            let name = format!("user.k{}", dice.below(3));
            if dice.below(3) == 0 {
                let _ = xattr::remove(&any, name);
            } else {
                xattr::set(&any, name, &dice.bytes(30)).unwrap();
            }
        }
        22 if is_file => match dice.below(3) {
            0 => xattr::set(&old, "security.capability", &CAPABILITY).unwrap(),
            1 => xattr::set(&old, "system.posix_acl_access", &acl(dice.below(8) as u8)).unwrap(),
            _ => xattr::set(&dir, "system.posix_acl_default", &acl(6)).unwrap(),
        },
        23 => {
            set_times(
                &any,
                [-5, 0, 1_700_000_000][dice.below(3)],
                dice.below(1_000_000_000) as i64,
            );
        }
        _ => {}
    }
}

pub fn changes(root: &Path, dice: &mut Dice, count: usize) {
    for _ in 0..count {
        change(root, dice);
    }
}
