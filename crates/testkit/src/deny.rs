//! cargo-deny for `make check`: installed once, advisories only where their database can be had.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::error::{Error, call};
use crate::peers::{self, Peers, workspace};

/// Checks licences, sources and who may depend on what, by `.deny.toml`.
/// # Errors
/// [`Error::Failed`] if cargo-deny cannot be installed.
pub fn run(peers: &Peers) -> Result<bool, Error> {
    let program = install(peers)?;
    let fetched = deny(&program, &["fetch", "db"]);
    let fetched = command::run(fetched, b"", Duration::from_secs(60)).and_then(command::Output::ok);
    let mut checks = vec!["check", "bans", "licenses", "sources"];
    match fetched {
        Ok(_) => checks.push("advisories"),
        Err(_) => println!("advisories: skipped, their database cannot be had from here"),
    }
    let status = deny(&program, &checks).status();
    Ok(status.map_err(call("execve(cargo-deny)"))?.success())
}

fn deny(program: &PathBuf, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    let root = workspace();
    command
        .arg("--workspace")
        .arg("--config")
        .arg(root.join(".deny.toml"));
    command.current_dir(root).args(args);
    command
}

fn install(peers: &Peers) -> Result<PathBuf, Error> {
    if let Ok(found) = peers.find("cargo-deny") {
        return Ok(found);
    }
    println!("building cargo-deny (some minutes, once)");
    // Without optimisation it is built in half the time and is still fast enough.
    let words = ["install", "--quiet", "--locked", "--debug", "cargo-deny"];
    command::insist(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(words).arg("--root").arg(peers::root());
        command::run(cargo, b"", Duration::from_secs(3600))?.ok()
    })?;
    peers.find("cargo-deny")
}
