//! Restores with rules, and what the open files are before and after.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::Value;

use super::bundle::Bundle;
use super::machine::{Machine, run};
use super::session::in_shell;
use super::told::outcome;

/// The open files that `ocicle files` lists.
#[track_caller]
pub fn table(machine: &Machine, reference: &str) -> Vec<Value> {
    let text = run(machine.ocicle().args(["files", "--format", "json", reference]));
    let table: Value = serde_json::from_str(&text).unwrap();
    table["files"].as_array().unwrap().clone()
}

/// Whether a file descriptor refers to one of them.
pub fn holds(file: &Value, pid: i64, fd: i64) -> bool {
    let holders = file["holders"].as_array().unwrap();
    holders.iter().any(|holder| holder["pid"] == pid && holder["fd"] == fd)
}

/// The open file behind a descriptor of the first process.
pub fn find(table: &[Value], fd: i64) -> Option<&Value> {
    table.iter().find(|file| holds(file, 1, fd))
}

/// The same; it has to be there.
#[track_caller]
pub fn held(table: &[Value], fd: i64) -> &Value {
    find(table, fd).unwrap_or_else(|| panic!("fd {fd} in {table:#?}"))
}

/// `ocicle restore` with rules.
pub fn restore_command(
    bundle: &Bundle<'_>,
    machine: &Machine,
    rules: &[impl AsRef<str>],
) -> Command {
    let mut command = machine.ocicle();
    command.arg("restore").arg(bundle.id()).args(machine.variant().criu_flags());
    rules.iter().for_each(|rule| {
        command.args(["-s", rule.as_ref()]);
    });
    command
}

/// The same, run with `fd` open on a file as a shell would.
pub fn restore(
    bundle: &Bundle<'_>,
    machine: &Machine,
    rules: &[impl AsRef<str>],
    fd: &str,
) -> Result<(), String> {
    by_shell(&restore_command(bundle, machine, rules), &format!("exec \"$@\" {fd}"))
}

/// Runs a command in a shell that says how.
pub fn by_shell(command: &Command, how: &str) -> Result<(), String> {
    let (success, _, said) = outcome(&mut in_shell(command, how));
    if success { Ok(()) } else { Err(said) }
}

/// Who has a lock of a range that holds this byte of a file.
pub fn owner_of_lock(path: &Path, byte: i64) -> Option<i32> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut range = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut range)).unwrap();
    (i32::from(range.l_type) != libc::F_UNLCK).then_some(range.l_pid)
}
