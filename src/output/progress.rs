//! Progress of long work: drawn on a terminal, or told in lines of JSON.

use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::snapshot::Progress;

/// How progress is shown, on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shown {
    /// A bar where that is a terminal, nothing elsewhere
    #[default]
    Auto,
    /// A line of JSON at most every tenth of a second, and one at the end
    Json,
    /// Nothing
    None,
}

/// What is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// The progress of one kind of work.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    is_drawn: bool,
    begun: Instant,
    lines: Option<Mutex<Lines>>,
}

impl Bar {
    /// Begins.
    pub fn new(work: &'static str, shown: Shown) -> Self {
        // It is shown when there is something to do.
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(work);
        let lines = (shown == Shown::Json).then(|| Mutex::new(Lines::of(work)));
        Self { bar, is_drawn: shown == Shown::Auto, begun: Instant::now(), lines }
    }

    fn tell(&self, count: impl FnOnce(&mut Lines)) {
        if let Some(Ok(mut lines)) = self.lines.as_ref().map(Mutex::lock) {
            count(&mut lines);
            if lines.is_time() {
                lines.print(false);
            }
        }
    }
}

impl Progress for Bar {
    fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
        self.tell(|lines| lines.total += bytes);
    }

    fn advance(&self, bytes: u64) {
        if self.is_drawn && self.bar.is_hidden() && self.begun.elapsed() >= PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(bytes);
        self.tell(|lines| lines.done += bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if let Some(Ok(mut lines)) = self.lines.as_ref().map(Mutex::lock) {
            lines.print(true);
        }
    }
}

/// What the lines of JSON tell.
#[derive(Debug)]
struct Lines {
    work: &'static str,
    begin: Instant,
    printed: Option<Instant>,
    done: u64,
    total: u64,
}

impl Lines {
    const APART: Duration = Duration::from_millis(100);

    fn of(work: &'static str) -> Self {
        Self { work, begin: Instant::now(), printed: None, done: 0, total: 0 }
    }

    fn is_time(&self) -> bool {
        self.printed.is_none_or(|printed| printed.elapsed() >= Self::APART)
    }

    fn print(&mut self, ended: bool) {
        self.printed = Some(Instant::now());
        let line = self.to_json(self.begin.elapsed(), ended);
        // Whoever closed the pipe does not want it.
        let _ = writeln!(anstream::stderr(), "{line}");
    }

    fn to_json(&self, elapsed: Duration, ended: bool) -> Value {
        let rate = self.done as f64 / elapsed.as_secs_f64().max(1e-3);
        let left = self.total.saturating_sub(self.done) as f64 / rate;
        json!({
            "schema": 1,
            "progress": self.work,
            "bytes": self.done,
            "total_bytes": self.total,
            "bytes_per_second": rate.round(),
            "seconds_left": if left.is_finite() { json!((left * 10.0).round() / 10.0) } else { Value::Null },
            "ended": ended,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left() {
        let mut lines = Lines::of("packing");
        lines.total = 3_000_000;
        let line = lines.to_json(Duration::from_secs(1), false);
        assert_eq!((&line["seconds_left"], &line["bytes"]), (&Value::Null, &0.into()));
        lines.done = 1_000_000;
        let line = lines.to_json(Duration::from_secs(2), false);
        assert_eq!(line["bytes_per_second"], 500_000.0);
        assert_eq!((&line["seconds_left"], &line["ended"]), (&4.0.into(), &false.into()));
    }
}
