//! `Logging.Change`

use std::collections::BTreeMap;

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply, decode};
use log::LevelFilter;
use serde::Deserialize;
use serde_json::Value;

use crate::change_logging::LogChange;
use crate::live::Sandbox;

/// Targets of one call.
const MAX_TARGETS: usize = 64;
/// Bytes of one.
const MAX_TARGET: usize = 128;

/// gVisor's `LoggingArgs`; each `Set…` says that what follows it counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct ChangeArgs {
    set_level: bool,
    /// 0 warning, 1 info, 2 debug.
    level: u32,
    /// Berm's addition: levels by target, in words.
    set_targets: bool,
    targets: Option<BTreeMap<String, String>>,
    set_log_packets: bool,
    set_strace: bool,
    set_event_strace: bool,
    // Sent by gVisor's client beside each call.
    #[serde(rename = "LogPackets")]
    _log_packets: Value,
    #[serde(rename = "EnableStrace")]
    _enable_strace: Value,
    #[serde(rename = "StraceAllowlist")]
    _strace_allowlist: Value,
    #[serde(rename = "EnableEventStrace")]
    _enable_event_strace: Value,
    #[serde(rename = "StraceEventAllowlist")]
    _strace_event_allowlist: Value,
}

impl ChangeArgs {
    fn change(self) -> Result<LogChange, CallError> {
        let foreign = [
            ("SetLogPackets", self.set_log_packets),
            ("SetStrace", self.set_strace),
            ("SetEventStrace", self.set_event_strace),
        ];
        if let Some((key, _)) = foreign.iter().find(|(_, set)| *set) {
            let text = format!(
                "{key}: packets and system calls of a pod pass through the host's kernel, not \
                 through this process; use the host's tools"
            );
            return Err(CallError::new(ErrorKind::NotSupported, text));
        }
        Ok(LogChange {
            level: self.set_level.then(|| level(self.level)).transpose()?,
            targets: match self.set_targets {
                true => Some(targets(self.targets.unwrap_or_default())?),
                false => None,
            },
        })
    }
}

fn invalid(text: String) -> CallError {
    CallError::new(ErrorKind::InvalidArgument, text)
}

fn level(number: u32) -> Result<LevelFilter, CallError> {
    match number {
        0 => Ok(LevelFilter::Warn),
        1 => Ok(LevelFilter::Info),
        2 => Ok(LevelFilter::Debug),
        other => Err(invalid(format!(
            "Level: {other} is none of 0 warning, 1 info, 2 debug"
        ))),
    }
}

fn targets(named: BTreeMap<String, String>) -> Result<Vec<(String, LevelFilter)>, CallError> {
    if named.len() > MAX_TARGETS {
        let count = named.len();
        return Err(invalid(format!(
            "Targets: {count}, of {MAX_TARGETS} at most"
        )));
    }
    let target = |(target, word): (String, String)| {
        if target.is_empty() || target.len() > MAX_TARGET {
            return Err(invalid(format!(
                "Targets: a name of {} bytes, of {MAX_TARGET} at most",
                target.len()
            )));
        }
        let level = word.parse().map_err(|_| {
            let text = format!(
                "Targets: {target:?}: {word:?} is none of off, error, warn, info, debug, trace"
            );
            invalid(text)
        })?;
        Ok((target, level))
    };
    named.into_iter().map(target).collect()
}

impl Sandbox {
    pub(super) fn control_logging(&self, arg: Value) -> Result<Reply, CallError> {
        let change = decode::<ChangeArgs>(arg)?.change()?;
        self.change_logging(&change)?;
        // gVisor's own answer.
        Reply::of(&0)
    }
}
