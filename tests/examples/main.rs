//! The examples and the demo, for each runtime. Each checks what it shows by itself.
//!
//! A program of its own: each looks for whatever is left in the whole testbed, which nothing else
//! may be using then.

mod demo;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Below this, and nowhere else, an example makes files.
fn scratch() -> PathBuf {
    let scratch = std::env::var_os("OCICLE_SCRATCH");
    scratch.expect("this test runs in the testbed: use `make test`").into()
}

/// One after the other where tests share a process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `PATH` with the programs of this build in front, and `first` before them.
fn path_with(first: Option<&Path>) -> OsString {
    let built = Path::new(env!("CARGO_BIN_EXE_ocicle")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let before = first.into_iter().chain([built]).map(Path::to_owned);
    std::env::join_paths(before.chain(std::env::split_paths(&path))).unwrap()
}

/// Runs an example to its end: how it ended, and what it said.
fn run(example: &str, runtime: &str, cgroup: &str, path: OsString) -> (Output, String) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example).join("run");
    let arguments = ["--runtime", runtime, "--cgroup", cgroup];
    let output = Command::new(program).args(arguments).env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    (output, said)
}

/// What an example could leave: its directory, its mounts, its cgroups and its processes.
fn traces() -> BTreeSet<String> {
    let in_scratch = fs::read_dir(scratch()).unwrap();
    let mut found: BTreeSet<String> =
        in_scratch.map(|entry| entry.unwrap().path().display().to_string()).collect();
    let below = format!("{}/", scratch().display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&below)).map(str::to_owned));
    let id = std::env::var("OCICLE_TESTBED_ID").unwrap();
    let mut find = Command::new("find");
    let cgroups = find.args(["/sys/fs/cgroup", "-name", &format!("{id}-*")]).output().unwrap();
    found.extend(String::from_utf8_lossy(&cgroups.stdout).lines().map(str::to_owned));
    found.extend(processes());
    found
}

/// Every process with its command line.
fn processes() -> impl Iterator<Item = String> {
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    numbers.filter_map(|number| {
        let line = fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        Some(format!("{number} {line}"))
    })
}

/// Runs an example that has to come to its end, which a text marks, and to leave nothing.
fn passes(example: &str, end: &str, runtime: &str, cgroup: &str) -> String {
    let _alone = alone();
    let before = traces();
    let (output, said) = run(example, runtime, cgroup, path_with(None));
    assert!(output.status.success(), "{example} ended with {}", output.status);
    assert!(said.contains(end), "{example} did not come to its end");
    assert_eq!(traces(), before, "{example} left something behind");
    said
}

macro_rules! examples {
    ($($name:ident: $directory:literal, $checks:literal;)*) => {
        $(mod $name {
            use super::passes;

            const END: &str = concat!("\n", $checks, " checks, all good.");

            #[test]
            fn runc_v1() {
                passes($directory, END, "runc", "v1");
            }

            #[test]
            fn runc_v2() {
                passes($directory, END, "runc", "v2");
            }

            #[test]
            fn crun_v2() {
                passes($directory, END, "crun", "v2");
            }
        })*
    };
}

examples! {
    ping: "ping", 7;
    second_instance: "second-instance", 8;
    other_input: "other-input", 5;
    cluster: "cluster", 5;
}
