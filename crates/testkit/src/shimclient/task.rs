//! The Task API over ttrpc, by the service name that the shim serves.

use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest,
    PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use serde_json::Value;
use ttrpc::r#async::Client;
use ttrpc::proto::KeyValue;

use super::{Any, Error, Mount, Stdio};

/// The exit of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exit {
    /// Its pid as the shim gives it; 0 in the answer of `Wait`, which has none.
    pub pid: u32,
    /// The exit code, or 128 + signal.
    pub status: u32,
    /// When it ended; `None` if the shim did not say.
    pub at: Option<Timestamp>,
}

/// What `Create` needs.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// The container's id.
    pub id: String,
    /// The bundle directory.
    pub bundle: String,
    /// The mounts of the rootfs.
    pub rootfs: Vec<Mount>,
    /// stdio of the container's process.
    pub stdio: Stdio,
    /// Options of the runtime.
    pub options: Option<Any>,
}

/// A connection to a shim's Task service. Clones share the connection.
///
/// In every method an empty `exec_id` means the container's own process. All calls end within
/// the deadline of the connection, `Wait` within ten times that.
///
/// # Errors
/// [`Error::Status`] with the shim's code, [`Error::Call`] when the connection breaks.
#[derive(Clone)]
pub struct Task {
    client: Client,
    service: &'static str,
    namespace: String,
    deadline: Duration,
}

/// Methods whose answer is empty: `name(request type: fields) -> method`.
macro_rules! commands {
    ($($(#[$doc:meta])+ $name:ident($($arg:ident: $ty:ty),*) => $method:literal, $request:expr;)+) => {
        $($(#[$doc])+
        #[allow(clippy::missing_errors_doc, reason = "said once, on Task")]
        pub async fn $name(&self, $($arg: $ty),*) -> Result<(), Error> {
            self.call::<_, Empty>($method, $request).await.map(drop)
        })+
    };
}

#[allow(clippy::missing_errors_doc, reason = "said once, on Task")]
impl Task {
    pub(super) fn new(client: Client, version: u32, namespace: &str) -> Self {
        let service = if version == 3 {
            "containerd.task.v3.Task"
        } else {
            "containerd.task.v2.Task"
        };
        let deadline = Duration::from_secs(30);
        Self {
            client,
            service,
            namespace: namespace.to_owned(),
            deadline,
        }
    }

    /// The same connection with another deadline for each call.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Creates a container; the answer is its pid.
    pub async fn create(&self, create: CreateTask) -> Result<u32, Error> {
        let request = CreateTaskRequest {
            id: create.id,
            bundle: create.bundle,
            rootfs: create.rootfs,
            terminal: create.stdio.terminal,
            stdin: create.stdio.stdin,
            stdout: create.stdio.stdout,
            stderr: create.stdio.stderr,
            options: create.options.into(),
            ..CreateTaskRequest::default()
        };
        self.call::<_, CreateTaskResponse>("Create", request)
            .await
            .map(|answer| answer.pid)
    }

    /// Starts a container or an exec; the answer is its pid.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        let request = StartRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.call::<_, StartResponse>("Start", request)
            .await
            .map(|answer| answer.pid)
    }

    /// Adds an exec; `process` is an OCI `process` object.
    pub async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: &Value,
        stdio: Stdio,
    ) -> Result<(), Error> {
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            terminal: stdio.terminal,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            spec: json("Process", process),
            ..Default::default()
        };
        self.call::<_, Empty>("Exec", request).await.map(drop)
    }

    /// Waits for the end of a process.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit, Error> {
        let request = WaitRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let patient = self.with_deadline(self.deadline * 10);
        let answer: WaitResponse = patient.call("Wait", request).await?;
        Ok(Exit {
            pid: 0,
            status: answer.exit_status,
            at: answer.exited_at.into_option(),
        })
    }

    /// Deletes a process that has ended.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<Exit, Error> {
        let request = DeleteRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.call::<_, DeleteResponse>("Delete", request)
            .await
            .map(Exit::from)
    }

    /// The state of a process.
    pub async fn state(&self, id: &str, exec_id: &str) -> Result<StateResponse, Error> {
        let request = StateRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.call("State", request).await
    }

    /// The figures of a container: `io.containerd.cgroups.v1.Metrics` or v2's.
    pub async fn stats(&self, id: &str) -> Result<Any, Error> {
        let request = StatsRequest {
            id: id.into(),
            ..Default::default()
        };
        let answer: StatsResponse = self.call("Stats", request).await?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// The processes of a container: host pid, and the exec id of those that are execs.
    pub async fn pids(&self, id: &str) -> Result<PidsResponse, Error> {
        self.call(
            "Pids",
            PidsRequest {
                id: id.into(),
                ..Default::default()
            },
        )
        .await
    }

    /// The shim's pid and the container's.
    pub async fn connect(&self, id: &str) -> Result<ConnectResponse, Error> {
        self.call(
            "Connect",
            ConnectRequest {
                id: id.into(),
                ..Default::default()
            },
        )
        .await
    }

    commands! {
        /// Sends a signal to a process, or with `all` to every process of the container.
        kill(id: &str, exec_id: &str, signal: u32, all: bool) => "Kill",
            KillRequest { id: id.into(), exec_id: exec_id.into(), signal, all, ..Default::default() };
        /// Freezes a container.
        pause(id: &str) => "Pause", PauseRequest { id: id.into(), ..Default::default() };
        /// Thaws a container.
        resume(id: &str) => "Resume", ResumeRequest { id: id.into(), ..Default::default() };
        /// Closes the shim's end of a process's stdin.
        close_stdin(id: &str, exec_id: &str) => "CloseIO",
            CloseIORequest { id: id.into(), exec_id: exec_id.into(), stdin: true, ..Default::default() };
        /// Sets the size of a process's terminal, in characters.
        resize_pty(id: &str, exec_id: &str, width: u32, height: u32) => "ResizePty",
            ResizePtyRequest { id: id.into(), exec_id: exec_id.into(), width, height, ..Default::default() };
        /// Changes limits; `resources` is an OCI `linux.resources` object.
        update(id: &str, resources: &Value) => "Update",
            UpdateTaskRequest { id: id.into(), resources: json("LinuxResources", resources), ..Default::default() };
        /// Asks the shim to exit; it does once no container is left.
        shutdown(id: &str) => "Shutdown", ShutdownRequest { id: id.into(), ..Default::default() };
    }

    /// One call: containerd's header for the namespace, the deadline on the wire and here.
    async fn call<Q: Message, A: Message>(
        &self,
        method: &'static str,
        query: Q,
    ) -> Result<A, Error> {
        let failed = |source| Error::call(method, source);
        let mut request = ttrpc::Request::new();
        request.service = self.service.to_owned();
        request.method = method.to_owned();
        request.timeout_nano = i64::try_from(self.deadline.as_nanos()).unwrap_or(i64::MAX);
        request.metadata = vec![KeyValue {
            key: "containerd-namespace-ttrpc".to_owned(),
            value: self.namespace.clone(),
            ..KeyValue::default()
        }];
        let unreadable = |error: containerd_shim_protos::protobuf::Error| {
            Error::call(method, ttrpc::Error::Others(error.to_string()))
        };
        request.payload = query.write_to_bytes().map_err(unreadable)?;
        let response = self.client.request(request).await.map_err(failed)?;
        A::parse_from_bytes(&response.payload).map_err(unreadable)
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl From<DeleteResponse> for Exit {
    fn from(answer: DeleteResponse) -> Self {
        Self {
            pid: answer.pid,
            status: answer.exit_status,
            at: answer.exited_at.into_option(),
        }
    }
}

/// A piece of an OCI runtime spec as containerd packs it: JSON under its own type URL.
fn json(name: &str, value: &Value) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{name}"),
        value: value.to_string().into_bytes(),
        ..Any::default()
    })
}
