//! Descriptors that a caller hands in.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use super::{check_access, check_type};
use crate::files::OpenFile;
use crate::substitute::callers::Callers;
use crate::substitute::rule::Rule;
use crate::substitute::source::Access;

/// Takes what a rule names, if it fits.
pub(super) fn take(rule: &Rule, file: &OpenFile, callers: &Callers) -> Result<OwnedFd, String> {
    let (number, fd) = callers.descriptor(rule)?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| error.to_string())?;
    check_access(Access::of(flags.bits()), file)?;
    if flags.contains(OFlags::PATH) && file.flags & OFlags::PATH.bits() == 0 {
        return Err(format!("fd {number} was opened with O_PATH, the original was not"));
    }
    check_type(&fd, file)?;
    Ok(fd)
}
