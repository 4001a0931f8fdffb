//! What happened when during a checkpoint.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::criu::phases::DumpStep;
use crate::store::manifest::Phase;

/// Steps, on one clock that begins with the command.
#[derive(Debug)]
pub struct Timeline {
    begin: Instant,
    phases: RefCell<Vec<Phase>>,
}

impl Timeline {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { begin: Instant::now(), phases: RefCell::default() }
    }

    /// Adds a step that is over.
    pub fn mark(&self, name: &str, begin: Instant, end: Instant) {
        self.add(None, name, self.since(begin), self.since(end));
    }

    /// A step of CRIU's, which is part of another one and counts from `anchor`.
    pub fn mark_within(&self, whole: &str, anchor: Instant, step: &DumpStep) {
        let anchor = self.since(anchor);
        self.add(Some(whole.to_owned()), step.name, anchor + step.begin, anchor + step.end);
    }

    /// How many steps there are so far.
    pub fn count(&self) -> usize {
        self.phases.borrow().len()
    }

    /// Makes one step of all that came after so many: they led to nothing.
    pub fn replace(&self, after: usize, name: &str, begin: Instant) {
        self.phases.borrow_mut().truncate(after);
        self.mark(name, begin, Instant::now());
    }

    fn add(&self, within: Option<String>, name: &str, begin: f64, end: f64) {
        let thousandths = |time: f64| (time * 1000.0).round() / 1000.0;
        tracing::debug!("{name}: from {begin:.1} to {end:.1} ms");
        let (name, begin, end) = (name.to_owned(), thousandths(begin), thousandths(end));
        self.phases.borrow_mut().push(Phase { name, begin, end, within });
    }

    fn since(&self, instant: Instant) -> f64 {
        Self::milliseconds(instant.duration_since(self.begin))
    }

    /// Takes a step, and adds it.
    pub fn time<T>(&self, name: &str, step: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = step();
        self.mark(name, begin, Instant::now());
        result
    }

    /// The steps, in the order in which they began.
    pub fn phases(&self) -> Vec<Phase> {
        let mut phases = self.phases.borrow().clone();
        phases.sort_by(|one, other| one.begin.total_cmp(&other.begin));
        phases
    }

    /// A duration in milliseconds, to a thousandth.
    pub fn milliseconds(duration: Duration) -> f64 {
        let microseconds = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        f64::from(microseconds) / 1000.0
    }
}
