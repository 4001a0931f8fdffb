//! Everything that is printed: lines, tables, JSON, errors, progress.

pub mod progress;
pub mod tree;

use std::borrow::Cow;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use anyhow::Result;

use crate::bytes::is_unsafe;
use crate::hint::hint_of;

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
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
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

/// Prints a line. Whoever closed the pipe does not want it.
pub fn line(text: &str) {
    let _ = writeln!(anstream::stdout(), "{}", harmless(text));
}

/// Makes a text stand out on a terminal.
pub fn strong(text: &str) -> String {
    format!("{HEADING}{text}{HEADING:#}")
}

/// Prints text that has its own line ends.
pub fn text(text: &str) {
    let _ = write!(anstream::stdout(), "{}", harmless(text));
}

/// Prints a remark, to a person only.
pub fn note(text: &str) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
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
        line(&self.0.trim_fmt());
    }
}

/// A number of bytes for a reader.
pub fn bytes(number: u64) -> String {
    indicatif::BinaryBytes(number).to_string()
}

/// A time for a reader, in the machine's time zone.
pub fn local_time(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T").to_string()
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
