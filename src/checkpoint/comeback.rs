//! Whether a container that ends with its checkpoint could come back from it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::CheckpointRequest;
use super::parts::PartUnderway;
use crate::container::Container;
use crate::hint::{WithHint, hint_of};
use crate::restorable::{JustTaken, Restorable};
use crate::store;
use crate::store::choices::flag_of;
use crate::store::manifest::Manifest;

/// The annotation that says that a container may end although it could not come back.
const ANNOTATION: &str = "org.ocicle.unrestorable-ok";

const ANYWAY: &str = "--unrestorable-ok, or `unrestorable-ok = true` in the configuration, makes the \
                      checkpoint all the same";

/// Who answers whether a container could come back, if it ends at all.
pub(super) struct Comeback<'a> {
    container: &'a Container,
    restorable: Option<&'a dyn Restorable>,
    /// Whether it may end all the same.
    anyway: bool,
}

impl<'a> Comeback<'a> {
    pub(super) fn of(
        request: &CheckpointRequest,
        container: &'a Container,
        restorable: &'a dyn Restorable,
    ) -> Result<Self> {
        let annotated = flag_of(&container.bundle, ANNOTATION)?;
        Ok(Self {
            container,
            restorable: (!request.leave_running).then_some(restorable),
            anyway: request.unrestorable_ok.or_annotated(annotated),
        })
    }

    /// Asks before anything is done: `volumes` will be taken.
    pub(super) fn ensure_foreseen(&self, volumes: &[(PathBuf, PathBuf)]) -> Result<()> {
        let Some(restorable) = self.restorable else { return Ok(()) };
        self.judge(restorable.ahead(self.container, volumes))
    }

    /// Asks when all is taken, and CRIU still holds the container.
    pub(super) fn ensure_after(
        &self,
        images: &Path,
        manifest: &Manifest,
        parts: &[PartUnderway],
    ) -> Result<()> {
        let Some(restorable) = self.restorable else { return Ok(()) };
        let table = store::table_of(images, manifest)?;
        let parts = parts.iter().map(PartUnderway::taken).collect();
        let container = self.container;
        self.judge(restorable.of_taken(&JustTaken { container, images, manifest, table, parts }))
    }

    fn judge(&self, answer: Result<()>) -> Result<()> {
        let Err(error) = answer else { return Ok(()) };
        let hint = match hint_of(&error) {
            Some(hint) => format!("{hint}; {ANYWAY}"),
            None => ANYWAY.to_owned(),
        };
        let refused = Err::<(), _>(error).context("a restore in place would be refused");
        match refused.hint(hint) {
            Err(error) if self.anyway => {
                tracing::warn!("{error:#}");
                Ok(())
            }
            other => other,
        }
    }
}
