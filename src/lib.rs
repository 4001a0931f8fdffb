//! ocicle: checkpoint and restore of OCI containers, memory and files of one instant.
//!
//! Two programs and one crate. `ocicle` is the operator's command, [`cli`]. `ocicle-runtime` has the
//! command line of runc and crun: a small program that becomes the real runtime for everything but
//! `checkpoint` and `restore` ([`passing`]), and for these two becomes `ocicle` as its [`shim`]. Both
//! end in [`checkpoint::checkpoint`] and [`restore::restore`], which run the real runtime; and that
//! starts CRIU, through us.
//!
//! # The processes
//!
//! ```text
//! ocicle ──┬── ocicle-guardian-deputy
//!          ├── ocicle-guardian ── runc checkpoint ── criu (ocicle's interposer, then CRIU)
//!          │                                              ├── tar, for each tmpfs
//!          │                                              └── criu-action, at post-dump
//!          └── at a restore:     runc restore ──── criu (the same, if CRIU is to be told something)
//!                                                         └── tar, for each tmpfs
//! ```
//!
//! The guardian, its deputy, the interposer, tar and the action script are this very program under other names
//! ([`applets`]). The interposer and the script come to ocicle's [door](criu::door) and wait for
//! its answer: so ocicle decides when CRIU begins, and when it may finish.
//!
//! # A checkpoint, and who thaws
//!
//! | step | if it fails | if ocicle is killed |
//! |---|---|---|
//! | discover, preflight | nothing has been done | nothing has been done |
//! | the guardian starts; parts are copied while the container runs | what was copied is removed | the guardian removes it |
//! | the runtime starts its CRIU, which is admitted, and waits in its pre-dump script | CRIU gets no answer, or the script fails, and the runtime with it | the same |
//! | **freeze** by the cgroup, unless the caller has frozen it | [`Frozen`](freezer::Frozen) thaws on its drop | the guardian thaws |
//! | what CRIU was told is looked at again; it goes on and dumps; beside it the snapshot copies what has changed since | post-dump is answered with an error: CRIU fails and lets go | CRIU fails as nobody answers; the guardian thaws, waits for CRIU, and thaws again |
//! | post-dump: both are there, and in stop mode **the commit**, staged parts and manifest synced | as above | before the manifest: as above; after it, it is a checkpoint |
//! | CRIU ends the container, or lets go of it | what was committed is withdrawn if the container lives, and stays if it has ended | the guardian thaws |
//! | **thaw**, of what we froze only | the error says so, the guardian tries too | the guardian thaws |
//! | table, layers, digests; with `--leave-running` **the commit**, the manifest | the half-made checkpoint is removed | the same by the guardian; after a stop, the next restore finishes it |
//!
//! Where the guardian is killed as well, be it with the whole control group, its
//! [deputy](guardian) does what it would have done, and CRIU is [apart] too: killed in the middle of its
//! work it would take processes with it. Where the deputy is killed too, whoever takes the
//! container's [lock](store::lock) next, were it by any call of the runtime. Where ocicle or CRIU
//! hangs instead, the guardian does the same as soon as nobody has got on for `max-freeze`: the
//! container runs, ocicle is told, and who does not end then is ended.
//!
//! Whether the manifest exists is whether the checkpoint exists. Only
//! [`Manifest::commit`](store::manifest::Manifest::commit) makes it.
//!
//! # A restore
//!
//! Read and verify the manifest; find the open file of every rule ([`substitute::resolve()`]); plan
//! what makes each part equal to its snapshot ([`snapshot::plan()`]); look at every file that CRIU
//! will open ([`files::preflight()`]); open the replacements ([`substitute::open()`]). Up to here
//! nothing has been changed. Then: put the parts back, write a view of the images in which the
//! replaced files are inherited ([`substitute::rewrite()`]), and run the runtime's `restore`, whose
//! CRIU takes the replacements along at the door.
//!
//! # The modules
//!
//! The order, from the ground up. A module names only modules of entries above its own, and those
//! of one entry never name each other; `tests/architecture.rs` reads this list and holds it.
//!
//! 1. [`bytes`], [`choice`], [`fault`], [`glob`], [`hint`], [`locations`]: names that are no text,
//!    settings with a default, points for the tests, patterns, advice on errors, where ocicle's own
//!    files are.
//! 2. [`limits`], [`sys`]: the limits of what is written and read; one function for each system call,
//!    and all `unsafe`.
//! 3. [`digest`]: digests of bytes and files.
//! 4. [`proc`]: all that is read of `/proc`.
//! 5. [`apart`], [`foreign`], [`freezer`], [`runtime`]: out of the reach of who ends our control groups;
//!    files that somebody else keeps; a control group that stops, v1 and v2, and the proof that it has;
//!    the real runtime and its command line.
//! 6. [`container`]: a bundle, its processes, its volumes, what engines call it.
//! 7. [`criu`]: the door, and CRIU's images, configuration, log, and the plugin that keeps it from
//!    files it cannot dump (`plugin/`).
//! 8. [`files`]: the table of open files, of processes and of images, and their preflight.
//! 9. [`lend`], [`snapshot`]: what `ocicle with` and a restore elsewhere say to each other; drivers,
//!    pack, plan, execute.
//! 10. [`store`], [`substitute`]: manifest, versions, locks, what is on disk, by which
//!     [choices](store::choices), and how it is finished; rules, what they mean, what they open, the
//!     view of the images.
//! 11. [`cover`], [`guardian`], [`machine`], [`policy`], [`restorable`]: who covers what CRIU cannot
//!     dump; what makes good when we are killed; what has to be there; what becomes of files that are
//!     not as they were; whether what is taken could be restored.
//! 12. [`check`], [`checkpoint`], [`engines`], [`inspect`], [`restore`]: whether a checkpoint would
//!     work; the order of things; the containers of all engines; what is in a checkpoint, be it an
//!     archive or an image.
//! 13. [`config`]: the administrator's settings.
//! 14. [`output`]: tables, JSON, errors, progress.
//! 15. [`doctor`], [`passing`]: what the machine has and lacks; what is the real runtime's alone.
//! 16. [`commands`], [`hooks`]: one for each of `ocicle`'s; what stock runtimes and engines call.
//! 17. [`cli`], [`shim`]: the command lines.
//! 18. [`applets`]: the programs that `ocicle` is under other names.
//!
//! Only [`output`] writes to the terminal, but for the errors of programs that have no other word:
//! the shim, which speaks as runc does, the guardian, and what CRIU starts.

pub mod apart;
pub mod applets;
pub mod bytes;
pub mod check;
pub mod checkpoint;
pub mod choice;
pub mod cli;
pub mod commands;
pub mod config;
pub mod container;
pub mod cover;
pub mod criu;
pub mod digest;
pub mod doctor;
pub mod engines;
pub mod fault;
pub mod files;
pub mod foreign;
pub mod freezer;
pub mod glob;
pub mod guardian;
pub mod hint;
pub mod hooks;
pub mod inspect;
pub mod lend;
pub mod limits;
pub mod locations;
pub mod machine;
pub mod output;
pub mod passing;
pub mod policy;
pub mod proc;
pub mod restorable;
pub mod restore;
pub mod runtime;
pub mod shim;
pub mod snapshot;
pub mod store;
pub mod substitute;
pub mod sys;
