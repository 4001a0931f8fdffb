//! An OCI hook, for createRuntime and poststop: clears away what was left of a container.
//!
//! A container that is created anew, or that is gone, has nothing half-made that anybody still
//! needs. Whoever is at work on it holds its lock, and is left alone.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::config::Config;
use crate::container::ensure_name;
use crate::criu::door;
use crate::store::lock::ContainerLock;
use crate::store::versions::Store;

/// The name by which the program knows that it is to be the hook.
pub const NAME: &str = "ocicle-hook";

/// What a runtime may write to a hook.
const LIMIT: u64 = 1 << 20;

/// The state that a runtime gives to its hooks (the OCI runtime specification's *State*).
#[derive(Deserialize)]
struct State {
    id: String,
}

/// The hook's program. It never fails, as then the runtime would not start the container.
pub fn main() -> ExitCode {
    if let Err(error) = clear() {
        eprintln!("{NAME}: {error:#}");
    }
    ExitCode::SUCCESS
}

fn clear() -> Result<()> {
    let mut text = Vec::new();
    let read =
        std::io::stdin().take(LIMIT + 1).read_to_end(&mut text).context("reading the state")?;
    ensure!(read as u64 <= LIMIT, "the state is larger than {LIMIT} bytes");
    let state: State = serde_json::from_slice(&text).context("reading the state")?;
    ensure_name(&state.id)?;
    let doors = door::remove_dead();
    let Some(held) = ContainerLock::take_if_free(&state.id)? else { return doors };
    doors.and(Store::at(&Config::load()?.store).sweep(&state.id, &held))
}
