//! What can be seen of a directory, byte by byte, read with other code than the snapshot's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything that a program could see of a path, read with other code than the snapshot's.
#[derive(PartialEq, Eq)]
pub struct Sight {
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

pub type Picture = BTreeMap<PathBuf, Sight>;

pub fn picture(root: &Path) -> Picture {
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
pub fn assert_same(was: &Picture, is: &Picture, what: &str) {
    let paths: std::collections::BTreeSet<_> = was.keys().chain(is.keys()).collect();
    let wrong: Vec<_> = paths
        .into_iter()
        .filter(|path| was.get(*path) != is.get(*path))
        .map(|path| format!("{path:?}\n  was {:?}\n  is  {:?}", was.get(path), is.get(path)))
        .take(8)
        .collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}
