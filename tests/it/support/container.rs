//! Containers that end with the test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::bundle::Bundle;
use super::machine::{run, try_run};
use super::wait::{DEADLINE, poll_for, wait_for_exit, wait_for_file};

/// A container; killed, deleted and its cgroups removed on drop.
pub struct Container<'b> {
    bundle: &'b Bundle<'b>,
    pid: i32,
}

impl<'b> Container<'b> {
    #[track_caller]
    pub(super) fn run(bundle: &'b Bundle<'b>, output: Stdio) -> Self {
        let pid_file = bundle.dir().join("pid");
        let mut command = runtime(bundle);
        command.args(["run", "--detach", "--pid-file"]).arg(&pid_file);
        command.arg("--bundle").arg(bundle.dir()).arg(bundle.id());
        // Should it fail, the guard clears away what there is of it.
        let mut container = Container { bundle, pid: 0 };
        call(bundle, &mut command, output).unwrap_or_else(|failure| panic!("{failure}"));
        container.pid = read_pid(&pid_file);
        container
    }

    pub(super) fn restore(
        bundle: &'b Bundle<'b>,
        images: &Path,
        flags: &[&str],
    ) -> Result<Self, String> {
        let pid_file = bundle.dir().join("pid");
        let mut command = runtime(bundle);
        command.args(["restore", "--detach", "--pid-file"]).arg(&pid_file);
        command.arg("--bundle").arg(bundle.dir());
        command.arg("--image-path").arg(images).arg("--work-path").arg(bundle.work());
        command.args(bundle.machine.variant().criu_flags()).args(flags).arg(bundle.id());
        let mut container = Container { bundle, pid: 0 };
        call(bundle, &mut command, Stdio::null())?;
        container.pid = read_pid(&pid_file);
        Ok(container)
    }

    pub(super) fn adopt(bundle: &'b Bundle<'b>) -> Self {
        let mut container = Container { bundle, pid: 0 };
        let pid = container.state()["pid"].as_i64().expect("a process");
        container.pid = i32::try_from(pid).unwrap();
        container
    }

    /// Its first process, as seen from the test.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn bundle(&self) -> &Bundle<'b> {
        self.bundle
    }

    /// What the runtime's `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        let text = run(runtime(self.bundle).arg("state").arg(self.bundle.id()));
        serde_json::from_str(&text).expect("the runtime's state is JSON")
    }

    /// The `status` of the runtime's `state`: running, paused, stopped.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("a status").to_owned()
    }

    /// Runs a command inside and returns what it printed.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> String {
        run(runtime(self.bundle).arg("exec").arg(self.bundle.id()).args(args))
    }

    /// Waits until the container has made a file.
    #[track_caller]
    pub fn wait_for(&self, inside: &str) {
        wait_for_file(&self.bundle.path(inside), self.pid);
    }

    /// Calls `checkpoint`; returns how long the call took, or what the runtime said.
    pub fn checkpoint(&self, images: &Path, flags: &[&str]) -> Result<Duration, String> {
        let mut command = runtime(self.bundle);
        command.arg("checkpoint").arg("--image-path").arg(images);
        command.arg("--work-path").arg(self.bundle.work());
        command.args(self.bundle.machine.variant().criu_flags()).args(flags);
        let start = Instant::now();
        call(self.bundle, command.arg(self.bundle.id()), Stdio::null())?;
        Ok(start.elapsed())
    }

    /// Freezes the container as someone outside would, through its cgroup.
    #[track_caller]
    pub fn freeze(&self) {
        self.write_freezer("FROZEN", "1");
        // Version 1 raises no event, and the kernel needs microseconds under either.
        poll_for("the cgroup does not freeze", || self.is_frozen().then_some(()));
    }

    pub fn thaw(&self) {
        self.write_freezer("THAWED", "0");
    }

    /// What the kernel says of the cgroup: no process in it runs.
    pub fn is_frozen(&self) -> bool {
        if self.bundle.machine.variant().has_cgroup2() {
            let events = fs::read_to_string(self.freezer().join("cgroup.events"));
            events.is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
        } else {
            let state = fs::read_to_string(self.freezer().join("freezer.state"));
            state.is_ok_and(|state| state.trim() == "FROZEN")
        }
    }

    /// The container's cgroup in the hierarchy with the freezer.
    pub fn freezer(&self) -> PathBuf {
        self.bundle.machine.freezer(self.bundle.id())
    }

    /// The processes in the container's cgroup.
    pub fn processes(&self) -> Vec<i32> {
        let list = fs::read_to_string(self.freezer().join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The control socket of the journal workload in a directory of the container.
    pub fn control(&self, inside: &str) -> Control {
        Control { socket: self.bundle.path(inside).join("control") }
    }

    /// Ends the container and removes it, as Drop does, but for reading the outcome.
    pub fn kill(self) {}

    fn write_freezer(&self, v1: &str, v2: &str) {
        let (file, value) = if self.bundle.machine.variant().has_cgroup2() {
            ("cgroup.freeze", v2)
        } else {
            ("freezer.state", v1)
        };
        let _ = fs::write(self.freezer().join(file), value);
    }

    fn kill_processes(&self) {
        let processes = self.processes();
        for pid in &processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // Killed first, thawed then: no process of it runs again.
        self.thaw();
        for pid in processes {
            wait_for_exit(pid);
        }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.kill_processes();
        let id = self.bundle.id();
        let _ = try_run(runtime(self.bundle).args(["delete", "--force", id]));
        for cgroup in self.bundle.machine.cgroups(id) {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// Asks a workload, one line for one line.
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// A workload's control socket, seen from outside.
    pub fn at(socket: PathBuf) -> Control {
        Control { socket }
    }

    #[track_caller]
    pub fn ask(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("connecting to the workload");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        writeln!(stream, "{request}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("an answer of the workload");
        answer.trim_end().to_owned()
    }

    /// The journal's `status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let answer = self.ask("status");
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("no status: {answer}"))
    }
}

fn runtime(bundle: &Bundle<'_>) -> Command {
    bundle.machine.runtime(bundle.shim, &bundle.log())
}

/// Runs a command of which a container may inherit the standard streams: they are /dev/null, for
/// a pipe would stay open as long as the container. What it has to say is in the log.
fn call(bundle: &Bundle<'_>, command: &mut Command, output: Stdio) -> Result<(), String> {
    let before = fs::read_to_string(bundle.log()).unwrap_or_default().len();
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let log = fs::read_to_string(bundle.log()).unwrap_or_default();
    Err(format!("{command:?}: {status}\n{}", log.get(before..).unwrap_or_default()))
}

fn read_pid(file: &Path) -> i32 {
    fs::read_to_string(file).expect("the pid file").trim().parse().expect("a process id")
}
