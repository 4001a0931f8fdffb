//! What is on its way between two ends: files in messages, and what waits for an end that stays.

use std::fs;

use serde_json::json;

use super::Held;

on_each_runtime!(a_message_carries_what_takes_the_place, |machine| {
    let held = Held::checkpointed(machine, "in-flight", 5);
    let dir = held.bundle.dir().to_owned();
    fs::write(dir.join("file"), "a file of the host").unwrap();
    let before = held.before();
    let carried = before.iter().find(|file| file["name"] == "/data/carried.0").unwrap();
    assert_eq!((&carried["in_flight"], &carried["holders"]), (&json!(true), &json!([])));
    let rules = [
        format!("/data/carried.0=file:{}/file,pos=start", dir.display()),
        "/data/carried.1=closed,drop".to_owned(),
        "/data/carried.2=container:/data/inside,pos=start".to_owned(),
        held.rule("in-flight.3", "reset"),
    ];
    held.restore(&rules, "").unwrap();
    for (name, answer) in [
        ("in-flight.0", "\"queued\" \"a file of the host\""),
        ("in-flight.1", "\"queued\""),
        ("in-flight.2", "\"queued\" \"inside\""),
        ("in-flight.4", "\"queued\" \"456789\""),
    ] {
        assert_eq!(held.ask_child("receive", name), answer, "{name}");
    }
    assert_eq!(held.ask("read", "in-flight.3"), "ECONNRESET");
    assert_eq!(held.ask("read", "in-flight.3.other"), "\"\"", "its peer is at the end");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_a_connection, |machine| {
    let held = Held::checkpointed(machine, "unix-pair", 2);
    held.restore(&[held.rule("unix-pair.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "unix-pair.0.other"), "\"queued\"", "what waited stays");
    assert_eq!(held.ask("read", "unix-pair.0.other"), "\"\"", "and then it is at its end");
    assert_eq!(held.ask("write x", "unix-pair.0.other"), "EPIPE");
    assert_eq!(held.ask("write x", "unix-pair.1.other"), "1");
    assert_eq!(held.ask("read", "unix-pair.1"), "\"queuedx\"", "another pair talks");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_a_datagram_socket, |machine| {
    let held = Held::checkpointed(machine, "unix-dgram-pair", 2);
    held.restore(&[held.rule("unix-dgram-pair.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "unix-dgram-pair.0.other"), "\"queued\"", "what waited stays");
    assert_eq!(held.ask("read", "unix-dgram-pair.0.other"), "nothing");
    assert_eq!(held.ask("write x", "unix-dgram-pair.0.other"), "ENOTCONN");
    assert_eq!(held.ask("read", "unix-dgram-pair.1"), "\"queued\"");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_pipes, |machine| {
    let held = Held::checkpointed(machine, "pipe-write", 2);
    held.restore(&[held.rule("pipe-write.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "pipe-write.0.other"), "\"queued\"");
    assert_eq!(held.ask("read", "pipe-write.0.other"), "\"\"");
    assert_eq!(held.ask("write x", "pipe-write.1"), "1");
    assert_eq!(held.ask("read", "pipe-write.1.other"), "\"queuedx\"");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_a_pseudoterminal, |machine| {
    let held = Held::checkpointed(machine, "tty-master", 2);
    held.restore(&[held.rule("tty-master.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "tty-master.0.other"), "\"\"", "it is hung up");
    assert_eq!(held.ask("write x", "tty-master.0.other"), "EIO");
    assert_eq!(held.ask("write x", "tty-master.1.other"), "1");
    assert_eq!(held.ask("read", "tty-master.1"), "\"x\"", "another one talks");
    held.bundle.end();
});

on_each_runtime!(the_terminal_of_a_session, |machine| {
    let held = Held::checkpointed(machine, "console", 1);
    held.restore(&[held.rule("console.0", "null")], "").unwrap();
    assert_eq!(held.ask("terminal", "witness"), "a terminal", "nobody has it open, it stays");
    held.bundle.end();
    let rules = [held.rule("console.0", "null"), held.rule("console.0.other", "null")];
    held.restore(&rules, "").unwrap();
    assert_eq!(held.ask("terminal", "witness"), "ENXIO", "it has gone with both sides");
    held.bundle.end();
});
