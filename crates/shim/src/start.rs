//! `start`: finds the pod's shim or becomes it.
//!
//! The daemon is a fork of this process, not a second program: the code is there already, and the
//! socket listens before the answer is printed. What it must not inherit is stdout and stderr,
//! which containerd reads to their end.

use std::fs;
use std::io::stdin;
use std::path::{Path, PathBuf};

use berm_sandbox::Identity;
use berm_sys::process::{Fork, close_all_but, fork};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;

use crate::args::Args;
use crate::bootstrap::{self, Bootstrap};
use crate::error::{self, Error};
use crate::socket::{self, Bound};
use crate::{config, daemon, file, log, print};

/// A spec with seccomp profile and many mounts has some 100 kB.
pub(crate) const SPEC_LIMIT: u64 = 16 << 20;

/// Runs `start` in the bundle; in the daemon it returns when that has ended.
/// # Errors
/// Everything that goes wrong before the daemon runs.
pub(crate) fn run(program: &str, args: &Args) -> Result<(), Error> {
    // The daemon outlives its caller and must hold nothing of its. Nothing here is open yet.
    close_all_but(&[]).map_err(|source| Error::Io {
        call: "close_range",
        what: "3".into(),
        source,
    })?;
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let boot = bootstrap::parse(&bootstrap::read(stdin().lock())?, args, &ttrpc_address);
    let bundle = std::env::current_dir().map_err(|source| Error::Io {
        call: "getcwd",
        what: String::new(),
        source,
    })?;
    let group = group(&bundle)?.unwrap_or_else(|| args.id.clone());
    let socket = socket::path(
        &boot.socket_dir,
        &boot.grpc_address,
        &args.namespace,
        &group,
    )?;

    // Only root may speak to the socket.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let Bound::New(listener) = socket::bind(&socket)? else {
        write_address(&bundle, &socket)?;
        return print(&bootstrap::answer(boot.generation, &socket)?);
    };
    let made = || -> Result<_, Error> {
        let config = config::load(&config::path(program))?;
        write_address(&bundle, &socket)?;
        Ok((config, bootstrap::answer(boot.generation, &socket)?))
    };
    let (config, answer) = made().inspect_err(|_| forget(&socket))?;
    // Without its fifo the shim runs all the same; it is silent then.
    let log = log::open(&bundle.join("log")).ok();
    let oom_score = parents_oom_score();
    // The daemon hears by it that containerd has the address. Without that word (this process was
    // killed, or nobody reads its answer) it ends: nobody else would ever end it.
    let (known, tell) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|e| pipe(e.into()))
        .inspect_err(|_| forget(&socket))?;

    let fork = fork().map_err(|source| Error::Io {
        call: "fork",
        what: String::new(),
        source,
    });
    match fork.inspect_err(|_| forget(&socket))? {
        Fork::Parent(pid) => {
            write_daemon(&bundle, pid)?;
            print(&answer)?;
            rustix::io::write(&tell, &[1])
                .map(drop)
                .map_err(|e| pipe(e.into()))
        }
        Fork::Child => {
            drop(tell);
            let fields = format!(" runtime={} sandbox={group}", crate::RUNTIME);
            log::init(log, boot.log_level, &fields);
            let config = berm_sandbox::Config {
                change_logging: Some(log::change),
                ..config
            };
            detach(oom_score);
            // stderr leads nowhere any more.
            std::panic::set_hook(Box::new(|panic| ::log::error!("{panic}")));
            let Bootstrap { ttrpc_address, .. } = boot;
            let namespace = args.namespace.clone();
            let daemon = daemon::Daemon {
                socket,
                namespace,
                ttrpc_address,
                known,
                config,
            };
            // Nobody reads stderr any more.
            daemon.run(listener).or_else(|e| {
                ::log::error!(err = error::chain(&e); "the shim ends");
                Ok(())
            })
        }
    }
}

/// The part of `config.json` that says which pod a container belongs to.
#[derive(Deserialize)]
struct Grouping {
    annotations: Option<GroupAnnotation>,
}

#[derive(Deserialize)]
struct GroupAnnotation {
    #[serde(rename = "io.kubernetes.cri.sandbox-id")]
    sandbox_id: Option<String>,
}

/// Id of the sandbox that the bundle's container belongs to, if its spec names one.
/// # Errors
/// The errno of open(2) or read(2); `InvalidArgument` if it is no JSON.
pub(crate) fn group(bundle: &Path) -> Result<Option<String>, Error> {
    let path = bundle.join("config.json");
    let grouping: Grouping =
        serde_json::from_slice(&file::read(&path, SPEC_LIMIT)?).map_err(|source| Error::Json {
            what: path.display().to_string(),
            source,
        })?;
    Ok(grouping
        .annotations
        .and_then(|a| a.sandbox_id)
        .filter(|id| !id.is_empty()))
}

/// Who the shim is, for a `delete` that comes when it was killed before it had made a sandbox:
/// what is in the pod's own bundle.
const DAEMON: &str = "shim.json";

fn write_daemon(bundle: &Path, pid: i32) -> Result<(), Error> {
    let json = serde_json::to_vec(&Identity::of(pid)).map_err(|source| Error::Json {
        what: DAEMON.into(),
        source,
    })?;
    replace(bundle, DAEMON, &json)
}

/// The shim that was started for this bundle; `None` if that was another's `start`.
pub(crate) fn daemon(bundle: &Path) -> Option<Identity> {
    serde_json::from_slice(&file::read(&bundle.join(DAEMON), 4096).ok()?).ok()
}

/// containerd 1.x finds the shim again by this file, which it leaves to the shim to write.
fn write_address(bundle: &Path, socket: &Path) -> Result<(), Error> {
    replace(bundle, "address", bootstrap::address(socket).as_bytes())
}

/// Writes a file of the bundle, whole or not at all.
fn replace(bundle: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let (new, path) = (bundle.join(format!(".{name}")), bundle.join(name));
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|source| Error::Io {
            call: "write",
            what: format!("{path:?}"),
            source,
        })
}

/// Takes the socket away again after a failure.
fn forget(socket: &Path) {
    if let Err(e) = fs::remove_file(socket) {
        eprintln!("unlink({socket:?}): {e}");
    }
}

fn pipe(source: std::io::Error) -> Error {
    Error::Io {
        call: "pipe2",
        what: String::new(),
        source,
    }
}

/// containerd's own score plus one: the kernel shall take the shim first, but not by much.
fn parents_oom_score() -> Option<i32> {
    let parent = rustix::process::getppid()?;
    let path = PathBuf::from(format!("/proc/{}/oom_score_adj", parent.as_raw_pid()));
    let bytes = file::read(&path, 64).ok()?;
    let score: i32 = std::str::from_utf8(&bytes).ok()?.trim().parse().ok()?;
    Some((score + 1).min(1000))
}

/// Lets go of everything that belongs to the process that containerd started. Failures are told
/// in the log: none of them keeps pods from running.
fn detach(oom_score: Option<i32>) {
    let told = |call: &str, result: Result<(), std::io::Error>| {
        if let Err(e) = result {
            ::log::warn!(err:% = e; "{call}");
        }
    };
    told(
        "setsid",
        rustix::process::setsid().map(drop).map_err(Into::into),
    );
    told("chdir /", rustix::process::chdir("/").map_err(Into::into));
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    told("stdio to /dev/null", stdio_to_null());
    if let Some(score) = oom_score {
        // Lowering needs CAP_SYS_RESOURCE, which a user namespace does not give.
        told(
            "oom_score_adj",
            fs::write("/proc/self/oom_score_adj", score.to_string()),
        );
    }
}

fn stdio_to_null() -> Result<(), std::io::Error> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_grouped_by_the_annotation_of_cri() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1","x":"y"},"process":{"args":[1]}}"#,
                Some("s1"),
            ),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":""}}"#,
                None,
            ),
            (r#"{"annotations":{}}"#, None),
            (r#"{"annotations":null}"#, None),
            (r#"{"ociVersion":"1.3.0"}"#, None),
        ];
        for (json, want) in cases {
            fs::write(dir.path().join("config.json"), json).unwrap();
            assert_eq!(group(dir.path()).unwrap().as_deref(), want, "{json}");
        }
    }

    #[test]
    fn a_broken_spec_is_named_with_line_and_column() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{\n  \"annotations\": 7").unwrap();
        let e = group(dir.path()).unwrap_err();
        let text = error::chain(&e);
        assert!(
            text.contains("config.json") && text.contains("line 2"),
            "{text}"
        );
    }

    #[test]
    fn the_address_file_is_replaced_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for socket in ["/a/longer/one", "/b"] {
            write_address(dir.path(), Path::new(socket)).unwrap();
            let text = fs::read_to_string(dir.path().join("address")).unwrap();
            assert_eq!(text, format!("unix://{socket}"));
        }
        assert!(!dir.path().join(".address").exists());
    }
}
