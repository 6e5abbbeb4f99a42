//! The records: what another process needs to know to act on a pod.
//!
//! `<state_dir>/<namespace>/<sandbox id>/sandbox.json` is immutable and written once by rename;
//! `containers/<id>.json` lies beside it. Keys are gVisor's where it has them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use berm_cgroup::CgroupPath;
use berm_metrics::Registration;
use berm_plan::{Hook, Ids, MountHints, RootfsUpper};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::error::{Error, io};
use crate::process::{Identity, boot_id, is_of_this_boot};

/// Version of the record's form.
const VERSION: u32 = 1;
/// Largest record that is read.
const MAX_RECORD: u64 = 1 << 20;

/// How a pod is kept apart from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// `auto`, `mapped`, `path`, `rootless` (as `auto`, below the user namespace of a user who is
    /// not root), or `none`: then nothing of the pod is a security boundary.
    pub userns: String,
    /// Why there is none: `hostNetwork`, `hostPID`, `hostIPC`, `privileged`, `annotation` or
    /// `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Namespaces that are the host's: `net`, `pid`, `ipc`, `uts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_namespaces: Vec<String>,
    /// Id maps.
    pub ids: Ids,
    /// Index of the range in the node's pool, if it came from there.
    pub range: Option<u32>,
    /// Those of the ids above 65535.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_ranges: Vec<u32>,
    /// The network namespace belongs to the pod's user namespace.
    pub owns_netns: bool,
}

/// The record of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the record.
    pub version: u32,
    /// Engine: `native`.
    pub engine: String,
    /// Sandbox id.
    pub id: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Name of the pod (`io.kubernetes.cri.sandbox-name`).
    pub pod_name: String,
    /// Namespace of the pod (`io.kubernetes.cri.sandbox-namespace`).
    pub namespace: String,
    /// Host pid of PID 1.
    pub pid: i32,
    /// Start time of PID 1.
    pub start_time: u64,
    /// Host id of the pod's root user.
    pub uid: u32,
    /// Host id of the pod's root group.
    pub gid: u32,
    /// The sandbox's cgroup.
    pub cgroup: String,
    /// `oom_score_adj` that PID 1 was born with, its maker's, before the spec's was set.
    #[serde(default)]
    pub original_oom_score_adj: i32,
    /// The control socket.
    pub control_socket_path: PathBuf,
    /// The bundle of the sandbox task.
    pub bundle: PathBuf,
    /// The process that owns the sandbox: its shim.
    pub owner: Identity,
    /// In which boot the pids mean something (`/proc/sys/kernel/random/boot_id`).
    #[serde(default)]
    pub boot: String,
    /// Isolation in force.
    pub isolation: Isolation,
    /// What the pod says of its volumes beyond their mounts.
    #[serde(default, skip_serializing_if = "MountHints::is_empty")]
    pub mount_hints: MountHints,
    /// Every metric that snapshots may have; `None`: nobody asked for metrics at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_metrics: Option<Registration>,
    /// What the figures come from: `cpuarch`, `engine`, `numcores`, `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric_metadata: Option<BTreeMap<String, String>>,
    /// The metric server that was configured then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric_server_address: Option<String>,
}

impl Record {
    /// PID 1.
    pub fn init(&self) -> Identity {
        Identity {
            pid: self.pid,
            start_time: self.start_time,
        }
    }

    pub(crate) const fn version() -> u32 {
        VERSION
    }

    /// Loads the record of a sandbox.
    /// # Errors
    /// [`Error::NoSandbox`] if there is none, or if it is left from another boot.
    pub fn load(state_dir: &Path, namespace: &str, id: &str) -> Result<Self, Error> {
        let dir = sandbox_dir(state_dir, namespace, id)?;
        read::<Self>(&dir.join(SANDBOX))?
            .filter(|record| is_of_this_boot(&record.boot))
            .ok_or_else(|| Error::NoSandbox { id: id.to_owned() })
    }

    /// Loads the records of the sandbox's containers.
    /// # Errors
    /// The errno of reading the directory of the records.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>, Error> {
        match self.control_socket_path.parent() {
            Some(dir) => containers(dir),
            None => Ok(Vec::new()),
        }
    }

    /// Loads every record of the node; unreadable ones are left out, with a warning.
    /// # Errors
    /// The errno of reading the state directory.
    pub fn load_all(state_dir: &Path) -> Result<Vec<Self>, Error> {
        let all = Records::new(state_dir).load()?.into_iter();
        Ok(all.map(Rc::unwrap_or_clone).collect())
    }
}

/// The records of the node for who looks at them again and again: one that was read is not read
/// again, because a record never changes.
#[derive(Debug)]
pub struct Records {
    state_dir: PathBuf,
    /// By the file of each.
    read: BTreeMap<PathBuf, (FileId, Rc<Record>)>,
}

/// Which file a record was read from: another one at its path is another record.
#[derive(Clone, Copy, Debug, PartialEq)]
struct FileId {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Records {
    /// Of a node with this state directory; nothing is read yet.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            read: BTreeMap::new(),
        }
    }

    /// Every record of now, by sandbox id; unreadable ones are left out, with a warning.
    /// # Errors
    /// The errno of reading the state directory.
    pub fn load(&mut self) -> Result<Vec<Rc<Record>>, Error> {
        let mut before = std::mem::take(&mut self.read);
        let mut all = Vec::with_capacity(before.len());
        for namespace in subdirs(&self.state_dir)? {
            for sandbox in subdirs(&namespace)? {
                let path = sandbox.join(SANDBOX);
                let known = before.remove(&path);
                match look(&path, known) {
                    Ok(Some((id, record))) => {
                        all.push(Rc::clone(&record));
                        self.read.insert(path, (id, record));
                    }
                    Ok(None) => {}
                    Err(e) => log::warn!("call=LoadRecord path={sandbox:?} err={:?}", e.chain()),
                }
            }
        }
        all.retain(|record| is_of_this_boot(&record.boot));
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }
}

/// The record at `path`, which is `known` if that was read from the file that is there.
fn look(
    path: &Path,
    known: Option<(FileId, Rc<Record>)>,
) -> Result<Option<(FileId, Rc<Record>)>, Error> {
    let stat = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        stat => stat.map_err(io("stat(record)"))?,
    };
    let id = FileId {
        device: stat.dev(),
        inode: stat.ino(),
        changed: (stat.ctime(), stat.ctime_nsec()),
    };
    match known {
        Some(known) if known.0 == id => Ok(Some(known)),
        _ => Ok(read::<Record>(path)?.map(|record| (id, Rc::new(record)))),
    }
}

/// The record of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// Version of the record.
    pub version: u32,
    /// Container id.
    pub id: String,
    /// Its first process.
    pub init: Identity,
    /// Its cgroup.
    pub cgroup: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The steps that made it, in their order.
    #[serde(default)]
    pub steps: Vec<String>,
    /// Where what is written to its root file system goes; `None`: where it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_upper: Option<RootfsUpper>,
    /// What runs once it is gone, whoever ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poststop: Option<Poststop>,
}

/// The hooks of `poststop`, for whoever cleans up after a shim that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Poststop {
    /// The programs.
    pub hooks: Vec<Hook>,
    /// What each reads on its standard input.
    pub state: String,
}

/// What is about to be made, written before the first of it: who dies half-way is cleaned up by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Intent {
    /// Who makes it.
    pub(crate) owner: Identity,
    /// In which boot.
    #[serde(default)]
    pub(crate) boot: String,
    /// The cgroup that it gets; empty: none.
    pub(crate) cgroup: String,
}

impl Intent {
    /// For a sandbox or a container of the caller's, with its cgroup if it has one of its own.
    pub(crate) fn new(cgroup: Option<&CgroupPath>) -> Result<Self, Error> {
        let owner = Identity::of(std::process::id().cast_signed()).ok_or(Error::Call {
            call: "read(/proc/self/stat)",
            source: Errno::SRCH,
        })?;
        let cgroup = relative(cgroup);
        let boot = boot_id()?;
        Ok(Self {
            owner,
            boot,
            cgroup,
        })
    }
}

/// A cgroup as records name it; empty: there is none.
pub(crate) fn relative(cgroup: Option<&CgroupPath>) -> String {
    cgroup.map_or_else(String::new, |path| path.relative().to_owned())
}

/// The intent of the sandbox in `dir`; `None`: it died before it made anything.
pub(crate) fn intent(dir: &Path) -> Option<Intent> {
    read_intent(&dir.join(INTENT)).filter(|intent| is_of_this_boot(&intent.boot))
}

/// Whether a sandbox's directory tells who made it; one that does not may be in the making.
pub(crate) fn says_whose(dir: &Path) -> bool {
    dir.join(SANDBOX).exists() || dir.join(INTENT).exists()
}

/// Whether a sandbox's directory is left from another boot. One that says nothing is not: it may
/// be in the making.
fn is_left(dir: &Path) -> bool {
    let record = read::<Record>(&dir.join(SANDBOX)).ok().flatten();
    let intent = read_intent(&dir.join(INTENT));
    let boots = [record.map(|r| r.boot), intent.map(|i| i.boot)];
    let mut boots = boots.into_iter().flatten();
    boots.next().is_some_and(|boot| !is_of_this_boot(&boot))
}

/// The file that names the boot for which [`sweep`] has been done; no namespace begins with a dot.
const SWEPT: &str = ".boot";

/// Removes what another boot has left in the state directory: once in a boot, before the first
/// sandbox. Its processes and cgroups are gone; who has their numbers and names now is not touched.
/// # Errors
/// The errno of the call that is named.
pub(crate) fn sweep(config: &Config) -> Result<(), Error> {
    let now = boot_id()?;
    let marker = config.state_dir.join(SWEPT);
    let swept = || fs::read_to_string(&marker).is_ok_and(|boot| boot == now);
    if swept() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&config.state_dir)
        .map_err(io("mkdir(state_dir)"))?;
    let lock = fs::File::open(&config.state_dir).map_err(io("open(state_dir)"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(crate::error::call("flock(state_dir)"))?;
    if swept() {
        return Ok(());
    }
    for namespace in subdirs(&config.state_dir)? {
        for sandbox in subdirs(&namespace)?.iter().filter(|dir| is_left(dir)) {
            log::info!("call=Sweep path={sandbox:?} left=\"another boot\"");
            remove_dir(sandbox);
        }
    }
    crate::ids::sweep(config);
    write_text(&marker, &now)
}

/// Whole or not at all, by rename.
fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    let new = path.with_extension("new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    written.map_err(|e| failed_write(&new, path, &e))
}

/// The intents of every container of a sandbox's directory, the finished ones among them.
pub(crate) fn container_intents(dir: &Path) -> Result<Vec<Intent>, Error> {
    Ok(files(dir, "intent")?
        .iter()
        .filter_map(|path| read_intent(path))
        .collect())
}

/// One that cannot be read was being written: nothing was made yet.
fn read_intent(path: &Path) -> Option<Intent> {
    read(path).ok().flatten()
}

const SANDBOX: &str = "sandbox.json";
const INTENT: &str = "sandbox.intent";
const CONTAINERS: &str = "containers";

/// Checks that an id can be one path component.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let reason = match id {
        "" => "is empty",
        _ if id.starts_with('.') => "begins with a dot",
        _ if id.len() > 128 => "has more than 128 characters",
        _ if !id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:+".contains(&b)) =>
        {
            "has characters other than letters, digits and -_.:+"
        }
        _ => return Ok(()),
    };
    Err(Error::BadId {
        id: id.chars().take(128).collect(),
        reason,
    })
}

/// `<state_dir>/<namespace>/<id>`
pub(crate) fn sandbox_dir(state_dir: &Path, namespace: &str, id: &str) -> Result<PathBuf, Error> {
    check_id(namespace)?;
    check_id(id)?;
    Ok(state_dir.join(namespace).join(id))
}

/// The directory of the sandbox that has a container of this id.
pub(crate) fn sandbox_of_container(
    state_dir: &Path,
    namespace: &str,
    id: &str,
) -> Result<Option<PathBuf>, Error> {
    check_id(namespace)?;
    let name = format!("{id}.json");
    let all = subdirs(&state_dir.join(namespace))?;
    Ok(all
        .into_iter()
        .find(|dir| dir.join(CONTAINERS).join(&name).exists()))
}

/// The ids of the sandboxes of a namespace that have a directory.
pub(crate) fn sandboxes(state_dir: &Path, namespace: &str) -> Result<Vec<String>, Error> {
    check_id(namespace)?;
    let dirs = subdirs(&state_dir.join(namespace))?;
    let name = |dir: &PathBuf| Some(dir.file_name()?.to_str()?.to_owned());
    Ok(dirs.iter().filter_map(name).collect())
}

fn subdirs(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("readdir()"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io("readdir()"))?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.file_type().map_err(io("stat()"))?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The directory of a sandbox's records; what it made is removed on drop until it is kept.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    keep: bool,
    /// Serves the control socket that lies in the directory.
    serving: Option<JoinHandle<()>>,
}

impl StateDir {
    /// # Errors
    /// [`Error::SandboxExists`] if another sandbox has the directory.
    pub(crate) fn create(state_dir: &Path, namespace: &str, id: &str) -> Result<Self, Error> {
        let path = sandbox_dir(state_dir, namespace, id)?;
        let make = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
        match make(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(state_dir);
                fs::DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(parent)
                    .and_then(|()| make(&path))
            }
            made => made,
        }
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => Error::SandboxExists { id: id.to_owned() },
            _ => Error::File {
                call: "mkdir",
                path: path.clone(),
                source: errno(&e),
            },
        })?;
        Ok(Self {
            path,
            keep: false,
            serving: None,
        })
    }

    /// Hands the directory over: the caller's own value removes nothing any more.
    pub(crate) fn keep(&mut self) -> Self {
        self.keep = true;
        Self {
            path: self.path.clone(),
            keep: true,
            serving: self.serving.take(),
        }
    }

    /// Tells what is about to be made. By rename: who looks at the directory while it is made finds
    /// no intent or a whole one.
    pub(crate) fn intend(&self, intent: &Intent) -> Result<(), Error> {
        write(&self.path.join(INTENT), intent)
    }

    /// Tells which container is about to be made.
    pub(crate) fn intend_container(&self, id: &str, intent: &Intent) -> Result<(), Error> {
        self.in_containers(&format!("{id}.intent"), |path| write_at_once(path, intent))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends `serving`, which serves a socket in the directory, with the directory.
    pub(crate) fn serve(&mut self, serving: JoinHandle<()>) {
        if let Some(old) = self.serving.replace(serving) {
            old.abort();
        }
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        write(&self.path.join(SANDBOX), record)
    }

    pub(crate) fn write_container(&self, record: &ContainerRecord) -> Result<(), Error> {
        self.in_containers(&format!("{}.json", record.id), |path| write(path, record))
    }

    /// Writes a file in the containers' directory, which the first of them makes.
    fn in_containers(
        &self,
        name: &str,
        write: impl Fn(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let dir = self.path.join(CONTAINERS);
        let path = dir.join(name);
        match write(&path) {
            Err(Error::File {
                source: Errno::NOENT,
                ..
            }) => {
                fs::DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(&dir)
                    .map_err(|e| Error::File {
                        call: "mkdir",
                        path: dir.clone(),
                        source: errno(&e),
                    })?;
                write(&path)
            }
            done => done,
        }
    }

    pub(crate) fn remove_container(&self, id: &str) {
        let dir = self.path.join(CONTAINERS);
        remove_file(&dir.join(format!("{id}.json")));
        remove_file(&dir.join(format!("{id}.intent")));
    }

    /// Removes the directory with all records.
    pub(crate) fn remove(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        remove_dir(&self.path);
        self.keep = true;
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if !self.keep {
            remove_dir(&self.path);
        }
    }
}

pub(crate) fn remove_dir(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("call=RemoveState path={path:?} err={:?}", e.to_string());
        }
        _ => {}
    }
}

fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("call=RemoveRecord path={path:?} err={:?}", e.to_string());
        }
        _ => {}
    }
}

/// Every container record of a sandbox's directory.
pub(crate) fn containers(dir: &Path) -> Result<Vec<ContainerRecord>, Error> {
    let mut all = Vec::new();
    for path in files(dir, "json")? {
        all.extend(read(&path)?);
    }
    Ok(all)
}

/// The files with this extension in the containers' directory.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    files_in(&dir.join(CONTAINERS), extension)
}

/// The files with this extension in a directory; none if it is not there.
pub(crate) fn files_in(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("readdir(records)"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io("readdir(records)"))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

/// Whole or not at all, by rename.
pub(crate) fn write(path: &Path, record: &impl Serialize) -> Result<(), Error> {
    let new = path.with_extension("new");
    write_at_once(&new, record)?;
    fs::rename(&new, path).map_err(|e| failed_write(&new, path, &e))
}

/// For what is read only once its writer is gone, and may then be cut off.
fn write_at_once(path: &Path, record: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec(record).map_err(|source| Error::Record {
        path: path.to_owned(),
        source,
    })?;
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(&json));
    written.map_err(|e| failed_write(path, path, &e))
}

fn failed_write(left: &Path, path: &Path, e: &std::io::Error) -> Error {
    remove_file(left);
    Error::File {
        call: "write",
        path: path.to_owned(),
        source: errno(e),
    }
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    use std::io::Read;
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io("open(record)"))?,
    };
    let mut json = Vec::new();
    file.take(MAX_RECORD)
        .read_to_end(&mut json)
        .map_err(io("read(record)"))?;
    let record = serde_json::from_slice(&json);
    record.map(Some).map_err(|source| Error::Record {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_path_component() {
        for bad in ["", ".", "..", ".a", "a/b", "a\0b", "a b", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "k8s.io", "0123456789abcdef", "my-pod_1:x+y"] {
            assert!(check_id(good).is_ok(), "{good:?}");
        }
    }
}
