//! The HTTP side: bounded requests, bounded connections, a deadline for each.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use super::scrape::Node;
use crate::error::Error;

/// Connections at once; those beyond wait in the kernel's queue.
const CONNECTIONS: usize = 32;
/// Largest head of a request, in bytes. Bodies are not read.
const HEAD: usize = 16 << 10;
/// Until the whole head has come, idle time of a kept connection included.
const HEAD_DEADLINE: Duration = Duration::from_secs(75);
/// A connection takes no further request after this.
const CONNECTION: Duration = Duration::from_secs(300);
/// And is closed this much later, answered or not.
const LAST_ANSWER: Duration = Duration::from_secs(60);
/// After accept4(2) has failed: what it lacks does not come back at once.
const PAUSE: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

type Answer = Response<Full<Bytes>>;

/// Serves the connections that `accept` brings; never ends by itself.
pub(super) async fn serve<S>(
    accept: impl AsyncFn() -> io::Result<S>,
    node: Node,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    // One scrape at a time: a second Prometheus waits for the first one's.
    let node = Rc::new(Mutex::new(node));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return Ok(());
        };
        match accept().await {
            Ok(stream) => {
                let connection = connection(stream, Rc::clone(&node));
                tokio::task::spawn_local(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(e) => {
                eprintln!("berm: accept4(): {e}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn connection<S>(stream: S, node: Rc<Mutex<Node>>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let node = Rc::clone(&node);
        async move { Ok::<_, Infallible>(answer(&request, &node).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    builder
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // What went wrong with a client is the client's matter.
    if timeout(CONNECTION, serving.as_mut()).await.is_err() {
        serving.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER, serving).await;
    }
}

async fn answer(request: &Request<Incoming>, node: &Mutex<Node>) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match request.uri().path() {
        "/metrics" => match node.lock().await.scrape().await {
            Ok(page) => text(StatusCode::OK, page),
            Err(e) => {
                eprintln!("berm: {}", e.text());
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", e.text()))
            }
        },
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/" => text(
            StatusCode::OK,
            "berm metric-server: /metrics, /healthz\n".into(),
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "there is /metrics and /healthz\n".into(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, TEXT);
    answer
}
