//! `berm kill`: a signal to a container.

use berm_sandbox::Config;
use berm_sandbox::urpc::Empty;
use serde_json::json;

use crate::error::Error;
use crate::find::Target;

/// Sends a signal to a container's first process
///
/// For a pod's id or name it goes to the sandbox itself: TERM and KILL end the pod.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Signal: TERM, SIGTERM or 15
    #[arg(default_value = "TERM", value_parser = signal)]
    signal: u32,
    /// Send it to every process of the container
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let id = target.id();
    let mode = u32::from(args.all);
    let arg = json!({"CID": id, "Signo": args.signal, "PID": 0, "Mode": mode});
    let (Empty {}, _) = target
        .pod
        .connect()?
        .call("containerManager.Signal", &arg, &[])?;
    if args.json {
        println!(
            "{}",
            json!({"id": id, "signal": args.signal, "all": args.all})
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
