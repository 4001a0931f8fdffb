//! Every system call of ocicle's goes wrong: what a container was is never lost.
//!
//! A run under [`tracer`] first counts the calls of a command, then the command is run again and again,
//! and each time something happens at one call: it is killed, stopped for a second, or the call fails.
//! Afterwards the container runs, or is what it was, or a complete checkpoint of it exists; the store is
//! whole; nothing is frozen or lies about; and the error has a cause.
//!
//! The suite takes a few calls of each command. `make campaign` takes as long as it is told, by
//! `SECONDS` and `SEED`.

mod calls;
mod tracer;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ocicle::store::manifest::{Manifest, Trust};

use crate::support::{
    Bundle, Control, DEADLINE, Dice, Machine, Shim, doors, try_run, wait_for_guardians,
};
use tracer::{Fault, Run, errors_of};

/// How many faults of each command the suite tries; the campaign goes on until its time is over.
const FEW: usize = 4;

const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::Fail(Errno::EIO),
    Fault::Fail(Errno::ENOSPC),
    Fault::Stop(Duration::from_secs(1)),
    Fault::Fail(Errno::EMFILE),
    Fault::Fail(Errno::ENOMEM),
    Fault::Fail(Errno::EINTR),
    Fault::ShortWrite,
];

/// How much is tried, and with what luck.
struct Effort {
    dice: Dice,
    end: Option<Instant>,
    tries: usize,
    survived: BTreeMap<String, usize>,
}

impl Effort {
    fn of_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
        let end = number("OCICLE_CAMPAIGN_SECONDS")
            .map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let seed = number("OCICLE_CAMPAIGN_SEED").unwrap_or(1);
        Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            end,
            tries: 0,
            survived: BTreeMap::new(),
        }
    }

    fn goes_on(&self) -> bool {
        self.end.map_or(self.tries < FEW, |end| Instant::now() < end)
    }

    /// A fault, and the number of the call from which on it comes.
    fn choose(&mut self, counted: &Run) -> (usize, Fault) {
        let fault = FAULTS[self.tries % FAULTS.len()];
        self.tries += 1;
        let possible: Vec<usize> =
            (0..counted.calls.len()).filter(|at| counted.calls[*at].can(fault)).collect();
        let at = possible.get(self.dice.below(possible.len().max(1)));
        (at.copied().unwrap_or_default(), fault)
    }

    fn note(&mut self, fault: Fault) {
        *self.survived.entry(format!("{fault:?}")).or_default() += 1;
    }
}

impl Drop for Effort {
    fn drop(&mut self) {
        println!("{} faults, survived: {:?}", self.tries, self.survived);
    }
}

/// A journal that is checkpointed and restored.
struct Subject<'m> {
    machine: &'m Machine,
    bundle: &'m Bundle<'m>,
    control: Control,
}

impl<'m> Subject<'m> {
    fn new(machine: &'m Machine, bundle: &'m Bundle<'m>) -> Self {
        let container = bundle.run();
        container.wait_for("/data/ready");
        let control = container.control("/data");
        std::mem::forget(container);
        Self { machine, bundle, control }
    }

    fn ocicle(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.ocicle();
        command.args(arguments).args(self.machine.variant().criu_flags());
        command
    }

    fn checkpoint(&self, flags: &[&str]) -> Command {
        let mut command =
            self.ocicle(&["checkpoint", self.bundle.id(), "--file-locks", "--keep", "2"]);
        command.args(flags);
        command
    }

    fn restore(&self) -> Command {
        self.ocicle(&["restore", self.bundle.id()])
    }

    fn versions(&self) -> Vec<String> {
        let listed = try_run(self.machine.ocicle().args(["list", "--quiet"])).unwrap();
        listed.lines().map(str::to_owned).collect()
    }

    /// Runs a command without a fault.
    fn run(&self, command: &Command) {
        let run = tracer::run(command, None);
        assert_eq!(run.status, 0, "{}", said());
    }

    /// Whether the container runs.
    fn lives(&self) -> bool {
        let state = try_run(
            self.machine.runtime(Shim::Bare, &self.bundle.log()).args(["state", self.bundle.id()]),
        );
        state.is_ok_and(|state| state.contains("\"running\""))
    }

    /// The container goes on, or comes back from a checkpoint; and all that is kept is whole.
    fn survives(&self, what: &str, before: u64) {
        wait_for_guardians();
        for version in self.versions() {
            let (_, number) = version.rsplit_once('@').unwrap();
            let directory = self.machine.store().join(self.bundle.id()).join(number);
            Manifest::read(&directory)
                .and_then(|manifest| manifest.verify(&directory, Trust::Nothing))
                .unwrap_or_else(|error| panic!("{what}: {version}: {error:#}"));
        }
        if !self.lives() {
            assert!(
                !self.versions().is_empty(),
                "{what}: LOST: it does not run, and nothing is kept"
            );
            let again = tracer::run(&self.restore(), None);
            assert_eq!(again.status, 0, "{what}: LOST: it cannot be restored: {}", said());
        }
        let container = self.bundle.adopt();
        assert!(!container.is_frozen(), "{what}: it is frozen");
        std::mem::forget(container);
        self.goes_on(what, before);
        // That of a restore that was killed is removed by whoever opens the next.
        assert!(doors().len() < 2, "{what}: {:?}", doors());
    }

    /// The journal counts on, in its database too.
    fn goes_on(&self, what: &str, before: u64) {
        let begin = Instant::now();
        while self.counter() <= before {
            assert!(begin.elapsed() < DEADLINE, "{what}: it does not go on");
        }
        assert_eq!(self.control.status()["db_check"], "ok", "{what}");
    }

    fn counter(&self) -> u64 {
        self.control.status()["counter"].as_u64().unwrap()
    }

    /// Ends the container, as a command before has not.
    fn end(&self) {
        if self.lives() {
            self.bundle.end();
        }
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        if self.lives() {
            drop(self.bundle.adopt());
        }
        let _ = fs::remove_file(errors_of());
    }
}

fn said() -> String {
    fs::read_to_string(errors_of()).unwrap_or_default()
}

/// Whoever fails says why, unless he was killed or has no memory to say it.
fn assert_told(run: &Run, fault: Fault, what: &str) {
    let may_be_silent = matches!(fault, Fault::Kill | Fault::Fail(Errno::ENOMEM));
    if run.status != 0 && !may_be_silent {
        let said = said();
        // Before ocicle's first instruction the dynamic loader speaks for it.
        let is_cause = |line: &&str| {
            line.starts_with("error: ") || line.contains("error while loading shared libraries")
        };
        let cause = said.lines().find(is_cause);
        assert!(cause.is_some(), "{what}: status {}, and no cause: {said}", run.status);
    }
}

/// Has a command go wrong, again and again. `begin` makes ready for it, and says how far the journal is
/// that must not be lost.
fn campaign(subject: &Subject<'_>, begin: impl Fn() -> u64, command: impl Fn() -> Command) {
    let mut effort = Effort::of_environment();
    let mut before = begin();
    let counted = tracer::run(&command(), None);
    assert_eq!(counted.status, 0, "{}", said());
    subject.survives("nothing happens", before);
    while effort.goes_on() {
        before = begin();
        let (at, fault) = effort.choose(&counted);
        let run = tracer::run(&command(), Some((at, fault)));
        let what = format!("{fault:?} at {at} of {}, {:?}", counted.calls.len(), run.struck);
        println!("{what}: status {}", run.status);
        assert_told(&run, fault, &what);
        subject.survives(&what, before);
        effort.note(fault);
    }
    subject.run(&subject.checkpoint(&["--leave-running"]));
    assert_eq!(doors(), Vec::<String>::new());
}

on_each_runtime!(faults_in_a_live_checkpoint, |machine| {
    let bundle = machine.bundle("live").args(["workload", "journal", "/data"]).make();
    let subject = Subject::new(machine, &bundle);
    campaign(&subject, || subject.counter(), || subject.checkpoint(&["--leave-running"]));
});

on_each_runtime!(faults_in_a_checkpoint_that_stops, |machine| {
    let bundle = machine.bundle("stop").args(["workload", "journal", "/data"]).make();
    let subject = Subject::new(machine, &bundle);
    campaign(&subject, || subject.counter(), || subject.checkpoint(&[]));
});

on_each_runtime!(faults_in_a_restore, |machine| {
    let bundle = machine.bundle("restore").args(["workload", "journal", "/data"]).make();
    let subject = Subject::new(machine, &bundle);
    subject.run(&subject.checkpoint(&[]));
    subject.run(&subject.restore());
    let kept = subject.counter();
    subject.run(&subject.checkpoint(&[]));
    let begin = || {
        subject.end();
        kept
    };
    campaign(&subject, begin, || subject.restore());
});
