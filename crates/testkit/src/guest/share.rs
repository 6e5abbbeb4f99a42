//! What a guest gets from this machine: programs without their debug information, and the pods.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::machine::Scratch;
use crate::command;
use crate::error::{Error, call, file};
use crate::peers::Peers;
use crate::suite;

/// How a program of the testing house finds itself in a guest, and how patient it is there:
/// everything takes about ten times as long.
pub(super) const ENVIRONMENT: &str =
    "export BERM_PEERS=/share BERM_OFFLINE=1 BERM_PATIENCE=10 RUST_BACKTRACE=1";

const PEERS: &[&str] = &["containerd", "ctr", "crictl", "containerd-shim-runc-v2"];
const LIMIT: Duration = Duration::from_secs(120);

/// A folder that becomes a guest's `/share`.
pub(super) struct Share(Scratch);

impl Share {
    /// Fills it: `bin` has the peers, this program, `shim` and `programs`.
    pub(super) fn new(
        peers: &Peers,
        shim: Option<&Path>,
        programs: &[PathBuf],
    ) -> Result<Self, Error> {
        let share = Self(Scratch::new()?);
        let bin = share.dir().join("bin");
        std::fs::create_dir(&bin).map_err(file("mkdir", &bin))?;
        for name in PEERS {
            strip(&peers.find(name)?, &bin.join(name))?;
        }
        let own = std::env::current_exe().map_err(call("readlink(/proc/self/exe)"))?;
        strip(&own, &bin.join("berm-testkit"))?;
        if let Some(shim) = shim {
            strip(shim, &bin.join("containerd-shim-berm-v1"))?;
        }
        for program in programs {
            strip(program, &bin.join(program.file_name().unwrap_or_default()))?;
        }
        let mut copy = Command::new("cp");
        copy.arg("-r")
            .arg(suite::default_pods())
            .arg(share.dir().join("test-pods"));
        command::run(copy, b"", LIMIT)?.ok()?;
        Ok(share)
    }

    /// Adds a program as `bin/NAME`.
    pub(super) fn add(&self, program: &Path, name: &str) -> Result<(), Error> {
        strip(program, &self.dir().join("bin").join(name))
    }

    pub(super) fn dir(&self) -> &Path {
        self.0.dir()
    }
}

/// Copies a program without what only a debugger reads; a script as it is.
fn strip(from: &Path, to: &Path) -> Result<(), Error> {
    let magic = std::fs::read(from).map_err(file("read", from))?;
    if !magic.starts_with(b"\x7fELF") {
        return std::fs::copy(from, to)
            .map(drop)
            .map_err(file("copy", from));
    }
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(to).arg(from);
    command::run(strip, b"", LIMIT)?.ok().map(drop)
}
