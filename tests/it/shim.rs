//! The shim in front of a runtime is the runtime, but for checkpoint and restore.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    Bundle, Machine, Shim, outcome, run, status_of, try_run, wait_for_exit, wait_for_program,
};
use regex::Regex;

/// What a call of a runtime came to.
#[derive(Debug, PartialEq)]
struct Answer {
    call: String,
    status: i32,
    output: String,
    errors: String,
    log: String,
}

/// One life of a container, call by call.
struct Life<'a> {
    machine: &'a Machine,
    bundle: &'a Bundle<'a>,
    shim: Shim,
    answers: Vec<Answer>,
}

impl<'a> Life<'a> {
    fn call(&mut self, arguments: &[&str]) {
        let log = self.bundle.log();
        let _ = fs::remove_file(&log);
        let mut command = self.machine.runtime(self.shim, &log);
        command.args(arguments).current_dir(self.bundle.dir());
        let (status, output, errors) = status_of(&mut command);
        let log = fs::read_to_string(&log).unwrap_or_default();
        self.answers.push(Answer {
            call: self.plain(&arguments.join(" ")),
            status,
            output: self.plain(&output),
            errors: self.plain(&errors),
            log: self.plain(&log),
        });
    }

    /// Without names, paths, process numbers, times and counts. Of a container's statistics no
    /// more than that there are some: the runtime leaves out what is zero.
    fn plain(&self, text: &str) -> String {
        let runtime = self.machine.variant().runtime();
        let text =
            Regex::new(&format!(r"(/usr)?/s?bin/{runtime}\b")).unwrap().replace_all(text, runtime);
        let text = text.replace(self.bundle.id(), "ID");
        let text = text.replace("\\/", "/").replace(self.bundle.dir().to_str().unwrap(), "BUNDLE");
        let text = Regex::new(r#""data":\{"cpu":.*"#).unwrap().replace_all(&text, "STATISTICS");
        let text = Regex::new(r"[0-9][0-9.:TZ+-]*").unwrap().replace_all(&text, "N").into_owned();
        Regex::new(r"[ \t]+").unwrap().replace_all(&text, " ").into_owned()
    }
}

fn life(machine: &Machine, shim: Shim, name: &str) -> Vec<Answer> {
    let bundle = machine.bundle(name).shim(shim).args(["tail", "-f", "/dev/null"]).make();
    let id = bundle.id();
    for (name, config) in [("empty", None), ("broken", Some("{")), ("absent", Some("{}"))] {
        fs::create_dir(bundle.dir().join(name)).unwrap();
        config
            .inspect(|text| fs::write(bundle.dir().join(name).join("config.json"), text).unwrap());
    }
    let mut life = Life { machine, bundle: &bundle, shim, answers: Vec::new() };
    for call in [
        &["--version"][..],
        &["--help"],
        &["features"],
        &["checkpoint", "--help"],
        &["restore", "--help"],
        &["restore", "--lsm-mount-context"],
        &["restore"],
        &["frobnicate"],
        &["--frobnicate", "state", id],
        &["state"],
        &["state", "--frobnicate", id],
        &["state", id],
        &["delete", id],
        &["create", id, "--frobnicate"],
        &["create", "--bundle", "/nonexistent", id],
        &["create", "--pid-file", "/nonexistent/pid", id],
        &["create", "--console-socket", "/nonexistent/socket", id],
        &["create", "--bundle", "empty", id],
        &["create", "--bundle", "broken", id],
        &["create", "--bundle", "absent", id],
        &["start", id],
        &["start"],
        &["exec", id, "true"],
        &["exec"],
        &["ps", id],
        &["pause", id],
        &["resume", id],
        &["kill", id],
        &["update", "--pids-limit", "100", id],
        &["events", "--stats", id],
        &["delete", "--force", id],
        &["spec", "--bundle", "empty"],
        &["spec", "--bundle", "empty"],
        &["create", id],
        &["create", id],
        &["state", id],
        &["start", id],
        &["start", id],
        &["state", id],
        &["list"],
        &["list", "--quiet"],
        &["list", "--format", "json"],
        &["list", "--frobnicate"],
        &["ps", id],
        &["ps", "--format", "json", id],
        &["run", "--detach", id],
        &["events", "--stats", id],
        &["update", "--frobnicate", id],
        &["exec", id],
        &["exec", "--user", "12:34", id, "id"],
        &["exec", "--cwd", "/nonexistent", id, "true"],
        &["exec", "--env", "A=b c", id, "env"],
        &["exec", "--process", "/nonexistent", id],
        &["exec", id, "echo", "inside"],
        &["exec", id, "sh", "-c", "echo outside >&2; exit 7"],
        &["exec", id, "/no/such/program"],
        &["delete", id],
        &["pause", id],
        &["state", id],
        &["exec", id, "true"],
        &["resume", id],
        &["resume", id],
        &["kill", id, "FROBNICATE"],
        &["kill", id, "0"],
        &["kill", "--all", id, "0"],
        &["kill", id, "KILL"],
    ] {
        let init = (*call == ["kill", id, "KILL"]).then(|| init_of(machine, &bundle)).flatten();
        life.call(call);
        if *call == ["start", id] {
            // What was started is the runtime's own program for a moment.
            init_of(machine, &bundle).into_iter().for_each(|pid| wait_for_program(pid, "tail"));
        }
        init.into_iter().for_each(wait_for_exit);
    }
    for call in [&["state", id][..], &["delete", id], &["delete", id], &["delete", "--force", id]] {
        life.call(call);
    }
    life.answers
}

fn init_of(machine: &Machine, bundle: &Bundle<'_>) -> Option<i32> {
    let log = bundle.dir().join("other.log");
    let state = try_run(machine.runtime(Shim::Bare, &log).args(["state", bundle.id()])).ok()?;
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    i32::try_from(state["pid"].as_i64()?).ok()
}

on_each_runtime!(a_life_call_by_call, |machine| {
    let bare = life(machine, Shim::Bare, "bare");
    let shimmed = life(machine, Shim::Ocicle, "shim");
    assert_eq!(bare.len(), shimmed.len());
    for (bare, shimmed) in bare.iter().zip(&shimmed) {
        assert_eq!(bare.output, shimmed.output, "the output of {}", bare.call);
        assert_eq!(bare, shimmed);
    }
    let find = |call: &str| bare.iter().find(|answer| answer.call == call).unwrap();
    assert!(
        find("checkpoint --help").status == 0 && find("exec ID echo inside").output == "inside\n"
    );
    assert!(find("restore --lsm-mount-context").status != 0 && find("frobnicate").status != 0);
});

/// A runtime that says how it was called, and becomes the real one if there is one to become.
fn spy(directory: &Path, real: Option<&str>) -> PathBuf {
    let program = directory.join("spy");
    let calls = directory.join("calls");
    let then = real.map_or("exit 42".to_owned(), |real| format!("exec {real} \"$@\""));
    let text = format!(
        "#!/bin/sh\n{{ echo \"pid $$\"; for argument; do echo \"argument $argument\"; done\n\
         echo \"marker $MARKER\"; }} >>{}\nls /proc/$$/fd >{}\n{then}\n",
        calls.display(),
        directory.join("fds").display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn take_calls(directory: &Path) -> Vec<String> {
    let calls = fs::read_to_string(directory.join("calls")).unwrap_or_default();
    let _ = fs::remove_file(directory.join("calls"));
    calls.lines().map(str::to_owned).collect()
}

on_each_runtime!(what_is_handed_on_is_untouched, |machine| {
    let directory = machine.state_root().join("spy");
    fs::create_dir(&directory).unwrap();
    let spy = spy(&directory, None);
    let file = File::create(directory.join("file")).unwrap();
    for call in [
        &["--root", "/r", "--log-format=json", "state", "web"][..],
        &["--debug", "create", "--bundle", "/b", "--preserve-fds", "4", "web"],
        &["checkpoint", "--pre-dump", "--image-path", "/nonexistent", "web"],
        &["checkpoint", "--image-path", "/i", "--page-server", "1.2.3.4:5", "web"],
        &["restore", "--image-path", "/nonexistent", "--frobnicate", "a b", "web"],
        &["checkpoint"],
        &["unknown", "", "with blanks", "--", "-s", "x"],
        &[],
    ] {
        // Through sh, which opens descriptors 3, 4 and 9 for it.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 4</dev/null 9</dev/null", "sh"]);
        shell.arg(env!("CARGO_BIN_EXE_ocicle-runtime")).args(call);
        shell.env("OCICLE_RUNTIME", &spy).env("MARKER", "one two");
        shell.stdin(Stdio::null()).stdout(file.try_clone().unwrap());
        let mut child = shell.spawn().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42), "{call:?}");
        let mut expected = vec![format!("pid {}", child.id())];
        expected.extend(call.iter().map(|argument| format!("argument {argument}")));
        expected.push("marker one two".to_owned());
        assert_eq!(take_calls(&directory), expected);
        // What the shell of the spy opens for itself is 10 and more, or 255.
        let fds = fs::read_to_string(directory.join("fds")).unwrap();
        let mut low: Vec<&str> = fds.lines().filter(|fd| fd.len() == 1).collect();
        low.sort_unstable();
        assert_eq!(low, ["0", "1", "2", "4", "9"], "{call:?}: {fds}");
    }
    fs::remove_dir_all(directory).unwrap();
});

on_each_runtime!(flags_of_a_checkpoint_reach_the_runtime, |machine| {
    let bundle =
        machine.bundle("hold").shim(Shim::Ocicle).args(["workload", "hold", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let directory = machine.state_root().join("spy");
    fs::create_dir(&directory).unwrap();
    let real = run(Command::new("sh")
        .arg("-c")
        .arg(format!("command -v {}", machine.variant().runtime())));
    let spy = spy(&directory, Some(real.trim()));
    let images = bundle.images("images");
    let call = |flags: &[&str]| {
        let mut shim = machine.runtime(Shim::Ocicle, &bundle.log());
        shim.args(["--debug", "--log-format", "json", "checkpoint", "--image-path"]).arg(&images);
        shim.arg("--work-path").arg(bundle.work()).arg("--leave-running");
        shim.args(machine.variant().criu_flags()).args(flags).arg(bundle.id());
        let (success, _, errors) = outcome(shim.env("OCICLE_RUNTIME", &spy));
        let calls: Vec<String> = take_calls(&directory)
            .into_iter()
            .filter_map(|line| Some(line.strip_prefix("argument ")?.to_owned()))
            .collect();
        let begin = calls.iter().position(|word| word == "checkpoint").unwrap_or_default();
        let globals = calls[..begin].iter().rposition(|word| word == "--root").unwrap_or_default();
        (success, errors, calls[globals..].join(" "))
    };
    let (success, errors, called) = call(&["--file-locks", "--ext-unix-sk"]);
    assert!(success, "{errors}");
    let root = machine.state_root().display().to_string();
    // Its log is ocicle's, which hands it on.
    let globals = format!("--root {root} --log /run/ocicle/door-");
    let (start, rest) = called.split_once("/runtime-log ").unwrap();
    assert!(start.starts_with(&globals), "{called}");
    assert!(rest.starts_with("--debug --log-format json checkpoint "), "{called}");
    assert!(fs::read_to_string(bundle.log()).unwrap().contains("\"level\""), "what it logged");
    assert!(
        called.contains(" --leave-running ") && called.contains(" --file-locks --ext-unix-sk ")
    );

    let (success, errors, called) = call(&["--frobnicate=7"]);
    assert!(!success && called.contains(" --frobnicate=7 "), "{called}");
    assert!(errors.contains("frobnicate"), "the runtime's own words: {errors}");
    assert_eq!(container.status(), "running");
    assert!(!images.join("ocicle-manifest.json").exists());
    fs::remove_dir_all(directory).unwrap();
});

on_each_runtime!(a_wrong_setting_stops_no_other_command, |machine| {
    let runtime = machine.variant().runtime();
    let config = machine.state_root().with_file_name("ocicle.toml");
    let call = |settings: &str, arguments: &[&str]| {
        fs::write(&config, settings).unwrap();
        let mut shim = Command::new(env!("CARGO_BIN_EXE_ocicle-runtime"));
        shim.env("OCICLE_CONFIG", &config).env_remove("OCICLE_RUNTIME");
        outcome(shim.args(arguments))
    };
    let newer = format!("runtime = \"{runtime}\"\nof-a-newer-version = 1\n");
    let checkpoint = ["checkpoint", "--image-path", "/nonexistent", "web"];
    assert_eq!(call(&newer, &["--version"]).1, run(Command::new(runtime).arg("--version")));
    let (made, _, errors) = call(&newer, &checkpoint);
    assert!(!made && errors.contains("of-a-newer-version"), "{errors}");
    // Which runtime is meant cannot be known.
    let (success, _, errors) = call("runtime = ", &["--version"]);
    assert!(!success && errors.contains("ocicle.toml"), "{errors}");
    fs::remove_file(config).unwrap();
});

on_each_runtime!(it_never_calls_itself, |machine| {
    let shim = env!("CARGO_BIN_EXE_ocicle-runtime");
    let directory = machine.state_root().join("path");
    fs::create_dir(&directory).unwrap();
    let runtime = machine.variant().runtime();
    let expected = run(Command::new(runtime).arg("--version"));
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let version = |named: Option<&str>| {
        let mut command = Command::new(shim);
        command.arg("--version").env("PATH", &path).env_remove("OCICLE_RUNTIME");
        if let Some(named) = named {
            command.env("OCICLE_RUNTIME", named);
        }
        outcome(&mut command)
    };
    // A link, then a copy, of the name of a runtime, first on PATH.
    symlink(shim, directory.join(runtime)).unwrap();
    assert_eq!(version(Some(runtime)).1, expected);
    fs::remove_file(directory.join(runtime)).unwrap();
    fs::copy(shim, directory.join(runtime)).unwrap();
    assert_eq!(version(Some(runtime)).1, expected);
    for name in ["crun", "runc"] {
        let _ = fs::remove_file(directory.join(name));
        symlink(shim, directory.join(name)).unwrap();
    }
    let (success, output, errors) = version(None);
    assert!(success && output.contains("version"), "{errors}");
    for named in [shim, env!("CARGO_BIN_EXE_ocicle"), directory.join("runc").to_str().unwrap()] {
        let (success, output, errors) = version(Some(named));
        assert!(!success && output.is_empty());
        assert!(errors.contains("is ocicle itself"), "{errors}");
    }
    fs::remove_dir_all(directory).unwrap();
});
