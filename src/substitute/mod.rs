//! Substitution: at restore, something else takes the place of an open file.
//!
//! A [`Rule`] names an open file by a [`Selector`] and what takes its place by a [`Source`].
//! [`resolve()`] finds the file for every rule, [`open()`] opens the sources and checks that they
//! fit, [`rewrite()`] makes a view of the images in which CRIU takes inherited file descriptors
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

mod callers;
mod grammar;
mod open;
mod pattern;
mod resolve;
mod rewrite;
mod rule;
mod selector;
mod source;
mod standing;

use crate::bytes::ByteString;

pub use callers::Callers;
pub use grammar::{ParseError, parse_list, parse_rule};
pub use open::{Around, Prepared, Refusal, Refusals, Replacement, Site, open, prepare, settle};
pub use pattern::{AddressPattern, PathPattern};
pub use resolve::{Mismatch, Mismatches, Resolved, judge, resolve};
pub use rewrite::{How, InheritKey, Treatment, check, rewrite, rewrite_with};
pub use rule::{Origin, Rule};
pub use selector::{Selector, Term};
pub use source::{Access, FileSource, Position, Source, TcpSource, UnixSource};
pub use standing::{
    Allow, OnUnsupported, Substitution, ensure_allowed, parse_each, standing_rules,
};

/// Bytes in a rule: the characters that mean something to the grammar are escaped as well.
fn escaped(bytes: &ByteString) -> String {
    let mut text = String::new();
    for character in bytes.to_string().chars() {
        match character {
            '=' | ',' | ';' | '*' => text.push_str(&format!("\\x{:02x}", u32::from(character))),
            blank if blank.is_whitespace() => {
                let mut utf8 = [0; 4];
                for byte in blank.encode_utf8(&mut utf8).bytes() {
                    text.push_str(&format!("\\x{byte:02x}"));
                }
            }
            other => text.push(other),
        }
    }
    text
}
