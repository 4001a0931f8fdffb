//! File systems of a test's own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use ocicle::sys::directory::Directory;
use tempfile::TempDir;

use super::machine::{Machine, run};

/// Runs a test in a mount namespace of its own, in a thread that ends with it.
pub fn private(test: impl FnOnce() + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "these tests mount, and need root");
    let ended = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        test();
    })
    .join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// An empty directory on a real file system.
pub fn scratch() -> TempDir {
    let top = std::env::var_os("OCICLE_SCRATCH").expect("OCICLE_SCRATCH");
    tempfile::tempdir_in(top).unwrap()
}

/// Makes a file system in a file, mounts it, and says where.
pub fn file_system(top: &Path, kind: &str) -> PathBuf {
    let (file, point) = (top.join(format!("{kind}.img")), top.join(kind));
    File::create(&file).unwrap().set_len(600 << 20).unwrap();
    fs::create_dir(&point).unwrap();
    run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&file));
    run(Command::new("mount").args(["-t", kind, "-o", "loop"]).args([&file, &point]));
    point
}

/// Makes a subvolume of a btrfs.
pub fn subvolume(path: &Path) -> PathBuf {
    run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(path));
    path.to_owned()
}

/// A small file system for the store, which a test can fill.
pub struct SmallStore<'m>(&'m Machine);

impl<'m> SmallStore<'m> {
    pub fn new(machine: &'m Machine, size: &str) -> Self {
        let (kind, store) = (Some("tmpfs"), machine.store());
        fs::create_dir(&store).unwrap();
        let options = format!("size={size},mode=700");
        mount(kind, &store, kind, MsFlags::empty(), Some(options.as_str())).unwrap();
        SmallStore(machine)
    }
}

impl Drop for SmallStore<'_> {
    fn drop(&mut self) {
        let _ = umount2(&self.0.store(), MntFlags::MNT_DETACH);
    }
}

/// A directory as ocicle opens its own.
pub fn opened(path: &Path) -> Directory {
    Directory::open(path).unwrap()
}
