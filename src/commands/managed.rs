//! Containers that an engine looks after: it does not see what is done to them behind its back.

use anyhow::{Result, anyhow};

use crate::container::{Bundle, Container, Engine, Identity};
use crate::hint::WithHint;

/// What the engine of a bundle calls its container.
fn called(id: &str, bundle: &Bundle) -> String {
    Identity::of(id, bundle).names.into_iter().next().unwrap_or_else(|| id.to_owned())
}

/// Refuses to end a container that an engine looks after: it would take it for one that has ended, and
/// could not go on from a checkpoint that it knows nothing of.
pub(super) fn ensure_may_end(container: &Container) -> Result<()> {
    let engine = container.bundle.engine();
    if !engine.looks_after_them() {
        return Ok(());
    }
    let name = called(&container.id, &container.bundle);
    let namespace = Engine::namespace_of(&container.bundle.directory);
    let command = engine.checkpoint_command(&name, namespace);
    let engine = engine.as_str();
    Err(anyhow!(
        "it is {engine}'s container {name}, and {engine} would not know that it has a checkpoint"
    )
    .hint(format!(
        "`{command}` makes one that {engine} knows, by ocicle-runtime; --leave-running lets it go on, \
         --force ends it all the same"
    )))
}

/// Refuses to start a container that an engine takes for one that has ended: it would start it once
/// more, and two would write to the same files.
pub(super) fn ensure_may_start(id: &str, bundle: &Bundle) -> Result<()> {
    let engine = bundle.engine();
    if !engine.looks_after_them() {
        return Ok(());
    }
    let name = called(id, bundle);
    let own = engine.restore_command(&name).map_or_else(
        || format!("have {engine} restore it", engine = engine.as_str()),
        |command| format!("`{command}` goes on from {engine}'s own", engine = engine.as_str()),
    );
    let engine = engine.as_str();
    Err(anyhow!(
        "its bundle is of {engine}'s container {name}, and {engine} would start it a second time"
    )
    .hint(format!(
        "{own}; --bundle DIR makes another container of it, --force starts it where {engine} does not \
         know"
    )))
}
