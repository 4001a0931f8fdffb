//! All that can be seen of a directory, to be compared with what it is later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};

/// Every path below a directory, with one line of everything that is known of it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Leaves out when names in directories changed.
    pub fn forget_times_of_directories(&mut self) {
        for line in self.0.values_mut().filter(|line| line.starts_with("mode 4")) {
            let (before, rest) = line.split_once(" changed ").unwrap();
            let after = rest.split_once(' ').unwrap().1;
            *line = format!("{before} {after}");
        }
    }

    /// Fails with what differs from what was before.
    #[track_caller]
    pub fn assert_is(&self, before: &Tree, what: &str) {
        let names: BTreeSet<_> = self.0.keys().chain(before.0.keys()).collect();
        let differ = names.into_iter().filter(|name| self.0.get(*name) != before.0.get(*name));
        let lines: Vec<String> = differ
            .map(|name| {
                format!("{name}\n  was {:?}\n  is  {:?}", before.0.get(name), self.0.get(name))
            })
            .collect();
        assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
    }
}

/// Looks at everything below a directory: type, mode, owner, device, size, holes, time of change,
/// link target, extended attributes, content, and which names are one file.
pub fn tree_of(directory: &Path) -> Tree {
    let mut tree = Tree::default();
    let mut inodes = BTreeMap::new();
    add(directory, Path::new(""), &mut tree.0, &mut inodes);
    tree
}

fn add(
    root: &Path,
    relative: &Path,
    tree: &mut BTreeMap<String, String>,
    inodes: &mut BTreeMap<(u64, u64), String>,
) {
    let path = root.join(relative);
    let found = fs::symlink_metadata(&path).unwrap();
    let name = relative.as_os_str().as_bytes().escape_ascii().to_string();
    let kind = found.file_type();
    let mut line = format!(
        "mode {:o} owner {}:{} device {:x} changed {}.{:09} attributes {}",
        found.mode(),
        found.uid(),
        found.gid(),
        found.rdev(),
        found.mtime(),
        found.mtime_nsec(),
        attributes_of(&path)
    );
    if kind.is_symlink() {
        let target = fs::read_link(&path).unwrap();
        line += &format!(" target {}", target.as_os_str().as_bytes().escape_ascii());
    }
    if kind.is_file() {
        let holes = found.blocks() * 512 + 4096 < found.size();
        line += &format!(" size {} holes {holes} content {}", found.size(), digest_of(&path));
    }
    if !kind.is_dir() && found.nlink() > 1 {
        let first = inodes.entry((found.dev(), found.ino())).or_insert_with(|| name.clone());
        line += &format!(" links {} first {first}", found.nlink());
    }
    assert!(!kind.is_socket() || found.size() == 0);
    tree.insert(name, line);
    if kind.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(&path).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            add(root, &relative.join(entry.file_name()), tree, inodes);
        }
    }
}

/// Names and values. What the overlay keeps in its upper directory for itself is not the tree's.
fn attributes_of(path: &Path) -> String {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names).unwrap();
    let mut shown: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = lgetxattr(path, name, &mut value).unwrap();
            format!("{}={}", name.escape_ascii(), value[..length].escape_ascii())
        })
        .collect();
    shown.sort();
    format!("[{}]", shown.join(" "))
}

fn digest_of(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(path).unwrap();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finalize().to_hex()[..16].to_owned(),
            length => {
                hasher.update(&buffer[..length]);
            }
        }
    }
}
