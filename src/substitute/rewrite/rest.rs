//! What becomes of that which was tied to a replaced file and stays: the peer of a socket, the
//! other side of a pseudoterminal.

use std::collections::BTreeSet;

use super::{Plan, Rewritten};
use crate::criu::images::Images;
use crate::criu::images::entries::{FileBody, FileEntry, Packet, TtyInfo};
use crate::criu::images::image::EntryChange;
use crate::criu::images::wire::{BadMessage, Message};

/// What stays without its counterpart.
#[derive(Default)]
pub(super) struct Rest {
    /// Unix sockets whose peer goes, by identifier.
    alone: BTreeSet<u32>,
    /// Terminals, as entries of `tty-info.img`, that no open file refers to any more.
    unused: BTreeSet<u32>,
    /// Slaves whose master goes.
    hung: BTreeSet<u32>,
}

impl Rest {
    pub(super) fn of(images: &Images, replaced: &BTreeSet<u32>) -> Self {
        let (gone, staying): (Vec<_>, Vec<_>) =
            images.files.iter().partition(|file| replaced.contains(&file.id));
        let terminals = |files: &[&FileEntry]| files.iter().filter_map(|f| terminal(f)).collect();
        let (lost, kept): (BTreeSet<u32>, BTreeSet<u32>) = (terminals(&gone), terminals(&staying));
        let unused: BTreeSet<u32> = lost.difference(&kept).copied().collect();
        Self { alone: alone(&gone, &staying), hung: hung(images, &unused), unused }
    }

    /// Whether `tty-info.img` changes.
    pub(super) fn changes_terminals(&self) -> bool {
        !self.unused.is_empty()
    }

    pub(super) fn is_alone(&self, file: &FileEntry) -> bool {
        self.alone.contains(&file.id)
    }

    /// A terminal, as it is when nothing has its other side open.
    pub(super) fn rewrite_terminal(&self, message: &Message<'_>) -> Rewritten {
        let id = message.need_u32(1, "id")?;
        if self.unused.contains(&id) {
            return Ok(EntryChange::Remove);
        }
        if !self.hung.contains(&id) {
            return Ok(EntryChange::Keep);
        }
        // CRIU makes a terminal without settings together with a master, which it closes
        // (`tty_is_hung` and `pty_open_unpaired_slave` in criu/tty.c).
        const SETTINGS: [u32; 3] = [9, 10, 11];
        const SESSION: [u32; 2] = [6, 7];
        let mut hung = message.clone();
        SETTINGS.iter().for_each(|field| hung = hung.without(*field));
        SESSION.iter().for_each(|field| hung.set_number(*field, 0));
        Ok(EntryChange::Replace(hung.encode()))
    }

    /// What was not read yet from a terminal goes with it.
    pub(super) fn rewrite_input(&self, message: &Message<'_>) -> Rewritten {
        let id = message.need_u32(1, "tty_id")?;
        Ok(if self.unused.contains(&id) { EntryChange::Remove } else { EntryChange::Keep })
    }
}

fn terminal(file: &FileEntry) -> Option<u32> {
    match file.body {
        FileBody::Tty { info, .. } => Some(info),
        _ => None,
    }
}

fn alone(gone: &[&FileEntry], staying: &[&FileEntry]) -> BTreeSet<u32> {
    let inode = |file: &&FileEntry| match &file.body {
        FileBody::Unix(socket) => Some(socket.inode).filter(|inode| *inode != 0),
        _ => None,
    };
    let gone: BTreeSet<u32> = gone.iter().filter_map(inode).collect();
    let is_alone = |file: &&&FileEntry| match &file.body {
        FileBody::Unix(socket) => gone.contains(&socket.peer),
        _ => false,
    };
    staying.iter().filter(is_alone).map(|file| file.id).collect()
}

/// A pseudoterminal's two sides have neighbouring numbers (`tty_has_active_pair` in criu/tty.c).
fn hung(images: &Images, unused: &BTreeSet<u32>) -> BTreeSet<u32> {
    let masters = images.ttys.iter().filter(|tty| tty.master && unused.contains(&tty.id));
    let slaves = masters.filter_map(|master| master.id.checked_sub(1));
    slaves.filter(|slave| images.ttys.iter().any(|tty| tty.id == *slave)).collect()
}

/// The entry of a unix socket whose peer is gone: CRIU makes a pair, sends what waits in the
/// socket through the other end, closes that, and shuts a connection down (`add_fake_queuer` and
/// `open_unixsk_standalone` in criu/sk-unix.c).
pub(super) fn without_peer(message: &Message<'_>) -> Result<Vec<u8>, BadMessage> {
    /// The body's field in `file_entry`.
    const BODY: u32 = 16;
    const TYPE: u32 = 3;
    const PEER: u32 = 8;
    const SHUTDOWN: u32 = 12;
    const BOTH: u64 = 3;
    let mut body = message.need_message(BODY, "usk")?.clone();
    body.set_number(PEER, 0);
    if body.number(TYPE) != Some(libc::SOCK_DGRAM as u64) {
        body.set_number(SHUTDOWN, BOTH);
    }
    let mut entry = message.without(BODY);
    entry.push_bytes(BODY, &body.encode());
    Ok(entry.encode())
}

/// A message that waits in a socket: it goes with the socket, and carries the open files that
/// are there instead.
pub(super) fn rewrite_packet(plan: &Plan<'_>, message: &Message<'_>) -> Rewritten {
    let packet = Packet::read(message)?;
    if plan.treatments.contains_key(&packet.socket) {
        return Ok(EntryChange::Remove);
    }
    let carried = |id: &u32| (!plan.is_closed(*id)).then(|| plan.seen_as(*id));
    let rights: Vec<u32> = packet.rights.iter().filter_map(carried).collect();
    if rights == packet.rights {
        return Ok(EntryChange::Keep);
    }
    let mut rewritten = message.without(Packet::CONTROL);
    if !rights.is_empty() {
        rewritten.push_bytes(Packet::CONTROL, &control(&rights));
    }
    Ok(EntryChange::Replace(rewritten.encode()))
}

/// A `scm_entry`; CRIU writes one to a message.
fn control(rights: &[u32]) -> Vec<u8> {
    let mut control = Message::default();
    control.set_number(1, libc::SCM_RIGHTS as u64);
    rights.iter().for_each(|right| control.push_number(Packet::RIGHTS, (*right).into()));
    control.encode()
}

/// `/dev/tty` cannot be opened in a session that has lost its terminal.
pub(super) fn terminal_refusal(
    images: &Images,
    replaced: &BTreeSet<u32>,
    file: &FileEntry,
) -> Option<String> {
    let rest = Rest::of(images, replaced);
    let entry = |id: u32| images.ttys.iter().find(|tty| tty.id == id);
    let lost = terminal(file).filter(|id| rest.unused.contains(id)).and_then(entry)?;
    let controls = |tty: &TtyInfo| {
        tty.sid == lost.sid
            && !tty.current
            && !rest.unused.contains(&tty.id)
            && !rest.hung.contains(&tty.id)
    };
    if lost.sid == 0 || lost.current || images.ttys.iter().any(controls) {
        return None;
    }
    let opens_it = |file: &&FileEntry| {
        let tty = terminal(file).and_then(entry);
        !replaced.contains(&file.id) && tty.is_some_and(|tty| tty.current && tty.sid == lost.sid)
    };
    let other = images.files.iter().find(opens_it)?;
    Some(format!(
        "it controls session {}, in which {} is /dev/tty: replace both",
        lost.sid, other.id
    ))
}
