//! Descriptors that a caller has given names (sd_listen_fds(3)).

use serde::{Deserialize, Serialize};

/// The number of the first one.
const FIRST: i32 = 3;

/// What one without a name is called (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";

/// More descriptors than this nobody hands over.
const LIMIT: usize = 1 << 16;

/// The names, from number 3 on; `None` when the caller has given none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names(Option<Vec<String>>);

impl Names {
    /// Those that the environment of this process says.
    pub fn of_environment() -> Self {
        Self::read(std::process::id(), &|name| std::env::var(name).ok())
    }

    fn read(own: u32, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name).and_then(|text| text.parse::<u32>().ok());
        if number("LISTEN_PID") != Some(own) {
            return Self(None);
        }
        let count = (number("LISTEN_FDS").unwrap_or_default() as usize).min(LIMIT);
        let given = variable("LISTEN_FDNAMES").unwrap_or_default();
        let given = given.split(':').filter(|name| !given.is_empty() || !name.is_empty());
        let names = given.chain(std::iter::repeat(UNNAMED)).take(count);
        Self(Some(names.map(str::to_owned).collect()))
    }

    /// Names from a text in which colons are between them.
    #[cfg(test)]
    pub fn of_text(names: &str) -> Self {
        Self(Some(names.split(':').map(str::to_owned).collect()))
    }

    /// The numbers that have names.
    pub fn numbers(&self) -> impl Iterator<Item = i32> {
        (FIRST..).take(self.0.as_ref().map_or(0, Vec::len))
    }

    /// The number of the descriptor with that name, or why there is none.
    pub fn find(&self, name: &[u8]) -> Result<i32, String> {
        let Some(names) = &self.0 else {
            return Err("no descriptor has a name here: LISTEN_PID is not this process".to_owned());
        };
        let shown = String::from_utf8_lossy(name);
        let named = (FIRST..).zip(names).filter(|(_, is)| is.as_bytes() == name);
        let mut numbers = named.map(|(number, _)| number);
        match (numbers.next(), numbers.next()) {
            (Some(number), None) => Ok(number),
            (None, _) => Err(format!("LISTEN_FDNAMES has no {shown}: it is {:?}", names.join(":"))),
            (Some(_), Some(_)) => Err(format!("LISTEN_FDNAMES has more than one {shown}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_from_three() {
        let environment = |name: &str| {
            Some(match name {
                "LISTEN_PID" => "7".to_owned(),
                "LISTEN_FDS" => "4".to_owned(),
                _ => "web:log:log:x:beyond".to_owned(),
            })
        };
        let find = |name: &str, own| Names::read(own, &environment).find(name.as_bytes());
        assert_eq!(find("web", 7), Ok(3));
        assert_eq!(find("x", 7), Ok(6));
        assert!(find("log", 7).unwrap_err().contains("more than one"));
        assert!(find("beyond", 7).unwrap_err().contains("has no beyond"));
        assert!(find("web", 8).unwrap_err().contains("LISTEN_PID"));
    }

    #[test]
    fn one_without_a_name_counts_too() {
        let without_names = |name: &str| match name {
            "LISTEN_PID" => Some("7".to_owned()),
            "LISTEN_FDS" => Some("2".to_owned()),
            _ => None,
        };
        let names = Names::read(7, &without_names);
        assert_eq!(names.numbers().collect::<Vec<_>>(), [3, 4]);
        assert!(names.find(b"unknown").unwrap_err().contains("more than one"));
        assert_eq!(Names::read(8, &without_names).numbers().count(), 0);
    }
}
