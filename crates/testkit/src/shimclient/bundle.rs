//! A container's directory, as containerd makes it before it starts a shim.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::node::make_dir;
use super::scratch::unmount_below;
use super::{Error, Mount, Node};

/// How much of a shim's log is kept.
const LOG_LIMIT: usize = 64 << 10;

/// A bundle: `config.json`, `rootfs/`, the link `work`, the fifo `log`; removed when dropped.
#[derive(Debug)]
pub struct Bundle {
    id: String,
    path: PathBuf,
    rootfs: Vec<Mount>,
    log: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Bundle {
    /// Makes the bundle of container `id`; `rootfs` is what `Create` will be told to mount.
    ///
    /// The log fifo is held open for reading and writing and read all the time, as containerd
    /// does. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The errno of the file system; [`berm_sys::Kind::AlreadyExists`] if the id is in use.
    pub fn new(node: &Node, id: &str, spec: &Value, rootfs: Vec<Mount>) -> Result<Self, Error> {
        let path = node.bundle_dir(id);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        fs::create_dir(&path).map_err(Error::file("mkdir", &path))?;
        // Where runc's shim lets its runtime keep the container's state.
        node.remove_later(
            Path::new("/run/containerd/runc")
                .join(node.namespace())
                .join(id),
        );
        own(&path, spec)?;
        let work = node.dir().join("work").join(id);
        make_dir(&work)?;
        symlink(&work, path.join("work")).map_err(Error::file("symlink", path.join("work")))?;
        make_dir(&path.join("rootfs"))?;
        let config = path.join("config.json");
        fs::write(&config, spec.to_string()).map_err(Error::file("write", config))?;
        let log = Arc::default();
        let reader = tokio::spawn(drain(open_log(&path.join("log"))?, Arc::clone(&log)));
        Ok(Self {
            id: id.to_owned(),
            path,
            rootfs,
            log,
            reader,
        })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mounts of the rootfs.
    pub fn rootfs(&self) -> &[Mount] {
        &self.rootfs
    }

    /// What the shim logged so far, at most its first 64 KiB.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.reader.abort();
        unmount_below(&self.path.join("rootfs"));
        if let Ok(work) = fs::read_link(self.path.join("work")) {
            let _ = fs::remove_dir_all(work);
        }
        // A rootfs that could not be unmounted stays, and the node's directory with it.
        if super::scratch::mounts_below(&self.path).is_empty() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Mode 0700, or 0710 and the mapped root group when the spec maps groups.
fn own(path: &Path, spec: &Value) -> Result<(), Error> {
    let gid = spec
        .pointer("/linux/gidMappings")
        .and_then(Value::as_array)
        .and_then(|mappings| {
            let root = mappings
                .iter()
                .find(|mapping| mapping["containerID"] == 0)?;
            u32::try_from(root["hostID"].as_u64()?).ok()
        });
    let mode = if gid.is_some() { 0o710 } else { 0o700 };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::file("chmod", path))?;
    chown(path, None, gid).map_err(Error::file("chown", path))
}

fn open_log(path: &Path) -> Result<pipe::Receiver, Error> {
    make_fifo(path)?;
    let mut options = pipe::OpenOptions::new();
    options
        .read_write(true)
        .open_receiver(path)
        .map_err(Error::file("open", path))
}

/// Makes a fifo of mode 0700, as containerd's package fifo does.
pub(super) fn make_fifo(path: &Path) -> Result<(), Error> {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).map_err(Error::errno("mkfifo", path))
}

async fn drain(fifo: pipe::Receiver, log: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while fifo.readable().await.is_ok() {
        // Not ready after all, or an error that `readable` reports next time.
        let Ok(count) = fifo.try_read(&mut buffer) else {
            continue;
        };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let room = LOG_LIMIT.saturating_sub(log.len()).min(count);
        log.extend_from_slice(&buffer[..room]);
    }
}
