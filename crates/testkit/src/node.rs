//! A node of its own: a keeper's namespaces with a real containerd in them.
//!
//! ```no_run
//! # fn main() -> Result<(), berm_testkit::error::Error> {
//! let peers = berm_testkit::peers::Peers::ensure()?;
//! let mut node = berm_testkit::node::Node::start(&peers, &berm_testkit::node::Setup::default())?;
//! println!("{}", node.run("ctr", &["version"])?.stdout);
//! node.stop()?;
//! # Ok(()) }
//! ```

mod config;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::command::{self, Output};
use crate::error::{Error, call, file};
use crate::image::{self, Extra};
use crate::peers::Peers;
use crate::process;
use crate::suite::default_shim;

/// How a node differs from the ordinary one.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The shim binary under test; without one the node has only the peers.
    pub shim: Option<PathBuf>,
    /// Further files for the busybox image.
    pub extra: Vec<Extra>,
    /// Lines appended to containerd's configuration.
    pub config: String,
    /// The node is the machine itself, with cgroups of its systemd: for a machine without a
    /// containerd of its own, such as a guest.
    pub systemd: bool,
}

impl Setup {
    /// The ordinary node, with this shim, or else the one that `make build` has built.
    #[must_use]
    pub fn of_shim(shim: Option<PathBuf>) -> Self {
        Self {
            shim: Some(shim.unwrap_or_else(default_shim)),
            ..Self::default()
        }
    }
}

/// A running node. Dropping it takes it down.
#[derive(Debug)]
pub struct Node {
    keeper: Child,
    to_keeper: Option<ChildStdin>,
    from_keeper: BufReader<ChildStdout>,
    containerd: u32,
    containerd_binary: PathBuf,
    dir: PathBuf,
    path: String,
    systemd: bool,
}

const SOCKET: &str = "/run/containerd/containerd.sock";
const START: Duration = Duration::from_secs(120);
/// Longest time that a call of ctr or crictl may take.
pub const CALL: Duration = Duration::from_secs(60);

impl Node {
    /// Starts a node, and containerd on it, and imports the test images.
    /// # Errors
    /// [`Error::Missing`] a peer, [`Error::Deadline`] with the end of containerd's log, or what
    /// the kernel refused.
    pub fn start(peers: &Peers, setup: &Setup) -> Result<Self, Error> {
        if setup.systemd && UnixStream::connect(SOCKET).is_ok() {
            return Err(Error::Missing {
                what: "a machine without a containerd of its own".into(),
                way_out: "run it in a guest".into(),
            });
        }
        let dir = new_dir()?;
        link_programs(peers, setup, &dir.join("bin"))?;
        config::write(peers, &dir, setup)?;
        image::write(&dir.join("images.tar"), &peers.busybox()?, &setup.extra)?;
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            dir.join("bin").display()
        );
        let mut keeper = spawn_keeper(&dir, &path, setup.systemd)?;
        let (Some(to_keeper), Some(from_keeper)) = (keeper.stdin.take(), keeper.stdout.take())
        else {
            return Err(bad_keeper("no pipes"));
        };
        let mut node = Self {
            keeper,
            to_keeper: Some(to_keeper),
            from_keeper: BufReader::new(from_keeper),
            containerd: 0,
            containerd_binary: dir.join("bin/containerd"),
            dir,
            path,
            systemd: setup.systemd,
        };
        node.hear("ready")?;
        node.start_containerd()?;
        node.import(&node.dir.join("images.tar"), &["default", "k8s.io"])?;
        Ok(node)
    }

    /// The keeper's pid: its namespaces are the node's.
    #[must_use]
    pub fn keeper_pid(&self) -> u32 {
        self.keeper.id()
    }

    /// containerd's pid.
    #[must_use]
    pub fn containerd_pid(&self) -> u32 {
        self.containerd
    }

    /// The directory with the node's binaries, logs and containerd's root; gone with the node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether its cgroups are systemd's.
    #[must_use]
    pub fn systemd(&self) -> bool {
        self.systemd
    }

    /// How a path of the node (`/run/...`) is seen from outside.
    #[must_use]
    pub fn outside(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.keeper_pid()).into()
    }

    /// A command that runs on the node, with its PATH and namespaces.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .env("PATH", &self.path)
            .env("CRI_CONFIG_FILE", self.dir.join("crictl.yaml"));
        command.arg(format!("--target={}", self.keeper_pid()));
        command
            .args(["--mount", "--net", "--ipc", "--cgroup", "--", program])
            .args(args);
        command
    }

    /// Runs a program on the node to its successful end.
    /// # Errors
    /// [`Error::Failed`], [`Error::Deadline`] after [`CALL`].
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output, Error> {
        command::run(self.command(program, args), b"", CALL)?.ok()
    }

    /// Starts containerd and waits until it answers on its socket.
    /// # Errors
    /// [`Error::Deadline`] with the end of the log.
    pub fn start_containerd(&mut self) -> Result<(), Error> {
        let config = self.dir.join("containerd.toml");
        let line = format!(
            "{}\t--config\t{}",
            self.containerd_binary.display(),
            config.display()
        );
        self.containerd = self.ask(&line)?;
        let end = Instant::now() + command::patient(START);
        while !self.answers() {
            if Instant::now() > end || process::Process::read(self.containerd).is_none() {
                let what = format!("the start of containerd: {}", self.log_tail(15));
                return Err(Error::Deadline { what, limit: START });
            }
        }
        Ok(())
    }

    /// Starts a program in the background; it ends with the node at the latest. Gives its pid.
    /// # Errors
    /// [`Error::Answer`] when it cannot be executed.
    pub fn spawn(&mut self, command: &[&str]) -> Result<u32, Error> {
        self.ask(&command.join("\t"))
    }

    /// Kills containerd as a crash does; what it had started lives on.
    /// # Errors
    /// [`Error::Deadline`] when it does not go.
    pub fn kill_containerd(&self) -> Result<(), Error> {
        self.end_containerd(Signal::KILL)
    }

    /// Stops containerd as a service manager does.
    /// # Errors
    /// [`Error::Deadline`] when it does not go.
    pub fn stop_containerd(&self) -> Result<(), Error> {
        self.end_containerd(Signal::TERM)
    }

    /// The last lines of what containerd and the keeper logged.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The log of containerd, shims included.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// Takes the node down.
    /// # Errors
    /// [`Error::Failed`] when the keeper could not clean up, [`Error::Deadline`] when it hangs.
    pub fn stop(mut self) -> Result<(), Error> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), Error> {
        if self.to_keeper.take().is_none() {
            return Ok(());
        }
        let limit = Duration::from_secs(120);
        let pidfd = command::pidfd(self.keeper.id())?;
        if !command::readable(&pidfd, Instant::now() + command::patient(limit))? {
            return Err(Error::Deadline {
                what: "the end of the node's keeper".into(),
                limit,
            });
        }
        let code = command::code(self.keeper.wait().map_err(call("wait4"))?);
        if code != 0 {
            let (command, stderr) = ("keeper".into(), self.log_tail(5));
            return Err(Error::Failed {
                command,
                code,
                stderr,
            });
        }
        Ok(())
    }

    fn end_containerd(&self, signal: Signal) -> Result<(), Error> {
        let pidfd = command::pidfd(self.containerd)?;
        process::send(self.containerd, signal);
        let limit = Duration::from_secs(60);
        if command::readable(&pidfd, Instant::now() + command::patient(limit))? {
            return Ok(());
        }
        Err(Error::Deadline {
            what: "the end of containerd".into(),
            limit,
        })
    }

    /// Imports an archive of images into `namespaces` of containerd.
    /// # Errors
    /// [`Error::Failed`] with ctr's words.
    pub fn import(&self, archive: &Path, namespaces: &[&str]) -> Result<(), Error> {
        let archive = archive.to_string_lossy();
        for namespace in namespaces {
            let import = ["images", "import", "--local", archive.as_ref()];
            self.run("ctr", &[&["-n", namespace], &import[..]].concat())?;
        }
        Ok(())
    }

    /// Whether CRI, the last of the services, answers: that includes the socket.
    fn answers(&self) -> bool {
        UnixStream::connect(self.outside(SOCKET)).is_ok()
            && self.run("crictl", &["version"]).is_ok()
    }

    fn ask(&mut self, line: &str) -> Result<u32, Error> {
        let Some(pipe) = &mut self.to_keeper else {
            return Err(bad_keeper("it was stopped"));
        };
        writeln!(pipe, "{line}").map_err(call("write(keeper)"))?;
        self.hear("started")
    }

    fn hear(&mut self, word: &str) -> Result<u32, Error> {
        let mut line = String::new();
        self.from_keeper
            .read_line(&mut line)
            .map_err(call("read(keeper)"))?;
        let pid = line
            .trim()
            .strip_prefix(word)
            .and_then(|pid| pid.trim().parse().ok());
        pid.ok_or_else(|| bad_keeper(&format!("{:?}: {}", line.trim(), self.log_tail(5))))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("testkit: {}", crate::error::chain(&error));
        }
    }
}

fn bad_keeper(why: &str) -> Error {
    Error::Answer {
        command: "keeper".into(),
        why: why.into(),
    }
}

/// Directories of nodes lie on the disk, not on `/run` or a tmpfs: snapshots and idmapped
/// layers are to be tested on a real file system.
fn new_dir() -> Result<PathBuf, Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = PathBuf::from(format!(
        "/var/tmp/berm-node-{}-{number}",
        std::process::id()
    ));
    std::fs::create_dir_all(dir.join("bin")).map_err(file("mkdir", &dir))?;
    Ok(dir)
}

fn link_programs(peers: &Peers, setup: &Setup, bin: &Path) -> Result<(), Error> {
    let link = |from: PathBuf, name: &str| {
        let to = bin.join(name);
        std::os::unix::fs::symlink(from, &to).map_err(file("symlink", to))
    };
    for program in [
        "containerd",
        "ctr",
        "crictl",
        "containerd-shim-runc-v2",
        "runc",
    ] {
        link(peers.find(program)?, program)?;
    }
    wrap_crun(&peers.find("crun")?, &bin.join("crun"))?;
    if let Some(shim) = &setup.shim {
        let shim = shim.canonicalize().map_err(file("realpath", shim))?;
        link(shim, "containerd-shim-berm-v1")?;
    }
    Ok(())
}

/// A crun before 1.16 refuses the version number that containerd 2.3 writes into a spec, though it
/// runs the spec itself: the number is lowered on the way.
fn wrap_crun(crun: &Path, wrapper: &Path) -> Result<(), Error> {
    let text = format!(
        "#!/bin/sh
for word; do
    [ \"$before\" != --bundle ] ||
        sed -i 's/\"ociVersion\":\"1[.][1-9][^\"]*\"/\"ociVersion\":\"1.0.2\"/' \"$word/config.json\"
    before=$word
done
exec {} \"$@\"
",
        crun.display()
    );
    // A new file, never one that is there: a link in its place would have crun itself overwritten.
    let mut options = std::fs::OpenOptions::new();
    let mut created = options
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(wrapper)
        .map_err(file("open", wrapper))?;
    created
        .write_all(text.as_bytes())
        .map_err(file("write", wrapper))
}

fn spawn_keeper(dir: &Path, path: &str, machine: bool) -> Result<Child, Error> {
    let program = keeper_program()?;
    let log = dir.join("node.log");
    // To its end: containerd and all shims write there too.
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&log)
        .map_err(file("open", log))?;
    let name = dir.file_name().unwrap_or_default();
    let mut command = Command::new(&program);
    command.env("PATH", path).arg("keeper").arg(dir);
    if !machine {
        command.arg(name);
    }
    // A group of its own: what ends us, such as Ctrl-C, must leave it alive to clean up.
    command.process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log);
    command
        .spawn()
        .map_err(|source| Error::Exec { program, source })
}

/// This program itself, or for a test of another crate the one beside it.
fn keeper_program() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(call("readlink(/proc/self/exe)"))?;
    if own.file_name().is_some_and(|name| name == "berm-testkit") {
        return Ok(own);
    }
    let found = own
        .ancestors()
        .map(|dir| dir.join("berm-testkit"))
        .find(|path| path.is_file());
    found.ok_or_else(|| Error::Missing {
        what: "berm-testkit".into(),
        way_out: "build it first: cargo build -p berm-testkit".into(),
    })
}
