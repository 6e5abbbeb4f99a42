//! `berm usage`: what a pod's memory is used for.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use berm_sandbox::Config;
use berm_sandbox::metrics::rfc3339;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::interval;

use crate::error::{Error, io};
use crate::find::{Pod, Target};
use crate::signals::Signals;
use crate::table::{short, size, table};

/// Shows what the memory of a pod is used for, in bytes
///
/// Sandbox is what the pod's PID 1 and its bookkeeping take; Unknown is what the kernel counts and
/// does not split.
///
/// With -f: what each container uses, every few seconds until the pod ends. The shim gives the
/// kernel's files once and is not asked again; containers made later are not among them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print what each container uses, again and again
    #[arg(long, short)]
    follow: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
    /// Print JSON; with -f one object a line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm usage shop/web
  berm usage -f --interval 1 shop/web";

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
    if args.follow {
        return follow(args, &pod);
    }
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

#[derive(Deserialize)]
struct Files {
    cgroups: Vec<String>,
}

fn follow(args: &Args, pod: &Pod) -> Result<(), Error> {
    let (Files { cgroups }, fds) =
        pod.connect()?
            .call("Usage.UsageFD", &json!({"Version": 1}), &[])?;
    // Two files of each: what is used in all, and how it is split.
    let totals = fds.into_iter().step_by(2).map(File::from);
    let mut files: Vec<_> = cgroups.into_iter().zip(totals).collect();
    crate::runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let mut ticks = interval(Duration::from_secs(args.interval.into()));
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    files.retain(|(id, file)| match read(file) {
                        Some(bytes) => print(id, bytes, args.json).is_ok(),
                        // The cgroup is gone, and its file with it.
                        None => false,
                    });
                    if files.is_empty() {
                        return Ok(());
                    }
                }
                _ = signals.next() => return Ok(()),
            }
        }
    })
}

fn read(file: &File) -> Option<u64> {
    let mut text = [0; 32];
    let len = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..len)?).ok()?;
    text.trim_end().parse().ok()
}

fn print(id: &str, bytes: u64, json: bool) -> Result<(), Error> {
    let time = rfc3339(SystemTime::now());
    let line = match json {
        true => json!({"time": time, "id": id, "bytes": bytes}).to_string(),
        false => format!("{}  {}  {}", &time[11..19], short(id), size(bytes)),
    };
    writeln!(std::io::stdout().lock(), "{line}").map_err(io("write(stdout)"))
}
