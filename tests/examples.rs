//! The examples, for each runtime. Each checks what it shows by itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn scratch() -> PathBuf {
    let scratch = std::env::var_os("OCICLE_SCRATCH");
    scratch.expect("this test runs in the testbed: use `make test`").into()
}

/// What an example could leave: its directory, its mounts, its cgroups and its processes.
fn traces() -> BTreeSet<String> {
    let in_scratch = fs::read_dir(scratch()).unwrap();
    let mut found: BTreeSet<String> =
        in_scratch.map(|entry| entry.unwrap().path().display().to_string()).collect();
    let scratch = scratch().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts.lines().filter(|line| line.contains(&format!("{scratch}/"))).map(str::to_owned),
    );
    let id = std::env::var("OCICLE_TESTBED_ID").unwrap();
    let mut find = Command::new("find");
    let cgroups = find.args(["/sys/fs/cgroup", "-name", &format!("{id}-*")]).output().unwrap();
    found.extend(String::from_utf8_lossy(&cgroups.stdout).lines().map(str::to_owned));
    found.extend(processes());
    found
}

/// Processes but for this one and those that were there before.
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

fn passes(example: &str, checks: u32, runtime: &str, cgroup: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_BIN_EXE_ocicle")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let path = [built.to_owned()].into_iter().chain(std::env::split_paths(&path));
    let before = traces();
    let output = Command::new(root.join("examples").join(example).join("run"))
        .args(["--runtime", runtime, "--cgroup", cgroup])
        .env("PATH", std::env::join_paths(path).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the example ended with {}", output.status);
    assert!(said.contains(&format!("\n{checks} checks, all good.")), "it did not come to its end");
    assert_eq!(traces(), before, "it left something behind");
}

macro_rules! examples {
    ($($name:ident: $directory:literal, $checks:literal;)*) => {
        $(mod $name {
            // One after the other where tests share a process: each looks for what is left.
            static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

            #[test]
            fn runc_v1() {
                let _one = ONE.lock();
                super::passes($directory, $checks, "runc", "v1");
            }

            #[test]
            fn runc_v2() {
                let _one = ONE.lock();
                super::passes($directory, $checks, "runc", "v2");
            }

            #[test]
            fn crun_v2() {
                let _one = ONE.lock();
                super::passes($directory, $checks, "crun", "v2");
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
