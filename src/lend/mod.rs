//! `ocicle with`: rules, descriptors and a terminal, lent to a restore that somebody else runs.
//!
//! podman, docker and containerd start the runtime in a process of their own, with an environment
//! and descriptors of their own. So who calls them and has something to lend runs them below
//! `ocicle with`, the lender: a [`Broker`] listens at a unix socket, and the restore, wherever it
//! runs, goes and asks, with a [`Loan`].
//!
//! ```text
//! /run/ocicle/with         for root alone
//! /run/ocicle/with/XXXXXX  the socket of one lender; where none listens any more, it is removed
//! ```
//!
//! # Who gets it
//!
//! One restore, once. The kernel says who is at the other end of the socket (`SO_PEERCRED`): it has
//! to be of our own user, and in our own pid namespace, for root in a container is not the
//! administrator. Then, if a container was named, the restore of a container of that name or
//! identifier gets it, wherever it runs: below a daemon, that is. If none was named, the first
//! restore that is below the lender. The lender is a subreaper, so that this holds for what
//! daemonizes too, as podman's conmon does.
//!
//! # What is said
//!
//! The restore says what its container is called. The lender answers with the rules, and with what
//! there is; not with the descriptors. When all rules have been accepted, the restore asks for
//! those that they name, and gets them.

mod broker;
mod handed;
mod loan;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::container::Identity;
use crate::sys::named::Names;
use crate::sys::process::wait_readable;
use crate::sys::socket::Channel;

pub use broker::{Broker, Outcome};
pub use handed::{Handed, Lent};
pub use loan::Loan;

/// Where the sockets are.
const DIRECTORY: &str = "/run/ocicle/with";

/// How long one side waits for the other's next word. Neither has anything to do before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there is to lend.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Offer {
    /// Rules of substitution.
    pub rules: Vec<String>,
    /// Descriptors.
    pub numbers: BTreeSet<i32>,
    /// What some of them are called.
    pub names: Names,
    /// Those that rules of annotations may name.
    pub handed: Handed,
    /// Whether there is a terminal.
    pub terminal: bool,
}

/// What a restore says.
#[derive(Debug, Serialize, Deserialize)]
pub enum LoanRequest {
    /// Is something lent to this container?
    Borrow(Identity),
    /// These descriptors, and so many openings of the terminal.
    Fetch {
        /// The numbers of those that a rule names.
        numbers: Vec<i32>,
        /// How many openings.
        terminals: usize,
    },
}

/// What the lender answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum LoanReply {
    /// This is lent.
    Lent(Offer),
    /// Nothing is.
    Nothing,
    /// The descriptors come along, those with numbers first.
    Here,
    /// It cannot be had.
    Failed(String),
}

/// Holds others off from the directory, which is made if it is missing.
fn hold_directory() -> Result<Flock<File>> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(DIRECTORY)
        .with_context(|| format!("making {DIRECTORY}"))?;
    let file = File::open(DIRECTORY).with_context(|| format!("opening {DIRECTORY}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {DIRECTORY}"))
}

/// Connects to a lender; `None` when it is gone, or has no ear for anybody.
fn connect(socket: &Path) -> Result<Option<Channel>> {
    let context = || format!("connecting to {}", socket.display());
    match Channel::connect_at_once(socket) {
        Ok(channel) => Ok(Some(channel)),
        // Killed: whoever makes a socket listens before it lets go of the directory.
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(socket).with_context(|| format!("removing {}", socket.display()))?;
            Ok(None)
        }
        // Just ended, or stopped, with many who wait for it.
        Err(Errno::NOENT | Errno::AGAIN) => Ok(None),
        Err(error) => Err(error).with_context(context),
    }
}

/// The next word of the other side; `None` when it is gone.
fn hear<T: DeserializeOwned>(channel: &Channel) -> Result<Option<(T, Vec<OwnedFd>)>> {
    let ready = wait_readable(&[channel.as_fd()], Some(PATIENCE))?;
    ensure!(ready == [true], "nothing was said for {} seconds", PATIENCE.as_secs());
    channel.receive()
}
