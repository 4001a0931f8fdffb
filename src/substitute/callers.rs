//! Who hands in descriptors and a terminal.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};

use super::resolve::Resolved;
use super::rule::{Origin, Rule};
use super::source::Source;
use super::standing::{Allow, ensure_leave_for_file};
use crate::files::OpenFile;
use crate::hint::WithHint;
use crate::lend::{Handed, Loan};
use crate::sys::fd::{self, Nature};
use crate::sys::inherited::keep_from_children;
use crate::sys::named::Names;
use crate::sys::process::InheritedFds;
use crate::sys::terminal;

/// Who hands in what `fd:` and `tty` name: for a rule of the command line whoever started this
/// process; for every other one the lender, if `ocicle with` lends to this restore. A rule of an
/// annotation gets only what was handed over as such.
#[derive(Debug, Default)]
pub struct Callers {
    inherited: InheritedFds,
    handed: Handed,
    loan: Option<Loan>,
}

impl Callers {
    /// The descriptors that this process was started with, which of them were handed over as such, and
    /// what is lent to it.
    pub fn new(inherited: InheritedFds, handed: Handed, loan: Option<Loan>) -> Self {
        Self { inherited, handed, loan }
    }

    /// The rules that are lent.
    pub fn rules(&self) -> &[String] {
        self.loan.as_ref().map_or(&[], |loan| &loan.offer.rules)
    }

    fn lender(&self, rule: &Rule) -> Option<&Loan> {
        self.loan.as_ref().filter(|_| rule.origin != Origin::CommandLine)
    }

    /// The number of a rule's descriptor; `None` for another source.
    fn number(&self, rule: &Rule) -> Result<Option<i32>, String> {
        match &rule.source {
            Source::Fd(number) => Ok(Some(*number)),
            Source::FdName(name) => match self.lender(rule) {
                Some(loan) => loan.offer.names.find(name.as_bytes()).map(Some),
                None => Names::of_environment().find(name.as_bytes()).map(Some),
            },
            _ => Ok(None),
        }
    }

    /// Refuses descriptors that nobody has handed in: a number that is open here may be our own.
    fn check(&self, rule: &Rule) -> Result<()> {
        let wrong = |why: String| anyhow!("{rule} (from {}): {why}", rule.origin);
        let lender = self.lender(rule);
        if rule.source == Source::Tty && lender.is_some_and(|loan| !loan.offer.terminal) {
            return Err(wrong("`ocicle with` has no terminal".to_owned())
                .hint("run `ocicle with` at the terminal that is meant"));
        }
        let number = self.number(rule).map_err(wrong).hint(
            "start this command with LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, as systemd does",
        )?;
        let Some(number) = number else { return Ok(()) };
        let (is_open, handed, whose) = match lender {
            Some(loan) => {
                (loan.offer.numbers.contains(&number), &loan.offer.handed, "`ocicle with`")
            }
            None => (self.inherited.contains(number), &self.handed, "this command"),
        };
        if rule.origin.is_annotation() && !handed.contains(number) {
            return Err(wrong(format!("fd {number} was not handed over for it")).hint(
                "hand it over as such: --lend NUMBERS, or LISTEN_FDS (docs/substitution.md)",
            ));
        }
        if is_open {
            return Ok(());
        }
        Err(wrong(format!("fd {number} is not open"))
            .hint(format!("open it for {whose}: {number}<>FILE behind it in a shell")))
    }

    /// What a rule names is for the container, and for no runtime, hook or program beside it.
    fn keep_own(&self, resolved: &[Resolved]) -> std::io::Result<()> {
        let own = resolved.iter().filter(|one| self.lender(&one.rule).is_none());
        let numbers = own.filter_map(|one| self.number(&one.rule).ok().flatten());
        numbers.into_iter().try_for_each(keep_from_children)
    }

    /// Takes from the lender what the rules name, which have been accepted.
    ///
    /// # Errors
    /// When something is not there, or is not for whoever wrote the rule.
    pub fn fetch(&mut self, resolved: &[Resolved], allow: &Allow) -> Result<()> {
        self.take(resolved)?;
        let annotated = resolved.iter().filter(|one| one.rule.origin.is_annotation());
        annotated.map(|one| &one.rule).try_for_each(|rule| self.ensure_harmless(rule, allow))
    }

    /// Refuses what leads further than to itself: a directory, and what is only a place, lead to what
    /// is beside it; and a terminal is as much of the caller's as `tty` is.
    fn ensure_harmless(&self, rule: &Rule, allow: &Allow) -> Result<()> {
        if !matches!(self.number(rule), Ok(Some(_))) {
            return Ok(());
        }
        let (number, fd) = self.descriptor(rule).map_err(|why| anyhow!("{rule}: {why}"))?;
        let looking = || format!("looking at fd {number}");
        match fd::nature(&fd).with_context(looking)? {
            Nature::Plain => Ok(()),
            Nature::Terminal => {
                ensure_leave_for_file(rule, "the terminal", &"/dev/tty".into(), allow)
            }
            Nature::Directory => {
                let path = fd::path(&fd).with_context(looking)?;
                ensure_leave_for_file(rule, "the directory", &path.into(), allow)
            }
            Nature::Place => {
                let path = fd::path(&fd).with_context(looking)?;
                ensure_leave_for_file(rule, "a place", &path.into(), allow)
            }
        }
    }

    fn take(&mut self, resolved: &[Resolved]) -> Result<()> {
        for Resolved { rule, .. } in resolved {
            self.check(rule)?;
        }
        self.keep_own(resolved).context("keeping descriptors from programs that are started")?;
        let lent = resolved.iter().filter(|one| self.lender(&one.rule).is_some());
        let (mut numbers, mut terminals) = (Vec::new(), Vec::new());
        for Resolved { rule, file, .. } in lent {
            numbers.extend(self.number(rule).map_err(|why| anyhow!(why))?);
            terminals.extend((rule.source == Source::Tty).then_some(file.id));
        }
        numbers.sort_unstable();
        numbers.dedup();
        match &mut self.loan {
            Some(loan) if !(numbers.is_empty() && terminals.is_empty()) => {
                loan.fetch(numbers, terminals).context("taking what `ocicle with` lends")
            }
            _ => Ok(()),
        }
    }

    /// The descriptor of a rule that names one, and its number.
    pub(super) fn descriptor(&self, rule: &Rule) -> Result<(i32, OwnedFd), String> {
        let number = self.number(rule)?.ok_or("the rule names no descriptor")?;
        let duplicate = match self.lender(rule) {
            Some(loan) => match loan.fd(number) {
                Some(lent) => lent.try_clone(),
                None => return Err(format!("fd {number} is not lent")),
            },
            None => fd::duplicate(number),
        };
        match duplicate {
            Ok(fd) => Ok((number, fd)),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
                Err(format!("fd {number} is not open"))
            }
            Err(error) => Err(format!("duplicating fd {number}: {error}")),
        }
    }

    /// An opening of the terminal, for one open file.
    pub(super) fn terminal(&self, rule: &Rule, file: &OpenFile) -> Result<OwnedFd, String> {
        let opened = match self.lender(rule) {
            Some(loan) => match loan.terminal(file.id) {
                Some(lent) => return lent.try_clone().map_err(|error| error.to_string()),
                None => return Err("the terminal is not lent".to_owned()),
            },
            None => terminal::open(),
        };
        opened.map_err(|error| match error {
            rustix::io::Errno::NXIO => "this command has no terminal".to_owned(),
            error => format!("opening the terminal: {error}"),
        })
    }
}
