//! The command line of runc and crun, as far as the shim has to understand it.
//!
//! Whatever is not understood stays where it is and reaches the real runtime unchanged.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Global flags of runc and crun that are followed by their value.
const GLOBAL_VALUES: [&str; 9] = [
    "--cgroup-manager",
    "--criu",
    "--log",
    "--log-format",
    "--log-level",
    "--root",
    "--rootless",
    "-c",
    "-r",
];

/// The flag by which a caller says how CRIU shall treat control groups.
pub const CGROUPS_MODE: &str = "--manage-cgroups-mode";

/// Flags of `checkpoint` and `restore` that are followed by their value, in either runtime.
const COMMAND_VALUES: [&str; 21] = [
    "--filesystem",
    "--image-path",
    "--work-path",
    "--parent-path",
    "--status-fd",
    "--page-server",
    CGROUPS_MODE,
    "--empty-ns",
    "--network-lock",
    "--bundle",
    "-b",
    "--console-socket",
    "--pid-file",
    "--lsm-profile",
    "--lsm-mount-context",
    "--substitute",
    "-s",
    "--policy",
    "--preserve-fds",
    "--volumes",
    "--lend",
];

/// Switches of theirs that messages name.
const SWITCHES: [&str; 3] = ["--leave-running", "--detach", "--pre-dump"];

/// Whether runc or crun may be given a flag of that name.
pub fn is_flag_of_runtimes(flag: &str) -> bool {
    GLOBAL_VALUES.iter().chain(&COMMAND_VALUES).chain(&SWITCHES).any(|known| *known == flag)
}

/// A command line, cut where the command's name stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// Everything before the command.
    pub globals: Vec<OsString>,
    /// The command and everything behind it; empty when there is none.
    pub rest: Vec<OsString>,
}

impl CommandLine {
    /// Cuts a command line, which does not hold the program's name.
    pub fn parse(arguments: Vec<OsString>) -> Self {
        let mut at = 0;
        while let Some(argument) = arguments.get(at) {
            if !is_flag(argument) {
                break;
            }
            at += 1 + usize::from(GLOBAL_VALUES.iter().any(|flag| argument == flag));
        }
        let at = at.min(arguments.len());
        let mut globals = arguments;
        let rest = globals.split_off(at);
        Self { globals, rest }
    }

    /// The command's name.
    pub fn command(&self) -> Option<&str> {
        self.rest.first()?.to_str()
    }
}

/// A `checkpoint` or `restore`, as engines call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The container.
    pub id: String,
    /// All flags with their values, in their order, without ocicle's own.
    pub flags: Vec<OsString>,
    /// The values of ocicle's own `--substitute`.
    pub substitute: Vec<String>,
    /// The values of ocicle's own `--policy`.
    pub policies: Vec<String>,
    /// The values of ocicle's own `--volumes`.
    pub volumes: Vec<String>,
    /// The values of ocicle's own `--lend`.
    pub lend: Vec<String>,
}

impl Call {
    /// Reads what stands behind the command's name. `None` when the real runtime has to answer:
    /// a request for help, no container, or something that it will refuse.
    pub fn parse(arguments: &[OsString]) -> Option<Self> {
        let (id, flags) = arguments.split_last()?;
        let asks_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
        if is_flag(id) || asks_help || !are_whole(flags) {
            return None;
        }
        let (flags, substitute) = take_values(flags, &["--substitute", "-s"])?;
        let (flags, policies) = take_values(&flags, &["--policy"])?;
        let (flags, volumes) = take_values(&flags, &["--volumes"])?;
        let (flags, lend) = take_values(&flags, &["--lend"])?;
        Some(Self { id: id.to_str()?.to_owned(), flags, substitute, policies, volumes, lend })
    }

    /// Whether a flag without a value is there.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|argument| {
            argument == flag || argument.as_bytes() == [flag.as_bytes(), b"=true"].concat()
        })
    }

    /// The last value of a flag.
    pub fn value(&self, flag: &str) -> Option<&OsStr> {
        value_of(&self.flags, flag)
    }

    /// The last value of a flag that names a file.
    pub fn path(&self, flag: &str) -> Option<PathBuf> {
        self.value(flag).map(PathBuf::from)
    }
}

/// The last value of a flag, written `--flag value` or `--flag=value`.
pub fn value_of<'a>(arguments: &'a [OsString], flag: &str) -> Option<&'a OsStr> {
    let mut found = None;
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        at += 1;
        if argument == flag {
            found = arguments.get(at).map(OsString::as_os_str);
            at += 1;
        } else if let Some(value) = inline_value(argument, flag) {
            found = Some(value);
        } else {
            at += usize::from(takes_next(Some(argument)));
        }
    }
    found
}

/// The flags without `flag` and its value.
pub fn without(arguments: &[OsString], flag: &str) -> Vec<OsString> {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == flag {
            rest.next();
        } else if inline_value(argument, flag).is_none() {
            kept.push(argument.clone());
        }
    }
    kept
}

/// The flags, with another value where `flag` has one.
pub(super) fn replaced(arguments: &[OsString], flag: &str, value: &OsStr) -> Vec<OsString> {
    let mut new = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == flag {
            rest.next();
            new.extend([flag.into(), value.to_owned()]);
        } else if inline_value(argument, flag).is_some() {
            new.push([OsStr::new(flag), OsStr::new("="), value].into_iter().collect());
        } else {
            new.push(argument.clone());
            if takes_next(Some(argument)) {
                new.extend(rest.next().cloned());
            }
        }
    }
    new
}

/// Global flags without those that direct the runtime's log.
pub(super) fn without_log(globals: &[OsString]) -> Vec<OsString> {
    without(&without(globals, "--log"), "--log-format")
}

fn is_flag(argument: &OsStr) -> bool {
    let bytes = argument.as_bytes();
    bytes.len() > 1 && bytes[0] == b'-'
}

fn takes_next(argument: Option<&OsString>) -> bool {
    argument.is_some_and(|argument| {
        GLOBAL_VALUES.iter().chain(&COMMAND_VALUES).any(|flag| argument == flag)
    })
}

/// Whether the last flag has its value: else the word behind it is the value, and no container.
fn are_whole(flags: &[OsString]) -> bool {
    let mut rest = flags.iter();
    while let Some(argument) = rest.next() {
        if takes_next(Some(argument)) && rest.next().is_none() {
            return false;
        }
    }
    true
}

fn inline_value<'a>(argument: &'a OsStr, flag: &str) -> Option<&'a OsStr> {
    let value = argument.as_bytes().strip_prefix(flag.as_bytes())?.strip_prefix(b"=")?;
    Some(OsStr::from_bytes(value))
}

/// Takes a flag of several names out, and its values.
fn take_values(flags: &[OsString], names: &[&str]) -> Option<(Vec<OsString>, Vec<String>)> {
    let (mut kept, mut values) = (Vec::new(), Vec::new());
    let mut rest = flags.iter();
    while let Some(argument) = rest.next() {
        let inline = names.iter().find_map(|name| inline_value(argument, name));
        if names.iter().any(|name| argument == name) {
            values.push(rest.next()?.to_str()?.to_owned());
        } else if let Some(value) = inline {
            values.push(value.to_str()?.to_owned());
        } else {
            kept.push(argument.clone());
            if takes_next(Some(argument)) {
                kept.extend(rest.next().cloned());
            }
        }
    }
    Some((kept, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_command_stands_behind_the_global_flags() {
        for (line, globals, command) in [
            ("--root /x --log-format=json --systemd-cgroup state web", 4, Some("state")),
            ("--unknown checkpoint web", 1, Some("checkpoint")),
            ("--root checkpoint restore web", 2, Some("restore")),
            ("--version", 1, None),
            ("--root", 1, None),
            ("", 0, None),
        ] {
            let parsed = CommandLine::parse(words(line));
            assert_eq!((parsed.globals.len(), parsed.command()), (globals, command), "{line}");
        }
    }

    #[test]
    fn the_container_is_the_last_word() {
        let call = Call::parse(&words(
            "--image-path /i --work-path=/w --leave-running --leave-running --new thing web",
        ))
        .unwrap();
        assert_eq!(call.id, "web");
        assert!(call.has("--leave-running") && !call.has("--pre-dump"));
        assert_eq!(call.path("--image-path").unwrap().to_str(), Some("/i"));
        assert_eq!(call.path("--work-path").unwrap().to_str(), Some("/w"));
        assert_eq!(call.flags.len(), 7);
    }

    #[test]
    fn a_value_is_not_taken_for_a_flag() {
        let call = Call::parse(&words("--work-path --image-path --pid-file /p web")).unwrap();
        assert_eq!(call.value("--image-path"), None);
        assert_eq!(call.value("--work-path").unwrap(), "--image-path");
    }

    #[test]
    fn the_runtime_answers_what_has_no_container() {
        for line in [
            "",
            "--help",
            "--image-path /i",
            "--lsm-mount-context",
            "web --help",
            "-h web",
            "--leave-running",
        ] {
            assert_eq!(Call::parse(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn substitutions_are_ours() {
        let call = Call::parse(&words(
            "-s 3,0 --detach --substitute=7:1=null --policy x --volumes=all --lend 30,31 --bundle \
                 -s web",
        ))
        .unwrap();
        assert_eq!(call.policies, ["x"]);
        assert_eq!(
            (&call.volumes[..], &call.lend[..]),
            (&["all".into()][..], &["30,31".into()][..])
        );
        assert_eq!(call.substitute, ["3,0", "7:1=null"]);
        assert_eq!(call.flags, words("--detach --bundle -s"));
    }

    #[test]
    fn a_value_is_replaced_wherever_it_stands() {
        for (before, after) in [
            ("--root --log --log /a --debug", "--root --log --log /b --debug"),
            ("--log=/a --log /a", "--log=/b --log /b"),
            ("--log-format json", "--log-format json"),
        ] {
            assert_eq!(replaced(&words(before), "--log", OsStr::new("/b")), words(after));
        }
    }

    #[test]
    fn our_own_calls_leave_the_log_alone() {
        assert_eq!(without_log(&words("--log /l --root /r --log-format=json")), words("--root /r"));
    }
}
