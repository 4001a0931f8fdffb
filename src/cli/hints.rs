//! Whatever a message names is there: every flag, command, rule and file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use regex::Regex;

use super::arguments::Arguments;
use crate::runtime::arguments::is_flag_of_runtimes;
use crate::substitute::{Origin, parse_each};

/// Flags that a message gives to a program of others, each with that.
const OF_OTHERS: [(&str, &str); 8] = [
    ("--container", "ocicle with"),
    ("--runtime", "podman"),
    ("--checkpoint", "docker"),
    ("--export", "crictl"),
    ("--export", "podman"),
    ("--namespace", "ctr"),
    ("--delete", "tar"),
    ("--ignore-rootfs", "podman"),
];

/// The texts in the sources that a person may read, each with its file.
fn messages() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut texts = Vec::new();
        literals(text.parse().unwrap(), &mut texts);
        // One word alone is a word of a command line.
        texts.retain(|text| text.contains(' '));
        found.extend(texts.into_iter().map(|text| (file.clone(), text)));
    }
    found
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The literals of everything but attributes, documentation among them, and tests.
fn literals(tokens: TokenStream, into: &mut Vec<String>) {
    let mut tokens = tokens.into_iter().peekable();
    let mut is_test = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                // `#[…]`, or `#![…]` of a module.
                let is_bang = |next: &TokenTree| matches!(next, TokenTree::Punct(punct) if punct.as_char() == '!');
                tokens.next_if(is_bang);
                let attribute = tokens.next_if(|next| matches!(next, TokenTree::Group(_)));
                let text = attribute.map(|group| group.to_string().replace(' ', ""));
                is_test |= text.is_some_and(|text| text == "[cfg(test)]");
            }
            TokenTree::Group(group) => {
                let skipped = is_test && group.delimiter() == Delimiter::Brace;
                if skipped {
                    is_test = false;
                } else {
                    literals(group.stream(), into);
                }
            }
            TokenTree::Punct(punct) if punct.as_char() == ';' => is_test = false,
            TokenTree::Literal(literal) => into.extend(text_of(&literal.to_string())),
            _ => {}
        }
    }
}

/// What a literal of text says.
fn text_of(literal: &str) -> Option<String> {
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    let joined = Regex::new(r"\\\n\s*").unwrap().replace_all(inner, "").into_owned();
    Some(joined.replace("\\n", "\n").replace("\\\"", "\""))
}

fn flags_of(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|one| Some(format!("--{}", one.get_long()?)));
    let built_in = ["--help", "--version"].map(str::to_owned);
    own.chain(built_in).chain(command.get_subcommands().flat_map(flags_of)).collect()
}

#[test]
fn every_flag_that_a_message_names_can_be_given() {
    let known = flags_of(&Arguments::command());
    let flag = Regex::new(r"(?:^|[\s`'(])(--[a-z][a-z-]+[a-z])").unwrap();
    let mut wrong = Vec::new();
    for (file, text) in messages() {
        for found in flag.captures_iter(&text) {
            let name = &found[1];
            let is_others = OF_OTHERS.iter().any(|(flag, program)| {
                *flag == name && (text.contains(program) || known.contains(name))
            });
            if !known.contains(name) && !is_others && !is_flag_of_runtimes(name) {
                wrong.push(format!("{}: {name} in {text:?}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "no such flags:\n{}", wrong.join("\n"));
}

#[test]
fn every_command_that_a_message_names_is_there_and_takes_its_flags() {
    let program = Arguments::command();
    let globals = flags_of(&program.clone().subcommands(Vec::<clap::Command>::new()));
    let call = Regex::new(r"\bocicle ((?:--[a-z]+ )*)([a-z]+)([^`;.]*)").unwrap();
    let flag = Regex::new(r"(?:^|\s)(--[a-z][a-z-]+)").unwrap();
    let quoted = Regex::new(r"`([^`]*)`").unwrap();
    let mut wrong = Vec::new();
    for (file, text) in messages() {
        for quote in quoted.captures_iter(&text) {
            let Some(found) = call.captures(&quote[1]) else { continue };
            match program.find_subcommand(&found[2]) {
                None => wrong.push(format!("{}: no command {:?}", file.display(), &found[2])),
                Some(command) => {
                    let takes = flags_of(command);
                    let unknown = flag.captures_iter(&found[3]).map(|one| one[1].to_owned());
                    let unknown =
                        unknown.filter(|one| !takes.contains(one) && !globals.contains(one));
                    wrong.extend(
                        unknown.map(|one| format!("{}: {one} in {text:?}", file.display())),
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_and_file_that_a_message_names_is_there() {
    let rule = Regex::new(r"-s '([^'{}]+)'").unwrap();
    let page = Regex::new(r"\b(?:docs|examples|config)/[a-z/-]+\.[a-z]+").unwrap();
    for (file, text) in messages() {
        for found in rule.captures_iter(&text) {
            let parsed = parse_each(&[found[1].to_owned()], &Origin::CommandLine);
            assert!(parsed.is_ok(), "{}: {:?}: {parsed:?}", file.display(), &found[1]);
        }
        for found in page.find_iter(&text) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(found.as_str());
            assert!(path.exists(), "{}: {text:?}", file.display());
        }
    }
}
