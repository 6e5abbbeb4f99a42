//! `berm usage`: what a pod's memory is used for.

use berm_sandbox::Config;
use serde_json::{Value, json};

use crate::error::Error;
use crate::find::Target;
use crate::table::table;

/// Shows what the memory of a pod is used for, in bytes
///
/// Sandbox is what the pod's PID 1 and its bookkeeping take; Unknown is what the kernel counts and
/// does not split.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a sandbox, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// gVisor's keys, and what people call it.
const USES: [(&str, &str); 9] = [
    ("Anonymous", "anonymous"),
    ("PageCache", "page cache"),
    ("Mapped", "mapped files"),
    ("Tmpfs", "tmpfs and shared"),
    ("System", "kernel"),
    ("Ramdiskfs", "ramdisk"),
    ("Unknown", "unknown"),
    ("Sandbox", "sandbox"),
    ("Total", "TOTAL"),
];

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let pod = Target::find(config, &args.id)?.whole_pod()?;
    let (used, _): (Value, _) =
        pod.connect()?
            .call("Usage.Collect", &json!({"Full": true}), &[])?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&used)?);
        return Ok(());
    }
    let row = |(key, name): &(&str, &str)| {
        let bytes = used[*key].as_u64().unwrap_or_default();
        (bytes > 0 || *key == "Total").then(|| [(*name).to_owned(), bytes.to_string()])
    };
    let rows: Vec<_> = USES.iter().filter_map(row).collect();
    print!("{}", table(["MEMORY", "BYTES"], &rows));
    Ok(())
}
