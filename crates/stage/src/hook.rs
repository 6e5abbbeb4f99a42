//! A hook: a program of the host, in the host's namespaces or in those of a container to be.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::path::Path;

use berm_sys::process::{self, flags, setns};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Signal, chdir, set_dumpable_behavior, set_parent_process_death_signal,
    setsid, umask,
};

use crate::error::{Error, call, sys};
use crate::exec::Program;
use crate::spawn::finish;
use crate::{exec, join, keyring, stdio};

/// What a hook is started with.
#[derive(Debug)]
pub struct HookJob<'a> {
    /// The child's end of the channel.
    pub report: BorrowedFd<'a>,
    /// The program.
    pub path: &'a Path,
    /// Arguments, `args[0]` included.
    pub args: &'a [String],
    /// The whole environment.
    pub env: &'a [String],
    /// Working directory: a path of the host.
    pub cwd: &'a Path,
    /// What becomes 0, 1, 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The container whose namespaces it enters; `None`: it stays in the host's.
    pub inside: Option<HookInside<'a>>,
}

/// A container that waits for its hooks.
#[derive(Debug)]
pub struct HookInside<'a> {
    /// pidfd of its first process.
    pub container: BorrowedFd<'a>,
    /// The pod has a user namespace.
    pub userns: bool,
    /// Name of its session keyring.
    pub keyring: &'a str,
    /// `tasks` of each v1 hierarchy of its cgroup, open for writing.
    pub tasks: Vec<BorrowedFd<'a>>,
    /// The cgroup's directory on cgroup2: the child is born in it.
    pub birthplace: Option<BorrowedFd<'a>>,
}

impl HookJob<'_> {
    /// The child's life; it ends in the program.
    pub(crate) fn run(&self) -> Infallible {
        if let Err(e) = self.enter() {
            finish(self.report, 1, "HookEnter", Err(e))
        }
        let done = exec::exec(&Program::Path(self.path.into()), self.args, self.env, None);
        finish(self.report, 2, "HookExec", done)
    }

    fn enter(&self) -> Result<(), Error> {
        let mut keep = vec![self.report];
        keep.extend(self.stdio);
        if let Some(inside) = &self.inside {
            keep.push(inside.container);
            keep.extend(&inside.tasks);
        }
        process::close_all_but(&keep).map_err(sys("close_range()"))?;
        umask(Mode::from_raw_mode(0o022));
        match &self.inside {
            None => self.change_dir()?,
            Some(inside) => self.go_inside(inside)?,
        }
        setsid().map_err(call("setsid()"))?;
        stdio::install(self.stdio)?;
        process::close_all_but(&[self.report]).map_err(sys("close_range()"))?;
        // Who waits for the hook is who ends it: nobody else would, once the shim is gone.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(call("prctl(PR_SET_PDEATHSIG)"))
    }

    /// First the mounts, while the host's credentials may still enter the working directory.
    fn go_inside(&self, inside: &HookInside<'_>) -> Result<(), Error> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(call("prctl(PR_SET_DUMPABLE, 0)"))?;
        join::join_cgroups(&inside.tasks)?;
        setns(inside.container, flags::NEWNS).map_err(sys("setns(container, CLONE_NEWNS)"))?;
        self.change_dir()?;
        let user = if inside.userns { flags::NEWUSER } else { 0 };
        let rest = flags::NEWIPC | flags::NEWUTS | flags::NEWNET | flags::NEWCGROUP | user;
        setns(inside.container, rest).map_err(sys("setns(container)"))?;
        process::set_ids(0, 0, &[]).map_err(sys("setresuid(0)"))?;
        keyring::join(Some(inside.keyring))
    }

    fn change_dir(&self) -> Result<(), Error> {
        chdir(self.cwd).map_err(|source| Error::Chdir {
            path: self.cwd.to_owned(),
            source,
        })
    }
}
