//! The proof that nobody runs, for what has no container.

use std::fs;
use std::time::Duration;

use ocicle::freezer::{CgroupVersion, Freezer, Frozen};

/// The proof of a group that nobody is in: a directory that looks like one, frozen by its caller.
pub fn nobody_runs() -> Frozen<'static> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cgroup.freeze"), "1\n").unwrap();
    fs::write(directory.path().join("cgroup.events"), "populated 0\nfrozen 1\n").unwrap();
    let freezer = Freezer::new(CgroupVersion::V2, directory.path().to_owned());
    Box::leak(Box::new(freezer)).freeze(Duration::from_secs(1)).unwrap()
}
