//! Mappings of a file that is replaced.

use std::fs;

use super::Held;
use crate::support::Machine;

/// The first byte of each mapping of a file that has this in its path, in order.
fn mapped(process: i32, path: &str) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let first = |line: &str| {
        let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let mut byte = [0];
        memory.read_exact_at(&mut byte, start).unwrap();
        byte[0]
    };
    let mut bytes: Vec<_> = maps.lines().filter(|line| line.contains(path)).map(first).collect();
    bytes.sort_unstable();
    bytes
}

/// Mappings stay what they were when file descriptors of the same open file are replaced.
pub(super) fn stay(machine: &Machine, kind: &str, path: &str) {
    let held = Held::checkpointed(machine, kind, 4);
    let host = held.bundle.dir().join("file");
    fs::write(&host, "a file of the host").unwrap();
    let name = |number: usize| format!("{kind}.{number}");
    let rules = [
        held.rule(&name(0), &format!("file:{}", host.display())),
        held.rule(&name(1), "closed"),
        held.rule(&name(2), "container:/data/inside"),
    ];
    held.restore(&rules, "").unwrap();
    held.assert_shared(&[name(0), name(1), name(2)], &[name(1)]);
    let (parent, child) = held.processes();
    assert_eq!(mapped(parent, path), [1, 2, 3, 4]);
    assert_eq!(mapped(child, path), [1, 2, 3, 4]);
    assert_eq!(held.ask("read", &name(0)), "\"a file of the host\"");
    assert_eq!(held.ask("read", &name(1)), "EBADF");
    assert_eq!(held.ask("read", &name(2)), "\"inside\"");
    assert!(held.ask("read", &name(3)).starts_with("\"\\u{4}\\0"));
    held.bundle.end();
}

on_each_runtime!(a_mapped_file, |machine| stay(machine, "mapped-file", "/data/mapped-file"));
