//! An emulated Debian with pure cgroup v2, systemd and AppArmor, for what this machine may not
//! have: `make test-guest`.
//!
//! ```sh
//! berm-testkit guest --kernel 6.12 -- uname -r                       # a command in the guest
//! berm-testkit guest --kernel 6.12 --shim PATH -- berm-testkit shell --shim berm -- ctr version
//! berm-testkit guest --kernel 6.1 --share target/debug/deps/kernel-0123 -- kernel-0123 v2
//! ```
//! The guest needs no KVM. It has the machine's own release, so what is built here runs there:
//! the shim, this program and its peers are on its PATH, the pods in `/share/test-pods`. The
//! first run downloads and builds (a minute or two) into a cache, `$BERM_GUESTS` or
//! `~/.cache/berm/guests`; a later one costs the boot, about ten seconds on an idle machine.

mod apt;
mod cache;
mod cpio;
mod kernel;
mod machine;
mod root;
mod share;
mod suite;

use std::path::PathBuf;
use std::time::Duration;

pub use self::machine::{Guest, Job};
pub use self::suite::Args as SuiteArgs;
pub(crate) use self::suite::{Outcome, run as run_suite};
use crate::error::Error;
use crate::peers::{self, Peers};

/// Arguments of `berm-testkit guest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The line of the kernel: 6.1, 6.12, 6.18
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// The shim under test, as containerd-shim-berm-v1 on the guest's PATH
    #[arg(long)]
    shim: Option<PathBuf>,
    /// A further program for the guest's PATH; may be given several times
    #[arg(long)]
    share: Vec<PathBuf>,
    /// Seconds that the command may take
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// A folder for the guest's journal, its dmesg, and what the command leaves in /out
    #[arg(long)]
    out: Option<PathBuf>,
    /// What to run
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Runs one command in a guest and prints its output; true when it succeeded.
/// # Errors
/// [`Error::Missing`], [`Error::Guest`].
pub fn run(peers: &Peers, args: &Args) -> Result<bool, Error> {
    peers::install(apt::TOOLS)?;
    let guest = Guest::ensure(&args.kernel, &peers.busybox()?)?;
    let share = share::Share::new(peers, args.shim.as_deref(), &args.share)?;
    let words: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
    let job = Job {
        share: share.dir().to_owned(),
        script: format!("{}\n{}", share::ENVIRONMENT, words.join(" ")),
        limit: Duration::from_secs(args.limit),
        out: args.out.clone(),
    };
    let code = guest.run(&job, &mut |line| println!("{line}"))?;
    if code != 0 {
        eprintln!("guest {}: exit code {code}", guest.version());
    }
    Ok(code == 0)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
