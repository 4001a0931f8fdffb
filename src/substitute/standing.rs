//! The rules that stand somewhere, in the configuration and in a container's annotations, and who
//! may write which.

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::grammar::{parse_list, parse_rule};
use super::resolve::Resolved;
use super::rule::{Origin, Rule};
use super::source::Source;
use crate::bytes::ByteString;
use crate::container::{Bundle, Identity};
use crate::glob;
use crate::hint::{CORRECT, WithHint};
use crate::locations;

/// The annotation that holds rules; `ANNOTATION.NAME` does too.
const ANNOTATION: &str = "org.ocicle.substitute";

/// What becomes of open files that CRIU cannot dump and that no rule covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnUnsupported {
    /// They stop the checkpoint
    #[default]
    Error,
    /// They are left out, and have to be replaced at a restore
    Substitute,
}

/// Rules of substitution for some containers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Substitution {
    /// The form of their names, or of what their runtime calls them; any if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The form of a name of their image; any if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The rules, one a line or with semicolons between.
    pub rule: String,
}

impl Substitution {
    /// Whether the rules are for this container.
    pub fn is_for(&self, identity: &Identity) -> bool {
        identity.is_meant(self.container.as_deref(), self.image.as_deref())
    }

    /// For which containers they are, in words.
    pub fn whom(&self) -> String {
        match (&self.container, &self.image) {
            (Some(container), None) => format!("the containers {container}"),
            (None, Some(image)) => format!("containers of the image {image}"),
            (Some(container), Some(image)) => format!("the containers {container} of {image}"),
            (None, None) => "no container".to_owned(),
        }
    }
}

/// What annotations and checkpoints may use that somebody else may have written: nothing, unless the
/// administrator says so.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Allow {
    /// Files of the host that `file:` may open: paths, in which `*` stands for any part of one
    /// name and `**` for any number of names.
    pub files: Vec<String>,
    /// Sockets that `unix:` and `tcp:` may connect to or listen at: `unix:/PATH`, `tcp:HOST:PORT`.
    pub sockets: Vec<String>,
    /// Programs that `exec:` may run: paths.
    pub programs: Vec<String>,
    /// Volumes, by their directory on the host, to which a restore may bring devices, set-user-ID and
    /// set-group-ID bits, and attributes `security.*`.
    pub privileged_volumes: Vec<String>,
}

/// The rules of a container's annotations and of the configuration.
pub fn standing_rules(
    identity: &Identity,
    configured: &[Substitution],
    bundle: &Bundle,
) -> Result<Vec<Rule>> {
    let mut rules = of_annotations(&bundle.annotations(ANNOTATION))?;
    let origin = Origin::Configuration(locations::configuration().display().to_string());
    for configured in configured.iter().filter(|one| one.is_for(identity)) {
        rules.extend(parse_list(&configured.rule, &origin).context("reading the configuration")?);
    }
    Ok(rules)
}

/// The most rules that the annotations of a container may hold together, and the most text: what
/// they cost is to stay within bounds, whoever wrote them.
const ANNOTATED_RULES: usize = 1000;
const ANNOTATED_BYTES: usize = 256 << 10;

fn of_annotations(annotations: &[(String, String)]) -> Result<Vec<Rule>> {
    const SHORTEN: &str = "leave rules out in config.json, or write them in the configuration";
    let bytes: usize = annotations.iter().map(|(_, value)| value.len()).sum();
    if bytes > ANNOTATED_BYTES {
        let what = format!("annotations {ANNOTATION} are longer than {ANNOTATED_BYTES} bytes");
        return Err(anyhow!(what).hint(SHORTEN));
    }
    let mut rules = Vec::new();
    for (name, value) in annotations {
        let origin = Origin::Annotation(name.clone());
        let parsed = parse_list(value, &origin);
        let parsed = parsed.with_context(|| origin.to_string()).hint(CORRECT)?;
        rules.extend(parsed);
        if rules.len() > ANNOTATED_RULES {
            let what = format!("annotations {ANNOTATION} hold more than {ANNOTATED_RULES} rules");
            return Err(anyhow!(what).hint(SHORTEN));
        }
    }
    Ok(rules)
}

/// Reads the rules of a command line.
pub fn parse_each(texts: &[String], origin: &Origin) -> Result<Vec<Rule>> {
    let parse = |text: &String| {
        parse_rule(text, origin.clone())
            .with_context(|| format!("reading a rule of {origin}"))
            .hint("such as 7=file:/var/log/new or 1:3=null; `ocicle restore --help` has the forms")
    };
    texts.iter().map(parse).collect()
}

/// Refuses what an annotation may not use: whoever wrote it need not be the administrator.
pub fn ensure_allowed(resolved: &[Resolved], allow: &Allow) -> Result<()> {
    let annotated = resolved.iter().filter(|one| one.rule.origin.is_annotation());
    annotated.map(|one| &*one.rule).try_for_each(|rule| {
        Need::of(&rule.source, allow).map_or(Ok(()), |need| need.ensure_allowed(rule))
    })
}

/// Refuses a descriptor of the host's, handed over for a rule of an annotation, that `files` does not
/// allow.
pub(super) fn ensure_leave_for_file(
    rule: &Rule,
    what: &'static str,
    name: &ByteString,
    allow: &Allow,
) -> Result<()> {
    let need = Need { what, name: name.clone(), setting: "files", patterns: &allow.files };
    need.ensure_allowed(rule)
}

/// What a source needs the administrator's leave for.
struct Need<'a> {
    what: &'static str,
    name: ByteString,
    setting: &'static str,
    patterns: &'a [String],
}

impl<'a> Need<'a> {
    fn of(source: &Source, allow: &'a Allow) -> Option<Self> {
        let file = |name| ("the host's file", name, "files", &allow.files);
        let socket = |name| ("the socket", name, "sockets", &allow.sockets);
        let (what, name, setting, patterns) = match source {
            Source::File(source) => file(source.path.clone()),
            Source::Tty => file("/dev/tty".into()),
            Source::Unix(unix) => socket([b"unix:", unix.path.as_bytes()].concat().into()),
            Source::Tcp(tcp) => socket(format!("tcp:{}", tcp.address()).into()),
            Source::Exec(program) => ("the program", program.clone(), "programs", &allow.programs),
            Source::Fd(_)
            | Source::FdName(_)
            | Source::Container(_)
            | Source::Null
            | Source::Empty
            | Source::Reset
            | Source::Closed => return None,
        };
        Some(Self { what, name, setting, patterns })
    }

    fn ensure_allowed(&self, rule: &Rule) -> Result<()> {
        if self.is_allowed() {
            return Ok(());
        }
        Err(anyhow!(
            "{} names {} {}, which needs the administrator's leave",
            rule.origin,
            self.what,
            self.name
        )
        .hint(format!(
            "the leave is a line `{} = [\"{}\"]` below [allow] in {}",
            self.setting,
            self.name,
            locations::CONFIGURATION
        )))
    }

    fn is_allowed(&self) -> bool {
        let matches = |pattern: &String| glob::matches(pattern.as_bytes(), self.name.as_bytes());
        self.patterns.iter().any(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::substitute::{Selector, Term};

    fn refused(source: &str, origin: Origin, allow: &Allow) -> Option<String> {
        let rule = parse_rule(&format!("1={source}"), origin).unwrap();
        assert_eq!(rule.selector, Selector::new(Term::Id(crate::files::FileId(1))));
        let json = r#"{"id":1,"type":"reg","name":"/x","flags":0,"holders":[]}"#;
        let file = serde_json::from_str(json).unwrap();
        let resolved = [Resolved { rule: rule.into(), file, beaten: Vec::new() }];
        let error = ensure_allowed(&resolved, allow).err()?;
        Some(format!("{error}: {}", crate::hint::hint_of(&error).unwrap_or_default()))
    }

    fn annotated(annotations: &[(&str, String)]) -> Result<Vec<Rule>> {
        let owned = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        of_annotations(&annotations.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn annotations_have_limits_together() {
        let rules = |count| ["1=null"].repeat(count).join(";");
        assert_eq!(annotated(&[("a", rules(600)), ("b", rules(400))]).unwrap().len(), 1000);
        let many = annotated(&[("a", rules(600)), ("b", rules(401))]).unwrap_err();
        assert!(many.to_string().contains("more than 1000 rules"), "{many}");
        let long = format!("{}=null", "/a".repeat(4 << 10));
        let longer = vec![("a", long); 40];
        let long = annotated(&longer).unwrap_err();
        assert!(long.to_string().contains("longer than 262144 bytes"), "{long}");
    }

    #[test]
    fn the_name_of_an_annotation_moves_no_cursor() {
        let wrong = annotated(&[("a\u{1b}[2J", "tape".to_owned())]).unwrap_err();
        assert!(format!("{wrong:#}").starts_with("annotation a\\x1b[2J: "), "{wrong:#}");
    }

    #[test]
    fn annotations_need_leave() {
        let annotation = || Origin::Annotation("a".into());
        let none = Allow::default();
        let needing = ["file:/etc/x", "tty", "unix:/run/x", "tcp:[::1]:5,listen", "exec:/bin/x"];
        let said: Vec<_> =
            needing.iter().map(|source| refused(source, annotation(), &none).unwrap()).collect();
        insta::assert_snapshot!(said.join("\n"));
        for source in needing {
            assert_eq!(refused(source, Origin::CommandLine, &none), None);
            assert_eq!(refused(source, Origin::Configuration("x".into()), &none), None);
        }
        for free in ["fd:3", "fd:web", "container:/x", "null", "empty", "reset", "closed"] {
            assert_eq!(refused(free, annotation(), &none), None, "{free}");
        }
        let all = Allow {
            files: vec!["/etc/*".into(), "/dev/tty".into()],
            sockets: vec!["unix:/run/**".into(), "tcp:[::1]:*".into()],
            programs: vec!["/bin/x".into()],
            ..Allow::default()
        };
        for source in needing {
            assert_eq!(refused(source, annotation(), &all), None, "{source}");
        }
        assert!(refused("tcp:[::2]:5", annotation(), &all).is_some());
    }
}
