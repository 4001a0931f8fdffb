//! How long a freeze may last: as long as somebody gets on with the dump, and a limit beyond that.

use std::time::{Duration, Instant};

use crate::proc::work::{done_by, with_descendants};
use crate::sys::pid::Pid;

/// How often is looked, at the longest.
const OFTEN: Duration = Duration::from_secs(1);

/// The limit, and when the work last got on.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    done: u64,
    since: Instant,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, done: 0, since: Instant::now() }
    }

    /// Begins to count anew.
    pub(super) fn renew(&mut self) {
        self.since = Instant::now();
    }

    /// How long it may be before the next look.
    pub(super) fn interval(&self) -> Duration {
        (self.limit / 4).min(OFTEN)
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether those who work, with all that they have started, have not got on for too long. The
    /// kernel raises no event for that.
    pub(super) fn is_over(&mut self, who_works: &[Pid], but: Pid) -> bool {
        let all = with_descendants(who_works);
        let done = all
            .into_iter()
            .filter(|pid| *pid != but)
            .fold(0, |sum: u64, pid| sum.wrapping_add(done_by(pid)));
        if done != std::mem::replace(&mut self.done, done) {
            self.renew();
        }
        self.since.elapsed() >= self.limit
    }
}
