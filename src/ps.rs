//! `berm ps`: what runs in a sandbox.

use berm_sandbox::Config;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::Error;
use crate::find::Target;
use crate::table::{short, table};

/// Lists the processes of a container, or of all containers of a sandbox
///
/// PID, PPID and UID are as the container sees them, HOSTPID as the host does.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Process {
    uid: u32,
    pid: i32,
    ppid: i32,
    threads: Vec<i32>,
    c: u64,
    tty: String,
    stime: String,
    time: String,
    cmd: String,
    host_pid: i32,
}

const EXAMPLES: &str = "\
Examples:
  berm ps shop/web
  berm ps 3f2a --json | jq '.[].host_pid'";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let ids = match &target.container {
        Some(id) => vec![id.clone()],
        None => target.pod.containers.iter().map(|c| c.id.clone()).collect(),
    };
    let mut client = target.pod.connect()?;
    let mut found: Vec<(String, Process)> = Vec::new();
    for id in ids {
        let (all, _) = client.call("containerManager.Processes", &id, &[])?;
        let all: Vec<Process> = all;
        found.extend(all.into_iter().map(|process| (id.clone(), process)));
    }
    if args.json {
        let json = |(id, process): &(String, Process)| {
            let mut value = json!(process);
            value["container"] = json!(id);
            value
        };
        let all: Vec<_> = found.iter().map(json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let row = |(id, p): &(String, Process)| {
        [
            short(id).to_owned(),
            p.uid.to_string(),
            p.pid.to_string(),
            p.ppid.to_string(),
            p.host_pid.to_string(),
            p.c.to_string(),
            p.tty.clone(),
            p.stime.clone(),
            p.time.clone(),
            p.cmd.clone(),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    let head = [
        "CONTAINER",
        "UID",
        "PID",
        "PPID",
        "HOSTPID",
        "C",
        "TTY",
        "STIME",
        "TIME",
        "CMD",
    ];
    print!("{}", table(head, &rows));
    Ok(())
}
