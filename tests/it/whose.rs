//! Whose a checkpoint is: two containers of one identifier are two.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Bundle, Machine, Told, Variant, on_machine, outcome, run, wait_for_exit};
use serde_json::Value;

/// `ocicle` for the containers below one state directory.
fn ocicle(machine: &Machine, root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocicle"));
    command.env("OCICLE_RUNTIME", machine.variant().runtime());
    command.arg("--root").arg(root).arg("--store").arg(machine.store()).args(words);
    command
}

fn runtime(machine: &Machine, root: &Path, words: &[&OsStr]) -> Command {
    let mut command = Command::new(machine.variant().runtime());
    command.arg("--root").arg(root).args(words);
    command
}

fn state(machine: &Machine, root: &Path, id: &str) -> Value {
    let text = run(&mut runtime(machine, root, &["state".as_ref(), id.as_ref()]));
    serde_json::from_str(&text).unwrap()
}

/// Starts a bundle under an identifier in a state directory.
fn start(machine: &Machine, root: &Path, bundle: &Bundle<'_>, id: &str) {
    let mut command = runtime(machine, root, &["run".as_ref(), "--detach".as_ref()]);
    command.arg("--bundle").arg(bundle.dir()).arg(id);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn end(machine: &Machine, root: &Path, id: &str) {
    let pid = i32::try_from(state(machine, root, id)["pid"].as_i64().unwrap()).unwrap();
    run(&mut runtime(machine, root, &["kill".as_ref(), id.as_ref(), "KILL".as_ref()]));
    wait_for_exit(pid);
    run(&mut runtime(machine, root, &["delete".as_ref(), id.as_ref()]));
}

fn listed(machine: &Machine, root: &Path) -> Vec<Value> {
    let text = run(&mut ocicle(machine, root, &["list", "--format", "json"]));
    let all: Value = serde_json::from_str(&text).unwrap();
    all["checkpoints"].as_array().unwrap().clone()
}

#[test]
fn a_checkpoint_is_the_containers_and_no_other_ones_of_its_name() {
    on_machine(Variant::RuncV1, |machine| {
        let one = machine.bundle("web").args(["cat", "/fifo"]).make();
        let two = machine.bundle("another").args(["cat", "/fifo"]).make();
        // It waits for nothing that a clock has a part in.
        for bundle in [&one, &two] {
            run(Command::new("mkfifo").arg(bundle.path("/fifo")));
        }
        let (first, second) = (machine.state_root(), machine.scratch().join("state2"));
        fs::create_dir(&second).unwrap();
        let id = one.id();
        start(machine, &first, &one, id);
        start(machine, &second, &two, id);

        for (root, versions) in [(&first, 2), (&second, 1)] {
            for version in 1..=versions {
                let made = run(&mut ocicle(machine, root, &["checkpoint", "-R", id]));
                assert_eq!(made, format!("{id}@v{version}\n"));
            }
        }
        // What one keeps is not the other's.
        run(&mut ocicle(machine, &second, &["checkpoint", "-R", "--keep", "1", id]));
        let found = listed(machine, &first);
        let of = |root: &Path| {
            let its = found.iter().filter(|one| one["root"] == root.to_str().unwrap());
            its.map(|one| one["version"].as_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!((of(&first), of(&second)), (vec!["v1", "v2"], vec!["v2"]));
        let table = run(&mut ocicle(machine, &first, &["list"]));
        assert!(table.contains("ROOT") && table.contains(second.to_str().unwrap()), "{table}");
        let all: Value =
            serde_json::from_str(&run(&mut ocicle(machine, &second, &["ps", "--format", "json"])))
                .unwrap();
        let its = all["containers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["id"] == id && one["root"] == second.to_str().unwrap());
        let its = its.expect("the other one is listed beside it")["checkpoints"].clone();
        assert_eq!(its.as_array().unwrap().len(), 1, "{its}");

        end(machine, &first, id);
        end(machine, &second, id);
        let mut told = Told::new(machine);
        let nowhere = machine.scratch().join("state3");
        fs::create_dir(&nowhere).unwrap();
        fs::remove_dir_all(machine.store().join(id)).unwrap();
        told.refused(
            "restore of another container's",
            &mut ocicle(machine, &nowhere, &["restore", id]),
        );
        told.compare("whose");
        let (restored, _, errors) = outcome(&mut ocicle(machine, &second, &["restore", id]));
        assert!(restored, "{errors}");
        let bundle = state(machine, &second, id)["bundle"].clone();
        assert_eq!(bundle, two.dir().to_str().unwrap());
        end(machine, &second, id);
        for directory in [second, nowhere] {
            fs::remove_dir_all(directory).unwrap();
        }
    });
}
