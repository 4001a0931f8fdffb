//! Open files are replaced at restore: exactly one each, and whoever shared it shares the other.

#[macro_use]
mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Bundle, Container, Machine, Shim, run};

/// A checkpoint of a workload, of which nothing runs any more.
fn checkpoint(machine: &Machine, container: Container<'_>) {
    let mut command = machine.ocicle();
    command.args(["checkpoint", container.bundle().id(), "--leave-running", "--file-locks"]);
    run(command.args(machine.variant().criu_flags()));
    container.kill();
}

fn table(machine: &Machine, reference: &str) -> Vec<Value> {
    let text = run(machine.ocicle().args(["files", "--format", "json", reference]));
    let table: Value = serde_json::from_str(&text).unwrap();
    table["files"].as_array().unwrap().clone()
}

fn holds(file: &Value, pid: i64, fd: i64) -> bool {
    let holders = file["holders"].as_array().unwrap();
    holders.iter().any(|holder| holder["pid"] == pid && holder["fd"] == fd)
}

/// `ocicle restore`, with `fd` open on a file as a shell would.
fn restore(bundle: &Bundle<'_>, machine: &Machine, rules: &[&str], fd: &str) -> Result<(), String> {
    let errors = machine.state_root().join("errors");
    let mut command = machine.ocicle();
    command.arg("restore").arg(bundle.id()).args(machine.variant().criu_flags());
    rules.iter().for_each(|rule| {
        command.args(["-s", rule]);
    });
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(format!("exec \"$@\" {fd}")).arg("bash").arg(command.get_program());
    shell.args(command.get_args()).env("OCICLE_RUNTIME", machine.variant().runtime());
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
    let status = shell.status().unwrap();
    let said = fs::read_to_string(&errors).unwrap();
    fs::remove_file(errors).unwrap();
    if status.success() { Ok(()) } else { Err(said) }
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
        let said = restore(&bundle, machine, &[rule], fd).unwrap_err();
        assert!(said.contains(expected), "{rule}: {said}");
        assert!(bundle.path("/data/since").exists(), "nothing was changed");
    }
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
