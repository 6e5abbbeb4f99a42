//! OCI images built here, so that no test needs a registry.
//!
//! `berm.test/busybox:1` has two layers (busybox with its applets as links; users, a setuid
//! file and a file that only uid 1000 may read), `berm.test/pause:1` one. Programs of a test
//! go into a further layer: [`Extra`].

mod store;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

pub(crate) use self::store::architecture;
pub use self::store::{Content, Store};
use crate::command;
use crate::error::{Error, file};
use crate::tar::Tar;

/// The image of ordinary containers.
pub const BUSYBOX: &str = "berm.test/busybox:1";
/// The image of a sandbox container, which a runtime other than Berm really runs.
pub const PAUSE: &str = "berm.test/pause:1";

/// A file that a test wants in [`BUSYBOX`], for example a program that attacks from inside.
#[derive(Debug, Clone)]
pub struct Extra {
    /// Where it is now.
    pub from: PathBuf,
    /// Where it shall be, without the leading slash; mode 0755, owned by root.
    pub to: String,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
    alice:x:1000:1000:alice:/home/alice:/bin/sh\nbob:x:1001:1001:bob:/home/bob:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nbob:x:1001:\n\
    shared:x:2000:alice,bob\nnode:x:2001:bob\n";

/// PID 1 of a sandbox container under runc: ends at SIGTERM and reaps, as pause does. Where the
/// pod shares its PID namespace, a test that looks for `sleep` must not find this one's.
const PAUSE_SCRIPT: &str =
    "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do tail -s 1000000 -f /dev/null & wait; done\n";

/// Writes an archive with both images, as `ctr images import` reads it.
/// # Errors
/// [`Error::File`] if busybox or an extra file cannot be read, or `archive` not be written.
pub fn write(archive: &Path, busybox: &Path, extra: &[Extra]) -> Result<(), Error> {
    let program = std::fs::read(busybox).map_err(file("read", busybox))?;
    let mut base = root(busybox, &program)?;
    base.file("pause", PAUSE_SCRIPT.as_bytes(), 0o755, 0);
    let mut users = Tar::default();
    users.file("etc/passwd", PASSWD.as_bytes(), 0o644, 0);
    users.file("etc/group", GROUP.as_bytes(), 0o644, 0);
    users.dir("tmp", 0o1777, 0);
    users.dir("home", 0o755, 0);
    users.dir("home/alice", 0o700, 1000);
    users.file("home/alice/secret", b"of alice\n", 0o600, 1000);
    users.dir("setuid", 0o755, 0);
    users.file("setuid/busybox", &program, 0o4755, 0);
    let mut more = Tar::default();
    for Extra { from, to } in extra {
        let bytes = std::fs::read(from).map_err(file("read", from))?;
        more.file(to, &bytes, 0o755, 0);
    }
    let (base, users, more) = (base.finish(), users.finish(), more.finish());
    let mut busybox_layers: Vec<&[u8]> = vec![&base, &users];
    if !extra.is_empty() {
        busybox_layers.push(&more);
    }
    let mut store = Store::default();
    store.image(
        BUSYBOX,
        &busybox_layers,
        &json!({ "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"] }),
    );
    store.image(
        PAUSE,
        &[&base],
        &json!({ "Entrypoint": ["/pause"], "Env": ["PATH=/bin"] }),
    );
    std::fs::write(archive, store.archive()).map_err(file("write", archive))
}

/// Writes an archive of images for the pods of the suite: `berm.test/layers:1` has 60 layers,
/// `berm.test/user:1` names a user, a directory and an entry point, `berm.test/bare:1` has
/// nothing but one program.
/// # Errors
/// [`Error::File`] if busybox cannot be read or `archive` not be written.
pub fn write_more(archive: &Path, busybox: &Path) -> Result<(), Error> {
    let program = std::fs::read(busybox).map_err(file("read", busybox))?;
    let base = {
        let mut base = root(busybox, &program)?;
        base.file("etc/passwd", PASSWD.as_bytes(), 0o644, 0);
        base.file("etc/group", GROUP.as_bytes(), 0o644, 0);
        base.dir("home", 0o755, 0);
        base.dir("home/alice", 0o700, 1000);
        base.finish()
    };
    let mut store = Store::default();
    let layers: Vec<Vec<u8>> = (1..60).map(numbered_layer).collect();
    let layers: Vec<&[u8]> = std::iter::once(&base)
        .chain(&layers)
        .map(Vec::as_slice)
        .collect();
    store.image(
        "berm.test/layers:1",
        &layers,
        &json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] }),
    );
    store.image(
        "berm.test/user:1",
        &[&base],
        &json!({
            "User": "alice", "WorkingDir": "/home/alice", "Env": ["PATH=/bin", "HOME=/home/alice"],
            "Entrypoint": ["sh", "-c", "echo $(id -un) $(pwd) $0"], "Cmd": ["by-default"],
        }),
    );
    let mut bare = Tar::default();
    bare.file("busybox", &program, 0o755, 0);
    store.image(
        "berm.test/bare:1",
        &[&bare.finish()],
        &json!({ "Entrypoint": ["/busybox", "sh"] }),
    );
    std::fs::write(archive, store.archive()).map_err(file("write", archive))
}

/// A layer with a file of its own that changes another and removes the one of the layer below.
fn numbered_layer(number: u32) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.dir("layers", 0o755, 0);
    tar.file("layers/top", format!("{number}\n").as_bytes(), 0o644, 0);
    tar.file(&format!("layers/{number}"), b"", 0o644, number);
    if number.is_multiple_of(2) {
        tar.file(&format!("layers/.wh.{}", number - 1), b"", 0o644, 0);
    }
    tar.finish()
}

/// The directories of a root file system, and busybox with a link for each applet.
pub(crate) fn root(busybox: &Path, program: &[u8]) -> Result<Tar, Error> {
    let mut tar = Tar::default();
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
        tar.dir(dir, 0o755, 0);
    }
    tar.file("bin/busybox", program, 0o755, 0);
    for applet in applets(busybox)?
        .split_whitespace()
        .filter(|name| *name != "busybox")
    {
        tar.link(&format!("bin/{applet}"), "busybox");
    }
    Ok(tar)
}

/// Distributions leave out different ones.
fn applets(busybox: &Path) -> Result<String, Error> {
    let mut list = Command::new(busybox);
    list.arg("--list");
    Ok(command::run(list, b"", Duration::from_secs(10))?
        .ok()?
        .stdout)
}
