//! Byte strings from a container: paths and names that need not be UTF-8.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes that are shown, and written to JSON, as one escaped line of text.
///
/// A backslash is written `\\`; a byte that is no part of UTF-8, a control character and a
/// character that reorders text are written `\xNN`, byte by byte. What is written can be read
/// back to the very same bytes, and is safe to print on a terminal.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteString(Vec<u8>);

impl ByteString {
    /// The bytes as they are.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The bytes as an operating system string.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the escaped form back.
    pub fn parse(text: &str) -> Result<Self, BadEscape> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            rest = match (first, tail) {
                (b'\\', [b'\\', after @ ..]) => {
                    bytes.push(b'\\');
                    after
                }
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let (Some(high), Some(low)) = (hex(*high), hex(*low)) else {
                        return Err(BadEscape);
                    };
                    bytes.push(high << 4 | low);
                    after
                }
                (b'\\', _) => return Err(BadEscape),
                _ => {
                    bytes.push(first);
                    tail
                }
            };
        }
        Ok(Self(bytes))
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// An escaped text with a backslash that is followed by neither a backslash nor `xNN`.
#[derive(Debug, thiserror::Error)]
#[error("a backslash is followed by neither a backslash nor xNN")]
pub struct BadEscape;

/// Whether a character must not reach a terminal as it is: controls, and the marks that reorder
/// the text around them (Unicode Standard Annex 9).
pub(crate) fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character == '\\' {
                    text.push_str("\\\\");
                } else if is_unsafe(character) {
                    let mut utf8 = [0; 4];
                    escape(character.encode_utf8(&mut utf8).as_bytes(), &mut text)?;
                } else {
                    text.push(character);
                }
            }
            escape(chunk.invalid(), &mut text)?;
        }
        f.pad(&text)
    }
}

fn escape(bytes: &[u8], text: &mut String) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(text, "\\x{byte:02x}"))
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl From<Vec<u8>> for ByteString {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for ByteString {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<String> for ByteString {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<OsString> for ByteString {
    fn from(text: OsString) -> Self {
        Self(text.into_vec())
    }
}

impl From<&Path> for ByteString {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_would_move_the_cursor_is_escaped() {
        let name = ByteString::from(&b"a\x1b[2J\xff\\\n"[..]);
        assert_eq!(name.to_string(), r"a\x1b[2J\xff\\\x0a");
        assert_eq!(ByteString::from("\u{202e}txt").to_string(), r"\xe2\x80\xaetxt");
    }

    #[test]
    fn a_lone_backslash_is_refused() {
        assert!(ByteString::parse(r"a\b").is_err());
        assert!(ByteString::parse(r"a\x1").is_err());
        assert!(ByteString::parse(r"a\").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            let written = ByteString::from(&bytes[..]).to_string();
            prop_assert_eq!(ByteString::parse(&written).unwrap(), ByteString::from(bytes));
        }
    }
}
