//! Sends events to containerd: one in flight, strictly in order, kept while containerd is away.
//!
//! The queue is bounded. When it is full, exits stay (somebody waits for each of them), whatever
//! else came first goes, and what is lost is counted and logged.

mod link;
mod queue;

use std::time::SystemTime;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::event::Envelope;
use tokio::sync::{mpsc, oneshot};

use crate::event::Notice;
use crate::wire;
pub(crate) use link::Link;
use queue::Queue;

/// Sends everything that comes in on `events` until `closing` fires and nothing is left.
///
/// `translate` makes the message of an event; `None` drops it.
pub(crate) async fn run<E>(
    mut link: Link,
    namespace: &str,
    mut events: mpsc::UnboundedReceiver<E>,
    mut translate: impl FnMut(E) -> Option<Notice>,
    mut closing: oneshot::Receiver<()>,
) {
    let mut queue = Queue::default();
    let mut open = true;
    let mut accept = |queue: &mut Queue, event| {
        if let Some(notice) = translate(event) {
            queue.push(forward(namespace, notice));
        }
    };
    loop {
        while let Ok(event) = events.try_recv() {
            accept(&mut queue, event);
        }
        let Some(request) = queue.pop() else {
            if !open {
                return;
            }
            tokio::select! {
                Some(event) = events.recv() => accept(&mut queue, event),
                _ = &mut closing => open = false,
            }
            continue;
        };
        let sent = link.send(&request);
        tokio::pin!(sent);
        loop {
            tokio::select! {
                biased;
                () = &mut sent => break,
                Some(event) = events.recv() => accept(&mut queue, event),
            }
        }
    }
}

fn forward(namespace: &str, notice: Notice) -> ForwardRequest {
    ForwardRequest {
        envelope: MessageField::some(Envelope {
            timestamp: wire::time(SystemTime::now()),
            namespace: namespace.to_owned(),
            topic: notice.topic.to_owned(),
            event: MessageField::some(notice.event),
            ..Envelope::default()
        }),
        ..ForwardRequest::default()
    }
}

#[cfg(test)]
mod tests;
