//! A snapshot as another process told it: read in place, nothing of it is kept.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::registration::Type;
use crate::snapshot::{Buckets, Number};

/// A [`Snapshot`](crate::Snapshot) whose texts lie in the JSON that it was read from.
#[derive(Debug, Default, Deserialize)]
pub struct Told<'a> {
    #[serde(default, borrow)]
    pub(crate) data: Vec<Row<'a>>,
}

impl Told<'_> {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.data.len()
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Row<'a> {
    #[serde(borrow)]
    pub(crate) metric: Metric<'a>,
    #[serde(default, borrow)]
    pub(crate) labels: BTreeMap<Text<'a>, Text<'a>>,
    #[serde(default)]
    pub(crate) val: Option<Number>,
    #[serde(default)]
    pub(crate) histogram: Option<Buckets>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Metric<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
    pub(crate) r#type: Type,
}

/// A text, copied only if the JSON had escapes in it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
