//! What a user is told, collected and compared with a golden file.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use regex::Regex;

use super::machine::Machine;

/// The errors of a test, in their order, as a text that reads like a session.
pub struct Told<'m> {
    machine: &'m Machine,
    text: String,
}

impl<'m> Told<'m> {
    pub fn new(machine: &'m Machine) -> Self {
        Told { machine, text: String::new() }
    }

    /// Runs a command of `ocicle` that has to fail: with one cause and one piece of advice, and
    /// nothing on its standard output.
    #[track_caller]
    pub fn refused(&mut self, what: &str, command: &mut Command) -> String {
        let (status, output, errors) = outcome(command);
        assert!(!status, "{what}: {command:?} did not fail: {output}{errors}");
        assert_eq!(output, "", "{what}");
        let lines_with =
            |start: &str| errors.lines().filter(|line| line.starts_with(start)).count();
        let counts = (lines_with("error: "), lines_with("hint: "));
        assert_eq!(counts, (1, 1), "{what}: {errors}");
        assert!(errors.starts_with("error: "), "{what}: {errors}");
        self.add(what, &errors);
        errors
    }

    /// Adds a text under a heading.
    pub fn add(&mut self, what: &str, text: &str) {
        self.text += &format!("# {what}\n{}\n", self.plain(text).trim_end());
        self.text.push('\n');
    }

    /// Compares everything with `tests/golden/NAME.snap`.
    #[track_caller]
    pub fn compare(self, name: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../golden");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, self.text));
    }

    /// Without what differs from run to run and from runtime to runtime.
    fn plain(&self, text: &str) -> String {
        let scratch = self.machine.scratch().display().to_string();
        let prefix = self.machine.unique("");
        let runtime = self.machine.variant().runtime();
        let mut text = text.replace(&prefix, "").replace(&scratch, "/scratch");
        for (pattern, replacement) in [
            (r"(/usr)?/s?bin/(runc|crun)\b", "/bin/RUNTIME"),
            (&format!(r"\b{runtime} (state|kill|checkpoint|restore|--root)\b"), "RUNTIME $1"),
            (r"container `\w+` does not exist: open .*", "container does not exist"),
            (r"\b[2-9]:(\d)", "P:$1"),
            (r"pipe:\[\d+\]", "pipe:[N]"),
            (r"(af_vsock|xdp|unix stream) \[\d+\]", "$1 [N]"),
            (r"\bnot \d+:", "not N:"),
            (r"/[^ ]*/(ocicle-runtime is ocicle)", "/target/$1"),
            (r"\b(process|PID) \d+", "$1 N"),
            (r"\bpid \d+ \((\w+)\) lives", "pid N ($1) lives"),
            (r"\b\d+ MiB", "N MiB"),
            (r"\b\d+ bytes", "N bytes"),
            (r"\bof pid [2-9]\b", "of pid P"),
            (r"door-\w+", "door"),
            (r"(failed to lookup address information): .*", "$1: WHY"),
            (r"\btcp:127\.0\.0\.1:[1-9]\d*", "tcp:127.0.0.1:PORT"),
            (r"127\.0\.0\.1:[1-9]\d{4}\b", "127.0.0.1:PORT"),
            (r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)", "TIME"),
        ] {
            text = Regex::new(pattern).unwrap().replace_all(&text, replacement).into_owned();
        }
        text
    }
}

/// Runs a command to its end: whether it succeeded, its standard output and its standard error.
pub fn outcome(command: &mut Command) -> (bool, String, String) {
    let (status, output, errors) = status_of(command);
    (status == 0, output, errors)
}

/// Runs a command to its end: its exit status, or 128 and the signal; its standard output and its
/// standard error. Both are files, as a container may inherit them: a pipe would stay open.
pub fn status_of(command: &mut Command) -> (i32, String, String) {
    let (mut output, mut errors) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null());
    command.stdout(output.try_clone().unwrap()).stderr(errors.try_clone().unwrap());
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    (status, content(&mut output), content(&mut errors))
}

fn content(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every container that `ocicle ps` lists.
pub fn listed(machine: &Machine) -> Vec<serde_json::Value> {
    let text = super::machine::run(machine.ocicle().args(["ps", "--format", "json"]));
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(all["schema"], 1);
    all["containers"].as_array().unwrap().clone()
}
