//! `berm log-level`: how much a pod's shim logs.

use std::collections::BTreeMap;

use berm_sandbox::Config;
use serde_json::{Value, json};

use crate::error::Error;
use crate::find::Target;

/// Changes how much the shim of a pod logs, until it ends
///
/// Its lines go to containerd's log.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// The level of all that is not named by --target
    level: Option<Level>,
    /// TARGET=LEVEL for one part, as in berm_sandbox::exits=trace; may be given several times. The
    /// levels: off, error, warn, info, debug, trace
    #[arg(long, value_parser = target)]
    target: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm log-level shop/web debug
  berm log-level shop/web --target berm_sandbox::exits=trace";

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Level {
    Warning,
    Info,
    Debug,
}

fn target(text: &str) -> Result<(String, String), String> {
    let (target, level) = text.split_once('=').ok_or("not TARGET=LEVEL")?;
    Ok((target.to_owned(), level.to_owned()))
}

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    if args.level.is_none() && args.target.is_empty() {
        return Err(Error::Argument {
            what: "log-level".into(),
            reason: "neither a level nor a target is given",
        });
    }
    let pod = Target::find(config, &args.id)?.whole_pod()?;
    let mut change = json!({});
    if let Some(level) = args.level {
        change["SetLevel"] = json!(true);
        change["Level"] = json!(level as u32);
    }
    if !args.target.is_empty() {
        let targets: BTreeMap<_, _> = args.target.iter().cloned().collect();
        change["SetTargets"] = json!(true);
        change["Targets"] = json!(targets);
    }
    let _: (Value, _) = pod.connect()?.call("Logging.Change", &change, &[])?;
    if args.json {
        println!("{}", json!({"id": pod.record.id, "change": change}));
    }
    Ok(())
}
