//! Test programs without libtest's threads: every case is a process of its own.
//!
//! What sets namespaces or forks in a test must be single-threaded, and what leaks must be seen:
//! the runner forks for each case, the child has a mount namespace of its own, and a [`Guard`]
//! stands around its run. Output and arguments are libtest's, as far as cargo and people use
//! them: filters, `--exact`, `--skip`, `--list`, `--ignored`, `--include-ignored`, `--nocapture`.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use berm_sys::process::{Fork, flags, fork, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait, waitpid};

use crate::command::patient;
use crate::error::call;
use crate::guard::Guard;
use crate::process;

/// How long one case may take: no more than a guard against hanging.
const LIMIT: Duration = Duration::from_secs(240);
/// How long the kernel may take for the end of what a case made.
const CLEAN: Duration = Duration::from_secs(30);

/// One case: a contract as its name, and what checks it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    name: &'static str,
    run: fn(),
    ignored: Option<&'static str>,
}

impl Case {
    /// A case that panics when the contract is broken.
    #[must_use]
    pub const fn new(name: &'static str, run: fn()) -> Self {
        Self {
            name,
            run,
            ignored: None,
        }
    }

    /// Its contract.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The same, left out until `reason` is gone.
    #[must_use]
    pub const fn ignored(mut self, reason: &'static str) -> Self {
        self.ignored = Some(reason);
        self
    }
}

/// A list of cases from functions of no arguments, named as these are; `name: "reason"` for an
/// ignored one.
#[macro_export]
macro_rules! cases {
    ($($name:ident $(: $reason:literal)?),* $(,)?) => {
        &[$($crate::cases::Case::new(stringify!($name), $name)$(.ignored($reason))?),*]
    };
}

#[derive(Debug, Default)]
struct Args {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    only_ignored: bool,
    include_ignored: bool,
    nocapture: bool,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => parsed.exact = true,
                "--list" => parsed.list = true,
                "--ignored" => parsed.only_ignored = true,
                "--include-ignored" => parsed.include_ignored = true,
                "--nocapture" | "--no-capture" => parsed.nocapture = true,
                "--skip" => parsed.skip.extend(args.next()),
                // One case at a time, in plain text, is all there is.
                "--test-threads" | "--format" | "--color" | "-Z" => drop(args.next()),
                "-q" | "--quiet" | "--show-output" => {}
                other if other.starts_with("--test-threads=") => {}
                other if other.starts_with("--format=") || other.starts_with("--color=") => {}
                other if other.starts_with('-') => return Err(format!("unknown option {other}")),
                filter => parsed.filters.push(filter.to_owned()),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, case: &Case) -> bool {
        let matches = |filter: &String| match self.exact {
            true => case.name == filter,
            false => case.name.contains(filter.as_str()),
        };
        (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skip.iter().any(matches)
            && (!self.only_ignored || case.ignored.is_some())
    }

    fn ignores(&self, case: &Case) -> Option<&'static str> {
        case.ignored
            .filter(|_| !self.only_ignored && !self.include_ignored)
    }
}

/// Runs the cases that the arguments name, one after the other. Root only: as another user
/// every case is ignored, and says so.
#[must_use]
pub fn run(groups: &[&[Case]]) -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let all = groups.iter().copied().flatten();
    let chosen: Vec<_> = all.clone().filter(|case| args.wants(case)).collect();
    if args.list {
        chosen
            .iter()
            .for_each(|case| println!("{}: test", case.name));
        println!("\n{} tests, 0 benchmarks", chosen.len());
        return ExitCode::SUCCESS;
    }
    let filtered = all.count() - chosen.len();
    match run_all(&args, &chosen, filtered) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(101),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run_all(args: &Args, chosen: &[&Case], filtered: usize) -> std::io::Result<bool> {
    // What a case leaves behind becomes a child of the runner, which sees and ends it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let root = rustix::process::geteuid().is_root();
    let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
    let begin = Instant::now();
    println!("\nrunning {} tests", chosen.len());
    for case in chosen {
        let reason = args.ignores(case).or((!root).then_some("needs root"));
        if let Some(reason) = reason {
            println!("test {} ... ignored, {reason}", case.name);
            ignored += 1;
            continue;
        }
        print!("test {} ... ", case.name);
        std::io::stdout().flush()?;
        match run_one(case, args.nocapture)? {
            None => {
                println!("ok");
                passed += 1;
            }
            Some(output) => {
                println!("FAILED");
                failed.push((case.name, output));
            }
        }
    }
    if !failed.is_empty() {
        println!("\nfailures:\n");
        for (name, output) in &failed {
            println!("---- {name} output ----\n{output}\n");
        }
        println!("failures:");
        failed.iter().for_each(|(name, _)| println!("    {name}"));
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; \
         {filtered} filtered out; finished in {:.2}s\n",
        failed.len(),
        begin.elapsed().as_secs_f64()
    );
    Ok(failed.is_empty())
}

/// Runs one case in a child of its own; its output when it failed.
fn run_one(case: &Case, nocapture: bool) -> std::io::Result<Option<String>> {
    let mut output = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
    let pid = match fork()? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let code = child(case, (!nocapture).then_some(&output));
            berm_sys::process::exit(code)
        }
    };
    let mut complaint = String::new();
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    let limit = patient(LIMIT);
    if !ends(pid, limit)? {
        complaint += &format!("the case did not end within {} s\n", limit.as_secs());
        process::send(
            pid.as_raw_nonzero().get().unsigned_abs(),
            rustix::process::Signal::KILL,
        );
    }
    let status = waitpid(Some(pid), WaitOptions::empty())?.map(|(_, status)| status);
    for left in end_leftovers()? {
        complaint += &format!("left behind: {left}\n");
    }
    if complaint.is_empty() && status.and_then(WaitStatus::exit_status) == Some(0) {
        return Ok(None);
    }
    let mut text = String::new();
    output.rewind()?;
    output.read_to_string(&mut text)?;
    Ok(Some(format!("{text}{complaint}({status:?})")))
}

fn child(case: &Case, output: Option<&File>) -> i32 {
    let ran = catch_unwind(AssertUnwindSafe(|| -> Result<(), crate::error::Error> {
        if let Some(output) = output {
            rustix::stdio::dup2_stdout(output.as_fd()).map_err(call("dup2(stdout)"))?;
            rustix::stdio::dup2_stderr(output.as_fd()).map_err(call("dup2(stderr)"))?;
        }
        // What a case mounts is its own, and gone with it.
        unshare(flags::NEWNS).map_err(call("unshare(CLONE_NEWNS)"))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(call("mount(\"/\", MS_PRIVATE)"))?;
        let guard = Guard::of_self()?;
        (case.run)();
        guard.assert_clean(patient(CLEAN))
    }));
    let code = match ran {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            eprintln!("{error}");
            1
        }
        Err(_panic) => 101,
    };
    // A closed output is no reason to call a good case bad.
    let _: std::io::Result<()> = std::io::stdout().flush();
    code
}

fn ends(pid: Pid, limit: Duration) -> std::io::Result<bool> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let until = Instant::now() + crate::command::patient(limit);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills and reaps what the case left below the runner; what that was.
fn end_leftovers() -> std::io::Result<Vec<String>> {
    let mut left = Vec::new();
    let until = Instant::now() + patient(CLEAN);
    loop {
        let processes = process::descendants(std::process::id());
        if processes.is_empty() || Instant::now() > until {
            return Ok(left);
        }
        for found in processes
            .iter()
            .filter(|found| !matches!(found.state, 'Z' | 'X'))
        {
            left.push(found.to_string());
            found.kill();
        }
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        crate::guard::pause(Duration::from_millis(2));
    }
}
