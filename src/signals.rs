//! Signals that are meant for the command inside.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, io};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT of this process, as they come.
pub(crate) struct Signals([(u32, Signal); 4]);

impl Signals {
    pub(crate) fn new() -> Result<Self, Error> {
        let listen = |number: u32, kind| {
            let signal = signal(kind).map_err(io("sigaction()"))?;
            Ok::<_, Error>((number, signal))
        };
        Ok(Self([
            listen(2, SignalKind::interrupt())?,
            listen(15, SignalKind::terminate())?,
            listen(1, SignalKind::hangup())?,
            listen(3, SignalKind::quit())?,
        ]))
    }

    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> u32 {
        let [(int, a), (term, b), (hup, c), (quit, d)] = &mut self.0;
        tokio::select! {
            _ = a.recv() => *int,
            _ = b.recv() => *term,
            _ = c.recv() => *hup,
            _ = d.recv() => *quit,
        }
    }
}
