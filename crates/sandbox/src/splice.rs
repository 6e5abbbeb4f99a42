//! Carries bytes between two stream sockets without a copy through this process.
//!
//! splice(2) moves them from a socket into a pipe and from there into the other socket. The pipe
//! is empty whenever the source is looked at, so that `EAGAIN` says which side is meant. A
//! direction that is idle gives its pipe back: most connections are, and each pipe is two of the
//! process's descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::polled::Polled;

/// Bytes per system call: a pipe's default size.
const CHUNK: usize = 64 << 10;
/// How long a direction without bytes keeps its pipe.
const IDLE: Duration = Duration::from_secs(1);

/// A stream socket that does not block.
pub(crate) type Socket = AsyncFd<Polled<OwnedFd>>;

/// Carries bytes both ways, each way until its end, also after the other has ended.
/// # Errors
/// What a socket fails with, either way: then both have ended.
pub(crate) async fn both_ways(one: &Socket, other: &Socket) -> io::Result<()> {
    tokio::try_join!(one_way(one, other), one_way(other, one)).map(drop)
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

async fn one_way(from: &Socket, to: &Socket) -> io::Result<()> {
    let mut kept = None;
    loop {
        if kept.is_some() && timeout(IDLE, from.readable()).await.is_err() {
            kept = None;
        }
        let mut readable = from.readable().await?;
        let pipe = match kept.take() {
            Some(pipe) => pipe,
            None => new_pipe()?,
        };
        match splice(from.get_ref(), None, &pipe.write, None, CHUNK, FLAGS) {
            Ok(0) => return end(to),
            Ok(count) => {
                drain(&pipe, to, count).await?;
                // Who sends without a pause must not hold up the process's other work.
                yield_now().await;
            }
            Err(Errno::AGAIN) => readable.clear_ready(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        kept = Some(pipe);
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

fn new_pipe() -> io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok(Pipe { read, write })
}

/// Moves the `count` bytes of the pipe on.
async fn drain(pipe: &Pipe, to: &Socket, mut count: usize) -> io::Result<()> {
    while count > 0 {
        let mut writable = to.writable().await?;
        match splice(&pipe.read, None, to.get_ref(), None, count, FLAGS) {
            Ok(moved) => count = count.saturating_sub(moved),
            Err(Errno::AGAIN) => writable.clear_ready(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Tells the other side that no more will come.
fn end(to: &Socket) -> io::Result<()> {
    match shutdown(to.get_ref(), Shutdown::Write) {
        // It is gone already.
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
