//! The archiver: what CRIU finds as `tar` on its `PATH`.
//!
//! CRIU keeps a tmpfs as `tar --create --gzip … --directory D .` packs it, and makes it again by
//! `tar --extract --gzip … --directory D` (`tmpfs_dump` and `tmpfs_restore` in criu/filesystems.c).
//! GNU tar starts a shell and gzip for that, and the container stands still for all of it. A program
//! that becomes another one anyway is quicker, and compresses nothing.

use std::ffi::OsString;
use std::path::PathBuf;

/// What CRIU asks of tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarCall {
    /// Pack this directory, to standard output.
    Pack(PathBuf),
    /// Unpack standard input into this directory.
    Unpack(PathBuf),
}

/// What CRIU says beside the action: the form of the archive, which is ours. Two of them are about names
/// that CRIU does not give (`--no-unquote`, `--no-wildcards`), and tell its calls from others'.
const OPTIONS: [&str; 8] = [
    "--gzip",
    "--no-unquote",
    "--no-wildcards",
    "--one-file-system",
    "--check-links",
    "--preserve-permissions",
    "--sparse",
    "--numeric-owner",
];

impl TarCall {
    /// What these arguments ask for, if CRIU could have given them. Anything else is for tar.
    pub fn of(arguments: &[OsString]) -> Option<Self> {
        let (action, rest) = arguments.split_first()?;
        let at = rest.iter().position(|argument| argument == "--directory")?;
        let (options, rest) = rest.split_at(at);
        let options: Vec<_> =
            options.iter().map(|option| option.to_str()).collect::<Option<_>>()?;
        let always = ["--gzip", "--no-unquote", "--no-wildcards"];
        let is_criu = always.iter().all(|option| options.contains(option))
            && options.iter().all(|option| OPTIONS.contains(option));
        if !is_criu {
            return None;
        }
        match (action.to_str()?, rest) {
            ("--create", [_, directory, what]) if what == "." && options.contains(&"--sparse") => {
                Some(Self::Pack(directory.into()))
            }
            ("--extract", [_, directory]) => Some(Self::Unpack(directory.into())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &str) -> Option<TarCall> {
        TarCall::of(&arguments.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_criu_calls() {
        let pack = "--create --gzip --no-unquote --no-wildcards --one-file-system --check-links \
                    --preserve-permissions --sparse --numeric-owner --directory /proc/self/fd/0 .";
        assert_eq!(of(pack), Some(TarCall::Pack("/proc/self/fd/0".into())));
        let unpack = "--extract --gzip --no-unquote --no-wildcards --directory /tmp/x";
        assert_eq!(of(unpack), Some(TarCall::Unpack("/tmp/x".into())));
    }

    #[test]
    fn what_others_call_is_for_tar() {
        for other in [
            "",
            "--version",
            "-xzf a.tar.gz",
            "--extract --directory /tmp/x",
            "--extract --gzip --directory /tmp/x",
            "--extract --gzip --no-unquote --no-wildcards --directory",
            "--extract --gzip --no-unquote --no-wildcards --directory /tmp/x name",
            "--extract --gzip --no-unquote --no-wildcards --xattrs --directory /tmp/x",
            "--create --gzip --no-unquote --no-wildcards --sparse --directory /tmp/x",
            "--create --gzip --no-unquote --no-wildcards --sparse --directory /tmp/x a b",
            "--create --gzip --no-unquote --no-wildcards --directory /tmp/x .",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
