//! `berm completion`: what a shell completes, from the same source as the help.

use std::io::{Write, stdout};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::Cli;
use crate::error::{Error, io};

/// Prints the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell that is to read it
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  berm completion bash > /etc/bash_completion.d/berm
  berm completion zsh > /usr/share/zsh/site-functions/_berm";

pub(crate) fn main(args: &Args) -> Result<(), Error> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "berm", &mut script);
    stdout().write_all(&script).map_err(io("write(stdout)"))
}
