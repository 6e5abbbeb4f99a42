//! The Task service, versions 2 and 3, whose messages are the same.
//!
//! ttrpc drops a handler when its client goes away or its deadline passes. A change of the pod
//! must not be dropped half-way, so a handler only hands the call to the daemon's one owner of
//! the pod, which runs it as a task of its own, and waits for the answer.

mod create;
mod delete;
mod exec;
mod io;
mod kill;
mod pause;
mod pids;
mod pod;
mod shutdown;
mod start;
mod state;
mod stats;
mod update;
mod wait;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use berm_sandbox::{OpenCall, Phases, Timed};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, create_task};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::code;
use crate::error::{self, Error};
pub(crate) use pod::Pod;

const V3: &str = "containerd.task.v3.Task";
const V2: &str = "containerd.task.v2.Task";

/// A call that the owner of the pod shall run.
pub(crate) type Call = Box<dyn FnOnce(Rc<Pod>) + Send>;

/// The side of ttrpc: knows nothing but where calls go.
#[derive(Clone)]
pub(crate) struct TaskService {
    calls: mpsc::UnboundedSender<Call>,
}

/// Both versions, for `register_service`. The crate has only v3; methods are keyed by bare name.
pub(crate) fn services(service: TaskService) -> HashMap<String, Service> {
    let mut services = create_task(Arc::new(service.clone()));
    if let Some(v2) = create_task(Arc::new(service)).remove(V3) {
        services.insert(V2.into(), v2);
    }
    services
}

/// Whether a call goes on when nobody waits for its answer any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// It does: it changes something.
    Change,
    /// It is answered from memory.
    Read,
    /// It does not: it only waits.
    Wait,
}

/// What a call is about, for the log.
struct About {
    call: &'static str,
    sort: Sort,
    container: String,
    exec: String,
}

impl About {
    fn new(call: &'static str, sort: Sort, container: &str, exec: &str) -> Self {
        Self {
            call,
            sort,
            container: container.to_owned(),
            exec: exec.to_owned(),
        }
    }

    /// For who looks for a call that hangs.
    fn described(&self) -> String {
        let text = format!("Task.{} {} {}", self.call, self.container, self.exec);
        text.trim_end().to_owned()
    }

    /// As what its length is counted.
    fn timed(&self) -> Option<Timed> {
        match self.call {
            "Create" => Some(Timed::Create),
            "Start" if self.exec.is_empty() => Some(Timed::Start),
            "Start" => Some(Timed::Exec),
            _ => None,
        }
    }

    /// The one line per call, at its end.
    fn log<T>(&self, begun: Instant, phases: &Phases, result: &Result<T, Error>) {
        let level = match (result, self.sort) {
            (Ok(_), Sort::Change) => log::Level::Info,
            (Err(e), _) if e.kind() == berm_sys::Kind::Internal => log::Level::Error,
            (Err(_), Sort::Change) => log::Level::Info,
            // Asked each second, or for whatever containerd has forgotten.
            (_, Sort::Read | Sort::Wait) => log::Level::Debug,
        };
        if level > log::max_level() {
            return;
        }
        let us = |time: Duration| {
            u64::try_from(time.as_micros())
                .unwrap_or(u64::MAX)
                .to_string()
        };
        let mut fields = vec![
            ("call".into(), self.call.to_owned()),
            ("container".into(), self.container.clone()),
            ("exec".into(), self.exec.clone()),
            ("dur_us".into(), us(begun.elapsed())),
        ];
        let parts = phases.parts().iter();
        fields.extend(parts.map(|(name, length)| (format!("{name}_us"), us(*length))));
        let result = result.as_ref().map_err(|e| (e.kind(), error::chain(e)));
        match result {
            Ok(_) => fields.push(("result".into(), "ok".to_owned())),
            Err((kind, err)) => {
                fields.extend([("result".into(), kind.to_string()), ("err".into(), err)])
            }
        }
        let record = log::Record::builder()
            .level(level)
            .target(module_path!())
            .key_values(&fields)
            .args(format_args!("call"))
            .build();
        log::logger().log(&record);
    }
}

impl TaskService {
    /// The service and the calls that it will make.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Call>) {
        let (calls, receiver) = mpsc::unbounded_channel();
        (Self { calls }, receiver)
    }

    /// Hands `run` to the owner of the pod and waits for what comes out.
    async fn call<T, F>(
        &self,
        about: About,
        run: impl FnOnce(Rc<Pod>) -> F + Send + 'static,
    ) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        let (mut answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |pod| {
            let begun = Instant::now();
            let open = OpenCall::begin(about.described());
            let watched = about.timed().map(|timed| (timed, Rc::clone(&pod)));
            let running = Phases::of(run(pod));
            spawn_local(async move {
                let _open = open;
                let (result, phases) = if about.sort == Sort::Wait {
                    tokio::select! {
                        biased;
                        () = answer.closed() => return,
                        ended = running => ended,
                    }
                } else {
                    running.await
                };
                about.log(begun, &phases, &result);
                if let (Some((timed, pod)), Ok(_)) = (watched, &result)
                    && let Some(sandbox) = pod.sandbox()
                {
                    sandbox.observe(timed, &phases, begun.elapsed());
                }
                // The client may be gone; the change is made all the same.
                let _ = answer.send(result);
            });
        });
        let gone = |_| code::status(&Error::ShuttingDown);
        self.calls
            .send(call)
            .map_err(|_| code::status(&Error::ShuttingDown))?;
        answered.await.map_err(gone)?.map_err(|e| code::status(&e))
    }
}

/// A method that is a function of the pod and the request.
macro_rules! methods {
    ($($method:ident($request:ty) -> $response:ty: $call:literal $sort:ident $($exec:ident)? => $run:path;)*) => {
        #[async_trait]
        impl Task for TaskService {
            $(async fn $method(&self, _: &TtrpcContext, req: $request) -> ttrpc::Result<$response> {
                let exec = methods!(@exec req $($exec)?);
                let about = About::new($call, Sort::$sort, &req.id, exec);
                self.call(about, move |pod| $run(pod, req)).await
            })*
        }
    };
    (@exec $req:ident $exec:ident) => { &$req.$exec };
    (@exec $req:ident) => { "" };
}

methods! {
    state(StateRequest) -> StateResponse: "State" Read exec_id => state::state;
    create(CreateTaskRequest) -> CreateTaskResponse: "Create" Change => create::create;
    start(StartRequest) -> StartResponse: "Start" Change exec_id => start::start;
    delete(DeleteRequest) -> DeleteResponse: "Delete" Change exec_id => delete::delete;
    pids(PidsRequest) -> PidsResponse: "Pids" Read => pids::pids;
    pause(PauseRequest) -> Empty: "Pause" Change => pause::pause;
    resume(ResumeRequest) -> Empty: "Resume" Change => pause::resume;
    checkpoint(CheckpointTaskRequest) -> Empty: "Checkpoint" Change => create::checkpoint;
    kill(KillRequest) -> Empty: "Kill" Change exec_id => kill::kill;
    exec(ExecProcessRequest) -> Empty: "Exec" Change exec_id => exec::exec;
    resize_pty(ResizePtyRequest) -> Empty: "ResizePty" Change exec_id => io::resize_pty;
    close_io(CloseIORequest) -> Empty: "CloseIO" Change exec_id => io::close_io;
    update(UpdateTaskRequest) -> Empty: "Update" Change => update::update;
    wait(WaitRequest) -> WaitResponse: "Wait" Wait exec_id => wait::wait;
    stats(StatsRequest) -> StatsResponse: "Stats" Read => stats::stats;
    connect(ConnectRequest) -> ConnectResponse: "Connect" Read => state::connect;
    shutdown(ShutdownRequest) -> Empty: "Shutdown" Change => shutdown::shutdown;
}

/// The exec that a request names; none for the container itself.
fn exec_of(exec_id: &str) -> Option<&str> {
    Some(exec_id).filter(|exec| !exec.is_empty())
}

#[cfg(test)]
mod tests;
