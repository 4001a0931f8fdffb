//! Patterns for paths, as the configuration writes them.

/// A piece of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobPiece<'a> {
    /// These bytes.
    Text(&'a [u8]),
    /// Any part of one name.
    Star,
    /// Any bytes.
    Stars,
}

/// Whether a path has the form of a pattern: `*` stands for any part of one name, `**` for any
/// number of names. A path with `..` in it has no form.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let climbs = path.split(|byte| *byte == b'/').any(|name| name == b"..");
    !climbs && fits(pieces(pattern), path)
}

/// Whether a path consists of these pieces. Takes time in proportion to both lengths, whatever the
/// stars: the pattern may be anyone's.
pub fn fits<'a>(pieces: impl Iterator<Item = GlobPiece<'a>>, path: &[u8]) -> bool {
    // Which prefixes of the path the pieces so far have the form of.
    let mut ends = vec![false; path.len() + 1];
    ends[0] = true;
    for piece in pieces {
        match piece {
            GlobPiece::Text(text) => shift(&mut ends, path, text),
            GlobPiece::Star => spread(&mut ends, path, |byte| byte != b'/'),
            GlobPiece::Stars => spread(&mut ends, path, |_| true),
        }
    }
    ends[path.len()]
}

fn pieces(pattern: &[u8]) -> impl Iterator<Item = GlobPiece<'_>> {
    let mut rest = pattern;
    std::iter::from_fn(move || {
        let (piece, length) = match rest {
            [] => return None,
            [b'*', b'*', ..] => (GlobPiece::Stars, 2),
            [b'*', ..] => (GlobPiece::Star, 1),
            _ => {
                let end = rest.iter().position(|byte| *byte == b'*').unwrap_or(rest.len());
                (GlobPiece::Text(&rest[..end]), end)
            }
        };
        rest = &rest[length..];
        Some(piece)
    })
}

/// Goes on behind each prefix that these bytes follow.
fn shift(ends: &mut [bool], path: &[u8], text: &[u8]) {
    for end in (0..ends.len()).rev() {
        ends[end] = end
            .checked_sub(text.len())
            .is_some_and(|start| ends[start] && &path[start..end] == text);
    }
}

/// Goes on behind each prefix with any number of such bytes more.
fn spread(ends: &mut [bool], path: &[u8], may: impl Fn(u8) -> bool) {
    for (at, byte) in path.iter().enumerate() {
        ends[at + 1] |= ends[at] && may(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("/var/log/*.log", "/var/log/a.log", true),
            ("/var/log/*.log", "/var/log/a/b.log", false),
            ("/var/log/**", "/var/log/a/b.log", true),
            ("/var/log/**", "/var/log/../../etc/shadow", false),
            ("/a", "/a", true),
            ("/a", "/ab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!matches("**a".repeat(2000).as_bytes(), &[b'a'; 1999]));
    }
}
