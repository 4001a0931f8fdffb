//! Whom the kernel's OOM killer takes first (`oom_score_adj` of proc_pid_oom_score_adj(5)).

use std::fs;
use std::io;

const FILE: &str = "/proc/self/oom_score_adj";

/// It is never taken.
const NEVER: i32 = -1000;
/// It is taken before all others.
const FIRST: i32 = 1000;

/// How this process is judged now.
pub fn score() -> io::Result<i32> {
    parse_score(&fs::read_to_string(FILE)?)
}

/// Parses the whole file: a number from -1000, which is never, to 1000, which is first.
///
/// # Errors
/// It is another number, or none.
pub fn parse_score(text: &str) -> io::Result<i32> {
    let score = text.trim().parse().map_err(io::Error::other)?;
    match (NEVER..=FIRST).contains(&score) {
        true => Ok(score),
        false => Err(io::Error::other(format!("{score} is no score"))),
    }
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
    fn scores() {
        for (text, score) in [("0\n", 0), ("-1000\n", NEVER), ("1000", FIRST), (" -17 \n", -17)] {
            assert_eq!(parse_score(text).unwrap(), score, "{text:?}");
        }
        for wrong in ["", "\n", "x", "1001", "-1001", "5 6", "0x5"] {
            assert!(parse_score(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nothing_lower_is_allowed_then() {
        let before = score().unwrap();
        be_last().unwrap();
        let lowest = score().unwrap();
        assert!(lowest <= before && (lowest == NEVER || set_score(lowest - 1).is_err()));
        set_score(before).unwrap();
    }
}
