//! The lender's side.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use tempfile::TempPath;

use super::{DIRECTORY, LoanReply, LoanRequest, Offer, connect, hear, hold_directory};
use crate::container::Identity;
use crate::proc::{Proc, descends_from};
use crate::sys::fd;
use crate::sys::pid::Pid;
use crate::sys::socket::{Channel, Listener};
use crate::sys::terminal;

/// How many containers that got nothing are remembered.
const SHOWN: usize = 10;

/// What came of lending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the container is called that got it.
    pub lent_to: Option<String>,
    /// What others were called that asked, and had to go on without.
    pub refused: Vec<String>,
}

/// A lender, listening. It ends with the value.
#[derive(Debug)]
pub struct Broker {
    outcome: Arc<Mutex<Outcome>>,
    /// Removed in the end.
    _socket: TempPath,
}

/// What the thread has that answers.
struct Desk {
    listener: Listener,
    offer: Offer,
    container: Option<String>,
    outcome: Arc<Mutex<Outcome>>,
}

impl Broker {
    /// Offers this, to the container of that name or to the first that is restored below us, from
    /// now on and on a thread of its own.
    pub fn open(offer: Offer, container: Option<String>) -> Result<Self> {
        let (listener, socket) = listen()?;
        let outcome = Arc::new(Mutex::new(Outcome::default()));
        let desk = Desk { listener, offer, container, outcome: Arc::clone(&outcome) };
        std::thread::Builder::new()
            .name("lend".to_owned())
            .spawn(move || desk.serve())
            .context("starting a thread")?;
        Ok(Self { outcome, _socket: socket })
    }

    /// What has come of it so far.
    pub fn outcome(&self) -> Outcome {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Makes a socket of our own, after clearing away those of lenders that were killed.
fn listen() -> Result<(Listener, TempPath)> {
    let _held = hold_directory()?;
    for entry in fs::read_dir(DIRECTORY).with_context(|| format!("reading {DIRECTORY}"))? {
        connect(&entry?.path())?;
    }
    let made = tempfile::Builder::new()
        .prefix("")
        .make_in(DIRECTORY, |path| Listener::bind(path).map_err(std::io::Error::other))
        .with_context(|| format!("listening in {DIRECTORY}"))?;
    Ok(made.into_parts())
}

impl Desk {
    fn serve(&self) {
        loop {
            // Who breaks off, or is not of our own user, is no reason to end.
            if let Err(error) = self.listener.accept().and_then(|channel| self.attend(&channel)) {
                tracing::warn!("lending: {error:#}");
            }
        }
    }

    fn attend(&self, channel: &Channel) -> Result<()> {
        let Some((request, _)) = hear(channel)? else { return Ok(()) };
        let LoanRequest::Borrow(identity) = request else {
            return channel.send(&LoanReply::Nothing, &[]);
        };
        if !self.give(channel, &identity)? {
            return channel.send(&LoanReply::Nothing, &[]);
        }
        channel.send(&LoanReply::Lent(self.offer.clone()), &[])?;
        let Some((LoanRequest::Fetch { numbers, terminals }, _)) = hear(channel)? else {
            return Ok(());
        };
        match self.fetch(&numbers, terminals) {
            Ok(fds) => {
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                channel.send(&LoanReply::Here, &borrowed)
            }
            Err(error) => channel.send(&LoanReply::Failed(format!("{error:#}")), &[]),
        }
    }

    /// Whether this one gets it, and nobody after it.
    fn give(&self, channel: &Channel, identity: &Identity) -> Result<bool> {
        let may = self.may_have(channel.peer_number()?, identity)?;
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if may && outcome.lent_to.is_none() {
            outcome.lent_to = Some(called(identity));
            return Ok(true);
        }
        if outcome.refused.len() < SHOWN {
            outcome.refused.push(called(identity));
        }
        Ok(false)
    }

    fn may_have(&self, peer: Pid, identity: &Identity) -> Result<bool> {
        let ourselves = Pid::own();
        let depth = |pid| Ok::<_, anyhow::Error>(Proc::of(pid).namespaced_pids()?.depth());
        let is_inside = depth(peer)? != depth(ourselves)?;
        ensure!(!is_inside, "process {peer}, inside a container, asked for what is lent");
        Ok(match &self.container {
            Some(name) => identity.is_called(name),
            None => descends_from(peer, ourselves),
        })
    }

    fn fetch(&self, numbers: &[i32], terminals: usize) -> Result<Vec<OwnedFd>> {
        let mut fds = Vec::new();
        for number in numbers {
            ensure!(self.offer.numbers.contains(number), "fd {number} is not lent");
            fds.push(fd::duplicate(*number).with_context(|| format!("duplicating fd {number}"))?);
        }
        for _ in 0..terminals {
            fds.push(terminal::open().context("opening the terminal")?);
        }
        Ok(fds)
    }
}

/// The name that a user knows.
fn called(identity: &Identity) -> String {
    identity.names.first().unwrap_or(&identity.id).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> Identity {
        Identity { id: format!("{name}-id"), names: vec![name.to_owned()], images: vec![] }
    }

    /// A desk that lends fd 0, to the container of that name if one is given.
    fn desk(container: Option<&str>) -> (Desk, tempfile::TempDir) {
        let top = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&top.path().join("socket")).unwrap();
        let offer =
            Offer { rules: vec!["1=fd:30".to_owned()], numbers: [0].into(), ..Offer::default() };
        let outcome = Arc::default();
        (Desk { listener, offer, container: container.map(str::to_owned), outcome }, top)
    }

    /// What the desk answers to each of these, said one after the other and before it listens.
    fn answers(desk: &Desk, said: &[LoanRequest]) -> Vec<(LoanReply, usize)> {
        let (ours, theirs) = Channel::pair().unwrap();
        said.iter().for_each(|request| ours.send(request, &[]).unwrap());
        rustix::net::shutdown(&ours, rustix::net::Shutdown::Write).unwrap();
        desk.attend(&theirs).unwrap();
        drop(theirs);
        std::iter::from_fn(|| ours.receive().unwrap())
            .map(|(reply, fds): (LoanReply, Vec<OwnedFd>)| (reply, fds.len()))
            .collect()
    }

    fn borrow(name: &str) -> LoanRequest {
        LoanRequest::Borrow(identity(name))
    }

    fn fetch(numbers: &[i32]) -> LoanRequest {
        LoanRequest::Fetch { numbers: numbers.to_vec(), terminals: 0 }
    }

    #[test]
    fn what_is_asked_and_answered() {
        type Is = fn(&[(LoanReply, usize)]) -> bool;
        let cases: [(&str, Vec<LoanRequest>, Is); 6] = [
            ("nothing is asked", vec![], |said| said.is_empty()),
            ("it is fetched before it is lent", vec![fetch(&[0])], |said| {
                matches!(said, [(LoanReply::Nothing, 0)])
            }),
            (
                "it is lent, and never fetched",
                vec![borrow("web")],
                |said| matches!(said, [(LoanReply::Lent(offer), 0)] if offer.rules == ["1=fd:30"]),
            ),
            ("it is fetched", vec![borrow("web"), fetch(&[0, 0])], |said| {
                matches!(said, [_, (LoanReply::Here, 2)])
            }),
            (
                "what is not lent is fetched",
                vec![borrow("web"), fetch(&[0, 1])],
                |said| matches!(said, [_, (LoanReply::Failed(why), 0)] if why == "fd 1 is not lent"),
            ),
            ("it is borrowed twice", vec![borrow("web"), borrow("web")], |said| {
                matches!(said, [(LoanReply::Lent(_), 0)])
            }),
        ];
        for (what, said, is) in cases {
            let answers = answers(&desk(None).0, &said);
            assert!(is(&answers), "{what}: {answers:?}");
        }
    }

    #[test]
    fn one_container_gets_it_once() {
        for (container, asked, lent, refused) in [
            (None, &["web", "other"][..], Some("web"), &["other"][..]),
            (Some("other"), &["web", "other", "other"], Some("other"), &["web", "other"]),
            (Some("web-id"), &["web"], Some("web"), &[]),
            (Some("none"), &["web"], None, &["web"]),
        ] {
            let (desk, _top) = desk(container);
            for name in asked {
                answers(&desk, &[borrow(name)]);
            }
            let outcome = desk.outcome.lock().unwrap().clone();
            assert_eq!(outcome.lent_to.as_deref(), lent, "{container:?} {asked:?}");
            assert_eq!(outcome.refused, refused, "{container:?} {asked:?}");
        }
    }

    #[test]
    fn no_more_are_remembered_than_are_shown() {
        let (desk, _top) = desk(Some("none"));
        for _ in 0..SHOWN + 3 {
            answers(&desk, &[borrow("web")]);
        }
        assert_eq!(desk.outcome.lock().unwrap().refused.len(), SHOWN);
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&"rubbish", &[]).unwrap();
        let error = desk(None).0.attend(&theirs).unwrap_err();
        assert_eq!(error.to_string(), "reading a message");
    }
}
