//! The freezer: stopping every process of a container through its control group.
//!
//! - [`Freezer`] is the control group; it is told apart by the version of its hierarchy.
//! - [`Frozen`] is the proof that every process in it is stopped. What may only run then takes
//!   it as an argument.
//!
//! What somebody else had frozen before is accepted, and left frozen.

mod stuck;
mod vfork;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::hint::WithHint;
use crate::sys::pid::Pid;
use crate::sys::process::wait_changed;
use std::os::fd::AsFd;

/// The version of the hierarchy that a control group belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// The `freezer` controller: `freezer.state`.
    V1,
    /// The unified hierarchy: `cgroup.freeze` and `cgroup.events` (Linux 5.2).
    V2,
}

/// What the kernel says of a control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezerState {
    /// Its processes run.
    Thawed,
    /// Freezing was asked for, and some process has not stopped yet.
    Freezing,
    /// Every process is stopped, because this group was told to.
    Frozen,
    /// Every process is stopped, because a group above was told to.
    FrozenFromAbove,
}

/// The control group of a container, as its freezer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freezer {
    version: CgroupVersion,
    directory: PathBuf,
}

/// Who froze a container that is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrozenBy {
    /// We did, and thaw it.
    Ocicle,
    /// It was frozen when we came, and stays so.
    Caller,
}

/// The proof that every process of a container is stopped.
///
/// [`Frozen::thaw`] ends it and reports what goes wrong; a drop thaws too, in silence.
#[derive(Debug)]
pub struct Frozen<'a> {
    freezer: &'a Freezer,
    by: FrozenBy,
    requested: Instant,
    reached: Instant,
    ended: bool,
}

/// Whether the processes of a container can change what is looked at. While they can, what vanishes
/// meanwhile is no error.
#[derive(Clone, Copy, Debug)]
pub enum Still<'a> {
    /// They run.
    Running,
    /// They are stopped.
    Frozen(&'a Frozen<'a>),
}

impl Still<'_> {
    /// Whether they are stopped.
    pub fn is_frozen(self) -> bool {
        matches!(self, Self::Frozen(_))
    }
}

impl Freezer {
    /// The freezer of the control group at `directory`, an absolute path in a mounted hierarchy.
    pub fn new(version: CgroupVersion, directory: PathBuf) -> Self {
        Self { version, directory }
    }

    /// The version of its hierarchy.
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// The control group's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the kernel says of it now. `None` when the group is gone.
    pub fn state(&self) -> Result<Option<FreezerState>> {
        match self.version {
            CgroupVersion::V1 => self.state_v1(),
            CgroupVersion::V2 => self.state_v2(),
        }
    }

    /// Stops every process, and returns when the kernel says that all are stopped, and none in the
    /// middle of a `vfork`.
    ///
    /// # Errors
    /// When that has not happened before `limit` has passed, the group is thawed again and the
    /// error names the processes that did not stop.
    pub fn freeze(&self, limit: Duration) -> Result<Frozen<'_>> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            let frozen = self.freeze_now(limit)?;
            let Some(process) = vfork::waiting(self)? else { return Ok(frozen) };
            if frozen.by == FrozenBy::Caller || Instant::now() >= deadline {
                return Err(anyhow!("{process} waits for a program that it starts by vfork")
                    .hint("let the container run for a moment, and try again"));
            }
            frozen.thaw()?;
            // The kernel raises no event for the end of a vfork.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn freeze_now(&self, limit: Duration) -> Result<Frozen<'_>> {
        let requested = Instant::now();
        let by = match self.state()? {
            None => bail!("its control group {} is gone", self.directory.display()),
            Some(FreezerState::FrozenFromAbove) => {
                bail!("a control group above {} is frozen: thaw that one", self.directory.display())
            }
            Some(FreezerState::Frozen | FreezerState::Freezing) => FrozenBy::Caller,
            Some(FreezerState::Thawed) => FrozenBy::Ocicle,
        };
        // Made before the request, so that a failure half-way thaws.
        let mut frozen = Frozen { freezer: self, by, requested, reached: requested, ended: false };
        if by == FrozenBy::Ocicle {
            self.request(true)?;
        }
        if !self.wait_frozen(requested + limit, by)? {
            let suspects = stuck::look(self);
            frozen.end()?;
            let stuck = suspects.stuck(by == FrozenBy::Ocicle && self.version == CgroupVersion::V1);
            let limit = limit.as_secs_f32();
            return Err(anyhow!("it did not freeze within {limit} s: {}", stuck.text)
                .hint(if stuck.waits { WAITS } else { AGAIN }));
        }
        frozen.reached = Instant::now();
        Ok(frozen)
    }

    /// Lets the processes run. A group that is gone needs nothing.
    pub fn thaw(&self) -> Result<()> {
        self.request(false)
    }

    /// Every process in the group and in those below it.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut processes = Vec::new();
        collect_processes(&self.directory, &mut processes)?;
        processes.sort_unstable();
        processes.dedup();
        Ok(processes)
    }

    fn request(&self, freeze: bool) -> Result<()> {
        let (file, value) = match (self.version, freeze) {
            (CgroupVersion::V1, true) => ("freezer.state", "FROZEN"),
            (CgroupVersion::V1, false) => ("freezer.state", "THAWED"),
            (CgroupVersion::V2, true) => ("cgroup.freeze", "1"),
            (CgroupVersion::V2, false) => ("cgroup.freeze", "0"),
        };
        let path = self.directory.join(file);
        match fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
        {
            Err(error) if !freeze && is_gone(&error) => Ok(()),
            other => other.with_context(|| format!("writing {value} to {}", path.display())),
        }
    }

    fn wait_frozen(&self, deadline: Instant, by: FrozenBy) -> Result<bool> {
        match self.version {
            CgroupVersion::V1 => self.wait_frozen_v1(deadline, by),
            CgroupVersion::V2 => self.wait_frozen_v2(deadline),
        }
    }

    fn read(&self, file: &str) -> Result<Option<String>> {
        let path = self.directory.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn state_v1(&self) -> Result<Option<FreezerState>> {
        let Some(state) = self.read("freezer.state")? else { return Ok(None) };
        let above = self.read("freezer.self_freezing")?.is_some_and(|text| text.trim() == "0");
        Ok(Some(match (state.trim(), above) {
            ("THAWED", _) => FreezerState::Thawed,
            ("FREEZING", _) => FreezerState::Freezing,
            ("FROZEN", false) => FreezerState::Frozen,
            ("FROZEN", true) => FreezerState::FrozenFromAbove,
            (other, _) => bail!("freezer.state says {other:?}"),
        }))
    }

    fn state_v2(&self) -> Result<Option<FreezerState>> {
        let Some(asked) = self.read("cgroup.freeze")? else { return Ok(None) };
        let Some(events) = self.read("cgroup.events")? else { return Ok(None) };
        Ok(Some(match (asked.trim() == "1", says_frozen(&events)) {
            (true, true) => FreezerState::Frozen,
            (true, false) => FreezerState::Freezing,
            (false, true) => FreezerState::FrozenFromAbove,
            (false, false) => FreezerState::Thawed,
        }))
    }

    /// Version 1 raises no event. Reading the state is what moves it on from FREEZING to FROZEN
    /// (update_if_frozen in kernel/cgroup/legacy_freezer.c), so it is read again, at first at
    /// once and then ever more rarely.
    ///
    /// It may stay FREEZING for ever where processes keep coming into the group (`FreezerGroup.Set` of
    /// opencontainers/cgroups, fs/freezer.go): who thaws it for a moment, and asks again, as runc does,
    /// gets it frozen.
    fn wait_frozen_v1(&self, deadline: Instant, by: FrozenBy) -> Result<bool> {
        const PATIENCE: Duration = Duration::from_millis(500);
        const MOMENT: Duration = Duration::from_millis(10);
        let mut pause = Duration::from_micros(50);
        let mut asked = Instant::now();
        loop {
            match self.state_v1()? {
                Some(FreezerState::Frozen) => return Ok(true),
                Some(FreezerState::Thawed) => bail!("somebody thawed it while it froze"),
                Some(_) => {}
                None => bail!("the control group vanished"),
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if by == FrozenBy::Ocicle && asked.elapsed() >= PATIENCE {
                self.request(false)?;
                std::thread::sleep(MOMENT);
                self.request(true)?;
                asked = Instant::now();
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(MOMENT);
        }
    }

    fn wait_frozen_v2(&self, deadline: Instant) -> Result<bool> {
        let path = self.directory.join("cgroup.events");
        let events =
            fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        loop {
            let text =
                read_again(&events).with_context(|| format!("reading {}", path.display()))?;
            if says_frozen(&text) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            wait_changed(events.as_fd(), left)?;
        }
    }
}

impl Frozen<'_> {
    /// Who froze it.
    pub fn by(&self) -> FrozenBy {
        self.by
    }

    /// When freezing was asked for.
    pub fn requested(&self) -> Instant {
        self.requested
    }

    /// When the kernel said that all processes are stopped.
    pub fn reached(&self) -> Instant {
        self.reached
    }

    /// The processes that are stopped.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        self.freezer.processes()
    }

    /// Lets the processes run again, unless it was the caller who had stopped them.
    pub fn thaw(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) || self.by == FrozenBy::Caller {
            return Ok(());
        }
        self.freezer.thaw()
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("thawing {}: {error:#}", self.freezer.directory.display());
        }
    }
}

const WAITS: &str = "it runs again; a process that waits for a device or a network file system stops when \
                     that answers (freeze-timeout in the configuration gives it more time)";
const AGAIN: &str =
    "it runs again: try again; freeze-timeout in the configuration gives it more time";

/// Reads a file of the kernel from its start, through a descriptor that waits for its changes.
fn read_again(mut file: &fs::File) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn says_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// A control group that was removed: its files are not there, or not any more.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn collect_processes(directory: &Path, into: &mut Vec<Pid>) -> Result<()> {
    let path = directory.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(()),
        // A threaded group lists no processes: its domain, above, lists them.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    into.extend(text.lines().filter_map(|line| line.parse::<Pid>().ok()?.exists()));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("reading {}", directory.display()));
        }
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_processes(&entry.path(), into)?;
        }
    }
    Ok(())
}

#[cfg(test)]
impl Frozen<'static> {
    /// The proof that nobody runs, of a group that nobody is in: a directory that looks like one.
    pub(crate) fn of_nobody() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.freeze"), "1\n").unwrap();
        fs::write(directory.path().join("cgroup.events"), "populated 0\nfrozen 1\n").unwrap();
        let freezer = Freezer::new(CgroupVersion::V2, directory.path().to_owned());
        Box::leak(Box::new(freezer)).freeze_now(Duration::from_secs(1)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_line() {
        assert!(says_frozen("populated 1\nfrozen 1\n"));
        assert!(!says_frozen("populated 1\nfrozen 0\n"));
        assert!(!says_frozen("populated 1\nfrozen 10\n"));
    }
}
