//! Processes, their file descriptors and the open files that these share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use super::table::{FileId, OpenFile, Table};
use crate::bytes::ByteString;
use crate::container::Holder;
use crate::container::Process;
use crate::criu::images::Images;
use crate::proc::Proc;
use crate::sys::pid::InnerPid;
use crate::sys::pid::Pid;

/// A process of a container, by the numbers that the container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its number.
    pub pid: InnerPid,
    /// Its parent's.
    pub parent: InnerPid,
    /// Its name.
    pub name: ByteString,
}

/// The processes of a running container. One that ends meanwhile is left out.
pub fn tasks_of(processes: &[Process]) -> Vec<Task> {
    let inner: BTreeMap<Pid, InnerPid> =
        processes.iter().map(|one| (one.host, one.inner)).collect();
    let task = |process: &Process| {
        let status = Proc::of(process.host).stat().ok()?;
        let parent = inner.get(&status.parent).copied().unwrap_or_default();
        Some(Task { pid: process.inner, parent, name: status.name.as_str().into() })
    };
    processes.iter().filter_map(task).collect()
}

/// The processes of a checkpoint.
pub fn tasks_of_images(images: &Path) -> Result<Vec<Task>> {
    let tasks = Images::load(images)?.tasks.into_iter();
    let task = |task: crate::criu::images::TaskImages| Task {
        pid: task.tree.pid,
        parent: task.tree.ppid,
        name: task.name,
    };
    Ok(tasks.map(task).collect())
}

/// A process in a tree of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The process.
    pub task: Task,
    /// Its open files, by the first of its file descriptors for each.
    pub files: Vec<HeldHere>,
    /// Its children.
    pub children: Vec<Branch>,
}

/// An open file as one process has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldHere {
    /// The file descriptors of this process.
    pub fds: Vec<i32>,
    /// The open file.
    pub file: FileId,
    /// What it is, in words.
    pub text: String,
    /// The file descriptors of other processes that share it.
    pub others: Vec<Holder>,
}

impl HeldHere {
    fn of(pid: InnerPid, file: &OpenFile) -> Self {
        let (own, others): (Vec<_>, Vec<_>) =
            file.holders.iter().copied().partition(|holder| holder.pid == pid);
        let [_, kind, flags, _, _, name] = file.row();
        Self {
            fds: own.iter().map(|holder| holder.fd).collect(),
            file: file.id,
            text: format!("{kind} {name} {flags}"),
            others,
        }
    }

    /// Whether several file descriptors refer to the open file.
    pub fn is_shared(&self) -> bool {
        self.fds.len() + self.others.len() > 1
    }
}

/// No tree is drawn deeper: its lines would be nothing but lines.
const DEPTH: usize = 100;

/// Arranges processes below their parents, each with its open files.
///
/// Whatever the images say of parents, each process is in one place: those of a circle, and what is
/// too deep, begin a tree of their own.
pub fn arrange(tasks: &[Task], table: &Table) -> Vec<Branch> {
    let known: BTreeSet<InnerPid> = tasks.iter().map(|task| task.pid).collect();
    let is_first = |task: &&Task| !known.contains(&task.parent) || task.parent == task.pid;
    let (first, others): (Vec<_>, Vec<_>) = tasks.iter().partition(is_first);
    let mut left = Children::new();
    others.into_iter().for_each(|task| left.entry(task.parent).or_default().push(task));
    let begin = |tasks: Vec<&Task>, left: &mut Children<'_>| {
        tasks.into_iter().map(|task| branch(task, left, table, DEPTH)).collect::<Vec<_>>()
    };
    let mut branches = begin(first, &mut left);
    while let Some((_, tasks)) = left.pop_first() {
        branches.extend(begin(tasks, &mut left));
    }
    branches
}

/// Processes by their parents.
type Children<'a> = BTreeMap<InnerPid, Vec<&'a Task>>;

/// Takes the descendants of a process out of those that are left, down to a depth.
fn branch<'a>(task: &Task, left: &mut Children<'a>, table: &Table, depth: usize) -> Branch {
    let mut files: Vec<_> = table
        .files
        .iter()
        .filter(|file| file.holders.iter().any(|holder| holder.pid == task.pid))
        .map(|file| HeldHere::of(task.pid, file))
        .collect();
    files.sort_by_key(|held| held.fds.first().copied());
    let children = depth.checked_sub(1).and_then(|depth| Some((depth, left.remove(&task.pid)?)));
    let children = children.map_or_else(Vec::new, |(depth, children)| {
        children.into_iter().map(|child| branch(child, left, table, depth)).collect()
    });
    Branch { task: task.clone(), files, children }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let json = r#"{"schema":1,"files":[
            {"id":1,"type":"reg","name":"/log","flags":1025,"holders":[{"pid":1,"fd":3},{"pid":6,"fd":3}]},
            {"id":2,"type":"device","name":"/dev/null","flags":0,"holders":[{"pid":1,"fd":0},{"pid":1,"fd":1}]},
            {"id":3,"type":"eventfd","name":"eventfd","flags":2,"holders":[{"pid":7,"fd":5}]}]}"#;
        serde_json::from_str(json).unwrap()
    }

    fn task(pid: i32, parent: i32) -> Task {
        Task { pid: InnerPid(pid), parent: InnerPid(parent), name: "x".into() }
    }

    #[test]
    fn processes_below_their_parents() {
        let tree = arrange(&[task(1, 0), task(6, 1), task(7, 6), task(9, 8)], &table());
        assert_eq!(tree.len(), 2, "one whose parent is not here stands at the top");
        let first = &tree[0];
        let fds: Vec<_> = first.files.iter().map(|held| (held.fds.clone(), held.file.0)).collect();
        assert_eq!(fds, [(vec![0, 1], 2), (vec![3], 1)]);
        assert_eq!(first.files[1].others, [Holder { pid: InnerPid(6), fd: 3 }]);
        assert!(first.files.iter().all(HeldHere::is_shared));
        let inner = &first.children[0].children[0];
        assert_eq!(inner.task.pid, InnerPid(7));
        assert_eq!(inner.files[0].text, "eventfd eventfd O_RDWR");
        assert!(!inner.files[0].is_shared());
    }

    #[test]
    fn images_may_lie_about_parents() {
        let count = |branches: &[Branch]| branches.len();
        assert_eq!(count(&arrange(&[task(1, 1)], &table())), 1);
        assert_eq!(count(&arrange(&[task(1, 2), task(2, 1)], &table())), 1);
        let chain: Vec<_> = (1..=100_000).map(|pid| task(pid, pid - 1)).collect();
        let tops = arrange(&chain, &table()).into_iter().map(|branch| branch.task.pid.0);
        assert!(tops.eq((1..=100_000).step_by(DEPTH + 1)));
    }
}
