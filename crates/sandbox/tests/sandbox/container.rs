//! A container of a case, from its spec to its end.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use berm_sandbox::{ContainerArgs, Donated, Error, Exit, RootfsMount, Spec, Stdio};
use berm_testkit::command::patient;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use crate::world::{Pod, SOON};

const CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A container to be.
pub(crate) struct Container<'p> {
    pub(crate) pod: &'p Pod<'p>,
    pub(crate) id: String,
    pub(crate) spec: Value,
    pub(crate) root: PathBuf,
    rootfs: Vec<RootfsMount>,
    terminal: bool,
    donated: Donated,
    io_files: Vec<Option<OwnedFd>>,
    mounts_file: Option<OwnedFd>,
}

impl<'p> Container<'p> {
    pub(crate) fn new(pod: &'p Pod<'p>, args: &[&str]) -> Self {
        let id = pod.world.name("c");
        let root = pod.world.rootfs();
        let ns = |name: &str| format!("/proc/{}/ns/{name}", pod.init());
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": process(args),
            "root": {"path": root},
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": pod.id(),
            },
            "mounts": [
                mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", "tmpfs",
                    &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", "devpts",
                    &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
                mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", "cgroup",
                    &["nosuid", "noexec", "nodev", "relatime", "ro"]),
                mount("/dev/shm", "tmpfs", "shm",
                    &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", pod.world.cgroup),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
                    {"type": "ipc", "path": ns("ipc")},
                    {"type": "uts", "path": ns("uts")},
                    {"type": "network", "path": ns("net")},
                ],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/irq"],
            },
        });
        Self {
            pod,
            id,
            spec,
            root,
            rootfs: Vec::new(),
            terminal: false,
            donated: Donated::default(),
            io_files: Vec::new(),
            mounts_file: None,
        }
    }

    /// What it is given beside its streams.
    pub(crate) fn donate(mut self, edit: impl FnOnce(&mut Donated)) -> Self {
        edit(&mut self.donated);
        self
    }

    /// Sets what a JSON pointer names, with its parents.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.spec;
        for key in pointer.split('/').skip(1) {
            at = match at {
                Value::Array(list) => &mut list[key.parse::<usize>().unwrap()],
                other => &mut other[key],
            };
        }
        *at = value;
        self
    }

    /// Adds a mount.
    pub(crate) fn mount(mut self, to: &str, typ: &str, from: &Path, options: &[&str]) -> Self {
        let entry = mount(to, typ, &from.to_string_lossy(), options);
        self.spec["mounts"].as_array_mut().unwrap().push(entry);
        self
    }

    /// The PID namespace of the pod instead of an own one.
    pub(crate) fn shared_pidns(self) -> Self {
        let path = format!("/proc/{}/ns/pid", self.pod.init());
        self.set("/linux/namespaces/0", json!({"type": "pid", "path": path}))
    }

    /// The user `uid`, with the group of the same number.
    pub(crate) fn user(self, uid: u32) -> Self {
        self.set("/process/user", json!({"uid": uid, "gid": uid}))
    }

    /// A root file system as containerd names it.
    pub(crate) fn rootfs(mut self, fstype: &str, source: &Path, options: &[String]) -> Self {
        self.rootfs = vec![RootfsMount {
            fstype: fstype.to_owned(),
            source: source.to_string_lossy().into_owned(),
            options: options.to_vec(),
            ..RootfsMount::default()
        }];
        self
    }

    /// A file for the root, or for the mount that was added last.
    pub(crate) fn source(mut self, of_root: bool, file: OwnedFd) -> Self {
        let at = match of_root {
            true => 0,
            false => self.spec["mounts"].as_array().unwrap().len(),
        };
        self.io_files
            .resize_with(self.io_files.len().max(at + 1), || None);
        self.io_files[at] = Some(file);
        self
    }

    /// Where its mounts are told.
    pub(crate) fn mounts_file(mut self, file: impl Into<OwnedFd>) -> Self {
        self.mounts_file = Some(file.into());
        self
    }

    /// A terminal of this size.
    pub(crate) fn terminal(mut self, rows: u32, columns: u32) -> Self {
        self.terminal = true;
        let size = json!({"height": rows, "width": columns});
        self.set("/process/terminal", json!(true))
            .set("/process/consoleSize", size)
    }

    /// Creates it.
    pub(crate) async fn create(self) -> Result<Made<'p>, Error> {
        let (stdio, stdin, out) = pipes(self.terminal);
        let args = ContainerArgs {
            id: self.id.clone(),
            bundle: self.pod.world.dir.clone(),
            spec: Spec::parse(self.spec.to_string().as_bytes())?,
            rootfs: self.rootfs,
            terminal: self.terminal,
            stdio,
            donated: self.donated,
            io_files: self.io_files,
            mounts_file: self.mounts_file,
        };
        let created = timeout(SOON, self.pod.sandbox.create_container(args))
            .await
            .expect("create answers")?;
        Ok(Made {
            pod: self.pod,
            id: self.id,
            pid: created.pid,
            root: self.root,
            terminal: created.terminal,
            stdin: Some(stdin),
            out,
        })
    }

    /// Creates and starts it.
    pub(crate) async fn run(self) -> Made<'p> {
        let made = self.create().await.unwrap();
        made.start().await.unwrap();
        made
    }

    /// Runs it to its end, and deletes it: status, and what it wrote.
    pub(crate) async fn output(self) -> (u32, String) {
        let mut made = self.run().await;
        made.stdin = None;
        let status = made.wait().await.status;
        let text = made.text().await;
        made.delete().await.unwrap();
        (status, text)
    }

    /// The error of its creation or start; the container is gone then.
    pub(crate) async fn refused(self) -> Error {
        let (pod, id) = (self.pod, self.id.clone());
        let error = match self.create().await {
            Err(error) => error,
            Ok(made) => {
                let error = made.start().await.expect_err("refused");
                made.wait().await;
                made.delete().await.unwrap();
                error
            }
        };
        assert!(!pod.sandbox.tasks().contains(&id));
        error
    }
}

/// The `process` object of these arguments.
pub(crate) fn process(args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {"bounding": CAPS, "effective": CAPS, "permitted": CAPS},
    })
}

pub(crate) fn mount(to: &str, typ: &str, from: &str, options: &[&str]) -> Value {
    json!({"destination": to, "type": typ, "source": from, "options": options})
}

fn pipes(terminal: bool) -> (Stdio, OwnedFd, Receiver) {
    let (stdin, to_stdin) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (from, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let stderr = stdout.try_clone().unwrap();
    let stdio = match terminal {
        true => Stdio::default(),
        false => Stdio {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
        },
    };
    (stdio, to_stdin, Receiver::from_owned_fd(from).unwrap())
}

/// A container that was created.
pub(crate) struct Made<'p> {
    pub(crate) pod: &'p Pod<'p>,
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) root: PathBuf,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
    out: Receiver,
}

impl Made<'_> {
    pub(crate) async fn start(&self) -> Result<i32, Error> {
        timeout(SOON, self.pod.sandbox.start(&self.id))
            .await
            .expect("start answers")
    }

    pub(crate) async fn wait(&self) -> Exit {
        timeout(SOON, self.pod.sandbox.wait(&self.id, None))
            .await
            .expect("it ends")
            .unwrap()
    }

    pub(crate) async fn delete(&self) -> Result<Exit, Error> {
        timeout(SOON, self.pod.sandbox.delete(&self.id, None))
            .await
            .expect("delete answers")
    }

    pub(crate) async fn kill(&self, signal: u32) -> Result<(), Error> {
        self.pod.sandbox.kill(&self.id, None, signal, false).await
    }

    /// Kills, waits, deletes.
    pub(crate) async fn end(&self) {
        match self.kill(9).await {
            Err(error) if error.kind() != berm_sys::Kind::NotFound => panic!("{error}"),
            _ => {}
        }
        self.wait().await;
        self.delete().await.unwrap();
    }

    /// The next line of its output.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let byte = timeout(patient(SOON), self.out.read_u8())
                .await
                .expect("a line");
            match byte {
                Ok(byte) => line.push(byte),
                Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&line)),
            }
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// All that is left of its output.
    pub(crate) async fn text(&mut self) -> String {
        rest(&mut self.out).await
    }

    /// Writes to its standard input.
    pub(crate) fn say(&self, text: &str) {
        let stdin = self.stdin.as_ref().unwrap().try_clone().unwrap();
        File::from(stdin).write_all(text.as_bytes()).unwrap();
    }

    /// Runs an exec to its end: status and output.
    pub(crate) async fn exec(&self, args: &[&str]) -> (u32, String) {
        self.exec_of(&process(args)).await.unwrap()
    }

    /// The same in sh.
    pub(crate) async fn exec_sh(&self, script: &str) -> (u32, String) {
        self.exec(&["/bin/sh", "-c", script]).await
    }

    /// The same of a whole `process` object.
    pub(crate) async fn exec_of(&self, process: &Value) -> Result<(u32, String), Error> {
        let name = self.pod.world.name("e");
        let out = self.start_exec(&name, process).await?;
        Ok(self.end_of_exec(&name, out).await)
    }

    /// Runs an exec that is given more than its streams to its end.
    pub(crate) async fn exec_with(
        &self,
        process: &Value,
        donated: Donated,
    ) -> Result<(u32, String), Error> {
        let name = self.pod.world.name("e");
        let out = self.start_exec_with(&name, process, donated).await?;
        Ok(self.end_of_exec(&name, out).await)
    }

    async fn end_of_exec(&self, name: &str, mut out: Receiver) -> (u32, String) {
        let sandbox = &self.pod.sandbox;
        let exit = timeout(SOON, sandbox.wait(&self.id, Some(name))).await;
        let exit = exit.expect("the exec ends").unwrap();
        let text = rest(&mut out).await;
        sandbox.delete(&self.id, Some(name)).await.unwrap();
        (exit.status, text)
    }

    /// Starts an exec; one that fails to start is deleted.
    pub(crate) async fn start_exec(&self, name: &str, process: &Value) -> Result<Receiver, Error> {
        self.start_exec_with(name, process, Donated::default())
            .await
    }

    /// The same of one that is given more than its streams.
    pub(crate) async fn start_exec_with(
        &self,
        name: &str,
        process: &Value,
        donated: Donated,
    ) -> Result<Receiver, Error> {
        let sandbox = &self.pod.sandbox;
        let terminal = process["terminal"] == true;
        let (stdio, _stdin, out) = pipes(terminal);
        sandbox.add_exec(&self.id, name, process.to_string().as_bytes(), terminal)?;
        let starting = sandbox.start_exec_with(&self.id, name, stdio, donated);
        let started = timeout(SOON, starting).await.expect("exec answers");
        if let Err(error) = started {
            if sandbox.state(&self.id, Some(name)).unwrap().exit.is_some() {
                sandbox.wait(&self.id, Some(name)).await.unwrap();
            }
            sandbox.delete(&self.id, Some(name)).await.unwrap();
            return Err(error);
        }
        Ok(out)
    }
}

async fn rest(out: &mut Receiver) -> String {
    let mut text = Vec::new();
    timeout(SOON, out.read_to_end(&mut text))
        .await
        .expect("the last writer closes")
        .unwrap();
    String::from_utf8_lossy(&text).into_owned()
}
