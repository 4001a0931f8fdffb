//! Snapshots of real file systems: taken, changed at random, restored, compared byte by byte.
//!
//! Needs root, and fails without.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use ocicle::snapshot::{Compression, Lookup, Part, PartRecord, Stage, Verb, pack, plan, probe};
use tempfile::TempDir;

/// Runs a test in a mount namespace of its own, in a thread that ends with it.
fn private(test: impl FnOnce() + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "these tests mount, and need root");
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        test();
    })
    .join()
    .unwrap();
}

fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Everything that a program could see of a path, read with other code than the snapshot's.
#[derive(PartialEq, Eq)]
struct Sight {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    mtime: (i64, i64),
    size: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    names: Vec<PathBuf>,
}

impl std::fmt::Debug for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content = blake3::hash(&self.content).to_hex();
        write!(
            f,
            "{:o} {:?} {:x} {:?} {} {} {:?} {:?}",
            self.mode,
            self.owner,
            self.device,
            self.mtime,
            self.size,
            &content[..8],
            self.xattrs,
            self.names
        )
    }
}

type Picture = BTreeMap<PathBuf, Sight>;

fn picture(root: &Path) -> Picture {
    let mut seen = Picture::new();
    let mut names: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    let mut inodes = Vec::new();
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.nlink() > 1 {
            names.entry((stat.dev(), stat.ino())).or_default().push(relative.clone());
        }
        let content = if kind.is_file() {
            fs::read(&path).unwrap()
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let xattrs = xattr::list(&path)
            .unwrap()
            .filter(|name| !name.as_bytes().starts_with(b"trusted.overlay"))
            .map(|name| {
                let value = xattr::get(&path, &name).unwrap().unwrap();
                (name.as_bytes().to_vec(), value)
            })
            .collect();
        inodes.push((relative.clone(), (stat.dev(), stat.ino())));
        let sight = Sight {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            device: if kind.is_char_device() || kind.is_block_device() { stat.rdev() } else { 0 },
            mtime: (stat.mtime(), stat.mtime_nsec()),
            size: if kind.is_dir() { 0 } else { stat.size() },
            content,
            xattrs,
            names: Vec::new(),
        };
        seen.insert(relative, sight);
    }
    for (path, inode) in inodes {
        // One name alone: the others were in lower layers, and a copy upwards has parted them.
        let several = names.get(&inode).filter(|list| list.len() > 1);
        if let (Some(list), Some(sight)) = (several, seen.get_mut(&path)) {
            let mut list = list.clone();
            list.sort();
            sight.names = list;
        }
    }
    seen
}

#[track_caller]
fn assert_same(was: &Picture, is: &Picture, what: &str) {
    let paths: std::collections::BTreeSet<_> = was.keys().chain(is.keys()).collect();
    let wrong: Vec<_> = paths
        .into_iter()
        .filter(|path| was.get(*path) != is.get(*path))
        .map(|path| format!("{path:?}\n  was {:?}\n  is  {:?}", was.get(path), is.get(path)))
        .take(8)
        .collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

/// A seeded source of choices (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    fn name(&mut self) -> Vec<u8> {
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

fn all_paths(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
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

fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

fn node(path: &Path, kind: SFlag, device: u64) -> nix::Result<()> {
    mknod(path, kind, Mode::from_bits_truncate(0o640), device)
}

/// user::rw-, user:7:rw-, group::r--, mask::rw-, other::r-- (include/uapi/linux/posix_acl_xattr.h)
fn acl(mask: u8) -> Vec<u8> {
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
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One thing that a container might do. What the kernel refuses is no change.
fn change(root: &Path, dice: &mut Dice) {
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

fn changes(root: &Path, dice: &mut Dice, count: usize) {
    for _ in 0..count {
        change(root, dice);
    }
}

fn snapshot(root: &Path, top: &Path, version: &str, base: Option<&Part>) -> (PartRecord, Part) {
    compressed(Compression::Zstd, root, top, version, base)
}

/// Takes, seals, packs and opens a snapshot.
fn compressed(
    how: Compression,
    root: &Path,
    top: &Path,
    version: &str,
    base: Option<&Part>,
) -> (PartRecord, Part) {
    let staging = top.join(format!("staging-{version}"));
    let out = top.join(format!("out-{version}"));
    fs::create_dir(&staging).unwrap();
    fs::create_dir_all(&out).unwrap();
    let mut stage = Stage::create(&staging, probe(root).unwrap(), base).unwrap();
    stage.take(&HashSet::new()).unwrap();
    stage.seal().unwrap();
    let record = pack(&staging, &out, "rootfs", how, &()).unwrap();
    let part = Part::open(&out, &record).unwrap();
    (record, part)
}

#[track_caller]
fn restore(root: &Path, part: &Part, was: &Picture, what: &str) {
    let now = probe(root).unwrap();
    plan(&now, part).unwrap().execute(&()).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert_same(was, &picture(root), what);
    let again = plan(&now, part).unwrap();
    let left: Vec<_> = again.actions().iter().map(ToString::to_string).collect();
    assert!(left.is_empty(), "{what}: a second plan is not empty: {left:?}");
}

/// Leaves one name of each inode: an overlay parts the names of a lower inode with the first change,
/// and nothing joins them again.
fn part_links(root: &Path) {
    for path in all_paths(root).1 {
        if path.symlink_metadata().unwrap().nlink() > 1 {
            fs::remove_file(&path).unwrap();
        }
    }
}

/// An overlay whose lower layers hold whiteouts, opaque directories and more of their own.
struct Stack {
    top: TempDir,
    lowers: Vec<PathBuf>,
    options: &'static str,
}

impl Stack {
    fn new(layers: usize, options: &'static str, dice: &mut Dice) -> Self {
        let mut stack = Self { top: scratch(), lowers: Vec::new(), options };
        let first = stack.top.path().join("layer0");
        fs::create_dir(&first).unwrap();
        changes(&first, dice, 250);
        part_links(&first);
        stack.lowers.push(first);
        for number in 1..layers {
            let upper = stack.mounted(&format!("layer{number}"));
            changes(&upper, dice, 80);
            part_links(&upper);
            nix::mount::umount(&upper).unwrap();
            stack.lowers.insert(0, stack.top.path().join(format!("layer{number}")));
        }
        stack
    }

    /// Mounts the layers with a new upper directory, and says where.
    fn mounted(&self, upper: &str) -> PathBuf {
        let dir = |name: String| {
            let dir = self.top.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir
        };
        let (up, work) = (dir(upper.to_owned()), dir(format!("{upper}-work")));
        let merged = dir(format!("{upper}-merged"));
        let lowers: Vec<_> = self.lowers.iter().map(|path| path.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},{}",
            lowers.join(":"),
            up.display(),
            work.display(),
            self.options
        );
        let flags = MsFlags::empty();
        mount(Some("overlay"), &merged, Some("overlay"), flags, Some(&options[..])).unwrap();
        merged
    }
}

fn overlay_round_trip(layers: usize, options: &'static str, seed: u64) {
    private(move || {
        let mut dice = Dice(seed);
        let stack = Stack::new(layers, options, &mut dice);
        let merged = stack.mounted("upper");
        changes(&merged, &mut dice, 120);
        let was = picture(&merged);
        let (_, part) = snapshot(&merged, stack.top.path(), "a", None);
        assert_same(&was, &picture(&merged), "a snapshot changes nothing");
        let untouched = plan(&probe(&merged).unwrap(), &part).unwrap().is_empty();
        assert!(untouched, "nothing was changed");
        for round in 0..4 {
            changes(&merged, &mut dice, 60 << round);
            restore(&merged, &part, &was, &format!("{options} seed {seed} round {round}"));
        }
        let fresh = stack.mounted("fresh");
        assert!(part.index().root.differences(probe(&fresh).unwrap().identity()).is_empty());
        restore(&fresh, &part, &was, &format!("{options} seed {seed}: a new upper directory"));
    });
}

#[test]
fn overlay_with_one_layer() {
    (1..4).for_each(|seed| overlay_round_trip(1, "index=off", seed));
}

#[test]
fn overlay_with_several_layers() {
    (11..14).for_each(|seed| overlay_round_trip(3, "index=off,redirect_dir=nofollow", seed));
}

#[test]
fn overlay_with_metacopy_and_renamed_directories() {
    (21..25).for_each(|seed| overlay_round_trip(3, "metacopy=on,redirect_dir=on", seed));
}

#[test]
fn overlay_with_user_attributes() {
    (31..33).for_each(|seed| overlay_round_trip(2, "userxattr", seed));
}

#[test]
fn directory_round_trip() {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    for seed in 41..45 {
        let mut dice = Dice(seed);
        let top = scratch();
        let root = top.path().join("root");
        fs::create_dir(&root).unwrap();
        changes(&root, &mut dice, 400);
        let was = picture(&root);
        let (_, part) = snapshot(&root, top.path(), "a", None);
        for round in 0..4 {
            changes(&root, &mut dice, 60 << round);
            restore(&root, &part, &was, &format!("seed {seed} round {round}"));
        }
        let empty = top.path().join("empty");
        fs::create_dir(&empty).unwrap();
        restore(&empty, &part, &was, &format!("seed {seed}: an empty directory"));
    }
}

#[test]
fn versions_on_versions() {
    private(|| {
        let mut dice = Dice(51);
        let stack = Stack::new(2, "redirect_dir=on,metacopy=on", &mut dice);
        let merged = stack.mounted("upper");
        let top = stack.top.path();
        let mut versions = Vec::new();
        for number in 0..5 {
            changes(&merged, &mut dice, 80);
            let was = picture(&merged);
            let version = number.to_string();
            let out = top.join(format!("out-{version}"));
            fs::create_dir(&out).unwrap();
            let base: Option<&(Picture, Part)> = versions.last();
            if let Some((_, base)) = base {
                for layer in &base.record().layers {
                    let from = top.join(format!("out-{}", number - 1)).join(&layer.name);
                    fs::hard_link(from, out.join(&layer.name)).unwrap();
                }
            }
            let (_, part) = snapshot(&merged, top, &version, base.map(|(_, part)| part));
            part.verify(&()).unwrap();
            versions.push((was, part));
        }
        for pick in [0, 4, 2, 1, 3, 0] {
            let (was, part) = &versions[pick];
            restore(&merged, part, was, &format!("going to version {pick}"));
        }
    });
}

#[test]
fn layers_make_the_tree_for_gnu_tar() {
    for how in [Compression::None, Compression::Zstd] {
        a_layer_makes_the_tree_for_gnu_tar(how);
    }
}

fn a_layer_makes_the_tree_for_gnu_tar(how: Compression) {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut dice = Dice(61);
    changes(&root, &mut dice, 400);
    // Not in a layer: names of whiteouts, and sockets.
    let (dirs, files) = all_paths(&root);
    for path in dirs.iter().rev().chain(&files) {
        let hidden = path.file_name().unwrap().as_bytes().starts_with(b".wh.");
        let stat = path.symlink_metadata();
        if stat.as_ref().is_ok_and(|stat| stat.file_type().is_socket()) {
            fs::remove_file(path).unwrap();
        } else if hidden && stat.is_ok_and(|stat| stat.is_dir()) {
            fs::remove_dir_all(path).unwrap();
        } else if hidden {
            let _ = fs::remove_file(path);
        }
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    for n in 0..50 {
        sparse.write_all_at(b"data", n * 1_000_000).unwrap();
    }
    sparse.set_len(99_000_001).unwrap();
    let was = picture(&root);
    let (record, part) = compressed(how, &root, top.path(), "a", None);
    let tar = top.path().join("out-a").join(&record.layers[0].name);
    assert!(tar.metadata().unwrap().len() < 8_000_000, "holes are not in the tar");
    assert_eq!(part.read(b"sparse", 100_000_000).unwrap(), fs::read(root.join("sparse")).unwrap());
    let list = Command::new("tar").arg("-tvf").arg(&tar).output().unwrap();
    let complaints = String::from_utf8_lossy(&list.stderr);
    assert!(list.status.success() && complaints.is_empty(), "{complaints}");
    assert_eq!(list.stdout.iter().filter(|b| **b == b'\n').count(), was.len());
    let into = top.path().join("into");
    fs::create_dir(&into).unwrap();
    let extract = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--same-owner", "-xpf"])
        .arg(&tar)
        .arg("-C")
        .arg(&into)
        .output()
        .unwrap();
    assert!(extract.status.success(), "{extract:?}");
    assert_same(&was, &picture(&into), "what GNU tar makes of the layer");
}

#[test]
fn a_second_version_holds_only_what_changed() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("large"), vec![7; 3_000_000]).unwrap();
    fs::write(root.join("copied"), vec![8; 2_000_000]).unwrap();
    fs::write(root.join("gone"), "x").unwrap();
    let (first, base) = snapshot(&root, top.path(), "a", None);
    // Written again with the same bytes: another inode and time, but no new content.
    fs::write(root.join("new"), "new").unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    let time = fs::metadata(root.join("copied")).unwrap();
    fs::write(root.join("copied"), vec![8; 2_000_000]).unwrap();
    set_times(&root.join("copied"), time.mtime(), time.mtime_nsec());
    let out = top.path().join("out-b");
    fs::create_dir(&out).unwrap();
    let layer = &first.layers[0].name;
    fs::hard_link(top.path().join("out-a").join(layer), out.join(layer)).unwrap();
    let (record, part) = snapshot(&root, top.path(), "b", Some(&base));
    assert_eq!(record.layers[0], first.layers[0]);
    assert!(record.layers[1].size < 20_000, "{record:?}");
    let list =
        Command::new("tar").arg("-tf").arg(out.join(&record.layers[1].name)).output().unwrap();
    assert_eq!(String::from_utf8(list.stdout).unwrap(), ".wh.gone\n./\nnew\n");
    assert_eq!(part.read(b"large", 1 << 30).unwrap(), vec![7; 3_000_000]);
    assert!(matches!(part.lookup(b"gone"), Lookup::Absent));
    // Nothing changed: no further layer.
    let third = top.path().join("out-c");
    fs::create_dir(&third).unwrap();
    let (again, _) = {
        for layer in &record.layers {
            fs::hard_link(out.join(&layer.name), third.join(&layer.name)).unwrap();
        }
        snapshot(&root, top.path(), "c", Some(&part))
    };
    assert_eq!(again.layers, record.layers);
}

#[test]
fn a_copy_in_advance_is_not_trusted() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    for name in ["same", "back-dated", "volatile", "removed"] {
        fs::write(root.join(name), "before").unwrap();
    }
    // Older than the grain of the clock that stamps files.
    std::thread::sleep(std::time::Duration::from_millis(60));
    let staging = top.path().join("staging");
    fs::create_dir(&staging).unwrap();
    let mut stage = Stage::create(&staging, probe(&root).unwrap(), None).unwrap();
    let first = stage.pre_copy().unwrap();
    assert_eq!((first.copied, first.bytes), (4, 24));
    let back = root.join("back-dated");
    let time = fs::metadata(&back).unwrap();
    fs::write(&back, "after!").unwrap();
    set_times(&back, time.mtime(), time.mtime_nsec());
    fs::remove_file(root.join("removed")).unwrap();
    fs::write(root.join("new"), "made").unwrap();
    let volatile = fs::metadata(root.join("volatile")).unwrap();
    let second = stage.take(&HashSet::from([(volatile.dev(), volatile.ino())])).unwrap();
    assert_eq!((second.copied, second.kept), (3, 1), "{second:?}");
    stage.seal().unwrap();
    let record = pack(&staging, top.path(), "rootfs", Compression::default(), &()).unwrap();
    let part = Part::open(top.path(), &record).unwrap();
    assert_eq!(part.read(b"back-dated", 10).unwrap(), b"after!");
    assert_eq!(part.read(b"same", 10).unwrap(), b"before");
    assert!(matches!(part.lookup(b"removed"), Lookup::Absent));
    assert!(part.index().get(b"volatile").unwrap().identity.is_none(), "its times prove nothing");
    assert!(part.index().get(b"same").unwrap().identity.is_some());
}

#[test]
fn a_pack_that_was_cut_short_is_done_again() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    changes(&root, &mut Dice(71), 150);
    let (record, _) = snapshot(&root, top.path(), "a", None);
    let out = top.path().join("out-a");
    let whole = fs::read(out.join(&record.layers[0].name)).unwrap();
    // A pack that died leaves a part of a file under its temporary name, and no index.
    let again = top.path().join("again");
    fs::create_dir(&again).unwrap();
    let partial = again.join(format!("{}.partial", record.layers[0].name));
    fs::write(&partial, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(
        pack(&top.path().join("staging-a"), &again, "rootfs", Compression::default(), &()).unwrap(),
        record
    );
    assert_eq!(fs::read(again.join(&record.layers[0].name)).unwrap(), whole);
    assert!(!partial.exists());
}

#[test]
fn links_do_not_lead_out() {
    let top = scratch();
    let (root, outside) = (top.path().join("root"), top.path().join("outside"));
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/file"), "the snapshot's").unwrap();
    fs::write(root.join("top"), "the snapshot's").unwrap();
    fs::create_dir_all(outside.join("b")).unwrap();
    fs::write(outside.join("b/file"), "the host's").unwrap();
    fs::write(outside.join("b/other"), "the host's").unwrap();
    let was = picture(&root);
    let untouched = picture(&outside);
    let (_, part) = snapshot(&root, top.path(), "a", None);
    for (path, target) in [
        ("a", outside.clone()),
        ("a/b", outside.join("b")),
        ("a/b/file", outside.join("b/file")),
        ("top", outside.join("b/file")),
    ] {
        let victim = root.join(path);
        if victim.is_dir() {
            fs::remove_dir_all(&victim).unwrap();
        } else {
            fs::remove_file(&victim).unwrap();
        }
        symlink(&target, &victim).unwrap();
        // What a restore would use as a temporary name may lie in wait.
        let trap = root.join(format!(".ocicle-{}-0", std::process::id()));
        symlink(outside.join("b/file"), &trap).unwrap();
        restore(&root, &part, &was, path);
        assert_same(&untouched, &picture(&outside), path);
    }
}

#[test]
fn deeper_than_a_path_can_say() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    let make = |content: &str| {
        let mut dir = File::open(&root).unwrap();
        for _ in 0..40 {
            let name = CString::new([b'd'; 200]).unwrap();
            let _ = nix::sys::stat::mkdirat(&dir, &name[..], Mode::S_IRWXU);
            let flags = nix::fcntl::OFlag::O_RDONLY;
            dir = nix::fcntl::openat(&dir, &name[..], flags, Mode::empty()).unwrap().into();
        }
        let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CREAT;
        let file = nix::fcntl::openat(&dir, "file", flags, Mode::S_IRUSR).unwrap();
        File::from(file).write_all_at(content.as_bytes(), 0).unwrap();
    };
    make("before");
    let (_, part) = snapshot(&root, top.path(), "a", None);
    make("after!");
    let now = probe(&root).unwrap();
    let found = plan(&now, &part).unwrap();
    assert_eq!(found.summary().get(&Verb::Replace), Some(&1));
    found.execute(&()).unwrap();
    let empty = top.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let empty = probe(&empty).unwrap();
    plan(&empty, &part).unwrap().execute(&()).unwrap();
    for root in [&now, &empty] {
        assert!(plan(root, &part).unwrap().is_empty());
    }
    assert!(Command::new("rm").arg("-rf").args([top.path()]).status().unwrap().success());
}

#[test]
fn damage_is_an_error() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), vec![b'x'; 50_000]).unwrap();
    let (record, part) = compressed(Compression::None, &root, top.path(), "a", None);
    let out = top.path().join("out-a");
    let refuses = |name: &str, bytes: &[u8], record: &PartRecord| {
        let good = fs::read(out.join(name)).unwrap();
        fs::write(out.join(name), bytes).unwrap();
        let error = Part::open(&out, record).err().map(|error| format!("{error:#}"));
        fs::write(out.join(name), good).unwrap();
        error
    };
    let index = fs::read(out.join(&record.index.name)).unwrap();
    let mut flipped = index.clone();
    flipped[index.len() / 2] ^= 1;
    assert!(refuses(&record.index.name, &flipped, &record).unwrap().contains("not the file"));
    assert!(refuses(&record.index.name, &index[..100], &record).unwrap().contains("100 bytes"));
    // A manifest that agrees with a hostile index.
    let text = String::from_utf8(index).unwrap();
    for (from, to, message) in [
        ("\"file\":{\"kind\"", "\"../file\":{\"kind\"", "name of dots"),
        ("\"file\":{\"kind\"", "\"/etc/file\":{\"kind\"", "empty name"),
        ("\"file\":{\"kind\"", "\"no/file\":{\"kind\"", "directory is not in the index"),
        ("\"size\":50000", "\"size\":50001", "not as many"),
        ("\"length\":50000", "\"length\":5000000", "beyond the end"),
        ("\"layer\":0", "\"layer\":9", "layer is not there"),
        ("\"offset\":", "\"offset\":18446744073709550000,\"_\":", "beyond the end"),
        ("\"schema\":1", "\"schema\":2", "version 2"),
    ] {
        let hostile = text.replacen(from, to, 1);
        assert_ne!(hostile, text, "{from}");
        let mut record = record.clone();
        record.index.size = hostile.len() as u64;
        record.index.blake3 = blake3::hash(hostile.as_bytes()).to_hex().to_string();
        let error = refuses(&record.index.name, hostile.as_bytes(), &record);
        assert!(error.as_ref().is_some_and(|e| e.contains(message)), "{to}: {error:?}");
    }
    let tar = out.join(&record.layers[0].name);
    let mut bytes = fs::read(&tar).unwrap();
    let at = bytes.windows(100).position(|w| w.iter().all(|b| *b == b'x')).unwrap();
    bytes[at + 1000] = b'y';
    fs::write(&tar, &bytes).unwrap();
    assert!(part.verify(&()).is_err());
    fs::write(root.join("file"), "changed since").unwrap();
    let now = probe(&root).unwrap();
    let error = plan(&now, &part).unwrap().execute(&()).unwrap_err();
    assert!(format!("{error:#}").contains("not those that were stored"), "{error:#}");
    assert_eq!(fs::read(root.join("file")).unwrap(), b"changed since", "the old file is whole");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "no temporary file is left");
    bytes.truncate(bytes.len() / 2);
    fs::write(&tar, &bytes).unwrap();
    assert!(Part::open(&out, &record).is_err());
}

#[test]
fn damage_in_a_compressed_layer_is_an_error() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), Dice(17).bytes(50_000)).unwrap();
    let (record, part) = snapshot(&root, top.path(), "a", None);
    let layer = top.path().join("out-a").join(&record.layers[0].name);
    let mut bytes = fs::read(&layer).unwrap();
    bytes[20_000] ^= 0x10;
    fs::write(&layer, &bytes).unwrap();
    fs::write(root.join("file"), "changed since").unwrap();
    assert!(part.verify(&()).is_err());
    let error = plan(&probe(&root).unwrap(), &part).unwrap().execute(&()).unwrap_err();
    assert!(format!("{error:#}").contains("restoring /file"), "{error:#}");
    assert_eq!(fs::read(root.join("file")).unwrap(), b"changed since", "the old file is whole");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn what_is_mounted_on_top_is_not_taken() {
    private(|| {
        let top = scratch();
        let root = top.path().join("root");
        fs::create_dir_all(root.join("mounted")).unwrap();
        fs::write(root.join("mounted/below"), "of the root").unwrap();
        let none = MsFlags::empty();
        mount(Some("tmpfs"), &root.join("mounted"), Some("tmpfs"), none, None::<&str>).unwrap();
        fs::write(root.join("mounted/above"), "of the other").unwrap();
        let (_, part) = snapshot(&root, top.path(), "a", None);
        assert!(matches!(part.lookup(b"mounted/below"), Lookup::Present(_)));
        assert!(matches!(part.lookup(b"mounted/above"), Lookup::Absent));
        let now = probe(&root).unwrap();
        assert!(plan(&now, &part).unwrap().is_empty());
        assert_eq!(fs::read(root.join("mounted/above")).unwrap(), b"of the other");
    });
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    private(|| {
        let top = scratch();
        let root = top.path().join("root");
        fs::create_dir(&root).unwrap();
        let size = Some("size=1m");
        mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        fs::write(root.join("file"), vec![1; 600_000]).unwrap();
        let (_, part) = snapshot(&root, top.path(), "a", None);
        fs::write(root.join("file"), vec![2; 700_000]).unwrap();
        let now = probe(&root).unwrap();
        let error = plan(&now, &part).unwrap().execute(&()).unwrap_err();
        assert!(format!("{error:#}").contains("/file"), "{error:#}");
        assert_eq!(fs::read(root.join("file")).unwrap(), vec![2; 700_000]);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    });
}

#[test]
fn an_overlay_goes_onto_a_directory_as_far_as_is_known() {
    private(|| {
        let mut dice = Dice(81);
        let stack = Stack::new(1, "index=off", &mut dice);
        let merged = stack.mounted("upper");
        fs::write(merged.join("mine"), "kept").unwrap();
        let (_, part) = snapshot(&merged, stack.top.path(), "a", None);
        let plain = stack.top.path().join("plain");
        fs::create_dir(&plain).unwrap();
        fs::write(plain.join("unknown"), "stays").unwrap();
        let now = probe(&plain).unwrap();
        let report = plan(&now, &part).unwrap().execute(&()).unwrap();
        assert_eq!(fs::read(plain.join("mine")).unwrap(), b"kept");
        assert_eq!(fs::read(plain.join("unknown")).unwrap(), b"stays");
        assert!(report.notes[0].contains("cannot be known"), "{report:?}");
    });
}
