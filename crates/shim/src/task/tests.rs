//! The door itself, without a sandbox: versions, codes, and what a vanished client leaves behind.

use std::cell::Cell;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use containerd_shim_protos::shim_async::{Client, TaskClient};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::timeout;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::{Code, context};

use super::*;
use crate::connection::{Incoming, Open};

/// No test takes longer.
const SOON: Duration = Duration::from_secs(60);

/// A pod at the far end of a socket, as the daemon serves it.
fn served<F: Future<Output = ()>>(test: impl FnOnce(String, Rc<Pod>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let std = StdUnixListener::bind(&path).unwrap();
        std.set_nonblocking(true).unwrap();
        let incoming = Incoming::new(
            UnixListener::from_std(std).unwrap(),
            Arc::new(Open::default()),
        );
        let (service, mut calls) = TaskService::new();
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(services(service));
        server.start().await.unwrap();
        let (events, _occurred) = mpsc::unbounded_channel();
        let pod = Rc::new(Pod::new("k8s.io", berm_sandbox::Config::default(), events));
        let owner = pod.clone();
        spawn_local(async move {
            while let Some(call) = calls.recv().await {
                call(owner.clone());
            }
        });
        let address = format!("unix://{}", path.display());
        timeout(SOON, test(address, pod)).await.unwrap();
    });
}

fn code_of<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("no status: {other:?}"),
    }
}

#[test]
fn calls_without_a_pod_have_the_contracts_codes() {
    served(|address, _| async move {
        let task = TaskClient::new(Client::connect(&address).await.unwrap());
        let ctx = || context::with_timeout(0);
        let id = || "c1".to_owned();
        let missing = [
            code_of(
                task.state(
                    ctx(),
                    &StateRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.wait(
                    ctx(),
                    &WaitRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.kill(
                    ctx(),
                    &KillRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.delete(
                    ctx(),
                    &DeleteRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.pids(
                    ctx(),
                    &PidsRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.stats(
                    ctx(),
                    &StatsRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.start(
                    ctx(),
                    &StartRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.close_io(
                    ctx(),
                    &CloseIORequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
            code_of(
                task.resize_pty(
                    ctx(),
                    &ResizePtyRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await,
            )
            .0,
        ];
        assert_eq!(missing, [Code::NOT_FOUND; 9]);
        let update = UpdateTaskRequest {
            id: id(),
            ..Default::default()
        };
        assert_eq!(
            code_of(task.update(ctx(), &update).await).0,
            Code::NOT_FOUND
        );
        let restore = CreateTaskRequest {
            id: id(),
            checkpoint: "/x".into(),
            ..Default::default()
        };
        let (code, text) = code_of(task.create(ctx(), &restore).await);
        assert_eq!(code, Code::UNIMPLEMENTED);
        assert!(text.contains("checkpoint"), "{text}");
        let connect = ConnectRequest {
            id: id(),
            ..Default::default()
        };
        let connect = task.connect(ctx(), &connect).await.unwrap();
        assert_eq!(
            (connect.shim_pid, connect.task_pid),
            (std::process::id(), 0)
        );
    });
}

#[test]
fn versions_2_and_3_are_the_same_service() {
    served(|address, _| async move {
        let client = Client::connect(&address).await.unwrap();
        for version in [V2, V3] {
            let payload = b"\x0a\x02c1".to_vec();
            let request = ttrpc::proto::Request {
                service: version.into(),
                method: "Connect".into(),
                payload,
                ..Default::default()
            };
            assert!(client.request(request).await.is_ok(), "{version}");
        }
    });
}

#[test]
fn a_failed_create_leaves_the_id_free() {
    served(|address, pod| async move {
        let task = TaskClient::new(Client::connect(&address).await.unwrap());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{ not json").unwrap();
        let bundle = dir.path().display().to_string();
        let create = CreateTaskRequest {
            id: "c1".into(),
            bundle,
            ..Default::default()
        };
        for _ in 0..2 {
            let failed = task.create(context::with_timeout(0), &create).await;
            assert_eq!(code_of(failed).0, Code::INVALID_ARGUMENT);
        }
        assert!(pod.origin("c1").is_none());
    });
}

#[test]
fn a_change_goes_on_without_its_client_and_a_wait_does_not() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        for (sort, want) in [(Sort::Change, true), (Sort::Wait, false)] {
            let (service, mut calls) = TaskService::new();
            let (events, _occurred) = mpsc::unbounded_channel();
            let pod = Rc::new(Pod::new("ns", berm_sandbox::Config::default(), events));
            let gate = Arc::new(Notify::new());
            let (report, mut reported) = mpsc::unbounded_channel();
            let opened = gate.clone();
            let handler = tokio::spawn(async move {
                let run = move |_: Rc<Pod>| async move {
                    let _report = report.clone();
                    opened.notified().await;
                    report.send(()).unwrap();
                    Ok::<(), Error>(())
                };
                service.call(About::new("Test", sort, "c", ""), run).await
            });
            calls.recv().await.unwrap()(pod);
            tokio::task::yield_now().await;
            handler.abort();
            assert!(handler.await.unwrap_err().is_cancelled());
            gate.notify_one();
            assert_eq!(reported.recv().await.is_some(), want);
        }
    });
}

#[test]
fn the_shim_ends_when_shutdown_was_asked_for_and_nothing_is_left() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (events, _occurred) = mpsc::unbounded_channel();
        let pod = Rc::new(Pod::new("ns", berm_sandbox::Config::default(), events));
        let ended = Rc::new(Cell::new(false));
        let (waiting, done) = (pod.clone(), ended.clone());
        let wait = spawn_local(async move {
            waiting.ended().await;
            done.set(true);
        });
        pod.reserve("c1", pod::Container::default()).unwrap();
        shutdown::shutdown(pod.clone(), ShutdownRequest::default())
            .await
            .unwrap();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!ended.get(), "a container is left");
        assert!(pod.remove("c1").is_some());
        timeout(SOON, wait).await.unwrap().unwrap();
        assert!(ended.get());
    });
}

#[test]
fn an_open_call_is_named_with_its_container_and_exec() {
    let about = |exec| About::new("Start", Sort::Change, "c1", exec).described();
    assert_eq!(about("e1"), "Task.Start c1 e1");
    assert_eq!(about(""), "Task.Start c1");
}
