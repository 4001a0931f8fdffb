//! What a person gets who mistypes, in the words that are printed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Bundle, Machine, Shim, Told, Variant, on_machine, outcome, run, status_of};

/// Adds what a command says that has to fail with this status.
fn fails(told: &mut Told<'_>, what: &str, status: i32, command: &mut Command) {
    let (ended, _, errors) = status_of(command);
    assert_eq!(ended, status, "{what}: {errors}");
    told.add(what, &errors);
}

fn web(machine: &Machine) -> Bundle<'_> {
    let bundle = machine.bundle("web").args(["sh", "-c", "exec 3>>/data/log; cat /fifo"]).make();
    run(Command::new("mkfifo").arg(bundle.path("/fifo")));
    bundle
}

#[test]
fn names_that_are_not_quite_right() {
    on_machine(Variant::RuncV1, |machine| {
        let bundle = web(machine);
        let container = bundle.run();
        container.wait_for("/data/log");
        let id = bundle.id();
        let mut told = Told::new(machine);
        let wrong = id.replace("-web", "-wbe");
        for command in ["checkpoint", "check", "files", "thaw"] {
            told.refused(&format!("{command} wbe"), &mut machine.call(command, &[&wrong]));
        }
        // The beginning of an identifier is as good as all of it.
        let short = &id[..id.len() - 1];
        let made = run(&mut machine.call("checkpoint", &["-R", short]));
        assert_eq!(made, format!("{id}@v1\n"));
        let newest = format!("{short}@latest");
        for command in ["inspect", "files", "diff"] {
            run(&mut machine.call(command, &[&newest]));
        }
        told.refused("restore wbe", &mut machine.call("restore", &[&wrong]));
        told.refused("restore web while it runs", &mut machine.call("restore", &[id]));
        told.refused("restore web@v9", &mut machine.call("restore", &[&format!("{id}@v9")]));
        fails(&mut told, "restore web@newest", 2, &mut machine.call("restore", &["web@newest"]));
        fails(&mut told, "restore web:v1", 2, &mut machine.call("restore", &["web:v1"]));
        fails(&mut told, "chekpoint web", 2, &mut machine.call("chekpoint", &["web"]));

        let twin = machine.bundle("web2").args(["cat", "/fifo"]).make();
        run(Command::new("mkfifo").arg(twin.path("/fifo")));
        let second = twin.run();
        told.refused("a beginning of two", &mut machine.call("check", &[short]));
        drop(second);
        told.compare("mistakes-names");
    });
}

#[test]
fn rules_and_policies_that_are_not_quite_right() {
    on_machine(Variant::RuncV1, |machine| {
        let bundle = web(machine);
        let container = bundle.run();
        container.wait_for("/data/log");
        run(&mut machine.call("checkpoint", &[bundle.id()]));
        drop(container);
        let mut told = Told::new(machine);
        let restore = |words: &[&str]| machine.call("restore", &[&[bundle.id()], words].concat());
        for (what, words, status) in [
            ("a source that is none", &["-s", "/data/log=nul"][..], 2),
            ("a path that nothing has open", &["-s", "/data/lgo=null"], 1),
            ("two of them", &["-s", "/data/lgo=null", "-s", "/data/lg=null"], 1),
            ("a descriptor that is not open", &["-s", "/data/log=fd:77"], 1),
            ("read-only, for a writer", &["-s", "/data/log=file:/etc/hostname,ro"], 1),
            ("a directory that is missing", &["-s", "/data/log=file:/nosuch/x,create"], 1),
            ("a terminal where there is none", &["-s", "/data/log=tty"], 1),
            ("a policy that is none", &["--policy", "mising=recreate"], 2),
            ("a mode that is none", &["--manage-cgroups-mode", "sfot"], 2),
        ] {
            let mut command = restore(words);
            // Without a controlling terminal.
            let command = command.stdin(Stdio::null());
            fails(&mut told, what, status, command);
        }
        told.compare("mistakes-rules");
    });
}

#[test]
fn what_is_not_there_any_more() {
    on_machine(Variant::RuncV1, |machine| {
        let bundle = web(machine);
        let container = bundle.run();
        container.wait_for("/data/log");
        run(&mut machine.call("checkpoint", &[bundle.id()]));
        drop(container);
        let mut told = Told::new(machine);
        let mut restore = |what: &str, words: &[&str]| {
            let words = [&[bundle.id()], words].concat();
            told.refused(what, &mut machine.call("restore", &words));
        };
        restore("a bundle that is not there", &["--bundle", "/nosuch"]);
        let empty = machine.state_root().join("empty");
        fs::create_dir(&empty).unwrap();
        restore("a bundle without a configuration", &["--bundle", empty.to_str().unwrap()]);
        fs::write(empty.join("config.json"), r#"{"ociVersion":"1","root":{"path":"gone"}}"#)
            .unwrap();
        restore("a root file system that is gone", &["--bundle", empty.to_str().unwrap()]);
        fs::create_dir(empty.join("gone")).unwrap();
        restore("one that is not mounted", &["--bundle", empty.to_str().unwrap()]);
        fs::remove_dir_all(&empty).unwrap();

        let archive = machine.state_root().join("no-archive.tar");
        fs::write(&archive, "nothing of that kind\n".repeat(100)).unwrap();
        fails(&mut told, "no archive", 1, machine.ocicle().arg("inspect").arg(&archive));
        fs::remove_file(&archive).unwrap();
        told.compare("mistakes-gone");
    });
}

#[test]
fn a_machine_that_is_not_set_up() {
    on_machine(Variant::RuncV1, |machine| {
        let mut told = Told::new(machine);
        let loops = machine.state_root().join("loop.toml");
        fs::write(&loops, "runtime = \"ocicle-runtime\"\n").unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_ocicle-runtime")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut command = machine.call("checkpoint", &["web"]);
        command.env("OCICLE_CONFIG", &loops).env_remove("OCICLE_RUNTIME").env("PATH", path);
        told.refused("the runtime is ocicle-runtime, by its name", &mut command);
        fs::remove_file(&loops).unwrap();
        fs::create_dir_all(machine.store()).unwrap();
        fs::set_permissions(machine.store(), Permissions::from_mode(0o700)).unwrap();
        for name in ["ps", "list"] {
            let mut command = machine.ocicle();
            command.arg(name).uid(65534).gid(65534);
            told.refused(&format!("{name} without root"), &mut command);
        }
        fails(
            &mut told,
            "with: nothing is restored",
            125,
            machine.ocicle().args(["with", "--", "true"]),
        );
        fails(
            &mut told,
            "with: no such command",
            127,
            machine.ocicle().args(["with", "--", "nosuch"]),
        );
        told.compare("mistakes-machine");
    });
}

#[test]
fn what_cannot_be_printed_is_an_error() {
    on_machine(Variant::RuncV1, |machine| {
        for words in [&["list"][..], &["list", "--format", "json"], &["ps"], &["--help"]] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let output = machine.ocicle().args(words).stdout(full).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
            assert!(said.contains("No space left on device"), "{words:?}: {said}");
        }
        // Who reads no further has what he wants.
        let command = "\"$0\" --store /nosuch list | true; exit ${PIPESTATUS[0]}";
        let mut bash = Command::new("bash");
        let (ended, _, said) =
            outcome(bash.args(["-c", command]).arg(env!("CARGO_BIN_EXE_ocicle")));
        assert!(ended, "{said}");
    });
}

#[test]
fn colours_are_for_terminals() {
    on_machine(Variant::RuncV1, |machine| {
        // A shelf whose label is damaged is warned of.
        let shelf = machine.store().join("web");
        fs::create_dir_all(&shelf).unwrap();
        fs::write(shelf.join("container.json"), "{").unwrap();
        let (listed, _, said) = outcome(machine.ocicle().arg("list"));
        assert!(listed && said.contains("WARN") && !said.contains('\x1b'), "{said:?}");
    });
}

#[test]
fn the_steps_are_told_to_who_asks() {
    on_machine(Variant::RuncV1, |machine| {
        let bundle = web(machine);
        let container = bundle.run();
        container.wait_for("/data/log");
        let words = ["--debug", "checkpoint", "-R", bundle.id()];
        let (made, name, said) = outcome(machine.ocicle().args(words));
        assert!(made && name == format!("{}@v1\n", bundle.id()), "{said}");
        for step in ["freeze: from ", "dump: from ", "calling ["] {
            assert!(said.contains(step), "{step}: {said}");
        }
        let (_, _, said) = outcome(&mut machine.call("checkpoint", &["-R", bundle.id()]));
        assert!(!said.contains("from "), "{said}");
    });
}

#[test]
fn programs_are_told_in_json() {
    on_machine(Variant::RuncV1, |machine| {
        let bundle = web(machine);
        let container = bundle.run();
        container.wait_for("/data/log");
        let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        let call = |command: &str, word: &str| {
            outcome(&mut machine.call(command, &["--format", "json", word]))
        };
        let (_, made, _) = call("checkpoint", bundle.id());
        let made = json(&made);
        assert_eq!((&made["version"], &made["left"]), (&"v1".into(), &"stopped".into()));
        assert!(made["frozen_ms"].as_f64().unwrap() > 0.0, "{made}");
        drop(container);
        let (_, restored, _) = call("restore", bundle.id());
        let container = bundle.adopt();
        assert_eq!(json(&restored)["pid"], container.pid());
        let (ended, printed, said) = call("restore", bundle.id());
        assert!(!ended && printed.is_empty(), "{printed}");
        let error = json(&said);
        assert!(error["error"].as_str().unwrap().contains("is running"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("kill"), "{error}");
    });
}

#[test]
fn an_annotation_that_means_nothing_is_said_when_the_container_is_made() {
    on_machine(Variant::RuncV1, |machine| {
        for (value, is_wrong) in [("/log=nul", true), ("/log=null", false)] {
            let bundle = machine.bundle("noted").annotation("org.ocicle.substitute", value);
            let bundle = bundle.args(["true"]).make();
            let mut create = machine.runtime(Shim::Ocicle, &bundle.log());
            create.args(["create", "--bundle"]).arg(bundle.dir()).arg(bundle.id());
            let (made, _, said) = outcome(&mut create);
            assert!(made, "it is made all the same: {said}");
            assert_eq!(
                said.contains("ocicle-runtime: warning: this container"),
                is_wrong,
                "{said}"
            );
            let log = fs::read_to_string(bundle.log()).unwrap_or_default();
            assert_eq!(log.contains("level=warning"), is_wrong, "{log}");
            let mut delete = machine.runtime(Shim::Bare, &bundle.log());
            run(delete.args(["delete", "--force", bundle.id()]));
        }
    });
}
