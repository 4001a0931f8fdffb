//! `/proc`: whatever ocicle reads of it (proc(5)), it reads here.
//!
//! A [`Proc`] is a process or thread by its directory. What is more than a word has a type and a
//! function `parse_…` that takes text, apart from the one that reads the file. Whatever is read of a
//! process that runs may have ended meanwhile, and its number may be another's.

pub mod cgroup;
pub mod fdinfo;
pub mod maps;
pub mod memory;
pub mod mountinfo;
pub mod oom;
pub mod stat;
pub mod status;
pub mod work;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bytes::ByteString;
use crate::sys::pid::Pid;
use cgroup::{Membership, parse_cgroup};
use fdinfo::{FdInfo, parse_fdinfo};
use maps::{Mapping, parse_maps};
use mountinfo::{Mount, parse_mountinfo};
use stat::{ProcessStat, parse_stat};
use status::{NamespacedPids, parse_pids};

const PROC: &str = "/proc";

/// The program that this process runs, to be executed again: also where its file was replaced.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// A process or thread, by its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc(PathBuf);

impl Proc {
    /// The process of that number.
    pub fn of(pid: Pid) -> Self {
        Self(Path::new(PROC).join(pid.to_string()))
    }

    /// This process.
    pub fn own() -> Self {
        Self(Path::new(PROC).join("self"))
    }

    /// This thread, which may be in other namespaces than its process.
    pub fn own_thread() -> Self {
        Self(Path::new(PROC).join("thread-self"))
    }

    /// A file or link in its directory.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// The link that leads to what is open under a number.
    pub fn descriptor(&self, number: RawFd) -> PathBuf {
        self.at("fd").join(number.to_string())
    }

    /// The link that leads to its root directory.
    pub fn root(&self) -> PathBuf {
        self.at("root")
    }

    /// Its name; nothing if it has ended.
    pub fn name(&self) -> ByteString {
        fs::read(self.at("comm")).unwrap_or_default().trim_ascii_end().into()
    }

    /// The function of the kernel in which it waits; empty or `0` if it does not.
    pub fn waits_in(&self) -> String {
        let place = fs::read(self.at("wchan")).unwrap_or_default();
        String::from_utf8_lossy(&place).trim().to_owned()
    }

    /// Whether it runs or could run. One for which that is false has a place where it [waits].
    ///
    /// Of a thread that falls asleep `stat` says so at once. But it may stay among those that could run
    /// until its turn would come (`DELAY_DEQUEUE` in the kernel's kernel/sched/features.h, Linux 6.12),
    /// and up to then it has no such place (`get_wchan` in kernel/sched/core.c). Who reads `syscall`
    /// has it taken from there (`wait_task_inactive`, ibid.).
    ///
    /// [waits]: Self::waits_in
    pub fn runs(&self) -> bool {
        match fs::read_to_string(self.at("syscall")) {
            Ok(call) => call.trim_end() == "running",
            Err(_) => self.stat().is_ok_and(|stat| stat.state == 'R'),
        }
    }

    /// What `stat` says.
    ///
    /// # Errors
    /// It has ended, most likely.
    pub fn stat(&self) -> Result<ProcessStat> {
        self.parsed("stat", parse_stat)
    }

    /// The text of `status`.
    pub fn status(&self) -> io::Result<String> {
        fs::read_to_string(self.at("status"))
    }

    /// Its numbers in each pid namespace.
    ///
    /// # Errors
    /// It has ended, most likely.
    pub fn namespaced_pids(&self) -> Result<NamespacedPids> {
        self.parsed("status", |text| parse_pids(&String::from_utf8_lossy(text), "NSpid"))
    }

    /// The mounts that it sees, in the order of mounting.
    ///
    /// # Errors
    /// It has ended, most likely.
    pub fn mounts(&self) -> Result<Vec<Mount>> {
        self.parsed("mountinfo", parse_mountinfo)
    }

    /// Its group in each hierarchy of control groups.
    ///
    /// # Errors
    /// It has ended, most likely.
    pub fn cgroups(&self) -> Result<Vec<Membership>> {
        self.parsed("cgroup", |text| parse_cgroup(&String::from_utf8_lossy(text)))
    }

    fn parsed<T>(&self, file: &str, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let path = self.at(file);
        let read = || parse(&fs::read(&path)?);
        read().with_context(|| format!("reading {}", path.display()))
    }

    /// What tells its namespace of a kind (`mnt`, `net`, …) from others.
    pub fn namespace(&self, kind: &str) -> io::Result<PathBuf> {
        fs::read_link(self.at("ns").join(kind))
    }

    /// Its threads.
    pub fn tasks(&self) -> io::Result<Vec<Self>> {
        let entries = fs::read_dir(self.at("task"))?;
        Ok(entries.flatten().map(|entry| Self(entry.path())).collect())
    }

    /// The numbers of its file descriptors, in their order.
    pub fn descriptors(&self) -> io::Result<Vec<RawFd>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.at("fd"))? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What `fdinfo` says of one of them.
    pub fn fdinfo(&self, number: RawFd) -> io::Result<FdInfo> {
        self.fdinfo_text(number).map(|text| parse_fdinfo(&text))
    }

    /// The text of that, of which each kind of file has lines of its own.
    pub fn fdinfo_text(&self, number: RawFd) -> io::Result<String> {
        let text = fs::read(self.at("fdinfo").join(number.to_string()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Its mappings; none if it has ended.
    pub fn maps(&self) -> Vec<Mapping> {
        let text = fs::read(self.at("maps")).unwrap_or_default();
        parse_maps(&String::from_utf8_lossy(&text))
    }

    /// How many pages it has in memory (proc_pid_statm(5)); `None` if it has ended.
    pub fn resident_pages(&self) -> Option<u64> {
        let text = fs::read_to_string(self.at("statm")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    /// The links that lead to the files that it has mapped; none if it has ended.
    pub fn mapped(&self) -> Vec<PathBuf> {
        let links = fs::read_dir(self.at("map_files")).into_iter().flatten().flatten();
        links.map(|link| link.path()).collect()
    }
}

/// The numbers of all processes.
pub fn all() -> Result<Vec<Pid>> {
    let entries = fs::read_dir(PROC).with_context(|| format!("reading {PROC}"))?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<Pid>().ok();
    Ok(entries.flatten().filter_map(number).collect())
}

/// When a process was started, in ticks since the machine was; `None` when it has ended.
pub fn start_time(pid: Pid) -> Option<u64> {
    Proc::of(pid).stat().ok().filter(|stat| !stat.has_ended())?.started
}

/// Whether a process has ended and waits for its parent.
pub fn is_zombie(pid: Pid) -> bool {
    Proc::of(pid).stat().is_ok_and(|stat| stat.has_ended())
}

/// Whether a process is gone or about to be.
pub fn is_ending(pid: Pid) -> bool {
    Proc::of(pid).stat().map_or(true, |stat| stat.has_ended() || stat.is_ending)
}

/// Whether a process is another, or descends from it.
pub fn descends_from(process: Pid, ancestor: Pid) -> bool {
    let mut at = process;
    while at != ancestor {
        match Proc::of(at).stat() {
            Ok(stat) if stat.parent > Pid(1) => at = stat.parent,
            _ => return false,
        }
    }
    true
}

/// The number of a pidfd's process; `None` when that has ended (fdinfo of pidfd_open(2)).
pub fn number_of(process: BorrowedFd<'_>) -> Option<Pid> {
    Proc::own_thread().fdinfo(process.as_raw_fd()).ok()?.target
}

/// Whether the kernel knows a file system now (`filesystems` of proc(5)).
pub fn knows_file_system(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.trim_start_matches("nodev").trim() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pid::InnerPid;

    #[test]
    fn this_process() {
        let own = Proc::own();
        let pid = Pid::own();
        assert!(all().unwrap().contains(&pid) && descends_from(pid, pid));
        assert!(start_time(pid).is_some() && !is_zombie(pid));
        let pids = own.namespaced_pids().unwrap();
        assert_eq!(pids.at(1), Some(InnerPid(pid.0)));
        let file = fs::File::open("/dev/null").unwrap();
        assert!(own.descriptors().unwrap().contains(&file.as_raw_fd()));
        assert_eq!(
            fs::read_link(own.descriptor(file.as_raw_fd())).unwrap(),
            Path::new("/dev/null")
        );
        assert!(!own.tasks().unwrap().is_empty() && !own.mapped().is_empty());
        assert!(own.tasks().unwrap()[0].stat().is_ok());
    }

    #[test]
    fn one_that_is_none() {
        let none = Proc::of(Pid(0));
        assert!(none.stat().is_err() && none.descriptors().is_err() && none.mapped().is_empty());
        assert_eq!(
            (start_time(Pid(0)), is_zombie(Pid(0)), descends_from(Pid(0), Pid(1))),
            (None, false, false)
        );
        assert!(none.name().as_bytes().is_empty());
        assert!(!knows_file_system("no such") && knows_file_system("proc"));
    }
}
