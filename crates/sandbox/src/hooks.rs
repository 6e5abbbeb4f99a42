//! Hooks: programs of the operator that run at set moments of a container's life.
//!
//! | kind | when | where | a failure |
//! |---|---|---|---|
//! | `prestart`, `createRuntime` | Create, before the tree is the root | the host's namespaces | fails Create |
//! | `createContainer` | right after them | the container's namespaces, the host's tree in sight | fails Create |
//! | `startContainer` | Start, before the workload | the container, confined as the workload | fails Start |
//! | `poststart` | Start, once the workload runs | the host's namespaces | is logged |
//! | `poststop` | Delete, once the container is gone | the host's namespaces | is logged |
//!
//! Each is a child of the shim in a session of its own, with no environment but its own and the
//! container's state as standard input. What it writes is kept up to a bound, for the error.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use berm_cgroup::Cgroup;
use berm_plan::{Hook, Hooks};
use berm_stage::{HookInside, HookJob, Message};
use berm_sys::Kind;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use crate::api::Stdio;
use crate::donated::Lifted;
use crate::error::{Error, call, io};
use crate::live::Live;
use crate::namespace;
use crate::polled::{Polled, poll};
use crate::process::pid_of;
use crate::procfs::last;
use crate::record::{ContainerRecord, Poststop};
use crate::stage::{Forked, Outcome, Stage};
use crate::task::Task;

/// How much of each stream of a hook an error shows.
const SHOWN: usize = 512;
/// How much a hook that has ended may have left unread: the size of a pipe.
const LEFT: usize = 64 * 1024;

/// A container whose tree stands, and which waits for its hooks.
pub(crate) struct Gated<'a> {
    /// Its first process.
    pub(crate) init: &'a Forked,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) bundle: &'a Path,
    /// Name of its session keyring.
    pub(crate) keyring: &'a str,
    /// Where the tree stands.
    pub(crate) root: &'a Path,
}

impl Live {
    /// Runs what has to look at the tree before it is the root.
    pub(crate) async fn before_pivot(&self, hooks: &Hooks, at: Gated<'_>) -> Result<(), Error> {
        let pid = at.init.pid()?;
        let state = hooks.state.json("creating", Some(pid));
        for hook in hooks.prestart.iter().chain(&hooks.create_runtime) {
            self.run_on_host(hook, at.bundle, &state).await?;
        }
        if hooks.create_container.is_empty() {
            return Ok(());
        }
        self.open_bundle(at.bundle)?;
        let state = hooks.state.json("creating", Some(inner_pid(pid)?));
        for hook in &hooks.create_container {
            self.run_inside(hook, &at, &state).await?;
        }
        Ok(())
    }

    /// Runs the hooks of `startContainer` of a container at its gate.
    pub(crate) async fn before_start(&self, task: &Task, hooks: &Hooks) -> Result<(), Error> {
        if hooks.start_container.is_empty() {
            return Ok(());
        }
        let pid = inner_pid(task.process.pid())?;
        let state = hooks.state.json("created", Some(pid));
        for start in &hooks.start_container {
            let (streams, stdio) = Streams::new(&state)?;
            let nothing = Lifted::default();
            let (stage, forked) = self.fork_into(task, &start.exec.steps, &stdio, &nothing)?;
            drop(stdio);
            self.finish(&start.hook, (stage, forked), streams, Some(task))
                .await?;
        }
        Ok(())
    }

    /// Runs the hooks of `poststart`; whatever they do, the container runs.
    pub(crate) async fn after_start(&self, task: &Task, hooks: &Hooks) {
        let state = hooks.state.json("running", Some(task.process.pid()));
        self.run_all(task, &hooks.poststart, &state).await;
    }

    /// Runs the hooks of `poststop`; whatever they do, the container is gone.
    pub(crate) async fn after_stop(&self, task: &Task, hooks: &Hooks) {
        let state = hooks.state.json("stopped", None);
        self.run_all(task, &hooks.poststop, &state).await;
    }

    async fn run_all(&self, task: &Task, hooks: &[Hook], state: &str) {
        for hook in hooks {
            if let Err(e) = self.run_on_host(hook, &task.bundle, state).await {
                log::warn!("call=Hook container={} err={:?}", task.id, e.chain());
            }
        }
    }

    async fn run_on_host(&self, hook: &Hook, cwd: &Path, state: &str) -> Result<(), Error> {
        let (streams, stdio) = Streams::new(state)?;
        let (stage, child_end) = Stage::new("Hook", self.host.config.stage_deadline)?;
        let forked = {
            let job = job(hook, cwd, &stdio, &child_end, None)?;
            Forked::new(berm_stage::spawn_hook(None, &job)?)
        };
        drop((stdio, child_end));
        self.finish(hook, (stage, forked), streams, None).await
    }

    async fn run_inside(&self, hook: &Hook, at: &Gated<'_>, state: &str) -> Result<(), Error> {
        let (streams, stdio) = Streams::new(state)?;
        let (stage, child_end) = Stage::new("HookInside", self.host.config.stage_deadline)?;
        let tasks = at.cgroup.tasks()?;
        let pidns = namespace::open(at.init.pid()?, "pid")?;
        let forked = {
            let inside = HookInside {
                container: at.init.as_fd()?,
                userns: self.userns.is_some(),
                keyring: at.keyring,
                tasks: tasks.iter().map(AsFd::as_fd).collect(),
                birthplace: at.cgroup.birthplace(),
            };
            let job = job(hook, at.root, &stdio, &child_end, Some(inside))?;
            let pidns = self.born_in(pidns.as_fd());
            Forked::new(berm_stage::spawn_hook(Some(pidns), &job)?)
        };
        drop((stdio, child_end, tasks));
        self.finish(hook, (stage, forked), streams, None).await
    }

    /// Lets root of the pod, which is who a hook of `createContainer` runs as, pass through the
    /// bundle; containerd does the same for a spec that brings a user namespace.
    fn open_bundle(&self, bundle: &Path) -> Result<(), Error> {
        if self.userns.is_none() {
            return Ok(());
        }
        let stat = fs::metadata(bundle).map_err(io("stat(bundle)"))?;
        if stat.mode() & 0o001 != 0 {
            return Ok(());
        }
        let gid = self.ids.gids.to_host(0);
        std::os::unix::fs::chown(bundle, None, gid).map_err(io("chown(bundle)"))?;
        let mode = fs::Permissions::from_mode(stat.mode() & 0o7707 | 0o010);
        fs::set_permissions(bundle, mode).map_err(io("chmod(bundle)"))
    }

    /// Waits for the end of a hook, for as long as it may take. `container`: it is confined as that
    /// one's workload.
    async fn finish(
        &self,
        hook: &Hook,
        (mut stage, forked): (Stage, Forked),
        mut streams: Streams,
        container: Option<&Task>,
    ) -> Result<(), Error> {
        let failed = |kind: Kind, reason: String| Error::Hook {
            field: hook.field.clone(),
            path: hook.path.clone(),
            reason,
            kind,
        };
        let mut outcome = Outcome::default();
        let started = match container {
            Some(task) => {
                let child = forked.as_fd()?;
                self.until_exec(&mut stage, child, task, &mut outcome).await
            }
            None => stage.listen(&mut outcome).await,
        };
        match started {
            Ok(()) => {}
            Err(Error::Step(failure)) => {
                let kind = Kind::parse(&failure.kind).unwrap_or(Kind::Internal);
                return Err(failed(kind, failure.text));
            }
            Err(e) => return Err(e),
        }
        let limit = hook.timeout.unwrap_or(self.host.config.hook_deadline);
        let group = Pid::from_raw(forked.pid()?);
        let child = Rc::new(forked.into_child()?);
        let reading = async {
            tokio::join!(streams.out.read(), streams.err.read());
            // A hook may close its streams and go on.
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            // One that ended in time has, also if it is looked at after that.
            biased;
            dead = child.dead() => dead.map(|()| true)?,
            () = reading => false,
            () = sleep(limit) => false,
        };
        if !ended {
            // It is not reaped, so that no other group can have its number.
            end_group(group);
            let gone = timeout(self.host.config.kill_deadline, child.wait()).await;
            gone.map_err(|_| Error::Slow {
                what: "the end of a killed hook",
                after: self.host.config.kill_deadline,
            })??;
            let reason = format!("did not end within {} s", limit.as_secs());
            return Err(failed(Kind::DeadlineExceeded, streams.with_output(reason)));
        }
        let status = child.wait().await?.status;
        if status == 0 {
            return Ok(());
        }
        let reason = format!("exited with {status}");
        Err(failed(
            Kind::FailedPrecondition,
            streams.with_output(reason),
        ))
    }
}

/// What a clean-up has to run for a container whose shim is gone.
pub(crate) fn to_record(task: &Task) -> Option<Poststop> {
    let hooks = task.hooks.borrow();
    let hooks = hooks.as_ref().filter(|hooks| !hooks.poststop.is_empty())?;
    Some(Poststop {
        hooks: hooks.poststop.clone(),
        state: hooks.state.json("stopped", None),
    })
}

/// Runs the hooks of `poststop` of a container whose shim is gone, one after the other, no longer
/// than `until`; failures are logged.
pub(crate) fn run_recorded(container: &ContainerRecord, until: Instant) {
    let Some(poststop) = &container.poststop else {
        return;
    };
    for hook in &poststop.hooks {
        if let Err(e) = run_and_wait(hook, &container.bundle, &poststop.state, until) {
            log::warn!("call=Hook container={} err={:?}", container.id, e.chain());
        }
    }
}

fn run_and_wait(hook: &Hook, cwd: &Path, state: &str, until: Instant) -> Result<(), Error> {
    let failed = |kind: Kind, reason: String| Error::Hook {
        field: hook.field.clone(),
        path: hook.path.clone(),
        reason,
        kind,
    };
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(io("open(\"/dev/null\")"))?;
    let stdio = Stdio {
        stdin: Some(document(state)?),
        stdout: Some(null.try_clone().map_err(io("dup()"))?.into()),
        stderr: Some(null.into()),
    };
    let (gate, child_end) = berm_stage::channel().map_err(call("socketpair()"))?;
    let pidfd = berm_stage::spawn_hook(None, &job(hook, cwd, &stdio, &child_end, None)?)?;
    drop((stdio, child_end));
    let group = Pid::from_raw(pid_of(pidfd.as_fd())?);
    let own = hook.timeout.map(|timeout| Instant::now() + timeout);
    let until = own.map_or(until, |own| own.min(until));
    let ended = ends_until(pidfd.as_fd(), until)?;
    if !ended {
        end_group(group);
    }
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .map_err(call("waitid(P_PIDFD)"))?;
    if let Ok(Some(report)) = gate.receive()
        && let Message::Failed(failure) = report.message
    {
        return Err(failed(Kind::Internal, failure.text));
    }
    match status.and_then(|status| status.exit_status()) {
        _ if !ended => Err(failed(
            Kind::DeadlineExceeded,
            "did not end in time".to_owned(),
        )),
        Some(0) => Ok(()),
        code => Err(failed(
            Kind::FailedPrecondition,
            format!("exited with {}", code.unwrap_or(255)),
        )),
    }
}

/// True if the process ends before that.
fn ends_until(pidfd: BorrowedFd<'_>, until: Instant) -> Result<bool, Error> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(call("poll(pidfd)")(e)),
        }
    }
}

fn job<'a>(
    hook: &'a Hook,
    cwd: &'a Path,
    stdio: &'a Stdio,
    child_end: &'a OwnedFd,
    inside: Option<HookInside<'a>>,
) -> Result<HookJob<'a>, Error> {
    let missing = || Error::Died { last: "HookStdio" };
    let [stdin, stdout, stderr] = stdio.borrow();
    Ok(HookJob {
        report: child_end.as_fd(),
        path: &hook.path,
        args: &hook.args,
        env: &hook.env,
        cwd,
        stdio: [
            stdin.ok_or_else(missing)?,
            stdout.ok_or_else(missing)?,
            stderr.ok_or_else(missing)?,
        ],
        inside,
    })
}

/// Kills the processes of a hook's session.
fn end_group(group: Option<Pid>) {
    match group.map(|group| kill_process_group(group, Signal::KILL)) {
        None | Some(Ok(()) | Err(Errno::SRCH)) => {}
        Some(Err(e)) => log::error!("call=KillHook err={:?}", e.to_string()),
    }
}

/// The pid of a process in the innermost of its PID namespaces.
fn inner_pid(pid: i32) -> Result<i32, Error> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(path).map_err(io("read(/proc/<pid>/status)"))?;
    last(&status, "NSpid:").ok_or(Error::Call {
        call: "status(NSpid)",
        source: Errno::SRCH,
    })
}

/// What the shim reads of a hook.
struct Streams {
    out: Stream,
    err: Stream,
}

impl Streams {
    /// The shim's ends, and the hook's, whose standard input holds `state`.
    fn new(state: &str) -> Result<(Self, Stdio), Error> {
        let (out, stdout) = Stream::new()?;
        let (err, stderr) = Stream::new()?;
        let stdio = Stdio {
            stdin: Some(document(state)?),
            stdout: Some(stdout),
            stderr: Some(stderr),
        };
        Ok((Self { out, err }, stdio))
    }

    fn with_output(&mut self, mut reason: String) -> String {
        for (name, stream) in [("stderr", &mut self.err), ("stdout", &mut self.out)] {
            let text = stream.shown();
            if !text.is_empty() {
                reason = format!("{reason}, {name}: {text}");
            }
        }
        reason
    }
}

/// A file that holds `text` and that nobody can change: read from its start, like a pipe.
fn document(text: &str) -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = memfd_create("state", flags).map_err(call("memfd_create(state)"))?;
    let mut file = fs::File::from(memfd);
    file.write_all(text.as_bytes())
        .map_err(io("write(memfd)"))?;
    seek(&file, SeekFrom::Start(0)).map_err(call("lseek(memfd)"))?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, all).map_err(call("fcntl(F_ADD_SEALS)"))?;
    Ok(file.into())
}

/// One output stream; its beginning is kept, the rest is read and dropped.
struct Stream {
    pipe: AsyncFd<Polled<OwnedFd>>,
    kept: Vec<u8>,
    closed: bool,
}

impl Stream {
    fn new() -> Result<(Self, OwnedFd), Error> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(call("pipe2()"))?;
        rustix::io::ioctl_fionbio(&read, true).map_err(call("ioctl(FIONBIO)"))?;
        let stream = Self {
            pipe: poll(read)?,
            kept: Vec::new(),
            closed: false,
        };
        Ok((stream, write))
    }

    /// Reads until the last writer closes.
    async fn read(&mut self) {
        while !self.closed {
            let Ok(mut ready) = self.pipe.readable().await else {
                return;
            };
            let mut part = [0; 4096];
            match rustix::io::read(self.pipe.get_ref(), &mut part) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                got => {
                    drop(ready);
                    self.keep(got, &part);
                }
            }
        }
    }

    fn keep(&mut self, got: Result<usize, Errno>, part: &[u8]) -> usize {
        let bytes = got.unwrap_or(0);
        self.closed = bytes == 0;
        let room = SHOWN.saturating_sub(self.kept.len()).min(bytes);
        self.kept.extend(&part[..room]);
        bytes
    }

    /// What was read and what the pipe still holds, escaped; others may still write.
    fn shown(&mut self) -> String {
        let mut left = LEFT;
        while !self.closed && left > 0 {
            let mut part = [0; 4096];
            match rustix::io::read(self.pipe.get_ref(), &mut part) {
                Err(Errno::AGAIN) => break,
                got => left = left.saturating_sub(self.keep(got, &part)),
            }
        }
        let text = String::from_utf8_lossy(&self.kept);
        text.trim().escape_debug().to_string()
    }
}
