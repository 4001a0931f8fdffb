//! One change to a directory at a time: what the plan of a restore says of it, what the comparison
//! says, and what the layer of the next version holds. Then the restore undoes it, and the next version
//! brings it back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use super::*;
use crate::files::Suspects;
use crate::freezer::Frozen;
use crate::sys::directory::Directory;

/// A change, and what comes of it.
struct Case {
    name: &'static str,
    change: fn(&Path),
    /// The steps of the plan, but for the times of directories.
    plan: &'static [&'static str],
    /// The lines of `ocicle diff`.
    diff: &'static [&'static str],
    /// The members of the layer of the next version, but for directories that only have another time.
    layer: &'static [&'static str],
}

/// Gives a path a time of its own, which no clock shows.
fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

const THEN: i64 = 1_000_000_000;

/// A directory with one of each kind, all of one time.
fn made(top: &Path) -> PathBuf {
    let root = top.join("root");
    fs::create_dir_all(root.join("dir/deep")).unwrap();
    for (path, content) in [
        ("file", "content"),
        ("dir/file", "in a directory"),
        ("dir/deep/file", "deep"),
        ("empty", ""),
        ("suid", "program"),
        (".wh.odd", "a name that layers give another meaning"),
    ] {
        fs::write(root.join(path), content).unwrap();
    }
    fs::hard_link(root.join("file"), root.join("link")).unwrap();
    symlink("file", root.join("symlink")).unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(1 << 20)).unwrap();
    sparse.write_all(b"end").unwrap();
    set_mode(&root.join("suid"), 0o4755);
    for path in [
        "file",
        "dir/file",
        "dir/deep/file",
        "dir/deep",
        "dir",
        "empty",
        "suid",
        ".wh.odd",
        "symlink",
        "fifo",
        "sparse",
        "",
    ] {
        set_time(&root.join(path), THEN);
    }
    root
}

/// A snapshot of the directory, packed below `top`.
fn taken(root: &Path, top: &Path, version: &str, base: Option<(&PackedPart, &Path)>) -> Taken {
    let [staging, out] = ["staging", "out"].map(|name| top.join(format!("{name}-{version}")));
    [&staging, &out].into_iter().for_each(|path| fs::create_dir(path).unwrap());
    if let Some((base, base_out)) = base {
        for layer in &base.record().layers {
            fs::hard_link(base_out.join(&layer.name), out.join(&layer.name)).unwrap();
        }
    }
    let settings = DriverSettings { programs: Vec::new(), records: top.join("records") };
    let owner = SnapshotOwner { owner: &out, part: "rootfs", is_alive: &|_| true };
    let root = probe(root).unwrap();
    let base = base.map(|(base, _)| base);
    let (mut driver, _) = choose(&staging, root, base, &settings, &owner).unwrap();
    driver.prepare(&Suspects::default()).unwrap();
    driver.take(&Frozen::of_nobody(), &Suspects::default()).unwrap();
    driver.seal().unwrap();
    let (from, to) = (Directory::open(&staging).unwrap(), Directory::open(&out).unwrap());
    let record = pack(&from, &to, "rootfs", Compression::None, Staging::Kept, &()).unwrap();
    Taken { part: PackedPart::open(&out, &record).unwrap(), out }
}

struct Taken {
    part: PackedPart,
    out: PathBuf,
}

impl Taken {
    /// The members of the layer that this version adds, without directories whose time alone is another.
    fn members(&self, dirs: &[&str]) -> Vec<String> {
        let Some(layer) = self.part.record().layers.get(1) else { return Vec::new() };
        let layer = &layer.name;
        let tar = Command::new("tar").arg("-tf").arg(self.out.join(layer)).output().unwrap();
        assert!(tar.status.success(), "{tar:?}");
        let text = String::from_utf8(tar.stdout).unwrap();
        let mut members: Vec<String> = text.lines().map(str::to_owned).collect();
        members.retain(|member| !member.ends_with('/') || dirs.contains(&&**member));
        members.sort();
        members
    }
}

/// Every path with what can be seen of it by anyone; the inode is a number that names share.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let found = Command::new("find")
        .arg(root)
        .args(["-printf", "%P|%y|%m|%U|%G|%s|%l|%n|%T@\\n"])
        .output()
        .unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    let of_line = |line: &str| {
        let (path, rest) = line.split_once('|').unwrap();
        let content = rest.starts_with('f').then(|| fs::read(root.join(path)).unwrap());
        // The bytes that a directory takes are the file system's affair.
        let rest = rest.replacen(&format!("|{}|", 4096), "|", 1);
        (PathBuf::from(path), format!("{rest} {content:?}"))
    };
    text.lines().map(of_line).collect()
}

fn steps(plan: &Plan<'_>, root: &Path) -> Vec<String> {
    let is_time = |action: &Action| {
        action.verb == Verb::Attributes
            && root.join(action.path.as_path()).is_dir()
            && fs::metadata(root.join(action.path.as_path())).unwrap().permissions().mode() & 0o7777
                == 0o755
    };
    plan.actions().filter(|action| !is_time(action)).map(|action| action.to_string()).collect()
}

fn lines(difference: &Difference) -> Vec<String> {
    assert!(difference.notes.is_empty(), "{:?}", difference.notes);
    let line = |change: &Change| {
        let what: Vec<String> = change.what.iter().map(Aspect::to_string).collect();
        format!("{} /{} {}", change.fate.letter(), change.path, what.join(" ")).trim().to_owned()
    };
    difference.changes.iter().map(line).collect()
}

const CASES: &[Case] = &[
    Case { name: "nothing", change: |_| {}, plan: &[], diff: &[], layer: &[] },
    Case {
        name: "a file gets other bytes",
        change: |root| fs::write(root.join("dir/file"), "IN A DIRECTORY").unwrap(),
        plan: &["replace /dir/file"],
        diff: &["C /dir/file content time"],
        layer: &["dir/file"],
    },
    Case {
        name: "a file gets other bytes and the time that it had",
        change: |root| {
            fs::write(root.join("dir/file"), "IN A DIRECTORY").unwrap();
            set_time(&root.join("dir/file"), THEN);
        },
        plan: &["replace /dir/file"],
        diff: &["C /dir/file content"],
        layer: &["dir/file"],
    },
    Case {
        name: "a hole gets a byte",
        change: |root| {
            let mut sparse = File::options().write(true).open(root.join("sparse")).unwrap();
            sparse.seek(SeekFrom::Start(1 << 19)).unwrap();
            sparse.write_all(b"x").unwrap();
        },
        plan: &["replace /sparse"],
        diff: &["C /sparse content time"],
        layer: &["sparse"],
    },
    Case {
        name: "a hole gets zeros",
        change: |root| {
            let mut sparse = File::options().write(true).open(root.join("sparse")).unwrap();
            sparse.write_all(&[0; 8192]).unwrap();
            drop(sparse);
            set_time(&root.join("sparse"), THEN);
        },
        plan: &[],
        diff: &[],
        layer: &["sparse"],
    },
    Case {
        name: "an empty file grows",
        change: |root| fs::write(root.join("empty"), "x").unwrap(),
        plan: &["replace /empty"],
        diff: &["C /empty content time"],
        layer: &["empty"],
    },
    Case {
        name: "a file is made",
        change: |root| fs::write(root.join("dir/new"), "new").unwrap(),
        plan: &["remove /dir/new"],
        diff: &["A /dir/new"],
        layer: &["dir/new"],
    },
    Case {
        name: "a tree is made",
        change: |root| {
            fs::create_dir(root.join("new")).unwrap();
            fs::write(root.join("new/file"), "new").unwrap();
        },
        plan: &["remove /new"],
        diff: &["A /new", "A /new/file"],
        layer: &["new/", "new/file"],
    },
    Case {
        name: "a file is removed",
        change: |root| fs::remove_file(root.join("dir/file")).unwrap(),
        plan: &["create /dir/file"],
        diff: &["D /dir/file"],
        layer: &["dir/.wh.file"],
    },
    Case {
        name: "a tree is removed",
        change: |root| fs::remove_dir_all(root.join("dir")).unwrap(),
        plan: &["create /dir", "create /dir/deep", "create /dir/deep/file", "create /dir/file"],
        diff: &["D /dir", "D /dir/deep", "D /dir/deep/file", "D /dir/file"],
        layer: &[".wh.dir"],
    },
    Case {
        name: "a file becomes a directory",
        change: |root| {
            fs::remove_file(root.join("empty")).unwrap();
            fs::create_dir(root.join("empty")).unwrap();
            fs::write(root.join("empty/file"), "x").unwrap();
        },
        plan: &["remove /empty", "create /empty"],
        diff: &["C /empty type mode time", "A /empty/file"],
        layer: &["empty/", "empty/file"],
    },
    Case {
        name: "a directory becomes a file",
        change: |root| {
            fs::remove_dir_all(root.join("dir/deep")).unwrap();
            fs::write(root.join("dir/deep"), "x").unwrap();
        },
        plan: &["remove /dir/deep", "create /dir/deep", "create /dir/deep/file"],
        diff: &["C /dir/deep type mode time", "D /dir/deep/file"],
        layer: &["dir/deep"],
    },
    Case {
        name: "a symbolic link points elsewhere",
        change: |root| {
            fs::remove_file(root.join("symlink")).unwrap();
            symlink("dir", root.join("symlink")).unwrap();
        },
        plan: &["replace /symlink"],
        diff: &["C /symlink target time"],
        layer: &["symlink"],
    },
    Case {
        name: "a fifo becomes a file",
        change: |root| {
            fs::remove_file(root.join("fifo")).unwrap();
            fs::write(root.join("fifo"), "x").unwrap();
        },
        plan: &["replace /fifo"],
        diff: &["C /fifo type mode time"],
        layer: &["fifo"],
    },
    Case {
        name: "a mode",
        change: |root| set_mode(&root.join("dir/file"), 0o600),
        plan: &["attributes /dir/file"],
        diff: &["C /dir/file mode"],
        layer: &["dir/file"],
    },
    Case {
        name: "the mode of a directory",
        change: |root| set_mode(&root.join("dir"), 0o700),
        plan: &["attributes /dir"],
        diff: &["C /dir mode"],
        layer: &["dir/"],
    },
    Case {
        name: "an owner",
        change: |root| chown(root.join("dir/file"), Some(7), Some(8)).unwrap(),
        plan: &["attributes /dir/file"],
        diff: &["C /dir/file owner"],
        layer: &["dir/file"],
    },
    Case {
        name: "the owner of a program that has rights, who may have it open",
        change: |root| {
            chown(root.join("suid"), Some(7), Some(8)).unwrap();
            set_mode(&root.join("suid"), 0o755);
        },
        plan: &["replace /suid"],
        diff: &["C /suid mode owner"],
        layer: &["suid"],
    },
    Case {
        name: "a time",
        change: |root| set_time(&root.join("dir/file"), THEN + 1),
        plan: &["attributes /dir/file"],
        diff: &["C /dir/file time"],
        layer: &["dir/file"],
    },
    Case {
        name: "a file gets a third name",
        change: |root| fs::hard_link(root.join("file"), root.join("third")).unwrap(),
        plan: &["remove /third"],
        diff: &["A /third"],
        layer: &["file", "link", "third"],
    },
    Case {
        name: "one of two names goes",
        change: |root| fs::remove_file(root.join("link")).unwrap(),
        plan: &["link /link"],
        diff: &["D /link"],
        layer: &[".wh.link", "file"],
    },
    Case {
        name: "one of two names gets other bytes",
        change: |root| {
            fs::remove_file(root.join("link")).unwrap();
            fs::write(root.join("link"), "other bytes").unwrap();
        },
        plan: &["link /link"],
        diff: &["C /link content time"],
        layer: &["file", "link"],
    },
    Case {
        name: "two names become two files",
        change: |root| {
            fs::remove_file(root.join("link")).unwrap();
            fs::copy(root.join("file"), root.join("link")).unwrap();
            set_time(&root.join("link"), THEN);
        },
        plan: &["link /link"],
        diff: &["C /link links"],
        layer: &["file", "link"],
    },
    Case {
        name: "two files become two names",
        change: |root| {
            fs::remove_file(root.join("empty")).unwrap();
            fs::hard_link(root.join("dir/file"), root.join("empty")).unwrap();
        },
        plan: &["replace /empty"],
        diff: &["C /empty content"],
        layer: &["dir/file", "empty"],
    },
    Case {
        name: "a file is renamed",
        change: |root| fs::rename(root.join("dir/file"), root.join("dir/other")).unwrap(),
        plan: &["create /dir/file", "remove /dir/other"],
        diff: &["D /dir/file", "A /dir/other"],
        layer: &["dir/.wh.file", "dir/other"],
    },
    Case {
        name: "a file that looks like a whiteout",
        change: |root| fs::write(root.join(".wh.odd"), "other bytes").unwrap(),
        plan: &["replace /.wh.odd"],
        diff: &["C /.wh.odd content time"],
        layer: &[".wh..wh.ocicle.3d5a16b31e3197dc8d00ca1ce2b3fd4f"],
    },
    Case {
        name: "a file that looks like a whiteout goes",
        change: |root| fs::remove_file(root.join(".wh.odd")).unwrap(),
        plan: &["create /.wh.odd"],
        diff: &["D /.wh.odd"],
        layer: &[],
    },
];

/// What is said of a change, a line for each thing that is not as it should be.
fn wrong(case: &Case) -> Vec<String> {
    let top = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = made(top.path());
    let before = seen(&root);
    let first = taken(&root, top.path(), "a", None);
    (case.change)(&root);
    let after = seen(&root);
    let probed = probe(&root).unwrap();
    let plan_now = plan(&probed, &first.part).unwrap();
    let diff = lines(&since(&probed, &first.part).unwrap());
    let second = taken(&root, top.path(), "b", Some((&first.part, &first.out)));
    let kept = lines(&between(&first.part, &second.part, None).unwrap());
    let dirs: Vec<&str> = case.layer.iter().copied().filter(|name| name.ends_with('/')).collect();
    let mut wrong = Vec::new();
    let mut compare = |what: &str, is: Vec<String>, expected: &[&str]| {
        if is != expected {
            wrong.push(format!("{}: {what}: {is:?}, not {expected:?}", case.name));
        }
    };
    compare("the plan", steps(&plan_now, &root), case.plan);
    compare("the difference", diff, case.diff);
    compare("the difference of the snapshots", kept, case.diff);
    compare("the layer", second.members(&dirs), case.layer);
    plan_now.execute(&()).unwrap();
    assert_eq!(seen(&root), before, "{}: undone", case.name);
    let probed = probe(&root).unwrap();
    plan(&probed, &second.part).unwrap().execute(&()).unwrap();
    assert_eq!(seen(&root), after, "{}: done again", case.name);
    wrong
}

#[test]
fn one_change_at_a_time() {
    let wrong: Vec<String> = CASES.iter().flat_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a plan says of a path, of one below what is changed, and of one beside it.
#[test]
fn changes_are_found_by_their_paths() {
    let top = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = made(top.path());
    let first = taken(&root, top.path(), "a", None);
    fs::remove_dir_all(root.join("dir/deep")).unwrap();
    fs::create_dir_all(root.join("new/tree")).unwrap();
    fs::write(root.join("file"), "CONTENT").unwrap();
    fs::remove_file(root.join("empty")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    set_mode(&root.join("suid"), 0o700);
    let probed = probe(&root).unwrap();
    let changes = plan(&probed, &first.part).unwrap().changes();
    for (path, verb) in [
        ("dir", Some(Verb::Attributes)),
        ("dir/deep", Some(Verb::Create)),
        ("dir/deep/file", Some(Verb::Create)),
        ("dir/deep/other", Some(Verb::Create)),
        ("dir/file", None),
        ("new", Some(Verb::Remove)),
        ("new/tree/deeper", Some(Verb::Remove)),
        ("file", Some(Verb::Replace)),
        ("//file/", Some(Verb::Replace)),
        ("link", Some(Verb::Link)),
        ("empty", Some(Verb::Replace)),
        ("empty/within", Some(Verb::Replace)),
        ("suid", Some(Verb::Attributes)),
        ("suid/within", None),
        ("nothing", None),
        ("", Some(Verb::Attributes)),
    ] {
        assert_eq!(changes.of(path.as_bytes()), verb, "{path}");
    }
}
