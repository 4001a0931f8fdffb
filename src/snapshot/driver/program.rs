//! A program that takes snapshots: what it is asked, and what it answers, is in docs/drivers.md.

use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, killpg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::registry::{Claim, Registry};
use crate::bytes::ByteString;
use crate::glob;
use crate::hint::WithHint;
use crate::proc::Proc;
use crate::proc::mountinfo::mount_of;
use crate::sys::fs;
use crate::sys::mount::clone_of;
use crate::sys::pid::Pid;
use crate::sys::process::{pidfd, wait_readable};

/// An answer longer than this is refused.
const ANSWER_LIMIT: u64 = 1 << 20;
/// So much of what a program says of its failure is shown.
const SAID_LIMIT: usize = 2000;

/// A program that takes snapshots, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The form of the host's paths that it is for.
    pub path: String,
    /// Where it is.
    pub program: PathBuf,
    /// How many seconds it has for an answer.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
}

fn default_timeout() -> u64 {
    30
}

/// Its answer to `probe`.
#[derive(Deserialize)]
pub(super) struct Probed {
    usable: bool,
    #[serde(default)]
    why: String,
    /// Whether snapshots may stay, for a restore.
    #[serde(default)]
    pub(super) keeps: bool,
}

#[derive(Deserialize)]
struct Committed {
    directory: PathBuf,
}

#[derive(Deserialize)]
struct Restored {
    restored: bool,
}

/// An answer that says no more than that it is done.
#[derive(Deserialize)]
pub(super) struct Done {}

impl Program {
    /// Checks what the administrator wrote.
    pub fn check(&self) -> Result<()> {
        ensure!(self.program.is_absolute(), "{} is no absolute path", self.program.display());
        ensure!((1..=3600).contains(&self.timeout), "a timeout is from 1 to 3600 seconds");
        ensure!(!self.path.is_empty(), "a driver's path is empty");
        Ok(())
    }

    /// Whether it is for what is at a path of the host.
    pub fn is_for(&self, path: &Path) -> bool {
        glob::matches(self.path.as_bytes(), ByteString::from(path).as_bytes())
    }

    /// Whether it is what took a snapshot.
    pub(super) fn took(&self, claim: &Claim) -> bool {
        claim.program.as_ref() == Some(&self.program)
    }

    /// Asks whether it takes snapshots of what is at a path.
    pub(super) fn probe(&self, path: &Path) -> Result<Probed> {
        let probed: Probed = self.ask("probe", path, json!({}))?;
        ensure!(probed.usable, "it is not for that: {}", ByteString::from(probed.why.as_bytes()));
        Ok(probed)
    }

    /// Has it show what it took.
    pub(super) fn commit(&self, path: &Path, name: &str) -> Result<(PathBuf, OwnedFd)> {
        let Committed { directory } = self.ask("commit", path, json!({ "name": name }))?;
        ensure!(directory.is_absolute(), "{} is no absolute path", directory.display());
        let top = clone_of(&directory)
            .or_else(|_| fs::open_host_dir(&directory))
            .with_context(|| format!("opening {}", directory.display()))?;
        Ok((directory, top))
    }

    /// Has it remove what it took, or only what `commit` made of it.
    pub(super) fn discard(&self, path: &Path, name: &str, keep: bool) -> Result<()> {
        let Done {} = self.ask("discard", path, json!({ "name": name, "keep": keep }))?;
        Ok(())
    }

    /// Has it put back what it took, maybe of another path.
    pub(super) fn restore(&self, path: &Path, claim: &Claim) -> Result<bool> {
        let request = json!({ "name": claim.name, "taken_of": claim.path });
        let Restored { restored } = self.ask("restore", path, request)?;
        Ok(restored)
    }

    /// Asks it something, and reads the answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        verb: &str,
        path: &Path,
        mut request: Value,
    ) -> Result<T> {
        request["schema"] = json!(1);
        request["verb"] = json!(verb);
        request["path"] = json!(path);
        request["mount"] = mount_at(path)?;
        let asked = || {
            let answer = self.run(&request)?;
            serde_json::from_slice(&answer).context("reading its answer")
        };
        asked().with_context(|| format!("asking {} to {verb}", self.program.display())).hint(
            format!(
                "ocicle's docs/drivers.md says what it is asked; run it by hand with {request}"
            ),
        )
    }

    fn run(&self, request: &Value) -> Result<Vec<u8>> {
        let (mut answer, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut input = tempfile::tempfile()?;
        writeln!(input, "{request}")?;
        input.rewind()?;
        let mut child = Command::new(&self.program)
            .stdin(input)
            .stdout(answer.try_clone()?)
            .stderr(errors.try_clone()?)
            .process_group(0)
            .spawn()
            .context("executing it")?;
        let status = wait(&mut child, Duration::from_secs(self.timeout));
        let said = tail_of(&mut errors)?;
        let status = status.with_context(|| format!("it said {said:?}"))?;
        ensure!(status.success(), "it ended with {status}, and said {said:?}");
        let mut bytes = Vec::new();
        answer.rewind()?;
        answer.take(ANSWER_LIMIT + 1).read_to_end(&mut bytes)?;
        ensure!(
            bytes.len() as u64 <= ANSWER_LIMIT,
            "its answer is longer than {ANSWER_LIMIT} bytes"
        );
        Ok(bytes)
    }
}

/// Waits for the end of a program; when the time is over, for that of all that it started.
fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    let group = Pid::of(child);
    let Some(process) = pidfd(group)? else { return Ok(child.wait()?) };
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = killpg(nix::unistd::Pid::from_raw(group.0), Signal::SIGKILL);
            child.wait()?;
            return Err(anyhow!("it took longer than {} s, and was killed", limit.as_secs()));
        }
        if wait_readable(&[process.as_fd()], Some(left))? == [true] {
            return Ok(child.wait()?);
        }
    }
}

fn tail_of(errors: &mut File) -> Result<ByteString> {
    let length = errors.seek(SeekFrom::End(0))?;
    errors.seek(SeekFrom::Start(length.saturating_sub(SAID_LIMIT as u64)))?;
    let mut text = Vec::new();
    errors.take(SAID_LIMIT as u64).read_to_end(&mut text)?;
    Ok(text.trim_ascii().into())
}

/// The mount that a path is on, as a program needs it to know the device.
fn mount_at(path: &Path) -> Result<Value> {
    let mounts = Proc::own_thread().mounts()?;
    let mount = mount_of(&mounts, path).context("it is on no mount")?;
    Ok(json!({
        "point": mount.point.as_path(),
        "root": mount.root.as_path(),
        "source": mount.source.as_path(),
        "type": mount.kind,
        "device": mount.device.to_string(),
    }))
}

/// The records of what programs hold.
pub(super) fn records(directory: &Path) -> Result<Registry> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("making {}", directory.display()))?;
    Ok(Registry::at(fs::open_dir(fs::open_host_dir(directory)?, b"")?))
}
