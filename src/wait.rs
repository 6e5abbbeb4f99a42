//! `berm wait`: how a container or an exec ended.

use std::time::{Duration, Instant};

use berm_sandbox::Config;
use berm_sandbox::urpc::{AsyncClient, Limits};
use serde_json::{Value, json};
use tokio::time::interval;

use crate::error::Error;
use crate::exec::code;
use crate::find::Target;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::table::age;

/// Waits until a container has ended and prints its exit code: 128 + signal if it was killed
///
/// Any number of callers may wait, also after the end, as long as the container is not deleted.
/// On a terminal a line tells what is waited for, and since when.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Wait for an exec instead: the process with this number on the host (HOSTPID of berm ps)
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm wait 3f2a
  berm wait shop/web --pid 41233
  test \"$(berm wait shop/job)\" = 0";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    match wait_and_print(args, config) {
        // It ended between two looks at it: whatever broke off then, nothing has that name.
        Err(e) if !e.is_not_found() && is_gone(config, &args.id) => Err(Error::NotFound {
            name: args.id.clone(),
        }),
        done => done,
    }
}

fn is_gone(config: &Config, name: &str) -> bool {
    match Target::find(config, name) {
        Ok(target) => target.pod.state() == "gone",
        Err(e) => e.is_not_found(),
    }
}

fn wait_and_print(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let container = target.container()?;
    // Told apart here from a socket that nobody serves.
    drop(target.pod.connect()?);
    let runtime = crate::runtime()?;
    let word = runtime.block_on(wait(args, &target, &container))?;
    let code = code(word);
    match (args.json, args.pid) {
        (true, None) => println!("{}", json!({"id": container, "exitCode": code})),
        (true, Some(pid)) => {
            println!(
                "{}",
                json!({"id": container, "hostPid": pid, "exitCode": code})
            );
        }
        (false, _) => println!("{code}"),
    }
    Ok(())
}

/// The word of wait(2).
async fn wait(args: &Args, target: &Target, container: &str) -> Result<u32, Error> {
    let mut client = AsyncClient::new(&target.pod.record.control_socket_path, Limits::REPLY);
    let (method, arg) = match args.pid {
        Some(pid) => (
            "containerManager.WaitPID",
            json!({"CID": container, "PID": pid}),
        ),
        None => ("containerManager.Wait", Value::from(container)),
    };
    let mut signals = Signals::new()?;
    let mut progress = Progress::new(args.json);
    let mut second = interval(Duration::from_secs(1));
    let begun = Instant::now();
    let what = args
        .pid
        .map_or(container.to_owned(), |pid| format!("process {pid}"));
    let mut call = std::pin::pin!(client.call(method, &arg));
    loop {
        tokio::select! {
            // Polled first, it has sent the request before a line says that somebody waits.
            biased;
            reply = &mut call => return Ok(reply?.result()?),
            _ = second.tick() => {
                progress.show(&format!("waiting for {what}: {}", age(begun.elapsed().as_secs())));
            }
            signal = signals.next() => return Err(Error::Interrupted { signal }),
        }
    }
}
