//! The socket on which somebody waits for a process's terminal, as runc's `--console-socket`.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berm_sys::Kind;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::aside::Aside;
use crate::error::{Error, call};
use crate::stage::Outcome;

/// What comes with the terminal: the name of the device that it was opened by, as runc sends it.
const NAME: &[u8] = b"/dev/ptmx";

/// A connection to whoever takes a process's terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    socket: OwnedFd,
}

impl ConsoleSocket {
    /// Connects to a unix stream socket, in a child: nobody knows how long its path or its queue
    /// let others wait. Must run in a `LocalSet`, on the only thread of the process.
    /// # Errors
    /// `NotFound`, `Unavailable` if nobody listens, `DeadlineExceeded`; the path is named.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Self, Error> {
        let refused = |error: &Error| {
            let (reason, kind) = match error {
                Error::Deadline { after, .. } => {
                    let after = after.as_secs();
                    let reason = format!("nobody took the connection within {after} s");
                    (reason, error.kind())
                }
                other => other.plain(),
            };
            refusal(path, reason, kind)
        };
        let connecting = Aside::begin("ConsoleSocket", deadline, |report| {
            berm_stage::spawn_connect_unix(report, path)
        })?;
        let socket = connecting.end().await.map_err(|e| refused(&e))?.socket;
        Ok(Self {
            path: path.to_owned(),
            socket: socket.ok_or(Error::Died { last: "Connect" })?,
        })
    }

    /// Gives the master of a terminal away, in blocking mode; waits for nobody.
    /// # Errors
    /// `Unavailable` if who listened has gone.
    pub fn send(self, master: OwnedFd) -> Result<(), Error> {
        rustix::io::ioctl_fionbio(&master, false).map_err(call("ioctl(pty, FIONBIO)"))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [master.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.socket, &[IoSlice::new(NAME)], &mut control, flags) {
            Ok(len) if len == NAME.len() => Ok(()),
            Ok(_) => Err(refusal(
                &self.path,
                "sendmsg(): cut".into(),
                Kind::Unavailable,
            )),
            Err(e) => {
                let reason = format!("sendmsg(): {e}");
                Err(refusal(&self.path, reason, Kind::Unavailable))
            }
        }
    }

    /// Gives away the terminal that a stage child has made, if somebody waits for it.
    pub(crate) fn take(console: Option<Self>, outcome: &mut Outcome) -> Result<(), Error> {
        let Some(console) = console else {
            return Ok(());
        };
        let master = outcome.pty.take().ok_or(Error::Died { last: "Pty" })?;
        console.send(master)
    }
}

/// Refuses a socket that no terminal will come to.
pub(crate) fn check(path: Option<&Path>, terminal: bool) -> Result<(), Error> {
    match path {
        Some(path) if !terminal => {
            let reason = "the process has no terminal; ask for one, or leave the socket out";
            Err(refusal(path, reason.into(), Kind::InvalidArgument))
        }
        _ => Ok(()),
    }
}

fn refusal(path: &Path, reason: String, kind: Kind) -> Error {
    Error::ConsoleSocket {
        path: path.to_owned(),
        reason,
        kind,
    }
}
