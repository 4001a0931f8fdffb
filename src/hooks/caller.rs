//! Who called: the runtime that CRIU, and through it this script, descends from.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hint::WithHint;
use crate::proc::Proc;
use crate::runtime::Runtime;
use crate::runtime::arguments::{Call, CommandLine};
use crate::sys::pid::Pid;
use crate::sys::process::is_program;

/// A runtime's `checkpoint` or `restore` that is under way.
pub(super) struct Caller {
    /// The runtime, with the global flags of its call.
    pub runtime: Runtime,
    /// Its call.
    pub call: Call,
    /// Where it is.
    directory: PathBuf,
}

impl Caller {
    /// Finds the nearest of our ancestors that is a runtime with that command.
    pub(super) fn find(command: &str) -> Result<Self> {
        let mut at = Pid::own();
        loop {
            at = Proc::of(at).stat()?.parent;
            if at <= Pid(1) {
                return Err(anyhow::anyhow!("no runtime called it with {command}").hint(
                    "this is CRIU's action script below runc or crun; other callers of CRIU need \
                     none of it",
                ));
            }
            if let Some(caller) = Self::of(at, command)? {
                return Ok(caller);
            }
        }
    }

    fn of(pid: Pid, command: &str) -> Result<Option<Self>> {
        let process = Proc::of(pid);
        let read = |name: &str| {
            let path = process.at(name);
            fs::read_link(&path).with_context(|| format!("reading {}", path.display()))
        };
        let path = process.at("cmdline");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let Some((name, globals, call)) = parse(&text, command) else { return Ok(None) };
        let runtime = Runtime::at(program(read("exe")?, &name)?).with_globals(globals);
        Ok(Some(Self { runtime, call, directory: read("cwd")? }))
    }

    /// The bundle of a restore: both runtimes have changed to it before they start CRIU
    /// (`setupSpec` in runc's utils.go, `crun_command_restore` in crun's src/restore.c).
    pub(super) fn bundle(&self) -> &Path {
        &self.directory
    }
}

/// The runtime's program: crun runs from a copy of itself in memory, which has no path.
fn program(executed: PathBuf, name: &OsStr) -> Result<PathBuf> {
    if is_program(&executed) { Ok(executed) } else { Runtime::named(name) }
}

/// The name, the global flags and the call of a command line, if it is of that command.
fn parse(text: &[u8], command: &str) -> Option<(OsString, Vec<OsString>, Call)> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    let mut words = text.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).into());
    let name = words.next()?;
    let line = CommandLine::parse(words.collect());
    if line.command() != Some(command) {
        return None;
    }
    Some((name, line.globals, Call::parse(&line.rest[1..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_call_is_known_among_its_ancestors() {
        let text = b"runc\0--root\0/r\0checkpoint\0--leave-running\0--image-path\0/i\0web\0";
        let (name, globals, call) = parse(text, "checkpoint").unwrap();
        assert_eq!(
            (name.to_str(), &globals[..]),
            (Some("runc"), &["--root", "/r"].map(Into::into)[..])
        );
        assert_eq!((call.id.as_str(), call.has("--leave-running")), ("web", true));
        assert!(parse(text, "restore").is_none());
        for other in [&b"criu\0swrk\x003\0"[..], b"", b"bash\0-c\0runc checkpoint web\0"] {
            assert!(parse(other, "checkpoint").is_none());
        }
    }
}
