//! Signals that are read instead of acted on.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What somebody may send to a program in the foreground that runs another, which gets it.
pub const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// `SI_KERNEL` of include/uapi/asm-generic/siginfo.h: a key on the terminal, of which the whole
/// foreground process group is told.
const BY_THE_KERNEL: i32 = 0x80;

/// Signals of some kinds, blocked for this thread and those that it starts. A program inherits
/// that, unless [`spawn`](super::spawn) starts it.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Came {
    /// Which.
    pub signal: Signal,
    /// Whether it came from the kernel, and to the whole process group, not to us alone.
    pub to_the_group: bool,
}

impl Signals {
    /// Blocks these, to read them.
    pub fn catch(signals: impl IntoIterator<Item = Signal>) -> Result<Self> {
        let set: SigSet = signals.into_iter().collect();
        set.thread_block().context("blocking signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags).context("reading signals")?))
    }

    /// The next one that has come; none when there is no more.
    pub fn next(&self) -> Result<Option<Came>> {
        let Some(read) = self.0.read_signal().context("reading a signal")? else {
            return Ok(None);
        };
        let signal = Signal::try_from(i32::try_from(read.ssi_signo)?)?;
        Ok(Some(Came { signal, to_the_group: read.ssi_code == BY_THE_KERNEL }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
