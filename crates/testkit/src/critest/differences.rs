//! Specs that a runtime is known not to pass, with the reason: `test-pods/critest.toml`.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, file};
use crate::suite::Runtime;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    difference: Vec<Difference>,
}

/// One of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Difference {
    /// The spec's whole name.
    pub(super) spec: String,
    pub(super) runtime: String,
    pub(super) why: String,
}

impl Difference {
    pub(super) fn is_of(&self, runtime: Runtime, spec: &str) -> bool {
        self.runtime == runtime.handler() && self.spec == spec
    }
}

pub(super) fn load(path: &Path) -> Result<Vec<Difference>, Error> {
    let text = std::fs::read_to_string(path).map_err(file("read", path))?;
    let read: File = toml::from_str(&text).map_err(|error| Error::Data {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    Ok(read.difference)
}
