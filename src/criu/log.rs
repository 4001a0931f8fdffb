//! CRIU's log: the error that made it fail, and what to do about it.
//!
//! A line is `(00.012345)     7: Error (criu/files-reg.c:2175): …`: the time, the process that
//! restores itself if there is one, the level, the place in CRIU's source and the message
//! (`vprint_on_level` in criu/log.c, `pr_err` in criu/include/log.h).

use crate::sys::pid::InnerPid;

/// Why CRIU failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The line of the log, from 1.
    pub line: usize,
    /// The place in CRIU's source, `criu/files-reg.c:2175`.
    pub file: String,
    /// The process that was being restored, as the container sees it.
    pub pid: Option<InnerPid>,
    /// What CRIU said.
    pub message: String,
    /// What can be done, if this is a failure that is known.
    pub hint: Option<&'static str>,
}

/// Finds the first error that counts: one that is known to make CRIU fail, or else the first that
/// is neither known to be harmless nor the mere report of an earlier one.
pub fn explain(log: &[u8]) -> Option<Cause> {
    let mut first = None;
    for (number, line) in log.split(|byte| *byte == b'\n').enumerate() {
        let Some(mut cause) = parse_line(line) else { continue };
        cause.line = number + 1;
        if HARMLESS.iter().any(|words| cause.message.contains(words)) {
            continue;
        }
        cause.hint = hint(&cause.message);
        if cause.hint.is_some() {
            return Some(cause);
        }
        if !CONSEQUENCES.iter().any(|words| cause.message.contains(words)) {
            first = first.or(Some(cause));
        }
    }
    first
}

/// Whether CRIU failed over something that is over in a moment.
pub fn is_passing(log: &[u8]) -> bool {
    let mut causes = log.split(|byte| *byte == b'\n').filter_map(parse_line);
    causes.any(|cause| PASSING.iter().any(|words| cause.message.contains(words)))
}

/// What a program does all the time, and what is found of it only if it is stopped in the middle.
const PASSING: &[&str] = &[
    // A connection that nobody has accepted, and what was written to it (criu/sk-unix.c,
    // criu/sk-inet.c).
    "Non-empty write queue on an in-flight socket",
    "Found a closed in-flight socket",
    "In-flight connection",
    "Dangling connection",
    "External socket is used",
    "Can't dump half of stream unix connection",
    "Can't dump name-less external socket",
    "Connected TCP socket",
    // Messages on their way (criu/sk-queue.c, criu/sk-netlink.c).
    "Control messages in queue",
    "The socket has data to read",
    "Can't dump corked dgram socket",
    // A file whose name was removed or given to another (criu/files-reg.c), a lock
    // (criu/file-lock.c).
    "Can't create link remap",
    "Can't dump ghost file",
    "Unaccessible path opened",
    "Some file locks are hold",
    // A task that waits in the kernel (compel/src/lib/infect.c).
    "Unseizable non-zombie",
];

fn parse_line(line: &[u8]) -> Option<Cause> {
    const LEVEL: &str = "Error (";
    let text = String::from_utf8_lossy(line);
    let start = text.find(LEVEL)?;
    let (place, message) = text[start + LEVEL.len()..].split_once("): ")?;
    let (file, number) = place.rsplit_once(':')?;
    if !file.ends_with(".c") || number.parse::<u32>().is_err() {
        return None;
    }
    let before = text[..start].trim_end().strip_suffix(':');
    let pid = before.and_then(|before| before.rsplit(' ').next()?.parse().ok());
    let (file, message) = (place.to_owned(), message.trim().to_owned());
    Some(Cause { line: 0, file, pid, message, hint: None })
}

/// Errors in the log of a CRIU that succeeds.
const HARMLESS: &[&str] = &[
    // No CAP_SYS_RESOURCE: it goes on with the limit there is.
    "rlimit: Can't setup RLIMIT_NOFILE",
    // Tried, and then done in another way.
    "cgroupns not supported. This is not fatal",
    "Can't restore iptables dump - no legacy version",
];

/// Errors that only report that something else went wrong.
const CONSEQUENCES: &[&str] = &[
    "Dumping FAILED",
    "Restoring FAILED",
    "Pre-dumping FAILED",
    "exited, status=",
    "killed by signal",
    "Unable to open fd=",
    "Can't sent fd",
    "Dump files (pid:",
    // Its helper's socket is closed when a task of the restore dies.
    "cgroupd: recv req error",
];

/// Words of an error and what can be done about it. The first that fits counts.
const HINTS: &[(&[&str], &str)] = &[
    (
        &["has bad size"],
        "the file has changed since the checkpoint: restore it together with its snapshot, or let \
         something take its place with -s",
    ),
    (
        &["has bad mode"],
        "the file's permissions have changed since the checkpoint: restore it together with its \
         snapshot, or let something take its place with -s",
    ),
    (
        &["has bad build-ID"],
        "a program or library has changed since the checkpoint: use the image that it was made with",
    ),
    (
        // CRIU cuts the first character off the name `file[…]` that it gave.
        &["Can't open file ile["],
        "the file comes from outside the container: something has to take its place with -s",
    ),
    (
        &["Can't open file", "on restore: No such file"],
        "the file is gone: restore it together with its snapshot, or let something take its place \
         with -s",
    ),
    (
        &["Can't lookup mount="],
        "the file comes from outside the container: CRIU needs `external file[…]` for it and, at \
         restore, something in its place with -s",
    ),
    (
        &["Open files on overmounted mounts"],
        "something is mounted over the directory that the file is in: unmount it first",
    ),
    (
        &["Connected TCP socket"],
        "there are established TCP connections, and `ocicle check` lists them: --tcp-established keeps them, -s 'all remote:*:*=reset' drops them",
    ),
    (
        &["In-flight connection"],
        "a connection is being made: try again, or drop such ones with `tcp-skip-in-flight` in CRIU's configuration",
    ),
    (&["Some file locks are hold"], "the container holds file locks: --file-locks keeps them"),
    (
        &["Can't dump ghost file"],
        "a deleted file that is still open is large: raise ghost-limit, or close the file",
    ),
    (
        &["Can't create link remap"],
        "a file was removed while another hard link to it remains: `link-remap` in CRIU's \
         configuration lets it link the file for the time of the checkpoint",
    ),
    (
        &["Can't dump that handle"],
        "inotify or fanotify watches a file that cannot be opened by its handle, as on overlay file \
         systems: `force-irmap` and `irmap-scan-path` make CRIU search for it",
    ),
    (
        &["External socket is used"],
        "a unix socket is connected to a process outside the container: --ext-unix-sk allows it for \
         datagram sockets",
    ),
    (
        &["Can't dump half of stream unix connection"],
        "a unix socket is connected to a process outside the container: close it before the \
         checkpoint",
    ),
    (&["Can't dump name-less external socket"], "close the unix socket before the checkpoint"),
    (
        &["FATAL: Peer", "unresolved"],
        "the other end of a unix socket is not among the images: replace both ends or neither",
    ),
    (
        &["No task found with sid"],
        "a terminal comes from outside the container: give it again, or use --shell-job",
    ),
    (&["is not a session leader"], "the first process was started from a shell: use --shell-job"),
    (
        &["Can't fork for", "File exists"],
        "a process with the same number is running here: end it, or give the container a process \
         namespace of its own",
    ),
    (&["do not match expected"], "a process number was taken while CRIU restored it: try again"),
    (
        &["Operation not permitted", "last_pid"],
        "CRIU lacks CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run it as root of the host",
    ),
    (&["vdso"], "this CRIU does not know the kernel's vDSO: install CRIU 4.2 or newer"),
    (&["vDSO"], "this CRIU does not know the kernel's vDSO: install CRIU 4.2 or newer"),
    (
        &["No parent found for mountpoint"],
        "CRIU runs in a chroot: start it in a mount namespace of its own, with pivot_root",
    ),
    (
        &["doesn't have a proper root mount"],
        "a mount comes from outside the container: name it with `external mnt[…]` in CRIU's configuration",
    ),
    (
        &["is autodetected external mount"],
        "a mount comes from outside the container: name it with `external mnt[…]` in CRIU's configuration",
    ),
    (
        &["unreachable sharing"],
        "a mount's propagation leads out of the container: `enable-external-masters` in CRIU's configuration allows it",
    ),
    (
        &["Can't dump nested"],
        "a process in the container has a namespace of its own that CRIU cannot dump",
    ),
    (
        &["Unable to freeze cgroup"],
        "a process in the container does not stop: is it waiting for a device or a network file \
         system?",
    ),
    (
        &["Tracking memory is not available"],
        "this kernel cannot tell which memory was written (CONFIG_MEM_SOFT_DIRTY): make the \
         checkpoint without a previous one",
    ),
    (
        &["memory tracking not supported"],
        "this kernel cannot tell which memory was written (CONFIG_MEM_SOFT_DIRTY): make the \
         checkpoint without a previous one",
    ),
    (&["Locking network failed"], "CRIU found no working iptables: try --network-lock nftables"),
    (
        &["Can't dump file", "of that type"],
        "CRIU cannot save an open file of this type: close it before the checkpoint",
    ),
    (&["Magic doesn't match"], "the images are damaged, or another version of CRIU wrote them"),
    (
        &["No space left on device"],
        "the file system of the image directory is full: free some space",
    ),
];

pub(super) fn hint(message: &str) -> Option<&'static str> {
    let fits = |words: &&[&str]| words.iter().all(|words| message.contains(words));
    HINTS.iter().find(|(words, _)| fits(words)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RLIMIT: &str = "(00.000068) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE \
                          for self: Operation not permitted\n";

    #[test]
    fn the_first_error_that_counts() {
        let log = format!(
            "(00.000001) Version: 4.2.1 (gitid 0)\n{RLIMIT}\
             (00.061240)      7: Warn  (criu/x.c:1): not this\n\
             (00.061242)      7: Error (criu/files-reg.c:2175): File tmp/out has bad size 30 (expect 27)\n\
             (00.061300)      7: Error (criu/files.c:1213): Unable to open fd=3 id=0x5\n\
             (00.070000) Error (criu/cr-restore.c:2324): Restoring FAILED.\n"
        );
        let cause = explain(log.as_bytes()).unwrap();
        assert_eq!((cause.line, cause.pid), (4, Some(InnerPid(7))));
        assert_eq!(cause.file, "criu/files-reg.c:2175");
        assert_eq!(cause.message, "File tmp/out has bad size 30 (expect 27)");
        assert!(cause.hint.unwrap().starts_with("the file has changed"));
    }

    #[test]
    fn a_known_cause_is_better_than_an_unknown_error_before_it() {
        let log = "(00.1) Error (criu/sk-inet.c:9): something\n\
                   (00.2) Error (criu/sk-inet.c:200): Connected TCP socket, consider using --tcp-established option.\n";
        assert_eq!(explain(log.as_bytes()).unwrap().line, 2);
        let cause = explain(log.lines().next().unwrap().as_bytes()).unwrap();
        assert_eq!((cause.line, cause.hint, cause.pid), (1, None, None));
    }

    #[test]
    fn nothing_went_wrong() {
        assert_eq!(explain(RLIMIT.as_bytes()), None);
        assert_eq!(explain(b"(00.1) Dumping finished successfully\nError (\nError (x): y\n"), None);
        assert_eq!(explain(b"Error (criu/cr-dump.c:2128): Dumping FAILED.\n"), None);
    }

    /// Errors of CRIU, cut short, and how the advice begins.
    const KNOWN: &[(&str, &str)] = &[
        (
            "files-reg.c:2329): File tmp/out has bad mode 0100600 (expect 0100644)",
            "the file's perm",
        ),
        ("files-reg.c:2175): File tmp/out has bad size 30 (expect 27)", "the file has changed"),
        ("files-reg.c:2152): File usr/bin/x has bad build-ID", "a program or library has changed"),
        ("files-reg.c:2352): Can't open file var/x on restore: No such file", "the file is gone"),
        (
            "files-reg.c:2353): Can't open file ile[6b:ec] on restore: No such file",
            "the file comes",
        ),
        ("files-reg.c:1790): Can't lookup mount=29 for fd=1 path=/root/out", "the file comes from"),
        (
            "files-reg.c:1796): Open files on overmounted mounts are not supported",
            "something is moun",
        ),
        (
            "sk-inet.c:200): Connected TCP socket, consider using --tcp-established",
            "there are estab",
        ),
        ("sk-inet.c:185): In-flight connection (l) for 4f2", "a connection is being made"),
        (
            "file-lock.c:110): Some file locks are hold by dumping tasks!",
            "the container holds file",
        ),
        (
            "files-reg.c:1031): Can't dump ghost file /tmp/x of 4194304 size",
            "a deleted file that is",
        ),
        ("files-reg.c:1122): Can't create link remap for /tmp/x.", "a file was removed while"),
        ("fsnotify.c:284): \tCan't dump that handle", "inotify or fanotify watches a file"),
        ("sk-unix.c:874): External socket is used.", "a unix socket is connected to a process"),
        (
            "sk-unix.c:881): Can't dump half of stream unix connection.",
            "a unix socket is connected",
        ),
        ("sk-unix.c:868): Can't dump name-less external socket.", "close the unix socket"),
        ("sk-unix.c:2285): FATAL: Peer 17 unresolved for 18", "the other end of a unix socket"),
        ("tty.c:1456): No task found with sid 12", "a terminal comes from outside"),
        (
            "pstree.c:304): The root process 12 is not a session leader.",
            "the first process was sta",
        ),
        ("cr-restore.c:1230): Can't fork for 12: File exists", "a process with the same number"),
        ("cr-restore.c:1539): Pid 13 do not match expected 12", "a process number was taken"),
        (
            "cr-restore.c:1): Can't write last_pid: Operation not permitted",
            "CRIU lacks CAP_CHECKPOINT",
        ),
        ("vdso.c:343): Can't find vDSO/VVAR bounds", "this CRIU does not know the kernel's vDSO"),
        ("vdso.c:1): Can't find vdso", "this CRIU does not know the kernel's vDSO"),
        ("mount.c:381): No parent found for mountpoint 29 (@./)", "CRIU runs in a chroot"),
        ("mount.c:753): 29:./x doesn't have a proper root mount", "a mount comes from outside"),
        ("mount.c:754): 29:./x is autodetected external mount", "a mount comes from outside"),
        ("mount.c:755): Mount 29 has unreachable sharing.", "a mount's propagation leads out"),
        (
            "namespaces.c:460): Can't dump nested uts namespace for 12",
            "a process in the container ha",
        ),
        (
            "seize.c:635): Unable to freeze cgroup /x (timeout: 10s)",
            "a process in the container doe",
        ),
        ("mem.c:1): Tracking memory is not available", "this kernel cannot tell which memory"),
        ("kerndat.c:1): memory tracking not supported", "this kernel cannot tell which memory"),
        ("net.c:3332): Locking network failed: iptables-restore returned 1.", "CRIU found no work"),
        (
            "files-ext.c:98): Can't dump file 3 of that type [20666] (chr 10:229)",
            "CRIU cannot save",
        ),
        ("image.c:501): Magic doesn't match for core-1.img", "the images are damaged"),
        ("page-xfer.c:1): Can't write: No space left on device", "the file system of the image"),
    ];

    #[test]
    fn known_causes() {
        for (line, advice) in KNOWN {
            let line = format!("Error (criu/{line}");
            let cause = explain(format!("{RLIMIT}(00.2)      1: {line}\n").as_bytes()).unwrap();
            let hint = cause.hint.unwrap_or_else(|| panic!("no advice for {line}"));
            assert!(hint.starts_with(advice), "{line}: {hint}");
            assert_eq!((cause.line, cause.pid), (2, Some(InnerPid(1))));
            assert!(line.ends_with(cause.message.as_str()), "{}", cause.message);
        }
    }

    /// Else nobody would see that CRIU says it in other words, or that another row comes first.
    #[test]
    fn every_piece_of_advice_is_given() {
        for (words, advice) in HINTS {
            let is_given = KNOWN.iter().any(|(line, _)| {
                words.iter().all(|words| line.contains(words)) && hint(line) == Some(advice)
            });
            assert!(is_given, "{words:?}");
        }
    }

    #[test]
    fn what_is_over_in_a_moment() {
        for (message, passes) in [
            ("In-flight connection (l) for 4f2", true),
            ("Can't create link remap for /tmp/x. Use link-remap option.", true),
            ("Some file locks are hold by dumping tasks!", true),
            ("Unseizable non-zombie 12 found, state D", true),
            ("Can't dump nested uts namespace for 12", false),
            ("No space left on device", false),
        ] {
            let error = format!("(00.2) Error (criu/x.c:1): {message}\n");
            assert_eq!(is_passing(error.as_bytes()), passes, "{message}");
            // A warning made nothing fail.
            let warning = format!("(00.2) Warn  (criu/x.c:1): {message}\n");
            assert!(!is_passing(warning.as_bytes()), "{message}");
        }
        assert!(!is_passing(b""));
    }

    #[test]
    fn lines_of_another_form_are_no_errors() {
        for line in [
            "Error (criu/x.c:1)",
            "Error (criu/x.c:): y",
            "Error (criu/x.h:1): y",
            "Error (criu/x.c): y",
            "(00.1) Error criu/x.c:1): y",
            "",
        ] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line:?}");
        }
        let pid = |line: &str| parse_line(line.as_bytes()).unwrap().pid.map(|pid| pid.0);
        assert_eq!(pid("(00.1)     12: Error (a.c:1): y"), Some(12));
        assert_eq!(pid("pie: 12: Error (a.c:1): y"), Some(12));
        assert_eq!(pid("Error (a.c:1): y"), None);
        assert_eq!(pid("(00.1) x: Error (a.c:1): y"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = explain(&bytes);
            let _ = explain(&[&b"Error ("[..], &bytes, b".c:1): x"].concat());
        }
    }
}
