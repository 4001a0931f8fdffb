//! The timeline as bars.

use crate::output::{Tone, toned};
use crate::store::manifest::Phase;

/// How wide the bars are at most, and at least; and what a line is to fit into.
const WIDEST: usize = 50;
const NARROWEST: usize = 20;
const LINE: usize = 80;
/// What stands beside the bar: the time, and blanks.
const BESIDE: usize = 16;

/// A line for each step: its name, where it lies, how long it took.
pub(super) fn lines(phases: &[Phase]) -> Vec<String> {
    let end = phases.iter().map(|phase| phase.end).fold(0.0, f64::max);
    if !(end.is_finite() && end > 0.0) {
        return Vec::new();
    }
    let names = phases.iter().map(|phase| shown(phase).chars().count()).max().unwrap_or_default();
    let width = LINE.saturating_sub(names + BESIDE).clamp(NARROWEST, WIDEST);
    in_order(phases).map(|phase| line(phase, end, names, width)).collect()
}

/// Each step, and behind it those that are part of it.
fn in_order(phases: &[Phase]) -> impl Iterator<Item = &Phase> {
    let is_there = |name: &String| phases.iter().any(|phase| phase.name == *name);
    let whole = move |phase: &&Phase| !phase.within.as_ref().is_some_and(is_there);
    phases.iter().filter(whole).flat_map(|outer| {
        let within = |phase: &&Phase| phase.within.as_ref() == Some(&outer.name);
        std::iter::once(outer).chain(phases.iter().filter(within))
    })
}

/// Its name; that of a step of another one stands in from the left.
fn shown(phase: &Phase) -> String {
    let indent = if phase.within.is_some() { "  " } else { "" };
    format!("{indent}{}", crate::bytes::ByteString::from(&*phase.name))
}

fn line(phase: &Phase, end: f64, names: usize, width: usize) -> String {
    let whole = width as f64;
    let column = |time: f64| (time / end * whole).clamp(0.0, whole).round() as usize;
    let first = column(phase.begin).min(width - 1);
    let last = column(phase.end).max(first + 1);
    let bar = toned(Tone::Good, &"█".repeat(last - first));
    let blank = " ".repeat(width - last);
    let took = (phase.end - phase.begin).max(0.0);
    format!("{:names$}  {}{bar}{blank}  {took:>9.1} ms", shown(phase), " ".repeat(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, begin: f64, end: f64) -> Phase {
        Phase { name: name.into(), begin, end, within: None }
    }

    #[test]
    fn bars_lie_where_the_steps_were() {
        let phases =
            [phase("freeze", 0.0, 1.0), phase("dump", 1.0, 51.0), phase("thaw", 99.99, 100.0)];
        let drawn = lines(&phases).join("\n");
        insta::assert_snapshot!(anstream::adapter::strip_str(&drawn).to_string());
    }

    #[test]
    fn any_numbers_can_be_drawn() {
        for (begin, end) in
            [(f64::NAN, 1.0), (5.0, 1.0), (-1.0, f64::MAX), (f64::INFINITY, 3.0), (0.0, 0.0)]
        {
            let _ = lines(&[phase("a", begin, end), phase("\x1b[2J", 0.0, 1.0)]);
        }
    }
}
