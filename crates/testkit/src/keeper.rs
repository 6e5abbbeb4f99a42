//! The keeper of a test node: a process with mount, network, IPC and cgroup namespaces of its own.
//!
//! Everything that runs on the node is its descendant: it is a subreaper, so daemons that leave
//! their parents come to it, as they come to PID 1 on a real machine. When its standard input
//! ends, because the test is done or was killed, it kills all of them, takes its cgroups down
//! and leaves nothing. Inside, `/run` is an empty tmpfs, the cgroup file systems show the node's
//! own subtree as their root, and the network is a loopback: containerd runs with its default
//! paths, and no process of the real machine can be mistaken for one of the node.
//!
//! Without a cgroup's name the node is the machine itself: the keeper only keeps its processes.
//!
//! Protocol, one line each: `ready PID` when the node stands; then for each line
//! `PROGRAM\tARG…` on standard input the program is started with its output appended to
//! `node.log`, and `started PID` or `failed TEXT` is the answer.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::cgroups;
use crate::error::{Error, call, file};
use crate::process;

/// How long its processes may take to end.
const END: Duration = Duration::from_secs(60);

/// Runs the keeper until its standard input ends.
/// # Errors
/// [`Error::Call`] when the kernel refuses a namespace or a mount; it needs root.
pub fn run(dir: &Path, cgroup: Option<&str>) -> Result<(), Error> {
    let subtree = cgroup.map(cgroups::Subtree::enter).transpose()?;
    let result = Keeper::build(dir, subtree.as_ref()).and_then(|mut keeper| keeper.serve());
    subtree.map_or(Ok(()), cgroups::Subtree::leave)?;
    result?;
    // Here and not in the test, which may have been killed.
    std::fs::remove_dir_all(dir).map_err(file("rm -r", dir))
}

#[derive(Debug)]
struct Keeper {
    log: PathBuf,
    signals: SignalFd,
    unread: Vec<u8>,
}

impl Keeper {
    fn build(dir: &Path, subtree: Option<&cgroups::Subtree>) -> Result<Self, Error> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        if let Some(subtree) = subtree {
            enter_namespaces(subtree)?;
        }
        let mut set = SigSet::empty();
        [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
        ]
        .into_iter()
        .for_each(|signal| set.add(signal));
        set.thread_block().map_err(call("sigprocmask(SIG_BLOCK)"))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(call("signalfd"))?;
        let mut keeper = Self {
            log: dir.join("node.log"),
            signals,
            unread: Vec::new(),
        };
        if subtree.is_some() {
            keeper.start("ip\tlink\tset\tlo\tup")?;
        }
        Ok(keeper)
    }

    fn serve(&mut self) -> Result<(), Error> {
        answer(&format!("ready {}", std::process::id()))?;
        let stdin = std::io::stdin();
        loop {
            let mut fds = [
                PollFd::new(&stdin, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(call("poll")(errno)),
            }
            let asked = !fds[0].revents().is_empty();
            let told_to_end = self.reap()?;
            if told_to_end || (asked && !self.listen(&stdin)?) {
                return self.end();
            }
        }
    }

    /// Reads what was asked; false at the end of the input.
    fn listen(&mut self, stdin: &std::io::Stdin) -> Result<bool, Error> {
        let mut bytes = [0; 4096];
        let count = rustix::io::read(stdin, &mut bytes).map_err(call("read(0)"))?;
        self.unread.extend_from_slice(&bytes[..count]);
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            match self.start(String::from_utf8_lossy(&line).trim_end()) {
                Ok(pid) => answer(&format!("started {pid}"))?,
                Err(error) => answer(&format!("failed {}", crate::error::chain(&error)))?,
            }
        }
        Ok(count > 0)
    }

    fn start(&mut self, line: &str) -> Result<u32, Error> {
        let mut words = line.split('\t');
        let program = words.next().unwrap_or_default();
        let log = open_log(&self.log)?;
        let again = log.try_clone().map_err(file("dup", &self.log))?;
        let mut command = Command::new(program);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again);
        let child = command.spawn().map_err(|source| Error::Exec {
            program: program.into(),
            source,
        })?;
        // Never waited for here: `reap` collects every child, adopted or started.
        Ok(child.id())
    }

    /// Collects every child that has ended; true if a signal told the keeper to end itself.
    fn reap(&self) -> Result<bool, Error> {
        let mut told_to_end = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            told_to_end |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(told_to_end),
                Ok(_) => {}
                Err(errno) => return Err(call("waitpid(-1, WNOHANG)")(errno)),
            }
        }
    }

    /// Kills until nobody is left; who is frozen must be thawed to die.
    fn end(&self) -> Result<(), Error> {
        let end = Instant::now() + crate::command::patient(END);
        loop {
            cgroups::thaw();
            let left = process::descendants(std::process::id());
            if left.is_empty() {
                return Ok(());
            }
            left.iter().for_each(|process| process.kill());
            if !crate::command::readable(&self.signals, end)? {
                let what = format!("the end of {left:?}");
                return Err(Error::Deadline { what, limit: END });
            }
            self.reap()?;
        }
    }
}

/// Namespaces for a node beside the machine, with its own `/run` and its own roots of cgroups.
fn enter_namespaces(subtree: &cgroups::Subtree) -> Result<(), Error> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(flags).map_err(call(
        "unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWCGROUP)",
    ))?;
    let propagate = |how| mount_change("/", MountPropagationFlags::REC | how);
    propagate(MountPropagationFlags::DOWNSTREAM).map_err(call("mount(/, MS_REC | MS_SLAVE)"))?;
    subtree.mount()?;
    mount(
        "run",
        "/run",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )
    .map_err(call("mount(/run, tmpfs)"))?;
    // As systemd leaves it: Bidirectional volumes need a shared root.
    propagate(MountPropagationFlags::SHARED).map_err(call("mount(/, MS_REC | MS_SHARED)"))
}

fn open_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(file("open", path))
}

fn answer(line: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(call("write(1)"))
}
