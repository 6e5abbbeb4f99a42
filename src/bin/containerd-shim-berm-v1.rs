//! The shim that containerd runs for `io.containerd.berm.v1`.

use std::process::ExitCode;

fn main() -> ExitCode {
    berm_shim::run(std::env::args_os())
}
