//! `berm delete`: ends a sandbox or a container, or removes what is left of one.

use berm_sandbox::Config;
use berm_sandbox::urpc::{self, Empty};
use serde_json::json;

use crate::error::Error;
use crate::find::{Pod, Target};
use crate::progress::Progress;

/// Kills a sandbox or container and removes everything of it
///
/// Of a sandbox whose shim is gone (`orphaned` or `gone` in berm list) it kills what still runs
/// and removes cgroups, records and mounts; nothing else is needed then. One whose shim runs is
/// containerd's as a rule, which does not expect it to go: it is deleted only with --force.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Delete it although its shim runs
    #[arg(long, short)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm delete 3f2a
  berm delete k8s-old/web --json
  berm delete --force shop/web";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let id = target.id().to_owned();
    let mut progress = Progress::new(args.json);
    progress.show(&format!("deleting {id}"));
    match target.pod.state() {
        "running" => destroy(&target.pod, &id, args.force)?,
        _ => {
            let namespace = &target.pod.record.containerd_namespace;
            // A container has nobody either who could delete it alone.
            berm_sandbox::cleanup(config, namespace, &target.pod.record.id)?;
        }
    }
    progress.clear();
    if args.json {
        println!("{}", json!({"id": id, "deleted": true}));
    }
    Ok(())
}

fn destroy(pod: &Pod, id: &str, force: bool) -> Result<(), Error> {
    if !force {
        return Err(Error::Served {
            id: id.to_owned(),
            owner: pod.record.owner.pid,
        });
    }
    let destroyed =
        pod.connect()?
            .call::<_, Empty>("containerManager.DestroySubcontainer", id, &[]);
    match destroyed {
        // Its socket went with it, and the reply.
        Err(urpc::Error::Closed { .. }) if !pod.record.init().is_alive() => Ok(()),
        done => Ok(done.map(drop)?),
    }
}
