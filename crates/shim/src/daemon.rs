//! The daemon: one thread that serves the pod until its last task is gone.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::connection::{Incoming, Open};
use crate::error::{self, Error};
use crate::event;
use crate::publisher::{self, Link};
use crate::task::{self, Pod, TaskService};

/// How long the last answers may take to be read.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long the last events may take to be sent; containerd may be down for good.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// So long after the last call the pod is left to itself.
const REST: Duration = Duration::from_secs(1);
/// Memory is given back no more often: to touch it again costs some page faults.
const BETWEEN_RELEASES: Duration = Duration::from_secs(60);

/// What the daemon is given at its start.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    pub(crate) namespace: String,
    pub(crate) ttrpc_address: String,
    /// A byte comes when containerd has the address of the socket, or never.
    pub(crate) known: OwnedFd,
    pub(crate) config: berm_sandbox::Config,
}

impl Daemon {
    /// Serves until the pod has ended or a signal ends it.
    ///
    /// The sandbox forks from this process, so it must keep to one thread: the runtime is
    /// `current_thread` and nothing in it blocks on a pool.
    /// # Errors
    /// The errno of what a runtime needs (epoll, eventfd, socketpair).
    pub(crate) fn run(self, listener: UnixListener) -> Result<(), Error> {
        berm_sandbox::set_cloexec_on_all_fds().map_err(failed("close_range(CLOEXEC)"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed("epoll_create"))?;
        LocalSet::new().block_on(&runtime, self.serve(listener))
    }

    async fn serve(self, listener: UnixListener) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed("sigaction"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("sigaction"))?;
        let (events, occurred) = mpsc::unbounded_channel();
        let pod = Rc::new(Pod::new(&self.namespace, self.config, events));
        // While containerd still reads the address.
        pod.prepare();

        let (closing, closed) = oneshot::channel();
        let origins = pod.clone();
        let (link, namespace) = (Link::new(&self.ttrpc_address), self.namespace);
        let publisher = spawn_local(async move {
            let translate = |event| {
                event::notice(event, |id| origins.origin(id))
                    .inspect_err(|e| log::error!(err = error::chain(e); "event lost"))
                    .ok()
            };
            publisher::run(link, &namespace, occurred, translate, closed).await;
        });

        let open = Arc::new(Open::default());
        let (service, mut calls) = TaskService::new();
        let mut server = start(listener, &self.socket, open.clone(), service).await?;
        let unknown = unknown(self.known);
        let mut rest = Rest::default();
        tokio::pin!(unknown);

        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => { pod.destroy("SIGTERM").await; break }
                _ = interrupt.recv() => { pod.destroy("SIGINT").await; break }
                Some(call) = calls.recv() => {
                    call(pod.clone());
                    rest.later();
                }
                () = pod.ended() => break,
                () = &mut unknown => {
                    log::warn!("containerd never got the address");
                    pod.destroy("start").await;
                    break;
                }
                () = rest.come() => rest.release(),
            }
        }

        // From here on a new `start` must make a new shim.
        server.stop_listen().await;
        if let Err(e) = std::fs::remove_file(&self.socket) {
            log::warn!(err:% = e; "unlink socket");
        }
        // The publisher ends only when it is told: the receiver is there.
        let _ = closing.send(());
        // Answers that are under way are written before a connection closes.
        let answers = async {
            server.disconnect().await;
            open.none().await;
        };
        let (answered, published) = tokio::join!(
            timeout(LAST_ANSWERS, answers),
            timeout(LAST_EVENTS, publisher)
        );
        if answered.is_err() {
            log::warn!("a client did not take its answer");
        }
        if published.is_err() {
            log::error!("events lost: containerd is away");
        }
        log::info!("the pod has ended");
        Ok(())
    }
}

/// When the shim gives back the memory that only the making of things has needed: most of a pod's
/// life nobody asks its shim for anything.
#[derive(Default)]
struct Rest {
    next: Option<Instant>,
    released: Option<Instant>,
}

impl Rest {
    /// Somebody has called.
    fn later(&mut self) {
        let next = Instant::now() + REST;
        let earliest = self.released.map(|at| at + BETWEEN_RELEASES);
        self.next = Some(earliest.map_or(next, |earliest| earliest.max(next)));
    }

    /// Ends when it is time; never, if nobody has called since the last time.
    async fn come(&self) {
        match self.next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
    }

    fn release(&mut self) {
        self.next = None;
        self.released = Some(Instant::now());
        if let Err(e) = berm_sys::memory::release() {
            log::warn!(err:% = e; "give memory back");
        }
    }
}

/// Task v2 and v3 on one socket.
async fn start(
    listener: UnixListener,
    socket: &std::path::Path,
    open: Arc<Open>,
    service: TaskService,
) -> Result<Server, Error> {
    listener.set_nonblocking(true).map_err(failed("fcntl"))?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed("epoll_ctl"))?;
    let mut server = Server::new()
        .add_listener(Listener::new(Incoming::new(listener, open)))
        .register_service(task::services(service));
    server.start().await.map_err(|source| Error::Server {
        address: socket.display().to_string(),
        source,
    })?;
    Ok(server)
}

/// Ends when the word that containerd has the address will never come.
async fn unknown(known: OwnedFd) {
    let mut word = [0];
    let known = pipe::Receiver::from_owned_fd(known);
    let told = match known {
        Ok(mut known) => known.read(&mut word).await,
        Err(e) => Err(e),
    };
    match told {
        Ok(0) => {}
        Ok(_) => std::future::pending().await,
        Err(e) => {
            // Better a daemon too many than a pod without one.
            log::warn!(err:% = e; "read the word of start");
            std::future::pending().await
        }
    }
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io {
        call,
        what: String::new(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_after_the_last_call_and_then_not_for_a_minute() {
        let mut rest = Rest::default();
        assert_eq!(rest.next, None);
        rest.later();
        let first = rest.next.unwrap();
        assert!(first <= Instant::now() + REST);
        rest.later();
        assert!(rest.next.unwrap() >= first);
        rest.release();
        assert_eq!(rest.next, None, "nobody has called");
        rest.later();
        let released = rest.released.unwrap();
        assert_eq!(rest.next, Some(released + BETWEEN_RELEASES));
    }
}
