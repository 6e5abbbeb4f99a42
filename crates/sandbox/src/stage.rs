//! Drives one stage child: forks it, listens to it, reaps it, and undoes it on failure.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use berm_stage::{Gate, Message, Report};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, call, io};
use crate::exits::ASK_AGAIN;
use crate::open_calls::OpenCall;
use crate::polled::{Polled, poll};
use crate::process::{Child, SIGKILL, pid_of, signal};

/// The shim's end of a stage child's channel, and until when it may take.
#[derive(Debug)]
pub(crate) struct Stage {
    gate: AsyncFd<Polled<Gate>>,
    deadline: Duration,
    until: Instant,
    /// Room for the pidfd of what the child clones: at the limit of descriptors the kernel drops
    /// one that is handed over, and nobody could reap that process. Given up when it came.
    spare: RefCell<Option<OwnedFd>>,
    _open: OpenCall,
}

/// What a stage child handed over before it was done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The process that it cloned.
    pub(crate) init: Option<Forked>,
    /// Master of the terminal.
    pub(crate) pty: Option<OwnedFd>,
    /// A connection to a port of the pod.
    pub(crate) socket: Option<OwnedFd>,
    /// What it was to make.
    pub(crate) made: Option<OwnedFd>,
    /// The container's devpts.
    pub(crate) devpts: Option<OwnedFd>,
    /// The tree stands, and the child waits until the hooks that look at it are done.
    pub(crate) at_hooks: bool,
    /// Number of the listener of the child's filter; the child waits until it was passed on.
    pub(crate) listener: Option<i32>,
    /// True when the child waits at its gate; false when its end is closed.
    pub(crate) at_gate: bool,
}

impl Stage {
    /// A new channel and the child's end of it, to be dropped once the child is forked; `what` says
    /// what the child is for.
    pub(crate) fn new(what: &'static str, deadline: Duration) -> Result<(Self, OwnedFd), Error> {
        let (gate, child) = berm_stage::channel().map_err(call("socketpair()"))?;
        let spare = spare(gate.as_fd())?;
        let gate = poll(gate)?;
        Ok((
            Self {
                gate,
                deadline,
                until: Instant::now() + deadline,
                spare: RefCell::new(Some(spare)),
                _open: OpenCall::begin(format!("stage {what}")),
            },
            child,
        ))
    }

    async fn receive(&self, last: &'static str) -> Result<Option<Report>, Error> {
        loop {
            let ready = timeout_at(self.until, self.gate.readable()).await;
            let Ok(ready) = ready else {
                return Err(Error::Deadline {
                    last,
                    after: self.deadline,
                });
            };
            let mut ready = ready.map_err(io("epoll_wait(gate)"))?;
            match self.take()? {
                Err(Errno::AGAIN) => ready.clear_ready(),
                // A child that leaves something unread, such as our word, leaves a reset. It is
                // told once, before what the child has said.
                Err(Errno::CONNRESET) => {}
                got => return got.map_err(call("recvmsg(gate)")),
            }
        }
    }

    /// What has come, in the room that was kept for a descriptor.
    fn take(&self) -> Result<Result<Option<Report>, Errno>, Error> {
        let room = self.spare.borrow_mut().take().is_some();
        let got = self.gate.get_ref().0.receive();
        let cloned = matches!(&got, Ok(Some(report)) if matches!(report.message, Message::Init));
        if room && !cloned {
            // On failure what was got is dropped, and there is room again for what may still come.
            *self.spare.borrow_mut() = Some(spare(self.gate.get_ref().0.as_fd())?);
        }
        Ok(got)
    }

    /// Listens until the child waits at its gate, or its end is closed, or a step failed.
    pub(crate) async fn listen(&self, outcome: &mut Outcome) -> Result<(), Error> {
        let mut last = "fork";
        while let Some(Report { message, fd }) = self.receive(last).await? {
            match message {
                Message::Warning(text) => warn(&text),
                Message::Pty => outcome.pty = fd,
                Message::Devpts => outcome.devpts = fd,
                Message::Made => outcome.made = fd,
                Message::Socket => outcome.socket = fd,
                Message::Init => {
                    outcome.init = fd.map(Forked::new);
                    last = "CloneInit";
                }
                Message::Listener(number) => {
                    outcome.listener = Some(number);
                    return Ok(());
                }
                Message::Hooks => {
                    outcome.at_hooks = true;
                    return Ok(());
                }
                Message::Created => {
                    outcome.at_gate = true;
                    return Ok(());
                }
                Message::Failed(failure) => return Err(Error::Step(failure)),
            }
        }
        outcome.at_gate = false;
        Ok(())
    }

    /// Listens until the child has cloned the process that waits for [`Stage::open`].
    pub(crate) async fn listen_for_init(&self) -> Result<Forked, Error> {
        let died = Error::Died { last: "CloneInit" };
        while let Some(Report { message, fd }) = self.receive("fork").await? {
            match message {
                Message::Warning(text) => warn(&text),
                Message::Init => return fd.map(Forked::new).ok_or(died),
                Message::Failed(failure) => return Err(Error::Step(failure)),
                Message::Pty
                | Message::Devpts
                | Message::Made
                | Message::Socket
                | Message::Hooks
                | Message::Listener(_)
                | Message::Created => {}
            }
        }
        Err(died)
    }

    /// Lets a child go on that waited half-way, and listens again.
    pub(crate) async fn go_on(&mut self, outcome: &mut Outcome) -> Result<(), Error> {
        self.until = Instant::now() + self.deadline;
        let opened = self.gate.get_ref().0.open();
        self.listen(outcome).await?;
        opened.map_err(|_| Error::Died { last: "Gate" })
    }

    /// Opens the gate and listens until the child has become the workload.
    pub(crate) async fn open(&mut self) -> Result<(), Error> {
        self.until = Instant::now() + self.deadline;
        let opened = self.gate.get_ref().0.open();
        // A child that is gone may have said why.
        self.listen(&mut Outcome::default()).await?;
        opened.map_err(|_| Error::Died { last: "Gate" })
    }
}

fn spare(fd: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(call("fcntl(F_DUPFD_CLOEXEC)"))
}

fn warn(text: &str) {
    log::warn!("call=Stage result=ok warning={text:?}");
}

impl Stage {
    /// Ends what a failed creation left: the builder and the process that it cloned, in the
    /// background.
    ///
    /// The pod may have killed either before the clone handed over its pidfd. It must be reaped
    /// all the same: a zombie in a PID namespace keeps that from ending.
    pub(crate) fn abandon(self, builder: Forked, init: Option<Forked>) {
        tokio::task::spawn_local(async move {
            let known = init.is_some();
            drop(init);
            if let Err(e) = self.end_of(builder, known).await {
                log::warn!("call=AbandonStage err={:?}", e.chain());
            }
        });
    }

    async fn end_of(self, mut builder: Forked, mut known: bool) -> Result<(), Error> {
        let Some(pidfd) = builder.0.take() else {
            return Ok(());
        };
        let group = Pid::from_raw(pid_of(pidfd.as_fd())?);
        kill(pidfd.as_fd());
        let builder = Child::new(pidfd)?;
        builder.dead().await?;
        // It clones no more, and until it is reaped no other group can have its number. What it
        // cloned is in its group, or has handed over its pidfd before it left.
        if let Some(group) = group {
            kill_group(group)?;
        }
        drop(self.spare.borrow_mut().take());
        while let Ok(Some(report)) = self.gate.get_ref().0.receive() {
            if let (Message::Init, Some(fd)) = (report.message, report.fd) {
                known = true;
                drop(Forked::new(fd));
            }
        }
        if let (false, Some(group)) = (known, group) {
            reap_group(group).await?;
        }
        match builder.wait().await {
            // Reaped with its group.
            Err(Error::Call { source, .. }) if source == Errno::CHILD => Ok(()),
            ended => ended.map(drop),
        }
    }
}

fn kill_group(group: Pid) -> Result<(), Error> {
    match kill_process_group(group, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(call("kill(-pgid, SIGKILL)")(e)),
    }
}

/// Reaps every child in a process group whose members are dying.
async fn reap_group(group: Pid) -> Result<(), Error> {
    let mut pause = ASK_AGAIN;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        match waitid(WaitId::Pgid(Some(group)), options) {
            Err(Errno::CHILD) => return Ok(()),
            Err(e) => return Err(call("waitid(P_PGID)")(e)),
            Ok(Some(_)) => {}
            Ok(None) => {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// An own child that nothing owns yet: killed and reaped if it is dropped.
#[derive(Debug)]
pub(crate) struct Forked(Option<OwnedFd>);

impl Forked {
    pub(crate) fn new(pidfd: OwnedFd) -> Self {
        Self(Some(pidfd))
    }

    /// Reaps it in the background: it has said its last word and ends by itself.
    pub(crate) fn reap(mut self) {
        if let Some(pidfd) = self.0.take() {
            reap(pidfd);
        }
    }

    /// Hands it over to its owner, who watches and reaps it.
    pub(crate) fn into_child(mut self) -> Result<Child, Error> {
        let died = Error::Died { last: "CloneInit" };
        self.0.take().map_or(Err(died), Child::new)
    }

    /// Its pidfd.
    pub(crate) fn as_fd(&self) -> Result<BorrowedFd<'_>, Error> {
        let died = Error::Died { last: "CloneInit" };
        self.0.as_ref().map(AsFd::as_fd).ok_or(died)
    }

    pub(crate) fn pid(&self) -> Result<i32, Error> {
        let died = Error::Died { last: "CloneInit" };
        self.0.as_ref().map_or(Err(died), |fd| pid_of(fd.as_fd()))
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        let Some(pidfd) = self.0.take() else { return };
        kill(pidfd.as_fd());
        reap(pidfd);
    }
}

fn kill(pidfd: BorrowedFd<'_>) {
    match signal(pidfd, SIGKILL) {
        Ok(()) | Err(Error::Finished) => {}
        Err(e) => log::warn!("call=KillStage err={:?}", e.chain()),
    }
}

fn reap(pidfd: OwnedFd) {
    tokio::task::spawn_local(async move {
        let ended = match Child::new(pidfd) {
            Ok(child) => child.wait().await.map(drop),
            Err(e) => Err(e),
        };
        if let Err(e) = ended {
            log::warn!("call=ReapStage err={:?}", e.chain());
        }
    });
}
