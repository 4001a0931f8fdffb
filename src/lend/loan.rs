//! The restore's side.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{DIRECTORY, LoanReply, LoanRequest, Offer, connect, hear, hold_directory};
use crate::container::Identity;
use crate::files::FileId;
use crate::sys::socket::{Channel, FD_LIMIT};

/// What `ocicle with` lends to this restore.
#[derive(Debug)]
pub struct Loan {
    channel: Channel,
    /// What there is.
    pub offer: Offer,
    fds: BTreeMap<i32, OwnedFd>,
    terminals: BTreeMap<FileId, OwnedFd>,
}

impl Loan {
    /// Asks every lender that there is; `None` when none has anything for this container.
    pub fn find(identity: &Identity) -> Result<Option<Self>> {
        for channel in lenders()? {
            channel.send(&LoanRequest::Borrow(identity.clone()), &[])?;
            match hear(&channel) {
                Ok(Some((LoanReply::Lent(offer), _))) => {
                    let (fds, terminals) = (BTreeMap::new(), BTreeMap::new());
                    return Ok(Some(Self { channel, offer, fds, terminals }));
                }
                Ok(_) => {}
                // It is stopped, perhaps; then it is not for us to wait for it.
                Err(error) => tracing::warn!("asking a lender: {error:#}"),
            }
        }
        Ok(None)
    }

    /// Takes these descriptors, and an opening of the terminal for each of these open files.
    pub fn fetch(&mut self, numbers: Vec<i32>, terminals: Vec<FileId>) -> Result<()> {
        let wanted = numbers.len() + terminals.len();
        ensure!(wanted <= FD_LIMIT, "{wanted} descriptors are more than can be lent");
        self.channel.send(
            &LoanRequest::Fetch { numbers: numbers.clone(), terminals: terminals.len() },
            &[],
        )?;
        let mut fds = match hear(&self.channel)? {
            Some((LoanReply::Here, fds)) if fds.len() == wanted => fds.into_iter(),
            Some((LoanReply::Failed(why), _)) => bail!(why),
            Some(_) => bail!("the answer is not what was asked for"),
            None => bail!("`ocicle with` has ended"),
        };
        self.fds = numbers.into_iter().zip(fds.by_ref()).collect();
        self.terminals = terminals.into_iter().zip(fds).collect();
        Ok(())
    }

    /// A descriptor that was fetched.
    pub fn fd(&self, number: i32) -> Option<&OwnedFd> {
        self.fds.get(&number)
    }

    /// The opening of the terminal for an open file.
    pub fn terminal(&self, file: FileId) -> Option<&OwnedFd> {
        self.terminals.get(&file)
    }
}

/// A connection to each lender.
fn lenders() -> Result<Vec<Channel>> {
    if !Path::new(DIRECTORY).exists() {
        return Ok(Vec::new());
    }
    let _held = hold_directory()?;
    let mut channels = Vec::new();
    for entry in fs::read_dir(DIRECTORY).with_context(|| format!("reading {DIRECTORY}"))? {
        channels.extend(connect(&entry?.path())?);
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, BorrowedFd};

    /// What comes of fetching fd 30 and a terminal, when the lender answers so.
    fn fetched(reply: Option<(LoanReply, usize)>) -> Result<Loan> {
        let (ours, theirs) = Channel::pair()?;
        let (fds, terminals) = (BTreeMap::new(), BTreeMap::new());
        let mut loan = Loan { channel: ours, offer: Offer::default(), fds, terminals };
        let null = fs::File::open("/dev/null")?;
        let send = |(reply, count)| {
            let fds: Vec<BorrowedFd<'_>> = std::iter::repeat_n(null.as_fd(), count).collect();
            theirs.send(&reply, &fds)
        };
        match reply {
            Some(reply) => send(reply)?,
            None => rustix::net::shutdown(&theirs, rustix::net::Shutdown::Write)?,
        }
        loan.fetch(vec![30], vec![FileId(7)]).map(|()| loan)
    }

    #[test]
    fn what_was_asked_for_comes_in_its_order() {
        let loan = fetched(Some((LoanReply::Here, 2))).unwrap();
        assert!(loan.fd(30).is_some() && loan.terminal(FileId(7)).is_some());
        assert!(loan.fd(7).is_none() && loan.terminal(FileId(30)).is_none());
    }

    #[test]
    fn what_a_lender_may_answer_instead() {
        let unasked = "the answer is not what was asked for";
        for (reply, said) in [
            (Some((LoanReply::Here, 1)), unasked),
            (Some((LoanReply::Here, 3)), unasked),
            (Some((LoanReply::Nothing, 0)), unasked),
            (Some((LoanReply::Lent(Offer::default()), 2)), unasked),
            (Some((LoanReply::Failed("it is gone".into()), 0)), "it is gone"),
            (None, "`ocicle with` has ended"),
        ] {
            let shown = format!("{reply:?}");
            let error = fetched(reply).unwrap_err();
            assert_eq!(error.to_string(), said, "{shown}");
        }
    }

    #[test]
    fn no_more_than_one_message_carries() {
        let (ours, _theirs) = Channel::pair().unwrap();
        let (fds, terminals) = (BTreeMap::new(), BTreeMap::new());
        let mut loan = Loan { channel: ours, offer: Offer::default(), fds, terminals };
        let numbers = (0..=FD_LIMIT as i32).collect();
        let error = loan.fetch(numbers, vec![]).unwrap_err().to_string();
        assert_eq!(error, "254 descriptors are more than can be lent");
    }
}
