//! Below podman: its own commands, unchanged, with the bare runtime and with ocicle.
//!
//! What podman itself gets wrong is shown with the bare runtime, in the same test.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Counts in memory, in a log of the image's file system and in one of a volume.
const COUNT: &str = "echo changed > /etc/conf; exec 3>/log 4>/vol/log; i=0; \
    while :; do i=$((i+1)); echo $i >&3; echo $i >&4; done";

/// podman with a store of its own, with one image and one runtime.
struct Podman {
    runtime: &'static str,
    scratch: PathBuf,
}

impl Podman {
    /// In the testbed `/etc` and podman's store are this process's own.
    fn new(runtime: &'static str, real: &str) -> Self {
        let scratch = std::env::var_os("OCICLE_SCRATCH").expect("this test runs in the testbed");
        let podman = Self { runtime, scratch: scratch.into() };
        fs::create_dir_all("/etc/ocicle").unwrap();
        fs::write("/etc/ocicle/ocicle.toml", format!("runtime = \"{real}\"\n")).unwrap();
        let drop_in = fs::read_to_string("config/podman/ocicle.conf").unwrap();
        fs::create_dir_all("/etc/containers/containers.conf.d").unwrap();
        fs::write("/etc/containers/containers.conf.d/ocicle.conf", drop_in).unwrap();
        let installed = Path::new("/usr/local/bin/ocicle-runtime");
        let _ = fs::remove_file(installed);
        symlink(env!("CARGO_BIN_EXE_ocicle-runtime"), installed).unwrap();
        podman.import();
        podman
    }

    fn import(&self) {
        let image = self.scratch.join("image");
        for directory in ["bin", "etc", "proc", "dev", "sys", "tmp", "run", "vol"] {
            fs::create_dir_all(image.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
        for name in ["sh", "cat", "ls", "awk"] {
            let _ = symlink("busybox", image.join("bin").join(name));
        }
        fs::write(image.join("etc/conf"), "original\n").unwrap();
        let tar = self.scratch.join("image.tar");
        let mut pack = Command::new("tar");
        assert!(
            pack.arg("-C").arg(&image).arg("-cf").arg(&tar).arg(".").status().unwrap().success()
        );
        self.run(&["import", tar.to_str().unwrap(), "counter"]);
    }

    fn call(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("podman");
        command.args(["--runtime", self.runtime]).args(arguments);
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1").stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("$ podman {}\n{said}", arguments.join(" "));
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(said)
        }
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        self.call(arguments).unwrap_or_else(|said| panic!("{said}"))
    }

    fn start(&self) {
        // Else podman's own group stays, in the roots of the hierarchies.
        let group = format!("/{}-podman", std::env::var("OCICLE_TESTBED_ID").unwrap());
        let options = ["--network", "none", "--pids-limit=0", "--cgroup-parent", &group];
        let command = ["--volume", "data:/vol", "counter", "sh", "-c", COUNT];
        let run = ["run", "--detach", "--name", "counter"];
        self.run(&[&run[..], &options, &command].concat());
        while self.lines("/vol/log") < 100 {}
    }

    fn exec(&self, arguments: &[&str]) -> String {
        self.run(&[&["exec", "counter"], arguments].concat())
    }

    fn lines(&self, log: &str) -> u64 {
        let count = self.exec(&["awk", "END { print NR }", log]);
        count.trim().parse().unwrap()
    }

    /// Whether a log counts up by one, line for line, from its start to its end.
    fn is_consistent(&self, log: &str) -> bool {
        let program = "$1 != NR { if (!wrong) print NR \": \" $0; wrong = 1 }";
        // The last line may just be written.
        let wrong = self.exec(&["awk", program, log]);
        wrong.is_empty()
    }

    fn archive(&self) -> String {
        self.scratch.join("counter.tar.zst").to_str().unwrap().to_owned()
    }

    /// Checkpoints the running container to an archive, and removes it and its volume.
    fn export(&self) {
        self.start();
        self.run(&["container", "checkpoint", "--leave-running", "-e", &self.archive(), "counter"]);
        self.run(&["rm", "-f", "-t", "0", "counter"]);
        self.run(&["volume", "rm", "data"]);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for arguments in [
            ["rm", "-f", "-t", "0", "-a"].as_slice(),
            &["volume", "rm", "-a", "-f"],
            &["rmi", "-f", "-a"],
        ] {
            let _ = self.call(arguments);
        }
        let _ = fs::remove_dir_all(self.scratch.join("image"));
        for name in ["image.tar", "counter.tar.zst"] {
            let _ = fs::remove_file(self.scratch.join(name));
        }
    }
}

fn archive_of_a_live_container_is_restored(real: &str) {
    let podman = Podman::new("ocicle-runtime", real);
    podman.export();
    let archive = podman.archive();
    podman.run(&["container", "restore", "-i", &archive]);
    assert_eq!(podman.exec(&["cat", "/etc/conf"]), "changed\n", "a file of the image");
    assert!(podman.is_consistent("/log"), "the log and memory agree");
    assert!(podman.is_consistent("/vol/log"), "the volume and memory agree");
    let before = podman.lines("/log");
    while podman.lines("/log") == before {}

    // A second instance would get the first one's volume, which is being written.
    let second = ["container", "restore", "-i", &archive, "-n", "second", "--ignore-volumes"];
    let refused = podman.call(&second).unwrap_err();
    assert!(refused.contains("/vol is in use"), "{refused}");
    podman.call(&["rm", "-f", "-t", "0", "second"]).ok();
    assert!(podman.is_consistent("/vol/log"));
    podman.run(&["rm", "-f", "-t", "0", "counter"]);
    podman.run(&second);
    podman.run(&["rm", "-f", "-t", "0", "second"]);
}

#[test]
fn runc_archive_of_a_live_container_is_restored() {
    archive_of_a_live_container_is_restored("runc");
}

#[test]
fn the_bare_runtime_does_not_restore_it() {
    let podman = Podman::new("runc", "runc");
    podman.export();
    let restored = podman.call(&["container", "restore", "-i", &podman.archive()]);
    let consistent = restored.is_ok()
        && podman.exec(&["cat", "/etc/conf"]) == "changed\n"
        && podman.is_consistent("/log")
        && podman.is_consistent("/vol/log");
    assert!(!consistent, "podman has learnt it: this test and the README can go");
}

/// Restores in place, and tells whether a file made after the checkpoint is gone.
fn restores_in_place_without_what_came_since(podman: &Podman) -> bool {
    podman.start();
    podman.run(&["container", "checkpoint", "counter"]);
    let root = podman.run(&["mount", "counter"]);
    let since = Path::new(root.trim()).join("since");
    fs::write(&since, "").unwrap();
    podman.run(&["container", "restore", "counter"]);
    assert!(podman.is_consistent("/log") && podman.is_consistent("/vol/log"));
    let gone = !since.exists();
    podman.run(&["umount", "counter"]);
    gone
}

#[test]
fn runc_restore_in_place_removes_what_came_since() {
    assert!(restores_in_place_without_what_came_since(&Podman::new("ocicle-runtime", "runc")));
    assert!(!restores_in_place_without_what_came_since(&Podman::new("runc", "runc")));
}

#[test]
fn ordinary_commands_are_the_real_runtimes() {
    let podman = Podman::new("ocicle-runtime", "runc");
    podman.start();
    assert!(podman.run(&["ps", "--format", "{{.Names}} {{.Status}}"]).starts_with("counter Up"));
    podman.run(&["pause", "counter"]);
    podman.run(&["unpause", "counter"]);
    assert!(
        podman.run(&["inspect", "--format", "{{.State.Status}}", "counter"]).contains("running")
    );
    assert!(
        podman
            .run(&["stats", "--no-stream", "--format", "{{.Name}}", "counter"])
            .contains("counter")
    );
    podman.run(&["stop", "-t", "0", "counter"]);
    podman.run(&["start", "counter"]);
    podman.run(&["logs", "counter"]);
}

/// A container with a terminal, which answers what is typed there; checkpointed by podman, to an
/// archive.
fn checkpoint_one_with_a_terminal(podman: &Podman) {
    let group = format!("/{}-podman", std::env::var("OCICLE_TESTBED_ID").unwrap());
    let options = ["--network", "none", "--pids-limit=0", "--cgroup-parent", &group];
    let text = "exec 3>/log; echo $$ >&3; while read -r line; do echo got $line; done";
    let run = ["run", "--tty", "--detach", "--name", "answers"];
    podman.run(&[&run[..], &options, &["counter", "sh", "-c", text]].concat());
    while podman.run(&["exec", "answers", "cat", "/log"]).is_empty() {}
    podman.run(&["container", "checkpoint", "-e", &podman.archive(), "answers"]);
}

/// What a descriptor of the container's first process is.
fn descriptor(podman: &Podman, number: u32) -> String {
    let pid = podman.run(&["inspect", "--format", "{{.State.Pid}}", "answers"]);
    let link = fs::read_link(format!("/proc/{}/fd/{number}", pid.trim())).unwrap();
    link.display().to_string()
}

#[test]
fn runc_the_callers_terminal_reaches_a_container_through_podman() {
    let podman = Podman::new("ocicle-runtime", "runc");
    checkpoint_one_with_a_terminal(&podman);
    let ours = nix::pty::openpty(None, None).unwrap();
    let side = || Stdio::from(ours.slave.try_clone().unwrap());
    let mut session = Command::new("setsid");
    session.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_ocicle"), "with", "-t", "--", "podman"]);
    session.args(["--runtime", "ocicle-runtime", "container", "restore", "answers"]);
    session.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
    let status = session.stdin(side()).stdout(side()).stderr(side()).status().unwrap();
    let mut master = fs::File::from(ours.master);
    master.write_all(b"hello\n").unwrap();
    let mut seen = String::new();
    while !seen.contains("got hello") {
        let mut bytes = [0; 256];
        let count = master.read(&mut bytes).unwrap_or_else(|error| panic!("{error}: {seen}"));
        seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(status.success(), "{seen}");
    assert_eq!(descriptor(&podman, 1), "/dev/tty");
    assert!(podman.run(&["ps"]).contains("answers"));
}

#[test]
fn runc_what_is_configured_for_a_name_or_an_image_holds_below_podman() {
    let podman = Podman::new("ocicle-runtime", "runc");
    checkpoint_one_with_a_terminal(&podman);
    for (whom, becomes) in [
        ("container = 'answers'", "/dev/null"),
        ("image = 'counter'", "/dev/null"),
        ("container = 'counter'", "/log"),
        ("container = 'ans*'\nimage = '**/other'", "/log"),
    ] {
        let text = format!("runtime = 'runc'\n[[substitute]]\n{whom}\nrule = '/log=null'\n");
        fs::write("/etc/ocicle/ocicle.toml", text).unwrap();
        podman.run(&["rm", "-f", "-t", "0", "answers"]);
        podman.run(&["container", "restore", "-i", &podman.archive()]);
        assert_eq!(descriptor(&podman, 3), becomes, "{whom}");
    }
    podman.run(&["rm", "-f", "-t", "0", "answers"]);
    fs::write("/etc/ocicle/ocicle.toml", "runtime = 'runc'\n").unwrap();
    // A name that podman knows, for a restore that is not below the command.
    let pipes = ["go", "done"].map(|name| podman.scratch.join(name));
    for pipe in &pipes {
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    }
    let [go, done] = pipes.each_ref().map(|pipe| pipe.display());
    let podmans = "podman --runtime ocicle-runtime container restore -i";
    let text = format!("read _ <{go}; {podmans} {} >/dev/null; echo $? >{done}", podman.archive());
    let mut daemon = Command::new("bash").args(["-c", &text]).spawn().unwrap();
    let mut with = Command::new(env!("CARGO_BIN_EXE_ocicle"));
    with.args(["with", "--container", "answers", "-s", "/log=null", "--", "bash", "-c"]);
    let status = with.arg(format!("echo >{go}; exit $(cat {done})")).status().unwrap();
    assert!(daemon.wait().unwrap().success() && status.success());
    assert_eq!(descriptor(&podman, 3), "/dev/null");
    pipes.iter().for_each(|pipe| fs::remove_file(pipe).unwrap());
}
