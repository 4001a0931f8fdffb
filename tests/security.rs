//! What SECURITY.md promises: its tests are there, and the README says the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A text without the ends of its lines.
fn flowing(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The names between backquotes in the paragraphs that begin with `*test:*`.
fn named(text: &str) -> BTreeSet<String> {
    let paragraphs = text.split("\n\n").filter(|paragraph| paragraph.starts_with("*test:*"));
    let names = paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    names.filter(|name| !name.contains('/')).map(str::to_owned).collect()
}

fn sources(directory: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The names of functions behind `#[test]`, and of bodies that run for each runtime.
fn tests_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let plain = text.split("#[test]").skip(1).filter_map(|rest| rest.split_once("fn "));
    let each = text.split("on_each_runtime!(").skip(1).map(|rest| ("", rest));
    plain.chain(each).map(|(_, rest)| {
        rest.chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect()
    })
}

#[test]
fn every_test_that_is_named_is_there() {
    let named = named(&read(&top().join("SECURITY.md")));
    assert!(named.len() > 40, "{} tests are named", named.len());
    let sources = ["src", "tests"].into_iter().flat_map(|part| sources(top().join(part)));
    let there: BTreeSet<String> =
        sources.flat_map(|path| tests_in(&read(&path)).collect::<Vec<_>>()).collect();
    let missing: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty(), "SECURITY.md names tests that are not there: {missing:#?}");
}

#[test]
fn the_readme_says_the_same() {
    let (readme, security) = (read(&top().join("README.md")), read(&top().join("SECURITY.md")));
    let section = readme.split("\n## Trust\n").nth(1).expect("a section on trust");
    let section = flowing(section.split("\n## ").next().unwrap());
    let security = flowing(&security);
    let sentences: Vec<_> = section.split_inclusive(". ").map(str::trim).collect();
    assert!(sentences.len() > 5, "{sentences:#?}");
    let pointer = |sentence: &&&str| !sentence.contains("SECURITY.md");
    for sentence in sentences.iter().filter(pointer) {
        assert!(security.contains(sentence), "SECURITY.md does not say: {sentence}");
    }
}

#[test]
fn a_name_is_found_where_it_stands() {
    let text = "a `b`\n\n*test:* `one` · `two`; and `fuzz/`\n\n`three`";
    assert_eq!(named(text), ["one", "two"].map(str::to_owned).into());
    let code = "#[test]\nfn one() {}\non_each_runtime!(two, |machine| {});\nfn three() {}";
    assert_eq!(tests_in(code).collect::<Vec<_>>(), ["one", "two"]);
}

/// Calls of the standard library that write, make, rename or remove by path, and that open by path.
const BY_PATH: [&str; 17] = [
    "fs::write(",
    "fs::rename(",
    "fs::remove_dir_all(",
    "fs::remove_dir(",
    "fs::remove_file(",
    "fs::create_dir(",
    "fs::create_dir_all(",
    "fs::copy(",
    "fs::hard_link(",
    "fs::set_permissions(",
    "File::create(",
    "File::open(",
    "File::options(",
    "OpenOptions::new(",
    "symlink(",
    "chown(",
    "fs::renameat(rustix::fs::CWD",
];

/// Who may use them, and on what: none of it is in a checkpoint, a store, a staging directory or a
/// container.
const MAY: [(&str, &str); 16] = [
    ("src/apart.rs", "a control group"),
    ("src/checkpoint/connections.rs", "/proc"),
    ("src/commands/generate.rs", "where the administrator wants man pages"),
    ("src/criu/configuration.rs", "the door's own directory"),
    ("src/criu/door.rs", "/run/ocicle"),
    ("src/criu/plugin.rs", "the door's own directory"),
    ("src/freezer/mod.rs", "a control group"),
    ("src/lend/mod.rs", "/run/ocicle"),
    ("src/machine.rs", "/run/ocicle"),
    ("src/proc/oom.rs", "/proc"),
    ("src/restore/remedies.rs", "a mount of one file, by who wrote config.json"),
    ("src/runtime/ended.rs", "/run/ocicle"),
    ("src/runtime/log.rs", "the log that the engine named"),
    ("src/runtime/mod.rs", "programs of the machine"),
    ("src/store/lock.rs", "/run/ocicle"),
    ("src/substitute/rewrite/mod.rs", "a new directory of ocicle's own"),
];

/// The lines of a source before its tests that are no comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// Is it a call of that name, and not of one that ends with it?
fn calls(line: &str, call: &str) -> bool {
    line.match_indices(call)
        .any(|(at, _)| !line[..at].ends_with(|one: char| one.is_alphanumeric() || one == '_'))
}

#[test]
fn nothing_goes_around_the_opened_directory() {
    let mut using = BTreeSet::new();
    for path in sources(top().join("src")) {
        let name = path.strip_prefix(top()).unwrap().to_str().unwrap().to_owned();
        let is_test = name.ends_with("/tests.rs");
        let text = read(&path);
        let found = code(&text).find(|line| BY_PATH.iter().any(|call| calls(line, call)));
        if let Some(line) = found.filter(|_| !is_test && !name.starts_with("src/sys/")) {
            let may = MAY.iter().any(|(file, _)| *file == name);
            assert!(may, "{name} uses a path, not an opened directory: {}", line.trim());
            using.insert(name);
        }
    }
    let unused: Vec<_> = MAY.iter().filter(|(file, _)| !using.contains(*file)).collect();
    assert!(unused.is_empty(), "these use no path any more: {unused:?}");
}
