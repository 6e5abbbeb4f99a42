//! `Metrics.GetRegisteredMetrics` and `Metrics.Export`

use berm_metrics::{Registration, Snapshot};
use berm_urpc::{CallError, Reply, decode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answer, nothing};
use crate::live::Sandbox;

/// gVisor's `MetricsExportOpts`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ExportOpts {
    /// A regular expression; only the metrics whose names it matches.
    only_metrics: String,
}

#[derive(Serialize)]
struct Registered<'a> {
    #[serde(rename = "RegisteredMetrics")]
    registered: &'a Registration,
}

#[derive(Serialize)]
struct Exported {
    snapshot: Snapshot,
}

impl Sandbox {
    pub(super) fn control_metrics(&self, name: &str, arg: Value) -> Answer {
        match name {
            "GetRegisteredMetrics" => Some(self.control_registered_metrics(arg)),
            "Export" => Some(self.control_export_metrics(arg)),
            _ => None,
        }
    }

    fn control_registered_metrics(&self, arg: Value) -> Result<Reply, CallError> {
        nothing(arg)?;
        let registered = self.registered_metrics()?;
        Reply::of(&Registered { registered })
    }

    fn control_export_metrics(&self, arg: Value) -> Result<Reply, CallError> {
        let opts = match arg {
            Value::Null => ExportOpts::default(),
            arg => decode(arg)?,
        };
        let snapshot = self.export_metrics(&opts.only_metrics)?;
        Reply::of(&Exported { snapshot })
    }
}
