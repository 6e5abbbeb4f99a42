//! The README's table of what the pods show. The pods say what is to be expected on Berm and on
//! runc; a run that passes makes it true.

use super::Pod;
use super::data::{Area, Outcome};
use crate::readme::Table;

impl Area {
    fn title(self) -> &'static str {
        match self {
            Self::Life => "Life of pods and containers",
            Self::Streams => "exec, attach, logs, port-forward",
            Self::Process => "Arguments, environment, users",
            Self::Namespaces => "Namespaces, user namespaces, host pods",
            Self::Privileges => "Capabilities, seccomp, masked paths",
            Self::Images => "Images and root file systems",
            Self::Volumes => "Volumes",
            Self::Devices => "Devices",
            Self::Network => "Network, names, sysctls",
            Self::Resources => "Resources and figures",
            Self::Hooks => "Hooks",
            Self::Node => "The node's own tools",
            Self::Specs => "OCI specs",
            Self::Other => "Other",
        }
    }
}

/// The table of `pods`.
pub(super) fn of(pods: &[Pod]) -> Table {
    let mut areas: Vec<Area> = pods.iter().map(|pod| pod.expect.area).collect();
    areas.sort_unstable();
    areas.dedup();
    let mut text = String::from(
        "| Area | Same as runc | Better | Refused | Not yet |\n|---|---|---|---|---|\n",
    );
    for area in areas {
        let cell = |outcome| cell(pods, area, outcome);
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            area.title(),
            cell(Outcome::Same),
            cell(Outcome::Better),
            cell(Outcome::Refused),
            cell(Outcome::NotYet),
        );
    }
    Table { name: "pods", text }
}

fn cell(pods: &[Pod], area: Area, outcome: Outcome) -> String {
    let of_cell = pods
        .iter()
        .filter(|pod| pod.expect.area == area && pod.expect.outcome == outcome);
    let words = of_cell.map(|pod| match outcome {
        Outcome::Same => format!("`{}`", pod.name),
        _ => format!("`{}` ({})", pod.name, pod.expect.why),
    });
    words.collect::<Vec<_>>().join(", ")
}
