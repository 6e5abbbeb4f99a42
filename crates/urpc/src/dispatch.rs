//! What a server's owner writes: one function from method name to reply.

use std::future::Future;
use std::os::fd::OwnedFd;

use berm_sys::Kind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Answers the calls of all connections of a [`Server`](crate::Server).
///
/// A call runs to its end even if its client vanishes, in a local task of its own; a deadline is
/// the implementation's matter.
pub trait Dispatch {
    /// Runs `method`. `arg` is `null` if the client sent none; `fds` are closed unless kept.
    fn call(
        &self,
        method: &str,
        arg: Value,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Reply, CallError>>;
}

/// What a successful call returns.
#[derive(Debug)]
pub struct Reply {
    /// The value of the key `result`.
    pub result: Value,
    /// Descriptors that go with it, at most [`MAX_FDS`](crate::MAX_FDS); closed once sent.
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// The reply of a call without a result: `{}`.
    pub fn empty() -> Self {
        Self {
            result: Value::Object(serde_json::Map::new()),
            fds: Vec::new(),
        }
    }

    /// A reply with `result` as JSON.
    /// # Errors
    /// [`Kind::Internal`] if `result` has no JSON form, such as a map with keys that are no text.
    pub fn of<T: Serialize + ?Sized>(result: &T) -> Result<Self, CallError> {
        match serde_json::to_value(result) {
            Ok(result) => Ok(Self {
                result,
                fds: Vec::new(),
            }),
            Err(error) => Err(CallError::new(Kind::Internal, format!("result: {error}"))),
        }
    }

    /// Gives `fds` to the client.
    #[must_use]
    pub fn donate(mut self, fds: Vec<OwnedFd>) -> Self {
        self.fds.extend(fds);
        self
    }
}

/// Why a call failed, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    /// The value of the key `kind`.
    pub kind: Kind,
    /// The value of the key `err`.
    pub text: String,
}

impl CallError {
    /// A failure of `kind` with `text` for people.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// The answer to a name that no method has, in gVisor's words, on which its clients match.
    pub fn unknown_method() -> Self {
        Self::new(Kind::NotSupported, "unknown method")
    }
}

/// Turns a call's argument into its type.
/// # Errors
/// [`Kind::InvalidArgument`] with the parser's words.
pub fn decode<T: DeserializeOwned>(arg: Value) -> Result<T, CallError> {
    serde_json::from_value(arg)
        .map_err(|error| CallError::new(Kind::InvalidArgument, format!("arg: {error}")))
}

/// `{}`: the argument or the result of a method that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}
