//! `berm pause` and `berm resume`: a whole pod stands still, and goes on.

use berm_sandbox::Config;
use berm_sandbox::urpc::Empty;
use serde_json::json;

use crate::error::Error;
use crate::find::Target;

/// Freezes every container of a pod
///
/// Pauses are counted: a pod that was paused twice goes on after the second resume. Meanwhile
/// nothing can be started in it; its figures can be read, and it can be deleted.
#[derive(Debug, clap::Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(crate) struct Pause {
    #[command(flatten)]
    of: Of,
}

/// Lets a pod go on that was paused
///
/// A pod that is not paused is an error.
#[derive(Debug, clap::Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub(crate) struct Resume {
    #[command(flatten)]
    of: Of,
}

const PAUSE_EXAMPLES: &str = "\
Examples:
  berm pause shop/web
  berm pause 3f2a --json";

const RESUME_EXAMPLES: &str = "\
Examples:
  berm resume shop/web
  berm resume 3f2a --json";

#[derive(Debug, clap::Args)]
struct Of {
    /// Id of a sandbox, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn pause(args: &Pause, config: &Config) -> Result<(), Error> {
    call(&args.of, config, "containerManager.Pause", "paused")
}

pub(crate) fn resume(args: &Resume, config: &Config) -> Result<(), Error> {
    call(&args.of, config, "containerManager.Resume", "running")
}

fn call(of: &Of, config: &Config, method: &str, state: &str) -> Result<(), Error> {
    let pod = Target::find(config, &of.id)?.whole_pod()?;
    let (Empty {}, _) = pod.connect()?.call(method, &(), &[])?;
    if of.json {
        println!("{}", json!({"id": pod.record.id, "state": state}));
    }
    Ok(())
}
