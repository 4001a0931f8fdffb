//! What `fd:` in an annotation means: what a caller hands over as such, and nothing that happens to be
//! open.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use crate::support::{
    self, Probe, Shim, Terminal, Told, by_shell, in_shell, lending, restore_command,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use serde_json::json;

/// A checkpoint of the probe, with a file that came since, and what a caller has open.
struct Case<'m> {
    probe: Probe<'m>,
    lent: PathBuf,
}

impl<'m> Case<'m> {
    fn new(probe: Probe<'m>) -> Self {
        fs::write(probe.bundle.path("/data/since"), "").unwrap();
        let lent = probe.bundle.dir().join("lent");
        fs::write(&lent, "lent").unwrap();
        Self { probe, lent }
    }

    /// The one rule of the container's annotations.
    fn annotate(&self, name: &str, source: &str) {
        let rule = self.probe.rule(name, source);
        self.probe.bundle.reconfigure(|config| {
            config["annotations"] = json!({ "org.ocicle.substitute": rule });
        });
    }

    fn restore(&self, flags: &[&str]) -> Command {
        let mut command = restore_command(&self.probe.bundle, self.probe.machine, &[""; 0]);
        command.args(flags);
        command
    }

    /// With `lent` open as number 9, as in a shell.
    fn with_nine(&self, command: &Command) -> Command {
        in_shell(command, &format!("exec \"$@\" 9<>{}", self.lent.display()))
    }

    fn allowing(&self, command: &mut Command, file: &str) {
        let config = self.probe.bundle.dir().join("ocicle.toml");
        fs::write(&config, format!("[allow]\nfiles = ['{file}']\n")).unwrap();
        command.env("OCICLE_CONFIG", config);
    }

    #[track_caller]
    fn refused(&self, told: &mut Told<'_>, what: &str, command: &mut Command) {
        told.refused(what, command);
        assert!(self.probe.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    }

    /// Restored with what was lent, and ended again.
    #[track_caller]
    fn restored(&self, what: &str, command: &mut Command) {
        fs::write(self.probe.bundle.path("/data/since"), "").unwrap();
        by_shell(command, "exec \"$@\"").unwrap_or_else(|said| panic!("{what}: {said}"));
        assert_eq!(self.probe.ask("read", "file"), "\"lent\"", "{what}");
        self.probe.bundle.end();
    }
}

on_each_runtime!(only_what_is_handed_over_is_for_an_annotation, |machine| {
    let case = Case::new(Probe::checkpointed(machine, machine.bundle("probe")));
    let mut told = Told::new(machine);
    case.annotate("file", "fd:9");
    case.refused(&mut told, "open by chance", &mut case.with_nine(&case.restore(&[])));
    case.refused(&mut told, "and asked only", &mut case.with_nine(&case.restore(&["--dry-run"])));
    case.refused(&mut told, "another one", &mut case.with_nine(&case.restore(&["--lend", "8"])));
    case.annotate("file", "fd:feed");
    let named = &mut case.with_nine(&case.restore(&["--lend", "9"]));
    case.refused(&mut told, "a name without one", named);
    for number in 0..=2 {
        case.annotate("terminal", &format!("fd:{number}"));
        case.refused(&mut told, &format!("standard stream {number}"), &mut case.restore(&[]));
    }
    let (success, _, said) = support::outcome(&mut case.restore(&["--lend", "1"]));
    assert!(!success && said.contains("0 to 2 are the command's own streams"), "{said}");
    told.compare("handed");

    case.annotate("file", "fd:9");
    case.restored("--lend", &mut case.with_nine(&case.restore(&["--lend", "9"])));
});

// runc's numbers begin behind those of LISTEN_FDS (`runner.run` in its utils_linux.go).
on_each_runtime!(callers_of_the_runtime_hand_over_as_they_do, |machine| {
    let case = Case::new(Probe::checkpointed_by_shim(machine, machine.bundle("probe")));
    case.annotate("file", "fd:9");
    let shim = |flags: &[&str]| {
        let bundle = &case.probe.bundle;
        let mut runtime = machine.runtime(Shim::Ocicle, &bundle.log());
        runtime.args(["restore", "--detach", "--image-path"]).arg(bundle.dir().join("images"));
        runtime.arg("--work-path").arg(bundle.work()).arg("--bundle").arg(bundle.dir());
        runtime.args(machine.variant().criu_flags()).args(flags).arg(bundle.id());
        runtime
    };
    let listening = |command: &Command, count: usize| {
        let export = format!(
            "export LISTEN_PID=$$ LISTEN_FDS={count}; exec \"$@\" 9<>{}",
            case.lent.display()
        );
        in_shell(command, &export)
    };
    let refuse = |what: &str, mut command: Command| {
        let (success, _, said) = support::outcome(&mut command);
        assert!(!success && said.contains("fd 9 was not handed over for it"), "{what}: {said}");
        assert!(case.probe.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    };
    refuse("open by chance", case.with_nine(&shim(&[])));
    refuse("6 of LISTEN_FDS", listening(&shim(&[]), 6));
    refuse("6 preserved", case.with_nine(&shim(&["--preserve-fds", "6"])));
    case.restored("--lend", &mut case.with_nine(&shim(&["--lend=9"])));
    case.restored("7 of LISTEN_FDS", &mut listening(&shim(&[]), 7));
    case.restored("7 preserved", &mut case.with_nine(&shim(&["--preserve-fds", "7"])));
    case.restored("behind LISTEN_FDS", &mut listening(&shim(&["--preserve-fds=4"]), 3));
    // A rule of root's own means what it says.
    case.annotate("file", "null");
    let own = case.probe.rule("file", "fd:9");
    case.restored("-s", &mut case.with_nine(&shim(&["-s", &own])));
});

on_each_runtime!(a_lender_hands_over_what_it_names, |machine| {
    let case = Case::new(Probe::checkpointed_by_shim(machine, machine.bundle("probe")));
    case.annotate("file", "fd:9");
    let bundle = &case.probe.bundle;
    let mut restore = machine.runtime(Shim::Ocicle, &bundle.log());
    restore.args(["restore", "--detach", "--image-path"]).arg(bundle.dir().join("images"));
    restore.arg("--work-path").arg(bundle.work()).arg("--bundle").arg(bundle.dir());
    restore.args(machine.variant().criu_flags()).arg(bundle.id());
    let (success, _, said) = support::outcome(&mut case.with_nine(&lending(&[], &restore)));
    assert!(!success && said.contains("fd 9 was not handed over for it"), "{said}");
    assert!(bundle.path("/data/since").exists(), "nothing was changed");
    case.restored("--lend", &mut case.with_nine(&lending(&["--lend", "9"], &restore)));
    let (success, _, said) = support::outcome(&mut lending(&["--lend", "77"], &restore));
    assert!(!success && said.contains("--lend 77: fd 77 is not open"), "{said}");
});

on_each_runtime!(what_leads_further_needs_leave, |machine| {
    let case = Case::new(Probe::checkpointed(machine, machine.bundle("probe")));
    let mut told = Told::new(machine);
    let directory = case.probe.bundle.dir().join("beside");
    fs::create_dir(&directory).unwrap();
    let opened = format!("exec \"$@\" 9<{}", directory.display());
    case.annotate("file", "fd:9");
    let lent = || in_shell(&case.restore(&["--lend", "9"]), &opened);
    case.refused(&mut told, "a directory", &mut lent());
    let mut allowed = case.restore(&["--lend", "9"]);
    case.allowing(&mut allowed, directory.to_str().unwrap());
    case.refused(&mut told, "a directory with leave, for a file", &mut in_shell(&allowed, &opened));

    let place = rustix::fs::open(&case.lent, OFlags::PATH, Mode::empty()).unwrap();
    let number = handed_down(&place);
    case.annotate("file", &format!("fd:{number}"));
    let mut restore = case.restore(&["--lend", &number]);
    let said = support::outcome(&mut restore);
    assert!(!said.0 && said.2.contains("names a place /scratch"), "{}", said.2);
    assert!(case.probe.bundle.path("/data/since").exists(), "nothing was changed");

    case.annotate("terminal", "fd:9");
    let terminal = |allow: bool| {
        let mut command = case.restore(&["--lend", "9"]);
        if allow {
            case.allowing(&mut command, "/dev/tty");
        }
        Terminal::run(&in_shell(&command, "exec \"$@\" 9<>/dev/tty"))
    };
    let (status, mut shown) = terminal(false);
    assert!(!status.success());
    shown.shows("names the terminal /dev/tty, which needs the administrator's leave");
    assert!(case.probe.bundle.path("/data/since").exists(), "nothing was changed");
    let (status, _terminal) = terminal(true);
    assert!(status.success());
    assert_eq!(case.probe.ask("write x", "terminal"), "1");
    case.probe.bundle.end();
    told.compare("handed-places");
});

/// The number of a descriptor that the next program inherits.
fn handed_down(fd: &OwnedFd) -> String {
    rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
    fd.as_raw_fd().to_string()
}
