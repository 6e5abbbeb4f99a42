//! gVisor's uRPC, the wire of a sandbox's control socket: client and server.
//!
//! The socket is a pathname `AF_UNIX SOCK_STREAM`. A message is one JSON object without a length
//! header; file descriptors travel by `SCM_RIGHTS` on its first byte, at most [`MAX_FDS`].
//!
//! | | |
//! |---|---|
//! | request | `{"method":"containerManager.Processes","arg":"c1"}` |
//! | reply | `{"success":true,"err":"","result":{}}` |
//! | failure | `{"success":false,"err":"container \"c1\" not found","kind":"NotFound","result":null}` |
//!
//! `kind` is Berm's addition, so that an error keeps its [`Kind`](berm_sys::Kind) across the
//! socket; gVisor's clients ignore it. One call is in flight per connection.
//!
//! What comes from the socket is trusted by neither side: size, depth and number of values are
//! bounded by a scanner ([`Limits`]) before anything is parsed, descriptors before they are
//! installed, and every wait but the one for a call's result has a deadline. The server is stricter
//! than gVisor's (unknown keys are refused) and keeps what gVisor loses: requests written in one go
//! are answered one after another, each with its own descriptors.
//!
//! ```no_run
//! use std::{os::fd::OwnedFd, path::Path, rc::Rc};
//! use berm_urpc::{CallError, Client, Dispatch, Reply, Server, bind, decode};
//! use serde_json::Value;
//!
//! struct Echo;
//! impl Dispatch for Echo {
//!     async fn call(&self, method: &str, arg: Value, fds: Vec<OwnedFd>) -> Result<Reply, CallError> {
//!         match method {
//!             "Echo.Text" => Ok(Reply::of(&decode::<String>(arg)?)?.donate(fds)),
//!             _ => Err(CallError::unknown_method()),
//!         }
//!     }
//! }
//!
//! # async fn serve() -> Result<(), berm_urpc::Error> {
//! let path = Path::new("/run/berm/k8s.io/ab12/control.sock");
//! // In a tokio LocalSet:
//! let never = Server::new(bind(path)?, Rc::new(Echo))?.serve().await?;
//! # match never {} }
//! # fn call() -> Result<(), berm_urpc::Error> {
//! # let path = Path::new("/run/berm/k8s.io/ab12/control.sock");
//! // In any other process:
//! let (text, _fds): (String, _) = Client::connect(path)?.call("Echo.Text", "hello", &[])?;
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod address;
mod asynchronous;
mod client;
mod connection;
mod dispatch;
mod envelope;
mod error;
#[cfg(test)]
mod mutation;
mod recv;
mod scan;
mod send;
mod server;
mod text;

pub use address::bind;
pub use asynchronous::{AsyncClient, RawReply};
pub use client::Client;
pub use dispatch::{CallError, Dispatch, Empty, Reply, decode};
pub use error::{Error, Malformed};
pub use scan::Limits;
pub use server::{Bounds, Server};

/// Most file descriptors that one message may carry: gVisor's figure.
pub const MAX_FDS: usize = 128;
