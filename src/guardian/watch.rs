//! The guardian's own side.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;

use super::{Ended, Order, Removal};
use crate::bytes::ByteString;
use crate::freezer::Freezer;
use crate::snapshot::Held;
use crate::sys::process::{pidfd, wait_readable};
use crate::sys::socket::Channel;

/// The guardian's program: its standard input is the connection to the process it guards.
pub fn main() -> ExitCode {
    match Watch::begin().and_then(Watch::keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", super::NAME);
            ExitCode::FAILURE
        }
    }
}

struct Watch {
    channel: Channel,
    thaw: Vec<Freezer>,
    remove: Vec<Removal>,
    discard: Vec<(Box<Held>, PathBuf)>,
    /// What is held until the end.
    held: Vec<OwnedFd>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    pidfd: Option<OwnedFd>,
}

/// Why the watch is over.
enum Over {
    Farewell,
    Death,
}

impl Watch {
    fn begin() -> Result<Self> {
        // A new session: signals sent to the caller's process group are not for us.
        let _ = nix::unistd::setsid();
        // Blocked, not ignored: what we start begins with no signal blocked, yet would ignore
        // what we ignore.
        SigSet::all().thread_block().context("blocking signals")?;
        let channel =
            std::io::stdin().as_fd().try_clone_to_owned().context("taking the connection")?;
        Ok(Self {
            channel: channel.into(),
            thaw: Vec::new(),
            remove: Vec::new(),
            discard: Vec::new(),
            held: Vec::new(),
            running: None,
        })
    }

    fn keep(mut self) -> Result<()> {
        match self.listen() {
            Ok(Over::Farewell) => Ok(()),
            Ok(Over::Death) => self.make_good(),
            Err(error) => self.make_good().and(Err(error)),
        }
    }

    fn listen(&mut self) -> Result<Over> {
        loop {
            let child = self.running.as_ref().and_then(|running| running.pidfd.as_ref());
            let fds: Vec<_> =
                std::iter::once(self.channel.as_fd()).chain(child.map(AsFd::as_fd)).collect();
            let ready = wait_readable(&fds, None)?;
            if ready.get(1) == Some(&true) {
                self.report_end()?;
            }
            if ready[0] {
                match self.channel.receive()? {
                    None => return Ok(Over::Death),
                    Some((Order::Farewell, _)) => return Ok(Over::Farewell),
                    Some((order, fds)) => self.obey(order, fds)?,
                }
            }
        }
    }

    fn obey(&mut self, order: Order, fds: Vec<OwnedFd>) -> Result<()> {
        match order {
            Order::Hold => self.held.extend(fds),
            Order::Thaw(freezer) => self.thaw.push(freezer),
            Order::ThawNone => self.thaw.clear(),
            Order::Remove(removal) => self.remove.push(removal),
            Order::Discard { held, unless } => self.discard.push((held, unless)),
            Order::Farewell => {}
            Order::Run { command, environment } => match start(&command, &environment, fds) {
                Ok(running) => self.running = Some(running),
                Err(error) => self.channel.send(&Ended::NotStarted(format!("{error:#}")), &[])?,
            },
        }
        Ok(())
    }

    fn report_end(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            let status = running.child.wait().context("waiting for the runtime")?;
            // Who asked may be dead; that is found out next.
            let _ = self.channel.send(&Ended::from(status), &[]);
        }
        Ok(())
    }

    /// What has to be done, in order, whatever of it fails; the first error is told.
    fn make_good(&mut self) -> Result<()> {
        let first = self.thaw();
        let waited = self.running.take().map_or(Ok(()), |mut running| {
            running.child.wait().map(drop).context("waiting for the runtime")
        });
        let again = self.thaw();
        // Looking for the manifest comes before its directory is removed.
        let discarded = self
            .discard
            .iter()
            .filter(|(_, unless)| fs::symlink_metadata(unless).is_err())
            .map(|(held, _)| held.discard())
            .fold(Ok(()), Result::and);
        let removed = self.remove.iter().map(Removal::carry_out).fold(Ok(()), Result::and);
        first.and(waited).and(again).and(discarded).and(removed)
    }

    fn thaw(&self) -> Result<()> {
        self.thaw.iter().map(Freezer::thaw).fold(Ok(()), Result::and)
    }
}

fn start(
    command: &[ByteString],
    environment: &[(ByteString, ByteString)],
    fds: Vec<OwnedFd>,
) -> Result<Running> {
    let (program, arguments) = command.split_first().context("no program is named")?;
    let errors = fds.into_iter().next().context("no standard error came along")?;
    let child = Command::new(program.as_os_str())
        .args(arguments.iter().map(ByteString::as_os_str))
        .envs(environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())))
        .stdin(Stdio::null())
        .stderr(File::from(errors))
        .spawn()
        .with_context(|| format!("executing {program}"))?;
    let pidfd = pidfd(child.id().cast_signed())?;
    Ok(Running { child, pidfd })
}

impl Removal {
    fn carry_out(&self) -> Result<()> {
        let path = &self.path;
        if self.unless.as_ref().is_some_and(|unless| fs::symlink_metadata(unless).is_ok()) {
            return Ok(());
        }
        let removed = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
        };
        removed.with_context(|| format!("removing {}", path.display()))
    }
}
