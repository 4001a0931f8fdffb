//! Whom the kernel's OOM killer takes first (`oom_score_adj` of proc_pid_oom_score_adj(5)).

use std::fs;
use std::io;

const FILE: &str = "/proc/self/oom_score_adj";

/// It is never taken.
const NEVER: i32 = -1000;

/// How this process is judged now.
pub fn score() -> io::Result<i32> {
    fs::read_to_string(FILE)?.trim().parse().map_err(io::Error::other)
}

/// Has it judged so.
///
/// # Errors
/// Without CAP_SYS_RESOURCE, below what somebody with it has set (`__set_oom_adj` in fs/proc/base.c).
pub fn set_score(score: i32) -> io::Result<()> {
    fs::write(FILE, score.to_string())
}

/// Has this process taken as late as we may ask for: never, or by the lowest score that is allowed,
/// which the kernel tells by refusing the others.
pub fn be_last() -> io::Result<()> {
    let mut allowed = score()?;
    if set_score(NEVER).is_ok() {
        return Ok(());
    }
    let mut refused = NEVER;
    while allowed - refused > 1 {
        let between = refused + (allowed - refused) / 2;
        match set_score(between) {
            Ok(()) => allowed = between,
            Err(_) => refused = between,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lower_is_allowed_then() {
        let before = score().unwrap();
        be_last().unwrap();
        let lowest = score().unwrap();
        assert!(lowest <= before && (lowest == NEVER || set_score(lowest - 1).is_err()));
        set_score(before).unwrap();
    }
}
