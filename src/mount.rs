//! `berm mount`: a mount for a container that runs.

use std::path::PathBuf;

use berm_sandbox::Config;
use berm_sandbox::urpc::Empty;
use serde_json::json;

use crate::error::{Error, io};
use crate::find::Target;

/// Mounts a directory or file of the host, or a new tmpfs, into a running container
///
/// What is mounted has the ids of the pod, and is gone with the container. What is missing of the
/// destination is made.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Path of the host; of a tmpfs any word
    source: PathBuf,
    /// Absolute path in the container
    destination: PathBuf,
    /// bind or tmpfs
    #[arg(short, long, default_value = "bind")]
    r#type: String,
    /// Comma separated, as in a spec: ro, nosuid, nodev, noexec, rbind, size=…
    #[arg(short, long, value_delimiter = ',')]
    options: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm mount shop/web ./debug /debug -o ro,nosuid,nodev
  berm mount 3f2a tmpfs /scratch -t tmpfs -o size=64m";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let id = target.id();
    let source = match &*args.r#type {
        "tmpfs" => args.source.clone(),
        _ => std::path::absolute(&args.source).map_err(io("getcwd()"))?,
    };
    let arg = json!({"ContainerID": id, "FsType": args.r#type, "Source": source,
        "Destination": args.destination, "Options": args.options});
    let mut client = target.pod.connect()?;
    let (Empty {}, _) = client.call("containerManager.Mount", &arg, &[])?;
    if args.json {
        println!("{}", json!({"id": id, "destination": args.destination}));
    }
    Ok(())
}
