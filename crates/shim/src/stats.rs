//! Figures of a cgroup → containerd's metrics.
//!
//! A sub-message is there whole or not at all: its readers take `cpu.usage` and `memory.usage`
//! for granted once they see `cpu` and `memory`. What is absent makes a row vanish, no more.

mod v1;
mod v2;

use berm_sandbox::Stats;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::error::Error;

/// The answer to Stats.
/// # Errors
/// `Internal` if protobuf fails.
pub(crate) fn metrics(stats: Stats) -> Result<Any, Error> {
    let (type_url, value) = match stats {
        Stats::V1(stats) => (
            "io.containerd.cgroups.v1.Metrics",
            v1::metrics(*stats).write_to_bytes(),
        ),
        Stats::V2(stats) => (
            "io.containerd.cgroups.v2.Metrics",
            v2::metrics(*stats).write_to_bytes(),
        ),
    };
    Ok(Any {
        type_url: type_url.into(),
        value: value.map_err(|source| Error::Encode {
            what: "Metrics",
            source,
        })?,
        ..Any::default()
    })
}

fn field<T>(value: Option<T>) -> MessageField<T> {
    MessageField(value.map(Box::new))
}
