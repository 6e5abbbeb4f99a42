//! `berm cgroup`: one file of a container's cgroup.

use berm_sandbox::Config;
use serde_json::{Value, json};

use crate::error::Error;
use crate::find::Target;

/// Reads or writes one file of a container's cgroup
///
/// Files that move, stop or end processes cannot be written. On cgroup v2 any controller's name
/// leads to the same directory.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Controller: memory, cpu, pids …
    controller: String,
    /// Name of the file
    file: String,
    /// What to write; without it the file is read
    value: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm cgroup shop/web memory memory.stat
  berm cgroup 3f2a pids pids.max 200";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let id = target.id();
    let mut arg = json!({"file": {
        "controller": args.controller, "path": format!("/{id}"), "name": args.file,
    }});
    let method = match &args.value {
        Some(value) => {
            arg["value"] = json!(value);
            "Cgroups.WriteControlFiles"
        }
        None => "Cgroups.ReadControlFiles",
    };
    let mut client = target.pod.connect()?;
    let (done, _): (Value, _) = client.call(method, &json!({"args": [arg]}), &[])?;
    let result = &done["results"][0];
    let value = result["value"].as_str().unwrap_or_default();
    if result["is_error"] == true {
        return Err(Error::Told(value.to_owned()));
    }
    match (args.json, &args.value) {
        (true, _) => println!("{}", json!({"id": id, "file": args.file, "value": value})),
        (false, Some(_)) => {}
        (false, None) => println!("{value}"),
    }
    Ok(())
}
