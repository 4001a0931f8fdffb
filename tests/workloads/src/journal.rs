//! Two processes that write the same growing number to a log, to SQLite and to memory.
//!
//! Process A forks B; both write through one open file description, so the position they share
//! is part of what a checkpoint has to keep. A token goes through two pipes from one to the other,
//! and requests are answered only while A holds it: then log, database and memory agree.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork, pipe};
use rusqlite::Connection;
use serde_json::json;

use crate::memory::shared_word;

/// A and B write one line each in this time.
const TURN: Duration = Duration::from_millis(100);
const DELETED_CONTENT: &str = "content of a file without a name\n";
/// Where the second opening of the log stays.
const SECOND_POSITION: usize = 10;

pub fn run(dir: &Path, port: u16, image_file: &Path) -> Result<()> {
    let counter = shared_word()?;
    prepare_database(dir)?;
    let log = OpenOptions::new().write(true).create(true).truncate(true).open(dir.join("log"))?;
    let (token_of_b, to_b) = pipe()?;
    let (token_of_a, to_a) = pipe()?;
    // SAFETY: there is one thread, so the child may do everything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop((to_b, token_of_a));
            let journal = Journal::new(dir, "B", counter, log)?;
            follow(journal, &mut token_of_b.into(), &mut to_a.into())
        }
        ForkResult::Parent { .. } => {
            drop((token_of_b, to_a));
            let journal = Journal::new(dir, "A", counter, log)?;
            let partner = Partner { to: to_b.into(), from: token_of_a.into() };
            Leader::new(dir, port, image_file, journal, partner)?.lead()
        }
    }
}

/// Before the fork, for SQLite does not wait for a lock while it changes the journal mode.
fn prepare_database(dir: &Path) -> Result<()> {
    let database = Connection::open(dir.join("db.sqlite")).context("making the database")?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.execute("create table lines (number integer primary key, writer text)", ())?;
    Ok(())
}

/// What both processes do: take the next number and write it everywhere.
struct Journal {
    name: &'static str,
    counter: &'static AtomicU64,
    log: File,
    database: Connection,
}

impl Journal {
    fn new(
        dir: &Path,
        name: &'static str,
        counter: &'static AtomicU64,
        log: File,
    ) -> Result<Journal> {
        let database = Connection::open(dir.join("db.sqlite")).context("opening the database")?;
        database.busy_timeout(Duration::from_secs(60))?;
        Ok(Journal { name, counter, log, database })
    }

    fn write_line(&mut self) -> Result<()> {
        let number = self.counter.fetch_add(1, Ordering::SeqCst) + 1;
        self.log.write_all(format!("{} {number}\n", self.name).as_bytes())?;
        self.database
            .execute("insert into lines values (?1, ?2)", (i64::try_from(number)?, self.name))?;
        Ok(())
    }
}

/// Process B: writes a line whenever it has the token; ends when A is gone.
fn follow(mut journal: Journal, from: &mut File, to: &mut File) -> Result<()> {
    let mut token = [0];
    while from.read(&mut token)? == 1 {
        journal.write_line()?;
        to.write_all(&token)?;
    }
    Ok(())
}

/// The ends of the two pipes to B.
struct Partner {
    to: File,
    from: File,
}

impl Partner {
    fn take_turn(&mut self) -> Result<()> {
        let mut token = [b'*'];
        self.to.write_all(&token)?;
        self.from.read_exact(&mut token).context("waiting for process B")
    }
}

/// Process A: sets the pace, holds further open files, and answers.
struct Leader {
    dir: PathBuf,
    image_file: PathBuf,
    journal: Journal,
    partner: Partner,
    second: File,
    deleted: File,
    control: UnixListener,
    port: TcpListener,
}

impl Leader {
    fn new(
        dir: &Path,
        port: u16,
        image_file: &Path,
        mut journal: Journal,
        mut partner: Partner,
    ) -> Result<Leader> {
        for _ in 0..4 {
            journal.write_line()?;
            partner.take_turn()?;
        }
        let mut second = File::open(dir.join("log"))?;
        second.read_exact(&mut [0; SECOND_POSITION])?;
        writeln!(OpenOptions::new().append(true).open(image_file)?, "changed by the container")
            .with_context(|| format!("changing {}", image_file.display()))?;
        Ok(Leader {
            image_file: image_file.to_owned(),
            journal,
            partner,
            second,
            deleted: file_without_name(&dir.join("deleted"))?,
            control: UnixListener::bind(dir.join("control"))
                .context("binding the control socket")?,
            port: TcpListener::bind(("127.0.0.1", port)).context("binding the TCP port")?,
            dir: dir.to_owned(),
        })
    }

    fn lead(mut self) -> Result<()> {
        File::create(self.dir.join("ready"))?;
        loop {
            self.journal.write_line()?;
            self.partner.take_turn()?;
            if self.answer_until(Instant::now() + TURN)? == Next::Quit {
                return Ok(());
            }
        }
    }

    fn answer_until(&mut self, end: Instant) -> Result<Next> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (control, port) = self.wait(left)?;
            if control {
                let (stream, _) = self.control.accept()?;
                // A caller who went away is no reason to end.
                if matches!(self.serve(stream), Ok(Next::Quit)) {
                    return Ok(Next::Quit);
                }
            }
            if port {
                let (mut stream, _) = self.port.accept()?;
                let _ = writeln!(stream, "{}", self.journal.counter.load(Ordering::SeqCst));
            }
            if left.is_zero() {
                return Ok(Next::Write);
            }
        }
    }

    /// Which of the two listening sockets has a caller.
    fn wait(&self, time: Duration) -> Result<(bool, bool)> {
        let mut fds = [
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.port.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("waiting for callers"),
        }
        let [control, port] = fds.map(|fd| fd.any().unwrap_or(false));
        Ok((control, port))
    }

    fn serve(&mut self, stream: UnixStream) -> Result<Next> {
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request)?;
        let answer = match request.split_whitespace().collect::<Vec<_>>()[..] {
            ["status"] => self.status().unwrap_or_else(|error| format!("{error:#}")),
            ["lock"] => outcome(File::create_new(self.dir.join("lock"))),
            ["remove", name] => outcome(fs::remove_file(self.dir.join(name))),
            ["quit"] => "ok".to_owned(),
            _ => "unknown request".to_owned(),
        };
        writeln!(&stream, "{answer}")?;
        Ok(if request.trim() == "quit" { Next::Quit } else { Next::Write })
    }

    fn status(&mut self) -> Result<String> {
        let mut deleted = vec![0; 1024];
        let length = self.deleted.read_at(&mut deleted, 0)?;
        let database = &self.journal.database;
        let db_max: i64 =
            database.query_row("select max(number) from lines", (), |row| row.get(0))?;
        let db_lines: i64 =
            database.query_row("select count(*) from lines", (), |row| row.get(0))?;
        let db_check: String = database.query_row("pragma quick_check", (), |row| row.get(0))?;
        let status = json!({
            "counter": self.journal.counter.load(Ordering::SeqCst),
            "log_size": fs::metadata(self.dir.join("log"))?.len(),
            "log_position": self.journal.log.stream_position()?,
            "second_position": self.second.stream_position()?,
            "deleted_content": String::from_utf8_lossy(&deleted[..length]),
            "image_file": fs::read_to_string(&self.image_file)?,
            "db_max": db_max,
            "db_lines": db_lines,
            "db_check": db_check,
            "pid": std::process::id(),
        });
        Ok(status.to_string())
    }
}

#[derive(PartialEq)]
enum Next {
    Write,
    Quit,
}

fn file_without_name(path: &Path) -> Result<File> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all(DELETED_CONTENT.as_bytes())?;
    fs::remove_file(path)?;
    Ok(file)
}

/// "ok", or the name of the error: `EEXIST`.
fn outcome<T>(result: std::io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", nix::Error::from_raw(number)),
            None => error.to_string(),
        },
    }
}
