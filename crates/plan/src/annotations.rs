//! Annotations `dev.berm.*`: what a pod may override of the configuration, where that lists it.

use crate::hints;
use crate::refusal::{Error, invalid, quoted, unsupported};
use crate::spec::Spec;
use crate::upper::{Medium, RootfsUpper};

const PREFIX: &str = "dev.berm.";
const USERNS: &str = "dev.berm.userns";
const ROOTFS_UPPER: &str = "dev.berm.rootfs_upper";

/// What the annotations of a spec override.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// `dev.berm.userns`: true for `host`, false for `auto`.
    pub(crate) host_users: Option<bool>,
    /// `dev.berm.rootfs_upper`
    pub(crate) rootfs_upper: Option<RootfsUpper>,
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
            if key != USERNS && key != ROOTFS_UPPER {
                return Err(invalid(field, "no annotation of Berm", "drop it"));
            }
            if !allowed.contains(key) {
                let way_out = "list it in allow_annotations of Berm's configuration, or drop it";
                return Err(unsupported(field, "not allowed on this node", way_out));
            }
            match key.as_str() {
                USERNS => overrides.host_users = Some(host_users(field, value)?),
                _ => overrides.rootfs_upper = Some(rootfs_upper(field, value)?),
            }
        }
        Ok(overrides)
    }
}

fn host_users(field: String, value: &str) -> Result<bool, Error> {
    match value {
        "host" => Ok(true),
        "auto" => Ok(false),
        other => {
            let reason = format!("{} is neither \"host\" nor \"auto\"", quoted(other));
            Err(invalid(field, reason, "use one of the two"))
        }
    }
}

fn rootfs_upper(field: String, value: &str) -> Result<RootfsUpper, Error> {
    let upper = value.parse::<RootfsUpper>().map_err(|e| {
        let reason = format!("{}: {e}", quoted(value));
        invalid(&field, reason, "use such as \"memory,size=64m\"")
    })?;
    match upper.medium {
        Medium::Dir(_) => Err(unsupported(
            field,
            "directories of the node are its operator's",
            "use memory or self, or rootfs_upper of Berm's configuration",
        )),
        _ => Ok(upper),
    }
}
