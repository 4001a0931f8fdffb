//! What happened when during a checkpoint.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::store::manifest::Phase;

/// Steps, on one clock that begins with the command.
#[derive(Debug)]
pub struct Timeline {
    begin: Instant,
    phases: RefCell<Vec<Phase>>,
}

impl Timeline {
    pub(super) fn start() -> Self {
        Self { begin: Instant::now(), phases: RefCell::default() }
    }

    pub(super) fn mark(&self, name: &str, begin: Instant, end: Instant) {
        let since = |instant: Instant| Self::milliseconds(instant.duration_since(self.begin));
        self.phases.borrow_mut().push(Phase {
            name: name.to_owned(),
            begin: since(begin),
            end: since(end),
        });
    }

    pub(super) fn time<T>(&self, name: &str, step: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = step();
        self.mark(name, begin, Instant::now());
        result
    }

    pub(super) fn phases(&self) -> Vec<Phase> {
        let mut phases = self.phases.borrow().clone();
        phases.sort_by(|one, other| one.begin.total_cmp(&other.begin));
        phases
    }

    /// A duration in milliseconds, to a thousandth.
    pub(super) fn milliseconds(duration: Duration) -> f64 {
        let microseconds = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        f64::from(microseconds) / 1000.0
    }
}
