//! `/proc/PID/status`, as proc_pid_status(5) describes it: lines of a name, a colon and words.

use anyhow::{Context, Result};

/// What stands behind a name.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The numbers behind a name, from our namespace inwards (`NSpid`, `NSsid`).
///
/// # Errors
/// The line is not there, or holds something else.
pub fn parse_numbers(text: &str, name: &str) -> Result<Vec<i32>> {
    let line = field(text, name).with_context(|| format!("it has no {name}"))?;
    line.split_ascii_whitespace().map(|number| Ok(number.parse()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_of_each_namespace() {
        assert_eq!(parse_numbers("Name:\tx\nNSpid:\t812\t7\n", "NSpid").unwrap(), [812, 7]);
        assert!(parse_numbers("Name:\tx\n", "NSpid").is_err());
        assert!(parse_numbers("NSpid:\tx\n", "NSpid").is_err());
        assert_eq!(field("NSpidx:\t1\n", "NSpid"), None);
    }
}
