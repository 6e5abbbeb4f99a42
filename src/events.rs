//! `berm events`: figures of a container, again and again.

use berm_sandbox::Config;
use serde_json::Value;

use crate::error::{Error, errno};
use crate::find::Target;

/// Prints the figures of a container, one line of JSON each time, with the keys of runc
///
/// One line every few seconds until the container ends or the reader goes; with --stats one
/// line. The id of a pod with several containers prints a line for each.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print the figures once and end
    #[arg(long)]
    stats: bool,
    /// Seconds between two lines
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
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
