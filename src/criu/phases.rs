//! The steps of a dump, by what CRIU's log says of the time.
//!
//! A line begins with the seconds since CRIU opened its log, `(00.012345)` (`print_ts` in
//! criu/log.c). Where a step begins is known by the line that CRIU writes there: the order of
//! `cr_dump_tasks` and `cr_dump_finish` in criu/cr-dump.c. A log that is less verbose than the
//! runtimes have it, or of another CRIU, has fewer steps.

/// A step: what it is called, and where it begins and ends, in milliseconds from the moment at
/// which CRIU ran its post-dump script.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DumpStep {
    /// Its name.
    pub name: &'static str,
    /// When it began.
    pub begin: f64,
    /// When it ended.
    pub end: f64,
}

/// The script at which a step could be told from outside, too.
const ANCHOR: &str = "Running post-dump scripts";

/// How the line begins with which a step begins, behind the name of CRIU's part that writes it.
const MARKS: [(&str, &str); 12] = [
    ("irmap: Searching irmap cache", "seizing"),
    ("Lock network", "network lock"),
    ("Building mountpoints tree", "mounts and sockets"),
    ("Dumping task (pid", "tasks"),
    ("Dumping mountpoints", "file systems"),
    ("Dumping file-locks", "process tree"),
    ("namespaces", "namespaces"),
    ("Namespaces dump complete", "cgroups"),
    (ANCHOR, "waiting for the snapshot"),
    ("Unlock network", "network unlock"),
    ("Unfreezing tasks", "letting go"),
    ("Dumping finished", ""),
];

/// The steps of a dump; none where the log does not tell.
pub fn of_dump(log: &[u8]) -> Vec<DumpStep> {
    let found = marks_in(&String::from_utf8_lossy(log));
    let Some((_, anchor)) = found.iter().find(|(mark, _)| MARKS[*mark].0 == ANCHOR) else {
        return Vec::new();
    };
    let step = |pair: &[(usize, f64)]| {
        let [(mark, begin), (_, end)] = *pair else { return None };
        Some(DumpStep { name: MARKS[mark].1, begin: begin - anchor, end: end - anchor })
    };
    found.windows(2).filter_map(step).collect()
}

/// The first line of each mark, in milliseconds, as long as they stand in the order of the steps.
fn marks_in(log: &str) -> Vec<(usize, f64)> {
    let mut found: Vec<(usize, f64)> = Vec::new();
    for (time, text) in log.lines().filter_map(parse_line) {
        let next = found.last().map_or(0, |(mark, _)| mark + 1);
        let mark = (next..MARKS.len()).find(|mark| begins(text, MARKS[*mark].0));
        found.extend(mark.map(|mark| (mark, time)));
    }
    found
}

fn begins(text: &str, mark: &str) -> bool {
    match mark {
        // `Dumping 1(27)'s namespaces`
        "namespaces" => text.starts_with("Dumping ") && text.ends_with("'s namespaces"),
        _ => {
            let behind = text.split_once(": ").map_or(text, |(_, behind)| behind);
            text.starts_with(mark) || behind.starts_with(mark)
        }
    }
}

fn parse_line(line: &str) -> Option<(f64, &str)> {
    let (time, text) = line.strip_prefix('(')?.split_once(") ")?;
    let seconds: f64 = time.parse().ok().filter(|seconds| (0.0..1e9).contains(seconds))?;
    Some((seconds * 1000.0, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "\
(00.000000) Version: 4.2.1 (gitid 0)
(00.001039) Running pre-dump scripts
(00.002858) irmap: Searching irmap cache in work dir
(00.003688) net: Lock network
(00.005500) mnt: Building mountpoints tree
(00.006082) Dumping task (pid: 27 comm: Unlock network)
(00.008000) Dumping task (pid: 29 comm: sh)
(00.029897) mnt: Dumping mountpoints
(00.040176) Dumping file-locks
no time
(00.040267) Dumping 1(27)'s namespaces
(00.062236) Namespaces dump complete
(00.063000) Running post-dump scripts
(00.065476) net: Unlock network
(00.067305) Unfreezing tasks into 1
(00.067714) Dumping finished successfully
";

    #[test]
    fn each_step_ends_where_the_next_begins() {
        let steps = of_dump(LOG.as_bytes());
        let names: Vec<_> = steps.iter().map(|step| step.name).collect();
        let marks: Vec<_> = MARKS.iter().map(|(_, name)| *name).collect();
        assert_eq!(names, marks[..11]);
        assert!(steps.windows(2).all(|pair| pair[0].end == pair[1].begin));
        let waiting = steps.iter().find(|step| step.begin == 0.0).unwrap();
        assert_eq!(waiting.name, "waiting for the snapshot");
        assert!((waiting.end - 2.476).abs() < 1e-6);
    }

    #[test]
    fn a_log_that_says_less_has_fewer_steps() {
        assert_eq!(of_dump(b"(00.1) Version\n(00.2) Lock network\n"), []);
        let quiet = "(00.5) Running post-dump scripts\n(00.6) Dumping finished successfully\n";
        let steps = of_dump(quiet.as_bytes());
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].begin, steps[0].end), (0.0, 100.0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = of_dump(&bytes);
        }
    }
}
