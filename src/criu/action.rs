//! CRIU's action script: brings the points of a dump to ocicle's door.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::protocol::{ACTION, Answer, Knock, knock};
use crate::proc::Proc;
use crate::sys::loopback;
use crate::sys::pid::Pid;

/// CRIU has started, and has looked at no process yet (cr_dump_tasks in criu/cr-dump.c).
pub const PRE_DUMP: &str = "pre-dump";

/// All images are written and every task is stopped; what the script says now decides whether
/// CRIU goes on (criu(8), `--action-script`; cr_dump_finish in criu/cr-dump.c).
pub const POST_DUMP: &str = "post-dump";

/// The namespaces of a restore are made, and no process has a socket yet (restore_root_task in
/// criu/cr-restore.c).
const SETUP_NAMESPACES: &str = "setup-namespaces";

/// The action script's program.
pub fn main() -> ExitCode {
    let outcome = match std::env::var("CRTOOLS_SCRIPT_ACTION") {
        Ok(point) if point == PRE_DUMP || point == POST_DUMP => ask(point),
        Ok(point) if point == SETUP_NAMESPACES => set_loopback_up(),
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{ACTION}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// At a restore CRIU has the script only for this: runc has it make the container's network anew, and
/// nobody sets that up. What listens on 127.0.0.1 could not be bound.
fn set_loopback_up() -> Result<()> {
    let init = std::env::var("CRTOOLS_INIT_PID").context("CRIU names no process")?;
    let init: Pid = init.parse().context("reading the number of the first process")?;
    loopback::set_up(&Proc::of(init).at("ns/net")).context("setting the loopback interface up")
}

fn ask(point: String) -> Result<()> {
    let (answer, _) = knock(&Knock::Action(point)).context("asking whether to go on")?;
    match answer {
        Answer::Continue => Ok(()),
        Answer::Stop(why) => bail!(why),
        Answer::Become { .. } => bail!("that is no answer for an action script"),
    }
}
