//! `berm`: tries, inspects and drives sandboxes from the host's side.
//!
//! Arguments and wiring only: the work is done by `berm-sandbox`.

mod cgroup;
mod check;
mod completion;
mod debug;
mod delete;
mod donate;
mod error;
mod events;
mod exec;
mod explain;
mod find;
mod kill;
mod list;
mod log_level;
mod metric_server;
mod metrics;
mod mount;
mod pause;
mod port_forward;
mod progress;
mod ps;
mod run;
mod signals;
mod state;
mod table;
mod terminal;
mod usage;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use berm_sandbox::{Config, rootless};
use clap::{Parser, Subcommand};

/// Sandboxes for pods: see what runs, look inside, try one in ten seconds
///
/// Berm runs each pod of this node in a sandbox of its own. A sandbox is named by its id or the
/// beginning of one, by that of a container in it, or by its pod: NAME or NAMESPACE/NAME. A name
/// that fits more than one is refused, with those that it fits.
#[derive(Debug, Parser)]
#[command(name = "berm", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Examples:
  berm check                                what this host can do
  berm run -t --rootfs /srv/alpine -- sh    a sandbox of your own
  berm list                                 those that run
  berm exec -t shop/web -- sh               a shell in one
  berm explain shop/web                     what keeps it apart from the host
  berm events -f                            what happens on this node

Exit codes:
  0    success
  1    the call failed; check: something that Berm needs is missing
  2    wrong arguments
  3    nothing has that name, or more than one thing has
  run and exec give the command's own code: 128 + signal if it was killed,
  125 if it could not be started; wait: 128 + signal if it was interrupted.

Errors go to stderr as `berm: TEXT`.

Sandboxes are found in /run/berm; those of a user who is not root in
$XDG_RUNTIME_DIR/berm, else in ~/.local/state/berm; or in $BERM_STATE_DIR.
Without root, run and all that is about one's own sandboxes works; limits,
pause and figures need cgroups, and cgroups need root.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    List(list::Args),
    State(state::Args),
    Ps(ps::Args),
    Exec(exec::Args),
    Explain(explain::Args),
    Events(events::Args),
    Usage(usage::Args),
    Kill(kill::Args),
    Wait(wait::Args),
    Delete(delete::Args),
    Pause(pause::Pause),
    Resume(pause::Resume),
    PortForward(port_forward::Args),
    Cgroup(cgroup::Args),
    Mount(mount::Args),
    Debug(debug::Args),
    LogLevel(log_level::Args),
    Metrics(metrics::Args),
    MetricServer(metric_server::Args),
    Check(check::Args),
    Completion(completion::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = config();
    let done = match cli.command {
        Command::Run(args) => return run::main(args, config),
        Command::Exec(args) => return exec::main(args, &config),
        Command::Check(args) => return check::main(&args, &config).unwrap_or_else(|e| failed(&e)),
        Command::List(args) => list::main(&args, &config),
        Command::State(args) => state::main(&args, &config),
        Command::Explain(args) => explain::main(&args, &config),
        Command::Events(args) => events::main(&args, &config),
        Command::Ps(args) => ps::main(&args, &config),
        Command::Usage(args) => usage::main(&args, &config),
        Command::Kill(args) => kill::main(&args, &config),
        Command::Wait(args) => wait::main(&args, &config),
        Command::Delete(args) => delete::main(&args, &config),
        Command::Pause(args) => pause::pause(&args, &config),
        Command::Resume(args) => pause::resume(&args, &config),
        Command::PortForward(args) => port_forward::main(&args, &config),
        Command::Cgroup(args) => cgroup::main(&args, &config),
        Command::Mount(args) => mount::main(&args, &config),
        Command::Debug(args) => debug::main(&args, &config),
        Command::LogLevel(args) => log_level::main(&args, &config),
        Command::Metrics(args) => metrics::main(&args, &config),
        Command::Completion(args) => completion::main(&args),
        Command::MetricServer(args) => metric_server::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

fn failed(error: &error::Error) -> ExitCode {
    eprintln!("berm: {}", error.text());
    error.code()
}

/// Directory of the sandboxes, if it is not the default.
const STATE_DIR: &str = "BERM_STATE_DIR";

/// An ordinary user has its sandboxes in a directory of its own.
fn config() -> Config {
    let mut config = Config::default();
    let given = std::env::var_os(STATE_DIR).map(PathBuf::from);
    let own = || rootless::is_needed().then(rootless::state_dir).flatten();
    if let Some(dir) = given.or_else(own) {
        config.state_dir = dir;
    }
    config
}

/// An ordinary user starts anew as root of a user namespace of its own.
fn as_root(config: &Config) -> Result<(), error::Error> {
    let variable = (STATE_DIR, config.state_dir.as_os_str());
    match rootless::is_needed() {
        true => Ok(rootless::enter(variable).map(drop)?),
        false => Ok(()),
    }
}

/// For the commands that wait for several things at once.
fn runtime() -> Result<tokio::runtime::Runtime, error::Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error::io("epoll_create1()"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The words of a line as a shell takes them, up to a pipe, a redirection or a comment.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        for c in line.chars().chain([' ']) {
            match (quote, c) {
                (Some(open), _) if open == c => quote = None,
                (None, '\'' | '"') => quote = Some(c),
                (None, ' ') if !word.is_empty() => words.push(std::mem::take(&mut word)),
                (None, ' ') => {}
                (None, '|' | '>') => return words,
                _ => word.push(c),
            }
        }
        words
    }

    /// The examples of a command: what stands behind `berm` in each line of its help.
    fn examples(command: &clap::Command) -> Vec<Vec<String>> {
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        let lines = help.lines().filter(|line| line.starts_with("  berm "));
        // Two blanks end the command, and say what it is for.
        let command = |line: &str| words(line.trim().split("   ").next().unwrap_or_default());
        lines.map(command).collect()
    }

    #[test]
    fn every_command_has_examples_and_each_is_one_that_can_be_typed() {
        let berm = Cli::command();
        let mut wrong = Vec::new();
        for command in berm.get_subcommands().chain([&berm]) {
            let examples = examples(command);
            if examples.is_empty() {
                wrong.push(format!("{} has no examples", command.get_name()));
            }
            for words in examples {
                let name = words.get(1).cloned().unwrap_or_default();
                let of_it = command.get_name() == "berm" || command.get_name() == name;
                match Cli::try_parse_from(&words) {
                    Ok(_) if of_it => {}
                    Ok(_) => wrong.push(format!("{} shows {words:?}", command.get_name())),
                    Err(e) => wrong.push(format!("{words:?}: {e}")),
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        let berm = Cli::command();
        berm.clone().debug_assert();
        for command in berm.get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                let name = (command.get_name(), arg.get_id());
                assert!(arg.get_help().is_some(), "{name:?}");
            }
        }
    }
}
