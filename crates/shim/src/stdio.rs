//! A process's standard streams: containerd's fifos on one side, the process on the other.
//!
//! | who | stdout, stderr | stdin |
//! |---|---|---|
//! | container | its own write end of the fifo | a pipe, spliced from the fifo |
//! | exec | a pipe, spliced into the fifo | as above |
//! | with a terminal | pty master, copied into the fifo | copied from the fifo |
//! | with a logger | a pipe that the logger reads; a terminal's pty master is copied into it | as above |
//!
//! Every end that the shim keeps is an `open()` of its own. It keeps a read end of each output
//! fifo until Delete, so that a writer gets no `EPIPE` and no byte is lost while containerd is
//! away, and a write end of stdin until CloseIO, so that the process sees no early end of file.
//! A container's output ends when its last process is gone. An exec's must end at Delete although
//! children still hold it (CRI waits for that), which is why pipes stand in between. A pipe is what
//! a process may open anew by `/dev/stdin` when nobody writes any more: a fifo would make it wait.
//!
//! A logger (`binary://`, `binary-v2://`, `file://`) is a child of the shim and the only reader of
//! its pipes: it sees the end of file when the last process of the container is gone, and it is
//! closed by Delete.

mod fifo;
mod pump;
mod terminal;
mod uri;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use berm_sandbox::{Logger, LoggerArgs, Stdio};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::error::Error;
use pump::Pump;
use terminal::Terminal;
pub(crate) use uri::Who;

/// How long Delete waits for a slow reader before it closes the fifos over it.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// What a request says about the streams of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

impl Paths {
    /// Refuses what no stream can be made from, before anything is.
    /// # Errors
    /// `NotSupported` for a streaming address, `InvalidArgument` for another unknown scheme or a
    /// relative path.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let who = Who {
            namespace: "",
            id: "",
        };
        let logged = uri::logger(&self.stdout, who)?.is_some();
        let outputs = [("stdout", &self.stdout), ("stderr", &self.stderr)];
        let outputs = outputs.into_iter().filter(|_| !logged);
        for (stream, path) in [("stdin", &self.stdin)].into_iter().chain(outputs) {
            if !path.is_empty() && !path.starts_with('/') {
                let why = "is not an absolute path";
                return Err(Error::StdioPath {
                    stream,
                    path: path.clone(),
                    why,
                });
            }
        }
        Ok(())
    }
}

/// The shim's side of a process's streams, until Delete.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Write end of stdin; until CloseIO.
    stdin: Option<OwnedFd>,
    /// CloseIO came; containerd can send it while Start is still on its way.
    stdin_closed: bool,
    /// Read ends of output fifos that hold the bytes until Delete.
    kept: Vec<OwnedFd>,
    /// What carries output from an exec's pipe or a terminal.
    output: Vec<Pump>,
    /// What carries input to the process's pipe or terminal.
    input: Option<Pump>,
    terminal: Option<Rc<Terminal>>,
    /// The fifos of a terminal that is not attached yet.
    waiting: Option<fifo::TerminalFifos>,
    /// What takes the output in the fifos' place.
    logger: Option<Logger>,
}

/// Whose streams are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Process {
    Container,
    Exec,
}

/// Opens the streams of a process; its logger is ready when this returns.
/// # Errors
/// Those of [`container`] and [`exec`], and of starting the logger within `deadline`.
pub(crate) async fn open(
    process: Process,
    paths: &Paths,
    owner: Option<(u32, u32)>,
    who: Who<'_>,
    deadline: Duration,
) -> Result<(Stdio, Ends), Error> {
    if let Some(args) = uri::logger(&paths.stdout, who)? {
        return logged(&args, paths, owner, deadline).await;
    }
    // Held until the process's ends are open: a writer that goes is an end of file.
    let _doorstops = fifo::wait_for_readers([&paths.stdout, &paths.stderr]).await;
    match process {
        Process::Container => container(paths, owner),
        Process::Exec => exec(paths, owner),
    }
}

/// Starts the logger on the other ends of the process's pipes.
async fn logged(
    args: &LoggerArgs,
    paths: &Paths,
    owner: Option<(u32, u32)>,
    deadline: Duration,
) -> Result<(Stdio, Ends), Error> {
    let mut ends = Ends::default();
    let mut stdio = Stdio::default();
    let ((out, to_out), (err, to_err)) = (fifo::blocking_pipe(owner)?, fifo::blocking_pipe(owner)?);
    let logger = Logger::start(args, [out, err], deadline).await?;
    if paths.terminal {
        // stderr's pipe is there and ends at once.
        let mut waiting = fifo::TerminalFifos::default();
        if let Some(input) = fifo::input(&paths.stdin, owner)? {
            waiting.source = Some(input.reader);
            ends.stdin = Some(input.writer);
        }
        waiting.sink = Some(fifo::unblock(to_out)?);
        ends.waiting = Some(waiting);
    } else {
        stdio.stdin = input(paths, owner, &mut ends)?;
        stdio.stdout = Some(to_out);
        // A file takes only what it was asked to; a program has both streams.
        let wanted = !paths.stderr.is_empty() || matches!(args, LoggerArgs::Program { .. });
        stdio.stderr = Some(to_err).filter(|_| wanted);
    }
    ends.logger = Some(logger);
    Ok((stdio, ends))
}

/// Opens the streams of a container.
/// # Errors
/// The errno of open(2); `InvalidArgument` for a path that is missing or no fifo.
fn container(paths: &Paths, owner: Option<(u32, u32)>) -> Result<(Stdio, Ends), Error> {
    if paths.terminal {
        return terminal(paths, owner);
    }
    let mut ends = Ends::default();
    let mut stdio = Stdio {
        stdin: input(paths, owner, &mut ends)?,
        ..Stdio::default()
    };
    for (stream, path, end) in [
        ("stdout", &paths.stdout, &mut stdio.stdout),
        ("stderr", &paths.stderr, &mut stdio.stderr),
    ] {
        let Some(output) = fifo::output(stream, path, owner)? else {
            continue;
        };
        *end = Some(output.blocking_writer(path)?);
        ends.kept.push(output.reader);
    }
    Ok((stdio, ends))
}

/// Opens the streams of an exec.
/// # Errors
/// As [`container`], and the errno of pipe2(2).
fn exec(paths: &Paths, owner: Option<(u32, u32)>) -> Result<(Stdio, Ends), Error> {
    if paths.terminal {
        return terminal(paths, owner);
    }
    let mut ends = Ends::default();
    let mut stdio = Stdio {
        stdin: input(paths, owner, &mut ends)?,
        ..Stdio::default()
    };
    for (stream, path, end) in [
        ("stdout", &paths.stdout, &mut stdio.stdout),
        ("stderr", &paths.stderr, &mut stdio.stderr),
    ] {
        let Some(output) = fifo::output(stream, path, owner)? else {
            continue;
        };
        let sink = output.writer(path)?;
        let (source, process_end) = fifo::pipe(owner)?;
        ends.output.push(Pump::splice(source, sink, stream)?);
        ends.kept.push(output.reader);
        *end = Some(process_end);
    }
    Ok((stdio, ends))
}

fn input(
    paths: &Paths,
    owner: Option<(u32, u32)>,
    ends: &mut Ends,
) -> Result<Option<OwnedFd>, Error> {
    let Some(input) = fifo::input(&paths.stdin, owner)? else {
        return Ok(None);
    };
    let (reader, sink) = fifo::input_pipe(owner)?;
    ends.input = Some(Pump::splice(input.reader, sink, "stdin")?);
    ends.stdin = Some(input.writer);
    Ok(Some(reader))
}

/// The process gets the terminal that the sandbox makes; the fifos wait for its master.
fn terminal(paths: &Paths, owner: Option<(u32, u32)>) -> Result<(Stdio, Ends), Error> {
    let mut ends = Ends::default();
    let mut waiting = fifo::TerminalFifos::default();
    if let Some(input) = fifo::input(&paths.stdin, owner)? {
        waiting.source = Some(input.reader);
        ends.stdin = Some(input.writer);
    }
    if let Some(output) = fifo::output("stdout", &paths.stdout, owner)? {
        waiting.sink = Some(output.writer(&paths.stdout)?);
        ends.kept.push(output.reader);
    }
    ends.waiting = Some(waiting);
    Ok((Stdio::default(), ends))
}

/// Registers a descriptor with the runtime.
/// # Errors
/// The errno of epoll_ctl(2).
// The constructor is deprecated because of types that give their descriptor away; `OwnedFd` is
// none. Its successor is `unsafe`, which this room forbids.
#[allow(deprecated)]
fn watch(fd: OwnedFd, interest: Interest, what: &'static str) -> Result<AsyncFd<OwnedFd>, Error> {
    AsyncFd::with_interest(fd, interest).map_err(|source| Error::Stdio {
        call: "epoll_ctl",
        what,
        source,
    })
}

impl Ends {
    /// Connects the fifos with the terminal of the process that was just made.
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub(crate) fn attach(&mut self, master: Option<OwnedFd>) -> Result<(), Error> {
        let (Some(master), Some(fifos)) = (master, self.waiting.take()) else {
            return Ok(());
        };
        let terminal = Rc::new(Terminal::new(master)?);
        let output = Pump::terminal_output(terminal.clone(), fifos.sink)?;
        if let Some(source) = fifos.source {
            self.input = Some(Pump::terminal_input(source, terminal.clone())?);
        }
        self.output.push(output);
        self.terminal = Some(terminal);
        Ok(())
    }

    /// Closes the shim's write end of stdin, or the one that [`Self::open`] brings; again:
    /// nothing.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
        self.stdin_closed = true;
    }

    /// Takes the ends of a process that was just made.
    pub(crate) fn open(&mut self, ends: Self) {
        let closed = self.stdin_closed;
        *self = ends;
        if closed {
            self.close_stdin();
        }
    }

    /// The terminal, if there is one.
    pub(crate) fn terminal(&self) -> Option<&Rc<Terminal>> {
        self.terminal.as_ref()
    }

    /// Carries what the process has written so far to the fifos and closes every end, even if
    /// somebody still holds the other side of the pipe or the terminal.
    pub(crate) async fn finish(self) {
        self.finish_by(Instant::now() + DRAIN_DEADLINE).await;
    }

    async fn finish_by(mut self, deadline: Instant) {
        for pump in self.output.drain(..) {
            pump.finish(deadline).await;
        }
        if let Some(logger) = self.logger.take() {
            logger.close().await;
        }
    }
}

#[cfg(test)]
mod tests;
