//! The guardian: a process beside ocicle that makes things good when ocicle is killed, or hangs.
//!
//! It is started before a container is frozen, runs the runtime's `checkpoint` on our behalf
//! (so that it can wait for its end), and knows what to do when the connection to us ends
//! without a farewell:
//!
//! 1. thaw the container, and others that share a volume, if freezing them was our doing;
//! 2. wait for CRIU and the runtime to end. They fail by themselves, as nobody commits the dump. A
//!    CRIU is killed only if it does not get on any more;
//! 3. thaw again, since CRIU leaves a control group that it found frozen frozen;
//! 4. remove what is half-made, and the snapshots that drivers hold.
//!
//! Until then the container stays locked: the next checkpoint would be thawed in its middle.
//!
//! The same is done when a container has been frozen for too long without anybody getting on with
//! its dump: then we hang, or CRIU does, in a file system maybe that nobody serves. The container
//! runs again, we are told, and ended if we do not end by ourselves.
//!
//! It is a session leader, so that what is sent to our process group does not reach it, it leaves
//! every signal blocked, and the OOM killer takes it last.
//!
//! # Its deputy
//!
//! Who ends our whole control group ends the guardian too. So it has a deputy, the same program in a
//! [control group](crate::apart) of its own, which is given the same orders, and carries them out when the
//! guardian and we are both gone. Should all three be killed, the container's
//! [lock](crate::store::lock) says what has to be thawed, and who takes it next does that.

mod patience;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::freezer::Freezer;
use crate::hint::WithHint;
use crate::proc::OWN_PROGRAM;
use crate::runtime::exit::Ended;
use crate::snapshot::DriverSnapshot;
use crate::store::lock::{ContainerLock, Ledger};
use crate::sys::directory::Directory;
use crate::sys::process::wait_readable;
use crate::sys::socket::Channel;

pub use watch::{deputy_main, main};

/// The name by which the program knows that it is to be the guardian.
pub const NAME: &str = "ocicle-guardian";

/// The name by which it knows that it is to be the guardian's deputy.
pub const DEPUTY: &str = "ocicle-guardian-deputy";

/// How long a container may stay frozen beyond the dump's own progress, if nothing else is said.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// What is asked of the guardian.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Keep the descriptor that comes along: others are held off as long as it is open.
    Hold,
    /// Tell the deputy, at the other end of the descriptor that comes along, when it is not needed.
    Deputy,
    /// How long the container may stay frozen with nobody getting on.
    Patience { milliseconds: u64 },
    /// Thaw this control group if we die.
    Thaw(Freezer),
    /// Thaw none any more.
    ThawNone,
    /// Wait for the process of the descriptor that comes along, before the container is thawed for
    /// the last time.
    Await(Worker),
    /// Remove this of the directory that comes along if we die.
    Remove(Removal),
    /// Remove a snapshot if we die, unless the file exists by then.
    Discard { held: Box<DriverSnapshot>, unless: PathBuf },
    /// Run a program; its standard error goes to the descriptor that comes along.
    Run { command: Vec<ByteString>, environment: Vec<(ByteString, ByteString)> },
    /// All is well.
    Farewell,
}

/// Who works on a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Worker {
    /// CRIU, which holds its processes.
    Criu,
    /// The runtime that has started it.
    Runtime,
}

/// What the guardian and its deputy say to us.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// It is where it is to be, and listens.
    Ready,
    /// The program has ended.
    Ended(Ended),
    /// The container was frozen for so long while nobody got on. It runs again.
    Expired { seconds: f32 },
}

fn expired(seconds: f32) -> String {
    format!("the container was frozen for {seconds} s in which nothing got on, and runs again")
}

/// Something half-made in an opened directory; the paths are relative to that.
#[derive(Debug, Serialize, Deserialize)]
struct Removal {
    /// A file, or a directory with all that is in it.
    path: ByteString,
    /// It stays if this exists.
    unless: Option<ByteString>,
}

/// Our side of the connection to a guardian.
///
/// Dropped without a farewell, it does what it does when we die, and is waited for: so there is
/// one way of cleaning up, whatever went wrong.
#[derive(Debug)]
pub struct Guardian {
    /// There until the drop.
    channels: Option<Channels>,
    processes: [Child; 2],
    ledger: Ledger,
}

#[derive(Debug)]
struct Channels {
    guardian: Channel,
    deputy: Channel,
}

impl Guardian {
    /// Starts a guardian and its deputy. The container is locked until both have ended, too, and may
    /// stay frozen for so long beyond the dump's own progress.
    pub fn start(held: &ContainerLock, limit: Duration) -> Result<Self> {
        let ledger = held.ledger()?;
        let (guardian, first) = spawn(NAME).context("starting the guardian")?;
        let (deputy, second) = spawn(DEPUTY).context("starting the guardian's deputy")?;
        let channels = Some(Channels { guardian, deputy });
        let started = Self { channels, processes: [first, second], ledger };
        started.instruct(held, limit).context("giving the guardian an order")?;
        Ok(started)
    }

    fn instruct(&self, held: &ContainerLock, limit: Duration) -> Result<()> {
        let Channels { guardian, deputy } = self.channels();
        for channel in [guardian, deputy] {
            let Some((Report::Ready, _)) = channel.receive()? else { bail!("it did not begin") };
            channel.send(&Order::Hold, &[held.as_fd()])?;
        }
        guardian.send(&Order::Deputy, &[deputy.as_fd()])?;
        let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.order(&Order::Patience { milliseconds })
    }

    /// Has `freezer` thawed too if we die from now on.
    pub fn thaw_if_we_die(&self, freezer: &Freezer) -> Result<()> {
        self.ledger.note(freezer)?;
        self.order(&Order::Thaw(freezer.clone()))
    }

    /// Has nothing thawed any more.
    pub fn thaw_no_more(&self) -> Result<()> {
        self.order(&Order::ThawNone)?;
        self.ledger.clear();
        Ok(())
    }

    /// Has them wait for a CRIU before they thaw for the last time.
    pub fn await_if_we_die(&self, criu: &impl AsFd) -> Result<()> {
        self.order_with(&Order::Await(Worker::Criu), &[criu.as_fd()])
    }

    /// Has a file below a directory, or a directory with all that is in it, removed if we die, unless
    /// there is a file `unless` below it by then. Wherever the directory is moved: it is this one.
    pub fn remove_if_we_die(
        &self,
        within: &Directory,
        path: &[u8],
        unless: Option<&[u8]>,
    ) -> Result<()> {
        let removal = Removal { path: path.into(), unless: unless.map(ByteString::from) };
        self.order_with(&Order::Remove(removal), &[within.as_fd()])
    }

    /// Has a snapshot removed that a driver holds, unless `exists` is there by then.
    pub fn discard_if_we_die(&self, held: &DriverSnapshot, exists: &Path) -> Result<()> {
        self.order(&Order::Discard { held: Box::new(held.clone()), unless: exists.to_owned() })
    }

    /// Starts a program, whose end [`Guardian::ended`] will tell.
    pub fn run(
        &self,
        command: &[OsString],
        environment: &[(&str, OsString)],
        errors: &File,
    ) -> Result<()> {
        let command = command.iter().cloned().map(ByteString::from).collect();
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).into(), value.clone().into()))
            .collect();
        self.channels()
            .guardian
            .send(&Order::Run { command, environment }, &[errors.as_fd()])
            .context("giving the guardian an order")
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// Also when the container was frozen for too long: it runs again then, and CRIU has to end.
    pub fn ended(&self) -> Result<Ended> {
        match self.channels().guardian.receive().context("listening to the guardian")? {
            Some((Report::Ended(ended), _)) => Ok(ended),
            Some((Report::Expired { seconds }, _)) => Err(anyhow!(expired(seconds)).hint(
                "a file system that does not answer, or a program that is stopped, holds ocicle or \
                 CRIU up; max-freeze in the configuration is how long a freeze may stand still",
            )),
            Some((Report::Ready, _)) => bail!("the guardian began anew"),
            None => bail!("the guardian was killed"),
        }
    }

    /// Makes sure that the container has not been let go for having been frozen for too long, nor the
    /// runtime ended: what is done on the strength of the freeze may be committed.
    pub fn ensure_in_time(&self) -> Result<()> {
        if wait_readable(&[self.as_fd()], Some(Duration::ZERO))? == [true] {
            let ended = self.ended()?;
            bail!("the runtime has ended before its time: {ended}");
        }
        Ok(())
    }

    /// Tells both that all is well, and sees them go.
    pub fn dismiss(self) -> Result<()> {
        self.order(&Order::Farewell)
    }

    fn order(&self, order: &Order) -> Result<()> {
        self.order_with(order, &[])
    }

    /// The deputy is told first: should we be killed in between, the guardian tells it that all is
    /// well when it has done its part.
    fn order_with(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let Channels { guardian, deputy } = self.channels();
        [deputy, guardian]
            .into_iter()
            .try_for_each(|channel| channel.send(order, fds))
            .context("giving the guardian an order")
    }

    fn channels(&self) -> &Channels {
        self.channels.as_ref().expect("the channels are there until the drop")
    }
}

/// Starts this program under a name, with a connection for its standard input.
fn spawn(name: &str) -> Result<(Channel, Child)> {
    let (channel, theirs) = Channel::pair()?;
    let process = Command::new(OWN_PROGRAM)
        .arg0(name)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()?;
    Ok((channel, process))
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.channels.take());
        for process in &mut self.processes {
            if let Err(error) = process.wait() {
                tracing::error!("waiting for the guardian: {error}");
            }
        }
    }
}

impl AsFd for Guardian {
    /// Becomes readable when [`Guardian::ended`] has something to tell.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channels().guardian.as_fd()
    }
}
