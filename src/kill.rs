//! `berm kill`: a signal to a container.

use berm_sandbox::Config;
use berm_sandbox::urpc::Empty;
use serde_json::json;

use crate::error::Error;
use crate::find::Target;

/// Sends a signal to a container's first process, to all of its processes, or to one
///
/// For a pod's id or name it goes to the sandbox itself: TERM and KILL end the pod.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Signal: TERM, SIGTERM or 15
    #[arg(default_value = "TERM", value_parser = signal)]
    signal: u32,
    /// Send it to every process of the container
    #[arg(long)]
    all: bool,
    /// Send it to the process of the container with this number on the host (HOSTPID of berm ps)
    #[arg(long, conflicts_with = "all", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Send it to what is in the foreground of the process's terminal, as ctrl-C does
    #[arg(long, conflicts_with = "all")]
    foreground: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm kill 3f2a
  berm kill shop/web HUP --pid 41233
  berm kill 3f2a KILL --all
  berm kill 3f2a INT --foreground";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    // A pod has no process of that number itself, and no terminal: its only container has.
    let id = match args.pid.is_some() || args.foreground {
        true => target.container()?,
        false => target.id().to_owned(),
    };
    let mode = match (args.all, args.foreground) {
        (true, _) => 1,
        (_, true) => 2,
        _ => 0,
    };
    let pid = args.pid.unwrap_or(0);
    let arg = json!({"CID": id, "Signo": args.signal, "PID": pid, "Mode": mode});
    let (Empty {}, _) = target
        .pod
        .connect()?
        .call("containerManager.Signal", &arg, &[])?;
    if args.json {
        println!(
            "{}",
            json!({"id": id, "signal": args.signal, "all": args.all, "hostPid": args.pid})
        );
    }
    Ok(())
}

/// signal(7) on x86-64 and arm64.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

fn signal(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return match number {
            1..=64 => Ok(number),
            _ => Err("not within 1 to 64".into()),
        };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    (1..)
        .zip(NAMES)
        .find_map(|(number, known)| (known == name).then_some(number))
        .ok_or_else(|| "no signal has that name".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for text in ["15", "TERM", "SIGTERM", "sigterm"] {
            assert_eq!(signal(text), Ok(15));
        }
        assert_eq!(
            (signal("KILL"), signal("SYS"), signal("64")),
            (Ok(9), Ok(31), Ok(64))
        );
        for text in ["0", "65", "-1", "NOPE", ""] {
            assert!(signal(text).is_err(), "{text:?}");
        }
    }
}
