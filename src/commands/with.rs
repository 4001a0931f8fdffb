//! `ocicle with`.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::bytes::ByteString;
use crate::hint::WithHint;
use crate::lend::{Broker, Handed, Lent, Offer, Outcome};
use crate::machine;
use crate::output;
use crate::substitute::parse_each;
use crate::substitute::{Origin, Source};
use crate::sys::inherited::keep_from_children;
use crate::sys::named::Names;
use crate::sys::pid::{Pid, signal};
use crate::sys::process::{InheritedFds, wait_readable};
use crate::sys::signals::{FORWARDED, Signals};
use crate::sys::{spawn, terminal};

/// What can be lent, and to whom.
#[derive(Debug, clap::Args)]
pub struct WithOptions {
    /// Replace an open file at the restore, as `ocicle restore -s` does; fd:N is a descriptor of
    /// this command
    #[arg(short, long, value_name = "RULE")]
    substitute: Vec<String>,
    /// Give the container this terminal in place of each of its own
    #[arg(short, long)]
    terminal: bool,
    /// Hand over descriptors to the container's own rules too: those of its annotations may name no
    /// others
    #[arg(long, value_name = "FD[,FD]")]
    lend: Vec<Lent>,
    /// The container that is meant, where its restore does not run below COMMAND but below a
    /// daemon, such as docker's or containerd's; else it is the first one below COMMAND
    #[arg(long, value_name = "NAME|ID")]
    container: Option<String>,
    /// What causes the restore: podman container restore web
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Exit statuses of programs that run others, as env(1) and timeout(1) have them: a failure of our
/// own, a program that cannot be executed, and one that is not there.
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a command, and lends to the restore that it causes. The status is the command's, if it
/// failed, or if the restore came for what is lent.
pub fn run(options: &WithOptions, inherited: &InheritedFds) -> Result<ExitCode> {
    match lend(options, inherited) {
        Ok(status) => Ok(status),
        Err(error) => {
            output::error(&error);
            Ok(OURS.into())
        }
    }
}

fn lend(options: &WithOptions, inherited: &InheritedFds) -> Result<ExitCode> {
    machine::ensure_capable()?;
    let offer = offer(options, inherited)?;
    let signals = Signals::catch(FORWARDED.into_iter().chain([Signal::SIGCHLD]))?;
    set_child_subreaper(true).context("becoming a subreaper")?;
    let broker = Broker::open(offer, options.container.clone())?;
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]);
    let child = match spawn::bound(command) {
        Ok(child) => Pid::of(&child),
        Err(error) => return Ok(not_started(&options.command[0], error)),
    };
    let status = attend(child, &signals)?;
    let outcome = broker.outcome();
    if outcome.lent_to.is_none() {
        output::error(&nobody_came(&outcome, options.container.as_deref()));
    }
    Ok(exit_code(status, &outcome))
}

/// All that this command has, by number or name, and the rules.
fn offer(options: &WithOptions, inherited: &InheritedFds) -> Result<Offer> {
    let mut rules = options.substitute.clone();
    rules.extend(options.terminal.then(|| "tty=tty".to_owned()));
    let names = Names::of_environment();
    let offer = Offer {
        numbers: inherited.numbers().clone(),
        handed: Handed::new(inherited, &options.lend, &names, 0)?,
        names,
        terminal: terminal::open().is_ok(),
        rules,
    };
    let mut lent: Vec<i32> = offer.names.numbers().chain(offer.handed.numbers()).collect();
    for rule in parse_each(&offer.rules, &Origin::With)? {
        let number = number_of(&offer, &rule.source)
            .map_err(|why| anyhow!("{rule}: {why}"))
            .hint("what a rule names has to be open for `ocicle with` itself")?;
        lent.extend(number);
    }
    // conmon would hold them as long as the container runs.
    lent.into_iter()
        .try_for_each(keep_from_children)
        .context("keeping descriptors from the command")?;
    Ok(offer)
}

/// The number of a descriptor that a rule names, or why there is none.
fn number_of(offer: &Offer, source: &Source) -> Result<Option<i32>, String> {
    let number = match source {
        Source::Fd(number) => *number,
        Source::FdName(name) => offer.names.find(name.as_bytes())?,
        Source::Tty if !offer.terminal => return Err("this command has no terminal".to_owned()),
        _ => return Ok(None),
    };
    let has = offer.numbers.contains(&number);
    if has { Ok(Some(number)) } else { Err(format!("fd {number} is not open")) }
}

fn not_started(program: &OsString, error: std::io::Error) -> ExitCode {
    let status = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    let program = ByteString::from(std::path::Path::new(program));
    output::error(&anyhow::Error::new(error).context(format!("executing {program}")).hint(
        "behind -- stands a command that restores a container: podman container restore web",
    ));
    status.into()
}

/// Hands on signals until the command ends, and takes leave of others that end below us.
fn attend(child: Pid, signals: &Signals) -> Result<ExitStatus> {
    loop {
        wait_readable(&[signals.as_fd()], None)?;
        while let Some(came) = signals.next()? {
            // What a key of the terminal sends, the command has got itself.
            if came.signal != Signal::SIGCHLD && !came.to_the_group {
                let _ = signal(child, came.signal);
            }
        }
        if let Some(status) = reap(child)? {
            return Ok(status);
        }
    }
}

/// Takes leave of all that have ended; of the command with its status.
fn reap(child: Pid) -> Result<Option<ExitStatus>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == child.0 => {
                return Ok(Some(ExitStatus::from_raw(status << 8)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == child.0 => {
                return Ok(Some(ExitStatus::from_raw(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}

/// The command's status, as shells say it; what was meant did not happen when nobody came.
fn exit_code(status: ExitStatus, outcome: &Outcome) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(0) if outcome.lent_to.is_none() => OURS.into(),
        Some(code) => code.into(),
        None => OURS.into(),
    }
}

fn nobody_came(outcome: &Outcome, container: Option<&str>) -> anyhow::Error {
    let whom = match container {
        Some(name) => format!("no restore of {name}"),
        None => "no restore below the command".to_owned(),
    };
    let others = match &outcome.refused[..] {
        [] => String::new(),
        others => format!("; other containers were restored: {}", others.join(", ")),
    };
    let hint = match (&outcome.refused[..], container) {
        ([other, ..], _) => format!("name the one that is meant: --container {other}"),
        ([], Some(_)) => {
            "its runtime has to be ocicle-runtime, and the image directory ocicle's".to_owned()
        }
        ([], None) => "an engine with a daemon restores elsewhere: name the container with \
                       --container; and its runtime has to be ocicle-runtime"
            .to_owned(),
    };
    anyhow!("{whom} asked for what is lent{others}").hint(hint)
}
