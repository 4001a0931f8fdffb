//! The guardian's own side, and its deputy's.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;

use super::patience::Patience;
use super::{DEFAULT_LIMIT, Order, Removal, Report, Worker};
use crate::apart;
use crate::bytes::ByteString;
use crate::criu::protocol::ACTION;
use crate::freezer::Freezer;
use crate::proc::oom;
use crate::proc::work::with_descendants;
use crate::proc::{Proc, number_of};
use crate::runtime::exit::Ended;
use crate::snapshot::DriverSnapshot;
use crate::store::lock::Ledger;
use crate::sys::fs::{open_dir, open_entry, split};
use crate::sys::pid::Pid;
use crate::sys::process::{kill, pidfd, wait_readable};
use crate::sys::remove;
use crate::sys::socket::Channel;

/// How long somebody has who was told to end.
const GRACE: Duration = Duration::from_secs(5);

/// The guardian's program: its standard input is the connection to the process it guards.
pub fn main() -> ExitCode {
    report(super::NAME, Watch::begin().and_then(Watch::keep))
}

/// Its deputy's: the other end of the connection is held by the guardian too, so that it ends
/// when both have.
pub fn deputy_main() -> ExitCode {
    apart::leave_groups();
    report(super::DEPUTY, Watch::begin().and_then(Watch::keep))
}

fn report(name: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(name, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Who listened may have been killed.
fn say(name: &str, words: &str) {
    let _ = writeln!(std::io::stderr(), "{name}: {words}");
}

struct Watch {
    channel: Channel,
    /// Who is guarded.
    client: Option<OwnedFd>,
    /// Who is told when nobody is needed any more.
    deputy: Option<Channel>,
    thaw: Vec<Freezer>,
    remove: Vec<(OwnedFd, Removal)>,
    discard: Vec<(Box<DriverSnapshot>, PathBuf)>,
    /// The lock of the container, and what is noted in it.
    held: Vec<Ledger>,
    running: Option<Running>,
    working: Vec<(Worker, OwnedFd)>,
    patience: Patience,
    /// When the container was let go, for nobody got on any more.
    expired: Option<Instant>,
    /// How this process was judged by the OOM killer before.
    score: i32,
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
        let score = oom::score().context("asking the OOM killer")?;
        oom::be_last().context("asking the OOM killer for the last place")?;
        let channel: Channel =
            std::io::stdin().as_fd().try_clone_to_owned().context("taking the connection")?.into();
        channel.send(&Report::Ready, &[])?;
        Ok(Self {
            client: channel.peer()?,
            channel,
            deputy: None,
            thaw: Vec::new(),
            remove: Vec::new(),
            discard: Vec::new(),
            held: Vec::new(),
            running: None,
            working: Vec::new(),
            patience: Patience::new(DEFAULT_LIMIT),
            expired: None,
            score,
        })
    }

    fn keep(mut self) -> Result<()> {
        let kept = match self.listen() {
            Ok(Over::Farewell) => Ok(()),
            Ok(Over::Death) => self.make_good(),
            Err(error) => self.make_good().and(Err(error)),
        };
        if let Some(deputy) = &self.deputy {
            // It may be gone before us.
            let _ = deputy.send(&Order::Farewell, &[]);
        }
        kept
    }

    fn listen(&mut self) -> Result<Over> {
        loop {
            let child = self.running.as_ref().and_then(|running| running.pidfd.as_ref());
            let fds: Vec<_> =
                std::iter::once(self.channel.as_fd()).chain(child.map(AsFd::as_fd)).collect();
            let next_look = self.enforces().then(|| self.patience.interval());
            let ready = wait_readable(&fds, next_look)?;
            if ready.get(1) == Some(&true) {
                self.report_end()?;
            }
            if ready[0] {
                match self.channel.receive()? {
                    None => return Ok(Over::Death),
                    Some((Order::Farewell, _)) => return Ok(Over::Farewell),
                    Some((order, fds)) => self.obey(order, fds)?,
                }
            } else if self.enforces() && self.enforce()? {
                return Ok(Over::Death);
            }
        }
    }

    fn obey(&mut self, order: Order, fds: Vec<OwnedFd>) -> Result<()> {
        match order {
            Order::Hold => self.held.extend(fds.into_iter().map(Ledger::from)),
            Order::Deputy => self.deputy = fds.into_iter().next().map(Channel::from),
            Order::Patience { milliseconds } => {
                self.patience = Patience::new(Duration::from_millis(milliseconds));
            }
            Order::Thaw(freezer) => {
                self.patience.renew();
                self.thaw.push(freezer);
            }
            Order::ThawNone => {
                self.thaw.clear();
                self.forget_ended()?;
            }
            Order::Await(worker) => self.working.extend(fds.into_iter().map(|fd| (worker, fd))),
            Order::Remove(removal) => {
                let within = fds.into_iter().next().context("no directory came along")?;
                self.remove.push((within, removal));
            }
            Order::Discard { held, unless } => self.discard.push((held, unless)),
            Order::Farewell => {}
            Order::Run { command, environment } => self.run(&command, &environment, fds)?,
        }
        Ok(())
    }

    fn forget_ended(&mut self) -> Result<()> {
        let fds: Vec<_> = self.working.iter().map(|(_, process)| process.as_fd()).collect();
        let mut ended = wait_readable(&fds, Some(Duration::ZERO))?.into_iter();
        self.working.retain(|_| ended.next() != Some(true));
        Ok(())
    }

    fn run(
        &mut self,
        command: &[ByteString],
        environment: &[(ByteString, ByteString)],
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        // What is started is nothing that the OOM killer should spare.
        oom::set_score(self.score).context("asking the OOM killer")?;
        let started = start(command, environment, fds);
        oom::be_last().context("asking the OOM killer for the last place")?;
        match started {
            Ok(running) => {
                if let (Some(deputy), Some(process)) = (&self.deputy, &running.pidfd) {
                    deputy.send(&Order::Await(Worker::Runtime), &[process.as_fd()])?;
                }
                self.running = Some(running);
            }
            Err(error) => self.tell(Ended::NotStarted(format!("{error:#}")))?,
        }
        Ok(())
    }

    fn report_end(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            let status = running.child.wait().context("waiting for the runtime")?;
            // Who asked may be dead; that is found out next.
            let _ = self.tell(Ended::from(status));
        }
        Ok(())
    }

    fn tell(&self, ended: Ended) -> Result<()> {
        self.channel.send(&Report::Ended(ended), &[])
    }

    /// Whether a container is frozen, and nobody else looks after how long.
    fn enforces(&self) -> bool {
        self.deputy.is_some() && (!self.thaw.is_empty() || self.expired.is_some())
    }

    /// Lets the container run where the dump does not get on any more, and says so; who is guarded
    /// then has some time to end, and is ended if it hangs as well. Whether it was.
    fn enforce(&mut self) -> Result<bool> {
        let Some(when) = self.expired else {
            if self.stands_still() {
                let seconds = self.patience.limit().as_secs_f32();
                self.expired = Some(Instant::now());
                let thawed = self.thaw();
                let _ = self.channel.send(&Report::Expired { seconds }, &[]);
                say(super::NAME, &super::expired(seconds));
                thawed?;
            }
            return Ok(false);
        };
        let is_late = when.elapsed() >= GRACE;
        if let (true, Some(client)) = (is_late, &self.client) {
            kill(client.as_fd())?;
        }
        Ok(is_late)
    }

    fn stands_still(&mut self) -> bool {
        let own = Pid::own();
        let others = self.client.iter().chain(self.working.iter().map(|(_, process)| process));
        let others = others.filter_map(|process| number_of(process.as_fd()));
        let who: Vec<Pid> = others.chain([own]).collect();
        self.patience.is_over(&who, own)
    }

    /// What has to be done, in order, whatever of it fails; the first error is told.
    fn make_good(&mut self) -> Result<()> {
        let first = self.thaw();
        // CRIU leaves a control group frozen that it found frozen.
        let let_go = self.end_criu().and(self.thaw());
        let waited = self.await_runtime();
        let again = self.thaw();
        self.held.iter().for_each(Ledger::clear);
        // Looking for the manifest comes before its directory is removed.
        let discarded = self
            .discard
            .iter()
            .filter(|(_, unless)| fs::symlink_metadata(unless).is_err())
            .map(|(held, _)| held.discard())
            .fold(Ok(()), Result::and);
        let removed = self.remove.iter().map(|(within, removal)| removal.carry_out(within));
        let removed = removed.fold(Ok(()), Result::and);
        first.and(let_go).and(waited).and(again).and(discarded).and(removed)
    }

    fn thaw(&self) -> Result<()> {
        self.thaw.iter().map(Freezer::thaw).fold(Ok(()), Result::and)
    }

    /// Waits until CRIU has let go of the processes. One that hangs is made to: first by ending its
    /// scripts, should they wait for an answer of somebody who hangs; then at once. Its parasite in
    /// a process puts back what was there when its connection ends (`parasite_daemon` in
    /// compel/plugins/std/infect.c), and the kernel lets go of who was traced.
    fn end_criu(&mut self) -> Result<()> {
        if self.expired.is_none() {
            self.patience.renew();
            while !self.is_criu_gone(self.patience.interval())? {
                // Where it has frozen them again already, it would wait for processes that are.
                self.thaw()?;
                if self.stands_still() {
                    break;
                }
            }
        }
        for make in [kill_scripts, kill] {
            if self.is_criu_gone(Duration::ZERO)? {
                return Ok(());
            }
            self.crius().try_for_each(|process| make(process.as_fd()))?;
            let end = Instant::now() + GRACE;
            while Instant::now() < end && !self.is_criu_gone(self.patience.interval())? {
                self.thaw()?;
            }
        }
        anyhow::ensure!(self.is_criu_gone(Duration::ZERO)?, "CRIU hangs, and cannot be killed");
        Ok(())
    }

    fn crius(&self) -> impl Iterator<Item = &OwnedFd> {
        self.working.iter().filter(|(worker, _)| *worker == Worker::Criu).map(|(_, fd)| fd)
    }

    /// Waits for the end of one, and says whether all have ended.
    fn is_criu_gone(&self, limit: Duration) -> Result<bool> {
        let fds: Vec<_> = self.crius().map(AsFd::as_fd).collect();
        if wait_readable(&fds, Some(Duration::ZERO))?.contains(&false) {
            wait_readable(&fds, Some(limit))?;
        }
        Ok(!wait_readable(&fds, Some(Duration::ZERO))?.contains(&false))
    }

    /// It fails by itself, as nobody commits the dump.
    fn await_runtime(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.child.wait().context("waiting for the runtime")?;
        }
        let others = self.working.iter().filter(|(worker, _)| *worker == Worker::Runtime);
        for (_, process) in others {
            while wait_readable(&[process.as_fd()], None)? != [true] {}
        }
        Ok(())
    }
}

/// Ends the scripts that a CRIU has started and waits for: it fails then, and lets go.
fn kill_scripts(criu: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let Some(number) = number_of(criu) else { return Ok(()) };
    let is_script = |pid: &Pid| Proc::of(*pid).stat().is_ok_and(|stat| stat.name == ACTION);
    for script in with_descendants(&[number]).into_iter().filter(is_script) {
        pidfd(script)?.map_or(Ok(()), |script| kill(script.as_fd()))?;
    }
    Ok(())
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
    let pidfd = pidfd(Pid::of(&child))?;
    Ok(Running { child, pidfd })
}

impl Removal {
    fn carry_out(&self, within: &OwnedFd) -> Result<()> {
        match &self.unless {
            Some(unless) if is_there(within, unless.as_bytes())? => Ok(()),
            _ => ignore_missing(remove::tree(within, self.path.as_bytes())),
        }
    }
}

fn is_there(within: &OwnedFd, path: &[u8]) -> Result<bool> {
    let (directory, name) = split(path).context("a directory itself is no file in it")?;
    let looked = open_dir(within, directory).and_then(|directory| open_entry(directory, name));
    match looked {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("looking whether a checkpoint is complete"),
    }
}

/// Where the directory is gone, so is what was in it.
fn ignore_missing(removed: Result<()>) -> Result<()> {
    removed.or_else(|error| match error.downcast_ref::<std::io::Error>() {
        Some(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}
