//! The text of substitution rules.
//!
//! ```text
//! list      := rule { (";" | newline) rule }
//! rule      := selector "=" source [ ",drop" ] | identifier "," fd
//! selector  := [ "all " ] term { " and " term }
//! term      := identifier | "id:" identifier | pid ":" fd | "fd:" fd | "type:" type
//!            | pattern | "path:" pattern | "local:" address | "remote:" address | "tty" | "stdio"
//! pattern   := a path, with "*" for any part of a name and "**" for any bytes
//! address   := ( "*" | IPv4 | "[" IPv6 "]" ) ":" ( "*" | port )
//! source    := "fd:" ( number | name ) | ( "file:" | "container:" ) path { "," option }
//!            | "unix:" path [ ",listen" ] | "tcp:" host ":" port [ ",listen" ] | "exec:" path
//!            | "null" | "empty" | "tty" | "reset" | "closed"
//! option    := "ro" | "wo" | "rw" | "append" | "create" | "truncate"
//!            | "pos=" ("keep" | "start" | "end")
//! ```
//!
//! In a path or name, `=`, `,`, `;`, `*`, blanks and bytes that are no text are written `\xNN`, and
//! a backslash `\\`. The words `and` between blanks and `all` before one are the grammar's.

use std::fmt;

use unicode_width::UnicodeWidthChar;

use super::pattern::{AddressPattern, PathPattern};
use super::rule::{Origin, Rule};
use super::selector::{Selector, Term};
use super::source::{Access, FileSource, Position, Source, TcpSource, UnixSource};
use crate::bytes::ByteString;
use crate::container::Holder;
use crate::files::{FileId, FileKind};

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

const ESCAPES: &str = "in a path, a backslash is written \\\\ and a byte \\xNN";

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

    /// What stands before the first comma, and what stands behind it.
    fn split_options(self) -> (Self, Option<Self>) {
        match self.split(',') {
            Some((first, rest)) => (first, Some(rest)),
            None => (self, None),
        }
    }

    /// What stands before a `drop` behind the last comma, and whether there is one.
    fn split_drop(self) -> Result<(Self, bool), ParseError> {
        let mut words = self;
        while let Some((_, rest)) = words.split(',') {
            let (word, behind) = rest.split_options();
            match (word.text(), behind) {
                ("drop", None) => {
                    return Ok((Self { end: rest.before_comma(), ..self }.trim(), true));
                }
                ("drop", Some(_)) => return Err(word.wrong("`drop` is the last word of a rule")),
                _ => words = rest,
            }
        }
        Ok((self, false))
    }

    /// Where the comma is that this part stands behind.
    fn before_comma(self) -> usize {
        self.whole[..self.start].rfind(',').unwrap_or(self.start)
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
        let path = ByteString::parse(self.text()).map_err(|_| self.wrong(ESCAPES))?;
        if path.as_bytes().contains(&0) {
            return Err(self.wrong("a path has no zero byte"));
        }
        Ok(path)
    }

    /// A path from the root.
    fn host_path(self) -> Result<ByteString, ParseError> {
        let path = self.path()?;
        if !path.as_bytes().starts_with(b"/") {
            return Err(self.wrong("the path has to begin with a slash"));
        }
        Ok(path)
    }

    /// A path with stars.
    fn pattern(self) -> Result<PathPattern, ParseError> {
        self.path()?;
        PathPattern::parse(self.text()).map_err(|_| self.wrong(ESCAPES))
    }

    fn address(self) -> Result<AddressPattern, ParseError> {
        AddressPattern::parse(self.text()).ok_or_else(|| {
            self.wrong("it is ADDRESS:PORT, [ADDRESS]:PORT for IPv6, with * for any of either")
        })
    }
}

/// The longest text of one rule.
const RULE_LIMIT: usize = 16 << 10;
/// The most rules in one list.
const LIST_LIMIT: usize = 1000;

/// Reads one rule.
pub fn parse_rule(text: &str, origin: Origin) -> Result<Rule, ParseError> {
    if text.len() > RULE_LIMIT {
        return Err(Part::new("").wrong(format!("a rule is longer than {RULE_LIMIT} bytes")));
    }
    let whole = Part::new(text);
    if let Some((selector, source)) = whole.split('=') {
        let (source, drop) = source.split_drop()?;
        let (selector, source) = (parse_selector(selector)?, parse_source(source)?);
        return Ok(Rule { selector, source, drop, origin });
    }
    // Kerrighed's form: restart -s file_identifier,fd
    if let Some((id, fd)) = whole.split(',') {
        let selector = Selector::new(Term::Id(FileId(id.number("the file identifier")?)));
        let source = Source::Fd(fd.number("the fd")?);
        return Ok(Rule { selector, source, drop: false, origin });
    }
    Err(whole.wrong("a substitution is SELECTOR=SOURCE, or IDENTIFIER,FD"))
}

/// Reads several rules, one a line or with semicolons between: the value of an annotation.
pub fn parse_list(text: &str, origin: &Origin) -> Result<Vec<Rule>, ParseError> {
    let rules = text.split(['\n', ';']).map(str::trim).filter(|rule| !rule.is_empty());
    if rules.clone().count() > LIST_LIMIT {
        return Err(Part::new("").wrong(format!("there are more than {LIST_LIMIT} rules")));
    }
    rules.map(|rule| parse_rule(rule, origin.clone())).collect()
}

fn parse_selector(part: Part<'_>) -> Result<Selector, ParseError> {
    if part.text().is_empty() {
        return Err(part.wrong("there is no selector before the equals sign"));
    }
    let behind =
        part.text().strip_prefix("all").filter(|rest| rest.starts_with(char::is_whitespace));
    let mut rest = match behind {
        Some(rest) => Part { start: part.end - rest.len(), ..part }.trim(),
        None => part,
    };
    let mut terms = Vec::new();
    while let Some(at) = rest.text().find(" and ") {
        terms.push(parse_term(Part { end: rest.start + at, ..rest }.trim())?);
        rest = Part { start: rest.start + at + " and ".len(), ..rest }.trim();
    }
    if rest.text().ends_with(" and") || rest.text().is_empty() {
        return Err(rest.wrong("there is no selector where one has to be"));
    }
    terms.push(parse_term(rest)?);
    Ok(Selector { all: behind.is_some(), terms })
}

const SELECTORS: &str = "an identifier, PID:FD, fd:N, type:TYPE, a path, path:, local:, remote:, \
                         tty and stdio are known";

fn parse_term(part: Part<'_>) -> Result<Term, ParseError> {
    let text = part.text();
    if text.starts_with('/') {
        return part.pattern().map(Term::Path);
    }
    let Some((word, argument)) = part.split(':') else {
        return match text {
            "tty" => Ok(Term::Tty),
            "stdio" => Ok(Term::Stdio),
            number if number.starts_with(|first: char| first.is_ascii_digit()) => {
                Ok(Term::Id(FileId(part.number("the file identifier")?)))
            }
            _ => Err(part.wrong(format!("unknown selector: {SELECTORS}"))),
        };
    };
    match word.text() {
        "id" => Ok(Term::Id(FileId(argument.number("the file identifier")?))),
        "fd" => Ok(Term::Fd(argument.number("the fd")?)),
        "type" => parse_kind(argument).map(Term::Kind),
        "path" => argument.pattern().map(Term::Path),
        "local" => argument.address().map(Term::Local),
        "remote" => argument.address().map(Term::Remote),
        pid if pid.starts_with(|first: char| first.is_ascii_digit()) => {
            let pid = word.number("the process")?;
            Ok(Term::Holder(Holder { pid, fd: argument.number("the fd")? }))
        }
        _ => Err(word.wrong(format!("unknown selector: {SELECTORS}"))),
    }
}

fn parse_kind(part: Part<'_>) -> Result<FileKind, ParseError> {
    part.text().parse().map_err(|_| {
        let known: Vec<_> = FileKind::ALL.iter().map(|kind| kind.as_str()).collect();
        part.wrong(format!("unknown type: {} are known", known.join(", ")))
    })
}

fn parse_source(part: Part<'_>) -> Result<Source, ParseError> {
    let (word, argument) = match part.split(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (part, None),
    };
    let needs = |form: &str| word.wrong(format!("it takes an argument: {form}"));
    match word.text() {
        "fd" => parse_fd(argument.ok_or_else(|| needs("fd:N or fd:NAME"))?),
        "file" => parse_file(argument.ok_or_else(|| needs("file:/PATH"))?).map(Source::File),
        "container" => {
            parse_file(argument.ok_or_else(|| needs("container:/PATH"))?).map(Source::Container)
        }
        "unix" => parse_unix(argument.ok_or_else(|| needs("unix:/PATH"))?),
        "tcp" => parse_tcp(argument.ok_or_else(|| needs("tcp:HOST:PORT"))?),
        "exec" => argument.ok_or_else(|| needs("exec:/PATH"))?.host_path().map(Source::Exec),
        "" => Err(word.wrong("there is no source after the equals sign")),
        simple => {
            let source = simple_source(simple).ok_or_else(|| {
                word.wrong(
                    "unknown source: fd:, file:, container:, unix:, tcp:, exec:, null, empty, tty, \
                     reset and closed are known",
                )
            })?;
            match argument {
                None => Ok(source),
                Some(argument) => Err(argument.wrong(format!("{source} takes nothing"))),
            }
        }
    }
}

fn simple_source(word: &str) -> Option<Source> {
    Some(match word {
        "null" => Source::Null,
        "empty" => Source::Empty,
        "tty" => Source::Tty,
        "reset" => Source::Reset,
        "closed" => Source::Closed,
        _ => return None,
    })
}

/// A number, or a name that looks like none.
fn parse_fd(part: Part<'_>) -> Result<Source, ParseError> {
    let is_number = |first: char| first.is_ascii_digit() || "+-".contains(first);
    if part.text().is_empty() || part.text().starts_with(is_number) {
        return Ok(Source::Fd(part.number("the fd")?));
    }
    let name = part.path()?;
    let is_name = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b':';
    if !name.as_bytes().iter().all(is_name) || name.as_bytes().len() > 255 {
        return Err(part.wrong("a name is of printable ASCII without a colon, 255 at most"));
    }
    Ok(Source::FdName(name))
}

fn parse_file(part: Part<'_>) -> Result<FileSource, ParseError> {
    let (path, options) = part.split_options();
    let mut file = FileSource::new(path.host_path()?);
    each_option(options, |option| apply_option(&mut file, option))?;
    Ok(file)
}

fn parse_unix(part: Part<'_>) -> Result<Source, ParseError> {
    let (path, options) = part.split_options();
    let path = path.host_path()?;
    Ok(Source::Unix(UnixSource { path, listen: parse_listen(options)? }))
}

fn parse_tcp(part: Part<'_>) -> Result<Source, ParseError> {
    let (address, options) = part.split_options();
    let colon = address.text().rfind(':');
    let colon = colon.ok_or_else(|| address.wrong("it is HOST:PORT"))? + address.start;
    let port = Part { start: colon + 1, ..address }.number("the port")?;
    let host = parse_host(Part { end: colon, ..address })?;
    Ok(Source::Tcp(TcpSource { host, port, listen: parse_listen(options)? }))
}

/// A name, an address of IPv4, or one of IPv6 in brackets.
fn parse_host(part: Part<'_>) -> Result<String, ParseError> {
    let text = part.text();
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Result<std::net::Ipv6Addr, _> = inner.parse();
        return match address {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(part.wrong("in the brackets is no address of IPv6")),
        };
    }
    let may = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(may) {
        return Err(part.wrong("the host is a name, an address, or an address of IPv6 in brackets"));
    }
    Ok(text.to_owned())
}

fn parse_listen(options: Option<Part<'_>>) -> Result<bool, ParseError> {
    let mut listen = false;
    each_option(options, |option| match option.text() {
        "listen" if !std::mem::replace(&mut listen, true) => Ok(()),
        "listen" => Err(option.wrong("this was said already")),
        _ => Err(option.wrong("unknown option: listen is known")),
    })?;
    Ok(listen)
}

fn each_option<'a>(
    mut options: Option<Part<'a>>,
    mut apply: impl FnMut(Part<'a>) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    while let Some(rest) = options {
        let (option, behind) = rest.split_options();
        apply(option)?;
        options = behind;
    }
    Ok(())
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
    use crate::sys::pid::InnerPid;
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
            ("fd:3=fd:web", "fd:3=fd:web"),
            ("all fd:3 and type:pipe=closed", "all fd:3 and type:pipe=closed"),
            ("path:**/x=empty", "path:**/x=empty"),
            ("/a\\x2a*=reset", "/a\\x2a*=reset"),
            ("local:127.0.0.1:80=tcp:[0:0::1]:80,listen", "local:127.0.0.1:80=tcp:[::1]:80,listen"),
            ("remote:*:5432=unix:/run/x, listen", "remote:*:5432=unix:/run/x,listen"),
            ("remote:[::1]:*=tcp:db.example:5432", "remote:[::1]:*=tcp:db.example:5432"),
            ("tty=tty", "tty=tty"),
            ("stdio  and  tty=exec:/bin/x", "stdio and tty=exec:/bin/x"),
            ("1=container:/t,append", "1=container:/t,append"),
            ("1=file:/t,pos=end,create, rw", "1=file:/t,rw,create,pos=end"),
            ("1=closed , drop", "1=closed,drop"),
            ("1=file:/t,ro , drop ", "1=file:/t,ro,drop"),
            ("1=fd:drop,drop", "1=fd:drop,drop"),
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
            "17=file:/x,drop,ro",
            "17=null,drop,drop",
            "17=,drop",
            "17=null:x",
            "/a\\b=null",
            "/a and =null",
            "tty and foo=null",
            "all =null",
            "type:socket=null",
            "local:80=null",
            "remote:::1:80=null",
            "17=tcp:host",
            "17=tcp:[1]:5",
            "17=tcp:h st:5",
            "17=tcp:host:99999",
            "17=unix:/x,connect",
            "17=unix:/x,listen,listen",
            "17=exec:x",
            "17=exec",
            "17=fd:a\u{e9}",
            "17=empty:x",
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

    fn any_file() -> impl Strategy<Value = FileSource> {
        let access = prop::option::of(prop::sample::select(
            &[Access::Read, Access::Write, Access::Both][..],
        ));
        let position = prop::option::of(prop::sample::select(
            &[Position::Keep, Position::Start, Position::End][..],
        ));
        (any_path(), access, any::<(bool, bool, bool)>(), position).prop_map(
            |(path, access, (append, create, truncate), position)| FileSource {
                path,
                access,
                append,
                create,
                truncate,
                position,
            },
        )
    }

    fn any_host() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
            any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
            "[a-z][a-z0-9.-]{0,9}",
        ]
    }

    fn any_source() -> impl Strategy<Value = Source> {
        prop_oneof![
            prop::sample::select(
                &[Source::Null, Source::Empty, Source::Tty, Source::Reset, Source::Closed][..]
            ),
            (0..=i32::MAX).prop_map(Source::Fd),
            "[a-zA-Z_][ -9;-~]{0,20}".prop_map(|name| Source::FdName(name.into_bytes().into())),
            any_file().prop_map(Source::File),
            any_file().prop_map(Source::Container),
            any_path().prop_map(Source::Exec),
            (any_path(), any::<bool>())
                .prop_map(|(path, listen)| Source::Unix(UnixSource { path, listen })),
            (any_host(), any::<(u16, bool)>())
                .prop_map(|(host, (port, listen))| Source::Tcp(TcpSource { host, port, listen })),
        ]
    }

    fn any_address() -> impl Strategy<Value = AddressPattern> {
        (any::<Option<std::net::IpAddr>>(), any::<Option<u16>>())
            .prop_map(|(ip, port)| AddressPattern { ip, port })
    }

    fn any_term() -> impl Strategy<Value = Term> {
        prop_oneof![
            any::<u32>().prop_map(|id| Term::Id(FileId(id))),
            (0..=i32::MAX, 0..=i32::MAX)
                .prop_map(|(pid, fd)| Term::Holder(Holder { pid: InnerPid(pid), fd })),
            (0..=i32::MAX).prop_map(Term::Fd),
            prop::sample::select(FileKind::ALL).prop_map(Term::Kind),
            any_path().prop_map(|path| Term::Path(PathPattern::exact(path))),
            Just(Term::Path(PathPattern::exact("pipe:[12]"))),
            "[/a*]{1,9}".prop_map(|text| Term::Path(PathPattern::parse(&text).unwrap())),
            any_address().prop_map(Term::Local),
            any_address().prop_map(Term::Remote),
            Just(Term::Tty),
            Just(Term::Stdio),
        ]
    }

    fn any_selector() -> impl Strategy<Value = Selector> {
        (any::<bool>(), prop::collection::vec(any_term(), 1..4))
            .prop_map(|(all, terms)| Selector { all, terms })
    }

    proptest! {
        #[test]
        fn a_rule_is_read_as_it_is_shown(
            selector in any_selector(),
            source in any_source(),
            drop: bool,
        ) {
            let rule = Rule { selector, source, drop, origin: Origin::CommandLine };
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
