//! Commands run by a shell that opens descriptors for them, or at a terminal of their own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// A command in a shell that says how it is run: `exec "$@" 9<>file`.
pub fn in_shell(command: &Command, how: &str) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", how, "bash"]);
    behind(shell, command)
}

/// `ocicle with`, its options, and behind it a command that causes a restore.
pub fn lending(options: &[&str], command: &Command) -> Command {
    let mut with = Command::new(env!("CARGO_BIN_EXE_ocicle"));
    with.arg("with").args(options).arg("--");
    behind(with, command)
}

/// A command as the last words of another.
fn behind(mut first: Command, command: &Command) -> Command {
    first.arg(command.get_program()).args(command.get_args());
    first.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    first
}

/// The processes that have a file open: `NUMBER PROGRAM`.
pub fn holders(file: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let numbers = processes.filter(|path| path.join("fd").exists() && !path.is_symlink());
    let holds = |process: &PathBuf| {
        let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        fds.map(|fd| fs::read_link(fd.path())).any(|link| link.is_ok_and(|link| link == file))
    };
    let name = |process: PathBuf| {
        let program = fs::read_to_string(process.join("comm")).unwrap_or_default();
        format!("{} {}", process.file_name().unwrap().display(), program.trim())
    };
    numbers.filter(holds).map(name).collect()
}

/// A terminal at which a command was run.
pub struct Terminal {
    master: File,
}

impl Terminal {
    /// Runs a command to its end in a session of its own with a new terminal.
    pub fn run(command: &Command) -> (ExitStatus, Self) {
        let pair = nix::pty::openpty(None, None).unwrap();
        let side = || Stdio::from(pair.slave.try_clone().unwrap());
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]);
        let mut session = behind(session, command);
        let status = session.stdin(side()).stdout(side()).stderr(side()).status().unwrap();
        (status, Self { master: File::from(pair.master) })
    }

    /// Types at it.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until it has shown a text.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            let mut bytes = [0; 256];
            let count =
                self.master.read(&mut bytes).unwrap_or_else(|error| panic!("{error}: {seen}"));
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
}
