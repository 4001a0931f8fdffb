//! Points at which the tests kill ocicle.
//!
//! Without the feature `fault-points` nothing of this is in the program.

/// Every point, in the order in which a checkpoint comes to them.
pub const POINTS: [&str; 12] = [
    "pre-copied",
    "at-the-door",
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

/// Kills this process with SIGKILL where `OCICLE_FAULT` names this point.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    if std::env::var_os("OCICLE_FAULT").is_some_and(|wanted| wanted == name) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Kills this process where the tests ask for it: never, in a build for use.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
