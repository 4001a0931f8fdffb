//! `ocicle with`: what a caller lends reaches a restore that somebody else runs, and no other one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{
    self, Machine, Probe, Shim, Terminal, Told, in_shell, run, status_of, wait_for_exit,
    wait_for_file,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The shim's restore with nothing of the caller's: neither environment nor descriptors.
fn restore(probe: &Probe<'_>) -> Vec<OsString> {
    let (machine, bundle) = (probe.machine, &probe.bundle);
    let runtime = machine.runtime(Shim::Ocicle, &bundle.log());
    let mut words: Vec<OsString> = ["env", "-i"].into_iter().map(OsString::from).collect();
    let path = std::env::var("PATH").unwrap();
    words.push(format!("PATH={path}").into());
    words.push(format!("OCICLE_RUNTIME={}", machine.variant().runtime()).into());
    words.push(runtime.get_program().to_owned());
    words.extend(runtime.get_args().map(OsString::from));
    words.extend(["restore", "--detach", "--image-path"].map(OsString::from));
    words.push(bundle.dir().join("images").into());
    words.extend(["--work-path".into(), bundle.work().into()]);
    words.extend(["--bundle".into(), bundle.dir().into()]);
    words.extend(machine.variant().criu_flags().iter().map(OsString::from));
    words.push(bundle.id().into());
    words
}

/// `ocicle with`, its options, and a command.
fn with(machine: &Machine, options: &[&str], command: &[OsString]) -> Command {
    let mut ocicle = machine.ocicle();
    ocicle.arg("with").args(options).arg("--").args(command);
    ocicle
}

fn words(text: &str) -> Vec<OsString> {
    ["bash", "-c", text].into_iter().map(OsString::from).collect()
}

/// The same command with descriptors 9 and 10 closed for it.
fn without_descriptors(command: &[OsString]) -> Vec<OsString> {
    let mut closed = words("exec \"$@\" 9<&- 10<&-");
    closed.push("bash".into());
    closed.extend_from_slice(command);
    closed
}

fn sockets() -> Vec<PathBuf> {
    let entries = fs::read_dir("/run/ocicle/with").into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

on_each_runtime!(descriptors_and_rules_reach_a_restore_below, |machine| {
    let builder =
        machine.bundle("probe").annotation("org.ocicle.substitute", "/data/other=fd:feed");
    let probe = Probe::checkpointed_by_shim(machine, builder);
    let (lent, feed) = (probe.bundle.dir().join("lent"), probe.bundle.dir().join("feed"));
    fs::write(&lent, "lent").unwrap();
    fs::write(&feed, "fed by name").unwrap();
    let rules = [probe.rule("file", "fd:9"), probe.rule("locked", "closed")];
    let options = ["-s", &rules[0], "-s", &rules[1]];
    let command = with(machine, &options, &without_descriptors(&restore(&probe)));
    let names = "LISTEN_FDNAMES=:::::::feed LISTEN_FDS=8 LISTEN_PID=$$";
    let mut named = Command::new("bash");
    named.args(["-c", &format!("export {names}; exec \"$@\""), "bash"]);
    named.arg(command.get_program()).args(command.get_args());
    let opened = format!("9<>{} 10<>{}", lent.display(), feed.display());
    let mut shell = in_shell(&named, &format!("exec \"$@\" {opened}"));
    assert_eq!(status_of(&mut shell), (0, String::new(), String::new()));
    let _container = probe.bundle.adopt();
    assert_eq!(probe.ask("read", "file"), "\"lent\"");
    assert_eq!(probe.ask("read", "locked"), "EBADF");
    assert_eq!(probe.ask("read", "other"), "\"fed by name\"", "an annotation's descriptor too");
    assert_eq!(probe.ask("write more", "file"), "4");
    assert_eq!(fs::read_to_string(&lent).unwrap(), "lentmore");
    assert_eq!(sockets(), Vec::<PathBuf>::new());
});

on_each_runtime!(the_terminal_reaches_a_restore_below, |machine| {
    let probe = Probe::checkpointed_by_shim(machine, machine.bundle("probe"));
    let refused = with(machine, &["-t"], &restore(&probe)).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("tty=tty: this command has no terminal"), "{said}");
    // A session of its own for the restore too, as conmon makes one.
    let mut command: Vec<OsString> = vec!["setsid".into(), "--wait".into()];
    command.extend(restore(&probe));
    let (status, mut terminal) = Terminal::run(&with(machine, &["-t"], &command));
    assert!(status.success());
    let _container = probe.bundle.adopt();
    assert_eq!(probe.ask("write through-the-terminal", "terminal"), "20");
    terminal.shows("through-the-terminal");
    terminal.type_in("typed\n");
    assert_eq!(probe.ask("read", "terminal"), "\"typed\\n\"");
});

/// A daemon: it was there before, and restores when it is told to. It tells when it has ended.
fn daemon(probe: &Probe<'_>) -> (Child, Vec<OsString>) {
    let (go, done) = (probe.bundle.dir().join("go"), probe.bundle.dir().join("done"));
    for pipe in [&go, &done] {
        let _ = fs::remove_file(pipe);
        run(Command::new("mkfifo").arg(pipe));
    }
    let text = format!(
        "read _ <{}; \"$@\" </dev/null >/dev/null 2>&1; echo $? >{}",
        go.display(),
        done.display()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &text, "bash"]).args(restore(probe));
    let client = format!("echo >{}; exit $(cat {})", go.display(), done.display());
    (command.spawn().unwrap(), words(&client))
}

on_each_runtime!(a_daemon_gets_it_for_the_container_that_was_named, |machine| {
    let probe = Probe::checkpointed_by_shim(machine, machine.bundle("probe"));
    let lent = probe.bundle.dir().join("lent");
    fs::write(&lent, "lent").unwrap();
    let rule = probe.rule("file", "fd:9");
    let opened = format!("exec \"$@\" 9<>{}", lent.display());
    let mut told = Told::new(machine);
    for (what, options, status) in [
        ("not named", &["-s", &rule][..], 125),
        ("another name", &["-s", &rule, "--container", "another"], 125),
        ("named", &["-s", &rule, "--container", probe.bundle.id()], 0),
    ] {
        let (mut restorer, client) = daemon(&probe);
        let command = with(machine, options, &client);
        let (ended, _, text) = status_of(&mut in_shell(&command, &opened));
        assert!(restorer.wait().unwrap().success());
        assert_eq!(ended, status, "{what}: {text}");
        let _container = probe.bundle.adopt();
        if status == 0 {
            assert_eq!((probe.ask("read", "file").as_str(), text.as_str()), ("\"lent\"", ""));
        } else {
            assert_eq!(probe.ask("read", "file"), "\"456789\"", "{what}: it is what it was");
            told.add(what, &text);
        }
    }
    told.compare("with-daemon");
});

on_each_runtime!(it_is_lent_once, |machine| {
    let bundle = machine.bundle("hold").args(["workload", "hold", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let mut command = machine.checkpoint(&[bundle.id(), "--leave-running", "--file-locks"]);
    run(&mut command);
    let mut forecast = machine.ocicle();
    forecast.args(["restore", "--dry-run", "--format", "json", bundle.id()]);
    let mut twice = words("\"$@\" >\"$FIRST\" && \"$@\" >\"$SECOND\"");
    twice.push("bash".into());
    twice.push(forecast.get_program().to_owned());
    twice.extend(forecast.get_args().map(OsString::from));
    let files = ["first", "second"].map(|name| bundle.dir().join(name));
    let rule = "1:3=null";
    let mut command = with(machine, &["-s", rule], &twice);
    run(command.env("FIRST", &files[0]).env("SECOND", &files[1]));
    let origins: [Vec<String>; 2] = files.map(|file| {
        let forecast: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let files = forecast["files"].as_array().unwrap().clone();
        files
            .iter()
            .filter_map(|file| Some(file["substitute"]["from"].as_str()?.to_owned()))
            .collect()
    });
    assert_eq!(origins, [vec!["`ocicle with`".to_owned()], Vec::new()]);

    // Root in a pid namespace of its own may be a container's.
    let mut inside: Vec<OsString> =
        ["unshare", "--pid", "--fork", "--mount-proc"].map(OsString::from).to_vec();
    inside.extend_from_slice(&twice[4..]);
    let mut command = with(machine, &["-s", rule, "--container", bundle.id()], &inside);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("inside a container, asked for what is lent"), "{said}");
    assert!(!String::from_utf8(output.stdout).unwrap().contains("ocicle with"));
});

#[test]
fn status_signals_and_what_is_said() {
    support::on_machine(support::Variant::RuncV1, |machine| {
        let status = |text: &str| {
            let output = with(machine, &[], &words(text)).output().unwrap();
            output.status.code().unwrap()
        };
        assert_eq!([status("exit 7"), status("kill -TERM $$"), status("exit 0")], [7, 143, 125]);

        let mut told = Told::new(machine);
        let mut refused = |what: &str, options: &[&str], command: &[&str], expected: i32| {
            let words: Vec<OsString> = command.iter().map(OsString::from).collect();
            let mut command = with(machine, options, &words);
            assert_eq!(command.output().unwrap().status.code(), Some(expected), "{what}");
            told.refused(what, &mut command);
        };
        refused("nobody came", &["-s", "1:3=null"], &["true"], 125);
        refused("nobody of that name came", &["--container", "web"], &["true"], 125);
        refused("it fails, and nobody came", &["-s", "1:3=null"], &["false"], 1);
        refused("no such program", &[], &["/nowhere/at/all"], 127);
        refused("no program", &[], &["/etc/passwd"], 126);
        refused("no terminal", &["-t"], &["true"], 125);
        refused("a closed descriptor", &["-s", "1:3=fd:77"], &["true"], 125);
        refused("no such name", &["-s", "1:3=fd:web"], &["true"], 125);
        refused("a wrong rule", &["-s", "1:3=tape:0"], &["true"], 125);
        told.compare("with");

        let ready = machine.scratch().join("ready");
        let text = format!("trap 'exit 9' TERM; : >{}; while :; do wait; done", ready.display());
        let mut child = with(machine, &[], &words(&text)).stderr(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        wait_for_file(&ready, pid);
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9), "it got the signal, and ended by itself");
        fs::remove_file(ready).unwrap();
        assert_eq!(sockets(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_killed_lender_takes_its_command_along_and_is_cleared_away() {
    support::on_machine(support::Variant::RuncV1, |machine| {
        let pid_file = machine.scratch().join("pid");
        let text = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000", pid_file.display());
        let mut child = with(machine, &[], &words(&text)).spawn().unwrap();
        wait_for_file(&pid_file, i32::try_from(child.id()).unwrap());
        let command = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        assert_eq!(sockets().len(), 1);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        wait_for_exit(command);
        assert_eq!(sockets().len(), 1, "nobody was there to remove it");
        let _ = with(machine, &[], &words("exit 0")).stderr(Stdio::null()).status().unwrap();
        assert_eq!(sockets(), Vec::<PathBuf>::new());
        fs::remove_file(pid_file).unwrap();
    });
}
