//! A host to make pods on: an own state directory, own cgroups, an image of busybox.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use berm_sandbox::{Args, Config, Error, Event, Host, Policy, Sandbox, Spec};
use berm_sys::Kernel;
use berm_testkit::command::patient;
use berm_testkit::process;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::container::Container;

/// Annotation by which a pod asks for a user namespace, or for none.
const USERNS: &str = "dev.berm.userns";
/// How long anything may take that has no deadline of its own: no more than a guard against
/// hanging.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// containerd's namespace in all cases.
pub(crate) const NAMESPACE: &str = "test";
const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "chown", "cut", "dd", "echo", "env", "false", "grep", "head", "hostname",
    "id", "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv", "ps", "pwd", "readlink", "rm",
    "sed", "sleep", "stat", "stty", "sync", "tail", "test", "touch", "tr", "true", "tty", "umount",
    "uname", "wc", "yes",
];

/// What a case has around it.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) host: Rc<Host>,
    pub(crate) cgroup: String,
    sandboxes: RefCell<Vec<Sandbox>>,
    next: Cell<u32>,
}

/// Runs a case in a world of its own, ends what it left, and checks that nothing stays.
pub(crate) fn world(body: impl AsyncFnOnce(&World)) {
    world_with(|_| {}, body);
}

/// The same with other settings.
pub(crate) fn world_with(configure: impl FnOnce(&mut Config), body: impl AsyncFnOnce(&World)) {
    let place = Place::new();
    let mut config = place.config();
    configure(&mut config);
    let state_dir = config.state_dir.clone();
    let runtime = runtime();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let world = World::new(&place, config);
        let before = open_files();
        let own = process::descendants(std::process::id()).len();
        timeout(patient(Duration::from_secs(220)), body(&world))
            .await
            .expect("the case ends");
        world.end(&before, own).await;
    });
    drop(local);
    drop(runtime);
    place.assert_clean(&state_dir);
}

/// The runtime of the shim: one thread.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

impl World {
    /// A host of these settings.
    pub(crate) fn new(place: &Place, config: Config) -> Self {
        let host = Rc::new(Host::detect(config).unwrap());
        host.prepare().unwrap();
        Self {
            dir: place.dir.clone(),
            host,
            cgroup: place.cgroup.clone(),
            sandboxes: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// A name that no other sandbox or container of the case has.
    pub(crate) fn name(&self, kind: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("{kind}{}", self.next.get())
    }

    /// The spec of a CRI sandbox, as containerd writes it, with a netns of its own.
    pub(crate) fn sandbox_spec(&self, id: &str) -> Value {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "hostname": "the-pod",
            "process": {"user": {"uid": 65535, "gid": 65535}, "args": ["/pause"], "cwd": "/"},
            "root": {"path": "rootfs", "readonly": true},
            "annotations": {
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": id,
                "io.kubernetes.cri.sandbox-name": "a-pod",
                "io.kubernetes.cri.sandbox-namespace": "a-namespace",
            },
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.cgroup),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "mount"}, {"type": "network"}],
            },
        });
        if with_annotation() {
            spec["annotations"][USERNS] = json!("auto");
        }
        spec
    }

    /// A pod that runs.
    pub(crate) async fn pod(&self) -> Pod<'_> {
        self.pod_with(|_| {}).await
    }

    /// A pod whose spec was changed.
    pub(crate) async fn pod_with(&self, edit: impl FnOnce(&mut Value)) -> Pod<'_> {
        let pod = self.try_pod(edit).await.unwrap();
        let id = pod.id().to_owned();
        pod.sandbox.start(&id).await.unwrap();
        pod
    }

    /// Creates a sandbox, or says why not.
    pub(crate) async fn try_pod(&self, edit: impl FnOnce(&mut Value)) -> Result<Pod<'_>, Error> {
        let id = self.name("pod");
        let mut spec = self.sandbox_spec(&id);
        edit(&mut spec);
        self.sandbox(&id, &spec).await
    }

    /// Creates the sandbox `id` of this spec.
    pub(crate) async fn sandbox(&self, id: &str, spec: &Value) -> Result<Pod<'_>, Error> {
        self.sandbox_of(id, spec, |_| {}).await
    }

    /// The same of other arguments.
    pub(crate) async fn sandbox_of(
        &self,
        id: &str,
        spec: &Value,
        edit: impl FnOnce(&mut Args),
    ) -> Result<Pod<'_>, Error> {
        let (events, told) = unbounded_channel();
        let spec = Spec::parse(spec.to_string().as_bytes())?;
        let mut args = Args::new(id, NAMESPACE, &self.dir, spec);
        edit(&mut args);
        let sandbox = timeout(SOON, Sandbox::create(Rc::clone(&self.host), args, events))
            .await
            .expect("create answers")?;
        self.sandboxes.borrow_mut().push(sandbox.clone());
        Ok(Pod {
            world: self,
            sandbox,
            events: RefCell::new(told),
            told: RefCell::default(),
        })
    }

    /// A new root file system with busybox in it.
    pub(crate) fn rootfs(&self) -> PathBuf {
        let root = self.dir.join(self.name("rootfs"));
        image(&root);
        root
    }

    /// An empty directory of the host.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(self.name(name));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Where a cgroup of the case is in a v1 hierarchy; `None` on v2.
    pub(crate) fn v1(&self, controller: &str, id: &str) -> Option<PathBuf> {
        let top = Path::new("/sys/fs/cgroup").join(controller);
        top.is_dir().then(|| top.join(&self.cgroup).join(id))
    }

    /// The directory of a cgroup of the case that has the files of a controller.
    pub(crate) fn cgroup_dir(&self, controller: &str, id: &str) -> PathBuf {
        let v2 = || Path::new("/sys/fs/cgroup").join(&self.cgroup).join(id);
        self.v1(controller, id).unwrap_or_else(v2)
    }

    async fn end(&self, before: &BTreeSet<String>, own: usize) {
        for sandbox in self.sandboxes.take() {
            let destroyed = timeout(patient(SOON), sandbox.destroy()).await;
            destroyed.expect("destroyed");
            assert!(sandbox.is_empty());
        }
        // Zombies are reaped and descriptors closed by tasks of the runtime: no event tells.
        let until = Instant::now() + patient(SOON);
        loop {
            let (files, processes) = (open_files(), process::descendants(std::process::id()));
            let new: Vec<_> = files.difference(before).cloned().collect();
            let loops = loop_devices_of(&self.dir);
            if new.is_empty() && processes.len() <= own && loops.is_empty() {
                return;
            }
            assert!(
                Instant::now() < until,
                "left: {new:?} {processes:?} {loops:?}"
            );
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Writes an image: busybox with its applets, users, a home.
pub(crate) fn image(root: &Path) {
    for dir in [
        "bin", "dev", "etc", "proc", "root", "sys", "tmp", "var", "run",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    // Shared by all images of a case: nothing writes to it.
    let busybox = root.parent().unwrap().join("busybox");
    if !busybox.exists() {
        fs::copy("/bin/busybox", &busybox).unwrap();
    }
    fs::hard_link(&busybox, root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:alice:/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nalice:x:1000:\nshared:x:2000:\n",
    )
    .unwrap();
}

/// A pod of a case; destroyed with its world.
pub(crate) struct Pod<'w> {
    pub(crate) world: &'w World,
    pub(crate) sandbox: Sandbox,
    events: RefCell<UnboundedReceiver<Event>>,
    told: RefCell<Vec<Event>>,
}

impl Pod<'_> {
    pub(crate) fn id(&self) -> &str {
        self.sandbox.id()
    }

    /// Host pid of PID 1.
    pub(crate) fn init(&self) -> i32 {
        self.sandbox.record().pid
    }

    /// Ends PID 1 as containerd does with a pause container, and deletes the sandbox task.
    pub(crate) async fn end(&self) {
        let id = self.id();
        self.sandbox.kill(id, None, 15, false).await.unwrap();
        let exit = timeout(SOON, self.sandbox.wait(id, None)).await;
        exit.expect("PID 1 ends").unwrap();
        let deleted = timeout(SOON, self.sandbox.delete(id, None)).await;
        deleted.expect("delete answers").unwrap();
    }

    /// A container to be: busybox as image, its own PID namespace, the mounts of a CRI spec.
    pub(crate) fn container(&self, args: &[&str]) -> Container<'_> {
        Container::new(self, args)
    }

    /// A container that runs `script` in sh.
    pub(crate) fn sh(&self, script: &str) -> Container<'_> {
        self.container(&["/bin/sh", "-c", script])
    }

    /// Waits until a container runs these commands and nothing else: a process that has been started
    /// may still be on its way into its program, and who made it on the way out.
    pub(crate) async fn until_runs(&self, id: &str, commands: &[&str]) {
        let until = Instant::now() + SOON;
        loop {
            let processes = self.sandbox.processes(id).await.unwrap();
            if processes
                .iter()
                .map(|p| p.cmd.as_str())
                .eq(commands.iter().copied())
            {
                return;
            }
            assert!(Instant::now() < until, "{processes:?}");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Every event so far.
    pub(crate) fn told(&self) -> Vec<Event> {
        let mut told = self.told.borrow_mut();
        while let Ok(event) = self.events.borrow_mut().try_recv() {
            told.push(event);
        }
        told.clone()
    }

    /// The kinds of the events of one container so far, execs' with their id.
    pub(crate) fn story(&self, id: &str) -> Vec<String> {
        self.told()
            .iter()
            .filter_map(|event| word(event, id))
            .collect()
    }

    /// Waits until the story of a container has `word`.
    pub(crate) async fn until(&self, id: &str, word: &str) {
        let until = Instant::now() + SOON;
        while !self.story(id).iter().any(|w| w == word) {
            assert!(
                Instant::now() < until,
                "no {word:?} in {:?}",
                self.story(id)
            );
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn word(event: &Event, container: &str) -> Option<String> {
    let (of, word) = match event {
        Event::Created { id, .. } => (id, "created".to_owned()),
        Event::Started { id, .. } => (id, "started".to_owned()),
        Event::ExecAdded { id, exec } => (id, format!("added {exec}")),
        Event::ExecStarted { id, exec, .. } => (id, format!("started {exec}")),
        Event::Exited {
            id,
            exec: Some(exec),
            exit,
        } => (id, format!("exited {exec} {}", exit.status)),
        Event::Exited { id, exit, .. } => (id, format!("exited {}", exit.status)),
        Event::Oom { id } => (id, "oom".to_owned()),
        Event::Paused { id } => (id, "paused".to_owned()),
        Event::Resumed { id } => (id, "resumed".to_owned()),
        Event::Deleted { id, exit } => (id, format!("deleted {}", exit.status)),
    };
    (of == container).then_some(word)
}

/// The directory and the cgroup of one case, removed with it whatever happens.
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    cgroup: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        // Someone killed, whose number we have, may have left the first.
        let mut names = (0..).map(|n| format!("berm-sandbox-test-{}-{n}", std::process::id()));
        let is_free = |name: &String| match fs::create_dir(std::env::temp_dir().join(name)) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            made => made.map(|()| true).unwrap(),
        };
        let cgroup = names.find(is_free).unwrap();
        let dir = std::env::temp_dir().join(&cgroup);
        Self { dir, cgroup }
    }

    /// The settings of a sandbox whose state lies here.
    pub(crate) fn config(&self) -> Config {
        Config {
            state_dir: self.dir.join("state"),
            kernel: kernel(),
            policy: Policy {
                allow_annotations: with_annotation()
                    .then(|| USERNS.to_owned())
                    .into_iter()
                    .collect(),
                ..Policy::default()
            },
            ..Config::default()
        }
    }

    /// No cgroup, record, socket or id range is left.
    pub(crate) fn assert_clean(&self, state_dir: &Path) {
        assert_eq!(self.cgroups_left(), Vec::<PathBuf>::new(), "cgroups");
        assert_eq!(files_below(state_dir), Vec::<PathBuf>::new(), "state");
    }

    fn hierarchies() -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let mut all = vec![top.to_owned()];
        for entry in fs::read_dir(top).into_iter().flatten().flatten() {
            // Links such as cpu -> cpu,cpuacct lead to hierarchies that are there by themselves.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.push(entry.path());
            }
        }
        all
    }

    /// Cgroups that the case made and did not remove; parents stay, as with runc.
    fn cgroups_left(&self) -> Vec<PathBuf> {
        let tops = Self::hierarchies()
            .into_iter()
            .map(|h| h.join(&self.cgroup));
        let dirs = tops.flat_map(|top| fs::read_dir(top).into_iter().flatten().flatten());
        dirs.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    }

    fn remove_cgroups(&self) {
        let until = Instant::now() + SOON;
        let mut dirs = self.cgroups_left();
        dirs.extend(
            Self::hierarchies()
                .into_iter()
                .map(|h| h.join(&self.cgroup)),
        );
        for dir in dirs.iter().filter(|dir| dir.is_dir()) {
            let _ = fs::write(dir.join("freezer.state"), "THAWED");
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|pid| pid.parse().ok()) {
                process::send(pid, rustix::process::Signal::KILL);
            }
            // The kernel lets go of a dead process in its own time.
            while fs::remove_dir(dir).is_err() && dir.is_dir() && Instant::now() < until {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove_cgroups();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// True if a pod that brings no user namespace gets one.
pub(crate) fn pods_get_user_namespaces() -> bool {
    if with_annotation() {
        return true;
    }
    let host = Host::detect(Config {
        kernel: kernel(),
        ..Config::default()
    });
    host.unwrap().kernel().idmapped_tmpfs
}

/// `BERM_TEST_USERNS=auto`: every pod asks for a user namespace by annotation, which it then gets
/// on any kernel.
fn with_annotation() -> bool {
    std::env::var("BERM_TEST_USERNS").is_ok_and(|word| word == "auto")
}

/// What `BERM_TEST_KERNEL` says that the kernel can: `6.1`, `6.12`; without it what it can.
fn kernel() -> Option<Kernel> {
    let kernel = match std::env::var("BERM_TEST_KERNEL").ok()?.as_str() {
        "6.1" => Kernel {
            detached_layers: false,
            idmapped_tmpfs: false,
        },
        "6.12" => Kernel {
            detached_layers: false,
            idmapped_tmpfs: true,
        },
        other => panic!("BERM_TEST_KERNEL={other:?} is neither 6.1 nor 6.12"),
    };
    Some(kernel)
}

/// The loop devices that show files below `dir`.
pub(crate) fn loop_devices_of(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let shows = |device: &PathBuf| {
        let file = fs::read_to_string(device.join("loop/backing_file"));
        file.is_ok_and(|file| Path::new(&file).starts_with(dir))
    };
    all.map(|entry| entry.path()).filter(shows).collect()
}

/// What this process has open, by number and target.
pub(crate) fn open_files() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let listing = target.starts_with(format!("/proc/{}/fd", std::process::id()));
            (!listing).then(|| format!("{:?} {}", entry.file_name(), target.display()))
        })
        .collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            // What was refused stays for those who ask why.
            _ if entry.file_name() == ".refused" => {}
            // For which boot it was swept; a shim killed while it wrote that left the new file.
            _ if entry.file_name() == ".boot" || entry.file_name() == ".boot.new" => {}
            // The namespace's directory and that of the ids stay.
            Ok(kind) if kind.is_dir() => {
                let inside = fs::read_dir(&path).into_iter().flatten().flatten();
                found.extend(inside.map(|entry| entry.path()));
            }
            _ => found.push(path),
        }
    }
    found
}
