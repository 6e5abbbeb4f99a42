//! The connection to containerd's event service, made when it is needed and again when it broke.

use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::transport::Socket;
use ttrpc::{Code, context};

/// How long containerd may take for one event.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often an event is offered that containerd answers with an error.
const OFFERS: u32 = 5;

/// Where events go. Nothing is connected until the first event.
pub(crate) struct Link {
    /// A path, with or without `unix://`. Empty: nobody wants events.
    address: String,
    client: Option<EventsClient>,
}

enum Sent {
    Delivered,
    /// containerd is not there, or the connection broke.
    Away,
    /// containerd is there and does not want it.
    Refused(String),
}

impl Link {
    pub(crate) fn new(address: &str) -> Self {
        let address = address
            .strip_prefix("unix://")
            .unwrap_or(address)
            .to_owned();
        Self {
            address,
            client: None,
        }
    }

    /// Sends one event, however long containerd is away. One that containerd keeps refusing is
    /// given up and logged, or it would hold back all that follow.
    pub(super) async fn send(&mut self, request: &ForwardRequest) {
        if self.address.is_empty() {
            return;
        }
        let mut pause = FIRST_PAUSE;
        let mut refused = 0;
        loop {
            match self.try_send(request).await {
                Sent::Delivered => return,
                Sent::Away => self.client = None,
                Sent::Refused(err) => {
                    refused += 1;
                    if refused == OFFERS {
                        let topic = request.envelope.topic.as_str();
                        log::error!(topic, err; "event lost: containerd refuses it");
                        return;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_send(&mut self, request: &ForwardRequest) -> Sent {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let Ok(Ok(stream)) =
                    timeout(CALL_DEADLINE, UnixStream::connect(&self.address)).await
                else {
                    return Sent::Away;
                };
                let client = Client::new(Socket::from(stream));
                self.client.insert(EventsClient::new(client))
            }
        };
        let deadline = i64::try_from(CALL_DEADLINE.as_nanos()).unwrap_or(i64::MAX);
        match client
            .forward(context::with_timeout(deadline), request)
            .await
        {
            Ok(_) => Sent::Delivered,
            Err(ttrpc::Error::RpcStatus(status)) => match status.code() {
                Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED | Code::CANCELLED => Sent::Away,
                _ => Sent::Refused(status.message),
            },
            Err(_) => Sent::Away,
        }
    }
}
