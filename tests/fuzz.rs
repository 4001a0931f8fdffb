//! The corpus of the fuzz targets, replayed without them: `fuzz/run` finds new inputs.

#[path = "../fuzz/checks.rs"]
mod checks;
#[path = "../fuzz/seeds.rs"]
mod seeds;

use std::fs;
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.collect()
}

fn replay(target: &str, least: usize, check: fn(&[u8]) -> anyhow::Result<()>) {
    let corpus = corpus(target);
    assert!(corpus.len() >= least, "{} inputs for {target}", corpus.len());
    for path in corpus {
        let bytes = fs::read(&path).unwrap();
        let outcome = std::panic::catch_unwind(|| checks::holds(check, &bytes));
        assert!(outcome.is_ok(), "{}", path.display());
    }
}

/// One test for each target, and how many inputs there are at least.
macro_rules! replayed {
    ($($target:ident, at least $least:literal: $test:ident;)*) => {
        $(#[test]
        fn $test() {
            replay(stringify!($target), $least, checks::$target);
        })*
    };
}

replayed! {
    grammar, at least 400: rules_are_read_or_refused;
    images, at least 400: images_of_criu_are_read_or_refused;
    texts, at least 15: texts_are_read_or_refused;
    documents, at least 6: documents_are_read_or_refused;
    layer, at least 1: layers_are_read_or_refused;
    archive, at least 3: archives_are_inspected_or_refused;
    tree, at least 3: archives_of_a_tmpfs_are_unpacked_or_refused;
}

/// What ocicle's own writers, the kernel and GNU tar write holds too, and is accepted: else the checks
/// of what comes of it would check nothing. `OCICLE_SEEDS` is where to put them, for `fuzz/run seeds`.
#[test]
fn what_is_really_written_is_accepted() {
    let seeds = seeds::seeds();
    assert!(seeds.len() > 15, "{} inputs", seeds.len());
    for (target, name, bytes) in seeds {
        let (_, check) = checks::TARGETS.iter().find(|known| known.0 == target).unwrap();
        check(&bytes).unwrap_or_else(|error| panic!("{target}: {name}: {error:#}"));
        if let Some(top) = std::env::var_os("OCICLE_SEEDS") {
            let directory = Path::new(&top).join(target);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}

/// Real images are among the inputs, each of its kind.
#[test]
fn the_images_of_a_real_checkpoint_can_be_read() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let mut seen = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_of = |kind: &&(&str, _)| name.starts_with(kind.0) && name.ends_with(".img");
        let Some(number) = checks::KINDS.iter().position(|kind| is_of(&kind)) else { continue };
        let bytes = fs::read(&path).unwrap();
        checks::images(&[&[u8::try_from(number).unwrap()][..], &bytes].concat()).unwrap();
        seen += 1;
    }
    assert!(seen > 20, "{seen} images");
}
