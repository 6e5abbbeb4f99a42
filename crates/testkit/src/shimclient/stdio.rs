//! A process's stdio at containerd's end: three fifos.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::Error;
use super::bundle::make_fifo;
use super::node::make_dir;

/// At most this much of an output is read.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// The stdio fields of `Create` and `Exec`; an empty path is `/dev/null`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// The fifo that the process reads.
    pub stdin: String,
    /// The fifo that the process writes; with a terminal all output.
    pub stdout: String,
    /// The fifo for errors; empty with a terminal.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// The fifos of one process, opened as containerd opens them; removed when dropped.
#[derive(Debug)]
pub struct Fifos {
    dir: PathBuf,
    stdio: Stdio,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Fifos {
    /// Makes `dir` with the fifos `<name>-{stdin,stdout,stderr}` and opens our ends.
    ///
    /// `stdin` asks for an input; with `terminal` there is no stderr. Our end of stdin is held
    /// for reading too, so that it can be opened before the shim opens its own.
    ///
    /// # Errors
    /// The errno of mkfifo(3) or open(2).
    pub fn new(dir: PathBuf, name: &str, stdin: bool, terminal: bool) -> Result<Self, Error> {
        make_dir(&dir)?;
        let path = |stream: &str| dir.join(format!("{name}-{stream}"));
        let stdio = Stdio {
            stdin: if stdin {
                text(&path("stdin"))
            } else {
                String::new()
            },
            stdout: text(&path("stdout")),
            stderr: if terminal {
                String::new()
            } else {
                text(&path("stderr"))
            },
            terminal,
        };
        let mut fifos = Self {
            dir,
            stdio,
            stdin: None,
            stdout: None,
            stderr: None,
        };
        if stdin {
            fifos.stdin = Some(writer(&fifos.stdio.stdin)?);
        }
        fifos.stdout = Some(reader(&fifos.stdio.stdout)?);
        if !terminal {
            fifos.stderr = Some(reader(&fifos.stdio.stderr)?);
        }
        Ok(fifos)
    }

    /// What to put into the request.
    pub fn stdio(&self) -> &Stdio {
        &self.stdio
    }

    /// Writes to the process's stdin.
    ///
    /// # Errors
    /// [`Error::File`] if it has none, or if nobody takes the bytes within 60 s.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let deadline = Duration::from_secs(60);
        let Some(stdin) = &mut self.stdin else {
            return Err(Error::file("write", &self.dir)(
                std::io::ErrorKind::BrokenPipe.into(),
            ));
        };
        let late = |_| Error::Deadline {
            what: "room in stdin".to_owned(),
            deadline,
        };
        let written = tokio::time::timeout(deadline, stdin.write_all(bytes))
            .await
            .map_err(late)?;
        written.map_err(Error::file("write", &self.stdio.stdin))
    }

    /// Closes our end of stdin. The process sees the end once the shim's end is closed too.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Everything that comes on stdout and stderr until both have ended, at most 16 MiB each.
    ///
    /// Starts to read only when a writer has opened, so it may be called before the process
    /// starts. May be called once; later calls return nothing.
    ///
    /// # Errors
    /// [`Error::Deadline`] if an output does not end: somebody still holds a write end.
    pub async fn output(&mut self, deadline: Duration) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let both = async { tokio::try_join!(read_all(stdout), read_all(stderr)) };
        let late = |_| Error::Deadline {
            what: "end of output".to_owned(),
            deadline,
        };
        let read = tokio::time::timeout(deadline, both).await.map_err(late)?;
        read.map_err(Error::file("read", &self.stdio.stdout))
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in [&self.stdio.stdin, &self.stdio.stdout, &self.stdio.stderr] {
            if !path.is_empty() {
                let _ = fs::remove_file(path);
            }
        }
        // Shared with other processes of the container: goes with the last of them.
        let _ = fs::remove_dir(&self.dir);
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn reader(path: &str) -> Result<pipe::Receiver, Error> {
    make_fifo(Path::new(path))?;
    pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(Error::file("open", path))
}

fn writer(path: &str) -> Result<pipe::Sender, Error> {
    make_fifo(Path::new(path))?;
    pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(path)
        .map_err(Error::file("open", path))
}

/// The first read waits for epoll, and a fifo that nobody has opened for writing yet is not
/// ready; so its end is not taken for the end of the output.
async fn read_all(fifo: Option<pipe::Receiver>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(fifo) = fifo {
        fifo.take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
