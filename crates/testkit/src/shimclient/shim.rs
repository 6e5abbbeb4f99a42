//! A running shim: its address, its connections, its process.

use std::time::{Duration, Instant};

use ttrpc::r#async::Client;

use super::{Answer, Bundle, Error, Node, Process, ShimBinary, Task};

/// A shim that was started and connected to.
#[derive(Debug)]
pub struct Shim {
    answer: Answer,
    task: Task,
    process: Process,
    took: Duration,
}

impl Shim {
    /// Runs `start` in the bundle, connects, and learns the daemon's pid by `Connect`.
    ///
    /// # Errors
    /// Those of [`ShimBinary::start`] and [`Error::Connect`].
    pub async fn start(node: &Node, binary: &ShimBinary, bundle: &Bundle) -> Result<Self, Error> {
        let begin = Instant::now();
        let answer = binary.start(node, bundle).await?;
        if let Some(socket) = answer.address.strip_prefix("unix://") {
            node.remove_later(socket.into());
        }
        let task = connect(&answer, node).await?;
        let took = begin.elapsed();
        let process = Process::open(task.connect(bundle.id()).await?.shim_pid)?;
        Ok(Self {
            answer,
            task,
            process,
            took,
        })
    }

    /// The Task service, on the connection that was made at the start.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// A further connection, as containerd makes one per container.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn connect(&self, node: &Node) -> Result<Task, Error> {
        connect(&self.answer, node).await
    }

    /// How the shim answered.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The daemon.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Closes the connection; what is left is the daemon's process.
    pub fn close(self) -> Process {
        self.process
    }

    /// The time from running the binary to the connection.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Waits until the daemon has exited.
    ///
    /// # Errors
    /// [`Error::Deadline`] if it did not.
    pub async fn exited(&self, deadline: Duration) -> Result<(), Error> {
        self.process.ended(deadline).await
    }
}

async fn connect(answer: &Answer, node: &Node) -> Result<Task, Error> {
    let address = answer.address.clone();
    let client = Client::connect(&address).await;
    let client = client.map_err(|source| Error::Connect { address, source })?;
    Ok(Task::new(client, answer.version, node.namespace()))
}
