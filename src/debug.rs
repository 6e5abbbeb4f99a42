//! `berm debug`: what a pod does at this moment, for people who look for a hang.

use berm_sandbox::Config;
use serde_json::{Value, json};

use crate::error::Error;
use crate::find::Target;

/// Prints what every thread of a pod does, for who looks for a hang
///
/// First what the pod's shim is busy with: the calls that it has not answered and the children
/// that it works with, each since when. Then of each container every thread's state, system call
/// and kernel stack. With --proc what /proc says of every process instead, as JSON: program, arguments,
/// environment, open files, limits, cgroups, mappings. All is read from the host's side; no
/// process of the pod is stopped or asked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print what /proc says of every process, as JSON
    #[arg(long)]
    proc: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm debug shop/web
  berm debug shop/web --proc | jq '.[] | {args, fdlist}'";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let pod = Target::find(config, &args.id)?.whole_pod()?;
    let mut client = pod.connect()?;
    if args.proc {
        let (all, _): (Value, _) = client.call("containerManager.ProcfsDump", &(), &[])?;
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let (states, _): (Value, _) = client.call("berm.State", &(), &[])?;
    let (stacks, _): (String, _) = client.call("debug.Stacks", &(), &[])?;
    if args.json {
        let all = json!({"id": pod.record.id, "containers": states, "stacks": stacks});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    for state in states.as_array().into_iter().flatten() {
        let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
        println!("{} {} (pid {})", text("id"), text("status"), state["pid"]);
    }
    print!("\n{stacks}");
    Ok(())
}
