//! `make test-guest`: what depends on cgroup v2, systemd, AppArmor, capabilities or an old kernel,
//! in one guest for each kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Guest, Job, apt, share};
use crate::command;
use crate::error::Error;
use crate::peers::{self, Peers};

/// Arguments of `berm-testkit test-guest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The lines of kernels; may be given several times
    #[arg(long = "kernel", default_values = ["6.12", "6.1", "6.18"])]
    kernels: Vec<String>,
    /// The shim under test [default: the debug build]
    #[arg(long)]
    shim: Option<PathBuf>,
    /// Seconds that one guest may take
    #[arg(long, default_value_t = 2400)]
    limit: u64,
}

/// How often a guest's part is begun that the emulator loses half-way.
const ATTEMPTS: u32 = 3;

/// A guest's part of the tests.
#[derive(Debug)]
struct Part {
    line: &'static str,
    script: &'static str,
    /// Whether a guest whose kernel the mirror no longer has is a failure.
    required: bool,
}

/// Pods with the cgroups of systemd, as most nodes run them, and of kubelet's other driver; runc
/// for those that only a guest can run; the kernel's own answers. Each line is a test program with
/// a summary of its own.
const PARTS: &[Part] = &[
    Part {
        line: "6.12",
        script: "pods --systemd --runtime berm
            pods --systemd --runtime runc apparmor,cgroup-v2,io-max,oom-score,rlimit-raised
            cgroups
            sandbox-sandbox cgroup paus oom limit update figures kill host_p device overlay \
                attribute --skip at_any_moment",
        required: true,
    },
    // Nothing but pods without user namespaces, overlays of attached layers, and older calls.
    Part {
        line: "6.1",
        script: "pods --runtime berm
            cgroups
            sandbox-sandbox overlay mount tmpfs volume host_pod node attribute option",
        required: true,
    },
    Part {
        line: "6.18",
        script: "pods --systemd --runtime berm
            cgroups",
        required: false,
    },
];

/// What became of one guest.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `guest-6.12`.
    pub(crate) name: String,
    /// Lines of its output that sum up a test program.
    pub(crate) results: Vec<String>,
    /// Whether the guest came to its end and nothing in it failed.
    pub(crate) ok: bool,
}

/// Runs the guests one after the other: two at once would gain nothing.
/// # Errors
/// What hinders the tests from running; a test that fails is none.
pub(crate) fn run(peers: &Peers, args: &Args) -> Result<Vec<Outcome>, Error> {
    peers::install(apt::TOOLS)?;
    let shim = match &args.shim {
        Some(shim) => shim.clone(),
        None => built(
            &["build", "--package", "berm"],
            "bin",
            "containerd-shim-berm-v1",
        )?,
    };
    let programs = [
        (
            "cgroup-kernel",
            built(&test_of("berm-cgroup", "kernel"), "test", "kernel")?,
        ),
        (
            "sandbox-sandbox",
            built(&test_of("berm-sandbox", "sandbox"), "test", "sandbox")?,
        ),
    ];
    let share = share::Share::new(peers, Some(&shim), &[])?;
    for (name, path) in &programs {
        share.add(path, name)?;
    }
    let mut outcomes = Vec::new();
    for line in &args.kernels {
        let part = PARTS.iter().find(|part| part.line == line);
        let part = part.ok_or_else(|| Error::Missing {
            what: format!("tests for a kernel {line}"),
            way_out: "name one of 6.12, 6.1, 6.18".into(),
        })?;
        outcomes.push(one(peers, part, share.dir(), args.limit)?);
    }
    Ok(outcomes)
}

fn one(peers: &Peers, part: &Part, share: &Path, limit: u64) -> Result<Outcome, Error> {
    let name = format!("guest-{}", part.line);
    let guest = match Guest::ensure(part.line, &peers.busybox()?) {
        Err(error @ Error::Missing { .. }) if !part.required => {
            println!("test {name} ... ignored, {error}");
            let results = vec!["test result: ok. 0 passed; 0 failed; 1 ignored".into()];
            return Ok(Outcome {
                name,
                results,
                ok: true,
            });
        }
        guest => guest?,
    };
    let job = Job {
        share: share.to_owned(),
        script: script(part),
        limit: Duration::from_secs(limit),
        out: None,
    };
    println!(
        "\n{name}: Linux {}, cgroup v2, systemd, AppArmor",
        guest.version()
    );
    let mut attempt = 1;
    loop {
        let mut results = Vec::new();
        let ended = guest.run(&job, &mut |line| {
            println!("{}", named(&name, line));
            if line.starts_with("test result: ") {
                results.push(line.to_owned());
            }
        });
        match ended {
            // What it said until then is forgotten.
            Err(Error::Guest { emulator: true, .. }) if attempt < ATTEMPTS => {
                println!("{name}: the emulator lost it: once more");
                attempt += 1;
            }
            Err(error @ Error::Guest { .. }) => {
                println!("{name}: {error}");
                let ok = false;
                return Ok(Outcome { name, results, ok });
            }
            ended => {
                let ok = ended? == 0;
                return Ok(Outcome { name, results, ok });
            }
        }
    }
}

/// Every program runs, and one that fails fails the guest.
fn script(part: &Part) -> String {
    let mut script = format!("{}\n{COMMANDS}\nbad=0\n", share::ENVIRONMENT);
    for line in part.script.lines().map(str::trim) {
        script.push_str(&format!("{line} || bad=1\n"));
    }
    script.push_str("exit $bad\n");
    script
}

/// What a line of a part may call. The tests of cgroups that are left out look into files of v1.
const COMMANDS: &str = "pods() {
    berm-testkit suite --guest --parallel 2 --shim-kills 0 --containerd-kills 0 \\
        --pods /share/test-pods --shim /share/bin/containerd-shim-berm-v1 \"$@\"
}
cgroups() {
    cgroup-kernel --test-threads=1 --skip limits:: --skip stats:: --skip update:: \\
        --skip life::a_new_cpuset --skip life::views
}";

/// A test's line with the name of its guest, so that no two in the whole run are the same.
fn named(guest: &str, line: &str) -> String {
    match line.strip_prefix("test ") {
        Some(rest) if !line.starts_with("test result: ") => format!("test {guest}::{rest}"),
        _ => line.to_owned(),
    }
}

fn test_of<'a>(package: &'a str, test: &'a str) -> [&'a str; 6] {
    ["test", "--no-run", "--package", package, "--test", test]
}

/// Builds with cargo, and finds what it built.
fn built(args: &[&str], kind: &str, name: &str) -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(peers::workspace())
        .args(args)
        .arg("--message-format=json-render-diagnostics");
    let output = command::run(command, b"", Duration::from_secs(1800))?.ok()?;
    let messages = output
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = messages.filter(|message| {
        let target = &message["target"];
        target["name"] == name && target["kind"][0] == kind && message["executable"].is_string()
    });
    let path = found
        .next()
        .and_then(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    path.ok_or_else(|| Error::Answer {
        command: output.command,
        why: format!("no {kind} {name} among what was built"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_test_carries_its_guest_and_a_summary_does_not() {
        let test = "test berm::exec ... ok (1.00s)";
        assert_eq!(
            named("guest-6.1", test),
            "test guest-6.1::berm::exec ... ok (1.00s)"
        );
        let summary = "test result: ok. 1 passed; 0 failed; 0 ignored";
        assert_eq!(named("guest-6.1", summary), summary);
    }

    #[test]
    fn a_program_that_fails_fails_the_guest_and_the_next_one_runs() {
        let part = Part {
            line: "6.12",
            script: "false\necho next",
            required: true,
        };
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(script(&part));
        let output = command::run(bash, b"", Duration::from_secs(10)).unwrap();
        assert_eq!((output.code, output.stdout.as_str()), (1, "next\n"));
    }
}
