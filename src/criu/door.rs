//! The door: where the CRIU that a runtime starts, and its action script, find ocicle.
//!
//! A directory of its own below `/run/ocicle`, readable by root alone:
//!
//! ```text
//! door            the socket
//! bin/criu        first on the runtime's PATH: this program, as the interposer
//! tools/tar       next on it, and on CRIU's: this program, as the archiver
//! criu-action     CRIU's action script: this program again
//! criu.conf       CRIU's configuration, written when CRIU is admitted
//! plugins/        where CRIU finds its plugins, and ours; made when it needs ours
//! told, report    what ours is to do, and what it has to say
//! ```

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tempfile::TempDir;

use super::configuration::Configuration;
use super::plugin;
use super::protocol::{
    ACTION, ARCHIVER, Answer, BATCH, BINARIES, INTERPOSER, Knock, PROGRAM, VARIABLE, Work,
};
use crate::hint::WithHint;
use crate::proc::OWN_PROGRAM;
use crate::sys::pid::Pid;
use crate::sys::process::{find_program, search_path};
use crate::sys::socket::{Channel, Listener};

/// Where the archiver is.
const TOOLS: &str = "tools";

/// Where the directories are.
pub const RUN: &str = "/run/ocicle";

/// The door, open for one runtime.
#[derive(Debug)]
pub struct Door {
    directory: TempDir,
    listener: Listener,
    criu: PathBuf,
}

/// Somebody at the door.
#[derive(Debug)]
pub enum Visitor<'a> {
    /// CRIU waits to be let in.
    Criu(WaitingCriu<'a>),
    /// CRIU's action script waits for an answer.
    Action(WaitingScript),
}

/// CRIU, at the door.
#[derive(Debug)]
pub struct WaitingCriu<'a> {
    door: &'a Door,
    channel: Channel,
    /// What it was asked for.
    pub work: Work,
}

/// CRIU's action script, at the door.
#[derive(Debug)]
pub struct WaitingScript {
    channel: Channel,
    /// CRIU's name of the point it is at (`post-dump`, …).
    pub point: String,
}

impl Door {
    /// Opens a door. The real CRIU is the first on `PATH`.
    pub fn open() -> Result<Self> {
        let criu = real_criu()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(RUN)
            .with_context(|| format!("making {RUN}"))?;
        if let Err(error) = remove_dead() {
            tracing::warn!("removing what an ocicle that was killed has left: {error:#}");
        }
        let _making = lock(FlockOperation::LockShared).context("making a door")?;
        let directory = tempfile::Builder::new()
            .prefix("door-")
            .tempdir_in(RUN)
            .with_context(|| format!("making a directory in {RUN}"))?;
        let ourselves = fs::read_link(OWN_PROGRAM).context("finding this program")?;
        for (place, name) in [(BINARIES, INTERPOSER), (TOOLS, ARCHIVER)] {
            let place = directory.path().join(place);
            DirBuilder::new()
                .mode(0o700)
                .create(&place)
                .and_then(|()| symlink(&ourselves, place.join(name)))
                .with_context(|| format!("placing {name} in {}", place.display()))?;
        }
        symlink(&ourselves, directory.path().join(ACTION)).context("placing the action script")?;
        let listener = Listener::bind(&directory.path().join("door"))?;
        Ok(Self { directory, listener, criu })
    }

    /// The door's directory, to be removed when this process dies.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The action script, for CRIU's configuration.
    pub fn action_script(&self) -> PathBuf {
        self.directory.path().join(ACTION)
    }

    /// The environment that leads a runtime's CRIU here.
    pub fn environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        let path = self.path_with(&[BINARIES, TOOLS])?;
        let door = self.directory.path().join("door");
        Ok(vec![("PATH", path), (VARIABLE, door.into()), (PROGRAM, self.criu.clone().into())])
    }

    /// The environment of a runtime whose CRIU passes by, and only finds the archiver.
    pub fn environment_outside(&self) -> Result<Vec<(&'static str, OsString)>> {
        Ok(vec![("PATH", self.path_with(&[TOOLS])?)])
    }

    fn path_with(&self, first: &[&str]) -> Result<OsString> {
        let path = search_path();
        let first = first.iter().map(|place| self.directory.path().join(place));
        Ok(std::env::join_paths(first.chain(std::env::split_paths(&path)))?)
    }

    /// Lets the next one come forward.
    pub fn accept(&self) -> Result<Visitor<'_>> {
        let channel = self.listener.accept()?;
        match channel.receive()? {
            Some((Knock::Criu(work), _)) => {
                Ok(Visitor::Criu(WaitingCriu { door: self, channel, work }))
            }
            Some((Knock::Action(point), _)) => {
                Ok(Visitor::Action(WaitingScript { channel, point }))
            }
            None => bail!("somebody came to the door and left"),
        }
    }
}

impl Visitor<'_> {
    /// Lets one pass who brings nothing of interest.
    pub fn wave_through(self) -> Result<()> {
        match self {
            Self::Criu(criu) => criu.admit(),
            Self::Action(action) => action.answer(&Ok(())),
        }
    }
}

impl AsFd for Door {
    /// Becomes readable when somebody is at the door.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl WaitingCriu<'_> {
    /// The process, from here to CRIU's end: the interposer becomes CRIU. `None` when it is gone.
    pub fn process(&self) -> Result<Option<OwnedFd>> {
        self.channel.peer()
    }

    /// Its number, from here to its end.
    pub fn number(&self) -> Result<Pid> {
        self.channel.peer_number()
    }

    /// Lets it in as it is.
    pub fn admit(self) -> Result<()> {
        let program = self.door.criu.clone();
        let answer = Answer::Become { program, configuration: None, plugin: false, inherited: 0 };
        self.channel.send(&answer, &[])
    }

    /// Lets it in with a configuration, and with descriptors for its `inherit-fd` lines.
    pub fn admit_with(self, configuration: &Configuration, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let path = self.door.directory.path().join("criu.conf");
        let plugins = self.door.directory.path().join("plugins");
        configuration.write(&path, &plugins)?;
        let plugin = !configuration.plugin.is_empty();
        if plugin {
            configuration.plugin.write(self.door.directory.path())?;
        }
        if configuration.plugin.is_for_hooks() {
            plugin::directory(&plugins)?;
        }
        let program = self.door.criu.clone();
        let (configuration, inherited) = (Some(path), fds.len());
        let answer = Answer::Become { program, configuration, plugin, inherited };
        self.channel.send(&answer, &[])?;
        let mut batches = fds.chunks(BATCH);
        batches.try_for_each(|batch| self.channel.send(&Answer::Continue, batch))
    }
}

impl WaitingScript {
    /// Lets CRIU go on, or makes it fail and leave the container running.
    pub fn answer(self, outcome: &Result<()>) -> Result<()> {
        let answer = match outcome {
            Ok(()) => Answer::Continue,
            Err(error) => Answer::Stop(format!("{error:#}")),
        };
        self.channel.send(&answer, &[])
    }
}

/// Whoever makes a door shares this lock until it has a socket.
fn lock(how: FlockOperation) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(format!("{RUN}/doors.lock"), flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&file, how)?;
    Ok(file)
}

/// Whether nobody is behind a door. One that is being made has no socket yet.
fn is_dead(door: &Path, is_any_made: bool) -> bool {
    match Channel::connect_at_once(&door.join("door")) {
        Err(Errno::CONNREFUSED) => true,
        Err(Errno::NOENT) => !is_any_made,
        _ => false,
    }
}

/// Removes the doors behind which nobody is: those of an ocicle and a guardian that were killed.
pub fn remove_dead() -> Result<()> {
    let entries = match fs::read_dir(RUN) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {RUN}"))?,
    };
    let alone = lock(FlockOperation::NonBlockingLockExclusive);
    for entry in entries {
        let entry = entry?;
        let is_door = entry.file_name().as_encoded_bytes().starts_with(b"door-");
        if is_door && is_dead(&entry.path(), alone.is_err()) {
            match fs::remove_dir_all(entry.path()) {
                // Somebody else has come for the same.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => {
                    removed.with_context(|| format!("removing {}", entry.path().display()))?;
                }
            }
        }
    }
    Ok(())
}

/// The first CRIU on `PATH`.
pub fn real_criu() -> Result<PathBuf> {
    find_program("criu", |_| false)
        .context("there is no criu on PATH")
        .hint("install CRIU 4.2 or newer")
}
