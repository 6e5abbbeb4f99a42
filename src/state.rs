//! `berm state`: one sandbox and its containers.

use berm_sandbox::{Config, Record};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::Error;
use crate::find::{Pod, Target};
use crate::table::{age, table};

/// Shows one sandbox and the state of its containers
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// As the control socket's `berm.State` answers it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    id: String,
    pid: i32,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    exit_status: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  berm state shop/web
  berm state 3f2a --json | jq .isolation";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let pod = &target.pod;
    let containers = containers(pod)?;
    if args.json {
        let mut all = crate::list::json(pod);
        let record = &pod.record;
        all["containers"] = json!(containers);
        all["bundle"] = json!(record.bundle);
        all["owner"] = json!(record.owner.pid);
        all["controlSocketPath"] = json!(record.control_socket_path);
        all["isolation"] = json!(record.isolation);
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    print!("{}", text(pod));
    let row = |c: &Container| {
        let exit = c.exit_status.map_or("-".into(), |code| code.to_string());
        [c.id.clone(), c.pid.to_string(), c.status.clone(), exit]
    };
    let rows: Vec<_> = containers.iter().map(row).collect();
    print!("\n{}", table(["CONTAINER", "PID", "STATUS", "EXIT"], &rows));
    Ok(())
}

/// From the sandbox itself; by the records if nobody serves it.
fn containers(pod: &Pod) -> Result<Vec<Container>, Error> {
    if pod.state() == "running" {
        let (all, _) = pod.connect()?.call("berm.State", &json!({}), &[])?;
        return Ok(all);
    }
    let by_record = pod.containers.iter().map(|c| Container {
        id: c.id.clone(),
        pid: c.init.pid,
        status: if c.init.is_alive() { "alive" } else { "gone" }.to_owned(),
        exit_status: None,
    });
    Ok(by_record.collect())
}

fn text(pod: &Pod) -> String {
    let record = &pod.record;
    let mut lines = vec![("id", record.id.clone())];
    if !pod.name().is_empty() {
        lines.push(("pod", pod.name()));
    }
    lines.push(("namespace", record.containerd_namespace.clone()));
    lines.push(("state", pod.state().to_owned()));
    lines.extend(pod.uptime().map(|seconds| ("uptime", age(seconds))));
    lines.push((
        "pid",
        format!("{} (served by {})", record.pid, record.owner.pid),
    ));
    lines.push(("isolation", isolation(record)));
    lines.push(("bundle", record.bundle.display().to_string()));
    lines.push(("socket", record.control_socket_path.display().to_string()));
    let line = |(key, value): &(&str, String)| format!("{key:<10} {value}\n");
    lines.iter().map(line).collect()
}

fn isolation(record: &Record) -> String {
    if let Some(because) = &record.isolation.because {
        let shared = match &*record.isolation.host_namespaces.join(", ") {
            "" => String::new(),
            names => format!("; the host's {names}"),
        };
        return format!("not a security boundary: no user namespace ({because}){shared}");
    }
    let uids = &record.isolation.ids.uids.0;
    let extents = uids.iter().map(|e| {
        let last = u64::from(e.outside) + u64::from(e.count) - 1;
        format!("{}-{last}", e.outside)
    });
    let extents: Vec<_> = extents.collect();
    format!(
        "user namespace ({}), ids {} on the host",
        record.isolation.userns,
        extents.join(", ")
    )
}
