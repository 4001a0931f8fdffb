//! The command line of runc and crun, with another checkpoint and restore: what `ocicle-runtime`
//! becomes for these two.
//!
//! Everything else is the real runtime's, and [passed on](crate::passing): same arguments, descriptors,
//! environment and exit status.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::check::mistakes;
use crate::checkpoint::{self, checkpoint};
use crate::config::Config;
use crate::container::{Bundle, Container};
use crate::container::{Volumes, ensure_name};
use crate::hint::WithHint;
use crate::lend::Handed;
use crate::passing::{bundle_of, pass_on, report, warn};
use crate::restore;
use crate::runtime::Runtime;
use crate::runtime::arguments::{Call, CommandLine, without};
use crate::runtime::exit::Ended;
use crate::store::choices::{self, Filesystem};
use crate::store::lock::ContainerLock;
use crate::sys::named::Names;
use crate::sys::process::InheritedFds;

/// Flags of `checkpoint` with which the runtime makes no checkpoint that could be restored from
/// its directory alone: ocicle has nothing to add to them.
const PARTIAL: [&str; 3] = ["--pre-dump", "--lazy-pages", "--page-server"];

/// The shim's program.
pub fn main() -> ExitCode {
    let inherited = InheritedFds::capture();
    let line = CommandLine::parse(std::env::args_os().skip(1).collect());
    match inherited.and_then(|inherited| serve(&line, inherited)) {
        Ok(status) => status,
        Err(error) => {
            report(&line.globals, &error);
            ExitCode::FAILURE
        }
    }
}

fn serve(line: &CommandLine, inherited: InheritedFds) -> Result<ExitCode> {
    let find = |config: &Config| -> Result<Runtime> {
        Ok(Runtime::find(config.runtime.as_deref())?.with_globals(line.globals.clone()))
    };
    let behind = line.rest.get(1..).unwrap_or_default();
    match (line.command(), Call::parse(behind)) {
        (Some("checkpoint"), Some(call))
            if !PARTIAL.iter().any(|flag| call.has(flag) || call.value(flag).is_some()) =>
        {
            let config = Config::load()?;
            serve_checkpoint(find(&config)?, &config, &call)
        }
        (Some("restore"), Some(call)) => {
            let config = Config::load()?;
            serve_restore(find(&config)?, &config, call, inherited, &line.rest)
        }
        (Some("create" | "run"), _) => {
            look_at_annotations(line);
            pass_on(line)
        }
        _ => pass_on(line),
    }
}

/// Says what is wrong with the annotations of a container that is about to be made. It is made all the
/// same: it may never be checkpointed.
fn look_at_annotations(line: &CommandLine) {
    // What is wrong with the bundle itself, the runtime says.
    let Ok(bundle) = Bundle::read(&bundle_of(&line.rest)) else { return };
    for mistake in mistakes(&bundle) {
        let mistake = mistake.context("this container cannot be checkpointed as it is");
        warn(&line.globals, &mistake.hint("correct the annotation, and make the container anew"));
    }
}

fn serve_checkpoint(runtime: Runtime, config: &Config, call: &Call) -> Result<ExitCode> {
    let context = || format!("checkpointing {}", call.id);
    ensure_name(&call.id)?;
    let held = ContainerLock::take(&call.id).with_context(context)?;
    let configured = config.checkpoint(runtime, &call.id, images_of(call)?);
    let own = ["--image-path", "--work-path", FILESYSTEM];
    let request = checkpoint::CheckpointRequest {
        work: call.path("--work-path"),
        flags: config.criu.complete(other_flags(call, &own)),
        leave_running: call.has("--leave-running"),
        volumes: configured.volumes.asked(volumes_of(call)?),
        filesystem: configured.filesystem.asked(filesystem_of(call)?),
        ..configured
    };
    let container = Container::discover(&request.runtime, &call.id).with_context(context)?;
    let in_place = config.in_place(&request.runtime, &container);
    checkpoint(&request, &container, &in_place, &held, &()).with_context(context)?;
    Ok(ExitCode::SUCCESS)
}

fn serve_restore(
    runtime: Runtime,
    config: &Config,
    call: Call,
    inherited: InheritedFds,
    rest: &[OsString],
) -> Result<ExitCode> {
    let images = images_of(&call)?;
    if !restore::is_ours(&images)? {
        return Err(runtime.exec(rest));
    }
    ensure_name(&call.id)?;
    let held = ContainerLock::take(&call.id)?;
    let own = ["--image-path", "--work-path", "--bundle", "-b", PRESERVE];
    let handed = handed(&call, &inherited)?;
    let bundle = call.path("--bundle").or_else(|| call.path("-b")).unwrap_or_else(|| ".".into());
    let configured = config.restore(runtime, &call.id, images, bundle);
    let request = restore::RestoreRequest {
        work: call.path("--work-path"),
        flags: config.criu.complete(other_flags(&call, &own)),
        volumes: configured.volumes.asked(volumes_of(&call)?),
        rules: call.substitute,
        policies: call.policies,
        handed,
        inherited,
        ..configured
    };
    let ended = restore::restore(&request, &held, &())
        .with_context(|| format!("restoring {}", request.id))?;
    Ok(status_of(&ended))
}

/// The flags of a call but for these, which have a value each.
fn other_flags(call: &Call, own: &[&str]) -> Vec<OsString> {
    own.iter().fold(call.flags.clone(), |flags, flag| without(&flags, flag))
}

/// ocicle's own flag of `checkpoint`.
const FILESYSTEM: &str = "--filesystem";

fn filesystem_of(call: &Call) -> Result<Option<Filesystem>> {
    let Some(value) = call.value(FILESYSTEM) else { return Ok(None) };
    choices::parse(&value.to_string_lossy()).context(FILESYSTEM).map(Some)
}

/// The flag of runc's `run` and `exec` that hands over descriptors. Its `restore` has none, and
/// needs none: what is handed over here comes to CRIU.
const PRESERVE: &str = "--preserve-fds";

/// The descriptors that the caller hands over as such.
fn handed(call: &Call, inherited: &InheritedFds) -> Result<Handed> {
    let lent = call.lend.iter().map(|text| text.parse().context("--lend"));
    let preserved = call.value(PRESERVE).map(|count| count.to_string_lossy().parse::<u16>());
    let preserved = preserved.transpose().context(PRESERVE)?.unwrap_or(0);
    Handed::new(inherited, &lent.collect::<Result<Vec<_>>>()?, &Names::of_environment(), preserved)
}

/// ocicle's own flag of `checkpoint` and `restore`: the last one counts.
fn volumes_of(call: &Call) -> Result<Option<Volumes>> {
    call.volumes.last().map(|value| value.parse().context("--volumes")).transpose()
}

/// The image directory of a call; runc and crun take `checkpoint` where none is named.
fn images_of(call: &Call) -> Result<PathBuf> {
    let named = call.path("--image-path").unwrap_or_else(|| "checkpoint".into());
    std::path::absolute(&named).with_context(|| format!("finding {}", named.display()))
}

fn status_of(ended: &Ended) -> ExitCode {
    match ended {
        Ended::Exit(status) => u8::try_from(*status).map_or(ExitCode::FAILURE, ExitCode::from),
        // As shells and runc do.
        Ended::Signal(signal) => {
            u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Ended::NotStarted(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_handed_on() {
        let shown = |ended| format!("{:?}", status_of(&ended));
        assert_eq!(shown(Ended::Exit(7)), format!("{:?}", ExitCode::from(7)));
        assert_eq!(shown(Ended::Signal(9)), format!("{:?}", ExitCode::from(137)));
        assert_eq!(shown(Ended::Exit(-1)), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(shown(Ended::NotStarted("x".into())), format!("{:?}", ExitCode::FAILURE));
    }
}
