//! A container of a pod, and the execs in it.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use super::{Bundle, CreateTask, Error, Exit, Fifos, Image, Pod, Snapshot, Task, container_spec};

/// A container: prepared, then started. Its files go when it is dropped.
#[derive(Debug)]
pub struct Container {
    task: Option<Task>,
    create: CreateTask,
    process: Value,
    exit: Option<JoinHandle<Result<Exit, Error>>>,
    bundle: Bundle,
    fifos: Fifos,
    snapshot: Snapshot,
    fifo_dir: std::path::PathBuf,
}

/// What an exec did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its pid as `Start` gave it.
    pub pid: u32,
    /// Its exit code, or 128 + signal, as `Wait` gave it.
    pub status: u32,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
}

impl Container {
    pub(super) fn new(
        pod: &Pod<'_>,
        image: &Image,
        sandbox_pid: u32,
        args: &[&str],
    ) -> Result<Self, Error> {
        let node = pod.node();
        let id = node.new_id();
        let spec = container_spec(node, pod.files(), sandbox_pid, &id, args)?;
        let snapshot = image.snapshot()?;
        let bundle = Bundle::new(node, &id, &spec, snapshot.mounts().to_vec())?;
        let sandbox = bundle.path().join("sandbox");
        std::fs::write(&sandbox, pod.id()).map_err(Error::file("write", sandbox))?;
        let fifo_dir = node.dir().join("fifo").join(&id);
        let fifos = Fifos::new(fifo_dir.join("init"), &id, false, false)?;
        let create = CreateTask {
            id,
            bundle: bundle.path().display().to_string(),
            rootfs: bundle.rootfs().to_vec(),
            stdio: fifos.stdio().clone(),
            options: pod.binary().create_options(),
        };
        let process = spec["process"].clone();
        Ok(Self {
            task: None,
            create,
            process,
            exit: None,
            bundle,
            fifos,
            snapshot,
            fifo_dir,
        })
    }

    pub(super) fn connect(&mut self, task: Task) {
        self.task = Some(task);
    }

    pub(super) fn disconnect(&mut self) {
        self.task = None;
    }

    /// `Create`, `Wait` in the background, `Start`; the answer is its pid.
    ///
    /// # Errors
    /// Those of the Task service.
    pub async fn start(&mut self) -> Result<u32, Error> {
        let task = self.task()?.clone();
        let pid = task.create(self.create.clone()).await?;
        let (waiting, id) = (task.clone(), self.create.id.clone());
        self.exit = Some(tokio::spawn(async move { waiting.wait(&id, "").await }));
        task.start(&self.create.id, "").await?;
        Ok(pid)
    }

    /// Before [`start`](Self::start): both outputs go to `uri` in the fifos' place.
    pub fn log_to(&mut self, uri: &str) {
        self.create.stdio.stdout = uri.to_owned();
        self.create.stdio.stderr = uri.to_owned();
    }

    /// Before [`start`](Self::start): the process gets a terminal.
    pub fn with_terminal(&mut self) {
        self.create.stdio.terminal = true;
    }

    /// Runs a command in the container as CRI's ExecSync does: `Exec`, `Wait`, `Start`,
    /// `Delete`, then the output to its end.
    ///
    /// # Errors
    /// Those of the Task service; [`Error::Deadline`] if the output does not end after `Delete`.
    pub async fn exec(&self, exec_id: &str, args: &[&str]) -> Result<ExecOutput, Error> {
        let mut fifos = self.exec_fifos(exec_id)?;
        let (pid, exit) = self.exec_on(exec_id, args, &fifos).await?;
        let (stdout, stderr) = fifos.output(Duration::from_secs(60)).await?;
        Ok(ExecOutput {
            pid,
            status: exit.status,
            stdout,
            stderr,
        })
    }

    /// The fifos for an exec without input and terminal.
    ///
    /// # Errors
    /// Those of [`Fifos::new`].
    pub fn exec_fifos(&self, exec_id: &str) -> Result<Fifos, Error> {
        Fifos::new(self.fifo_dir.join(exec_id), exec_id, false, false)
    }

    /// The calls of [`exec`](Self::exec) alone, on fifos that exist: pid and exit.
    ///
    /// # Errors
    /// Those of the Task service.
    pub async fn exec_on(
        &self,
        exec_id: &str,
        args: &[&str],
        fifos: &Fifos,
    ) -> Result<(u32, Exit), Error> {
        let (task, id) = (self.task()?, self.id());
        let mut process = self.process.clone();
        process["args"] = serde_json::json!(args);
        task.exec(id, exec_id, &process, fifos.stdio().clone())
            .await?;
        let (exit, pid) = tokio::join!(task.wait(id, exec_id), task.start(id, exec_id));
        let deleted = task.delete(id, exec_id).await;
        let (pid, exit) = (pid?, exit?);
        deleted.map(|_| (pid, exit))
    }

    /// Kills the container, waits for its exit and deletes it.
    ///
    /// # Errors
    /// Those of the Task service; a container that is already dead is no error.
    pub async fn remove(&mut self) -> Result<Exit, Error> {
        match self.task()?.kill(self.id(), "", 9, false).await {
            Err(error) if error.kind() != berm_sys::Kind::NotFound => return Err(error),
            _ => {}
        }
        self.wait().await?;
        self.task()?.delete(self.id(), "").await
    }

    /// The exit of the container's process, when it comes.
    ///
    /// # Errors
    /// Those of `Wait`.
    pub async fn wait(&mut self) -> Result<Exit, Error> {
        if let Some(waiter) = self.exit.take()
            && let Ok(exit) = waiter.await
        {
            return exit;
        }
        self.task()?.wait(self.id(), "").await
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.create.id
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The stdio of the container's process.
    pub fn fifos(&mut self) -> &mut Fifos {
        &mut self.fifos
    }

    /// The writable layer.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The OCI `process` of the container, to derive execs from.
    pub fn process(&self) -> &Value {
        &self.process
    }

    /// The Task service on this container's connection.
    ///
    /// # Errors
    /// [`Error::Order`] for a container that no pod has connected.
    pub fn task(&self) -> Result<&Task, Error> {
        let unconnected = || Error::Order {
            id: self.id().to_owned(),
            need: "connect it first",
        };
        self.task.as_ref().ok_or_else(unconnected)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(waiter) = self.exit.take() {
            waiter.abort();
        }
    }
}
