//! Patterns for paths, as the configuration writes them.

/// Whether a path has the form of a pattern: `*` stands for any part of one name, `**` for any
/// number of names. A path with `..` in it has no form.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let climbs = path.split(|byte| *byte == b'/').any(|name| name == b"..");
    !climbs && matches_from(pattern, path)
}

fn matches_from(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| matches_from(rest, &path[at..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
            (0..=end).any(|at| matches_from(rest, &path[at..]))
        }
        [first, rest @ ..] => path.first() == Some(first) && matches_from(rest, &path[1..]),
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
}
