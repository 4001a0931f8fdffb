//! Walking a tar archive that anybody may have made: nothing is unpacked, and nothing is kept but
//! the header in hand.

use anyhow::{Context, Result, bail};

use super::content::{Bytes, Head};
use crate::snapshot::{Headers, Limits, padding};

/// Members of one archive; none that holds a checkpoint has as many.
const MEMBERS: usize = 1 << 20;
/// What header and extensions of a member may take.
const METADATA: u32 = 64 << 10;
/// The longest path: Linux's own limit.
const PATH: u32 = 4096;

/// A regular file of an archive.
pub(super) struct TarMember {
    /// Its path, as the archive has it.
    pub path: Vec<u8>,
    /// How many bytes of it follow.
    pub size: u64,
    /// Whether it is stored without its holes, so that these bytes are not those of the file.
    pub sparse: bool,
}

/// Calls `visit` for each regular file of an archive, with its bytes, of which it may leave any.
pub(super) fn walk(
    archive: &mut dyn Bytes,
    visit: &mut dyn FnMut(&TarMember, &mut dyn Bytes) -> Result<()>,
) -> Result<()> {
    let limits =
        Limits { max_metadata_size: METADATA, max_path_len: Some(PATH), ..Limits::default() };
    let mut headers = Headers::new(limits);
    for _ in 0..MEMBERS {
        let member = headers.next(archive, |entry, stored| {
            let sparse = stored.is_some();
            let member = TarMember { path: entry.path.to_vec(), size: entry.size, sparse };
            (member, entry.is_file() || sparse)
        })?;
        let Some((member, is_regular)) = member else { return Ok(()) };
        let mut content = Head::new(archive, member.size);
        if is_regular {
            visit(&member, &mut content).with_context(|| {
                format!("reading {}", crate::bytes::ByteString::from(&member.path[..]))
            })?;
        }
        content.pass_rest()?;
        archive.pass(padding(member.size))?;
    }
    bail!("it has more than {MEMBERS} members")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use proptest::prelude::*;

    fn members(mut archive: &[u8]) -> Result<Vec<(String, u64, Vec<u8>)>> {
        let mut found = Vec::new();
        walk(&mut super::super::content::ReadOnly(&mut archive), &mut |member, content| {
            let mut bytes = Vec::new();
            // Not all of it: the walk goes on at the right place all the same.
            content.take(3).read_to_end(&mut bytes)?;
            found.push((String::from_utf8_lossy(&member.path).into(), member.size, bytes));
            Ok(())
        })?;
        Ok(found)
    }

    /// Longer than the name in a header, and not longer than its prefix.
    fn deep() -> String {
        format!("{0}/{0}", "d".repeat(60))
    }

    fn made_by_tar(arguments: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join(deep())).unwrap();
        for (name, content) in [("a", "abcdef"), ("empty", ""), (&format!("{}/b", deep()), "xyz")] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(directory.path()).args(["--sort=name", "-c"]).args(arguments).arg(".");
        tar.output().unwrap().stdout
    }

    #[test]
    fn what_tar_packs_is_found() {
        for format in ["--format=gnu", "--format=pax", "--format=ustar"] {
            let found = members(&made_by_tar(&[format])).unwrap();
            let long = format!("./{}/b", deep());
            let expected = [("./a", 6, "abc"), (&long, 3, "xyz"), ("./empty", 0, "")];
            let expected = expected
                .map(|(path, size, bytes)| (path.to_owned(), size, bytes.as_bytes().to_vec()));
            assert_eq!(found, expected, "{format}");
        }
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let archive = made_by_tar(&["--format=gnu"]);
        let whole = members(&archive).unwrap().len();
        for length in (512..archive.len()).step_by(256) {
            match members(&archive[..length]) {
                Ok(found) => assert!(found.len() <= whole),
                Err(error) => assert!(!format!("{error:#}").is_empty()),
            }
        }
        assert!(members(&archive[..700]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_archive_or_an_error(bytes: Vec<u8>) {
            let _ = members(&bytes);
        }

        #[test]
        fn damage_is_no_panic(at in 0usize..4096, byte: u8) {
            let mut archive = made_by_tar(&["--format=pax"]);
            let at = at % archive.len();
            archive[at] = byte;
            let _ = members(&archive);
        }
    }
}
