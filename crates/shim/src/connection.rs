//! The connections of containerd to the daemon.
//!
//! Three things that ttrpc's own listener does not do: a peer with another uid is turned away, a
//! failed accept (no descriptors left) pauses in place of spinning, and open connections are
//! counted, so that the daemon can end when its last answer has been read.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// How long a failed accept waits before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections are open.
#[derive(Debug, Default)]
pub(crate) struct Open {
    count: AtomicUsize,
    closed: Notify,
}

impl Open {
    /// Waits until no connection is open.
    pub(crate) async fn none(&self) {
        loop {
            let closed = self.closed.notified();
            if self.count.load(Ordering::Relaxed) == 0 {
                return;
            }
            closed.await;
        }
    }
}

/// Accepted connections, one after the other.
pub(crate) struct Incoming {
    listener: UnixListener,
    pause: Option<Pin<Box<Sleep>>>,
    open: Arc<Open>,
}

impl Incoming {
    pub(crate) fn new(listener: UnixListener, open: Arc<Open>) -> Self {
        Self {
            listener,
            pause: None,
            open,
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            match ready!(this.listener.poll_accept(cx)) {
                Ok((stream, _)) if is_ours(&stream) => {
                    this.open.count.fetch_add(1, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(Connection {
                        stream,
                        open: this.open.clone(),
                    })));
                }
                Ok(_) => log::warn!("connection refused: the peer runs as another user"),
                Err(e) => {
                    log::warn!("accept: {e}");
                    this.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

fn is_ours(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// One connection; counted while it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    open: Arc<Open>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.count.fetch_sub(1, Ordering::Relaxed);
        self.open.closed.notify_waiters();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
