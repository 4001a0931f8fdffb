//! Processes as a tree.

use std::collections::{BTreeMap, BTreeSet};

use crate::bytes::ByteString;
use crate::inspect::DumpedProcess;
use crate::output::{self, Tone, toned};
use crate::sys::pid::InnerPid;

/// How deep a tree is drawn; a forged one can be as deep as it has processes.
const DEPTH: usize = 64;
/// How much of a command line is shown.
const WIDTH: usize = 160;

/// A line for each process, children below their parents.
pub(super) fn lines(processes: &[DumpedProcess]) -> Vec<String> {
    let pids: BTreeSet<InnerPid> = processes.iter().map(|process| process.pid).collect();
    let mut children: BTreeMap<Option<InnerPid>, Vec<&DumpedProcess>> = BTreeMap::new();
    for process in processes {
        let has_parent = pids.contains(&process.ppid) && process.ppid != process.pid;
        children.entry(has_parent.then_some(process.ppid)).or_default().push(process);
    }
    let mut tree = Tree { children, lines: Vec::new() };
    for root in tree.children.remove(&None).unwrap_or_default() {
        tree.add(root, "", "", 0);
    }
    // What is left has no root: parents that are their own descendants.
    for process in std::mem::take(&mut tree.children).into_values().flatten() {
        tree.lines.push(line(process));
    }
    tree.lines
}

struct Tree<'a> {
    /// By parent, which is taken away when it has been drawn.
    children: BTreeMap<Option<InnerPid>, Vec<&'a DumpedProcess>>,
    lines: Vec<String>,
}

impl<'a> Tree<'a> {
    fn add(&mut self, process: &'a DumpedProcess, own: &str, below: &str, depth: usize) {
        self.lines.push(format!("{}{}", toned(Tone::Faint, own), line(process)));
        if depth == DEPTH {
            return;
        }
        let children = self.children.remove(&Some(process.pid)).unwrap_or_default();
        for (at, child) in children.iter().enumerate() {
            let (branch, rest) =
                if at + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.add(child, &format!("{below}{branch}"), &format!("{below}{rest}"), depth + 1);
        }
    }
}

fn line(process: &DumpedProcess) -> String {
    let mut facts = Vec::new();
    if let Some(memory) = process.memory {
        facts.push(output::bytes(memory));
    }
    if process.threads > 1 {
        facts.push(format!("{} threads", process.threads));
    }
    if let Some(uid) = process.uid.filter(|uid| *uid != 0) {
        facts.push(format!("user {uid}"));
    }
    let facts = toned(Tone::Faint, &format!("({})", facts.join(", ")));
    format!("{} {} {facts}", process.pid, command_of(process))
}

/// The command line with blanks between its words; in brackets the name of one that has none.
fn command_of(process: &DumpedProcess) -> String {
    let Some(words) = &process.command else { return format!("[{}]", process.name) };
    let words: Vec<String> = words.iter().map(quoted).collect();
    let text = words.join(" ");
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn quoted(word: &ByteString) -> String {
    let shown = word.to_string();
    if shown.is_empty() || shown.contains(|c: char| c.is_whitespace() || "\"'".contains(c)) {
        format!("'{}'", shown.replace('\'', "'\\''"))
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, ppid: i32, command: Option<&[&str]>) -> DumpedProcess {
        let command = command.map(|words| words.iter().map(|word| (*word).into()).collect());
        DumpedProcess {
            pid: InnerPid(pid),
            ppid: InnerPid(ppid),
            uid: Some(0),
            threads: 1,
            name: "name".into(),
            command,
            memory: Some(4096),
        }
    }

    fn drawn(processes: &[DumpedProcess]) -> String {
        anstream::adapter::strip_str(&lines(processes).join("\n")).to_string()
    }

    #[test]
    fn children_stand_below_their_parents() {
        insta::assert_snapshot!(drawn(&[
            process(1, 0, Some(&["sh", "-c", "a b"])),
            process(7, 1, Some(&["it's"])),
            process(9, 7, None),
            process(8, 1, Some(&["\x1b[2J"])),
        ]));
    }

    #[test]
    fn a_tree_without_a_root_or_of_any_depth_ends() {
        assert_eq!(drawn(&[process(1, 2, None), process(2, 1, None)]).lines().count(), 2);
        assert_eq!(drawn(&[process(3, 3, None)]).lines().count(), 1);
        let deep: Vec<DumpedProcess> = (1..5000).map(|pid| process(pid, pid - 1, None)).collect();
        assert!(drawn(&deep).lines().count() <= 5000);
    }
}
