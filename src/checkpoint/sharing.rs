//! Volumes of the checkpoint that other containers can write, and what is done about it.

use std::path::PathBuf;

use anyhow::{Result, anyhow};

use super::CheckpointRequest;
use super::freeze::guard_and_freeze;
use crate::container::shared::{ADVICE, VolumeUser, writers_of};
use crate::container::{Container, Shared};
use crate::fault::{self, Point};
use crate::freezer::{Freezer, Frozen};
use crate::guardian::Guardian;
use crate::hint::WithHint;

/// Who shares volumes with a container.
#[derive(Default)]
pub(super) struct Sharing {
    rule: Shared,
    volumes: Vec<(PathBuf, PathBuf)>,
    known: Vec<VolumeUser>,
    freezers: Vec<Freezer>,
}

/// The control groups of those, stopped.
pub(super) struct Others<'a>(Vec<Frozen<'a>>);

impl Sharing {
    /// Looks who it is, and does what the rule says of it.
    pub(super) fn find(
        container: &Container,
        volumes: &[(PathBuf, PathBuf)],
        rule: Shared,
    ) -> Result<Self> {
        let volumes = volumes.to_vec();
        let mut sharing = Self { rule, volumes, known: Vec::new(), freezers: Vec::new() };
        for (volume, user) in sharing.users(container)? {
            let volume = volume.display();
            match rule {
                Shared::Error => {
                    let error = anyhow!("{user} can write the volume {volume} too");
                    return Err(error.hint(ADVICE));
                }
                Shared::Warn => {
                    tracing::warn!("{user} can write the volume {volume} too, and is not frozen");
                }
                Shared::Freeze => {
                    let freezer = user.freezer(&container.freezer)?;
                    if !sharing.freezers.contains(&freezer) {
                        sharing.freezers.push(freezer);
                    }
                }
            }
            sharing.known.push(user);
        }
        Ok(sharing)
    }

    fn users(&self, container: &Container) -> Result<Vec<(PathBuf, VolumeUser)>> {
        let mut found = Vec::new();
        for (destination, source) in &self.volumes {
            let users = writers_of(source, container.init)?;
            found.extend(users.into_iter().map(|user| (destination.clone(), user)));
        }
        Ok(found)
    }

    /// The control groups that are frozen too.
    pub(super) fn groups(&self) -> Vec<PathBuf> {
        self.freezers.iter().map(|freezer| freezer.directory().to_owned()).collect()
    }

    /// Freezes them, and makes sure that nobody has come since.
    pub(super) fn freeze<'a>(
        &'a self,
        request: &CheckpointRequest,
        container: &Container,
        guardian: &Guardian,
    ) -> Result<Others<'a>> {
        let freeze = |freezer: &'a Freezer| {
            guard_and_freeze(request, freezer, guardian).map_err(|error| {
                error.context(format!("freezing {} too", freezer.directory().display()))
            })
        };
        let others = self.freezers.iter().map(freeze).collect::<Result<Vec<_>>>()?;
        if !others.is_empty() {
            fault::point(Point::OthersFrozen);
        }
        // Looking at all mounts takes its time, and a warning has been given.
        if self.rule != Shared::Warn {
            self.ensure_nobody_came(container)?;
        }
        Ok(Others(others))
    }

    fn ensure_nobody_came(&self, container: &Container) -> Result<()> {
        for (volume, user) in self.users(container)? {
            if !self.known.iter().any(|known| known.is(&user)) {
                let volume = volume.display();
                return Err(anyhow!("{user} began to use the volume {volume} just now")
                    .hint("make the checkpoint again"));
            }
        }
        Ok(())
    }
}

impl Others<'_> {
    /// Lets them go on, all of them; the first error is told.
    pub(super) fn thaw(self) -> Result<()> {
        self.0.into_iter().map(Frozen::thaw).fold(Ok(()), Result::and)
    }
}
