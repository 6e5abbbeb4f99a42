//! containerd's door to Berm: the binary protocol (`start`, `delete`, `-info`), the Task service
//! over ttrpc, events in their order, and stdio.
//!
//! Trusts containerd, owns the daemon's one thread, and knows nothing of namespaces, mounts or
//! cgroups: every change goes to [`berm_sandbox`]. ttrpc and containerd's messages end here.
//!
//! `start` forks the daemon without executing a second program. The daemon is a tokio
//! `current_thread` runtime without any helper thread, because the sandbox forks from it.
#![forbid(unsafe_code)]

mod args;
mod bootstrap;
mod code;
mod config;
mod connection;
mod daemon;
mod delete;
mod error;
mod event;
mod file;
mod info;
mod log;
mod options;
mod publisher;
mod socket;
mod start;
mod stats;
mod stdio;
mod task;
mod wire;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

pub use args::{Action, Args};
pub use error::Error;

/// Name of the runtime as containerd's clients ask for it.
pub const RUNTIME: &str = "io.containerd.berm.v1";
/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Revision of the source, if the build was told (`BERM_REVISION`).
pub const REVISION: &str = match option_env!("BERM_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Reads a handler's configuration file; one that is not there leaves every default.
/// # Errors
/// `InvalidArgument` with file, line and key; the errno of open(2) or read(2).
pub fn config(path: &Path) -> Result<berm_sandbox::Config, Error> {
    config::load(path)
}

/// Runs the shim binary: one call of containerd's binary protocol, or the daemon.
///
/// Answers go to stdout; on failure one clear text goes to stderr, which containerd shows to the
/// user, and the exit code is 1.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default();
    let program = program.to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    match args::parse(arguments).and_then(|args| act(&program, &args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{program}: {}", error::chain(&e));
            ExitCode::FAILURE
        }
    }
}

fn act(program: &str, args: &Args) -> Result<(), Error> {
    match args.action {
        Action::Start => start::run(program, args),
        Action::Delete => print(&delete::run(program, args)?),
        Action::Info => print(&info::encode()?),
        Action::Version => {
            print(format!("{program}:\n  Version:  {VERSION}\n  Revision: {REVISION}\n").as_bytes())
        }
    }
}

/// Writes an answer to stdout, whole.
fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|source| Error::Io {
            call: "write",
            what: "stdout".into(),
            source,
        })
}
