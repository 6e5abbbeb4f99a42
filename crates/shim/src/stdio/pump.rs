//! Carries bytes from an exec's pipe or a terminal to a fifo, and from a fifo to a process's pipe
//! or its terminal.
//!
//! A pump is a local task that owns its ends. It ends at end of file, or when Delete asks it to
//! finish: then it carries what is there at that moment, because whoever holds the other side
//! may go on writing for ever.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, timeout_at};

use super::terminal::Terminal;
use super::watch;
use crate::error::Error;

/// Bytes per system call: a pipe's default size.
const CHUNK: usize = 64 << 10;
/// Bytes per read of a terminal.
const TERMINAL_CHUNK: usize = 32 << 10;
/// What a terminal's own buffers can hold at most, with room to spare.
const TERMINAL_REST: u64 = 1 << 20;

/// A running copy; dropping it ends it at once.
#[derive(Debug)]
pub(super) struct Pump {
    finish: oneshot::Sender<()>,
    done: JoinHandle<()>,
    stream: &'static str,
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.done.abort();
    }
}

impl Pump {
    /// From a pipe to a fifo or the other way, without a copy through this process. It ends as
    /// well when nobody can read any more.
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub(super) fn splice(
        source: OwnedFd,
        sink: OwnedFd,
        stream: &'static str,
    ) -> Result<Self, Error> {
        let source = watch(source, Interest::READABLE, stream)?;
        let sink = watch(sink, Interest::WRITABLE, stream)?;
        Ok(Self::run(stream, |finish| async move {
            splice_all(&source, &sink, finish).await
        }))
    }

    /// From a terminal to a fifo; without one the bytes are dropped, as `/dev/null` would.
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub(super) fn terminal_output(
        terminal: Rc<Terminal>,
        sink: Option<OwnedFd>,
    ) -> Result<Self, Error> {
        let sink = sink
            .map(|fd| watch(fd, Interest::WRITABLE, "output fifo"))
            .transpose()?;
        Ok(Self::run("terminal", |finish| async move {
            let result = copy_out(&terminal, sink.as_ref(), finish).await;
            terminal.hang_up();
            result
        }))
    }

    /// From a fifo to a terminal. At end of file the terminal hangs up, as runc's does: nobody
    /// can type any more.
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub(super) fn terminal_input(source: OwnedFd, terminal: Rc<Terminal>) -> Result<Self, Error> {
        let source = watch(source, Interest::READABLE, "input fifo")?;
        Ok(Self::run("stdin", |_finish| async move {
            let result = copy_in(&source, &terminal).await;
            terminal.input_ended();
            result
        }))
    }

    fn run<F>(stream: &'static str, copy: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + 'static,
    {
        let (finish, asked) = oneshot::channel();
        let copy = copy(asked);
        let done = spawn_local(async move {
            if let Err(e) = copy.await {
                log::warn!(stream, err:% = e; "stdio copy ended early");
            }
        });
        Self {
            finish,
            done,
            stream,
        }
    }

    /// True once it has carried all.
    #[cfg(test)]
    pub(super) fn has_ended(&self) -> bool {
        self.done.is_finished()
    }

    /// Carries what is there now, then ends; at the deadline it ends anyway.
    pub(super) async fn finish(mut self, deadline: Instant) {
        let (finish, _) = oneshot::channel();
        // The pump may have ended by itself: then nobody listens.
        let _ = std::mem::replace(&mut self.finish, finish).send(());
        if timeout_at(deadline, &mut self.done).await.is_err() {
            log::warn!(stream = self.stream; "output lost: its reader is too slow");
        }
    }
}

async fn splice_all(
    source: &AsyncFd<OwnedFd>,
    sink: &AsyncFd<OwnedFd>,
    mut finish: oneshot::Receiver<()>,
) -> io::Result<()> {
    // Bytes still to carry, once Delete has asked.
    let mut rest = None;
    while rest != Some(0) {
        let mut readable = tokio::select! {
            readable = source.readable() => readable?,
            _ = &mut finish, if rest.is_none() => {
                rest = Some(ioctl_fionread(source)?);
                continue;
            }
        };
        let want = rest.map_or(CHUNK, |rest| {
            usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK)
        });
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(source, None, sink, None, want, flags) {
            Ok(0) | Err(Errno::PIPE) => break,
            Ok(n) => rest = rest.map(|rest| rest.saturating_sub(u64::try_from(n).unwrap_or(rest))),
            Err(Errno::INTR) => {}
            // EAGAIN does not tell which side is meant.
            Err(Errno::AGAIN) if !is_ready(source, PollFlags::IN)? => readable.clear_ready(),
            Err(Errno::AGAIN) => {
                drop(readable);
                let mut writable = sink.writable().await?;
                if !is_ready(sink, PollFlags::OUT)? {
                    writable.clear_ready();
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// True if a call in that direction would not wait, end of file included.
fn is_ready(fd: impl AsFd, flags: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, flags)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut fds, Some(&now))? > 0)
}

async fn copy_out(
    terminal: &Terminal,
    sink: Option<&AsyncFd<OwnedFd>>,
    mut finish: oneshot::Receiver<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; TERMINAL_CHUNK];
    let mut rest = None;
    while rest != Some(0) {
        let read = if rest.is_some() {
            terminal.read_now(&mut buffer)?
        } else {
            tokio::select! {
                read = terminal.read(&mut buffer) => read?,
                () = terminal.wait_input_end() => { rest = Some(TERMINAL_REST); continue }
                _ = &mut finish => { rest = Some(TERMINAL_REST); continue }
            }
        };
        let Some(n) = read.filter(|n| *n > 0) else {
            break;
        };
        rest = rest.map(|rest: u64| rest.saturating_sub(u64::try_from(n).unwrap_or(rest)));
        if let Some(sink) = sink {
            write_all(sink, buffer.get(..n).unwrap_or_default()).await?;
        }
    }
    Ok(())
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = sink
            .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await?;
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}

async fn copy_in(source: &AsyncFd<OwnedFd>, terminal: &Terminal) -> io::Result<()> {
    let mut buffer = vec![0; TERMINAL_CHUNK];
    loop {
        let n = source
            .async_io(Interest::READABLE, |fd| {
                Ok(rustix::io::read(fd, &mut *buffer)?)
            })
            .await?;
        if n == 0 {
            return Ok(());
        }
        if !terminal
            .write_all(buffer.get(..n).unwrap_or_default())
            .await?
        {
            return Ok(());
        }
    }
}
