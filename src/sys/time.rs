//! Points in time, as file systems keep them.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A point in time. In JSON it is a list of its two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(i64, u32)", into = "(i64, u32)")]
pub struct Time {
    /// Since 1970; less than 0 before.
    pub seconds: i64,
    /// After these.
    pub nanoseconds: u32,
}

impl Time {
    /// The point that many seconds and nanoseconds after 1970 began.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self { seconds, nanoseconds }
    }

    /// The point of two numbers as the kernel has them: its nanoseconds are less than a second.
    pub const fn from_kernel(seconds: i64, nanoseconds: i64) -> Self {
        Self { seconds, nanoseconds: nanoseconds as u32 }
    }

    /// Now, by the clock that file systems stamp with.
    pub fn coarse_now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self::from_kernel(now.tv_sec, now.tv_nsec)
    }
}

impl From<(i64, u32)> for Time {
    fn from((seconds, nanoseconds): (i64, u32)) -> Self {
        Self { seconds, nanoseconds }
    }
}

impl From<Time> for (i64, u32) {
    fn from(time: Time) -> Self {
        (time.seconds, time.nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_in_json() {
        let time = Time::new(-5, 250_000_000);
        assert_eq!(serde_json::to_string(&time).unwrap(), "[-5,250000000]");
        assert_eq!(serde_json::from_str::<Time>("[-5,250000000]").unwrap(), time);
        assert!(Time::new(4, 999_999_999) < Time::new(5, 0));
    }
}
