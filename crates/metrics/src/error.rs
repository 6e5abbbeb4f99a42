//! What can be wrong with what is asked.

use berm_sys::Kind;

/// A request for metrics that cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A filter that is no regular expression, or too large a one.
    #[error("only_metrics {pattern:?}: {reason}")]
    Filter {
        /// The filter, cut.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A filter that none of the registered names matches.
    #[error("only_metrics {pattern:?}: no metric of that name is registered")]
    NoMatch {
        /// The filter.
        pattern: String,
    },
    /// Not an address to listen on.
    #[error("{text:?}: neither IP:PORT nor an absolute path")]
    Address {
        /// What was given.
        text: String,
    },
}

impl Error {
    /// What callers branch on.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Filter { .. } | Self::Address { .. } => Kind::InvalidArgument,
            Self::NoMatch { .. } => Kind::NotFound,
        }
    }
}
