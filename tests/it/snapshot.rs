//! Snapshots of real file systems: taken, changed at random, restored, compared byte by byte.
//!
//! Needs root, and fails without.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    Dice, Picture, all_paths, assert_same, assert_still_shown, changes, nobody_runs, opened,
    picture, private, scratch, set_times, shown_at_all,
};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use ocicle::files::Suspects;
use ocicle::snapshot::{
    Compression, CopyDriver, Driver, Lookup, PackedFiles, PackedPart, Staging, Verb, pack, plan,
    probe,
};
use tempfile::TempDir;

fn snapshot(
    root: &Path,
    top: &Path,
    version: &str,
    base: Option<&PackedPart>,
) -> (PackedFiles, PackedPart) {
    compressed(Compression::Zstd, root, top, version, base)
}

/// Takes, seals, packs and opens a snapshot.
fn compressed(
    how: Compression,
    root: &Path,
    top: &Path,
    version: &str,
    base: Option<&PackedPart>,
) -> (PackedFiles, PackedPart) {
    let staging = top.join(format!("staging-{version}"));
    let out = top.join(format!("out-{version}"));
    fs::create_dir(&staging).unwrap();
    fs::create_dir_all(&out).unwrap();
    let mut stage = CopyDriver::create(&staging, probe(root).unwrap(), base).unwrap();
    stage.take(&nobody_runs(), &Suspects::default()).unwrap();
    let shown = shown_at_all(&stage, root);
    Box::new(stage).seal().unwrap();
    let record = pack(&opened(&staging), &opened(&out), "rootfs", how, Staging::Kept, &()).unwrap();
    let part = PackedPart::open(&out, &record).unwrap();
    assert_still_shown(&part, &shown);
    (record, part)
}

#[track_caller]
fn restore(root: &Path, part: &PackedPart, was: &Picture, what: &str) {
    let now = probe(root).unwrap();
    plan(&now, part).unwrap().execute(&()).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert_same(was, &picture(root), what);
    let again = plan(&now, part).unwrap();
    let left: Vec<_> = again.actions().map(|action| action.to_string()).collect();
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
            let base: Option<&(Picture, PackedPart)> = versions.last();
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
    let mut stage = CopyDriver::create(&staging, probe(&root).unwrap(), None).unwrap();
    let first = stage.prepare(&Suspects::default()).unwrap();
    assert_eq!((first.copied, first.bytes), (4, 24));
    let back = root.join("back-dated");
    let time = fs::metadata(&back).unwrap();
    fs::write(&back, "after!").unwrap();
    set_times(&back, time.mtime(), time.mtime_nsec());
    fs::remove_file(root.join("removed")).unwrap();
    fs::write(root.join("new"), "made").unwrap();
    let direct =
        File::options().read(true).custom_flags(libc::O_DIRECT).open(root.join("volatile"));
    let suspects = Suspects::of(&[ocicle::sys::pid::Pid::own()]);
    drop(direct.unwrap());
    let second = stage.take(&nobody_runs(), &suspects).unwrap();
    assert_eq!((second.copied, second.kept), (3, 1), "{second:?}");
    Box::new(stage).seal().unwrap();
    let record = pack(
        &opened(&staging),
        &opened(top.path()),
        "rootfs",
        Compression::default(),
        Staging::Kept,
        &(),
    )
    .unwrap();
    let part = PackedPart::open(top.path(), &record).unwrap();
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
        pack(
            &opened(&top.path().join("staging-a")),
            &opened(&again),
            "rootfs",
            Compression::default(),
            Staging::Kept,
            &()
        )
        .unwrap(),
        record
    );
    assert_eq!(fs::read(again.join(&record.layers[0].name)).unwrap(), whole);
    assert!(!partial.exists());
}

#[test]
fn what_is_packed_for_good_is_not_kept_twice() {
    let top = scratch();
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    changes(&root, &mut Dice(72), 150);
    let (kept, base) = snapshot(&root, top.path(), "a", None);
    let staging = top.path().join("staging-a");
    let blobs = || fs::read_dir(staging.join("blobs")).unwrap().count();
    assert!(blobs() > 0);
    let out = top.path().join("consumed");
    fs::create_dir(&out).unwrap();
    let record = pack(
        &opened(&staging),
        &opened(&out),
        "rootfs",
        Compression::default(),
        Staging::Consumed,
        &(),
    )
    .unwrap();
    assert_eq!(record, kept);
    assert_eq!(blobs(), 0);
    // What the base has already is not packed again, and not kept either.
    for entry in fs::read_dir(&root).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            let content = fs::read(entry.path()).unwrap();
            fs::write(entry.path(), content).unwrap();
        }
    }
    let staging = top.path().join("staging-b");
    fs::create_dir(&staging).unwrap();
    let mut stage = CopyDriver::create(&staging, probe(&root).unwrap(), Some(&base)).unwrap();
    stage.take(&nobody_runs(), &Suspects::default()).unwrap();
    Box::new(stage).seal().unwrap();
    let out = top.path().join("out-a");
    let how = Compression::default();
    pack(&opened(&staging), &opened(&out), "rootfs", how, Staging::Consumed, &()).unwrap();
    assert_eq!(fs::read_dir(staging.join("blobs")).unwrap().count(), 0);
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
        // What a restore would use as temporary names may lie in wait.
        for number in 0..50 {
            let trap = root.join(format!(".ocicle-{}-{number}", std::process::id()));
            symlink(outside.join("b/file"), &trap).unwrap();
        }
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
    let refuses = |name: &str, bytes: &[u8], record: &PackedFiles| {
        let good = fs::read(out.join(name)).unwrap();
        fs::write(out.join(name), bytes).unwrap();
        let error = PackedPart::open(&out, record).err().map(|error| format!("{error:#}"));
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
        ("[1,\"file\"", "[1,\"..\"", "name of dots"),
        ("[1,\"file\"", "[1,\"../file\"", "empty name"),
        ("[1,\"file\"", "[2,\"file\"", "deeper than its directory"),
        ("\"size\":50000", "\"size\":50001", "not as many"),
        ("\"length\":50000", "\"length\":5000000", "beyond the end"),
        ("\"layer\":0", "\"layer\":9", "layer is not there"),
        ("\"offset\":", "\"offset\":18446744073709550000,\"_\":", "beyond the end"),
        ("\"schema\":2", "\"schema\":3", "version 3"),
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
    assert!(PackedPart::open(&out, &record).is_err());
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
