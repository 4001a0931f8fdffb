//! Everything that is printed: lines, tables, JSON, errors, progress.

pub mod progress;
pub mod tree;

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};

use crate::bytes::is_unsafe;
use crate::hint::{WithHint, hint_of};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default();
const HEADING: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// How a piece of text stands out on a terminal that has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A heading.
    Heading,
    /// What is of less interest.
    Faint,
    /// As it should be.
    Good,
    /// Not quite as it should be.
    Warning,
    /// Wrong.
    Bad,
}

/// Text in a tone; [`line()`] and [`TextTable`] leave it out where there is no terminal.
pub fn toned(tone: Tone, text: &str) -> String {
    let style = match tone {
        Tone::Heading => HEADING,
        Tone::Faint => FAINT,
        Tone::Good => GOOD,
        Tone::Warning => WARNING,
        Tone::Bad => ERROR,
    };
    format!("{style}{text}{style:#}")
}

/// Sends what the program says of its work to standard error: warnings, or everything.
pub fn start_log(debug: bool) {
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::WARN };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(has_colours())
        .with_target(false)
        .without_time()
        .init();
}

/// Whether standard error shows colours: a terminal whose user has not said otherwise (`NO_COLOR`).
fn has_colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// Text in which nothing acts on a terminal but colours: much of it comes out of archives, in errors
/// of libraries as well. What would act is escaped as [`ByteString`](crate::bytes::ByteString) does.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && is_unsafe(c);
    if !text.contains(acts) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find(acts) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = colour(rest).or(rest.chars().next().map(char::len_utf8)).unwrap_or_default();
        match colour(rest) {
            Some(_) => out.push_str(&rest[..length]),
            None => rest.as_bytes()[..length].iter().for_each(|b| out += &format!("\\x{b:02x}")),
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out.into()
}

/// The length of the sequence that a text begins with, if it sets a colour: `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\x1b[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then_some(end + 3)
}

/// The first error of standard output.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Notes that something could not be printed. Whoever closed the pipe does not want it.
fn note_failure(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Makes sure that everything is printed.
///
/// # Errors
/// What kept any of it from standard output: what was printed is not whole.
pub fn finish() -> Result<()> {
    note_failure(io::stdout().flush());
    match FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(()),
        Some(error) => Err(error)
            .context("writing to standard output")
            .hint("what the command has done stays; what it printed is cut"),
    }
}

/// Prints a line.
pub fn line(text: &str) {
    note_failure(writeln!(anstream::stdout(), "{}", harmless(text)));
}

/// Makes a text stand out on a terminal.
pub fn strong(text: &str) -> String {
    format!("{HEADING}{text}{HEADING:#}")
}

/// Prints text that has its own line ends.
pub fn text(text: &str) {
    note_failure(write!(anstream::stdout(), "{}", harmless(text)));
}

/// Prints a remark, to a person only.
pub fn note(text: &str) {
    if io::stderr().is_terminal() {
        let _ = writeln!(anstream::stderr(), "{}", harmless(text));
    }
}

/// Prints a remark, to a person or a log.
pub fn remark(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", harmless(text));
}

/// Prints JSON.
pub fn json(value: &serde_json::Value) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints an error: its cause on one line, advice on another.
pub fn error(error: &anyhow::Error) {
    let mut stderr = anstream::stderr();
    let _ = writeln!(stderr, "{ERROR}error:{ERROR:#} {}", harmless(&format!("{error:#}")));
    if let Some(hint) = hint_of(error) {
        let _ = writeln!(stderr, "{HINT}hint:{HINT:#} {}", harmless(hint));
    }
}

/// Prints an error as one line of JSON, to standard error.
pub fn error_as_json(error: &anyhow::Error) {
    let line = serde_json::json!({
        "schema": 1,
        "error": format!("{error:#}"),
        "hint": hint_of(error),
    });
    let _ = writeln!(io::stderr(), "{line}");
}

/// Columns with headings.
#[derive(Debug)]
pub struct TextTable(comfy_table::Table);

impl TextTable {
    /// A table without rows.
    pub fn new(headings: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(headings.iter().map(|heading| format!("{HEADING}{heading}{HEADING:#}")));
        Self(table)
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.add_row(cells);
    }

    /// Prints it.
    pub fn print(&mut self) {
        let columns = self.0.column_count();
        for (at, column) in self.0.column_iter_mut().enumerate() {
            column.set_padding((0, if at + 1 == columns { 0 } else { 2 }));
        }
        if let Some(width) = width_of_terminal() {
            self.0.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
            self.0.set_width(width);
        }
        line(&self.0.trim_fmt());
    }
}

/// The columns of the terminal that standard output is.
fn width_of_terminal() -> Option<u16> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col).filter(|columns| *columns > 0)
}

/// How much of an engine's identifier is shown, as podman and docker do.
const SHORT: usize = 12;

/// An identifier for a reader: of the 64 digits of an engine's, the first twelve.
pub fn short_id(id: &str) -> &str {
    let is_digest = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_digest { &id[..SHORT] } else { id }
}

/// A number of bytes for a reader.
pub fn bytes(number: u64) -> String {
    indicatif::BinaryBytes(number).to_string()
}

/// A time for a reader, in the machine's time zone.
pub fn local_time(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %H:%M %Z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal_but_colours() {
        let table = format!("{}\n  two lines, ünïcode", toned(Tone::Bad, "red"));
        assert_eq!(harmless(&table), table);
        for (text, shown) in [
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("a\x1b[2Jb\x1b[1;31mc", "a\\x1b[2Jb\x1b[1;31mc"),
            ("\u{9b}2J\r\u{202e}txt", "\\xc2\\x9b2J\\x0d\\xe2\\x80\\xaetxt"),
            ("\x1b[1;3\x1b", "\\x1b[1;3\\x1b"),
            ("\x1b[", "\\x1b["),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }
}
