//! Patterns of selectors: paths with stars, addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::escaped;
use crate::bytes::{BadEscape, ByteString};
use crate::glob;

/// A path, or a pattern of paths: `*` stands for any part of one name, `**` for any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(ByteString),
    Star,
    Stars,
}

impl PathPattern {
    /// Reads the form that rules have: escaped, and with stars.
    pub fn parse(text: &str) -> Result<Self, BadEscape> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix("**") {
                pieces.push(Piece::Stars);
                rest = behind;
            } else if let Some(behind) = rest.strip_prefix('*') {
                pieces.push(Piece::Star);
                rest = behind;
            } else {
                let end = rest.find('*').unwrap_or(rest.len());
                pieces.push(Piece::Text(ByteString::parse(&rest[..end])?));
                rest = &rest[end..];
            }
        }
        Ok(Self(pieces))
    }

    /// The pattern that one path alone has the form of.
    #[cfg(test)]
    pub fn exact(path: impl Into<ByteString>) -> Self {
        Self(vec![Piece::Text(path.into())])
    }

    /// The path, if there is no star in it.
    pub fn as_exact(&self) -> Option<&ByteString> {
        match &self.0[..] {
            [Piece::Text(path)] => Some(path),
            _ => None,
        }
    }

    /// Whether it begins with these bytes.
    fn begins_with(&self, prefix: &[u8]) -> bool {
        matches!(self.0.first(), Some(Piece::Text(text)) if text.as_bytes().starts_with(prefix))
    }

    /// Whether the path has this form.
    pub fn matches(&self, path: &[u8]) -> bool {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => glob::GlobPiece::Text(text.as_bytes()),
            Piece::Star => glob::GlobPiece::Star,
            Piece::Stars => glob::GlobPiece::Stars,
        });
        glob::fits(pieces, path)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.begins_with(b"/") {
            f.write_str("path:")?;
        }
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(&escaped(text))?,
                Piece::Star => f.write_str("*")?,
                Piece::Stars => f.write_str("**")?,
            }
        }
        Ok(())
    }
}

/// An address and a port, each of which may be any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPattern {
    /// The address; `None` for any.
    pub ip: Option<IpAddr>,
    /// The port; `None` for any.
    pub port: Option<u16>,
}

impl AddressPattern {
    /// Reads `ADDRESS:PORT`, `[ADDRESS]:PORT`, with a star for any.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, port) = text.rsplit_once(':')?;
        let ip = match ip.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
            Some(inner) => Some(IpAddr::V6(inner?.parse().ok()?)),
            None if ip == "*" => None,
            None => Some(IpAddr::V4(ip.parse().ok()?)),
        };
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port {
            "*" => None,
            number if is_number => Some(number.parse().ok()?),
            _ => return None,
        };
        Some(Self { ip, port })
    }

    /// Whether the address has this form. One of IPv4 in IPv6 is that of IPv4.
    pub fn matches(&self, address: SocketAddr) -> bool {
        self.ip.is_none_or(|ip| ip.to_canonical() == address.ip().to_canonical())
            && self.port.is_none_or(|port| port == address.port())
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => f.write_str("*:")?,
        }
        match self.port {
            Some(port) => write!(f, "{port}"),
            None => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (pattern, path, expected) in [
            ("/var/log/*", "/var/log/a", true),
            ("/var/log/*", "/var/log/a/b", false),
            ("/var/log/**", "/var/log/a/b", true),
            ("/var/*/a", "/var/log/a", true),
            ("/a\\x2a", "/a*", true),
            ("/a\\x2a", "/ab", false),
            ("*x*", "axb", true),
            ("", "", true),
            ("/a", "/ab", false),
        ] {
            let parsed = PathPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = PathPattern::parse(&"*a".repeat(2000)).unwrap();
        assert!(!pattern.matches(&[b'a'; 1999]));
    }

    #[test]
    fn addresses() {
        let matches = |pattern: &str, address: &str| {
            AddressPattern::parse(pattern).unwrap().matches(address.parse().unwrap())
        };
        assert!(matches("*:80", "127.0.0.1:80"));
        assert!(matches("127.0.0.1:*", "[::ffff:127.0.0.1]:80"));
        assert!(!matches("127.0.0.1:81", "127.0.0.1:80"));
        assert!(matches("[::1]:80", "[::1]:80"));
        for bad in ["80", "a:80", "*:x", "*:", "::1:80", "[::1:80", "*:99999", "1.2.3.4:+1"] {
            assert_eq!(AddressPattern::parse(bad), None, "{bad}");
        }
    }
}
