//! `berm metrics`: the figures of one sandbox, as it tells them to the metric server.

use berm_sandbox::Config;
use serde_json::{Value, json};

use crate::error::Error;
use crate::find::Target;

/// Prints the metrics of one sandbox as JSON
///
/// Only sandboxes made while the configuration has `metric_server` have any.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Only metrics whose names match this regular expression
    #[arg(long, default_value = "")]
    only: String,
    /// What was registered at its birth, instead of figures: names, types, help
    #[arg(long, conflicts_with = "only")]
    registered: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm metrics shop/web --only '^berm_container_memory'
  berm metrics shop/web --registered";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let pod = Target::find(config, &args.id)?.whole_pod()?;
    let mut client = pod.connect()?;
    let (told, _): (Value, _) = match args.registered {
        true => client.call("Metrics.GetRegisteredMetrics", &json!({}), &[])?,
        false => client.call("Metrics.Export", &json!({"only_metrics": args.only}), &[])?,
    };
    println!("{}", serde_json::to_string_pretty(&told)?);
    Ok(())
}
