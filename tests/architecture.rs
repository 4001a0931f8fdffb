//! The floor plan, held: which module may name which, and one word for one thing.
//!
//! The order of the modules stands in the crate's documentation (`src/lib.rs`, "The modules"), and
//! only there. The sources are read as tokens, so comments and the text of strings name nothing,
//! and what is `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path of names: of a module, or of what is in one.
type Names = Vec<String>;

/// One file of `src`, read.
struct Source {
    /// Below `src`.
    file: String,
    module: Names,
    /// What `use` calls here, and what it stands for.
    calls: BTreeMap<String, Names>,
    /// What the code names, from the root of the crate.
    named: BTreeSet<Names>,
    /// The types that others can see.
    types: Vec<String>,
    /// The literals.
    literals: Vec<String>,
    /// Pairs of bare numbers, as types.
    pairs: Vec<String>,
}

impl Source {
    fn read(root: &Path, file: &str) -> Self {
        let module = module_of(file);
        let text = fs::read_to_string(root.join(file)).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut source = Self {
            file: file.to_owned(),
            module: module.clone(),
            calls: BTreeMap::new(),
            named: BTreeSet::new(),
            types: Vec::new(),
            literals: Vec::new(),
            pairs: Vec::new(),
        };
        source.scan(&module, &tokens.into_iter().collect::<Vec<_>>());
        source
    }

    /// Reads what stands in module `here`, which is the file's or one in its braces.
    fn scan(&mut self, here: &[String], tokens: &[TokenTree]) {
        let mut at = 0;
        while at < tokens.len() {
            at += match &tokens[at..] {
                [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]
                    if hash.as_char() == '#' && is_for_tests(&attribute.to_string()) =>
                {
                    2 + length_of_item(&tokens[at + 2..])
                }
                [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..]
                    if word == "mod" =>
                {
                    let inner: Names = [here, &[name.to_string()]].concat();
                    self.scan(&inner, &body.stream().into_iter().collect::<Vec<_>>());
                    3
                }
                [TokenTree::Ident(word), ..] if word == "use" => self.use_item(here, &tokens[at..]),
                [TokenTree::Ident(_), ..] => {
                    self.note_type(tokens, at);
                    self.path(here, &tokens[at..])
                }
                [TokenTree::Group(group), ..] => {
                    self.pairs.extend(pair_of_numbers(group));
                    self.scan(here, &group.stream().into_iter().collect::<Vec<_>>());
                    1
                }
                [TokenTree::Literal(literal), ..] => {
                    self.literals.push(literal.to_string());
                    1
                }
                _ => 1,
            };
        }
    }

    /// Reads `use …;`, and says how many tokens it has.
    fn use_item(&mut self, here: &[String], tokens: &[TokenTree]) -> usize {
        let end = tokens.iter().position(|t| is_punct(t, ';')).unwrap_or(tokens.len());
        self.use_tree(here, &[], &tokens[1..end]);
        end + 1
    }

    /// Reads one `a::b::{c, d as e}` below `before`.
    fn use_tree(&mut self, here: &[String], before: &[String], tokens: &[TokenTree]) {
        let mut names = before.to_vec();
        let mut alias = None;
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(word) if word == "as" => {
                    alias = tokens.get(at + 1).map(ToString::to_string);
                    break;
                }
                TokenTree::Ident(word) => names.push(word.to_string()),
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    for one in inner.split(|t| is_punct(t, ',')).filter(|one| !one.is_empty()) {
                        self.use_tree(here, &names, one);
                    }
                    return;
                }
                _ => {}
            }
        }
        if names.last().is_some_and(|last| last == "self") && names.len() > 1 {
            names.pop();
        }
        let named = absolute(here, &names);
        if here == self.module {
            let called = alias.or_else(|| names.last().cloned()).unwrap_or_default();
            self.calls.insert(called, named.clone());
        }
        self.named.insert(named);
    }

    /// Reads a path of names, and says how many tokens it has.
    fn path(&mut self, here: &[String], tokens: &[TokenTree]) -> usize {
        let mut names = vec![tokens[0].to_string()];
        let mut at = 1;
        while let [TokenTree::Punct(one), TokenTree::Punct(two), TokenTree::Ident(name), ..] =
            &tokens[at..]
        {
            if (one.as_char(), two.as_char()) != (':', ':') {
                break;
            }
            names.push(name.to_string());
            at += 3;
        }
        if names.len() > 1 {
            self.named.insert(absolute(here, &names));
        }
        at
    }

    /// Notes the type that the word at `at` begins, if others can see it.
    fn note_type(&mut self, tokens: &[TokenTree], at: usize) {
        let begins = ["struct", "enum", "trait", "type", "union"];
        let is_public = match tokens[..at].last() {
            Some(TokenTree::Ident(before)) => before == "pub",
            Some(TokenTree::Group(_)) => {
                matches!(at.checked_sub(2).map(|at| &tokens[at]), Some(TokenTree::Ident(before)) if before == "pub")
            }
            _ => false,
        };
        if is_public
            && begins.contains(&tokens[at].to_string().as_str())
            && let Some(TokenTree::Ident(name)) = tokens.get(at + 1)
        {
            self.types.push(name.to_string());
        }
    }
}

fn is_punct(token: &TokenTree, what: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == what)
}

/// `(u64, u64)` and its like: two types of numbers, and nothing else.
fn pair_of_numbers(group: &Group) -> Option<String> {
    let inner: Vec<_> = group.stream().into_iter().collect();
    let is_number = |token: &TokenTree| NUMBERS.contains(&token.to_string().as_str());
    let [one, comma, other] = &inner[..] else { return None };
    let is_pair = group.delimiter() == Delimiter::Parenthesis && is_punct(comma, ',');
    (is_pair && is_number(one) && is_number(other)).then(|| format!("({one}, {other})"))
}

fn is_for_tests(attribute: &str) -> bool {
    attribute.replace(' ', "") == "[cfg(test)]"
}

/// How many tokens an item has: up to its `;`, or its braces.
fn length_of_item(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| {
        is_punct(token, ';')
            || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    tokens.iter().position(ends).map_or(tokens.len(), |at| at + 1)
}

/// The path of the module in a file below `src`.
fn module_of(file: &str) -> Names {
    let stem = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if stem == "lib" { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

/// Names as written in module `here`, from the root of the crate. A first name without a word in
/// front may be of the module itself.
fn absolute(here: &[String], names: &[String]) -> Names {
    let mut base = here.to_vec();
    let mut rest = names;
    match rest[0].as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        _ => {}
    }
    while rest.first().is_some_and(|name| name == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    base
}

/// All of `src`, and who names whom.
struct House {
    sources: Vec<Source>,
    by_module: BTreeMap<Names, usize>,
}

/// `from` names something that is defined in `to`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    from: usize,
    to: usize,
    name: String,
}

impl House {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        list(&root, &root, &mut files);
        files.sort();
        let sources: Vec<_> = files
            .iter()
            .filter(|file| !file.starts_with("bin/") && *file != "main.rs")
            .map(|file| Source::read(&root, file))
            .collect();
        let by_module =
            sources.iter().enumerate().map(|(at, source)| (source.module.clone(), at)).collect();
        Self { sources, by_module }
    }

    /// The file that defines what a path names, if it is one of ours: through modules, and through
    /// what these have called by `use`.
    fn definer(&self, path: &[String], depth: usize) -> Option<usize> {
        let mut module = Names::new();
        for (at, name) in path.iter().enumerate() {
            let inner: Names = [&module[..], std::slice::from_ref(name)].concat();
            if self.by_module.contains_key(&inner) {
                module = inner;
                continue;
            }
            let holder = self.by_module.get(&module).copied()?;
            let meant = self.sources[holder].calls.get(name);
            return match meant {
                Some(meant) if depth < 8 && meant[..] != path[..=at] => {
                    let whole = [&meant[..], &path[at + 1..]].concat();
                    self.definer(&whole, depth + 1)
                }
                // A path that begins with a crate, a type or a local name, not with a module.
                _ if module.is_empty() => None,
                _ => Some(holder),
            };
        }
        self.by_module.get(&module).copied()
    }

    fn arrows(&self) -> BTreeSet<Arrow> {
        let mut arrows = BTreeSet::new();
        for (from, source) in self.sources.iter().enumerate() {
            for path in &source.named {
                if let Some(to) = self.definer(path, 0)
                    && to != from
                {
                    arrows.insert(Arrow { from, to, name: path.join("::") });
                }
            }
        }
        arrows
    }

    /// An arrow in words.
    fn show(&self, arrow: &Arrow) -> String {
        let (from, to) = (&self.sources[arrow.from].file, &self.sources[arrow.to].file);
        format!("{from} -> {to} by {}", arrow.name)
    }
}

fn list(root: &Path, dir: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// The entries of the list in the crate's documentation: each the modules that stand in it.
fn order() -> Vec<Names> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(lib).unwrap();
    let (_, list) = text.split_once("//! # The modules\n").expect("lib.rs has the list");
    let lines = list.lines().map_while(|line| line.strip_prefix("//!"));
    let mut entries = Vec::new();
    for line in lines {
        let line = line.trim();
        let numbered = line.split_once(". ").filter(|(n, _)| n.parse::<u32>().is_ok());
        if let Some((_, rest)) = numbered {
            let modules = rest.split_once(": ").map_or(rest, |(modules, _)| modules);
            entries
                .push(modules.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Names>());
        }
    }
    entries
}

#[test]
fn a_module_names_only_what_stands_above_it() {
    let house = House::read();
    let order = order();
    let rank: BTreeMap<&str, usize> = order
        .iter()
        .enumerate()
        .flat_map(|(rank, modules)| modules.iter().map(move |module| (module.as_str(), rank)))
        .collect();
    let all: BTreeSet<&str> = house
        .sources
        .iter()
        .filter_map(|source| source.module.first())
        .map(String::as_str)
        .collect();
    assert_eq!(rank.keys().copied().collect::<BTreeSet<_>>(), all, "the list of lib.rs");
    let mut wrong = Vec::new();
    for arrow in house.arrows() {
        let (from, to) = (&house.sources[arrow.from].module, &house.sources[arrow.to].module);
        let (Some(from), Some(to)) = (from.first(), to.first()) else { continue };
        if from != to && rank[to.as_str()] >= rank[from.as_str()] {
            wrong.push(house.show(&arrow));
        }
    }
    assert!(wrong.is_empty(), "against the order of lib.rs:\n{}", wrong.join("\n"));
}

/// What can be reached from a file, by arrows.
fn reached(from: usize, next: &BTreeMap<usize, BTreeSet<usize>>) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(at) = left.pop() {
        for to in next.get(&at).into_iter().flatten() {
            if seen.insert(*to) {
                left.push(*to);
            }
        }
    }
    seen
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let house = House::read();
    let arrows = house.arrows();
    let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let arrows: BTreeSet<_> = arrows
        .into_iter()
        .filter(|arrow| {
            let (from, to) = (&house.sources[arrow.from], &house.sources[arrow.to]);
            !from.module.starts_with(&to.module)
        })
        .collect();
    for arrow in &arrows {
        next.entry(arrow.from).or_default().insert(arrow.to);
    }
    let reach: BTreeMap<usize, BTreeSet<usize>> =
        next.keys().map(|from| (*from, reached(*from, &next))).collect();
    let closes = |arrow: &&Arrow| reach.get(&arrow.to).is_some_and(|set| set.contains(&arrow.from));
    let circles: Vec<_> = arrows.iter().filter(closes).map(|arrow| house.show(arrow)).collect();
    assert!(circles.is_empty(), "{} arrows close circles:\n{}", circles.len(), circles.join("\n"));
}

#[test]
fn no_two_types_that_others_see_have_one_name() {
    let house = House::read();
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in &house.sources {
        for name in &source.types {
            places.entry(name).or_default().push(&source.file);
        }
    }
    let twice: Vec<_> = places
        .iter()
        .filter(|(_, files)| files.len() > 1)
        .map(|(name, files)| format!("{name}: {}", files.join(", ")))
        .collect();
    assert!(twice.is_empty(), "one name for several types:\n{}", twice.join("\n"));
}

/// The types of numbers of which two have no meaning of their own: device and inode, offset and length,
/// seconds and nanoseconds, process and descriptor.
const NUMBERS: [&str; 4] = ["u64", "i64", "i32", "u32"];

/// Who may have pairs of them: what gives them a name, where they are written; versions; ranges of
/// users, whose meaning is one line away.
const PAIRS: [&str; 6] = [
    "sys/extent.rs",
    "sys/time.rs",
    "doctor/mod.rs",
    "container/users.rs",
    "files/problems.rs",
    "restore/remedies.rs",
];

#[test]
fn pairs_of_numbers_have_names() {
    let house = House::read();
    let unnamed = house.sources.iter().filter(|source| {
        !PAIRS.contains(&source.file.as_str()) && !source.file.ends_with("/tests.rs")
    });
    let found: Vec<_> = unnamed
        .flat_map(|source| source.pairs.iter().map(|pair| format!("{}: {pair}", source.file)))
        .collect();
    assert!(found.is_empty(), "a struct says which number is which:\n{}", found.join("\n"));
}

/// What the annotations of engines begin with.
const OF_ENGINES: [&str; 5] = [
    "io.kubernetes.",
    "io.container.manager",
    "io.podman.annotations.",
    "org.criu.checkpoint.",
    "nerdctl/",
];

#[test]
fn the_annotations_of_engines_stand_once() {
    let house = House::read();
    let mut wrong = Vec::new();
    for source in house.sources.iter().filter(|one| one.file != "container/annotations.rs") {
        let is_key = |literal: &&String| {
            let text = literal.trim_matches('"');
            OF_ENGINES.iter().any(|begin| text.starts_with(begin))
        };
        let keys = source.literals.iter().filter(is_key);
        wrong.extend(keys.map(|literal| format!("{}: {literal}", source.file)));
    }
    assert!(wrong.is_empty(), "they stand in container/annotations.rs:\n{}", wrong.join("\n"));
}

/// Who may name `/proc` beside the module that reads it: calls that take a path for a descriptor of
/// our own, and what is open when this process starts.
const OWN_DESCRIPTORS: [&str; 3] = ["/proc/self/fd", "/proc/self/fd/{}", "/proc/self/fd/{number}"];

#[test]
fn nothing_but_its_module_reads_proc() {
    let house = House::read();
    let mut wrong = Vec::new();
    for source in house.sources.iter().filter(|source| !source.file.starts_with("proc/")) {
        for literal in source.literals.iter().filter(|literal| literal.contains("/proc")) {
            let is_own = OWN_DESCRIPTORS.contains(&literal.trim_matches('"'));
            // A documentation comment is a literal, too; it says something, and has blanks.
            let says = literal.contains(' ');
            if !(says || is_own && source.file.starts_with("sys/")) {
                wrong.push(format!("{}: {literal}", source.file));
            }
        }
    }
    assert!(wrong.is_empty(), "what /proc says is read in src/proc:\n{}", wrong.join("\n"));
}

/// The file that owns a word, by a line of the glossary.
fn owner(line: &str) -> Option<&str> {
    line.split('|').nth(3)?.trim().strip_prefix('`')?.strip_suffix('`')
}

#[test]
fn every_word_of_the_glossary_has_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/glossary.md")).unwrap();
    let words: Vec<_> = text.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(words.is_sorted_by_key(|line| line.to_lowercase()), "the words are in their order");
    for line in &words {
        let file = owner(line).unwrap_or_else(|| panic!("no file: {line}"));
        assert!(root.join(file).is_file(), "{file} is not there: {line}");
    }
    assert!(words.len() > 20, "{} words", words.len());
}
