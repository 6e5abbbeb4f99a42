//! A read-only image registry on a node's loopback (OCI distribution specification 1.1): what a
//! pull needs, and no more.
//!
//! It lives in the calling process; only its socket is the node's. containerd is led to it by a
//! hosts.toml for `_default`, so that an image keeps the name that it has in the world.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Error, call, file};
use crate::image::{Content, Store};
use crate::node::Node;

/// Where a node's configuration for containerd must look: `config_path` of its registries.
pub const CONFIG_PATH: &str = "/run/registry";
/// Longest request that is read, and longest time to wait for it.
const REQUEST: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// A running registry. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Serves `store` on `node`, whatever the host part of an image's name.
    /// # Errors
    /// The errno of setns(2) or bind(2), or of writing the configuration.
    pub fn start(node: &Node, store: Arc<Store>) -> Result<Self, Error> {
        let listener = listen(node)?;
        let port = listener.local_addr().map_err(call("getsockname"))?.port();
        let dir = node.outside(CONFIG_PATH).join("_default");
        std::fs::create_dir_all(&dir).map_err(file("mkdir", &dir))?;
        let hosts = format!(
            "server = 'http://127.0.0.1:{port}'\n[host.'http://127.0.0.1:{port}']\n\
             capabilities = ['pull', 'resolve']\n"
        );
        let path = dir.join("hosts.toml");
        std::fs::write(&path, hosts).map_err(file("write", path))?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).map_err(call("pipe2"))?;
        let thread = std::thread::spawn(move || serve(&listener, &stopped, &store));
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of the server has been printed, and its clients have seen it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket belongs to the network namespace that its maker was in: a thread goes there and ends.
fn listen(node: &Node) -> Result<TcpListener, Error> {
    let path = format!("/proc/{}/ns/net", node.keeper_pid());
    let netns = std::fs::File::open(&path).map_err(file("open", path))?;
    let make = move || {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(call("setns(CLONE_NEWNET)"))?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(call("bind(127.0.0.1:0)"))
    };
    let thread = std::thread::spawn(make);
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn serve(listener: &TcpListener, stopped: &OwnedFd, store: &Store) {
    std::thread::scope(|scope| {
        loop {
            let mut fds = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(stopped, PollFlags::IN),
            ];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            if let Ok((stream, _)) = listener.accept() {
                // A client that breaks off has its reasons, and its own error.
                scope.spawn(move || answer(&stream, store));
            }
        }
    });
}

/// Answers one request and closes the connection.
fn answer(mut stream: &TcpStream, store: &Store) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(REQUEST)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut words = request.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let path = target.split('?').next().unwrap_or_default();
    if path == "/v2/" {
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let Some((digest, content)) = look_up(store, path) else {
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
         Docker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n",
        content.media_type,
        content.bytes.len(),
    )?;
    if method == "HEAD" {
        return Ok(());
    }
    stream.write_all(&content.bytes)
}

/// `/v2/NAME/manifests/TAG`, or `manifests` and `blobs` with a digest.
fn look_up<'a>(store: &'a Store, path: &'a str) -> Option<(&'a str, &'a Content)> {
    let (rest, reference) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
    let (name, kind) = rest.rsplit_once('/')?;
    let digest = match (kind, reference.contains(':')) {
        ("manifests" | "blobs", true) => reference,
        ("manifests", false) => store.find(&format!("{name}:{reference}"))?,
        _ => return None,
    };
    Some((digest, store.get(digest)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_leads_to_its_manifest_and_a_digest_to_its_blob() {
        let mut store = Store::default();
        store.image("some/image:1", &[b"layer"], &serde_json::json!({}));
        let (digest, manifest) = look_up(&store, "/v2/some/image/manifests/1").unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
        let by_digest = format!("/v2/some/image/manifests/{digest}");
        assert!(look_up(&store, &by_digest).is_some());
        let layer = format!(
            "/v2/some/image/blobs/{}",
            manifest["layers"][0]["digest"].as_str().unwrap()
        );
        assert_eq!(look_up(&store, &layer).unwrap().1.bytes, b"layer");
        for missing in [
            "/v2/some/image/manifests/2",
            "/v2/some/image/tags/1",
            "/etc/passwd",
            "",
        ] {
            assert!(look_up(&store, missing).is_none(), "{missing}");
        }
    }
}
