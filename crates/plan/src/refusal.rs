//! Why a spec is not run: field, reason and way out, in one line.

use berm_sys::Kind;

/// A spec, a process or a list of mounts that Berm does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The document is not what its type says: broken JSON, a wrong type, a missing field.
    #[error("{document}: {at}{reason} (line {line}, column {column})")]
    Json {
        /// `config.json`, `process` or `resources`.
        document: &'static str,
        /// Path of the field and a colon, or nothing.
        at: String,
        /// The parser's reason.
        reason: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1; 0 if the parser does not know.
        column: usize,
    },
    /// The document is longer than a parser should have to read.
    #[error("{document}: {bytes} bytes are more than the {max} that Berm reads; make it smaller")]
    TooLong {
        /// `config.json`, `process` or `resources`.
        document: &'static str,
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The field is wrong, whoever runs it.
    #[error("{field}: {reason}; {way_out}")]
    Invalid {
        /// Path of the field in the spec.
        field: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        way_out: String,
    },
    /// The field asks for what this version, or a pod of this kind, does not do.
    #[error("{field}: {reason}; {way_out}")]
    NotSupported {
        /// Path of the field in the spec.
        field: String,
        /// Why it is not done.
        reason: String,
        /// What to do instead.
        way_out: String,
    },
}

impl Error {
    /// [`Kind::InvalidArgument`] for what is wrong in itself, [`Kind::NotSupported`] otherwise.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Json { .. } | Self::TooLong { .. } | Self::Invalid { .. } => {
                Kind::InvalidArgument
            }
            Self::NotSupported { .. } => Kind::NotSupported,
        }
    }
}

impl Error {
    /// The same of a thing that stands alone: its fields do not begin with `prefix`.
    pub(crate) fn outside_of(mut self, prefix: &str) -> Self {
        if let Self::Invalid { field, .. } | Self::NotSupported { field, .. } = &mut self
            && let Some(alone) = field.strip_prefix(prefix)
        {
            *field = alone.to_owned();
        }
        self
    }
}

/// A field that is wrong in itself.
pub(crate) fn invalid(
    field: impl Into<String>,
    reason: impl Into<String>,
    way_out: impl Into<String>,
) -> Error {
    Error::Invalid {
        field: field.into(),
        reason: reason.into(),
        way_out: way_out.into(),
    }
}

/// A field that Berm does not apply.
pub(crate) fn unsupported(
    field: impl Into<String>,
    reason: impl Into<String>,
    way_out: impl Into<String>,
) -> Error {
    Error::NotSupported {
        field: field.into(),
        reason: reason.into(),
        way_out: way_out.into(),
    }
}

/// This version, for the texts of refusals.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A text of the spec as it may stand in an error: escaped, quoted, cut after 64 characters.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("\"{}…\"", text[..end].escape_debug()),
        None => format!("\"{}\"", text.escape_debug()),
    }
}

/// Refuses a text that the kernel would cut at its first NUL byte.
pub(crate) fn no_nul(field: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(invalid(field, "holds a NUL byte", "remove it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_the_spec_is_escaped_and_cut() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"x".repeat(65)).chars().count(), 67);
    }
}
