//! `/proc/PID/maps`, as proc_pid_maps(5) describes it.

/// A mapping of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses, as `map_files` names its file.
    pub range: String,
    /// Whether what is written to it is seen by others, and by the file.
    pub shared: bool,
    /// The device of its file, `major:minor` in hexadecimal.
    pub device: String,
    /// The inode of its file; 0 if it has none.
    pub inode: u64,
    /// The path of its file, or what the kernel says in its place.
    pub path: String,
}

/// Parses the whole file; lines of another form are skipped.
pub fn parse_maps(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (range, permissions) = (fields.next()?, fields.next()?);
    let device = fields.nth(1)?;
    let inode = fields.next()?.parse().ok()?;
    Some(Mapping {
        range: range.to_owned(),
        shared: permissions.ends_with('s'),
        device: device.to_owned(),
        inode,
        path: fields.next().unwrap_or_default().trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_memory_and_what_is_cut() {
        let text = "7f00-7f10 rw-s 00000000 fe:01 42      /a b (deleted)\n\
                    7f20-7f30 r-xp 00001000 00:00 0 \n\
                    7f40-7f50 rw-p 0 00:00 0                          [heap]\n\
                    7f60-7f70 rw-p 0 00:00\n";
        let maps = parse_maps(text);
        assert_eq!(maps.len(), 3);
        let file = &maps[0];
        assert_eq!((&*file.range, file.shared, &*file.device), ("7f00-7f10", true, "fe:01"));
        assert_eq!((file.inode, &*file.path), (42, "/a b (deleted)"));
        assert_eq!((maps[1].shared, &*maps[1].path), (false, ""));
        assert_eq!((maps[2].inode, &*maps[2].path), (0, "[heap]"));
    }

    #[test]
    fn lines_of_another_form_are_none() {
        for line in [
            "",
            "7f00-7f10",
            "7f00-7f10 rw-s 0 fe:01",
            "7f00-7f10 rw-s 0 fe:01 x /a",
            "7f00-7f10 rw-s 0 fe:01 -1 /a",
            "7f00-7f10  rw-s 0 fe:01 5 /a",
        ] {
            assert!(parse_maps(line).is_empty(), "{line:?}");
        }
        // Another line between them hides nothing.
        let text = "7f00-7f10 r--s 0 fe:01 5 /a\nrubbish\n7f10-7f20 r--s 0 fe:01 6 /b\n";
        let inodes: Vec<u64> = parse_maps(text).iter().map(|mapping| mapping.inode).collect();
        assert_eq!(inodes, [5, 6]);
    }
}
