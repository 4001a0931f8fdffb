//! A checkpoint of the probe, which does with its open files what it is asked to.

use std::fs;

use serde_json::Value;

use super::bundle::{Bundle, BundleBuilder};
use super::container::{Container, Control};
use super::machine::{Machine, Shim, run};

/// A checkpoint of which nothing runs any more.
pub struct Probe<'m> {
    pub machine: &'m Machine,
    pub bundle: Bundle<'m>,
    numbers: Value,
}

impl<'m> Probe<'m> {
    /// Makes one in ocicle's store.
    pub fn checkpointed(machine: &'m Machine, builder: BundleBuilder<'m>) -> Self {
        let bundle = builder.args(["workload", "probe", "/data"]).make();
        let numbers = by_ocicle(machine, bundle.run());
        Self { machine, bundle, numbers }
    }

    /// The same of a container that somebody else has started.
    pub fn of_running(machine: &'m Machine, bundle: Bundle<'m>) -> Self {
        let numbers = by_ocicle(machine, bundle.adopt());
        Self { machine, bundle, numbers }
    }

    /// Makes one by the shim, as engines do, in `images` of the bundle.
    pub fn checkpointed_by_shim(machine: &'m Machine, builder: BundleBuilder<'m>) -> Self {
        let bundle = builder.shim(Shim::Ocicle).args(["workload", "probe", "/data"]).make();
        let container = bundle.run();
        let numbers = numbers(&container);
        let flags = ["--tcp-established", "--file-locks"];
        container.checkpoint(&bundle.images("images"), &flags).unwrap();
        container.kill();
        Self { machine, bundle, numbers }
    }

    /// The number of one of its descriptors.
    pub fn fd(&self, name: &str) -> i64 {
        self.numbers[name].as_i64().unwrap_or_else(|| panic!("{name}"))
    }

    /// A rule for one of the open files.
    pub fn rule(&self, name: &str, source: &str) -> String {
        format!("1:{}={source}", self.fd(name))
    }

    pub fn control(&self) -> Control {
        Control::at(self.bundle.path("/data/control"))
    }

    /// Asks for something to be done with an open file: `read`, `write TEXT`.
    pub fn ask(&self, what: &str, name: &str) -> String {
        let (verb, text) = what.split_once(' ').unwrap_or((what, ""));
        self.control().ask(format!("{verb} {} {text}", self.fd(name)).trim_end())
    }
}

fn by_ocicle(machine: &Machine, container: Container<'_>) -> Value {
    let numbers = numbers(&container);
    let mut command = machine.ocicle();
    command.args(["checkpoint", container.bundle().id(), "--tcp-established", "--file-locks"]);
    run(command.args(machine.variant().criu_flags()));
    container.kill();
    numbers
}

/// What the workload says when it is ready.
fn numbers(container: &Container<'_>) -> Value {
    container.wait_for("/data/ready");
    let numbers = fs::read(container.bundle().path("/data/fds.json")).unwrap();
    serde_json::from_slice(&numbers).unwrap()
}
