//! Order and survival, against a containerd that comes and goes.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

use super::*;

/// No test takes longer.
const SOON: Duration = Duration::from_secs(60);

/// What containerd's event service has seen.
#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<(String, Vec<u8>)>>,
    more: Notify,
}

impl Seen {
    async fn count(&self, n: usize) -> Vec<(String, Vec<u8>)> {
        loop {
            let more = self.more.notified();
            let seen = self.requests.lock().unwrap().clone();
            if seen.len() >= n {
                return seen;
            }
            more.await;
        }
    }
}

struct Containerd(Arc<Seen>);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, req: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = req.envelope.unwrap();
        assert_eq!(envelope.namespace, "k8s.io");
        assert!(envelope.timestamp.seconds > 0);
        let event = envelope.event.unwrap();
        if event.value == b"bad" {
            let status = get_status(Code::INVALID_ARGUMENT, "no");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        self.0
            .requests
            .lock()
            .unwrap()
            .push((envelope.topic, event.value));
        self.0.more.notify_waiters();
        Ok(Empty::default())
    }
}

async fn containerd(path: &Path, seen: &Arc<Seen>) -> Server {
    let _ = std::fs::remove_file(path);
    let mut server = Server::new()
        .add_listener(Listener::from(UnixListener::bind(path).unwrap()))
        .register_service(create_events(Arc::new(Containerd(seen.clone()))));
    server.start().await.unwrap();
    server
}

fn notice(value: Vec<u8>) -> Notice {
    Notice {
        topic: "/tasks/start",
        event: Any {
            value,
            ..Any::default()
        },
    }
}

/// Runs `test` beside a publisher that sends to `path` whatever the test puts into the channel.
fn publishing<F: Future<Output = ()>>(
    path: &Path,
    test: impl FnOnce(mpsc::UnboundedSender<Vec<u8>>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (events, occurred) = mpsc::unbounded_channel();
        let (closing, closed) = oneshot::channel();
        let link = Link::new(&format!("unix://{}", path.display()));
        let publisher = spawn_local(async move {
            run(
                link,
                "k8s.io",
                occurred,
                |value| Some(notice(value)),
                closed,
            )
            .await;
        });
        timeout(SOON, test(events)).await.unwrap();
        closing.send(()).unwrap();
        timeout(SOON, publisher).await.unwrap().unwrap();
    });
}

fn numbers(range: std::ops::Range<u32>) -> Vec<(String, Vec<u8>)> {
    range
        .map(|n| ("/tasks/start".to_owned(), n.to_le_bytes().to_vec()))
        .collect()
}

#[test]
fn events_arrive_in_order_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    publishing(&path, |events| async move {
        let seen = Arc::new(Seen::default());
        let _server = containerd(&dir.path().join("s"), &seen).await;
        for n in 0..500u32 {
            events.send(n.to_le_bytes().to_vec()).unwrap();
        }
        assert_eq!(seen.count(500).await, numbers(0..500));
    });
}

#[test]
fn events_wait_for_containerd_and_survive_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = path.clone();
    publishing(&path, |events| async move {
        let seen = Arc::new(Seen::default());
        for n in 0..10u32 {
            events.send(n.to_le_bytes().to_vec()).unwrap();
        }
        let mut server = containerd(&socket, &seen).await;
        assert_eq!(seen.count(10).await, numbers(0..10));
        server.shutdown().await.unwrap();
        drop(server);
        std::fs::remove_file(&socket).unwrap();
        for n in 10..20u32 {
            events.send(n.to_le_bytes().to_vec()).unwrap();
        }
        let _server = containerd(&socket, &seen).await;
        assert_eq!(seen.count(20).await, numbers(0..20));
    });
    drop(dir);
}

#[test]
fn an_event_that_containerd_refuses_does_not_hold_back_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = path.clone();
    publishing(&path, |events| async move {
        let seen = Arc::new(Seen::default());
        let _server = containerd(&socket, &seen).await;
        events.send(b"bad".to_vec()).unwrap();
        events.send(0u32.to_le_bytes().to_vec()).unwrap();
        assert_eq!(seen.count(1).await, numbers(0..1));
    });
    drop(dir);
}

#[test]
fn what_is_queued_is_sent_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = path.clone();
    let seen = Arc::new(Seen::default());
    let server = RefCell::new(None);
    publishing(&path, |events| {
        let (seen, server) = (seen.clone(), &server);
        async move {
            *server.borrow_mut() = Some(containerd(&socket, &seen).await);
            for n in 0..50u32 {
                events.send(n.to_le_bytes().to_vec()).unwrap();
            }
        }
    });
    assert_eq!(*seen.requests.lock().unwrap(), numbers(0..50));
    drop(dir);
}

#[test]
fn without_an_address_nothing_is_kept() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (events, occurred) = mpsc::unbounded_channel();
        let (closing, closed) = oneshot::channel();
        events.send(Vec::new()).unwrap();
        closing.send(()).unwrap();
        run(
            Link::new(""),
            "k8s.io",
            occurred,
            |value| Some(notice(value)),
            closed,
        )
        .await;
    });
}
