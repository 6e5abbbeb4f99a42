//! Metrics of a sandbox: what it registers at its birth, the snapshots that it exports later, the
//! check of each snapshot against the registration, and Prometheus text.
//!
//! JSON has gVisor's keys (`pkg/metric`, `pkg/prometheus`), so that a metric server for the one
//! understands the other. Deliberately different: a metric's name on the wire is the whole name
//! that Prometheus sees, `berm_` included, so a filter is written as a query is; the last bucket
//! of a histogram has `le` 9223372036854775807, because JSON has no infinity; a field without
//! allowed values takes any value of at most [`MAX_LABEL`] bytes.
#![forbid(unsafe_code)]

mod address;
mod error;
mod filter;
mod histogram;
mod registration;
mod snapshot;
mod text;
mod told;
mod verify;

pub use address::Address;
pub use error::Error;
pub use filter::Filter;
pub use histogram::Histogram;
pub use registration::{Definition, Field, Label, Metadata, Registration, Type};
pub use snapshot::{Bucket, Buckets, Data, Metric, Number, Snapshot, rfc3339};
pub use text::Page;
pub use told::Told;
pub use verify::Verifier;

/// Longest value of a label, in bytes.
pub const MAX_LABEL: usize = 128;
