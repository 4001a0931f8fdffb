//! Somebody on the host owns the directory of a volume, and renames and replaces what he likes while root
//! puts it back: he gets nothing of root's.
//!
//! Needs root, and fails without.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::support::{nobody_runs, opened, private, scratch};
use ocicle::files::Suspects;
use ocicle::snapshot::{Compression, CopyDriver, Driver, PackedPart, Staging, pack, plan, probe};

/// Not root, and not the owner of anything else.
const NEIGHBOUR: u32 = 4711;
/// A file that is long enough to be met while it is written.
const LENGTH: usize = 8 << 20;
const HIS: &[u8] = b"of the neighbour";

/// A volume of the neighbour's with a file of root's in it that runs as root.
fn volume(top: &Path) -> PathBuf {
    let volume = top.join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    for tool in ["tool", "below/tool"] {
        let tool = volume.join(tool);
        fs::write(&tool, vec![b'r'; LENGTH]).unwrap();
        fs::set_permissions(&tool, Permissions::from_mode(0o4755)).unwrap();
    }
    symlink("tool", volume.join("link")).unwrap();
    for his in [volume.clone(), volume.join("below")] {
        chown(&his, Some(NEIGHBOUR), Some(NEIGHBOUR)).unwrap();
    }
    volume
}

fn snapshot(root: &Path, top: &Path) -> PackedPart {
    let (staging, out) = (top.join("staging"), top.join("out"));
    fs::create_dir(&staging).unwrap();
    fs::create_dir(&out).unwrap();
    let mut stage = CopyDriver::create(&staging, probe(root).unwrap(), None).unwrap();
    stage.take(&nobody_runs(), &Suspects::default()).unwrap();
    Box::new(stage).seal().unwrap();
    let how = Compression::default();
    let record = pack(&opened(&staging), &opened(&out), "volume", how, Staging::Kept, &()).unwrap();
    PackedPart::open(&out, &record).unwrap()
}

/// The neighbour at work, until it is dropped.
struct Neighbour {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    fn at_work(volume: &Path) -> Self {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, volume) = (stop.clone(), swaps.clone(), volume.to_owned());
        let thread = std::thread::spawn(move || {
            // For this thread alone: the process stays root's.
            let (uid, gid) = (NEIGHBOUR, NEIGHBOUR);
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid_of(gid), gid_of(gid), gid_of(gid)).unwrap();
            rustix::thread::set_thread_res_uid(uid_of(uid), uid_of(uid), uid_of(uid)).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                for directory in [volume.clone(), volume.join("below")] {
                    counted.fetch_add(swap_all(&directory), Ordering::Relaxed);
                }
            }
        });
        Self { stop, swaps, thread: Some(thread) }
    }

    fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn uid_of(uid: u32) -> rustix::thread::Uid {
    rustix::thread::Uid::from_raw(uid)
}

fn gid_of(gid: u32) -> rustix::thread::Gid {
    rustix::thread::Gid::from_raw(gid)
}

/// Puts something of his own in the place of whatever is being made, and of the files themselves.
fn swap_all(directory: &Path) -> u64 {
    let mut swaps = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy().into_owned();
        if name.starts_with(".away-") || name == "below" {
            continue;
        }
        let away = directory.join(format!(".away-{name}"));
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if fs::rename(&path, &away).is_ok() {
            swaps += 1;
            if is_dir {
                let _ = fs::create_dir(&path);
                let _ = fs::set_permissions(&path, Permissions::from_mode(0o777));
            } else {
                let _ = fs::write(&path, HIS);
                let _ = fs::set_permissions(&path, Permissions::from_mode(0o755));
            }
        }
    }
    swaps
}

/// Every file below that is root's, or runs as root, and has content of the neighbour's.
fn gained(directory: &Path) -> Vec<String> {
    let mut gained = Vec::new();
    // What he has renamed meanwhile is met another time.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(found) = entry.path().symlink_metadata() else { continue };
        if found.is_dir() {
            gained.extend(self::gained(&entry.path()));
        } else if found.is_file() && (found.uid() == 0 || found.mode() & 0o6000 != 0) {
            let content = fs::read(entry.path()).unwrap_or_default();
            if content.starts_with(HIS) {
                gained.push(format!("{} {:o}", entry.path().display(), found.mode()));
            }
        }
    }
    gained
}

#[test]
fn a_neighbour_who_swaps_files_gets_none_of_roots() {
    private(|| {
        let top = scratch();
        let volume = volume(top.path());
        let part = snapshot(&volume, top.path());
        let (mut tries, mut restored) = (0, 0);
        let neighbour = Neighbour::at_work(&volume);
        while tries < 60 || neighbour.swaps() < 1000 {
            for tool in ["tool", "below/tool"] {
                let _ = fs::remove_file(volume.join(tool));
            }
            let root = probe(&volume).unwrap();
            // It may fail, whenever something is not what it was.
            let done = plan(&root, &part).and_then(|plan| plan.execute(&()));
            restored += u64::from(done.is_ok());
            tries += 1;
            assert_eq!(gained(&volume), Vec::<String>::new(), "after {tries} tries");
        }
        drop(neighbour);
        // Left alone, everything is as it was.
        let root = probe(&volume).unwrap();
        plan(&root, &part).unwrap().execute(&()).unwrap();
        assert!(plan(&root, &part).unwrap().is_empty(), "{restored} of {tries} came to an end");
        let tool = fs::metadata(volume.join("tool")).unwrap();
        assert_eq!((tool.uid(), tool.mode() & 0o7777, tool.len()), (0, 0o4755, LENGTH as u64));
    });
}

#[test]
fn a_file_with_the_same_content_does_not_get_roots_rights() {
    private(|| {
        let top = scratch();
        let volume = volume(top.path());
        let part = snapshot(&volume, top.path());
        let tool = volume.join("tool");
        // His own, with the very content, which he holds open to write it later.
        fs::remove_file(&tool).unwrap();
        fs::write(&tool, vec![b'r'; LENGTH]).unwrap();
        chown(&tool, Some(NEIGHBOUR), Some(NEIGHBOUR)).unwrap();
        let his = fs::OpenOptions::new().write(true).open(&tool).unwrap();
        let inode = his.metadata().unwrap().ino();
        plan(&probe(&volume).unwrap(), &part).unwrap().execute(&()).unwrap();
        let found = fs::metadata(&tool).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o4755));
        assert_ne!(found.ino(), inode, "it is still the file that he can write");
    });
}
