//! Which metrics an export is about.

use regex_lite::{Regex, RegexBuilder};

use crate::Error;

/// Longest filter.
const MAX_PATTERN: usize = 1024;
/// Most memory of a compiled filter, in bytes.
const MAX_COMPILED: usize = 64 << 10;
/// Characters of a pattern that an error repeats.
const QUOTE: usize = 128;

/// Chooses metrics by name: an unanchored regular expression, in time linear to the name; the
/// empty one, or none, chooses all.
#[derive(Debug)]
pub struct Filter(Option<Regex>);

impl Filter {
    /// Compiles a filter.
    /// # Errors
    /// [`Error::Filter`] with the pattern and the reason.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        if pattern.is_empty() {
            return Ok(Self(None));
        }
        let refused = |reason: String| Error::Filter {
            pattern: pattern.chars().take(QUOTE).collect(),
            reason,
        };
        if pattern.len() > MAX_PATTERN {
            return Err(refused(format!("is longer than {MAX_PATTERN} bytes")));
        }
        let regex = RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build();
        regex
            .map(|regex| Self(Some(regex)))
            .map_err(|e| refused(e.to_string()))
    }

    /// Whether it chooses a metric of this name.
    pub fn matches(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|regex| regex.is_match(name))
    }

    /// Checks that it chooses one of `names`.
    /// # Errors
    /// [`Error::NoMatch`].
    pub fn check<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let Some(regex) = &self.0 else { return Ok(()) };
        match names.any(|name| regex.is_match(name)) {
            true => Ok(()),
            false => Err(Error::NoMatch {
                pattern: regex.as_str().chars().take(QUOTE).collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use berm_sys::Kind;

    use super::*;

    #[test]
    fn an_empty_filter_chooses_all_and_another_what_it_matches() {
        assert!(Filter::new("").unwrap().matches("x"));
        let filter = Filter::new("^berm_(cpu|memory)").unwrap();
        assert!(filter.matches("berm_cpu_seconds_total") && !filter.matches("berm_pids"));
    }

    #[test]
    fn what_is_no_regular_expression_or_too_large_is_refused_by_its_name() {
        let long = "x".repeat(MAX_PATTERN + 1);
        for bad in ["(", "a{9999}{9999}", "(?P<", &long] {
            let e = Filter::new(bad).unwrap_err();
            assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
            assert!(e.to_string().contains(&bad[..1]), "{e}");
            assert!(e.to_string().len() < 400, "{e}");
        }
    }

    #[test]
    fn a_filter_for_what_is_not_registered_is_refused_by_its_name() {
        let filter = Filter::new("^nope$").unwrap();
        let e = filter.check(["a", "b"].into_iter()).unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound);
        assert!(e.to_string().contains("^nope$"), "{e}");
        assert_eq!(filter.check(["nope"].into_iter()), Ok(()));
    }
}
