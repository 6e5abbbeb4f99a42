//! Events of a living sandbox for who listens: one line of JSON each, into a pipe of the listener's.
//!
//! The wire of the control socket has no way to tell something unasked, so a listener donates the
//! write end of a pipe. It is never waited for: what does not fit into the pipe waits in a bounded
//! queue, whose oldest lines are lost first and counted. Without listeners an event costs nothing,
//! and nothing runs between two events.
//!
//! ```json
//! {"type":"started","time":"2026-02-24T15:58:01.000000001Z","sandbox":"s1","id":"c1","pid":4242}
//! {"type":"exited","time":"…","sandbox":"s1","id":"c1","pid":4242,"exitStatus":137}
//! {"type":"lost","time":"…","sandbox":"s1","count":3}
//! ```
//!
//! `type` is one of `created`, `started`, `exec-added`, `exec-started`, `exited`, `oom`, `paused`,
//! `resumed`, `deleted`, `lost`; `exec` names an exec, `exitStatus` is its exit code or 128 + signal.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::SystemTime;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::api::{Event, Exit};
use crate::error::{Error, call};
use crate::live::{Live, Sandbox};
use crate::polled::{Polled, poll_for};

/// Lines that wait for a slow reader, beyond those in its pipe.
const MAX_WAITING: usize = 256;
/// Listeners of one sandbox.
const MAX_LISTENERS: usize = 64;

impl Sandbox {
    /// Writes every event from now on, or those of the container `id`, into `pipe`: the write end
    /// of one. It becomes non-blocking, and is closed after the last event: when the sandbox or
    /// the container has ended. A reader that goes away is forgotten; one that is slow loses the
    /// oldest lines and is told how many.
    /// # Errors
    /// `NotFound` for an unknown id; `FailedPrecondition` once it has ended; `InvalidArgument` if
    /// `pipe` is none; `Unavailable` beyond 64 listeners, and once the sandbox has ended.
    pub fn stream_events(&self, id: Option<&str>, pipe: OwnedFd) -> Result<(), Error> {
        let live = &self.0;
        if let Some(id) = id {
            let process = &live.task(id)?.process;
            if process.has_ended() {
                let state = process.state().word();
                let id = id.to_owned();
                return Err(Error::NotRunning { id, state });
            }
        } else if live.is_over() {
            let id = live.record.id.clone();
            return Err(Error::SandboxGone { id });
        }
        let pipe = write_end(pipe)?;
        let listener = live.listeners.add(id)?;
        tokio::task::spawn_local(async move {
            if let Err(e) = listener.write_to(&pipe).await {
                log::debug!("call=Events err={:?}", e.to_string());
            }
        });
        Ok(())
    }
}

/// Takes the write end of a pipe, for the runtime to watch.
fn write_end(pipe: OwnedFd) -> Result<AsyncFd<Polled<OwnedFd>>, Error> {
    let stat = fstat(&pipe).map_err(call("fstat(pipe)"))?;
    let flags = fcntl_getfl(&pipe).map_err(call("fcntl(F_GETFL)"))?;
    let writes = flags & OFlags::ACCMODE == OFlags::WRONLY;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo || !writes {
        return Err(Error::NoPipe);
    }
    fcntl_setfl(&pipe, flags | OFlags::NONBLOCK).map_err(call("fcntl(F_SETFL)"))?;
    poll_for(pipe, Interest::WRITABLE)
}

/// Who listens to a sandbox; all are told the end when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Listeners(RefCell<Vec<Weak<Listener>>>);

impl Listeners {
    fn add(&self, id: Option<&str>) -> Result<Rc<Listener>, Error> {
        let mut all = self.0.borrow_mut();
        all.retain(|listener| listener.strong_count() > 0);
        if all.len() >= MAX_LISTENERS {
            return Err(Error::TooManyListeners { max: MAX_LISTENERS });
        }
        let listener = Rc::new(Listener {
            id: id.map(str::to_owned),
            queue: RefCell::default(),
            news: Notify::new(),
        });
        all.push(Rc::downgrade(&listener));
        Ok(listener)
    }

    fn each(&self, tell: impl Fn(&Listener)) {
        let all = self.0.borrow();
        all.iter().filter_map(Weak::upgrade).for_each(|l| tell(&l));
    }

    /// Tells all who want to know it.
    pub(crate) fn tell(&self, sandbox: &str, event: &Event) {
        if self.0.borrow().is_empty() {
            return;
        }
        let line = Line::of(sandbox, event);
        let ends = matches!(event, Event::Exited { exec: None, .. });
        let text = line.text();
        self.each(|listener| {
            let of_it = listener.id.as_deref().is_none_or(|id| Some(id) == line.id);
            if of_it {
                listener.push(sandbox, text.clone());
                if ends && listener.id.is_some() {
                    listener.end();
                }
            }
        });
    }

    /// Nothing more will be told.
    pub(crate) fn end(&self) {
        self.each(Listener::end);
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.end();
    }
}

impl Live {
    /// PID 1 and every container have ended, and that was told.
    fn is_over(&self) -> bool {
        let tasks = self.tasks.borrow();
        *self.gone.borrow() && tasks.values().all(|task| task.process.has_ended())
    }

    pub(crate) fn tell_listeners(&self, event: &Event) {
        self.listeners.tell(&self.record.id, event);
        self.end_listeners();
    }

    /// Ends the streams once there is nothing more to tell.
    pub(crate) fn end_listeners(&self) {
        if self.is_over() {
            self.listeners.end();
        }
    }
}

#[derive(Debug)]
struct Listener {
    /// Only this container's events.
    id: Option<String>,
    queue: RefCell<Queue>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    sandbox: String,
    lines: VecDeque<String>,
    /// Lines that were dropped and not told of yet.
    lost: u64,
    /// No further line will come.
    ended: bool,
}

impl Queue {
    fn push(&mut self, line: String) {
        if self.lines.len() >= MAX_WAITING {
            self.lines.pop_front();
            self.lost += 1;
        }
        self.lines.push_back(line);
    }

    /// The next line to write: before the others, how many were lost.
    fn next(&self) -> Option<Cow<'_, str>> {
        if self.lost == 0 {
            return self.lines.front().map(Cow::from);
        }
        let line = Line {
            count: Some(self.lost),
            ..Line::new(&self.sandbox, "lost")
        };
        Some(line.text().into())
    }

    /// It was written.
    fn advance(&mut self) {
        match self.lost {
            0 => drop(self.lines.pop_front()),
            _ => self.lost = 0,
        }
    }
}

impl Listener {
    fn push(&self, sandbox: &str, line: String) {
        let mut queue = self.queue.borrow_mut();
        if queue.sandbox.is_empty() {
            queue.sandbox = sandbox.to_owned();
        }
        queue.push(line);
        self.news.notify_one();
    }

    fn end(&self) {
        self.queue.borrow_mut().ended = true;
        self.news.notify_one();
    }

    /// Writes what comes until the end, or until nobody reads any more.
    async fn write_to(&self, pipe: &AsyncFd<Polled<OwnedFd>>) -> std::io::Result<()> {
        loop {
            match self.write_now(pipe) {
                Ok(true) if self.queue.borrow().ended => return Ok(()),
                Ok(true) => tokio::select! {
                    () = self.news.notified() => {}
                    // The last reader has closed its end.
                    gone = pipe.ready(Interest::ERROR) => return gone.map(drop),
                },
                Ok(false) => {
                    let mut writable = pipe.writable().await?;
                    // It may have been so since before: then the next write says.
                    if self.write_now(pipe)? {
                        continue;
                    }
                    writable.clear_ready();
                }
                Err(Errno::PIPE) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes as much as the pipe takes; true if that is all. A line is shorter than `PIPE_BUF`:
    /// it goes whole or not at all.
    fn write_now(&self, pipe: &AsyncFd<Polled<OwnedFd>>) -> Result<bool, Errno> {
        let mut queue = self.queue.borrow_mut();
        while let Some(line) = queue.next() {
            match rustix::io::write(pipe.get_ref(), line.as_bytes()) {
                Ok(_) => queue.advance(),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

/// An event as it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    r#type: &'static str,
    time: String,
    sandbox: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

impl<'a> Line<'a> {
    fn new(sandbox: &'a str, kind: &'static str) -> Self {
        Self {
            r#type: kind,
            time: berm_metrics::rfc3339(SystemTime::now()),
            sandbox,
            id: None,
            exec: None,
            pid: None,
            exit_status: None,
            count: None,
        }
    }

    fn of(sandbox: &'a str, event: &'a Event) -> Self {
        let line = |kind, id: &'a str| Self {
            id: Some(id),
            ..Self::new(sandbox, kind)
        };
        match event {
            Event::Created { id, pid } => line("created", id).pid(*pid),
            Event::Started { id, pid } => line("started", id).pid(*pid),
            Event::ExecAdded { id, exec } => line("exec-added", id).exec(Some(exec)),
            Event::ExecStarted { id, exec, pid } => {
                line("exec-started", id).exec(Some(exec)).pid(*pid)
            }
            Event::Exited { id, exec, exit } => line("exited", id).exec(exec.as_deref()).exit(exit),
            Event::Oom { id } => line("oom", id),
            Event::Paused { id } => line("paused", id),
            Event::Resumed { id } => line("resumed", id),
            Event::Deleted { id, exit } => line("deleted", id).exit(exit),
        }
    }

    fn pid(mut self, pid: i32) -> Self {
        self.pid = Some(pid);
        self
    }

    fn exec(mut self, exec: Option<&'a str>) -> Self {
        self.exec = exec;
        self
    }

    fn exit(mut self, exit: &Exit) -> Self {
        self.exit_status = Some(exit.status);
        self.pid(exit.pid)
    }

    fn text(&self) -> String {
        // Of strings and numbers, which are always written.
        let json = serde_json::to_string(self).unwrap_or_default();
        json + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shorter_than_what_a_pipe_takes_at_once() {
        let long = "x".repeat(128);
        let event = Event::Exited {
            id: long.clone(),
            exec: Some(long.clone()),
            exit: Exit {
                pid: i32::MAX,
                status: u32::MAX,
                at: SystemTime::now(),
            },
        };
        assert!(Line::of(&long, &event).text().len() < rustix::pipe::PIPE_BUF);
    }

    #[test]
    fn the_oldest_lines_are_lost_first_and_counted() {
        let mut queue = Queue::default();
        for number in 0..MAX_WAITING + 3 {
            queue.push(format!("{number}\n"));
        }
        let first = queue.next().unwrap().into_owned();
        assert!(
            first.contains("\"type\":\"lost\"") && first.contains("\"count\":3"),
            "{first}"
        );
        // It could not be written yet: one more is lost.
        let again = queue.next().map(Cow::into_owned);
        queue.push("new\n".to_owned());
        assert_ne!(again, queue.next().map(Cow::into_owned));
        queue.advance();
        assert_eq!(queue.next().as_deref(), Some("4\n"));
        assert_eq!(queue.lines.len(), MAX_WAITING);
    }
}
