//! Connections from the host to a port of a pod.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use tokio::io::Interest;

use crate::aside::Aside;
use crate::error::{Error, call};
use crate::live::{Live, Sandbox};
use crate::namespace;
use crate::polled::poll_for;
use crate::splice::{self, Socket};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections of one pod at a time.
const MAX_FORWARDS: usize = 256;

impl Sandbox {
    /// Connects `stream` to a port of the pod, on its loopback addresses: made when this returns,
    /// then bytes go both ways, each way until its end, also after the other has ended. All ends
    /// with the sandbox. `stream` becomes non-blocking.
    /// # Errors
    /// `NotFound` for an unknown id; `FailedPrecondition` unless the container runs;
    /// `InvalidArgument` if `stream` is no unix stream socket; `Unavailable` with the address if
    /// nobody listens, and beyond 256 connections; `DeadlineExceeded`.
    pub async fn port_forward(&self, id: &str, port: u16, stream: OwnedFd) -> Result<(), Error> {
        let live = &self.0;
        // Refuses what does not run.
        self.pids(id)?;
        let theirs = unix_stream(stream)?;
        let place = Rc::clone(&live.forwards);
        if Rc::strong_count(&place) > MAX_FORWARDS + 1 {
            return Err(Error::TooManyForwards { max: MAX_FORWARDS });
        }
        let ours = live.connect(port).await?;
        let mut gone = live.gone.subscribe();
        tokio::task::spawn_local(async move {
            let _place = place;
            tokio::select! {
                carried = splice::both_ways(&theirs, &ours) => {
                    if let Err(e) = carried {
                        log::debug!("call=PortForward port={port} err={e}");
                    }
                }
                _ = gone.wait_for(|gone| *gone) => {}
            }
        });
        Ok(())
    }
}

fn unix_stream(stream: OwnedFd) -> Result<Socket, Error> {
    let is = |fd: &OwnedFd| {
        let unix = socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
        unix && socket_type(fd).is_ok_and(|kind| kind == SocketType::STREAM)
    };
    if !is(&stream) {
        return Err(Error::NoStream);
    }
    socket(stream)
}

/// For both directions, never blocking.
fn socket(fd: OwnedFd) -> Result<Socket, Error> {
    rustix::io::ioctl_fionbio(&fd, true).map_err(call("ioctl(FIONBIO)"))?;
    poll_for(fd, Interest::READABLE | Interest::WRITABLE)
}

impl Live {
    /// A connection made by a child inside the pod's network namespace.
    async fn connect(&self, port: u16) -> Result<Socket, Error> {
        // PID 1 is an own child: its number is its own until it is reaped.
        if *self.gone.borrow() {
            let id = self.record.id.clone();
            return Err(Error::SandboxGone { id });
        }
        let netns = namespace::open(self.record.pid, "net")?;
        let connecting = Aside::begin("Connect", PATIENCE * 2, |report| {
            berm_stage::spawn_connect(report, netns.as_fd(), port, PATIENCE)
        })?;
        let connected = connecting.end().await?.socket;
        self::socket(connected.ok_or(Error::Died { last: "Connect" })?)
    }
}
