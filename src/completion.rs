//! `berm completion`: what a shell completes, from the same source as the help.

use std::io::{Write, stdout};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::Cli;
use crate::error::{Error, io};

/// Prints the completion script of a shell
///
/// Try: berm completion bash > /etc/bash_completion.d/berm
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell that is to read it
    shell: Shell,
}

pub(crate) fn main(args: &Args) -> Result<(), Error> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "berm", &mut script);
    stdout().write_all(&script).map_err(io("write(stdout)"))
}
