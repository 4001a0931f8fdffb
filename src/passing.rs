//! What is the real runtime's alone: everything but `checkpoint` and `restore`, by `exec`.
//!
//! Engines call a runtime at every turn of a container's life, and the loading of a large program is
//! most of what standing in between costs. So `ocicle-runtime` is a small program that knows no more
//! than this module, and becomes `ocicle` for the rest.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::container::ensure_name;
use crate::foreign::Reader;
use crate::hint::{WithHint, hint_of};
use crate::locations::{configuration, named_configuration};
use crate::output::harmless;
use crate::runtime::arguments::{Call, CommandLine, value_of};
use crate::runtime::log::{append, file_of};
use crate::runtime::{Runtime, ended};
use crate::store::lock::heal;

/// The name under which `ocicle` speaks as a runtime does.
pub const RUNTIME: &str = "ocicle-runtime";

/// The program of `ocicle-runtime`.
pub fn main() -> ExitCode {
    let line = CommandLine::parse(std::env::args_os().skip(1).collect());
    let served = if is_passed_on(&line) { pass_on(&line) } else { Err(become_ocicle()) };
    served.unwrap_or_else(|error| {
        report(&line.globals, &error);
        ExitCode::FAILURE
    })
}

fn is_passed_on(line: &CommandLine) -> bool {
    match line.command() {
        Some("checkpoint" | "restore") => false,
        // What they say of ocicle is looked at while it can still be corrected.
        Some("create" | "run") => !is_annotated(&bundle_of(&line.rest)),
        _ => true,
    }
}

/// The bundle that a `create` or `run` names.
pub fn bundle_of(rest: &[OsString]) -> PathBuf {
    let named = value_of(rest, "--bundle").or_else(|| value_of(rest, "-b"));
    named.map_or_else(|| ".".into(), PathBuf::from)
}

/// Whether a bundle may have annotations of ocicle's: whether the text is there at all.
fn is_annotated(bundle: &Path) -> bool {
    const PREFIX: &[u8] = b"\"org.ocicle.";
    let text = Reader::of_root().read(&bundle.join("config.json")).ok().flatten();
    text.is_some_and(|text| text.windows(PREFIX.len()).any(|part| part == PREFIX))
}

/// Becomes `ocicle` under this program's name, with the same arguments; returns only when that fails.
fn become_ocicle() -> anyhow::Error {
    let exec = || -> Result<std::convert::Infallible> {
        let ocicle = std::env::current_exe()?.with_file_name("ocicle");
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let error = Command::new(&ocicle).arg0(RUNTIME).args(arguments).exec();
        Err(error).with_context(|| format!("executing {}", ocicle.display()))
    };
    match exec() {
        Err(error) => error.hint("ocicle-runtime needs the program `ocicle` in its own directory"),
        Ok(never) => match never {},
    }
}

/// Becomes the real runtime with the same arguments. Of a container that the call names, what was left
/// frozen is thawed before; and crun's `delete` of one that a checkpoint has ended is done by then.
///
/// # Errors
/// When there is no runtime to become.
pub fn pass_on(line: &CommandLine) -> Result<ExitCode> {
    let call = Call::parse(line.rest.get(1..).unwrap_or_default());
    let named = call.filter(|call| ensure_name(&call.id).is_ok());
    if let Some(Err(error)) = named.as_ref().map(|call| heal(&call.id)) {
        tracing::warn!("looking for what was left frozen: {error:#}");
    }
    let runtime = Runtime::find(configured()?.as_deref())?.with_globals(line.globals.clone());
    let deleted = named.filter(|_| line.command() == Some("delete"));
    if deleted.is_some_and(|call| ended::take(&runtime, &call.id)) {
        return Ok(ExitCode::SUCCESS);
    }
    Err(runtime.exec(&line.rest))
}

/// The runtime that the configuration names. Settings that are wrong stop only what they are about.
fn configured() -> Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Only {
        runtime: Option<PathBuf>,
    }
    let path = configuration();
    let context = || format!("reading {}", path.display());
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match named_configuration() {
                Some(_) => Err(anyhow!("there is no such file")).with_context(context),
                None => Ok(None),
            };
        }
        text => text.with_context(context)?,
    };
    let Only { runtime } = toml::from_str(&text).with_context(context)?;
    Ok(runtime)
}

/// Tells an error as runc does: to the log that the caller asked for, in its format, and to
/// standard error.
pub fn report(globals: &[OsString], error: &anyhow::Error) {
    say(globals, "error", error);
}

/// Tells of a mistake that stops nothing, in the same way.
pub fn warn(globals: &[OsString], error: &anyhow::Error) {
    say(globals, "warning", error);
}

fn say(globals: &[OsString], level: &str, error: &anyhow::Error) {
    let mut message = format!("{error:#}");
    if let Some(hint) = hint_of(error) {
        message = format!("{message} (hint: {hint})");
    }
    let kind = if level == "error" { "" } else { "warning: " };
    eprintln!("ocicle-runtime: {kind}{}", harmless(&message));
    if let Some(log) = file_of(globals) {
        let json = value_of(globals, "--log-format").is_some_and(|format| format == "json");
        if let Err(failed) = log_to(&log, level, &message, json) {
            eprintln!("ocicle-runtime: {failed:#}");
        }
    }
}

fn log_to(log: &Path, level: &str, message: &str, json: bool) -> Result<()> {
    let time = jiff::Timestamp::now();
    let line = if json {
        serde_json::json!({ "level": level, "msg": message, "time": time.to_string() }).to_string()
    } else {
        format!("time=\"{time}\" level={level} msg={message:?}")
    };
    append(log, format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_added_to_in_its_format() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        log_to(&log, "error", "a \"b\"\nc", true).unwrap();
        log_to(&log, "error", "a \"b\"\nc", false).unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "a line each, whatever is in the message: {text}");
        let json: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!((&json["level"], &json["msg"]), (&"error".into(), &"a \"b\"\nc".into()));
        assert!(lines[1].ends_with(r#"level=error msg="a \"b\"\nc""#), "{text}");
    }
}
