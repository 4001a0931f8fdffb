//! The demo of examples/main-job, for each runtime. It checks what it shows by itself.
//!
//! The first test of the suite: when this fails, there is little sense in looking at the others.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Below this, and nowhere else, the demo makes files.
fn scratch() -> PathBuf {
    std::env::var_os("OCICLE_SCRATCH")
        .expect("this test runs in the testbed: use `make test`")
        .into()
}

/// `PATH` with the programs of this build in front, and `first` before them.
fn path_with(first: Option<&Path>) -> OsString {
    let built = Path::new(env!("CARGO_BIN_EXE_ocicle")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let before = first.into_iter().chain([built]).map(Path::to_owned);
    std::env::join_paths(before.chain(std::env::split_paths(&path))).unwrap()
}

fn demo(runtime: &str, cgroup: &str, path: OsString) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("examples/main-job/run"))
        .args(["--runtime", runtime, "--cgroup", cgroup])
        .env("PATH", path)
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// What a demo could leave: its directory, its mounts, its cgroups and its processes.
fn traces() -> BTreeSet<String> {
    let in_scratch = fs::read_dir(scratch()).unwrap();
    let names = in_scratch.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut found: BTreeSet<String> = names.filter(|name| name.starts_with("main-job.")).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains("/main-job.")).map(str::to_owned));
    let cgroups = Command::new("find")
        .args(["/sys/fs/cgroup", "-name", &format!("{}-journal-*", testbed())])
        .output()
        .unwrap();
    found.extend(String::from_utf8_lossy(&cgroups.stdout).lines().map(str::to_owned));
    let processes = Command::new("pgrep").args(["-f", "workload journal"]).output().unwrap();
    found.extend(String::from_utf8_lossy(&processes.stdout).lines().map(str::to_owned));
    found
}

fn testbed() -> String {
    std::env::var("OCICLE_TESTBED_ID").unwrap()
}

fn passes(runtime: &str, cgroup: &str) {
    let output = demo(runtime, cgroup, path_with(None));
    assert!(output.status.success(), "the demo ended with {}", output.status);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("\n7. Proved\n"), "it did not come to its end");
    assert!(!said.contains('\x1b'), "it uses colour where there is no terminal");
    assert_eq!(traces(), BTreeSet::new(), "it left something behind");
}

mod demo {
    use super::*;

    // One after the other where tests share a process: each looks for what is left of any.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn runc_v1() {
        let _one = ONE.lock();
        passes("runc", "v1");
    }

    #[test]
    fn runc_v2() {
        let _one = ONE.lock();
        passes("runc", "v2");
    }

    #[test]
    fn crun_v2() {
        let _one = ONE.lock();
        passes("crun", "v2");
    }

    /// SQLite fails in the middle, while a restored container runs.
    #[test]
    fn a_step_that_fails_fails_the_demo_and_leaves_nothing() {
        let _one = ONE.lock();
        let broken = scratch().join("broken");
        fs::create_dir(&broken).unwrap();
        symlink("/bin/false", broken.join("sqlite3")).unwrap();
        let output = demo("runc", "v1", path_with(Some(&broken)));
        fs::remove_dir_all(&broken).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("\n4. Restored"), "it failed before the restore");
        assert!(!said.contains("Proved"));
        assert_eq!(traces(), BTreeSet::new(), "it left something behind");
    }
}
