//! The demo of examples/main-job, for each runtime. It checks what it shows by itself.
//!
//! The first test of the suite: when this fails, there is little sense in looking at the others.

use std::fs;
use std::os::unix::fs::symlink;

use super::{alone, passes, path_with, run, scratch, traces};

fn demo_passes(runtime: &str, cgroup: &str) {
    let said = passes("main-job", "\n7. Proved\n", runtime, cgroup);
    assert!(!said.contains('\x1b'), "it uses colour where there is no terminal");
}

#[test]
fn runc_v1() {
    demo_passes("runc", "v1");
}

#[test]
fn runc_v2() {
    demo_passes("runc", "v2");
}

#[test]
fn crun_v2() {
    demo_passes("crun", "v2");
}

/// SQLite fails in the middle, while a restored container runs.
#[test]
fn a_step_that_fails_fails_the_demo_and_leaves_nothing() {
    let _alone = alone();
    let before = traces();
    let broken = scratch().join("broken");
    fs::create_dir(&broken).unwrap();
    symlink("/bin/false", broken.join("sqlite3")).unwrap();
    let (output, said) = run("main-job", "runc", "v1", path_with(Some(&broken)));
    fs::remove_dir_all(&broken).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("\n4. Restored"), "it failed before the restore");
    assert!(!said.contains("Proved"));
    assert_eq!(traces(), before, "it left something behind");
}
