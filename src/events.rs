//! `berm events`: figures of a container, again and again, and what happens meanwhile.

mod follow;

use berm_sandbox::Config;
use serde_json::Value;

use crate::error::{Error, errno};
use crate::find::Target;

/// Prints what happens in a pod, and the figures of its containers
///
/// With -f: containers and execs that are created, started, paused, resumed, out of memory, exited,
/// deleted, as it happens, and every few seconds what each container uses. It ends with the
/// sandbox, or with the container that was named; without an id it tells of every sandbox of the
/// node, of those to come too. Times are UTC. A reader that is too slow loses the oldest events,
/// and is told how many.
///
/// Without -f: as `runc events`, one line of JSON with the figures every few seconds until the
/// container ends, or once with --stats.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    #[arg(required_unless_present = "follow")]
    id: Option<String>,
    /// Tell what happens as it happens, of one pod or of all
    #[arg(long, short)]
    follow: bool,
    /// Print the figures once and end
    #[arg(long, conflicts_with = "follow")]
    stats: bool,
    /// Seconds between two lines of figures
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
    /// Print one JSON object a line; figures without -f always are
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm events -f                       what happens on this node
  berm events -f shop/web --interval 1
  berm events -f --json shop/web | jq 'select(.type == \"exited\")'
  berm events --stats 3f2a";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    if args.follow {
        return follow::main(args, config);
    }
    let name = args.id.as_deref().unwrap_or_default();
    let target = Target::find(config, name)?;
    let ids = match &target.container {
        Some(id) => vec![id.clone()],
        None => target.pod.containers.iter().map(|c| c.id.clone()).collect(),
    };
    let mut told = false;
    loop {
        for id in &ids {
            match print(&target, id) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // It ended between two lines.
                Err(e) if told && e.is_not_found() => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        told = true;
        if args.stats || target.pod.state() != "running" {
            return Ok(());
        }
        pause(args.interval)?;
    }
}

/// False: the reader has gone.
fn print(target: &Target, id: &str) -> Result<bool, Error> {
    use std::io::Write;
    let mut client = target.pod.connect()?;
    let (out, _): (Value, _) = client.call("containerManager.Event", &id, &[])?;
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", out["event"]) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        done => done
            .map(|()| true)
            .map_err(crate::error::io("write(stdout)")),
    }
}

fn pause(seconds: u32) -> Result<(), Error> {
    let time = rustix::event::Timespec {
        tv_sec: i64::from(seconds),
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut [], Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(errno("poll()")(e)),
    }
}
