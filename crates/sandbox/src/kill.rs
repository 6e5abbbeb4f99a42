//! Signals.

use std::os::fd::AsFd;

use rustix::process::Signal;

use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::process::{SIGKILL, signal};
use crate::state::{Happening, State};
use crate::task::{Kind, Task};

/// What PID 1 ends at: SIGINT, SIGKILL, SIGTERM.
const ENDS_INIT: [u32; 3] = [2, SIGKILL, 15];

impl Sandbox {
    /// Sends a signal to a container's first process, to an exec's, or to all of a container.
    /// # Errors
    /// `NotFound` ("process already finished") once it has ended; `FailedPrecondition` for an
    /// exec that was not started; `InvalidArgument` for a number that is no signal.
    pub async fn kill(
        &self,
        id: &str,
        exec: Option<&str>,
        number: u32,
        all: bool,
    ) -> Result<(), Error> {
        let live = &self.0;
        let target = live.target(id, exec)?;
        let process = target.process();
        if process.has_ended() {
            return Err(Error::Finished);
        }
        let Some(child) = process.child() else {
            // Refused in the table's words: it cannot end before it was started.
            return process.can(Happening::Started);
        };
        if all && exec.is_none() && target.task.kind == Kind::Container {
            return live.signal_all(&target.task, number);
        }
        signal(AsFd::as_fd(&*child), number)?;
        let paused = target.task.process.state() == State::Paused;
        if number == SIGKILL && target.exec.is_none() && paused {
            // In v1's freezer it dies when it thaws, and all of the container with it. An exec
            // there dies when the container is resumed: the others are to stay as they are.
            target.task.thaw()?;
        }
        if target.task.kind == Kind::Sandbox && ENDS_INIT.contains(&number) {
            // v1's freezer holds even what the kernel kills with PID 1.
            live.thaw_for_the_end();
        }
        Ok(())
    }
}

impl Live {
    fn signal_all(&self, task: &Task, number: u32) -> Result<(), Error> {
        if self.host.nested.is_some() && number == SIGKILL {
            // With the first process of its PID namespace the kernel kills all of a container.
            return signal_first(task, number);
        }
        let what = "a signal to all processes of a container but SIGKILL";
        self.host.need_cgroups(what)?;
        task.with_cgroup(|cgroup| {
            if number == SIGKILL {
                return cgroup.kill().map(drop).map_err(Error::from);
            }
            let bad = Error::BadSignal { signal: number };
            let named = i32::try_from(number).ok().and_then(Signal::from_named_raw);
            Ok(cgroup.signal(named.ok_or(bad)?)?)
        })
    }
}

fn signal_first(task: &Task, number: u32) -> Result<(), Error> {
    match task.process.child() {
        Some(child) => signal(AsFd::as_fd(&*child), number),
        None => Err(Error::Finished),
    }
}
