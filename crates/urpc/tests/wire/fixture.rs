//! A served socket in a directory of its own, and a raw client that may misbehave.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use berm_sys::Kind;
use berm_urpc::{Bounds, CallError, Dispatch, Reply, Server, bind, decode};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::sync::{Notify, oneshot};

/// No wait of a test lasts longer; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that is removed at the end.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "berm-urpc-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The methods under test. `Gate` says that it was entered and waits to be let go.
pub(crate) struct Methods {
    events: Sender<&'static str>,
    gate: Arc<Notify>,
}

impl Dispatch for Methods {
    async fn call(&self, method: &str, arg: Value, fds: Vec<OwnedFd>) -> Result<Reply, CallError> {
        match method {
            "Test.Echo" => Ok(Reply::of(&arg)?.donate(fds)),
            "Test.Count" => Reply::of(&(arg, fds.len())),
            "Test.Empty" => Ok(Reply::empty()),
            "Test.Fail" => Err(CallError::new(Kind::NotFound, "container \"x\" not found")),
            "Test.Big" => Reply::of(&"x".repeat(decode(arg)?)),
            "Test.Fds" => {
                let null = std::fs::File::open("/dev/null").unwrap();
                let fds = (0..decode(arg)?)
                    .map(|_| null.try_clone().unwrap().into())
                    .collect();
                Ok(Reply::empty().donate(fds))
            }
            "Test.Gate" => {
                self.events.send("entered").unwrap();
                self.gate.notified().await;
                self.events.send("left").unwrap();
                Ok(Reply::empty())
            }
            _ => Err(CallError::unknown_method()),
        }
    }
}

/// A server on a thread of its own.
pub(crate) struct Served {
    pub(crate) path: PathBuf,
    pub(crate) gate: Arc<Notify>,
    events: Receiver<&'static str>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _directory: Directory,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::with(Bounds::default())
    }

    pub(crate) fn with(bounds: Bounds) -> Self {
        let directory = Directory::new();
        let path = directory.0.join("pod").join("control.sock");
        let listener = bind(&path).unwrap();
        Self::over(listener, path, directory, bounds)
    }

    pub(crate) fn over(
        listener: OwnedFd,
        path: PathBuf,
        directory: Directory,
        bounds: Bounds,
    ) -> Self {
        let (events_in, events) = channel();
        let (stop, stopped) = oneshot::channel();
        let gate = Arc::new(Notify::new());
        let methods = Methods {
            events: events_in,
            gate: Arc::clone(&gate),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            tokio::task::LocalSet::new().block_on(&runtime.unwrap(), async move {
                let server = Server::with_bounds(listener, Rc::new(methods), bounds).unwrap();
                tokio::select! {
                    broken = server.serve() => panic!("{broken:?}"),
                    _ = stopped => {}
                }
            });
        });
        Self {
            path,
            gate,
            events,
            stop: Some(stop),
            thread: Some(thread),
            _directory: directory,
        }
    }

    pub(crate) fn event(&self) -> &'static str {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.path)
    }

    /// The server is unharmed: another client is served.
    pub(crate) fn is_well(&self) {
        let mut raw = self.raw();
        raw.send(br#"{"method":"Test.Echo","arg":"well"}"#);
        assert_eq!(raw.reply(), r#"{"success":true,"err":"","result":"well"}"#);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A client that sends whatever the test wants.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    read: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send_fds(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// The next reply, byte for byte.
    pub(crate) fn reply(&mut self) -> String {
        loop {
            let mut stream =
                serde_json::Deserializer::from_slice(&self.read).into_iter::<serde_json::Value>();
            if let Some(Ok(_)) = stream.next() {
                let end = stream.byte_offset();
                return String::from_utf8(self.read.drain(..end).collect()).unwrap();
            }
            let mut chunk = [0; 65536];
            let read = self.stream.read(&mut chunk).unwrap();
            assert_ne!(
                read,
                0,
                "end of stream after {:?}",
                String::from_utf8_lossy(&self.read)
            );
            self.read.extend_from_slice(&chunk[..read]);
        }
    }

    /// The server has closed the connection and said nothing more.
    pub(crate) fn is_closed(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.read), "");
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("not closed: {other:?}"),
        }
    }

    /// The server has refused what was sent with `kind`, and closed the connection.
    pub(crate) fn is_refused(&mut self, kind: &str, words: &str) {
        let reply = self.reply();
        assert!(reply.starts_with(r#"{"success":false,"err":""#), "{reply}");
        assert!(
            reply.ends_with(&format!(r#","kind":"{kind}","result":null}}"#)),
            "{reply}"
        );
        assert!(reply.contains(words), "{words:?} in {reply}");
        self.is_closed();
    }
}

/// `n` descriptors to send: copies of one.
pub(crate) fn copies<F: AsFd>(fd: &F, n: usize) -> Vec<BorrowedFd<'_>> {
    vec![fd.as_fd(); n]
}
