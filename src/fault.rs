//! Points at which the tests kill ocicle.
//!
//! Without the feature `fault-points` nothing of this is in the program.

/// Every point, in the order in which a checkpoint comes to them.
pub const POINTS: [&str; 13] = [
    "pre-copied",
    "at-the-door",
    "admitted",
    "frozen",
    "dumping",
    "snapshot-taken",
    "post-dump",
    "committed",
    "dumped",
    "thawed",
    "packed",
    "digest-written",
    "manifest-written",
];

/// The points that only a checkpoint comes to that stops its container.
pub const STOPPING: [&str; 1] = ["digest-replaced"];

/// Kills this process with SIGKILL where `OCICLE_FAULT` names this point, and runs what
/// `OCICLE_FAULT_RUN` names behind this point and a colon.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    let run = std::env::var("OCICLE_FAULT_RUN").unwrap_or_default();
    if let Some(program) = run.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) {
        let _ = std::process::Command::new(program).status();
    }
    if std::env::var_os("OCICLE_FAULT").is_some_and(|wanted| wanted == name) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Kills this process where the tests ask for it: never, in a build for use.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
