//! The guardian: a process beside ocicle that makes things good when ocicle is killed.
//!
//! It is started before a container is frozen, runs the runtime's `checkpoint` on our behalf
//! (so that it can wait for its end), and knows what to do when the connection to us ends
//! without a farewell:
//!
//! 1. thaw the container, and others that share a volume, if freezing them was our doing;
//! 2. wait for the runtime, and with it CRIU, to end. They fail by themselves, as nobody commits
//!    the dump. They are not killed: processes with CRIU's code in them would not survive that;
//! 3. thaw again, since CRIU leaves a control group that it found frozen frozen;
//! 4. remove what is half-made, and the snapshots that drivers hold.
//!
//! Until then the container stays locked: the next checkpoint would be thawed in its middle.
//!
//! It is a session leader, so that what is sent to our process group does not reach it, and it
//! leaves every signal blocked.

mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::freezer::Freezer;
use crate::runtime::exit::Ended;
use crate::snapshot::Held;
use crate::store::lock::Lock;
use crate::sys::socket::Channel;

pub use watch::main;

/// The name by which the program knows that it is to be the guardian.
pub const NAME: &str = "ocicle-guardian";

/// What is asked of the guardian.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Keep the descriptor that comes along: others are held off as long as it is open.
    Hold,
    /// Thaw this control group if we die.
    Thaw(Freezer),
    /// Thaw none any more.
    ThawNone,
    /// Remove this if we die.
    Remove(Removal),
    /// Remove a snapshot if we die, unless the file exists by then.
    Discard { held: Box<Held>, unless: PathBuf },
    /// Run a program; its standard error goes to the descriptor that comes along.
    Run { command: Vec<ByteString>, environment: Vec<(ByteString, ByteString)> },
    /// All is well.
    Farewell,
}

/// Something half-made.
#[derive(Debug, Serialize, Deserialize)]
struct Removal {
    /// A file, or a directory with all that is in it.
    path: PathBuf,
    /// It stays if this exists.
    unless: Option<PathBuf>,
}

/// Our side of the connection to a guardian.
///
/// Dropped without a farewell, it does what it does when we die, and is waited for: so there is
/// one way of cleaning up, whatever went wrong.
#[derive(Debug)]
pub struct Guardian {
    /// There until the drop.
    channel: Option<Channel>,
    process: Child,
}

impl Guardian {
    /// Starts a guardian. The container is locked until it has ended, too.
    pub fn start(held: &Lock) -> Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let process = Command::new("/proc/self/exe")
            .arg0(NAME)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()
            .context("starting the guardian")?;
        let guardian = Self { channel: Some(channel), process };
        guardian
            .channel()
            .send(&Order::Hold, &[held.as_fd()])
            .context("giving the guardian an order")?;
        Ok(guardian)
    }

    /// Has `freezer` thawed too if we die from now on.
    pub fn thaw_if_we_die(&self, freezer: &Freezer) -> Result<()> {
        self.order(&Order::Thaw(freezer.clone()))
    }

    /// Has nothing thawed any more.
    pub fn thaw_no_more(&self) -> Result<()> {
        self.order(&Order::ThawNone)
    }

    /// Has a file, or a directory with all that is in it, removed if we die.
    pub fn remove_if_we_die(&self, path: &Path) -> Result<()> {
        self.order(&Order::Remove(Removal { path: path.to_owned(), unless: None }))
    }

    /// The same, unless `exists` is there by then.
    pub fn remove_if_we_die_unless(&self, path: &Path, exists: &Path) -> Result<()> {
        let (path, unless) = (path.to_owned(), Some(exists.to_owned()));
        self.order(&Order::Remove(Removal { path, unless }))
    }

    /// Has a snapshot removed that a driver holds, unless `exists` is there by then.
    pub fn discard_if_we_die(&self, held: &Held, exists: &Path) -> Result<()> {
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
        self.channel()
            .send(&Order::Run { command, environment }, &[errors.as_fd()])
            .context("giving the guardian an order")
    }

    /// Waits for the end of the program.
    pub fn ended(&self) -> Result<Ended> {
        match self.channel().receive().context("listening to the guardian")? {
            Some((ended, _)) => Ok(ended),
            None => bail!("the guardian was killed"),
        }
    }

    /// Tells the guardian that all is well, and sees it go.
    pub fn dismiss(self) -> Result<()> {
        self.order(&Order::Farewell)
    }

    fn order(&self, order: &Order) -> Result<()> {
        self.channel().send(order, &[]).context("giving the guardian an order")
    }

    fn channel(&self) -> &Channel {
        self.channel.as_ref().expect("the channel is there until the drop")
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.channel.take());
        if let Err(error) = self.process.wait() {
            tracing::error!("waiting for the guardian: {error}");
        }
    }
}

impl AsFd for Guardian {
    /// Becomes readable when [`Guardian::ended`] has something to tell.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.channel().as_fd()
    }
}
