//! The corpus of the fuzz targets, replayed without them: `fuzz/run` finds new inputs.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.collect()
}

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() > 20, "{} inputs for {target}", corpus.len());
    for path in corpus {
        let bytes = fs::read(&path).unwrap();
        let outcome = std::panic::catch_unwind(|| check(&bytes));
        assert!(outcome.is_ok(), "{}", path.display());
    }
}

#[test]
fn rules() {
    replay("grammar", checks::grammar);
}

#[test]
fn images() {
    replay("images", checks::images);
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
        checks::images(&[&[u8::try_from(number).unwrap()][..], &bytes].concat());
        seen += 1;
    }
    assert!(seen > 20, "{seen} images");
}
