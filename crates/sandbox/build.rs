//! Compiles `berm-init`, which is embedded: a static program of a few kB without libc.
//!
//! cargo cannot make one package's binary an input of another, so this calls the compiler itself.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let source = "../init/src/main.rs";
    println!("cargo::rerun-if-changed={source}");
    let (Some(rustc), Some(out), Ok(target)) = (
        env::var_os("RUSTC"),
        env::var_os("OUT_DIR"),
        env::var("TARGET"),
    ) else {
        println!("cargo::error=RUSTC, OUT_DIR and TARGET are not set: run this by cargo");
        return ExitCode::FAILURE;
    };
    let output = PathBuf::from(out).join("berm-init");
    let mut command = Command::new(rustc);
    command.args([
        "--crate-name",
        "berm_init",
        "--crate-type",
        "bin",
        "--edition",
        "2024",
    ]);
    command.args([
        "--target",
        &target,
        "-C",
        "panic=abort",
        "-C",
        "opt-level=s",
    ]);
    command.args(["-C", "strip=symbols", "-C", "relocation-model=static"]);
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
    ] {
        command.args(["-C", &format!("link-arg={arg}")]);
    }
    command.arg("-o").arg(output).arg(source);
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        other => {
            println!("cargo::error=building berm-init: {other:?}");
            ExitCode::FAILURE
        }
    }
}
