//! Points at which the tests kill ocicle.
//!
//! Without the feature `fault-points` nothing of this is in the program.

/// A point on the way of a checkpoint, or of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The parts were copied for the first time.
    PreCopied,
    /// CRIU waits at the door.
    AtTheDoor,
    /// CRIU was let in.
    Admitted,
    /// The containers that share a volume are frozen.
    OthersFrozen,
    /// The container is frozen.
    Frozen,
    /// CRIU goes on, and the snapshot is about to be taken.
    Dumping,
    /// btrfs has made its snapshot.
    SubvolumeTaken,
    /// An administrator's program has taken its snapshot.
    ProgramTaken,
    /// Every part is taken.
    SnapshotTaken,
    /// CRIU waits in its last script.
    PostDump,
    /// The digest of the directory's first manifest is there, the manifest is not.
    DigestWritten,
    /// The digest of a second manifest is there, the manifest is not.
    DigestReplaced,
    /// What is due at the last script is done: the commit, of a container that ends.
    Committed,
    /// The runtime has ended.
    Dumped,
    /// The container goes on.
    Thawed,
    /// Layers and index are there.
    Packed,
    /// The manifest of the whole checkpoint is there.
    ManifestWritten,
    /// A restore has its plan, and has changed nothing yet.
    Planned,
    /// A restore has made a writable snapshot.
    SnapshotMade,
    /// A restore has put that in the place of the subvolume.
    SnapshotExchanged,
}

impl Point {
    /// What the tests call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreCopied => "pre-copied",
            Self::AtTheDoor => "at-the-door",
            Self::Admitted => "admitted",
            Self::OthersFrozen => "others-frozen",
            Self::Frozen => "frozen",
            Self::Dumping => "dumping",
            Self::SubvolumeTaken => "subvolume-taken",
            Self::ProgramTaken => "program-taken",
            Self::SnapshotTaken => "snapshot-taken",
            Self::PostDump => "post-dump",
            Self::DigestWritten => "digest-written",
            Self::DigestReplaced => "digest-replaced",
            Self::Committed => "committed",
            Self::Dumped => "dumped",
            Self::Thawed => "thawed",
            Self::Packed => "packed",
            Self::ManifestWritten => "manifest-written",
            Self::Planned => "planned",
            Self::SnapshotMade => "snapshot-made",
            Self::SnapshotExchanged => "snapshot-exchanged",
        }
    }
}

/// The points that every checkpoint comes to, in their order.
pub const POINTS: [&str; 13] = [
    Point::PreCopied.name(),
    Point::AtTheDoor.name(),
    Point::Admitted.name(),
    Point::Frozen.name(),
    Point::Dumping.name(),
    Point::SnapshotTaken.name(),
    Point::PostDump.name(),
    Point::Committed.name(),
    Point::Dumped.name(),
    Point::Thawed.name(),
    Point::Packed.name(),
    Point::DigestWritten.name(),
    Point::ManifestWritten.name(),
];

/// The points that only a checkpoint comes to that stops its container.
pub const STOPPING: [&str; 1] = [Point::DigestReplaced.name()];

/// Kills this process with SIGKILL where `OCICLE_FAULT` names this point, and runs what
/// `OCICLE_FAULT_RUN` names behind this point and a colon.
#[cfg(feature = "fault-points")]
pub fn point(point: Point) {
    let name = point.name();
    let run = std::env::var("OCICLE_FAULT_RUN").unwrap_or_default();
    if let Some(program) = run.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) {
        let _ = std::process::Command::new(program).status();
    }
    if std::env::var_os("OCICLE_FAULT").is_some_and(|wanted| wanted == name) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Kills this process where the tests ask for it: never, in a build for use.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_point: Point) {}
