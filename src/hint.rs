//! Errors that carry advice.

use std::fmt;

/// Advice, attached to an error: what its reader can do next. Shown on a line of its own.
#[derive(Clone, Debug)]
struct Hint(String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error's message with advice beside it.
#[derive(Debug)]
struct Hinted {
    error: anyhow::Error,
    hint: Hint,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}

impl std::error::Error for Hinted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.chain().nth(1)
    }
}

/// Attaching advice.
pub trait WithHint {
    /// What comes out.
    type Hinted;

    /// Adds what the reader can do next.
    fn hint(self, hint: impl Into<String>) -> Self::Hinted;
}

impl WithHint for anyhow::Error {
    type Hinted = Self;

    fn hint(self, hint: impl Into<String>) -> Self {
        Self::new(Hinted { error: self, hint: Hint(hint.into()) })
    }
}

impl<T, E: Into<anyhow::Error>> WithHint for Result<T, E> {
    type Hinted = anyhow::Result<T>;

    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| error.into().hint(hint))
    }
}

/// The advice of an error, the outermost first; what the system said has its own.
pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Hinted>())
        .map(|hinted| hinted.hint.0.as_str())
        .or_else(|| error.chain().find_map(hint_of_system))
}

fn hint_of_system(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use std::io::ErrorKind;
    let kind = match cause.downcast_ref::<rustix::io::Errno>() {
        Some(errno) => errno.kind(),
        None => cause.downcast_ref::<std::io::Error>()?.kind(),
    };
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(FULL),
        ErrorKind::PermissionDenied if !rustix::process::geteuid().is_root() => {
            Some("run it as root, with sudo say")
        }
        ErrorKind::ReadOnlyFilesystem => {
            Some("it is mounted read-only: name a directory elsewhere, with --store")
        }
        _ => None,
    }
}

/// What to do about a full disk.
pub const FULL: &str = "free some space there, or keep checkpoints on another file system";

/// What to do about an annotation that means nothing: an engine writes `config.json` anew from what it
/// was told when the container was made.
pub const CORRECT: &str = "correct it in config.json; below an engine, make the container anew with the \
                       annotation corrected";

/// What to do about a checkpoint that is not as it was written.
pub const DAMAGED: &str = "nothing was changed; copy it again from where it came from, or use another \
                       version (`ocicle list` shows them)";

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn advice_survives_context_and_is_not_in_the_message() {
        let error: anyhow::Result<()> = Err(anyhow!("inner")).context("outer").hint("do this");
        let error = error.context("more").unwrap_err();
        assert_eq!(hint_of(&error), Some("do this"));
        assert_eq!(format!("{error:#}"), "more: outer: inner");
        assert_eq!(hint_of(&anyhow!("none")), None);
    }

    #[test]
    fn a_full_disk_has_advice_of_its_own() {
        let full = || std::io::Error::from_raw_os_error(libc::ENOSPC);
        let error = anyhow::Error::from(full()).context("writing x");
        assert!(hint_of(&error).unwrap().starts_with("free some space"));
        let error = anyhow::Error::from(rustix::io::Errno::NOSPC).context("writing x");
        assert!(hint_of(&error).unwrap().starts_with("free some space"));
        let error = anyhow::Error::from(full()).hint("nearer").context("writing x");
        assert_eq!(hint_of(&error), Some("nearer"));
    }
}
