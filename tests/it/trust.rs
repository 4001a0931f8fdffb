//! Who may write which rule; that nothing is opened before all are accepted; and that nobody has what
//! was opened but the container.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{
    Machine, Probe, Terminal, Told, in_shell, outcome, restore_command, run, table,
};
use serde_json::{Value, json};

/// A checkpoint of the probe, and a file that came since: a restore removes it.
fn checkpointed(machine: &Machine) -> Probe<'_> {
    let probe = Probe::checkpointed(machine, machine.bundle("probe"));
    fs::write(probe.bundle.path("/data/since"), "").unwrap();
    probe
}

/// Whether the files are as they were before the restore.
fn is_untouched(probe: &Probe<'_>) -> bool {
    probe.bundle.path("/data/since").exists()
}

/// Writes these rules to annotations, in the place of what was there.
fn annotate(probe: &Probe<'_>, rules: &[String]) {
    probe.bundle.reconfigure(|config| {
        let named = rules.iter().enumerate();
        config["annotations"] =
            named.map(|(at, rule)| (format!("org.ocicle.substitute.{at}"), json!(rule))).collect();
    });
}

fn restore(probe: &Probe<'_>) -> Command {
    restore_command(&probe.bundle, probe.machine, &[""; 0])
}

/// The files with the configuration, and what it allows.
fn allow(probe: &Probe<'_>, text: &str) -> PathBuf {
    let config = probe.bundle.dir().join("ocicle.toml");
    fs::write(&config, format!("[allow]\n{text}\n")).unwrap();
    config
}

/// Services of the host that rules can name.
struct Host {
    tcp: TcpListener,
    unix: UnixListener,
    directory: PathBuf,
}

impl Host {
    fn new(probe: &Probe<'_>) -> Self {
        let directory = probe.bundle.dir().join("host");
        fs::create_dir(&directory).unwrap();
        let (lent, program) = (directory.join("lent"), directory.join("program"));
        fs::write(&lent, "lent by a program").unwrap();
        let workload = probe.bundle.path("/bin/workload");
        // It tells first which descriptors it has got.
        let text = format!(
            "#!/bin/sh\nls -l /proc/self/fd >{0}/has\nexec {1} lend {2}\n",
            directory.display(),
            workload.display(),
            lent.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.join("file"), "of the host").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(directory.join("service")).unwrap();
        tcp.set_nonblocking(true).unwrap();
        unix.set_nonblocking(true).unwrap();
        Self { tcp, unix, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// One rule for each source that needs leave.
    fn rules(&self, probe: &Probe<'_>) -> Vec<String> {
        let rule = |name: &str, source: String| format!("1:{}={source}", probe.fd(name));
        vec![
            rule("file", format!("file:{},pos=start", self.path("file"))),
            rule("other", format!("exec:{}", self.path("program"))),
            rule("unix-left", format!("unix:{}", self.path("service"))),
            rule("unix-right", format!("unix:{},listen", self.path("listening"))),
            rule("tcp-client", format!("tcp:{}", self.tcp.local_addr().unwrap())),
            rule("tcp-listener", "tcp:127.0.0.1:0,listen".to_owned()),
            "tty=tty".to_owned(),
        ]
    }

    /// Whether somebody has connected, or run the program, or made something.
    fn traces(&self) -> Vec<&'static str> {
        let is_there = |name: &str| self.directory.join(name).exists();
        let would_block = |kind: ErrorKind| kind == ErrorKind::WouldBlock;
        let seen = [
            ("a TCP connection", !self.tcp.accept().is_err_and(|e| would_block(e.kind()))),
            ("a unix connection", !self.unix.accept().is_err_and(|e| would_block(e.kind()))),
            ("the program has run", is_there("has")),
            ("a socket listens", is_there("listening")),
            ("a file is made", is_there("made")),
        ];
        seen.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect()
    }
}

on_each_runtime!(annotations_need_leave_for_each_source, |machine| {
    let probe = checkpointed(machine);
    let host = Host::new(&probe);
    let rules = host.rules(&probe);
    let mut told = Told::new(machine);
    let names = ["file", "exec", "unix", "unix to listen", "tcp", "tcp to listen", "tty"];
    for (name, rule) in names.iter().zip(&rules) {
        annotate(&probe, std::slice::from_ref(rule));
        told.refused(name, &mut restore(&probe));
        assert!(is_untouched(&probe), "{name}");
    }
    told.compare("leave");
    assert_eq!(host.traces(), Vec::<&str>::new());

    // What the hints say is enough, together.
    let allowed = format!(
        "files = [\"{0}\", \"/dev/tty\"]\nprograms = [\"{1}\"]\n\
         sockets = [\"unix:{2}\", \"unix:{3}\", \"tcp:{4}\", \"tcp:127.0.0.1:0\"]",
        host.path("file"),
        host.path("program"),
        host.path("service"),
        host.path("listening"),
        host.tcp.local_addr().unwrap(),
    );
    annotate(&probe, &rules);
    let mut command = restore(&probe);
    let (status, _terminal) = Terminal::run(command.env("OCICLE_CONFIG", allow(&probe, &allowed)));
    assert!(status.success());
    let read = |name: &str| probe.ask("read", name);
    assert_eq!([read("file"), read("other")], ["\"of the host\"", "\"lent by a program\""]);
    let traces = host.traces();
    assert_eq!(traces[..3], ["a TCP connection", "a unix connection", "the program has run"]);
    UnixStream::connect(host.path("listening")).unwrap();
    assert_eq!(probe.ask("write x", "terminal"), "1");
    probe.bundle.end();
});

on_each_runtime!(annotations_of_somebody_hostile, |machine| {
    let probe = checkpointed(machine);
    let mut told = Told::new(machine);
    let mut refuse = |what: &str, annotations: Value| {
        probe.bundle.reconfigure(|config| config["annotations"] = annotations);
        let said = told.refused(what, &mut restore(&probe));
        assert!(is_untouched(&probe), "{what}");
        let moves_the_cursor = |c: char| c.is_control() && c != '\n';
        assert!(!said.contains(moves_the_cursor) && !said.contains('\u{202e}'), "{what}: {said:?}");
        assert!(said.len() < 8 << 10, "{what}: {} bytes", said.len());
    };
    let long = format!("{}=null", "/a".repeat(7 << 10));
    refuse(
        "a rule of 17 KiB",
        json!({ "org.ocicle.substitute": format!("/{}=null", "a".repeat(17 << 10)) }),
    );
    let many: serde_json::Map<String, Value> =
        (0..20).map(|at| (format!("org.ocicle.substitute.{at}"), json!(long))).collect();
    refuse("280 KiB of them", Value::Object(many));
    let rules = |count: usize, between: &str| vec!["1:3=null"; count].join(between);
    refuse("1001 rules", json!({ "org.ocicle.substitute": rules(1001, ";") }));
    let two = json!({
        "org.ocicle.substitute.a": rules(501, "\n"), "org.ocicle.substitute.b": rules(501, ";"),
    });
    refuse("1002 in two annotations", two);
    let name = "org.ocicle.substitute.\u{1b}[2J\u{202e}x";
    refuse("a name that moves the cursor", json!({ name: "1:4=file:/etc/shadow" }));
    refuse("the same with what is no rule", json!({ name: "\u{202e}日本=\u{1b}[2J" }));
    refuse(
        "a path that moves it",
        json!({ "org.ocicle.substitute": "1:4=container:/data/\u{1b}[2J\u{202e}" }),
    );
    refuse("a program that does", json!({ "org.ocicle.substitute": "1:4=exec:/\u{7}\u{202e}x" }));
    refuse(
        "200 terms",
        json!({ "org.ocicle.substitute": format!("{}fd:3=nul", "fd:3 and ".repeat(200)) }),
    );
    refuse("a name with a zero byte", json!({ "org.ocicle.substitute": "1:4=fd:a\u{0}b" }));
    refuse("a path with one", json!({ "org.ocicle.substitute": "1:4=container:/data/new\\x00" }));
    told.compare("hostile");
});

// In the container, links are of its making; on the host, of whoever may write where a pattern allows.
on_each_runtime!(annotations_lead_through_no_link, |machine| {
    let bundle = machine.bundle("probe").args(["workload", "probe", "/data"]).make();
    let link = |target: &str, path: &str| symlink(target, bundle.path(path)).unwrap();
    fs::create_dir(bundle.path("/data/inside")).unwrap();
    fs::write(bundle.path("/data/inside/file"), "inside").unwrap();
    link("inside/file", "/data/to-a-file");
    link("inside", "/data/to-a-directory");
    link("/etc/passwd", "/data/out");
    std::mem::forget(bundle.run());
    let probe = Probe::of_running(machine, bundle);
    fs::write(probe.bundle.path("/data/since"), "").unwrap();
    let host = Host::new(&probe);
    symlink("file", host.path("to-a-file")).unwrap();
    symlink(".", host.path("to-a-directory")).unwrap();
    symlink("service", host.path("to-a-socket")).unwrap();
    let everything = "files = [\"/**\"]\nsockets = [\"unix:/**\"]";
    let mut told = Told::new(machine);
    for (name, source) in [
        ("file", "container:/data/to-a-file".to_owned()),
        ("file", "container:/data/to-a-directory/file".to_owned()),
        ("file", "container:/data/to-a-directory/new,create".to_owned()),
        ("file", "container:/data/out".to_owned()),
        ("file", format!("file:{}", host.path("to-a-file"))),
        ("file", format!("file:{}", host.path("to-a-directory/file"))),
        ("file", format!("file:{}", host.path("to-a-directory/new,create"))),
        ("unix-left", format!("unix:{}", host.path("to-a-socket"))),
        ("unix-left", format!("unix:{}", host.path("to-a-directory/service"))),
        ("unix-left", format!("unix:{},listen", host.path("to-a-directory/new"))),
    ] {
        annotate(&probe, &[probe.rule(name, &source)]);
        let mut command = restore(&probe);
        let what = source.replace(&host.directory.display().to_string(), "/host");
        told.refused(&what, command.env("OCICLE_CONFIG", allow(&probe, everything)));
        assert!(is_untouched(&probe), "{source}");
        assert_eq!(host.traces(), Vec::<&str>::new(), "{source}");
    }
    told.compare("links");
    // The administrator's rules may.
    let rules = [
        probe.rule("file", &format!("file:{},pos=start,rw", host.path("to-a-file"))),
        probe.rule("unix-left", &format!("unix:{}", host.path("to-a-socket"))),
    ];
    annotate(&probe, &[]);
    run(&mut restore_command(&probe.bundle, machine, &rules));
    assert_eq!(probe.ask("read", "file"), "\"of the host\"");
    assert_eq!(host.traces(), ["a unix connection"]);
    probe.bundle.end();
});

on_each_runtime!(nothing_is_opened_before_all_rules_are_accepted, |machine| {
    let probe = checkpointed(machine);
    let host = Host::new(&probe);
    let mut rules = host.rules(&probe);
    rules.truncate(5);
    rules[0] = format!("1:{}=file:{},create,rw", probe.fd("file"), host.path("made"));
    let everything =
        "files = [\"/**\"]\nprograms = [\"/**\"]\nsockets = [\"unix:/**\", \"tcp:**\"]";
    let wrong = [
        // Not allowed; means nothing; a descriptor that nobody gave.
        ("1:{locked}=tcp:192.0.2.1:1", everything.replace("tcp:**", "tcp:127.**")),
        ("1:4711=null", everything.to_owned()),
        ("1:{locked}=fd:77", everything.to_owned()),
    ];
    for (rule, allowed) in wrong {
        let rule = rule.replace("{locked}", &probe.fd("locked").to_string());
        annotate(&probe, &[rules.clone(), vec![rule.clone()]].concat());
        let trace = probe.bundle.dir().join("trace");
        let restore = restore(&probe);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-e", "trace=%file,%network", "-o"]).arg(&trace);
        traced.arg(restore.get_program()).args(restore.get_args());
        traced.env("OCICLE_RUNTIME", machine.variant().runtime());
        let (success, _, said) = outcome(traced.env("OCICLE_CONFIG", allow(&probe, &allowed)));
        assert!(!success, "{rule}");
        assert!(said.contains(&rule) || said.contains("192.0.2.1:1"), "{rule}: {said}");
        assert!(is_untouched(&probe), "{rule}");
        assert_eq!(host.traces(), Vec::<&str>::new(), "{rule}");
        let trace = fs::read_to_string(trace).unwrap();
        assert!(trace.contains("config.json"), "it is the trace of a restore");
        let named = host.directory.display().to_string();
        let opened: Vec<_> = trace.lines().filter(|line| line.contains(&named)).collect();
        assert!(opened.is_empty(), "{rule}: {opened:#?}");
        assert!(!trace.contains("192.0.2.1"), "{rule}");
    }
});

/// Every descriptor of every process, with what it refers to.
fn all_descriptors() -> BTreeMap<i32, BTreeMap<i64, String>> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let numbers = processes.filter_map(|name| name.to_str()?.parse::<i32>().ok());
    numbers
        .filter_map(|process| Some((process, descriptors(&format!("/proc/{process}/fd"))?)))
        .collect()
}

fn descriptors(directory: &str) -> Option<BTreeMap<i64, String>> {
    let entries = fs::read_dir(directory).ok()?;
    let link = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?.display().to_string();
        Some((entry.file_name().to_str()?.parse().ok()?, target))
    };
    // One is of the directory above, while it is read, and has another number each time.
    Some(entries.filter_map(link).filter(|(_, target)| target != "/proc").collect())
}

on_each_runtime!(nobody_has_what_was_opened_but_the_container, |machine| {
    let probe = checkpointed(machine);
    let host = Host::new(&probe);
    let hook = host.directory.join("hook");
    let text = format!("#!/bin/sh\nls -l /proc/self/fd >{}/hook-has\n", host.directory.display());
    fs::write(&hook, text).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    probe.bundle.reconfigure(|config| {
        let hooks = json!([{ "path": hook, "args": ["hook"] }]);
        config["hooks"] = json!({ "prestart": hooks, "createRuntime": hooks, "poststart": hooks });
    });
    let given = probe.bundle.dir().join("given");
    fs::write(&given, "given").unwrap();
    let rule = |name: &str, source: &str| probe.rule(name, source);
    let rules = [
        rule("file", "fd:9"),
        rule("other", &format!("exec:{}", host.path("program"))),
        rule("locked", "closed"),
        rule("tcp-client", &format!("file:{},rw", host.path("file"))),
        rule("unix-left", &format!("unix:{}", host.path("service"))),
        rule("unix-right", "reset"),
    ];
    let mut expected: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    let files = table(machine, &format!("{}@v1", probe.bundle.id()));
    let holders = |file: &Value| -> Vec<(i64, i64)> {
        let holders = file["holders"].as_array().unwrap().iter();
        holders.map(|one| (one["pid"].as_i64().unwrap(), one["fd"].as_i64().unwrap())).collect()
    };
    for file in files.iter().map(holders) {
        let is_closed = file.contains(&(1, probe.fd("locked")));
        for (pid, fd) in file.into_iter().filter(|_| !is_closed) {
            expected.entry(pid).or_default().insert(fd);
        }
    }
    let restore = restore_command(&probe.bundle, machine, &rules);
    let mut shell = in_shell(&restore, &format!("exec \"$@\" 9<>{}", given.display()));
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());

    let before = all_descriptors();
    assert!(shell.status().unwrap().success());
    let mut after = all_descriptors();
    let container = probe.bundle.adopt();
    let mut processes = container.processes();
    processes.sort_unstable();
    let inside: BTreeMap<_, _> =
        processes.iter().map(|pid| (*pid, after.remove(pid).unwrap())).collect();
    assert_eq!(after, before, "every other process is as it was, and there is no new one");

    // In the container are the descriptors of the checkpoint, and no other ones.
    let numbers: Vec<BTreeSet<i64>> =
        inside.values().map(|fds| fds.keys().copied().collect()).collect();
    assert_eq!(numbers, expected.into_values().collect::<Vec<_>>());
    let [first] = &inside.values().collect::<Vec<_>>()[..] else {
        panic!("one process: {inside:?}")
    };
    let holding = |path: &str| -> Vec<i64> {
        first.iter().filter(|(_, target)| *target == path).map(|(fd, _)| *fd).collect()
    };
    assert_eq!(holding(&given.display().to_string()), [probe.fd("file")]);
    assert_eq!(holding(&host.path("lent")), [probe.fd("other")]);
    assert_eq!(holding(&host.path("file")), [probe.fd("tcp-client")]);

    // What ran in between had its standard streams, and the program its socket.
    let opened = [given.display().to_string(), host.path("lent"), host.path("file")];
    for (who, file) in [("the program", "has"), ("a hook", "hook-has")] {
        let Ok(text) = fs::read_to_string(host.directory.join(file)) else {
            assert!(
                file == "hook-has" && machine.variant().runtime() == "crun",
                "{who} has not run"
            );
            continue;
        };
        assert!(opened.iter().all(|path| !text.contains(path)), "{who}: {text}");
        let sockets = text.lines().filter(|line| line.contains("socket:")).count();
        assert_eq!(sockets, usize::from(file == "has"), "{who}: {text}");
    }
    drop(container);
});
