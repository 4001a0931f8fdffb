//! What is wrong with the annotations of a container, before there is one: whoever made them can still
//! correct them then.

use anyhow::{Context, Result};

use crate::choice::Choice;
use crate::container::{Bundle, Identity, Volumes};
use crate::policy::{self, parse_policies};
use crate::store::choices;
use crate::substitute::standing_rules;

/// Every annotation of ocicle's in a bundle that means nothing, with why.
pub fn mistakes(bundle: &Bundle) -> Vec<anyhow::Error> {
    let all: [Result<()>; 4] = [
        standing_rules(&Identity::default(), &[], bundle).map(drop),
        policies(bundle),
        choices::annotated(bundle).map(drop),
        Volumes::chosen(bundle, &Choice::by_default(Volumes::default())).map(drop),
    ];
    all.into_iter().filter_map(Result::err).collect()
}

fn policies(bundle: &Bundle) -> Result<()> {
    bundle.annotations(policy::ANNOTATION).into_iter().try_for_each(|(name, value)| {
        parse_policies(&value).map(drop).with_context(|| format!("annotation {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    fn mistakes_in(annotations: &[(&str, &str)]) -> Vec<String> {
        let mut spec = Spec::default();
        let map = annotations.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        spec.set_annotations(Some(map.collect()));
        let bundle = Bundle { directory: "/nowhere".into(), rootfs: "/nowhere".into(), spec };
        mistakes(&bundle).iter().map(|error| format!("{error:#}")).collect()
    }

    #[test]
    fn each_annotation_is_looked_at() {
        let good = [
            ("org.ocicle.substitute.log", "/log=null"),
            ("org.ocicle.policy", "missing=recreate"),
            ("org.ocicle.filesystem", "verify"),
            ("org.ocicle.volumes", "named"),
        ];
        assert_eq!(mistakes_in(&good), Vec::<String>::new());
        let bad = good.map(|(name, _)| (name, "nul"));
        let found = mistakes_in(&bad);
        assert_eq!(found.len(), 4, "{found:?}");
        for name in ["substitute.log", "policy", "filesystem", "volumes"] {
            assert!(found.iter().any(|text| text.contains(name)), "{name}: {found:?}");
        }
    }
}
