//! podman, with a store of its own, in front of the bare runtime or of ocicle.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::image::image;
use super::machine::{Machine, Shim, Variant, run};
use super::told::status_of;
use super::wait::DEADLINE;

/// The only name that the tests' image has.
pub const IMAGE: &str = "localhost/counter";

/// A program of awk's that prints the first line of a log which does not count up by one, but for the
/// last line: that may be half written.
pub const WRONG_LINE: &str =
    "NR > 1 && last != NR - 1 { print NR - 1 \": \" last; exit } { last = $1 }";

/// The one store, the one configuration: who has this, has them. Test processes have separate ones.
pub(super) static STORE: Mutex<()> = Mutex::new(());

/// podman with one image and one runtime.
pub struct Podman<'m> {
    machine: &'m Machine,
    runtime: PathBuf,
    _store: MutexGuard<'static, ()>,
}

impl<'m> Podman<'m> {
    /// Installs ocicle as its documentation says, and imports the image.
    pub fn new(machine: &'m Machine, shim: Shim) -> Self {
        let store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = match shim {
            Shim::Bare => bare_runtime(machine),
            Shim::Ocicle => install(machine),
        };
        let podman = Self { machine, runtime, _store: store };
        fs::create_dir(podman.directory()).unwrap();
        let tar = podman.directory().join("image.tar");
        // podman's own export passes over what the machine itself does not have.
        let conf = podman.directory().join("etc/conf");
        fs::create_dir(conf.parent().unwrap()).unwrap();
        fs::write(conf, "original\n").unwrap();
        let mut pack = Command::new("tar");
        pack.arg("-cf").arg(&tar).arg("-C").arg(image()).arg(".");
        run(pack.arg("-C").arg(podman.directory()).arg("./etc/conf"));
        let command = ["--change", "CMD [\"/bin/tail\", \"-f\", \"/dev/null\"]"];
        podman
            .run(&[&["import", "--quiet"], &command[..], &[tar.to_str().unwrap(), IMAGE]].concat());
        fs::remove_file(tar).unwrap();
        podman
    }

    /// A command of podman.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--runtime").arg(&self.runtime).args(arguments);
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        command
    }

    /// Runs a command of podman to its end: its exit status, its output, its errors.
    pub fn outcome(&self, arguments: &[&str]) -> (i32, String, String) {
        let (status, output, errors) = status_of(&mut self.command(arguments));
        println!("$ podman {}: {status}\n{output}{errors}", arguments.join(" "));
        (status, output, errors)
    }

    /// What it printed, or what it said when it failed.
    pub fn call(&self, arguments: &[&str]) -> Result<String, String> {
        match self.outcome(arguments) {
            (0, output, _) => Ok(output),
            (_, _, errors) => Err(errors),
        }
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        self.call(arguments).unwrap_or_else(|said| panic!("podman {arguments:?}: {said}"))
    }

    /// `podman run --detach --name NAME` with what the testbed needs, then `arguments`.
    #[track_caller]
    pub fn start(&self, name: &str, arguments: &[&str]) {
        let group = self.group();
        let run = ["run", "--detach", "--name", name, "--pids-limit=0", "--cgroup-parent", &group];
        self.run(&[&run[..], arguments].concat());
    }

    /// Runs a command in a container.
    #[track_caller]
    pub fn exec(&self, name: &str, arguments: &[&str]) -> String {
        self.run(&[&["exec", name], arguments].concat())
    }

    /// Waits until a file of the container has so many lines.
    #[track_caller]
    pub fn wait_for_lines(&self, name: &str, file: &str, count: u64) {
        let begin = Instant::now();
        while self.lines(name, file) < count {
            assert!(begin.elapsed() < DEADLINE, "{file} has not got {count} lines");
        }
    }

    #[track_caller]
    pub fn lines(&self, name: &str, file: &str) -> u64 {
        let program = format!("[ -e {file} ] && wc -l <{file} || echo 0");
        self.exec(name, &["sh", "-c", &program]).trim().parse().unwrap()
    }

    /// Whether a file of the container counts up by one, line for line.
    #[track_caller]
    pub fn counts(&self, name: &str, file: &str) -> bool {
        self.exec(name, &["awk", WRONG_LINE, file]).is_empty()
    }

    /// Removes a container, however it is.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.run(&["rm", "-f", "-t", "0", name]);
    }

    /// A file of this test that is removed with it.
    pub fn file(&self, name: &str) -> String {
        self.directory().join(name).to_str().unwrap().to_owned()
    }

    fn directory(&self) -> PathBuf {
        self.machine.state_root().join("podman")
    }

    /// Where podman puts the control groups of its containers: else its own stays in the root.
    fn group(&self) -> String {
        format!("/{}", self.machine.unique("podman"))
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        for arguments in [
            ["rm", "-f", "-t", "0", "-a"].as_slice(),
            &["volume", "rm", "-a", "-f"],
            &["rmi", "-f", "-a"],
        ] {
            let _ = self.call(arguments);
        }
        self.machine.remove_cgroups(&self.group());
        let _ = fs::remove_dir_all(self.directory());
        let _ = fs::remove_dir_all(self.machine.state_root().join("bare"));
    }
}

/// Places `ocicle-runtime`, its configuration and podman's drop-in.
pub fn install(machine: &Machine) -> PathBuf {
    let mut configuration = format!("runtime = \"{}\"\n", machine.variant().runtime());
    if machine.variant() == Variant::CrunV2 {
        configuration += "[criu]\nmanage-cgroups-mode = \"ignore\"\n";
    }
    fs::create_dir_all("/etc/ocicle").unwrap();
    fs::write("/etc/ocicle/ocicle.toml", configuration).unwrap();
    fs::create_dir_all("/etc/containers/containers.conf.d").unwrap();
    fs::copy("config/podman/ocicle.conf", "/etc/containers/containers.conf.d/ocicle.conf").unwrap();
    let program = Path::new("/usr/local/bin/ocicle-runtime");
    let _ = fs::remove_file(program);
    symlink(env!("CARGO_BIN_EXE_ocicle-runtime"), program).unwrap();
    "ocicle-runtime".into()
}

/// The runtime itself; crun with what it needs here ([`Variant::criu_flags`]), by a wrapper that has
/// its name.
fn bare_runtime(machine: &Machine) -> PathBuf {
    let runtime = machine.variant().runtime();
    let flags = machine.variant().criu_flags().join(" ");
    if flags.is_empty() {
        return runtime.into();
    }
    let wrapper = machine.state_root().join("bare").join(runtime);
    fs::create_dir_all(wrapper.parent().unwrap()).unwrap();
    let real = run(Command::new("sh").args(["-c", &format!("command -v {runtime}")]));
    let real = real.trim();
    let text = format!(
        "#!/bin/bash\nfor word; do\n    arguments+=(\"$word\")\n    case $word in\n        \
         checkpoint | restore) arguments+=({flags}) ;;\n    esac\ndone\n\
         exec {real} \"${{arguments[@]}}\"\n"
    );
    fs::write(&wrapper, text).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    wrapper
}
