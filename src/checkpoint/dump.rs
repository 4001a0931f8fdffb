//! The dump: from the start of the runtime's `checkpoint` to the thaw.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;

use super::comeback::Comeback;
use super::complete::complete;
use super::directory::remove_images;
use super::foresight::{self, Foreseen};
use super::freeze::freeze;
use super::images_in_memory::ImagesInMemory;
use super::links::Links;
use super::locks::Locks;
use super::parts::{self, CopiedAhead};
use super::record::{Begun, FreezeFacts};
use super::room::Room;
use super::{CheckpointRequest, ImageDirectory};
use crate::bytes::ByteString;
use crate::container::Container;
use crate::cover::{Cover, Failing};
use crate::criu::configuration::Configuration;
use crate::criu::door::{Door, Visitor, WaitingCriu, WaitingScript};
use crate::criu::images::DumpStats;
use crate::criu::plugin::Told;
use crate::criu::protocol::Work;
use crate::criu::watched::WatchedPaths;
use crate::criu::{action, failure, phases};
use crate::fault::{self, Point};
use crate::files::verify::{Digests, HeldFile};
use crate::files::{Owned, Suspects, WaitingEvents};
use crate::freezer::{Frozen, FrozenBy, Still};
use crate::guardian::Guardian;
use crate::runtime::Family;
use crate::runtime::arguments::CGROUPS_MODE;
use crate::runtime::exit::Ended;
use crate::runtime::log::Diverted;
use crate::store::manifest::{self, Manifest, Owner};
use crate::store::{DumpFacts, Timeline};
use crate::sys::directory::Directory;
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;
use crate::sys::process::{pidfd, wait_readable};

/// A dump under way.
pub(super) struct Dump<'a> {
    request: &'a CheckpointRequest,
    container: &'a Container,
    /// Its first process.
    init: Option<OwnedFd>,
    cover: Cover,
    comeback: Comeback<'a>,
    directory: &'a ImageDirectory,
    /// Where the images are while the container stands still, if not there.
    memory: Option<ImagesInMemory>,
    // Dropped in this order: nobody answers at the door any more, so that CRIU fails, and the
    // guardian waits for that.
    door: Door,
    pub(super) guardian: Guardian,
    diverted: Diverted,
    errors: File,
    since: Cell<SystemTime>,
    /// Whether what stops the dump does not pass: then it is not tried again.
    stays: Cell<bool>,
    pub(super) timeline: Timeline,
}

/// What was found out before.
pub(super) struct Ahead<'a> {
    pub(super) cover: Cover,
    pub(super) comeback: Comeback<'a>,
    /// How many bytes CRIU will write.
    pub(super) needed: u64,
}

/// What has come of it.
pub(super) struct Dumped {
    /// Of what is taken and not packed.
    pub(super) manifest: Manifest,
    pub(super) facts: DumpFacts,
    pub(super) parts: Vec<parts::PartUnderway>,
    /// The locks that were held: of a container that goes on, CRIU's images may lack some.
    pub(super) locks: Locks,
}

/// How a dump has gone.
enum Attempt {
    Made(Box<Dumped>),
    /// CRIU has failed over something that may be over by now; the container goes on.
    Passing(anyhow::Error),
}

/// runc's flag for [`crate::criu::remaps`].
const LINK_REMAP: &str = "--link-remap";

/// How many milliseconds the container runs before CRIU is started for it again.
const AGAIN: [u64; 5] = [5, 10, 20, 40, 80];

/// How many it runs before it is frozen again, with the same CRIU still waiting.
const SETTLING: [u64; 10] = [1, 2, 4, 8, 8, 16, 16, 32, 32, 64];

/// What is there at so many looks more than one stays.
const ENOUGH: usize = 5;

/// A container that is frozen, and a CRIU that has only to be told so.
struct Ready<'a> {
    frozen: Frozen<'a>,
    /// CRIU's process, while there is one.
    criu: Option<OwnedFd>,
    /// The script of CRIU's that waits for the container to be frozen.
    hook: WaitingScript,
    /// What CRIU finds when it goes on.
    watched: Option<WatchedPaths>,
    told: Foreseen,
}

impl<'a> Dump<'a> {
    /// Opens the door to the CRIU that the runtime will start.
    pub(super) fn begin(
        request: &'a CheckpointRequest,
        container: &'a Container,
        Ahead { cover, comeback, needed }: Ahead<'a>,
        guardian: Guardian,
        directory: &'a ImageDirectory,
        timeline: Timeline,
    ) -> Result<Self> {
        let door = Door::open()?;
        let (doors, name) =
            Directory::above(door.directory()).context("opening where doors are")?;
        guardian.remove_if_we_die(&doors, &name, None)?;
        let errors = tempfile::tempfile().context("making a file for the runtime's errors")?;
        let diverted = Diverted::to(door.directory(), &request.runtime);
        let memory = ImagesInMemory::for_images(request, needed)?;
        Ok(Self {
            request,
            container,
            init: pidfd(container.init)?,
            cover,
            comeback,
            directory,
            memory,
            door,
            guardian,
            diverted,
            errors,
            since: Cell::new(SystemTime::now()),
            stays: Cell::new(false),
            timeline,
        })
    }

    /// From the start of the runtime's `checkpoint` to the thaw. CRIU has the `room`.
    ///
    /// Where CRIU meets what is over in a moment, all that is done again, with a CRIU of its own;
    /// what was copied ahead stays.
    pub(super) fn run(
        &self,
        begun: &Begun,
        mut staged: CopiedAhead,
        mut room: Option<Room>,
    ) -> Result<Dumped> {
        let mut pauses = AGAIN.into_iter();
        loop {
            let (begin, steps) = (Instant::now(), self.timeline.count());
            let error = match self.attempt(begun.clone(), &mut staged, room.take())? {
                Attempt::Made(dumped) => return Ok(*dumped),
                Attempt::Passing(error) => error,
            };
            let Some(pause) = pauses.next() else { return Err(error) };
            tracing::debug!("once more, for that may have passed: {error:#}");
            self.begin_again(&mut staged)?;
            // The kernel raises no event for what the container does.
            thread::sleep(Duration::from_millis(pause));
            self.timeline.replace(steps, "attempt", begin);
        }
    }

    /// Makes what a dump that failed has left ready for another.
    fn begin_again(&self, staged: &mut CopiedAhead) -> Result<()> {
        remove_images(&self.images())?;
        self.diverted.forget();
        self.cover.look_again();
        self.since.set(SystemTime::now());
        parts::take_back(&mut staged.parts)
    }

    fn attempt(
        &self,
        begun: Begun,
        staged: &mut CopiedAhead,
        room: Option<Room>,
    ) -> Result<Attempt> {
        let Ready { frozen, criu, hook, watched, told } = match self.freeze_late(room)? {
            Some(ready) => ready,
            None => self.freeze_early()?,
        };
        let freeze = FreezeFacts {
            created: Timestamp::now(),
            by: frozen.by(),
            others: staged.sharing.groups(),
            external: told.external,
            unsupported: told.aside.records,
            owners: owners_outside(self.container, told.owned, &staged.parts),
            lost_events: lost_events(&told.events),
            link_remaps: Vec::new(),
        };
        self.timeline.mark("freeze", frozen.requested(), frozen.reached());
        let dumping = Instant::now();
        hook.answer(&Ok(()))?;
        fault::point(Point::Dumping);
        let locks = told.locks;
        let by = freeze.by;
        let joined = self.dump_and_snapshot(&frozen, staged, (begun, freeze), &locks, watched)?;
        // Of a container that goes on it is not asked yet how the dump went: it goes on either way.
        let stopped = match self.request.leave_running {
            true => None,
            false => Some(self.await_end()?),
        };
        // A runtime that was killed leaves its CRIU at work.
        self.await_criu(criu.as_ref())?;
        self.timeline.mark("dump", dumping, Instant::now());
        let milliseconds = self.thaw(frozen)?;
        let ended = stopped.map_or_else(|| self.await_end(), Ok)?;
        if joined.is_none() && by == FrozenBy::Ocicle && self.may_pass(&ended)? {
            return Ok(Attempt::Passing(self.explain(&ended)));
        }
        let Joined { manifest, parts, asked, .. } = self.judge(&ended, joined)?;
        let facts = DumpFacts { milliseconds, criu: self.note_phases(asked) };
        Ok(Attempt::Made(Box::new(Dumped { manifest, facts, parts, locks })))
    }

    /// Whether CRIU failed over what is over in a moment, of a container that goes on.
    fn may_pass(&self, ended: &Ended) -> Result<bool> {
        Ok(!ended.success() && !self.stays.get() && self.logs().say_passing() && self.lives()?)
    }

    /// Makes room for so many bytes where CRIU will write them.
    pub(super) fn make_room(&self, needed: u64) -> Option<Room> {
        Room::make(&self.images(), self.memory.is_none(), needed)
    }

    /// Moves the images to the image directory, if they are not there.
    pub(super) fn move_images(&mut self) -> Result<()> {
        let Some(memory) = self.memory.take() else { return Ok(()) };
        self.timeline.time("move", || memory.move_to(&self.request.images))
    }

    /// Freezes when CRIU has started and is about to stop the processes itself: what it is told
    /// then was found out while the container ran. `None` when that does not hold any more; the
    /// container runs again, and CRIU has done nothing to it.
    ///
    /// CRIU has looked at no process by then: `cr_dump_tasks` in criu/cr-dump.c calls the script
    /// `pre-dump` before everything else.
    fn freeze_late(&self, room: Option<Room>) -> Result<Option<Ready<'a>>> {
        let plain = foresight::has_plain_cgroups(self.request, self.container);
        let begin = Instant::now();
        let criu = self.start_runtime(plain)?;
        let (process, number) = (criu.process()?, criu.number()?);
        let mut told = Foreseen::by_looking(self.container, &self.cover, Still::Running, plain)?;
        criu.admit_with(&self.configuration(&told), &[])?;
        fault::point(Point::Admitted);
        let hook = self.await_action(action::PRE_DUMP)?.map_or_else(|| self.failed(), Ok)?;
        self.timeline.mark("runtime", begin, Instant::now());
        drop(room);
        let (frozen, now) = self.freeze_settled(plain)?;
        if told.covers(&now) {
            told.aside = now.aside;
            told.owned = now.owned;
            told.locks = now.locks;
            told.events = now.events;
            let watched = self.tell_of_watched(number, &now.watched)?;
            return Ok(Some(Ready { frozen, criu: process, hook, watched, told }));
        }
        tracing::debug!(
            "the container has changed while CRIU started; again, frozen from the start"
        );
        hook.answer(&Err(anyhow!("the container is not what it was")))?;
        frozen.thaw()?;
        self.guardian.thaw_no_more()?;
        self.await_end()?;
        self.timeline.mark("attempt", begin, Instant::now());
        Ok(None)
    }

    /// Freezes the container at a moment in which it has nothing open that stops a dump, and that
    /// passes while it runs. That is waited for as long as it is always something else.
    fn freeze_settled(&self, plain: bool) -> Result<(Frozen<'a>, Foreseen)> {
        let mut staying: Option<Vec<Failing>> = None;
        for (look, pause) in SETTLING.into_iter().map(Some).chain([None]).enumerate() {
            let frozen = freeze(self.request, &self.container.freezer, &self.guardian)?;
            let now =
                Foreseen::by_looking(self.container, &self.cover, Still::Frozen(&frozen), plain)?;
            let stopping = &now.aside.stopping;
            if stopping.is_empty() {
                return Ok((frozen, now));
            }
            let known = staying.get_or_insert_with(|| stopping.clone());
            known.retain(|one| one.tells_by_staying() && stopping.iter().any(|now| now.is(one)));
            let stays = look >= ENOUGH && !known.is_empty();
            let Some(pause) = pause.filter(|_| !stays && frozen.by() == FrozenBy::Ocicle) else {
                now.aside.ensure_nothing_lasts()?;
                self.stays.set(true);
                return Ok((frozen, now));
            };
            frozen.thaw()?;
            self.guardian.thaw_no_more()?;
            // The kernel raises no event for what the container does.
            thread::sleep(Duration::from_millis(pause));
        }
        bail!("it was not frozen")
    }

    /// Freezes before CRIU starts: what it is told is so until the end.
    fn freeze_early(&self) -> Result<Ready<'a>> {
        let begin = Instant::now();
        let criu = self.start_runtime(false)?;
        self.timeline.mark("runtime", begin, Instant::now());
        let (frozen, told) = self.freeze_settled(false)?;
        let (process, number) = (criu.process()?, criu.number()?);
        criu.admit_with(&self.configuration(&told), &[])?;
        let hook = self.await_action(action::PRE_DUMP)?.map_or_else(|| self.failed(), Ok)?;
        let watched = self.tell_of_watched(number, &told.watched)?;
        Ok(Ready { frozen, criu: process, hook, watched, told })
    }

    /// Leads a CRIU that waits in its pre-dump script to files that are watched.
    fn tell_of_watched(
        &self,
        criu: Pid,
        watched: &HashMap<DevIno, PathBuf>,
    ) -> Result<Option<WatchedPaths>> {
        if watched.is_empty() {
            return Ok(None);
        }
        let (work, name) = WatchedPaths::place(criu)?;
        self.guardian.remove_if_we_die(&work, name.as_bytes(), None)?;
        let files = watched.iter().map(|(inode, path)| (*inode, &**path));
        WatchedPaths::write(criu, files).context("telling CRIU where watched files are").map(Some)
    }

    /// Starts the runtime's `checkpoint`; its CRIU comes to the door.
    fn start_runtime(&self, plain_cgroups: bool) -> Result<WaitingCriu<'_>> {
        let arguments = self.arguments(plain_cgroups);
        let command = self.diverted.runtime.command_line(&arguments);
        self.guardian.run(&command, &self.door.environment()?, &self.errors)?;
        let criu = self.await_dump()?;
        if let Some(process) = criu.process()? {
            self.guardian.await_if_we_die(&process)?;
        }
        fault::point(Point::AtTheDoor);
        Ok(criu)
    }

    fn arguments(&self, plain_cgroups: bool) -> Vec<OsString> {
        let CheckpointRequest { id, images, work, flags, .. } = self.request;
        let to = self.images().into();
        let mut rest: Vec<OsString> = vec!["checkpoint".into(), "--image-path".into(), to];
        // crun's own choice for CRIU's log is the image directory.
        if let Some(work) = work.as_ref().or(self.memory.as_ref().map(|_| images)) {
            rest.extend(["--work-path".into(), work.clone().into()]);
        }
        rest.extend(flags.iter().cloned());
        // What runc says of that prevails over CRIU's configuration (`setup_opts_from_req` in
        // criu/cr-service.c); crun says nothing, and has no such flag.
        if self.request.runtime.family() == Family::Runc && !self.request.has_flag(LINK_REMAP) {
            rest.push(LINK_REMAP.into());
        }
        if plain_cgroups {
            rest.extend([CGROUPS_MODE.into(), "ignore".into()]);
        }
        rest.push(id.clone().into());
        rest
    }

    /// Where CRIU writes the images.
    fn images(&self) -> PathBuf {
        self.memory.as_ref().map_or_else(|| self.request.images.clone(), ImagesInMemory::path)
    }

    /// The steps of CRIU's own, as far as its log tells. They explain the pause, and nothing
    /// depends on them. `asked` is when its post-dump script came to the door.
    fn note_phases(&self, asked: Instant) -> Option<DumpStats> {
        let (log, stats) = self.logs().of_dump()?;
        for step in phases::of_dump(&log) {
            self.timeline.mark_within("dump", asked, &step);
        }
        stats
    }

    /// Lets the container go on, if it still is; says for how many milliseconds it stood still.
    fn thaw(&self, frozen: Frozen<'_>) -> Result<f64> {
        fault::point(Point::Dumped);
        let milliseconds = Timeline::milliseconds(frozen.requested().elapsed());
        let thawing = Instant::now();
        frozen.thaw()?;
        self.timeline.mark("thaw", thawing, Instant::now());
        fault::point(Point::Thawed);
        self.guardian.thaw_no_more().map(|()| milliseconds)
    }

    /// What CRIU is told beside what the runtime tells it.
    fn configuration(&self, told: &Foreseen) -> Configuration {
        Configuration {
            action_script: Some(self.door.action_script()),
            external: told.external.iter().map(|file| file.key.clone()).collect(),
            plugin: Told {
                sleepers: true,
                set_aside: told.aside.chosen.clone(),
                ..Told::default()
            },
            ghost_limit: Some(self.request.ghost_limit.clone()),
            link_remap: true,
            no_network_lock: !told.needs_lock,
            ..Configuration::default()
        }
    }

    /// CRIU writes the images while the snapshot is taken; its post-dump script joins the two.
    fn dump_and_snapshot(
        &self,
        frozen: &Frozen<'_>,
        staged: &mut CopiedAhead,
        (begun, mut freeze): (Begun, FreezeFacts),
        locks: &Locks,
        watched: Option<WatchedPaths>,
    ) -> Result<Option<Joined>> {
        let sharing = &staged.sharing;
        let others = sharing.freeze(self.request, self.container, &self.guardian)?;
        let parts = std::mem::take(&mut staged.parts);
        let (digests, suspects) = (staged.digests.as_ref(), &staged.suspects);
        let to = &mut staged.parts;
        thread::scope(|scope| {
            let snapshot = scope.spawn(|| {
                let taken = take(self.container, frozen, parts, digests, suspects)?;
                others.thaw()?;
                anyhow::Ok(taken)
            });
            let hook = self.await_action(action::POST_DUMP);
            let asked = Instant::now();
            drop(watched);
            let snapshot = snapshot.join().map_err(|_| anyhow!("the snapshot panicked"))?;
            let Some(hook) = hook? else {
                // Both may have met the same full disk, on which CRIU's log found no room either.
                *to = snapshot.context("taking the snapshot")?.parts;
                return Ok(None);
            };
            fault::point(Point::PostDump);
            let taken = snapshot.context("taking the snapshot");
            let (TakenParts { parts, held, begin, end }, links) =
                match taken.and_then(|taken| Ok((taken, self.links()?))) {
                    Ok(taken) => taken,
                    Err(error) => {
                        self.answer(hook, &Err(anyhow!("{error:#}")));
                        return Err(error);
                    }
                };
            freeze.link_remaps = links.records();
            self.timeline.mark("snapshot", begin, end);
            let so_far = Timeline::milliseconds(frozen.requested().elapsed());
            let manifest = begun.staged(freeze, parts::records(&parts), held, so_far);
            let committing = Instant::now();
            let (parts, outcome) = self.commit(parts, &manifest, locks);
            fault::point(Point::Committed);
            self.answer(hook, &outcome);
            outcome.context("committing")?;
            self.timeline.mark("commit", committing, Instant::now());
            Ok(Some(Joined { manifest, parts, asked, _links: links }))
        })
    }

    /// The names that CRIU has made.
    fn links(&self) -> Result<Links> {
        Links::of_dump(&self.images(), self.container, self.cover.finder())
    }

    /// Answers CRIU's post-dump script. Where that is gone, CRIU fails: what has become of the
    /// container then is seen when the runtime has ended.
    fn answer(&self, hook: WaitingScript, outcome: &Result<()>) {
        if let Err(error) = hook.answer(outcome) {
            tracing::debug!("answering CRIU: {error:#}");
        }
    }

    /// Makes everything durable that a restore needs, before CRIU ends the container. One that
    /// goes on needs nothing: without a manifest, written at the very end, there is no checkpoint.
    fn commit(
        &self,
        parts: Vec<parts::PartUnderway>,
        manifest: &Manifest,
        locks: &Locks,
    ) -> (Vec<parts::PartUnderway>, Result<()>) {
        let images = self.images();
        let asked_for = locks.ensure_asked_for(&images, self.cover.keeps_locks());
        let in_time = asked_for.and_then(|()| self.guardian.ensure_in_time());
        if in_time.is_err() || self.request.leave_running {
            return (parts, in_time);
        }
        let committed = complete(&images, locks)
            .and_then(|()| self.comeback.ensure_after(&images, manifest, &parts))
            .and_then(|()| parts::seal(parts))
            .and_then(|_leases| self.directory.commit_staged(manifest))
            .and_then(|()| {
                // Syncing may have taken long.
                self.guardian
                    .ensure_in_time()
                    .or_else(|late| self.directory.withdraw().and(Err(late)))
            });
        (Vec::new(), committed)
    }

    /// Lets CRIU in for whatever the runtime asks first, until it comes with the dump.
    fn await_dump(&self) -> Result<WaitingCriu<'_>> {
        loop {
            match self.next()? {
                Some(Visitor::Criu(criu)) if criu.work == Work::Dump => return Ok(criu),
                Some(visitor) => visitor.wave_through()?,
                None => return self.failed(),
            }
        }
    }

    /// Waits for the action script of a point. `None` when CRIU failed before it came that far.
    fn await_action(&self, point: &str) -> Result<Option<WaitingScript>> {
        loop {
            match self.next()? {
                Some(Visitor::Action(action)) if action.point == point => return Ok(Some(action)),
                Some(visitor) => visitor.wave_through()?,
                None => return Ok(None),
            }
        }
    }

    /// Waits until CRIU has ended, as then nothing holds the processes but the freezer; the runtime
    /// may take as long again to end.
    fn await_criu(&self, process: Option<&OwnedFd>) -> Result<()> {
        let Some(process) = process else { return Ok(()) };
        loop {
            let fds = [self.door.as_fd(), process.as_fd(), self.guardian.as_fd()];
            let ready = wait_readable(&fds, None)?;
            if ready[0] {
                match self.door.accept() {
                    Ok(visitor) => visitor.wave_through()?,
                    Err(error) => tracing::debug!("at the door: {error:#}"),
                }
            } else if ready[1] || ready[2] {
                return Ok(());
            }
        }
    }

    fn await_end(&self) -> Result<Ended> {
        while let Some(visitor) = self.next()? {
            visitor.wave_through()?;
        }
        self.guardian.ended()
    }

    /// The next at the door; `None` when the runtime has ended.
    fn next(&self) -> Result<Option<Visitor<'_>>> {
        loop {
            let ready = wait_readable(&[self.door.as_fd(), self.guardian.as_fd()], None)?;
            if ready[0] {
                // Who comes and goes without a word is of no concern.
                match self.door.accept() {
                    Ok(visitor) => return Ok(Some(visitor)),
                    Err(error) => tracing::debug!("at the door: {error:#}"),
                }
            } else if ready[1] {
                return Ok(None);
            }
        }
    }

    /// A runtime that failed after the commit may have left the container alive: then what was
    /// committed is taken back. Of a container that has ended it is all that is left, and stays.
    fn judge(&self, ended: &Ended, joined: Option<Joined>) -> Result<Joined> {
        if let Some(joined) = joined
            && (ended.success() || self.is_over()?)
        {
            if !ended.success() {
                tracing::warn!("the checkpoint is whole, although {:#}", self.explain(ended));
            }
            if let Err(error) = self.diverted.hand_on() {
                tracing::warn!("handing on the runtime's log: {error:#}");
            }
            return Ok(joined);
        }
        self.directory.withdraw()?;
        if ended.success() {
            bail!(
                "{} made a dump without CRIU's post-dump script: is another criu configured?",
                self.request.runtime.name()
            );
        }
        Err(self.explain(ended))
    }

    /// Whether the container's first process has not ended.
    fn lives(&self) -> Result<bool> {
        let Some(init) = &self.init else { return Ok(false) };
        Ok(wait_readable(&[init.as_fd()], Some(Duration::ZERO))? == [false])
    }

    /// Whether the container is to end with its checkpoint, and has.
    fn is_over(&self) -> Result<bool> {
        Ok(!self.request.leave_running && self.init.is_some() && !self.lives()?)
    }

    /// Why the runtime has ended before its time.
    fn failed<T>(&self) -> Result<T> {
        let ended = self.guardian.ended()?;
        Err(self.explain(&ended))
    }

    fn explain(&self, ended: &Ended) -> anyhow::Error {
        let runtime = &self.request.runtime;
        failure::explain("checkpoint", runtime, ended, Some(&self.errors), &self.logs())
    }

    fn logs(&self) -> failure::Logs {
        let CheckpointRequest { runtime, id, images, work, .. } = self.request;
        let mut logs = failure::Logs::of(runtime, id, images, self.since.get());
        logs.look_in(work.as_deref());
        logs
    }
}

/// A dump and a snapshot of one instant.
struct Joined {
    manifest: Manifest,
    parts: Vec<parts::PartUnderway>,
    /// When CRIU's post-dump script came to the door.
    asked: Instant,
    /// Removed in the end.
    _links: Links,
}

/// What was taken under the freeze, and when.
pub(super) struct TakenParts {
    pub parts: Vec<parts::PartUnderway>,
    pub held: Vec<HeldFile>,
    pub begin: Instant,
    pub end: Instant,
}

/// Of files that the checkpoint does not hold: on what is mounted from outside, or all of them.
fn owners_outside(
    container: &Container,
    owned: Vec<Owned>,
    parts: &[parts::PartUnderway],
) -> Vec<Owner> {
    let parts = parts::records(parts);
    let binds = container.bundle.binds();
    let is_outside = |mount: &ByteString| {
        let is_bind = binds.iter().any(|bind| bind.destination == mount.as_path());
        (is_bind || mount.as_path() == Path::new("/"))
            && !parts.iter().any(|part| part.destination == *mount)
    };
    let outside = owned.into_iter().filter(|file| is_outside(&file.mount));
    let owners = outside.map(|file| Owner { path: file.path, uid: file.uid, gid: file.gid });
    owners.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Says what a restore will not have of what waits to be read.
pub(super) fn lost_events(events: &[WaitingEvents]) -> Vec<manifest::LostEvents> {
    let lost = events.iter().map(|lost| manifest::LostEvents {
        kind: lost.kind,
        holder: format!("{}:{}", lost.holder.pid, lost.holder.fd),
        bytes: lost.bytes,
    });
    let lost: Vec<_> = lost.collect();
    lost.iter().for_each(|lost| tracing::warn!("{lost}"));
    lost
}

pub(super) fn take(
    container: &Container,
    frozen: &Frozen<'_>,
    parts: Vec<parts::PartUnderway>,
    digests: Option<&Digests>,
    before: &Suspects,
) -> Result<TakenParts> {
    let begin = Instant::now();
    let mut suspects = before.clone();
    suspects.extend(Suspects::of(&frozen.processes()?));
    let held = match digests {
        Some(digests) => {
            digests.record(frozen, &parts::holders(container)?, &container.bundle, &suspects)?
        }
        None => Vec::new(),
    };
    let parts = parts::take(parts, &suspects, frozen)?;
    fault::point(Point::SnapshotTaken);
    Ok(TakenParts { parts, held, begin, end: Instant::now() })
}
