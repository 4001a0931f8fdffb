//! Policies for files that are not as CRIU needs them: what is done, and by whose word.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::RestoreRequest;
use super::sites::FutureMounts;
use crate::bytes::ByteString;
use crate::container::{Bundle, Identity};
use crate::criu::images::Images;
use crate::criu::images::entries::{FileBody, FileEntry, RegFile};
use crate::files::{FileId, Problem, Role, Wrong};
use crate::hint::{CORRECT, WithHint};
use crate::locations;
use crate::policy::{
    ANNOTATION, Grown, Missing, Policies, Shrunk, Standing, parse_policies, parse_typed,
};
use crate::store::manifest::Manifest;
use crate::substitute::{How, Origin, Treatment};
use crate::sys::fs as sys;

/// The policies of the configuration, of the container's annotations and of the command line.
pub(super) fn gather(request: &RestoreRequest, bundle: &Bundle) -> Result<Policies> {
    let mut all = Vec::new();
    let identity = Identity::of(&request.id, bundle);
    let origin = Origin::Configuration(locations::configuration().display().to_string());
    for configured in request.configured_policies.iter().filter(|one| one.is_for(&identity)) {
        all.push(Standing { policy: configured.policy(), origin: origin.clone() });
    }
    for (name, value) in bundle.annotations(ANNOTATION) {
        let parsed =
            parse_policies(&value).with_context(|| format!("annotation {name}")).hint(CORRECT)?;
        let origin = Origin::Annotation(name);
        all.extend(parsed.into_iter().map(|policy| Standing { policy, origin: origin.clone() }));
    }
    for text in &request.policies {
        all.push(Standing { policy: parse_typed(text)?, origin: Origin::CommandLine });
    }
    Ok(Policies(all))
}

/// What a policy has done about a file.
#[derive(Clone, Debug, Serialize)]
pub struct Remedy {
    /// The open file, or what is used otherwise.
    #[serde(skip)]
    file: FileId,
    /// Its path in the container.
    pub path: ByteString,
    /// What is done.
    #[serde(flatten)]
    pub what: What,
    /// The policy that says so.
    pub policy: String,
    /// Where it stands.
    pub from: String,
    /// The file system that it is on, and its path there.
    #[serde(skip)]
    place: Option<(PathBuf, PathBuf)>,
    /// Where its reader or writer goes on, if not where it was.
    #[serde(skip)]
    position: Option<u64>,
}

/// What is done about a file that is not as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "done")]
pub enum What {
    /// It is made again.
    Recreate {
        /// Its type and permissions.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// It is cut to so many bytes.
    Truncate {
        /// How many.
        size: u64,
    },
    /// It stays as it is.
    Accept {
        /// How many bytes it has.
        size: u64,
    },
}

/// What is done, and what is left to be refused.
pub(super) struct PolicyPlan {
    pub(super) remedies: Vec<Remedy>,
    pub(super) left: Vec<Problem>,
    /// What policies were not allowed to do.
    pub(super) refused: Vec<String>,
}

/// Finds what the policies do about the problems.
pub(super) fn plan(
    problems: Vec<Problem>,
    policies: &Policies,
    images: &Images,
    manifest: &Manifest,
    view: &FutureMounts<'_>,
) -> PolicyPlan {
    let planner = Planner::new(policies, images, manifest, view);
    let mut plan = PolicyPlan { remedies: Vec::new(), left: Vec::new(), refused: Vec::new() };
    for problem in problems {
        match planner.remedy(&problem) {
            Some(Ok(remedy)) => plan.remedies.push(remedy),
            Some(Err(why)) => {
                plan.refused.push(format!("{}: {why}", problem.path));
                plan.left.push(problem);
            }
            None => plan.left.push(problem),
        }
    }
    // A directory before what is in it.
    plan.remedies.sort_by(|one, other| one.path.cmp(&other.path));
    plan
}

struct Planner<'a> {
    policies: &'a Policies,
    view: &'a FutureMounts<'a>,
    entries: HashMap<u32, (&'a FileEntry, &'a RegFile)>,
    owners: HashMap<&'a ByteString, (u32, u32)>,
    /// Files whose names CRIU makes itself.
    remapped: HashSet<u32>,
}

/// A remedy, or why the policy may not do it.
type Answer = Result<Remedy, String>;

impl<'a> Planner<'a> {
    fn new(
        policies: &'a Policies,
        images: &'a Images,
        manifest: &'a Manifest,
        view: &'a FutureMounts<'a>,
    ) -> Self {
        let as_reg = |entry: &'a FileEntry| match &entry.body {
            FileBody::Reg(reg) => Some((entry.id, (entry, reg))),
            _ => None,
        };
        let owner =
            |owner: &'a crate::store::manifest::Owner| (&owner.path, (owner.uid, owner.gid));
        Self {
            policies,
            view,
            entries: images.files.iter().filter_map(as_reg).collect(),
            owners: manifest.owners.iter().map(owner).collect(),
            remapped: images.remaps.iter().map(|remap| remap.file).collect(),
        }
    }

    fn remedy(&self, problem: &Problem) -> Option<Answer> {
        let (_, reg) = self.entries.get(&problem.file.0)?;
        if self.remapped.contains(&problem.file.0) {
            return None;
        }
        let path = problem.path.as_bytes();
        match problem.wrong {
            Wrong::Missing => match self.policies.missing(path)? {
                (Missing::Recreate, standing) => Some(self.recreate(problem, reg, standing)),
                (Missing::Error, _) => None,
            },
            Wrong::Size { found, expected } if found > expected => {
                match self.policies.grown(path)? {
                    (Grown::Truncate, standing) => {
                        let what = What::Truncate { size: expected };
                        Some(self.change(problem, what, standing, None))
                    }
                    (Grown::Accept, standing) => {
                        Some(Ok(accept(problem, found, reg.position, standing)))
                    }
                    (Grown::Error, _) => None,
                }
            }
            Wrong::Size { found, .. } => match self.policies.shrunk(path)? {
                (Shrunk::Accept, standing) => Some(shrunk(problem, found, reg, standing)),
                (Shrunk::Error, _) => None,
            },
            Wrong::NotADirectory(_) | Wrong::Type { .. } | Wrong::Mode { .. } => None,
        }
    }

    fn recreate(&self, problem: &Problem, reg: &RegFile, standing: &Standing) -> Answer {
        let mode = reg.mode.unwrap_or_default();
        if !matches!(mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
            return Err("only files and directories are made again".to_owned());
        }
        if is_content_needed(problem) {
            return Err("it is mapped or the program, and its content is gone".to_owned());
        }
        let (uid, gid) = self
            .owners
            .get(&problem.path)
            .copied()
            .ok_or("the checkpoint does not say whose it was")?;
        let what = What::Recreate { mode, uid, gid };
        self.change(problem, what, standing, Some(0))
    }

    /// A remedy that changes a file system.
    fn change(
        &self,
        problem: &Problem,
        what: What,
        standing: &Standing,
        position: Option<u64>,
    ) -> Answer {
        if standing.origin.is_annotation() && !self.was_writable(problem) {
            return Err(format!("{} may change only what was open for writing", standing.origin));
        }
        let site = self.view.site(problem.path.as_path());
        let directory = site
            .directory
            .filter(|_| site.writable)
            .ok_or_else(|| "the container cannot write where it is".to_owned())?;
        if site.relative.as_os_str().is_empty() && matches!(what, What::Recreate { .. }) {
            return Err("it is itself mounted there from outside".to_owned());
        }
        let place = Some((directory, site.relative));
        Ok(Remedy { place, position, ..remedy(problem, what, standing) })
    }

    fn was_writable(&self, problem: &Problem) -> bool {
        let flags = self.entries.get(&problem.file.0).and_then(|(entry, _)| entry.flags);
        flags.is_some_and(|flags| flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY)
    }
}

fn remedy(problem: &Problem, what: What, standing: &Standing) -> Remedy {
    Remedy {
        file: problem.file,
        path: problem.path.clone(),
        what,
        policy: standing.policy.to_string(),
        from: standing.origin.to_string(),
        place: None,
        position: None,
    }
}

fn accept(problem: &Problem, found: u64, position: u64, standing: &Standing) -> Remedy {
    let what = What::Accept { size: found };
    // "No position" of do_open_reg in criu/files-reg.c stays so.
    let position = Some(if position == u64::MAX { position } else { position.min(found) });
    Remedy { position, ..remedy(problem, what, standing) }
}

fn shrunk(problem: &Problem, found: u64, reg: &RegFile, standing: &Standing) -> Answer {
    if is_content_needed(problem) {
        return Err("it is mapped or the program, and what is cut off would be missed".to_owned());
    }
    Ok(accept(problem, found, reg.position, standing))
}

/// Whether somebody uses the content without asking for it: a process dies of a mapping without
/// the file behind it.
fn is_content_needed(problem: &Problem) -> bool {
    problem.users.iter().any(|user| matches!(user.role, Role::Mapping | Role::Exe))
}

impl Remedy {
    /// What CRIU is told: to look at the size no more, and where to go on.
    pub(super) fn treatment(&self) -> Option<Treatment> {
        let how = How::Relax { position: self.position };
        let relaxes = !matches!(self.what, What::Truncate { .. });
        relaxes.then_some(Treatment { id: self.file, how, drop: false })
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let what = match self.what {
            What::Recreate { mode, .. } => format!("made again, with mode {:04o}", mode & 0o7777),
            What::Truncate { size } => format!("cut to {size} bytes"),
            What::Accept { size } => format!("accepted with {size} bytes"),
        };
        format!("{}: {what}, by {} (from {})", self.path, self.policy, self.from)
    }
}

/// Does what the remedies say.
pub(super) fn carry_out(remedies: &[Remedy]) -> Result<()> {
    let mut done = HashSet::new();
    for remedy in remedies.iter().filter(|remedy| done.insert(&remedy.path)) {
        let context = || format!("{} (policy {})", remedy.path, remedy.policy);
        let Some((directory, below)) = &remedy.place else { continue };
        match remedy.what {
            What::Recreate { mode, uid, gid } => {
                recreate(directory, below, mode, (uid, gid))
                    .with_context(|| format!("making again {}", context()))
                    .hint("the directory that it was in has to be there")?;
            }
            What::Truncate { size } => {
                truncate(directory, below, size)
                    .with_context(|| format!("cutting {}", context()))?;
            }
            What::Accept { .. } => {}
        }
    }
    Ok(())
}

/// Opens the directory that a path is in, through no link, and names the file.
fn parent_of<'a>(directory: &Path, below: &'a Path) -> Result<(OwnedFd, &'a [u8])> {
    let root = sys::open_host_dir(directory)
        .with_context(|| format!("opening {}", directory.display()))?;
    let name = below.file_name().context("it has no name")?.as_bytes();
    let parent = below.parent().unwrap_or(Path::new("")).as_os_str().as_bytes();
    Ok((sys::open_dir(&root, parent)?, name))
}

fn recreate(directory: &Path, below: &Path, mode: u32, (uid, gid): (u32, u32)) -> Result<()> {
    let (parent, name) = parent_of(directory, below)?;
    let none = Mode::empty();
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let made = if mode & libc::S_IFMT == libc::S_IFDIR {
        rustix::fs::mkdirat(&parent, name, none)?;
        rustix::fs::openat(&parent, name, flags | OFlags::RDONLY | OFlags::DIRECTORY, none)?
    } else {
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        rustix::fs::openat(&parent, name, flags | new, none)?
    };
    let owner = rustix::fs::Uid::from_raw(uid);
    rustix::fs::fchown(&made, Some(owner), Some(rustix::fs::Gid::from_raw(gid)))?;
    // After the owner: a change of that takes set-user-ID away.
    Ok(rustix::fs::fchmod(&made, Mode::from_raw_mode(mode & 0o7777))?)
}

fn truncate(directory: &Path, below: &Path, size: u64) -> Result<()> {
    let file = if below.as_os_str().is_empty() {
        // It is itself mounted, by whoever wrote config.json.
        File::options().write(true).open(directory)?
    } else {
        let (parent, name) = parent_of(directory, below)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        File::from(rustix::fs::openat(&parent, name, flags, Mode::empty())?)
    };
    let found = file.metadata()?;
    if !found.is_file() || found.len() < size {
        bail!("it has changed meanwhile");
    }
    Ok(file.set_len(size)?)
}
