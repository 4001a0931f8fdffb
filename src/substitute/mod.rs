//! Substitution: at restore, something else takes the place of an open file.
//!
//! A [`Rule`] names an open file by a [`Selector`] and what takes its place by a [`Source`].
//! [`resolve`] finds the file for every rule, [`open`] opens the sources and checks that they
//! fit, [`rewrite`] makes a view of the images in which CRIU takes inherited file descriptors
//! for those files. Nothing of a checkpoint is altered: it can be restored again without.
//!
//! # What is shared
//!
//! All file descriptors that referred to the one open file refer to its replacement: one open
//! file description, with one position and one set of flags. CRIU sets neither on an inherited
//! file descriptor. With `fd:` the caller keeps the same description too: a position or flag that
//! the application then changes (`O_NONBLOCK` on a terminal, say) is changed for the caller.
//! ocicle does not change them on a file descriptor that it is given. A file that it opens itself
//! gets the access mode, `O_APPEND`, `O_NONBLOCK` and position of the original unless the rule
//! says otherwise.

mod grammar;
mod open;
mod resolve;
mod rewrite;
mod rule;

pub use grammar::{ParseError, parse_list, parse_rule};
pub use open::{Refusal, Refusals, Replacement, open};
pub use resolve::{Mismatch, Mismatches, Resolved, resolve};
pub use rewrite::{InheritKey, rewrite};
pub use rule::{Access, FileSource, Origin, Position, Rule, Selector, Source};
