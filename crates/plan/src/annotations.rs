//! Annotations `dev.berm.*`: what a pod may override of the configuration, where that lists it.

use crate::hints;
use crate::refusal::{Error, invalid, quoted, unsupported};
use crate::spec::Spec;

const PREFIX: &str = "dev.berm.";
const USERNS: &str = "dev.berm.userns";

/// What the annotations of a spec override.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// `dev.berm.userns`: true for `host`, false for `auto`.
    pub(crate) host_users: Option<bool>,
}

impl Overrides {
    /// Reads them. One that is not followed would be dropped silently otherwise, so each is either
    /// known and allowed, or refused.
    pub(crate) fn parse(spec: &Spec, allowed: &[String]) -> Result<Self, Error> {
        let Some(map) = spec.oci.annotations() else {
            return Ok(Self::default());
        };
        let mut ours: Vec<_> = map
            .iter()
            .filter(|(key, _)| key.starts_with(PREFIX) && !key.starts_with(hints::OURS))
            .collect();
        ours.sort();
        let mut overrides = Self::default();
        for (key, value) in ours {
            let field = format!("annotations[{}]", quoted(key));
            if key != USERNS {
                return Err(invalid(field, "no annotation of Berm", "drop it"));
            }
            if !allowed.contains(key) {
                let way_out = "list it in allow_annotations of Berm's configuration, or drop it";
                return Err(unsupported(field, "not allowed on this node", way_out));
            }
            overrides.host_users = Some(match value.as_str() {
                "host" => true,
                "auto" => false,
                other => {
                    let reason = format!("{} is neither \"host\" nor \"auto\"", quoted(other));
                    return Err(invalid(field, reason, "use one of the two"));
                }
            });
        }
        Ok(overrides)
    }
}
