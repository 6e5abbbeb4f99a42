//! A pod as CRI runs it: a sandbox task, containers in its namespaces, and the teardown.

use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};

use super::{
    Bundle, Container, CreateTask, Error, Exit, Image, Node, PodFiles, Process, Shim, ShimBinary,
    Snapshot, Task, sandbox_spec,
};

/// SIGKILL as the Task API numbers it.
const SIGKILL: u32 = 9;
/// How long a shim may live on after its last task.
const EXIT_DEADLINE: Duration = Duration::from_secs(60);

/// A pod on a node. Prepared, then with a shim, then running.
#[derive(Debug)]
pub struct Pod<'n> {
    node: &'n Node,
    binary: ShimBinary,
    running: Option<Running>,
    shim: Option<Shim>,
    /// The shim's process, once its connection is closed.
    process: Option<Process>,
    // Dropped in this order: bundle before what is mounted in it, files last.
    bundle: Bundle,
    snapshot: Snapshot,
    files: PodFiles,
}

/// A started sandbox task.
#[derive(Debug)]
struct Running {
    pid: u32,
    exit: JoinHandle<Result<Exit, Error>>,
}

impl<'n> Pod<'n> {
    /// Makes all that exists before the shim is started: files, network namespace, a snapshot of
    /// the pause image, the bundle.
    ///
    /// # Errors
    /// Those of [`PodFiles::new`], [`Image::snapshot`] and [`Bundle::new`].
    pub fn prepare(node: &'n Node, binary: &ShimBinary, pause: &Image) -> Result<Self, Error> {
        let id = node.new_id();
        let files = PodFiles::new(node, &id)?;
        let snapshot = pause.snapshot()?;
        let spec = sandbox_spec(node, &files, pause.args())?;
        let bundle = Bundle::new(node, &id, &spec, snapshot.mounts().to_vec())?;
        let binary = binary.clone();
        Ok(Self {
            node,
            binary,
            running: None,
            shim: None,
            process: None,
            bundle,
            snapshot,
            files,
        })
    }

    /// Starts the pod's shim and connects to it.
    ///
    /// # Errors
    /// Those of [`Shim::start`].
    pub async fn start_shim(&mut self) -> Result<Duration, Error> {
        let shim = Shim::start(self.node, &self.binary, &self.bundle).await?;
        Ok(self.shim.insert(shim).took())
    }

    /// Creates and starts the sandbox task, without stdio; the answer is its pid.
    ///
    /// # Errors
    /// Those of the Task service.
    pub async fn run(&mut self) -> Result<u32, Error> {
        let task = self.task()?.clone();
        let id = self.id().to_owned();
        let pid = task
            .create(CreateTask {
                id: id.clone(),
                bundle: self.bundle.path().display().to_string(),
                rootfs: self.bundle.rootfs().to_vec(),
                options: self.binary.create_options(),
                ..CreateTask::default()
            })
            .await?;
        let (waiting, waited) = (task.clone(), id.clone());
        let exit = tokio::spawn(async move { waiting.wait(&waited, "").await });
        self.running = Some(Running { pid, exit });
        task.start(&id, "").await?;
        Ok(pid)
    }

    /// Makes all that a container needs before its `Create`, and the connection for it. A shim
    /// of Task v2 gets its `start` for the container here.
    ///
    /// # Errors
    /// [`Error::Order`] before [`run`](Self::run); those of [`Bundle::new`] and of `start`.
    pub async fn prepare_container(
        &self,
        image: &Image,
        args: &[&str],
    ) -> Result<Container, Error> {
        let shim = self.shim()?;
        let sandbox_pid = self.pid().ok_or_else(|| self.order("run it first"))?;
        let mut container = Container::new(self, image, sandbox_pid, args)?;
        let task = if shim.answer().version == 3 {
            shim.connect(self.node).await?
        } else {
            Shim::start(self.node, &self.binary, container.bundle())
                .await?
                .task()
                .clone()
        };
        container.connect(task);
        Ok(container)
    }

    /// Ends the pod as CRI does: all containers at once, then the sandbox, `Shutdown`, `delete`,
    /// and waits until the shim has exited.
    ///
    /// # Errors
    /// The first that came; what is left then is killed with the node.
    pub async fn stop(mut self, containers: Vec<Container>) -> Result<(), Error> {
        self.remove(containers).await?;
        self.stop_sandbox().await?;
        self.shim_exited().await
    }

    /// Kills, awaits and deletes containers, all at once as kubelet does.
    ///
    /// # Errors
    /// The first that came.
    pub async fn remove(&self, containers: Vec<Container>) -> Result<Vec<Container>, Error> {
        let mut left = JoinSet::new();
        for mut container in containers {
            left.spawn(async move { container.remove().await.map(|_| container) });
        }
        let mut removed = Vec::new();
        while let Some(done) = left.join_next().await {
            // A panic in the task is the only other end, and aborts this process.
            removed.extend(done.ok().transpose()?);
        }
        for container in &mut removed {
            self.forget(container).await?;
        }
        Ok(removed)
    }

    /// What containerd does after a container's `Delete`: closes its connection, and if the shim
    /// serves Task v2 sends `Shutdown` before and runs `delete` after.
    ///
    /// # Errors
    /// Those of `Shutdown` and of [`ShimBinary::delete`].
    pub async fn forget(&self, container: &mut Container) -> Result<(), Error> {
        if self.shim()?.answer().version == 3 {
            container.disconnect();
            return Ok(());
        }
        container
            .task()?
            .shutdown(container.id())
            .await
            .or_else(closed)?;
        container.disconnect();
        self.binary
            .delete(self.node, container.bundle())
            .await
            .map(drop)
    }

    /// The part of [`stop`](Self::stop) after the containers: kills and deletes the sandbox
    /// task, sends `Shutdown`, closes the connection and runs `delete`.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_sandbox(&mut self) -> Result<(), Error> {
        let task = self.task()?.clone();
        let id = self.id().to_owned();
        if let Some(running) = self.running.take() {
            match task.kill(&id, "", SIGKILL, false).await {
                Err(error) if error.kind() != berm_sys::Kind::NotFound => return Err(error),
                _ => {}
            }
            if let Ok(exit) = running.exit.await {
                exit?;
            }
            task.delete(&id, "").await?;
        }
        task.shutdown(&id).await.or_else(closed)?;
        drop(task);
        self.process = self.shim.take().map(Shim::close);
        self.binary.delete(self.node, &self.bundle).await.map(drop)
    }

    /// Waits until the shim's process is gone; for after [`stop_sandbox`](Self::stop_sandbox).
    ///
    /// # Errors
    /// [`Error::Deadline`] if it stays for 60 s.
    pub async fn shim_exited(&self) -> Result<(), Error> {
        let process = self.process.as_ref();
        let process = process.ok_or_else(|| self.order("stop its sandbox first"))?;
        process.ended(EXIT_DEADLINE).await
    }

    /// The sandbox's id.
    pub fn id(&self) -> &str {
        self.bundle.id()
    }

    /// The sandbox task's pid, once it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.pid)
    }

    /// The pod's files.
    pub fn files(&self) -> &PodFiles {
        &self.files
    }

    /// The sandbox's bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The writable layer of the sandbox container.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The node that it is on.
    pub fn node(&self) -> &'n Node {
        self.node
    }

    /// How the pod's shim is run.
    pub fn binary(&self) -> &ShimBinary {
        &self.binary
    }

    /// The pod's shim.
    ///
    /// # Errors
    /// [`Error::Order`] before [`start_shim`](Self::start_shim) and after the sandbox's end.
    pub fn shim(&self) -> Result<&Shim, Error> {
        self.shim
            .as_ref()
            .ok_or_else(|| self.order("start its shim first"))
    }

    /// The Task service on the sandbox's connection.
    ///
    /// # Errors
    /// [`Error::Order`] before [`start_shim`](Self::start_shim) and after the sandbox's end.
    pub fn task(&self) -> Result<&Task, Error> {
        self.shim().map(Shim::task)
    }

    fn order(&self, need: &'static str) -> Error {
        Error::Order {
            id: self.id().to_owned(),
            need,
        }
    }
}

impl Drop for Pod<'_> {
    /// A pod that was not stopped is killed: the shim here, the rest with the node.
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.exit.abort();
        }
    }
}

/// A shim may close the connection in the middle of `Shutdown`; containerd takes that for yes.
fn closed(error: Error) -> Result<(), Error> {
    match error {
        Error::Call { .. } => Ok(()),
        error => Err(error),
    }
}
