//! `ocicle checkpoint`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::naming::Named;
use super::{Format, Machine, managed};
use crate::checkpoint::{self, ImagesIn, checkpoint};
use crate::config::Config;
use crate::container::{Container, Identity, Shared, Volumes, ensure_name};
use crate::files::{DumpSettings, bytes_of};
use crate::machine;
use crate::output;
use crate::output::progress::{Bar, Shown};
use crate::runtime::arguments::CGROUPS_MODE;
use crate::snapshot::Compression;
use crate::store::choices::{self, Filesystem, Keep, Purpose};
use crate::store::lock::ContainerLock;
use crate::store::shelf::{ContainerKey, Shelf, StoredVersion};
use crate::substitute::{OnUnsupported, Origin, parse_each};

/// What can be asked of a checkpoint.
#[derive(Debug, clap::Args)]
pub struct CheckpointOptions {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: String,
    /// Let the container go on
    #[arg(short = 'R', long)]
    leave_running: bool,
    /// Which volumes belong to it: named, all, none, or paths of the container, with * and **
    #[arg(long, value_name = "WHICH")]
    volumes: Option<Volumes>,
    #[command(flatten)]
    cover: CoverOptions,
    /// What is done about files [default: that of the container's annotation, or else of the
    /// configuration, or else snapshot]
    #[arg(long, value_enum, value_name = "WHAT", hide_default_value = true)]
    filesystem: Option<Filesystem>,
    /// How the snapshots of files are compressed
    #[arg(long, value_enum, value_name = "HOW")]
    compress: Option<Compression>,
    /// Where CRIU writes memory first, with --leave-running
    #[arg(long, value_enum, value_name = "WHERE")]
    stage: Option<ImagesIn>,
    /// What it is for: that chooses --filesystem and --keep, unless they are given
    #[arg(long, value_enum, value_name = "WHAT")]
    purpose: Option<Purpose>,
    /// How many versions are kept, this one among them: a number or all
    #[arg(long, value_name = "N", value_parser = choices::parse_keep)]
    keep: Option<Keep>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    progress: Shown,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// What is done about volumes that another container can write too
    #[arg(long, value_enum, value_name = "RULE")]
    shared: Option<Shared>,
    /// End the container although a restore where it is would be refused
    #[arg(long)]
    unrestorable_ok: bool,
    /// End the container although an engine looks after it, which will not know of the checkpoint
    #[arg(long, conflicts_with = "leave_running")]
    force: bool,
    #[command(flatten)]
    criu: CriuOptions,
}

impl CheckpointOptions {
    /// Looks at what the command line alone shows.
    pub fn check(&self) -> Result<()> {
        let context = || format!("checkpointing {}", self.id);
        ensure_name(&self.id).and_then(|()| ensure_stage(self)).with_context(context)?;
        self.cover.check().with_context(context)
    }

    fn filesystem(&self) -> Option<Filesystem> {
        self.filesystem.or(self.purpose.map(Purpose::filesystem))
    }

    fn keep(&self, machine: &Machine) -> Keep {
        let of_purpose = self.purpose.map(Purpose::keep);
        self.keep.or(of_purpose).unwrap_or(machine.config.keep)
    }

    fn flags(&self) -> Vec<OsString> {
        let leave_running = self.leave_running.then(|| "--leave-running".into());
        self.criu.flags().into_iter().chain(leave_running).collect()
    }

    /// What is asked for: a version of the store, after the one in `base`.
    fn request(
        &self,
        Machine { config, runtime, store, .. }: &Machine,
        entry: &StoredVersion,
        base: Option<PathBuf>,
    ) -> Result<checkpoint::CheckpointRequest> {
        let configured = config.checkpoint(runtime.clone(), &entry.id, entry.directory.clone());
        Ok(checkpoint::CheckpointRequest {
            work: Some(entry.work()?),
            flags: config.criu.complete(self.flags()),
            leave_running: self.leave_running,
            rules: self.cover.substitute.clone(),
            on_unsupported: self.cover.rest(config),
            disposable: true,
            volumes: configured.volumes.asked(self.volumes.clone()),
            filesystem: configured.filesystem.asked(self.filesystem()),
            compression: self.compress.or(config.compress).unwrap_or_default(),
            stage: self.stage.unwrap_or(config.stage),
            base,
            shared: self.shared.unwrap_or(config.shared),
            unrestorable_ok: configured.unrestorable_ok.asked(self.unrestorable_ok.then_some(true)),
            drivers: config.drivers(store.root()),
            ..configured
        })
    }
}

/// What becomes of open files that CRIU cannot dump.
#[derive(Debug, clap::Args)]
pub struct CoverOptions {
    /// Leave out an open file that CRIU cannot dump, which this will replace: SELECTOR=SOURCE, as
    /// `ocicle restore` takes it, but without identifiers (may be repeated)
    #[arg(short, long, value_name = "RULE")]
    pub(super) substitute: Vec<String>,
    /// What becomes of other open files that CRIU cannot dump
    #[arg(long, value_name = "WHAT")]
    on_unsupported: Option<OnUnsupported>,
}

impl CoverOptions {
    /// Looks at what the command line alone shows.
    pub(super) fn check(&self) -> Result<()> {
        parse_each(&self.substitute, &Origin::CommandLine).map(drop)
    }

    /// Of those that no rule covers.
    pub(super) fn rest(&self, config: &Config) -> OnUnsupported {
        self.on_unsupported.unwrap_or(config.on_unsupported)
    }
}

/// The heading of what the runtime hands to CRIU.
const CRIU: &str = "Passed to CRIU";

/// Flags that the runtime hands to CRIU, for a checkpoint and a restore.
#[derive(Debug, clap::Args)]
pub struct CriuOptions {
    /// Allow established TCP connections
    #[arg(long, help_heading = CRIU)]
    tcp_established: bool,
    /// Allow file locks
    #[arg(long, help_heading = CRIU)]
    file_locks: bool,
    /// Allow connections to unix sockets outside the container
    #[arg(long, help_heading = CRIU)]
    ext_unix_sk: bool,
    /// Allow a session and terminal that began outside the container
    #[arg(long, help_heading = CRIU)]
    shell_job: bool,
    /// How CRIU manages control groups: soft, full, strict or ignore
    #[arg(long, help_heading = CRIU, value_name = "MODE", value_parser = ["soft", "full", "strict", "ignore"])]
    manage_cgroups_mode: Option<String>,
}

impl CriuOptions {
    /// What decides over a dump.
    pub(super) fn settings(&self, config: &Config) -> DumpSettings {
        DumpSettings {
            tcp_established: self.tcp_established,
            tcp_skip_in_flight: false,
            file_locks: self.file_locks,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            bpf_maps: false,
            ghost_limit: bytes_of(&config.criu.ghost_limit),
        }
    }

    /// The flags as the runtime takes them.
    pub(super) fn flags(&self) -> Vec<OsString> {
        let switches = [
            (self.tcp_established, "--tcp-established"),
            (self.file_locks, "--file-locks"),
            (self.ext_unix_sk, "--ext-unix-sk"),
            (self.shell_job, "--shell-job"),
        ];
        let mut flags: Vec<OsString> =
            switches.iter().filter(|(on, _)| *on).map(|(_, flag)| flag.into()).collect();
        if let Some(mode) = &self.manage_cgroups_mode {
            flags.extend([CGROUPS_MODE.into(), mode.into()]);
        }
        flags
    }
}

fn ensure_stage(options: &CheckpointOptions) -> Result<()> {
    let last = options.stage == Some(ImagesIn::Memory) && !options.leave_running;
    ensure!(
        !last,
        "--stage memory is for --leave-running: a container that ends is on disk before it does"
    );
    Ok(())
}

/// Where the versions of a container go.
fn shelf_of(machine: &Machine, container: &Container, held: &ContainerLock) -> Result<Shelf> {
    let id = container.id.clone();
    let names = Identity::of(&id, &container.bundle).names;
    let key = ContainerKey { id, root: machine.runtime.state_root() };
    machine.store.shelf_for(&key, &container.bundle.directory, names, held)
}

/// Makes the next version of a container, and prints its name.
pub fn run(machine: &Machine, options: &CheckpointOptions) -> Result<()> {
    let context = || format!("checkpointing {}", options.id);
    machine::ensure_capable().with_context(context)?;
    let Named { machine, id } = machine.named(&options.id).with_context(context)?;
    let (machine, id) = (&machine, &id);
    if let Some(purpose) = options.purpose {
        output::remark(&purpose.explain(options.filesystem, options.keep));
    }
    let held = ContainerLock::take(id).with_context(context)?;
    // Before a directory is made for it.
    machine::ensure_criu().with_context(context)?;
    let container = machine.discover(id).with_context(context)?;
    if !options.leave_running && !options.force {
        managed::ensure_may_end(&container).with_context(context)?;
    }
    let shelf = shelf_of(machine, &container, &held).with_context(context)?;
    let base = shelf.newest().with_context(context)?;
    let entry = shelf.claim(&held).with_context(context)?;
    let request = options.request(machine, &entry, base.map(|base| base.directory))?;
    let in_place = machine.config.in_place(&request.runtime, &container);
    let progress = Bar::new("packing", options.progress);
    let made = checkpoint(&request, &container, &in_place, &held, &progress);
    let manifest =
        made.with_context(context).inspect_err(|_| entry.discard_unless_complete(&held))?;
    let milliseconds = manifest.freeze.milliseconds;
    if options.format == Format::Table {
        output::line(&format!("{id}@{}", entry.version));
        output::note(&format!("frozen for {milliseconds:.0} ms"));
    }
    let kept = options.keep(machine);
    let removed = shelf.prune(kept, &held).with_context(context)?;
    for removed in &removed {
        output::remark(&format!("removed {id}@{removed}: {kept} versions are kept"));
    }
    match options.format {
        Format::Table => Ok(()),
        Format::Json => output::json(&json!({
            "schema": 1,
            "checkpoint": format!("{id}@{}", entry.version),
            "container": id,
            "version": entry.version.to_string(),
            "directory": entry.directory,
            "frozen_ms": milliseconds,
            "left": manifest.left,
            "removed": removed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
    }
}
