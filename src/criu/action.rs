//! CRIU's action script: brings the points of a dump to ocicle's door.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::protocol::{ACTION, Answer, Knock, knock};

/// CRIU has started, and has looked at no process yet (cr_dump_tasks in criu/cr-dump.c).
pub const PRE_DUMP: &str = "pre-dump";

/// All images are written and every task is stopped; what the script says now decides whether
/// CRIU goes on (criu(8), `--action-script`; cr_dump_finish in criu/cr-dump.c).
pub const POST_DUMP: &str = "post-dump";

/// The action script's program. Two points are of interest.
pub fn main() -> ExitCode {
    match std::env::var("CRTOOLS_SCRIPT_ACTION") {
        Ok(point) if point == PRE_DUMP || point == POST_DUMP => match ask(point) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{ACTION}: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::SUCCESS,
    }
}

fn ask(point: String) -> Result<()> {
    let (answer, _) = knock(&Knock::Action(point)).context("asking whether to go on")?;
    match answer {
        Answer::Continue => Ok(()),
        Answer::Stop(why) => bail!(why),
        Answer::Become { .. } => bail!("that is no answer for an action script"),
    }
}
