//! Locks and leases: what becomes of them when their file is replaced, and of those that CRIU leaves out.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Held, Host};
use crate::support::{Machine, Told, holds, owner_of_lock, restore_command, run};

/// Whether somebody holds the lock that the workload took, of the same kind.
pub(super) fn is_locked(path: &Path, kind: &str) -> bool {
    use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
    if ["locked-flock", "locked-deleted", "locked-directory"].contains(&kind) {
        let file = fs::File::open(path).unwrap();
        return Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err();
    }
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let range = |start| libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    let (mut inside, mut behind) = (range(4), range(5));
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut inside)).unwrap();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut behind)).unwrap();
    assert_eq!(i32::from(behind.l_type), libc::F_UNLCK, "as far as it was locked");
    i32::from(inside.l_type) != libc::F_UNLCK
}

/// A lock is held on what takes the file's place, or on nothing if the rule drops it.
pub(super) fn pass_on(machine: &Machine, kind: &str) {
    let held = Held::checkpointed(machine, kind, 4);
    let dir = held.bundle.dir().to_owned();
    let [passed, dropped] = ["passed", "dropped"].map(|name| dir.join(name));
    let is_directory = kind == "locked-directory";
    for path in [&passed, &dropped] {
        match is_directory {
            true => fs::create_dir(path).unwrap(),
            false => fs::write(path, "a file of the host").unwrap(),
        }
    }
    let inside = if is_directory { "/data/inside.d" } else { "/data/inside" };
    let name = |number: usize| format!("{kind}.{number}");
    let rules = [
        held.rule(&name(0), &format!("file:{}", passed.display())),
        held.rule(&name(1), &format!("file:{},drop", dropped.display())),
        held.rule(&name(2), &format!("container:{inside}")),
    ];
    held.restore(&rules, "").unwrap();
    held.assert_shared(&[name(0), name(1), name(2)], &[]);
    assert!(is_locked(&passed, kind), "it passes on to a file of the host");
    assert!(!is_locked(&dropped, kind), "it is dropped");
    assert!(is_locked(&held.bundle.path(inside), kind), "it passes on in the container");
    if kind != "locked-deleted" {
        let original = |number| held.bundle.path("/data").join(name(number));
        assert!(is_locked(&original(3), kind), "another stays");
        assert!(!is_locked(&original(0), kind), "the original is not locked any more");
    }
    held.bundle.end();
}

on_each_runtime!(locks_of_ranges, |machine| pass_on(machine, "locked-posix"));
on_each_runtime!(locks_of_open_files, |machine| pass_on(machine, "locked-ofd"));

// CRIU would wait for ever for the second of two such locks.
on_each_runtime!(locks_of_two_processes, |machine| {
    let kind = "locked-by-turns";
    let held = Held::checkpointed(machine, kind, 4);
    let name = |number: usize| format!("{kind}.{number}");
    let before = held.before();
    // Of each file the one process has the lock, and its own opening.
    let owner = |number: usize| {
        let named = format!("/data/{}", name(number));
        let locked = |file: &&Value| file["name"] == *named && file["locks"].is_array();
        let file = before.iter().find(locked).unwrap_or_else(|| panic!("{named}: {before:#?}"));
        file["locks"][0]["pid"].as_i64().unwrap()
    };
    assert_eq!([owner(0), owner(2)], [1, 1]);
    let child = owner(1);
    assert!(child > 1 && owner(3) == child);
    let of = |number: usize, source: &str| {
        let process = if number.is_multiple_of(2) { 1 } else { child };
        format!("{process}:{}={source}", held.fd(&name(number)))
    };
    let dir = held.bundle.dir().to_owned();
    for file in ["one", "other"] {
        fs::write(dir.join(file), "a file of the host").unwrap();
    }
    fs::write(held.bundle.path("/data/since"), "").unwrap();
    let rule = |number, file: &str| of(number, &format!("file:{}", dir.join(file).display()));
    let mut told = Told::new(machine);
    for (what, rules) in [
        ("of two processes on one file of the host", vec![rule(0, "one"), rule(1, "one")]),
        (
            "of two processes on one file of the container",
            [0, 1].map(|at| of(at, "container:/data/inside")).into(),
        ),
        (
            "on a file that the other process has locked",
            vec![of(0, "container:/data/locked-by-turns.1")],
        ),
    ] {
        told.refused(what, &mut restore_command(&held.bundle, machine, &rules));
        assert!(held.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    }
    told.compare("locks-of-two-processes");
    // Of one process they are one lock, and each process may have its own file.
    held.restore(&[rule(0, "one"), rule(2, "one"), rule(1, "other")], "").unwrap();
    for file in ["one", "other"] {
        assert!(is_locked(&dir.join(file), "locked-posix"), "{file}");
    }
    assert!(is_locked(&held.bundle.path("/data/locked-by-turns.3"), "locked-posix"));
    held.bundle.end();
});

// A lease does not pass on: it is dropped with the rule's leave, and others stay.
on_each_runtime!(leases_to_read, |machine| {
    let held = Held::checkpointed(machine, "leased-read", 4);
    let name = |number: usize| format!("leased-read.{number}");
    let before = held.before();
    let first = before.iter().find(|file| holds(file, 1, held.fd(&name(0)))).unwrap();
    assert_eq!(first["locks"][0]["kind"], "lease");
    let host = held.bundle.dir().join("host");
    fs::write(&host, "a file of the host").unwrap();
    let rule = held.rule(&name(0), &format!("file:{},pos=start", host.display()));
    fs::write(held.bundle.path("/data/since"), "").unwrap();
    let mut told = Told::new(machine);
    let mut refuse = |what: &str, rule: &String| {
        told.refused(what, &mut restore_command(&held.bundle, machine, std::slice::from_ref(rule)));
        assert!(held.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    };
    refuse("a lease to read, on a file of the host", &rule);
    refuse("the same in the container", &held.rule(&name(2), "container:/data/inside"));
    refuse("the same on the null device", &held.rule(&name(2), "null"));
    told.compare("lease-to-read");
    let rules = [
        format!("{rule},drop"),
        held.rule(&name(1), "closed"),
        held.rule(&name(2), "container:/data/inside,pos=start,drop"),
    ];
    held.restore(&rules, "").unwrap();
    held.assert_shared(&[name(0), name(1), name(2)], &[name(1)]);
    assert_eq!(held.ask("read", &name(0)), "\"a file of the host\"");
    assert_eq!(held.ask("read", &name(2)), "\"inside\"");
    assert_eq!(held.ask("lease", &name(0)), "none");
    assert_eq!(held.ask("lease", &name(2)), "none");
    assert_eq!(held.ask_child("lease", &name(3)), "to read");
    assert_eq!(held.ask("read", &name(3)), "\"456789\"");
    held.bundle.end();
});

// Who opens a file with such a lease breaks it, and the signal may end its holder.
on_each_runtime!(leases_to_write, |machine| {
    let held = Held::running(machine, "leased-write", 2);
    let container = held.bundle.adopt();
    let mut told = Told::new(machine);
    told.refused("a lease to write", &mut held.checkpoint());
    told.compare("lease");
    assert_eq!(held.ask("lease", "leased-write.0"), "to write", "nobody has broken it");
    container.kill();
});

/// Waits for a lock of a byte; it goes with the file.
fn lock_of_byte(path: &Path, byte: i64) -> fs::File {
    use nix::fcntl::{FcntlArg, fcntl};
    let file = fs::File::options().write(true).open(path).unwrap();
    let range = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLKW(&range)).unwrap();
    file
}

/// Who has which byte, of the container's first process and its child.
fn owners(held: &Held<'_>, name: &str) -> Vec<(i64, &'static str)> {
    let (parent, child) = held.processes();
    let path = held.bundle.path("/data").join(name);
    let locked = (0..12).filter_map(|byte| Some((byte, owner_of_lock(&path, byte)?)));
    let named = locked.map(|(byte, owner)| match owner {
        owner if owner == parent => (byte, "parent"),
        owner if owner == child => (byte, "child"),
        owner => panic!("{name}: process {owner} has byte {byte}"),
    });
    named.collect()
}

// CRIU leaves them out of its images.
on_each_runtime!(locks_on_what_another_process_shares, |machine| {
    const CHILDS: [(i64, &str); 3] = [(2, "child"), (3, "child"), (4, "child")];
    for (kind, owned) in [
        ("locked-by-child", CHILDS.to_vec()),
        ("locked-by-both", [&CHILDS[..], &[(7, "parent"), (8, "parent"), (9, "parent")]].concat()),
    ] {
        let held = Held::running(machine, kind, 2);
        let names = [0, 1].map(|number| format!("{kind}.{number}"));
        let locked = || names.iter().map(|name| owners(&held, name)).collect::<Vec<_>>();
        assert_eq!(locked(), [owned.clone(), owned.clone()], "{kind}");
        let container = held.bundle.adopt();
        run(held.checkpoint().arg("--leave-running"));
        assert_eq!(locked(), [owned.clone(), owned.clone()], "{kind}: it goes on with them");
        run(&mut held.checkpoint());
        container.kill();
        for version in ["v1", "v2"] {
            run(restore_command(&held.bundle, machine, &[""; 0]).arg(version));
            assert_eq!(locked(), [owned.clone(), owned.clone()], "{kind}: restored from {version}");
            held.bundle.end();
        }
        let host = held.bundle.dir().join("host");
        fs::write(&host, "a file of the host").unwrap();
        let rules = [held.rule(&names[0], &format!("file:{}", host.display()))];
        held.restore(&rules, "").unwrap();
        assert!(is_locked(&host, "locked-posix"), "{kind}: it passes on");
        assert_eq!(locked(), [Vec::new(), owned], "{kind}: and the other stays");
        held.bundle.end();
        fs::remove_dir_all(machine.store()).unwrap();
    }
});

on_each_runtime!(a_lock_of_a_table_that_two_processes_have, |machine| {
    let held = Held::running(machine, "locked-by-table", 1);
    let path = held.bundle.path("/data/locked-by-table.0");
    let locked = || [1, 2, 4, 5].map(|byte| owner_of_lock(&path, byte).is_some());
    assert_eq!(locked(), [false, true, true, false]);
    let container = held.bundle.adopt();
    run(&mut held.checkpoint());
    container.kill();
    held.restore(&[], "").unwrap();
    assert_eq!(locked(), [false, true, true, false]);
    held.bundle.end();
});

on_each_runtime!(a_lock_on_what_a_message_carries, |machine| {
    let held = Held::checkpointed(machine, "locked-in-flight", 1);
    let path = held.bundle.path("/data/locked-in-flight.0");
    assert!(!is_locked(&path, "locked-flock"), "nobody has it");
    held.restore(&[], "").unwrap();
    assert!(is_locked(&path, "locked-flock"));
    assert_eq!(held.ask_child("receive", "locked-in-flight.0"), "\"queued\" \"456789\"");
    held.bundle.end();
});

// CRIU sets it, and closes the file again that it has mapped.
on_each_runtime!(a_lock_on_what_is_mapped_too, |machine| {
    let held = Held::running(machine, "locked-mapped", 1);
    let path = held.bundle.path("/data/locked-mapped.0");
    let owned = [2, 3, 4].map(|byte| (byte, "parent"));
    assert_eq!(owners(&held, "locked-mapped.0"), owned);
    let container = held.bundle.adopt();
    run(&mut held.checkpoint());
    container.kill();
    held.restore(&[], "").unwrap();
    assert_eq!(owners(&held, "locked-mapped.0"), owned);
    held.bundle.end();
    // Who waits for it gets it when CRIU closes that file, unless he has come too late.
    let (refused, taken) = loop {
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || {
                while owner_of_lock(&path, 2).is_none() {}
                lock_of_byte(&path, 2)
            }
        });
        let restored = held.restore(&[], "");
        if restored.is_ok() {
            held.bundle.end();
        }
        let locked = waiting.join().unwrap();
        if let Err(refused) = restored {
            break (refused, locked);
        }
    };
    let fd = held.fd("locked-mapped.0");
    let cause = format!(
        "taking the locks of processes again: fd {fd} of pid 1: its lock on /data/locked-mapped.0: \
         Resource temporarily unavailable (os error 11)\n\
         hint: somebody outside the container has locked the file: end that first"
    );
    assert!(refused.contains(&cause), "{refused}");
    drop(taken);
    held.restore(&[], "").unwrap();
    assert_eq!(owners(&held, "locked-mapped.0"), owned);
    held.bundle.end();
});

// CRIU sees no lock there, and would go on without.
on_each_runtime!(locks_that_nobody_asked_for, |machine| {
    let held = Held::running(machine, "locked-by-child", 1);
    let container = held.bundle.adopt();
    let mut told = Told::new(machine);
    for more in [&["--leave-running"][..], &[]] {
        let mut command = machine.checkpoint(&[held.bundle.id()]);
        command.args(more);
        told.refused(&["checkpoint", &more.join(" ")].concat(), &mut command);
        assert_eq!(owners(&held, "locked-by-child.0").len(), 3, "it goes on");
    }
    told.compare("lock-not-asked-for");
    container.kill();
});

on_each_runtime!(locks_that_cannot_be_held_at_once, |machine| {
    let mut told = Told::new(machine);
    for kind in ["locked-flock", "locked-ofd"] {
        let held = Held::checkpointed(machine, kind, 3);
        let host = Host::new(&held.bundle);
        fs::write(held.bundle.path("/data/since"), "").unwrap();
        let both = |source: &str| [0, 1].map(|at| held.rule(&format!("{kind}.{at}"), source));
        let anew = held.bundle.dir().join("anew");
        for (what, source) in [
            ("the same file of the container", "container:/data/inside".to_owned()),
            ("the same new file of it", "container:/data/anew,create".to_owned()),
            ("the same file of the host", format!("file:{}", host.path("file"))),
            ("the same new file of it", format!("file:{},create", anew.display())),
            ("what a program returns twice", format!("exec:{}", host.path("program"))),
        ] {
            let mut command = restore_command(&held.bundle, machine, &both(&source));
            told.refused(&format!("{kind} for two: {what}"), &mut command);
        }
        let own = held.rule(&format!("{kind}.0"), &format!("container:/data/{kind}.2"));
        let mut command = restore_command(&held.bundle, machine, &[own]);
        told.refused(&format!("{kind} for one: a file that is locked"), &mut command);
        assert!(held.bundle.path("/data/since").exists() && !anew.exists(), "nothing was changed");
        // One open file has its lock once.
        let lent = held.bundle.dir().join("lent");
        held.restore(&both("fd:7"), &format!("7<>{}", lent.display())).unwrap();
        assert!(is_locked(&lent, kind));
        held.bundle.end();
    }
    told.compare("lock-conflicts");
});
