//! `berm wait`: how a container ended.

use berm_sandbox::Config;
use serde_json::json;

use crate::error::Error;
use crate::exec::code;
use crate::find::Target;

/// Waits until a container has ended and prints its exit code: 128 + signal if it was killed
///
/// Any number of callers may wait, also after the end, as long as the container is not deleted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let container = target.container()?;
    let mut client = target.pod.connect()?;
    client.set_deadline(None);
    let (word, _) = client.call("containerManager.Wait", &container, &[])?;
    let code = code(word);
    match args.json {
        true => println!("{}", json!({"id": container, "exitCode": code})),
        false => println!("{code}"),
    }
    Ok(())
}
