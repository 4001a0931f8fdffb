//! Open files are replaced at restore: exactly one each, and whoever shared it shares the other.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::support::{
    self, Bundle, Container, Machine, Probe, Shim, Terminal, Told, by_shell, holds, in_shell,
    restore, restore_command, run, table,
};
use serde_json::Value;

/// A checkpoint of a workload, of which nothing runs any more.
fn checkpoint(machine: &Machine, container: Container<'_>) {
    let mut command =
        machine.checkpoint(&[container.bundle().id(), "--leave-running", "--file-locks"]);
    run(&mut command);
    container.kill();
}

/// The numbers of the lines of a log, and who wrote them.
fn lines(path: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(path).unwrap();
    let parse = |line: &str| {
        let (writer, number) =
            line.split_once(' ').unwrap_or_else(|| panic!("a torn line: {line}"));
        (writer.to_owned(), number.parse().unwrap())
    };
    text.lines().map(parse).collect()
}

/// Waits until both have written: the journal answers between two turns.
fn wait_for_lines(bundle: &Bundle<'_>, path: &Path, at_least: usize) {
    let control = support::Control::at(bundle.path("/data/control"));
    while lines(path).len() < at_least {
        control.status();
    }
}

on_each_runtime!(a_shared_open_file_is_replaced_for_all_who_share_it, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    checkpoint(machine, container);
    let reference = format!("{}@v1", bundle.id());
    let files = table(machine, &reference);
    let log = files.iter().find(|file| holds(file, 1, 3)).unwrap();
    assert_eq!((&log["name"], log["holders"].as_array().unwrap().len()), (&"/data/log".into(), 2));

    let other = bundle.dir().join("other.log");
    let rule = format!("{},9", log["id"]);
    restore(&bundle, machine, &[&rule], &format!("9>{}", other.display())).unwrap();
    wait_for_lines(&bundle, &other, 6);
    let kept = lines(&bundle.path("/data/log"));
    let new = lines(&other);
    let numbers: Vec<u64> = kept.iter().chain(&new).map(|(_, number)| *number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "one position: {numbers:?}");
    assert!(["A", "B"].iter().all(|writer| new.iter().any(|(name, _)| name == writer)));
    let status = support::Control::at(bundle.path("/data/control")).status();
    assert_eq!(status["second_position"], 10, "the other opening is as it was");
    assert_eq!(lines(&bundle.path("/data/log")), kept);

    // Everything else is what it was.
    let same = |file: &&Value| !holds(file, 1, 3);
    let form = |file: &Value| {
        // A pipe is made anew, and has another inode.
        let name = file["name"].as_str().unwrap().split(":[").next().unwrap().to_owned();
        (name, file["type"].clone(), file["flags"].clone(), file["holders"].clone())
    };
    let before: Vec<_> = files.iter().filter(same).map(form).collect();
    let now = table(machine, bundle.id());
    let now: Vec<_> = now.iter().filter(same).map(form).collect();
    assert_eq!(now.len(), before.len());
    assert!(before.iter().all(|file| now.contains(file)), "{before:#?}\n{now:#?}");
    bundle.end();
});

on_each_runtime!(by_holder_and_by_annotation, |machine| {
    let bundle = machine
        .bundle("journal")
        .args(["workload", "journal", "/data"])
        .annotation("org.ocicle.substitute.second", "1:9=null")
        .make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    checkpoint(machine, container);
    let other = bundle.dir().join("other.log");
    fs::write(&other, "").unwrap();
    let files = table(machine, &format!("{}@v1", bundle.id()));
    let log = files.iter().find(|file| holds(file, 1, 3)).unwrap();
    let partner = &log["holders"][1];
    let rule = format!("{}:{}=file:{},append", partner["pid"], partner["fd"], other.display());
    restore(&bundle, machine, &[&rule], "").unwrap();
    wait_for_lines(&bundle, &other, 4);
    let now = table(machine, bundle.id());
    let replaced = now.iter().find(|file| holds(file, 1, 9)).unwrap();
    assert_eq!(replaced["name"], "/dev/null");
    bundle.end();
});

on_each_runtime!(every_rule_matches_exactly_one_open_file, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    checkpoint(machine, container);
    fs::write(bundle.path("/data/since"), "").unwrap();
    let mut told = Told::new(machine);
    for (rule, fd, expected) in [
        ("/data/log=null", "", "2"),
        ("4711=null", "", "4711"),
        ("1:77=null", "", "1:77"),
        ("/nowhere=null", "", "/nowhere"),
        ("1:3=fd:9", "", "fd 9 is not open"),
        ("1:3=fd:9", "9</dev/zero", "9"),
        ("1:3=", "", "1:3="),
        ("1:3=file:/nowhere/at/all", "", "/nowhere/at/all"),
    ] {
        let command = restore_command(&bundle, machine, &[rule]);
        let mut command = in_shell(&command, &format!("exec \"$@\" {fd}"));
        let said = told.refused(format!("{rule} {fd}").trim_end(), &mut command);
        assert!(said.contains(expected), "{rule}: {said}");
        assert!(bundle.path("/data/since").exists(), "nothing was changed");
    }
    told.compare("no-such-file");
});

on_each_runtime!(an_annotation_needs_leave_to_open_files_of_the_host, |machine| {
    let bundle = machine
        .bundle("journal")
        .shim(Shim::Ocicle)
        .args(["workload", "journal", "/data"])
        .annotation("org.ocicle.substitute", "1:3=file:/etc/shadow,ro")
        .make();
    let images = bundle.images("images");
    let container = bundle.run();
    container.wait_for("/data/ready");
    container.checkpoint(&images, &["--leave-running", "--file-locks"]).unwrap();
    drop(container);
    let refused = bundle.restore(&images, &["--file-locks"]).err().unwrap();
    assert!(refused.contains("[allow]") && refused.contains("/etc/shadow"), "{refused}");
});

on_each_runtime!(many_kinds_at_once, |machine| {
    let bundle = machine.bundle("hold").args(["workload", "hold", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let numbers: Value =
        serde_json::from_slice(&fs::read(bundle.path("/data/fds.json")).unwrap()).unwrap();
    checkpoint(machine, container);
    let replaced = ["file", "eventfd", "tcp-listener", "pipe-write", "deleted", "memfd", "timerfd"];
    let rules: Vec<String> = replaced
        .iter()
        .map(|name| {
            let file = bundle.dir().join(name);
            fs::write(&file, *name).unwrap();
            format!("1:{}=file:{},rw,pos=start", numbers[name], file.display())
        })
        .collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let before = table(machine, &format!("{}@v1", bundle.id()));
    restore(&bundle, machine, &rules, "").unwrap();
    let now = table(machine, bundle.id());
    let find = |files: &[Value], name: &str| {
        let fd = numbers[name].as_i64().unwrap();
        files.iter().find(|file| holds(file, 1, fd)).unwrap_or_else(|| panic!("{name}")).clone()
    };
    for (name, _) in numbers.as_object().unwrap() {
        let (was, is) = (find(&before, name), find(&now, name));
        assert_eq!(was["holders"], is["holders"], "{name}: whoever shared it shares it");
        let expected = replaced.iter().find(|replaced| find(&before, replaced)["id"] == was["id"]);
        match expected {
            Some(replaced) => {
                assert!(is["name"].as_str().unwrap().ends_with(replaced), "{name}: {is}");
            }
            None => assert_eq!(was["type"], is["type"], "{name}"),
        }
    }
    bundle.end();
});

fn rules(probe: &Probe<'_>, rules: &[(&str, &str)]) -> Vec<String> {
    rules.iter().map(|(name, source)| probe.rule(name, source)).collect()
}

fn restore_with(probe: &Probe<'_>, rules: &[String], fd: &str) -> Result<(), String> {
    restore(&probe.bundle, probe.machine, rules, fd)
}

fn read(probe: &Probe<'_>, name: &str) -> String {
    probe.ask("read", name)
}

fn write(probe: &Probe<'_>, name: &str, text: &str) -> String {
    probe.ask(&format!("write {text}"), name)
}

/// The open files but those of these names, as far as they stay the same.
fn others(probe: &Probe<'_>, reference: &str, but: &[&str]) -> Vec<Value> {
    // The other end of a connection in the container loses its peer with it.
    let but: Vec<_> = but.iter().chain(&["tcp-server"]).collect();
    let is_chosen = |file: &Value| but.iter().any(|name| holds(file, 1, probe.fd(name)));
    let form = |file: Value| {
        let name = file["name"].as_str().unwrap();
        // Pipes and unix sockets are made anew, with other inodes, and so are terminals.
        let stable = ["pipe:", "unix", "/dev/pt"].iter().all(|word| !name.starts_with(word));
        let shown = if stable { name } else { "" };
        serde_json::json!([shown, file["type"], file["holders"], file["position"]])
    };
    table(probe.machine, reference).into_iter().filter(|f| !is_chosen(f)).map(form).collect()
}

/// Makes sure that every open file but these is what it was.
fn assert_others_are(probe: &Probe<'_>, but: &[&str]) {
    let before = others(probe, &format!("{}@v1", probe.bundle.id()), but);
    let now = others(probe, probe.bundle.id(), but);
    assert!(before.len() > 3);
    assert!(before.iter().all(|file| now.contains(file)), "{before:#?}\n{now:#?}");
    assert_eq!(before.len(), now.len());
    assert_eq!(read(probe, "other"), "\"456789\"");
}

on_each_runtime!(files_and_their_absence, |machine| {
    let probe = Probe::checkpointed(machine, machine.bundle("probe"));
    let sources = [
        ("file", "container:/data/new,rw,pos=end"),
        ("locked", "closed"),
        ("pipe-read", "empty"),
        ("pipe-write", "null"),
        ("quiet-read", "closed"),
        ("tcp-client", "reset"),
        ("unix-left", "reset"),
        ("unix-right", "empty"),
    ];
    restore_with(&probe, &rules(&probe, &sources), "").unwrap();
    assert_others_are(&probe, &sources.map(|(name, _)| name));
    assert_eq!(write(&probe, "file", "more"), "4");
    let new = fs::read_to_string(probe.bundle.path("/data/new")).unwrap();
    assert_eq!(new, "a file of the container\nmore");
    for (name, expected) in [
        ("locked", "EBADF"),
        ("pipe-read", "\"\""),
        ("quiet-read", "EBADF"),
        ("quiet-write", "EBADF"),
        ("tcp-client", "ECONNRESET"),
        ("unix-left", "ECONNRESET"),
        ("unix-right", "\"\""),
    ] {
        assert_eq!(read(&probe, name), expected, "{name}");
    }
    assert_eq!(write(&probe, "pipe-write", "dropped"), "7");
    assert_eq!(write(&probe, "unix-right", "dropped"), "7");
    let epoll = probe.control().ask(&format!("wait {}", probe.fd("epoll")));
    assert_eq!(epoll, "[1]", "the closed descriptor is not watched, the other one is");
    let now = table(machine, probe.bundle.id());
    assert!(!now.iter().any(|file| holds(file, 1, probe.fd("locked"))));
    probe.bundle.end();
});

on_each_runtime!(sockets_and_programs, |machine| {
    let probe = Probe::checkpointed(machine, machine.bundle("probe"));
    let dir = probe.bundle.dir();
    let (lent, program) = (dir.join("lent"), dir.join("program"));
    fs::write(&lent, "lent by a program").unwrap();
    let workload = probe.bundle.path("/bin/workload");
    let text = format!("#!/bin/sh\nexec {} lend {}\n", workload.display(), lent.display());
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unix = UnixListener::bind(dir.join("service")).unwrap();
    let sources = [
        ("tcp-client", format!("tcp:{}", tcp.local_addr().unwrap())),
        ("tcp-listener", format!("tcp:{free},listen")),
        ("unix-left", format!("unix:{}/service", dir.display())),
        ("unix-right", format!("unix:{}/listening,listen", dir.display())),
        ("file", format!("exec:{}", program.display())),
    ];
    let sources = sources.each_ref().map(|(name, source)| (*name, source.as_str()));
    restore_with(&probe, &rules(&probe, &sources), "").unwrap();
    assert_others_are(&probe, &sources.map(|(name, _)| name));
    let (mut peer, _) = tcp.accept().unwrap();
    peer.write_all(b"hello").unwrap();
    assert_eq!(read(&probe, "tcp-client"), "\"hello\"");
    let (mut peer, _) = unix.accept().unwrap();
    assert_eq!(write(&probe, "unix-left", "back"), "4");
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"back");
    TcpStream::connect(free).unwrap();
    UnixStream::connect(dir.join("listening")).unwrap();
    assert_eq!(read(&probe, "file"), "\"lent by a program\"");
    let told: Value =
        serde_json::from_slice(&fs::read(lent.with_extension("json")).unwrap()).unwrap();
    assert_eq!(
        (&told["container"], &told["file"]["name"]),
        (&probe.bundle.id().into(), &"/data/file".into())
    );
    probe.bundle.end();
});

on_each_runtime!(descriptors_by_name_and_selectors_that_mean_several, |machine| {
    let probe = Probe::checkpointed(machine, machine.bundle("probe"));
    let feed = probe.bundle.dir().join("feed");
    fs::write(&feed, "fed").unwrap();
    let rules = [
        "local:127.0.0.1:* and remote:*:7100=reset".to_owned(),
        "all /data/* and type:reg=null".to_owned(),
        probe.rule("file", "fd:feed"),
        probe.rule("locked", "fd:nothing"),
    ];
    let mut command = machine.ocicle();
    command.arg("restore").arg(probe.bundle.id()).args(machine.variant().criu_flags());
    rules.iter().for_each(|rule| {
        command.args(["-s", rule]);
    });
    let named = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=x:feed; exec \"$@\" 3</dev/null 4<>{}",
        feed.display()
    );
    let refused = by_shell(&command, &named).unwrap_err();
    assert!(refused.contains("LISTEN_FDNAMES has no nothing"), "{refused}");
    let mut arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    *arguments.last_mut().unwrap() = probe.rule("locked", "closed").into();
    let mut command = machine.ocicle();
    command.args(&arguments[4..]);
    by_shell(&command, &named).unwrap();
    assert_eq!(read(&probe, "file"), "\"fed\"");
    assert_eq!(read(&probe, "other"), "\"\"");
    assert_eq!(write(&probe, "other", "dropped"), "7");
    assert_eq!(read(&probe, "locked"), "EBADF");
    assert_eq!(read(&probe, "tcp-client"), "ECONNRESET");
    probe.bundle.end();
});

/// `ocicle restore -t` at a new terminal.
fn restore_at_a_terminal(probe: &Probe<'_>, flags: &[&str]) -> Terminal {
    let mut command = restore_command(&probe.bundle, probe.machine, &[""; 0]);
    let (status, terminal) = Terminal::run(command.arg("-t").args(flags));
    assert!(status.success());
    terminal
}

/// Makes sure that what the container writes to a terminal is seen, and that it reads what is typed.
fn assert_talks(probe: &Probe<'_>, fd: i64, mut terminal: Terminal) {
    assert_eq!(probe.control().ask(&format!("write {fd} through-the-terminal")), "20");
    terminal.shows("through-the-terminal");
    terminal.type_in("typed\n");
    assert_eq!(probe.control().ask(&format!("read {fd}")), "\"typed\\n\"");
}

on_each_runtime!(the_callers_terminal, |machine| {
    let probe = Probe::checkpointed(machine, machine.bundle("probe"));
    let refused = restore_with(&probe, &["tty=tty".to_owned()], "").unwrap_err();
    assert!(refused.contains("this command has no terminal"), "{refused}");
    let terminal = restore_at_a_terminal(&probe, &[]);
    assert_others_are(&probe, &["terminal"]);
    assert_talks(&probe, probe.fd("terminal"), terminal);
    probe.bundle.end();
});

/// Takes the terminal that a runtime sends to a console socket.
fn sent_terminal(socket: &UnixListener) -> OwnedFd {
    let (stream, _) = socket.accept().unwrap();
    ocicle::sys::socket::receive_one(&stream).unwrap().expect("a terminal").1
}

on_each_runtime!(the_callers_terminal_for_that_of_a_console_socket, |machine| {
    let builder = machine
        .bundle("probe")
        .args(["workload", "probe", "/data"])
        .configure(|config| config["process"]["terminal"] = true.into());
    let bundle = builder.make();
    let path = bundle.dir().join("console");
    let socket = UnixListener::bind(&path).unwrap();
    let mut start = machine.runtime(Shim::Bare, &bundle.log());
    start.args(["run", "--detach", "--console-socket"]).arg(&path).arg("--bundle");
    run(start.arg(bundle.dir()).arg(bundle.id()));
    let original = sent_terminal(&socket);
    let probe = Probe::of_running(machine, bundle);
    drop(original);
    let terminal = restore_at_a_terminal(&probe, &["--console-socket", &path.to_string_lossy()]);
    // What waits there gets a terminal that nobody uses.
    drop(sent_terminal(&socket));
    let stdio = table(machine, probe.bundle.id());
    let stdio = stdio.iter().find(|file| holds(file, 1, 1)).unwrap();
    assert_eq!(stdio["type"], "tty");
    assert_talks(&probe, 1, terminal);
    probe.bundle.end();
});

on_each_runtime!(the_rule_that_wins, |machine| {
    let builder = machine
        .bundle("probe")
        .annotation("org.ocicle.substitute", "type:tty and tty=empty; /data/file=null");
    let probe = Probe::checkpointed(machine, builder);
    fs::write(probe.bundle.path("/data/since"), "").unwrap();
    let config = probe.bundle.dir().join("ocicle.toml");
    let text = "[[substitute]]\ncontainer = '*-probe'\nrule = 'all type:tty=closed; /nowhere=null; all type:reg=closed'\n";
    fs::write(&config, text).unwrap();
    let file = probe.rule("file", "container:/data/new,pos=start");
    let forecast = |format| {
        let mut command = machine.ocicle();
        command.args(["restore", "--dry-run", "--format", format, probe.bundle.id(), "-s", &file]);
        run(command.env("OCICLE_CONFIG", &config))
    };
    let json: Value = serde_json::from_str(&forecast("json")).unwrap();
    let becomes = |name: &str| {
        let files = json["files"].as_array().unwrap();
        files.iter().find(|file| holds(file, 1, probe.fd(name))).unwrap()["substitute"].clone()
    };
    assert_eq!(becomes("file")["source"], "container:/data/new,pos=start");
    assert_eq!(becomes("file")["from"], "the command line");
    assert_eq!(becomes("file")["beaten"].as_array().unwrap().len(), 2);
    assert_eq!(becomes("other")["source"], "closed");
    assert_eq!(
        becomes("terminal")["source"],
        "closed",
        "the configuration goes before annotations"
    );
    assert_eq!(becomes("pipe-read"), Value::Null);
    assert_eq!(json["parts"][0]["paths"]["remove"], 1);
    let shown = forecast("table");
    assert!(shown.contains("/: ") && shown.contains("remove 1"), "{shown}");
    assert!(shown.contains("the command line comes before /"), "{shown}");
    assert!(shown.contains("comes before annotation org.ocicle.substitute"), "{shown}");
    assert!(probe.bundle.path("/data/since").exists(), "nothing was changed");
});

/// What a host has that does not fit.
fn misfits(dir: &Path, workload: &Path) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("file"), "a file of the host").unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600))
        .unwrap();
    let program = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let lend = format!("{} lend {}/file", workload.display(), dir.display());
    program("fails", format!("{lend}; exit 3"));
    program("lends", lend);
    fs::write(dir.join("no-program"), "").unwrap();
}

on_each_runtime!(what_does_not_fit, |machine| {
    let read_only = machine.scratch().join("read-only");
    fs::create_dir(&read_only).unwrap();
    fs::write(read_only.join("file"), "").unwrap();
    let builder = machine.bundle("probe").configure(|config| {
        let mount = serde_json::json!({ "destination": "/ro", "type": "bind",
            "source": read_only, "options": ["rbind", "ro"] });
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    let probe = Probe::checkpointed(machine, builder);
    fs::write(probe.bundle.path("/data/since"), "").unwrap();
    let dir = probe.bundle.dir().join("host");
    misfits(&dir, &probe.bundle.path("/bin/workload"));
    let listener = UnixListener::bind(dir.join("service")).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = |rest: &str| format!("{}/{rest}", dir.display());
    let mut told = Told::new(machine);
    for (name, source) in [
        ("file", format!("file:{}", host("file,ro"))),
        ("file", format!("file:{}", host("file,wo"))),
        ("pipe-write", format!("file:{}", host("file,ro"))),
        ("pipe-write", format!("file:{}", host("fifo"))),
        ("locked", format!("file:{}", host("file,truncate,drop"))),
        ("pipe-write", format!("file:{}", host("fifo,rw,pos=end"))),
        ("pipe-write", format!("file:{}", host("file,pos=keep"))),
        ("file", format!("file:{}", host("no/new,create"))),
        ("file", format!("file:{}", host("file/new,create"))),
        ("pipe-read", format!("file:{}", host("new,create"))),
        ("file", "container:/data/file/x".to_owned()),
        ("file", "container:/data/no/new,create".to_owned()),
        ("file", "container:/ro/file".to_owned()),
        ("file", "container:/ro/new,create".to_owned()),
        ("unix-left", format!("unix:/{}", "long/".repeat(30))),
        ("unix-left", format!("unix:{}", host("file"))),
        ("unix-left", format!("unix:{}", host("service,listen"))),
        ("unix-left", format!("unix:{}", host("no/socket,listen"))),
        ("quiet-write", format!("unix:{}", host("no/socket"))),
        ("tcp-listener", format!("tcp:{},listen", tcp.local_addr().unwrap())),
        ("file", format!("exec:{}", host("fails"))),
        ("file", format!("exec:{}", host("no-program"))),
        ("pipe-read", format!("exec:{}", host("lends"))),
        ("terminal", "tty".to_owned()),
        ("terminal-master", "reset".to_owned()),
    ] {
        let what = format!("{name}={}", source.replace(&dir.display().to_string(), "/host"));
        let what = what.replace(&tcp.local_addr().unwrap().to_string(), "ADDRESS");
        let rule = probe.rule(name, &source);
        told.refused(&what, &mut restore_command(&probe.bundle, machine, &[rule]));
        assert!(probe.bundle.path("/data/since").exists(), "{what}: nothing was changed");
        assert!(!dir.join("new").exists(), "{what}: nothing was made");
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "a file of the host", "{what}");
    }
    told.compare("misfits");
    drop(listener);
    drop(probe);
    fs::remove_dir_all(read_only).unwrap();
});

on_each_runtime!(what_cannot_be_said_or_done, |machine| {
    let probe = Probe::checkpointed(machine, machine.bundle("probe"));
    fs::write(probe.bundle.path("/data/since"), "").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut told = Told::new(machine);
    for (name, source, expected) in [
        ("file", "container:/data/nothing", "no such file"),
        ("file", "container:/proc/version", "only the container has"),
        ("file", "container:/data/../data/new", "cannot be used"),
        ("file", "container:/data", "it is a directory"),
        ("file", "container:/data/control", "neither a regular file nor"),
        ("pipe-read", "container:/data/new", "cannot be polled"),
        ("file", "fd:feed", "LISTEN_PID"),
        ("file", "reset", "no connection to lose"),
        ("tcp-client", &format!("tcp:{free}"), "refused"),
        ("tcp-client", "unix:/nowhere/at/all", "no such socket"),
        ("tcp-client", "exec:/nowhere/at/all", "no program"),
        ("tcp-client", "exec:/bin/false", "returned nothing"),
        ("pipe-read", "null", "cannot be polled"),
    ] {
        let what = format!("{name}={}", source.split(&free.to_string()).next().unwrap());
        let rule = probe.rule(name, source);
        let mut command = restore_command(&probe.bundle, machine, std::slice::from_ref(&rule));
        let said = told.refused(&what, &mut command);
        assert!(said.contains(expected), "{rule}: {said}");
        assert!(probe.bundle.path("/data/since").exists(), "nothing was changed");
    }
    let rule = probe.rule("tcp-client", "tcp:no.such.host.invalid:80");
    let mut command = restore_command(&probe.bundle, machine, &[rule]);
    // No name server has to answer.
    told.refused("tcp:no.such.host.invalid:80", command.env("RES_OPTIONS", "attempts:1 timeout:1"));
    assert!(probe.bundle.path("/data/since").exists(), "nothing was changed");
    let mut command = restore_command(&probe.bundle, machine, &["type:inet=reset"]);
    let said = told.refused("type:inet=reset", &mut command);
    assert!(said.contains("write `all` before the selector"), "{said}");
    told.compare("cannot-be-done");
});
