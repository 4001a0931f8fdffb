//! `/proc/PID/stat`, as proc_pid_stat(5) describes it.

use anyhow::{Context, Result};

use crate::sys::inode::Device;
use crate::sys::pid::Pid;

/// What it says of a process or thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Its name.
    pub name: String,
    /// `R`, `S`, `D`, `T`, `t`, `Z` …
    pub state: char,
    /// Its parent.
    pub parent: Pid,
    /// The leader of its session.
    pub session: Pid,
    /// Its controlling terminal; none if it has none.
    pub terminal: Option<Device>,
    /// The processor time that it has had, in ticks.
    pub worked: u64,
    /// When it was started, in ticks since the machine was.
    pub started: Option<u64>,
    /// Whether it is on its way to its end (`PF_EXITING` in the kernel's include/linux/sched.h): what
    /// it held goes away, and the kernel says of it less and less.
    pub is_ending: bool,
}

impl ProcessStat {
    /// Whether it has ended and waits for its parent: it holds nothing any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

const EXITING: u64 = 4;

/// Parses the whole file. The name is between the first and the last parenthesis: it may hold any
/// byte itself.
pub fn parse_stat(text: &[u8]) -> Result<ProcessStat> {
    let text = String::from_utf8_lossy(text);
    let (open, close) = text.find('(').zip(text.rfind(')')).context("it has no name")?;
    let fields: Vec<_> =
        text.get(close + 1..).unwrap_or_default().split_ascii_whitespace().collect();
    // As the manual page numbers them: the state is the third.
    let field = |number: usize| fields.get(number - 3).copied();
    let needed = |number| field(number).context("it is cut");
    let ticks = |number| field(number).and_then(|ticks| ticks.parse::<u64>().ok());
    Ok(ProcessStat {
        name: text.get(open + 1..close).context("its name is cut")?.to_owned(),
        state: needed(3)?.chars().next().context("it has no state")?,
        parent: needed(4)?.parse()?,
        session: needed(6)?.parse()?,
        terminal: Some(needed(7)?.parse()?).filter(|number| *number != 0).map(Device::from_stat),
        worked: [14, 15].into_iter().filter_map(ticks).sum(),
        started: ticks(22),
        is_ending: ticks(9).is_some_and(|flags| flags & EXITING != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let stat = parse_stat(b"7 (a) b (c) S 3 7 6 34817").unwrap();
        assert_eq!((stat.parent, stat.name.as_str()), (Pid(3), "a) b (c"));
        assert_eq!(
            (stat.state, stat.session, stat.terminal),
            ('S', Pid(6), Some(Device::new(136, 1)))
        );
        assert_eq!((stat.worked, stat.started), (0, None));
        for cut in [&b"7 (a S 3"[..], b"7 )(", b"7 (a) S 3 7 6", b""] {
            assert!(parse_stat(cut).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn times_and_the_end() {
        let rest = "3 7 7 0 -1 0 0 0 0 0 30 12 3 4 20 0 1 0 4711 5 6";
        let stat = parse_stat(format!("7 (a) b) S {rest}").as_bytes()).unwrap();
        assert_eq!((stat.worked, stat.started, stat.has_ended()), (42, Some(4711), false));
        assert!(parse_stat(format!("7 (a) Z {rest}").as_bytes()).unwrap().has_ended());
        let ends = |flags: u32| {
            let text = format!("7 (a) S 3 7 7 0 -1 {flags} 0");
            parse_stat(text.as_bytes()).unwrap().is_ending
        };
        assert!(ends(0x40_0004) && !ends(0x40_0040));
    }

    #[test]
    fn fields_that_are_no_numbers_are_errors() {
        for text in ["7 (a) S x 3 6 0", "7 (a) S 3 3 x 0", "7 (a) S 3 3 6 x", "7 (a) S 3 3 6 -1"] {
            assert!(parse_stat(text.as_bytes()).is_err(), "{text}");
        }
        // The name is any bytes; the session of who has none is 0, and in a namespace from outside -1.
        let stat = parse_stat(b"7 (\xff\n) R 0 0 -1 0").unwrap();
        assert_eq!((stat.name.as_str(), stat.parent.0, stat.session.0), ("\u{fffd}\n", 0, -1));
        // Counters that are cut are none.
        let stat = parse_stat(b"7 (a) S 3 7 7 0 -1 x 0 0 0 0 5").unwrap();
        assert_eq!((stat.worked, stat.started, stat.is_ending), (5, None, false));
    }
}
