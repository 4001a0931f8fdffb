//! Where the real runtime's log goes while it works for ocicle.
//!
//! An engine reads the log of a call that failed, to tell its user the cause: podman takes all of it
//! for one message of JSON (`readConmonPipeData` in libpod/oci_conmon_common.go), containerd looks
//! for the last error (`getLastRuntimeError` in go-runc's utils.go). runc and crun know only that
//! CRIU failed. So they write to a log of their own; what they wrote goes to the caller's if they
//! succeed, and if not, ocicle's own error is all that stands there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Runtime;
use super::arguments::{replaced, value_of};

/// A runtime that logs to a file of ours, where its caller named one.
#[derive(Debug)]
pub struct Diverted {
    /// The runtime, as it is to be called.
    pub runtime: Runtime,
    /// The caller's log and ours.
    logs: Option<(PathBuf, PathBuf)>,
}

impl Diverted {
    /// Has the runtime log to a file in `directory`.
    pub fn to(directory: &Path, runtime: &Runtime) -> Self {
        let Some(callers) = file_of(&runtime.globals) else {
            return Self { runtime: runtime.clone(), logs: None };
        };
        let ours = directory.join("runtime-log");
        let globals = replaced(&runtime.globals, "--log", ours.as_os_str());
        Self { runtime: runtime.clone().with_globals(globals), logs: Some((callers, ours)) }
    }

    /// What the runtime has logged, if that went to a file of ours.
    pub fn log(&self) -> Option<File> {
        File::open(&self.logs.as_ref()?.1).ok()
    }

    /// Forgets what the runtime has logged so far: it is called again.
    pub fn forget(&self) {
        if let Some((_, ours)) = &self.logs {
            // A runtime that had nothing to say has made none.
            let _ = fs::remove_file(ours);
        }
    }

    /// Adds what the runtime has logged to the caller's log.
    pub fn hand_on(&self) -> Result<()> {
        let Some((callers, ours)) = &self.logs else { return Ok(()) };
        // A runtime that has nothing to say need not make a log.
        let said = fs::read(ours).unwrap_or_default();
        append(callers, &said)
    }
}

/// Adds bytes to a log, which is made if it is not there, as runtimes do.
pub fn append(log: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    file.write_all(bytes).with_context(|| format!("writing {}", log.display()))
}

/// The file that `--log` names: crun knows `file:PATH`, and logs that are no files.
pub fn file_of(globals: &[OsString]) -> Option<PathBuf> {
    let named = value_of(globals, "--log")?;
    let text = named.to_string_lossy();
    if text.is_empty() || text.starts_with("syslog:") || text.starts_with("journald:") {
        return None;
    }
    Some(text.strip_prefix("file:").map_or_else(|| named.into(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(globals: &str) -> Runtime {
        let globals: Vec<OsString> = globals.split_whitespace().map(OsString::from).collect();
        Runtime::at("/bin/runc".into()).with_globals(globals)
    }

    #[test]
    fn the_callers_log_gets_what_the_runtimes_own_had() {
        let directory = tempfile::tempdir().unwrap();
        let callers = directory.path().join("log.json");
        fs::write(&callers, "before\n").unwrap();
        let globals = format!("--root /r --log={} --log-format json", callers.display());
        let diverted = Diverted::to(directory.path(), &runtime(&globals));
        let ours = directory.path().join("runtime-log");
        let expected = format!("--root /r --log={} --log-format json", ours.display());
        assert_eq!(diverted.runtime.globals, runtime(&expected).globals);
        assert!(diverted.log().is_none());
        diverted.hand_on().unwrap();
        fs::write(&ours, "a warning\n").unwrap();
        assert!(diverted.log().is_some());
        diverted.hand_on().unwrap();
        assert_eq!(fs::read_to_string(&callers).unwrap(), "before\na warning\n");
    }

    #[test]
    fn logs_that_are_no_files_stay_the_runtimes() {
        for (globals, file) in [
            ("--log /l", Some("/l")),
            ("--log file:/l", Some("/l")),
            ("--log=journald:web", None),
            ("--log syslog:web", None),
            ("--root /r", None),
        ] {
            assert_eq!(file_of(&runtime(globals).globals), file.map(PathBuf::from), "{globals}");
        }
        let untouched = Diverted::to(Path::new("/nonexistent"), &runtime("--log syslog:web"));
        assert_eq!(untouched.runtime.globals, runtime("--log syslog:web").globals);
        untouched.hand_on().unwrap();
    }
}
