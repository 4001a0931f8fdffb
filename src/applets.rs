//! The programs that are this one under another name.

use std::path::Path;
use std::process::ExitCode;

use crate::criu::{interposer, protocol};
use crate::guardian;
use crate::hooks;
use crate::{passing, shim};

/// The program that this process was started as, if it is not to be ocicle itself.
pub fn named() -> Option<fn() -> ExitCode> {
    let name = std::env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name()?.to_str()? {
        guardian::NAME => Some(guardian::main),
        guardian::DEPUTY => Some(guardian::deputy_main),
        protocol::INTERPOSER => Some(interposer::main),
        protocol::ACTION => Some(hooks::action::main),
        protocol::ARCHIVER => Some(hooks::archiver::main),
        hooks::oci::NAME => Some(hooks::oci::main),
        passing::RUNTIME => Some(shim::main),
        _ => None,
    }
}
