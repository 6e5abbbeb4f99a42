//! containerd's event endpoint: records what shims publish, in order of arrival.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM,
    TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Events as Service, create_events};
use tokio::sync::Notify;
use ttrpc::r#async::{Server, TtrpcContext};

use super::{Any, Error};

/// One event as a shim sent it.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it arrived.
    pub at: Instant,
    /// The time that the shim put into the envelope, nanoseconds since 1970; 0 if it put none.
    pub timestamp_ns: i128,
    /// The namespace of the envelope.
    pub namespace: String,
    /// The topic of the envelope, `/tasks/start` for example.
    pub topic: String,
    /// The event itself.
    pub body: Body,
}

/// The event in an envelope, by its type URL.
#[derive(Clone, Debug)]
pub enum Body {
    /// `containerd.events.TaskCreate`
    Create(TaskCreate),
    /// `containerd.events.TaskStart`
    Start(TaskStart),
    /// `containerd.events.TaskExecAdded`
    ExecAdded(TaskExecAdded),
    /// `containerd.events.TaskExecStarted`
    ExecStarted(TaskExecStarted),
    /// `containerd.events.TaskExit`
    Exit(TaskExit),
    /// `containerd.events.TaskOOM`
    Oom(TaskOOM),
    /// `containerd.events.TaskPaused`
    Paused(TaskPaused),
    /// `containerd.events.TaskResumed`
    Resumed(TaskResumed),
    /// `containerd.events.TaskCheckpointed`
    Checkpointed(TaskCheckpointed),
    /// `containerd.events.TaskDelete`
    Delete(TaskDelete),
    /// Anything else, or one that cannot be decoded.
    Other(Any),
}

impl Body {
    /// The container that it is about; empty for [`Body::Other`].
    pub fn container_id(&self) -> &str {
        match self {
            Self::Create(event) => &event.container_id,
            Self::Start(event) => &event.container_id,
            Self::ExecAdded(event) => &event.container_id,
            Self::ExecStarted(event) => &event.container_id,
            Self::Exit(event) => &event.container_id,
            Self::Oom(event) => &event.container_id,
            Self::Paused(event) => &event.container_id,
            Self::Resumed(event) => &event.container_id,
            Self::Checkpointed(event) => &event.container_id,
            Self::Delete(event) => &event.container_id,
            Self::Other(_) => "",
        }
    }

    fn decode(any: Any) -> Self {
        fn body<M: Message>(any: &Any, wrap: fn(M) -> Body) -> Option<Body> {
            M::parse_from_bytes(&any.value).ok().map(wrap)
        }
        let decoded = match any.type_url.as_str() {
            "containerd.events.TaskCreate" => body(&any, Self::Create),
            "containerd.events.TaskStart" => body(&any, Self::Start),
            "containerd.events.TaskExecAdded" => body(&any, Self::ExecAdded),
            "containerd.events.TaskExecStarted" => body(&any, Self::ExecStarted),
            "containerd.events.TaskExit" => body(&any, Self::Exit),
            "containerd.events.TaskOOM" => body(&any, Self::Oom),
            "containerd.events.TaskPaused" => body(&any, Self::Paused),
            "containerd.events.TaskResumed" => body(&any, Self::Resumed),
            "containerd.events.TaskCheckpointed" => body(&any, Self::Checkpointed),
            "containerd.events.TaskDelete" => body(&any, Self::Delete),
            _ => None,
        };
        decoded.unwrap_or(Self::Other(any))
    }
}

/// The record, shared between the service and those who wait for an event.
#[derive(Debug, Default)]
struct Record {
    events: Mutex<Vec<Event>>,
    arrived: Notify,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Service for Record {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.lock()
            .push(Event::from(request.envelope.unwrap_or_default()));
        self.arrived.notify_waiters();
        Ok(Empty::new())
    }
}

impl From<Envelope> for Event {
    fn from(envelope: Envelope) -> Self {
        let time = envelope.timestamp.unwrap_or_default();
        Self {
            at: Instant::now(),
            timestamp_ns: i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos),
            namespace: envelope.namespace,
            topic: envelope.topic,
            body: Body::decode(envelope.event.unwrap_or_default()),
        }
    }
}

/// The endpoint `containerd.services.events.ttrpc.v1.Events` and what came in.
pub struct Events {
    path: PathBuf,
    record: Arc<Record>,
    server: Option<Server>,
}

impl Events {
    /// Serves on the new socket `path`, which is what shims get as `TTRPC_ADDRESS`.
    ///
    /// # Errors
    /// [`Error::Connect`] if the socket cannot be bound.
    pub async fn serve(path: PathBuf) -> Result<Self, Error> {
        let mut events = Self {
            path,
            record: Arc::default(),
            server: None,
        };
        events.resume().await?;
        Ok(events)
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops serving and cuts every connection, as when containerd goes down.
    ///
    /// # Errors
    /// [`Error::Call`] if connections do not end within ttrpc's 10 s.
    pub async fn pause(&mut self) -> Result<(), Error> {
        if let Some(mut server) = self.server.take() {
            server
                .shutdown()
                .await
                .map_err(|source| Error::call("Events", source))?;
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("unlink", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Serves again after [`pause`](Self::pause); the record goes on.
    ///
    /// # Errors
    /// [`Error::Connect`] if the socket cannot be bound.
    pub async fn resume(&mut self) -> Result<(), Error> {
        let address = format!("unix://{}", self.path.display());
        let failed = |source| Error::Connect {
            address: address.clone(),
            source,
        };
        let service: Arc<dyn Service + Send + Sync> = self.record.clone();
        let server = Server::new().bind(&address).map_err(failed)?;
        let mut server = server.register_service(create_events(service));
        server.start().await.map_err(failed)?;
        self.server = Some(server);
        Ok(())
    }

    /// All events so far, in order of arrival.
    pub fn all(&self) -> Vec<Event> {
        self.record.lock().clone()
    }

    /// The events of one container so far, in order of arrival.
    pub fn of(&self, container_id: &str) -> Vec<Event> {
        let events = self.record.lock();
        events
            .iter()
            .filter(|event| event.body.container_id() == container_id)
            .cloned()
            .collect()
    }

    /// The first event, past or to come, for which `wanted` holds.
    ///
    /// # Errors
    /// [`Error::Deadline`] if none came.
    pub async fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, Error> {
        let first = |events: &[Event]| events.iter().find(|event| wanted(event)).cloned();
        self.until(what, deadline, first).await
    }

    /// What `look` finds in the record, which it is shown now and after each arrival.
    ///
    /// # Errors
    /// [`Error::Deadline`] if it found nothing until then.
    pub async fn until<T>(
        &self,
        what: &str,
        deadline: Duration,
        look: impl Fn(&[Event]) -> Option<T>,
    ) -> Result<T, Error> {
        let found = async {
            loop {
                // Registered before looking, so that no event falls between.
                let arrived = self.record.arrived.notified();
                tokio::pin!(arrived);
                arrived.as_mut().enable();
                if let Some(found) = look(&self.record.lock()) {
                    return found;
                }
                arrived.await;
            }
        };
        let late = |_| Error::Deadline {
            what: format!("event {what}"),
            deadline,
        };
        tokio::time::timeout(deadline, found).await.map_err(late)
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("path", &self.path)
            .field("count", &self.record.lock().len())
            .finish_non_exhaustive()
    }
}
