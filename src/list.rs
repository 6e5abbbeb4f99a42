//! `berm list`: every sandbox of the node.

use berm_sandbox::Config;
use serde_json::{Value, json};

use crate::error::Error;
use crate::find::Pod;
use crate::table::{age, short, table};

/// Lists all sandboxes by their records
///
/// STATE is `running`, `orphaned` (the process that serves the sandbox is gone) or `gone` (only
/// the record is left).
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm list
  berm list --json | jq -r '.[] | select(.state == \"orphaned\") | .id'";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let pods = Pod::all(config)?;
    if args.json {
        let all: Vec<Value> = pods.iter().map(json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let rows: Vec<_> = pods.iter().map(row).collect();
    let head = ["ID", "POD", "PID", "STATE", "UPTIME", "CONTAINERS"];
    print!("{}", table(head, &rows));
    Ok(())
}

fn row(pod: &Pod) -> [String; 6] {
    let or_dash = |text: String| if text.is_empty() { "-".into() } else { text };
    let containers: Vec<_> = pod.containers.iter().map(|c| short(&c.id)).collect();
    [
        short(&pod.record.id).to_owned(),
        or_dash(pod.name()),
        pod.record.pid.to_string(),
        pod.state().to_owned(),
        or_dash(pod.uptime().map_or_else(String::new, age)),
        or_dash(containers.join(",")),
    ]
}

/// A sandbox as `list` and `state` print it.
pub(crate) fn json(pod: &Pod) -> Value {
    json!({
        "id": pod.record.id,
        "containerdNamespace": pod.record.containerd_namespace,
        "podNamespace": pod.record.namespace,
        "podName": pod.record.pod_name,
        "pid": pod.record.pid,
        "state": pod.state(),
        "uptimeSeconds": pod.uptime(),
        "containers": pod.containers.iter().map(|c| &c.id).collect::<Vec<_>>(),
    })
}
