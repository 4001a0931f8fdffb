//! The text of substitution rules.
//!
//! ```text
//! list      := rule { (";" | newline) rule }
//! rule      := selector "=" source | identifier "," fd
//! selector  := identifier | "id:" identifier | pid ":" fd | path | "path:" path
//! source    := "fd:" number | "file:" path { "," option } | "null"
//! option    := "ro" | "wo" | "rw" | "append" | "create" | "truncate"
//!            | "pos=" ("keep" | "start" | "end")
//! ```
//!
//! Every selector and source is a word, with a colon and an argument or without: that is how
//! others are added. In a path, `=`, `,`, `;`, blanks at its ends and bytes that are no text are
//! written `\xNN`, and a backslash `\\`. The word `and` between blanks is kept for selectors of
//! several parts.

use std::fmt;

use unicode_width::UnicodeWidthChar;

use super::rule::{Access, FileSource, Origin, Position, Rule, Selector, Source};
use crate::bytes::ByteString;
use crate::files::{FileId, Holder};

/// A rule that cannot be understood, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The rule.
    pub text: String,
    /// Where the part begins that is wrong, in bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        writeln!(f, "  {}", shown(&self.text))?;
        let before = width(&shown(&self.text[..self.start]));
        let under = width(&shown(&self.text[self.start..self.end])).max(1);
        write!(f, "  {}{}", " ".repeat(before), "^".repeat(under))
    }
}

impl std::error::Error for ParseError {}

/// Text of which no character moves the cursor.
fn shown(text: &str) -> String {
    let is_safe = |c: char| ByteString::from(c.to_string()).to_string() == c.to_string();
    text.chars().map(|c| if c == '\\' || is_safe(c) { c } else { '\u{fffd}' }).collect()
}

fn width(text: &str) -> usize {
    text.chars().map(|character| character.width().unwrap_or(0)).sum()
}

/// A part of the text of a rule, which knows where it stands.
#[derive(Clone, Copy)]
struct Part<'a> {
    whole: &'a str,
    start: usize,
    end: usize,
}

impl<'a> Part<'a> {
    fn new(whole: &'a str) -> Self {
        Self { whole, start: 0, end: whole.len() }.trim()
    }

    fn text(self) -> &'a str {
        &self.whole[self.start..self.end]
    }

    fn trim(self) -> Self {
        let text = self.text();
        let start = self.start + (text.len() - text.trim_start().len());
        Self { start, end: start + text.trim().len(), ..self }
    }

    /// The parts before and after the first of a character.
    fn split(self, at: char) -> Option<(Self, Self)> {
        let middle = self.start + self.text().find(at)?;
        let before = Self { end: middle, ..self };
        Some((before.trim(), Self { start: middle + at.len_utf8(), ..self }.trim()))
    }

    fn wrong(self, message: impl Into<String>) -> ParseError {
        ParseError {
            text: self.whole.to_owned(),
            start: self.start,
            end: self.end,
            message: message.into(),
        }
    }

    fn number<T: std::str::FromStr>(self, what: &str) -> Result<T, ParseError> {
        let text = self.text();
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_number);
        number.ok_or_else(|| self.wrong(format!("{what} is not a number")))
    }

    fn path(self) -> Result<ByteString, ParseError> {
        if self.text().is_empty() {
            return Err(self.wrong("there is no path"));
        }
        let path = ByteString::parse(self.text())
            .map_err(|_| self.wrong("in a path, a backslash is written \\\\ and a byte \\xNN"))?;
        if path.as_bytes().contains(&0) {
            return Err(self.wrong("a path has no zero byte"));
        }
        Ok(path)
    }
}

/// Reads one rule.
pub fn parse_rule(text: &str, origin: Origin) -> Result<Rule, ParseError> {
    let whole = Part::new(text);
    if let Some((selector, source)) = whole.split('=') {
        let (selector, source) = (parse_selector(selector)?, parse_source(source)?);
        return Ok(Rule { selector, source, origin });
    }
    // Kerrighed's form: restart -s file_identifier,fd
    if let Some((id, fd)) = whole.split(',') {
        let selector = Selector::Id(FileId(id.number("the file identifier")?));
        return Ok(Rule { selector, source: Source::Fd(fd.number("the fd")?), origin });
    }
    Err(whole.wrong("a substitution is SELECTOR=SOURCE, or IDENTIFIER,FD"))
}

/// Reads several rules, one a line or with semicolons between: the value of an annotation.
pub fn parse_list(text: &str, origin: &Origin) -> Result<Vec<Rule>, ParseError> {
    text.split(['\n', ';'])
        .map(str::trim)
        .filter(|rule| !rule.is_empty())
        .map(|rule| parse_rule(rule, origin.clone()))
        .collect()
}

fn parse_selector(part: Part<'_>) -> Result<Selector, ParseError> {
    let text = part.text();
    if text.is_empty() {
        return Err(part.wrong("there is no selector before the equals sign"));
    }
    if let Some(at) = text.find(" and ") {
        let word = Part { start: part.start + at + 1, end: part.start + at + 4, ..part };
        return Err(word.wrong("selectors cannot be joined yet; in a path, write \\x20and\\x20"));
    }
    if text.starts_with('/') {
        return part.path().map(Selector::Path);
    }
    let Some((word, argument)) = part.split(':') else {
        return Ok(Selector::Id(FileId(part.number("the file identifier")?)));
    };
    match word.text() {
        "id" => Ok(Selector::Id(FileId(argument.number("the file identifier")?))),
        "path" => argument.path().map(Selector::Path),
        pid if pid.starts_with(|first: char| first.is_ascii_digit()) => {
            let pid = word.number("the process")?;
            Ok(Selector::Holder(Holder { pid, fd: argument.number("the fd")? }))
        }
        _ => {
            Err(word
                .wrong("unknown selector: an identifier, PID:FD, a path, id: and path: are known"))
        }
    }
}

fn parse_source(part: Part<'_>) -> Result<Source, ParseError> {
    let (word, argument) = match part.split(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (part, None),
    };
    match (word.text(), argument) {
        ("null", None) => Ok(Source::Null),
        ("null", Some(argument)) => Err(argument.wrong("null takes nothing")),
        ("fd", Some(number)) => Ok(Source::Fd(number.number("the fd")?)),
        ("file", Some(argument)) => parse_file(argument).map(Source::File),
        ("fd", None) => Err(word.wrong("it takes a number: fd:N")),
        ("file", None) => Err(word.wrong("it takes a path: file:/PATH")),
        ("", None) => Err(word.wrong("there is no source after the equals sign")),
        _ => Err(word.wrong("unknown source: fd:N, file:/PATH and null are known")),
    }
}

fn parse_file(part: Part<'_>) -> Result<FileSource, ParseError> {
    let (path, mut options) = match part.split(',') {
        Some((path, options)) => (path, Some(options)),
        None => (part, None),
    };
    let mut file = FileSource::new(path.path()?);
    if !file.path.as_bytes().starts_with(b"/") {
        return Err(path.wrong("the path has to begin with a slash"));
    }
    while let Some(rest) = options {
        let (option, rest) = match rest.split(',') {
            Some((option, rest)) => (option, Some(rest)),
            None => (rest, None),
        };
        apply_option(&mut file, option)?;
        options = rest;
    }
    Ok(file)
}

fn apply_option(file: &mut FileSource, option: Part<'_>) -> Result<(), ParseError> {
    let flag = |flag: &mut bool| !std::mem::replace(flag, true);
    let is_first = match option.text() {
        "ro" => file.access.replace(Access::Read).is_none(),
        "wo" => file.access.replace(Access::Write).is_none(),
        "rw" => file.access.replace(Access::Both).is_none(),
        "append" => flag(&mut file.append),
        "create" => flag(&mut file.create),
        "truncate" => flag(&mut file.truncate),
        "pos=keep" => file.position.replace(Position::Keep).is_none(),
        "pos=start" => file.position.replace(Position::Start).is_none(),
        "pos=end" => file.position.replace(Position::End).is_none(),
        _ => {
            return Err(option.wrong(
                "unknown option: ro, wo, rw, append, create, truncate and pos=keep|start|end are known",
            ));
        }
    };
    if is_first { Ok(()) } else { Err(option.wrong("this was said already")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> Result<Rule, ParseError> {
        parse_rule(text, Origin::CommandLine)
    }

    #[test]
    fn rules() {
        for (text, shown) in [
            ("17=fd:3", "17=fd:3"),
            ("17,3", "17=fd:3"),
            (" id:17 = fd:3 ", "17=fd:3"),
            ("7:3=null", "7:3=null"),
            ("/var/log/x=file:/tmp/y", "/var/log/x=file:/tmp/y"),
            ("path:/a b=null", "/a\\x20b=null"),
            ("path:pipe:[7]=null", "path:pipe:[7]=null"),
            ("/a\\x3db=null", "/a\\x3db=null"),
            ("1=file:/t,pos=end,create, rw", "1=file:/t,rw,create,pos=end"),
            ("1=file:/t\\x2c,append,truncate,pos=keep", "1=file:/t\\x2c,append,truncate,pos=keep"),
        ] {
            assert_eq!(rule(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn lists() {
        let origin = Origin::Annotation("org.ocicle.substitute".into());
        let rules = parse_list("1=null; 2=fd:5\n\n 3,4 ;", &origin).unwrap();
        let shown: Vec<_> = rules.iter().map(Rule::to_string).collect();
        assert_eq!(shown, ["1=null", "2=fd:5", "3=fd:4"]);
        assert_eq!(rules[2].origin, origin);
        assert!(parse_list("1=null;2", &origin).is_err());
    }

    #[test]
    fn errors_point_at_what_is_wrong() {
        let wrong = [
            "17",
            "=null",
            "17=",
            "17=fil:/x",
            "x:3=null",
            "7:x=null",
            "1x=null",
            "99999999999=null",
            "17=fd:",
            "17=fd:-1",
            "17=fd",
            "17=file:x",
            "17=file:",
            "17=file:/x,ro,wo",
            "17=file:/x,,create",
            "17=file:/x,pos=middle",
            "17=null:x",
            "/a\\b=null",
            "/a and /b=null",
            "17,x",
            "/日本=fox:3",
            "/\u{1b}[2J=x",
        ];
        let text: Vec<_> = wrong.iter().map(|text| rule(text).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(text.join("\n\n"));
    }

    fn any_path() -> impl Strategy<Value = ByteString> {
        let byte = prop_oneof![Just(b' '), Just(b'='), Just(b','), Just(b';'), 1u8..=255];
        prop::collection::vec(byte, 0..12).prop_map(|bytes| [&b"/"[..], &bytes].concat().into())
    }

    fn any_source() -> impl Strategy<Value = Source> {
        let access = prop::option::of(prop::sample::select(
            &[Access::Read, Access::Write, Access::Both][..],
        ));
        let position = prop::option::of(prop::sample::select(
            &[Position::Keep, Position::Start, Position::End][..],
        ));
        let flags = any::<(bool, bool, bool)>();
        prop_oneof![
            Just(Source::Null),
            (0..=i32::MAX).prop_map(Source::Fd),
            (any_path(), access, flags, position).prop_map(
                |(path, access, (append, create, truncate), position)| Source::File(FileSource {
                    path,
                    access,
                    append,
                    create,
                    truncate,
                    position,
                })
            ),
        ]
    }

    fn any_selector() -> impl Strategy<Value = Selector> {
        prop_oneof![
            any::<u32>().prop_map(|id| Selector::Id(FileId(id))),
            (0..=i32::MAX, 0..=i32::MAX).prop_map(|(pid, fd)| Selector::Holder(Holder { pid, fd })),
            any_path().prop_map(Selector::Path),
            Just(Selector::Path("pipe:[12]".into())),
        ]
    }

    proptest! {
        #[test]
        fn a_rule_is_read_as_it_is_shown(selector in any_selector(), source in any_source()) {
            let rule = Rule { selector, source, origin: Origin::CommandLine };
            let text = rule.to_string();
            prop_assert_eq!(&parse_rule(&text, Origin::CommandLine).unwrap(), &rule);
            prop_assert_eq!(parse_list(&text, &Origin::CommandLine).unwrap(), [rule]);
        }

        #[test]
        fn any_text_is_a_rule_or_an_error(text: String) {
            if let Err(error) = rule(&text) {
                prop_assert!(error.to_string().contains('^'));
            }
        }
    }
}
