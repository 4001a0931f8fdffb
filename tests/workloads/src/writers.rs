//! Processes that write to one SQLite database at once, and remember what it has accepted.
//!
//! In WAL mode SQLite keeps writers apart by locks of ranges on a file that each of them has mapped,
//! the index of the log. Who believes that nobody has that file open makes it anew.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rusqlite::Connection;
use serde_json::json;

/// Starts the writers and answers on DIR/control; `noted` in how far they are, `compare` in what of it
/// is in the database.
pub fn run(dir: &Path, count: usize) -> Result<()> {
    let control = UnixListener::bind(dir.join("control")).context("binding the control socket")?;
    let database = open(dir)?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.execute("create table rows (writer integer, number integer)", ())?;
    drop(database);
    let writers = (0..count).map(|number| start(dir, number)).collect::<Result<Vec<_>>>()?;
    File::create(dir.join("ready"))?;
    for stream in control.incoming() {
        // A caller who went away is no reason to end.
        let _ = serve(&stream?, dir, &writers);
    }
    Ok(())
}

fn serve(stream: &UnixStream, dir: &Path, writers: &[Pid]) -> Result<()> {
    let mut request = String::new();
    BufReader::new(stream).read_line(&mut request)?;
    let answer = match request.trim() {
        "noted" => noted(dir, writers.len()),
        "compare" => compare(dir, writers),
        _ => Ok("unknown request".to_owned()),
    };
    writeln!(&*stream, "{}", answer.unwrap_or_else(|error| format!("{error:#}")))?;
    Ok(())
}

fn open(dir: &Path) -> Result<Connection> {
    let database = Connection::open(dir.join("db.sqlite")).context("opening the database")?;
    database.busy_timeout(Duration::from_secs(60))?;
    // What is written is there for the others, disk or not.
    database.pragma_update(None, "synchronous", "off")?;
    Ok(database)
}

fn start(dir: &Path, writer: usize) -> Result<Pid> {
    // SAFETY: there is one thread, so the child may do everything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let Err(error) = write(dir, writer);
            fs::write(dir.join(format!("error-{writer}")), format!("{error:?}"))?;
            std::process::exit(1);
        }
    }
}

fn write(dir: &Path, writer: usize) -> Result<std::convert::Infallible> {
    let database = open(dir)?;
    let mut notes = OpenOptions::new().create(true).append(true).open(notes_of(dir, writer))?;
    for number in 0_i64.. {
        database.execute("insert into rows values (?1, ?2)", (i64::try_from(writer)?, number))?;
        writeln!(notes, "{number}")?;
    }
    anyhow::bail!("no number is left")
}

fn notes_of(dir: &Path, writer: usize) -> std::path::PathBuf {
    dir.join(format!("notes-{writer}"))
}

/// How many rows the writer has noted that has noted the least.
fn noted(dir: &Path, count: usize) -> Result<String> {
    let noted = (0..count).map(|writer| Ok(numbers(dir, writer)?.len()));
    let least = noted.collect::<Result<Vec<_>>>()?.into_iter().min();
    Ok(least.unwrap_or(0).to_string())
}

fn numbers(dir: &Path, writer: usize) -> Result<Vec<i64>> {
    let text = fs::read_to_string(notes_of(dir, writer)).unwrap_or_default();
    // A line that is being written has no end.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| Ok(line.trim_end().parse()?)).collect()
}

/// Looks into the database as somebody who opens it anew, while the writers write.
fn compare(dir: &Path, writers: &[Pid]) -> Result<String> {
    let noted: Vec<Vec<i64>> =
        (0..writers.len()).map(|writer| numbers(dir, writer)).collect::<Result<_>>()?;
    let database = open(dir)?;
    let mut find = database.prepare("select number from rows where writer = ?1")?;
    let mut missing = Vec::new();
    for (writer, noted) in noted.iter().enumerate() {
        let rows = find.query_map([i64::try_from(writer)?], |row| row.get(0))?;
        let rows = rows.collect::<rusqlite::Result<std::collections::HashSet<i64>>>()?;
        let lost = noted.iter().filter(|number| !rows.contains(number));
        missing.extend(lost.map(|number| format!("{writer}: {number}")));
    }
    let check: String = database.query_row("pragma quick_check", (), |row| row.get(0))?;
    let died =
        writers.iter().filter_map(|writer| match waitpid(*writer, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => None,
            ended => Some(format!("{ended:?}")),
        });
    let died: Vec<String> = died.collect();
    Ok(json!({ "missing": missing, "check": check, "died": died }).to_string())
}
