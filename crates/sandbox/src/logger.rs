//! A process's logger: a child of the caller that takes its output, until it is closed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use berm_stage::LoggerJob;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use crate::error::{Error, call};
use crate::polled::poll;
use crate::process::{Child, Ended, SIGKILL, signal};
use crate::stage::{Forked, Outcome, Stage};

const SIGTERM: u32 = 15;
/// How long a logger that has seen the end of both streams may take to end by itself. One that
/// does not end at end of file is told to.
const AFTER_END_OF_FILE: Duration = Duration::from_secs(1);
/// How long it may take once it was told to end: containerd's own number.
const AFTER_SIGTERM: Duration = Duration::from_secs(12);

/// What takes a process's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggerArgs {
    /// A program: it finds stdout's read end at 3, stderr's at 4, and says on 5 that it is ready.
    Program {
        /// Absolute path.
        path: PathBuf,
        /// Arguments after the path.
        args: Vec<String>,
        /// Its whole environment, `NAME=value`.
        env: Vec<String>,
        /// It must write a byte to be ready; otherwise closing 5 is enough.
        must_say_ready: bool,
    },
    /// A file that is appended to, both streams into one.
    File(PathBuf),
}

impl LoggerArgs {
    fn path(&self) -> &PathBuf {
        match self {
            Self::Program { path, .. } | Self::File(path) => path,
        }
    }
}

/// A logger at work; dropping it tells it to end and does not wait.
#[derive(Debug)]
pub struct Logger {
    path: PathBuf,
    child: Rc<Child>,
    ended: JoinHandle<Result<Ended, Error>>,
    closed: bool,
}

impl Logger {
    /// Starts a logger on the read ends of stdout and stderr, and waits until it is ready.
    /// # Errors
    /// The program's execve or the file's open; `Unavailable` if it ended without being ready;
    /// `DeadlineExceeded`. Nothing is left then.
    pub async fn start(
        args: &LoggerArgs,
        streams: [OwnedFd; 2],
        deadline: Duration,
    ) -> Result<Self, Error> {
        let path = args.path().clone();
        let (stage, child_end) = Stage::new("Logger", deadline)?;
        let (ready, said) = pipe_with(PipeFlags::CLOEXEC).map_err(call("pipe2()"))?;
        let [out, err] = &streams;
        let job = LoggerJob {
            logger: match args {
                LoggerArgs::Program {
                    path, args, env, ..
                } => berm_stage::Logger::Program {
                    path,
                    args,
                    env,
                    ready: said.as_fd(),
                },
                LoggerArgs::File(path) => berm_stage::Logger::File(path),
            },
            streams: [out.as_fd(), err.as_fd()],
            report: child_end.as_fd(),
        };
        let forked = Forked::new(berm_stage::spawn_logger(&job)?);
        drop((child_end, said, streams));
        stage.listen(&mut Outcome::default()).await?;
        if let LoggerArgs::Program { must_say_ready, .. } = args {
            let heard = timeout(deadline, is_ready(ready)).await;
            let heard = heard.map_err(|_| Error::LoggerSilent {
                path: path.clone(),
                after: deadline,
            })?;
            if !heard? && *must_say_ready {
                return Err(Error::LoggerNotReady { path });
            }
        }
        let child = Rc::new(forked.into_child()?);
        let watched = Rc::clone(&child);
        Ok(Self {
            path,
            child,
            ended: spawn_local(async move { watched.wait().await }),
            closed: false,
        })
    }

    /// Waits until the logger, whose streams have ended, has ended too. One that does not is told
    /// to by SIGTERM, after 12 s it is killed.
    pub async fn close(mut self) {
        self.closed = true;
        if timeout(AFTER_END_OF_FILE, &mut self.ended).await.is_ok() {
            return;
        }
        self.send(SIGTERM);
        if timeout(AFTER_SIGTERM, &mut self.ended).await.is_ok() {
            return;
        }
        log::warn!(
            "call=CloseLogger path={:?} err=\"killed after SIGTERM\"",
            self.path
        );
        self.send(SIGKILL);
    }

    fn send(&self, number: u32) {
        match signal(self.child.as_fd(), number) {
            Ok(()) | Err(Error::Finished) => {}
            Err(e) => log::warn!("call=CloseLogger path={:?} err={:?}", self.path, e.chain()),
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        if self.closed || self.ended.is_finished() {
            return;
        }
        self.send(SIGTERM);
        let child = Rc::clone(&self.child);
        spawn_local(async move {
            if timeout(AFTER_SIGTERM, child.dead()).await.is_err() {
                // That it has gone meanwhile is as good.
                let _ = signal(child.as_fd(), SIGKILL);
            }
        });
    }
}

/// Waits for a byte (true) or end of file (false).
async fn is_ready(pipe: OwnedFd) -> Result<bool, Error> {
    rustix::io::ioctl_fionbio(&pipe, true).map_err(call("ioctl(FIONBIO)"))?;
    let pipe = poll(pipe)?;
    let read = pipe.async_io(tokio::io::Interest::READABLE, |pipe| {
        let read = || rustix::io::read(&pipe.0, &mut [0u8; 1]);
        Ok(rustix::io::retry_on_intr(read)?)
    });
    let read = read.await.map_err(crate::error::io("read(ready pipe)"))?;
    Ok(read > 0)
}
