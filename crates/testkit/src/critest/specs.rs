//! Ginkgo's JSON report, as far as it is read.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, file};

/// What became of a spec.
#[derive(Debug)]
pub(super) struct Spec {
    /// Its texts from the outermost in.
    pub(super) name: String,
    pub(super) time: Duration,
    /// `None`: it skipped itself.
    pub(super) result: Option<bool>,
    /// Why it failed or skipped itself.
    pub(super) words: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    run_time: u64,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
    #[serde(default)]
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Location {
    #[serde(default)]
    file_name: String,
    #[serde(default)]
    line_number: u64,
}

/// Reads the report; specs that a filter left out are not told of.
pub(super) fn read(path: &Path) -> Result<Vec<Spec>, Error> {
    let bytes = std::fs::read(path).map_err(file("read", path))?;
    let suites: Vec<Suite> = serde_json::from_slice(&bytes).map_err(|error| Error::Data {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    let rows = suites.into_iter().flat_map(|suite| suite.spec_reports);
    let mut specs: Vec<Spec> = rows.filter_map(Row::spec).collect();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(specs)
}

impl Row {
    fn spec(self) -> Option<Spec> {
        let result = match self.state.as_str() {
            "passed" => Some(true),
            "skipped" | "pending" => None,
            _ => Some(false),
        };
        // A node of the suite itself is of interest if it fails.
        let is_spec = self.leaf_node_type == "It";
        let left_out = result.is_none() && self.failure.message.is_empty();
        if left_out || (!is_spec && result != Some(false)) {
            return None;
        }
        let mut texts = self.container_hierarchy_texts.unwrap_or_default();
        texts.push(self.leaf_node_text);
        let name = texts.join(" ").replace("[k8s.io] ", "");
        let Failure { message, location } = self.failure;
        let words = match result {
            Some(false) => format!(
                "{}\nat {}:{}",
                said(&message),
                location.file_name,
                location.line_number
            ),
            _ => message,
        };
        Some(Spec {
            name,
            time: Duration::from_nanos(self.run_time),
            result,
            words,
        })
    }
}

/// Gomega's message without the Go values of an error whose text it gave already.
fn said(message: &str) -> &str {
    match message.split_once("\nUnexpected error:") {
        Some((text, _)) if !text.is_empty() => text,
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_once() {
        assert_eq!(
            said("no pod: why\nUnexpected error:\n  <...>"),
            "no pod: why"
        );
        assert_eq!(
            said("Expected\n  1\nto be\n  2"),
            "Expected\n  1\nto be\n  2"
        );
    }
}
