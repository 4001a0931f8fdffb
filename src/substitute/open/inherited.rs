//! Descriptors that the caller left open.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use super::{check_access, check_type};
use crate::bytes::ByteString;
use crate::files::OpenFile;
use crate::substitute::source::Access;
use crate::sys;

/// Duplicates an inherited descriptor, if it fits.
pub(super) fn take(number: i32, file: &OpenFile) -> Result<OwnedFd, String> {
    let fd = sys::fd::duplicate(number).map_err(|error| match error.raw_os_error() {
        Some(libc::EBADF) => format!("fd {number} is not open"),
        _ => format!("duplicating fd {number}: {error}"),
    })?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| error.to_string())?;
    check_access(Access::of(flags.bits()), file)?;
    if flags.contains(OFlags::PATH) && file.flags & OFlags::PATH.bits() == 0 {
        return Err(format!("fd {number} was opened with O_PATH, the original was not"));
    }
    check_type(&fd, file)?;
    Ok(fd)
}

/// The number of the descriptor that the caller has given that name (sd_listen_fds(3)).
pub fn named(name: &ByteString) -> Result<i32, String> {
    let variable = |name: &str| std::env::var(name).ok();
    find(name, std::process::id(), &variable)
}

fn find(
    name: &ByteString,
    own: u32,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<i32, String> {
    const FIRST: i32 = 3;
    let number = |name: &str| variable(name).and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(own) {
        return Err("no descriptor has a name here: LISTEN_PID is not this process".to_owned());
    }
    let count = number("LISTEN_FDS").unwrap_or_default() as usize;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut numbers = (FIRST..)
        .zip(names.split(':').take(count))
        .filter(|(_, is)| is.as_bytes() == name.as_bytes())
        .map(|(number, _)| number);
    match (numbers.next(), numbers.next()) {
        (Some(number), None) => Ok(number),
        (None, _) => Err(format!("LISTEN_FDNAMES has no {name}: it is {names:?}")),
        (Some(_), Some(_)) => Err(format!("LISTEN_FDNAMES has more than one {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_from_three() {
        let environment = |name: &str| {
            Some(match name {
                "LISTEN_PID" => "7".to_owned(),
                "LISTEN_FDS" => "4".to_owned(),
                _ => "web:log:log:x:beyond".to_owned(),
            })
        };
        let find = |name: &str, own| find(&name.into(), own, &environment);
        assert_eq!(find("web", 7), Ok(3));
        assert_eq!(find("x", 7), Ok(6));
        assert!(find("log", 7).unwrap_err().contains("more than one"));
        assert!(find("beyond", 7).unwrap_err().contains("has no"));
        assert!(find("web", 8).unwrap_err().contains("LISTEN_PID"));
    }
}
