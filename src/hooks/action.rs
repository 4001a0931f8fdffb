//! CRIU's action script, for a runtime that ocicle started and for one that it did not.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::caller::Caller;
use crate::checkpoint::{self, ImagesIn};
use crate::config::Config;
use crate::container::Container;
use crate::container::ensure_name;
use crate::criu::{action, protocol};
use crate::hint::hint_of;
use crate::restore::{self, InPlace};
use crate::runtime::arguments::without;
use crate::store::lock::ContainerLock;

/// CRIU's name of the point at which nothing of the container has been made yet (cr_restore_tasks
/// in criu/cr-restore.c).
const PRE_RESTORE: &str = "pre-restore";

/// The action script's program.
pub fn main() -> ExitCode {
    // ocicle waits at its door for the one that it named itself.
    if std::env::var_os(protocol::VARIABLE).is_some() {
        return action::main();
    }
    let outcome = match std::env::var("CRTOOLS_SCRIPT_ACTION").as_deref() {
        Ok(action::POST_DUMP) => commit().context("taking the snapshot"),
        Ok(PRE_RESTORE) => put_back().context("putting the files back"),
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let hint = hint_of(&error).map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
            eprintln!("{}: {error:#}{hint}", protocol::ACTION);
            ExitCode::FAILURE
        }
    }
}

/// Where the images are: CRIU gives a name below `/proc` (run_shell_scripts in
/// criu/action-scripts.c), of which the runtime's own is worth more in messages.
fn images() -> Result<PathBuf> {
    let path = std::env::var_os("CRTOOLS_IMAGE_DIR").context("CRTOOLS_IMAGE_DIR is not set")?;
    let path = PathBuf::from(path);
    fs::canonicalize(&path).with_context(|| format!("opening {}", path.display()))
}

/// Every process is stopped by CRIU, which fails, and lets go of them, if we do.
fn commit() -> Result<()> {
    let images = images()?;
    let caller = Caller::find("checkpoint")?;
    ensure_name(&caller.call.id)?;
    let config = Config::load()?;
    let held = ContainerLock::take(&caller.call.id)?;
    let flags = ["--image-path", "--work-path"];
    let request = checkpoint::CheckpointRequest {
        flags: flags.iter().fold(caller.call.flags.clone(), |flags, flag| without(&flags, flag)),
        leave_running: caller.call.has("--leave-running"),
        stage: ImagesIn::Disk,
        // CRIU has decided over every open file.
        configured: Vec::new(),
        ..config.checkpoint(caller.runtime, &caller.call.id, images)
    };
    let container = Container::discover(&request.runtime, &request.id)?;
    let in_place = InPlace::by_runtime(config.restore_of(&request.runtime, &container));
    checkpoint::under_dump(&request, &container, &in_place, &held)
}

fn put_back() -> Result<()> {
    let images = images()?;
    if !restore::is_ours(&images)? {
        return Ok(());
    }
    let caller = Caller::find("restore")?;
    ensure_name(&caller.call.id)?;
    let held = ContainerLock::take(&caller.call.id)?;
    let config = Config::load()?;
    let bundle = caller.bundle().to_owned();
    let request = config.restore(caller.runtime, &caller.call.id, images, bundle);
    restore::put_back(&request, &held)
}
