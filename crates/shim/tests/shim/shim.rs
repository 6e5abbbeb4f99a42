//! The shim as this room's tests run it; the one that is installed is in the workspace's root.

use std::process::ExitCode;

fn main() -> ExitCode {
    berm_shim::run(std::env::args_os())
}
