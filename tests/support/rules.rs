//! Restores with rules, and what the open files are before and after.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::bundle::Bundle;
use super::machine::{Machine, run};

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

/// `ocicle restore`, with `fd` open on a file as a shell would.
pub fn restore(
    bundle: &Bundle<'_>,
    machine: &Machine,
    rules: &[&str],
    fd: &str,
) -> Result<(), String> {
    let mut command = machine.ocicle();
    command.arg("restore").arg(bundle.id()).args(machine.variant().criu_flags());
    rules.iter().for_each(|rule| {
        command.args(["-s", rule]);
    });
    by_shell(machine, &command, &format!("exec \"$@\" {fd}"))
}

/// Runs a command in a shell that says how.
pub fn by_shell(machine: &Machine, command: &Command, how: &str) -> Result<(), String> {
    let errors = machine.state_root().join("errors");
    let mut shell = Command::new("bash");
    shell.args(["-c", how, "bash"]).arg(command.get_program()).args(command.get_args());
    shell.env("OCICLE_RUNTIME", machine.variant().runtime());
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
    let status = shell.status().unwrap();
    let said = fs::read_to_string(&errors).unwrap();
    fs::remove_file(errors).unwrap();
    if status.success() { Ok(()) } else { Err(said) }
}
