//! Which descriptors are handed over as such, among those that happen to be open.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::hint::WithHint;
use crate::sys::named::Names;
use crate::sys::process::InheritedFds;

/// Numbers of descriptors that a caller hands over as such: those that rules of annotations may name.
///
/// An engine, a daemon and a shell have others open, which are for nobody else; and 0 to 2 are the
/// standard streams of whoever calls, which nobody lends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed(BTreeSet<i32>);

/// The numbers that `--lend` names, with commas between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lent(Vec<i32>);

/// The first number behind the standard streams.
const FIRST: i32 = 3;

impl Handed {
    /// Those that `--lend` names, those of `LISTEN_FDS` (sd_listen_fds(3)), and behind these as many
    /// as runc's `--preserve-fds` says.
    ///
    /// # Errors
    /// When one that `--lend` names is not open.
    pub fn new(
        inherited: &InheritedFds,
        lent: &[Lent],
        names: &Names,
        preserved: u16,
    ) -> Result<Self> {
        let listening = names.numbers().count();
        let behind = (FIRST..).skip(listening).take(preserved.into());
        let told = names.numbers().chain(behind).filter(|number| inherited.contains(*number));
        let mut numbers: BTreeSet<i32> = told.collect();
        for number in lent.iter().flat_map(|lent| &lent.0) {
            if !inherited.contains(*number) {
                return Err(anyhow!("--lend {number}: fd {number} is not open").hint(format!(
                    "open it for this command: {number}<>FILE behind it in a shell"
                )));
            }
            numbers.insert(*number);
        }
        Ok(Self(numbers))
    }

    /// Whether this one is among them.
    pub fn contains(&self, number: i32) -> bool {
        self.0.contains(&number)
    }

    /// All of them.
    pub fn numbers(&self) -> impl Iterator<Item = i32> {
        self.0.iter().copied()
    }
}

impl FromStr for Lent {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |word: &str| {
            let number: i32 =
                word.trim().parse().with_context(|| format!("{word:?} is no number"))?;
            ensure!(
                number >= FIRST,
                "{number} cannot be lent: 0 to 2 are the command's own streams"
            );
            Ok(number)
        };
        text.split(',').map(number).collect::<Result<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas_between() {
        assert_eq!("30, 31".parse::<Lent>().unwrap(), Lent(vec![30, 31]));
        for wrong in ["", "3,", "x", "2", "-1", "0", "30-31"] {
            assert!(wrong.parse::<Lent>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_happens_to_be_open_is_not_handed_over() {
        let inherited = InheritedFds::of([0, 1, 2, 3, 4, 5, 9, 30]);
        let names = Names::of_text("web:feed");
        let handed = |lent: &[&str], preserved| {
            let lent: Vec<Lent> = lent.iter().map(|text| text.parse().unwrap()).collect();
            let handed = Handed::new(&inherited, &lent, &names, preserved);
            handed.map(|handed| handed.numbers().collect::<Vec<_>>())
        };
        assert_eq!(handed(&[], 0).unwrap(), [3, 4]);
        assert_eq!(handed(&["30"], 2).unwrap(), [3, 4, 5, 30], "6 is not open");
        assert!(handed(&["77"], 0).unwrap_err().to_string().contains("fd 77 is not open"));
    }
}
