//! `delete`: cleans up after a shim that is gone.
//!
//! containerd runs it after every ordinary end of a task too, while the shim lives or has just
//! gone: then there is nothing to do but to answer, fast, and to touch nothing of the pod.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use berm_sandbox::Exit;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use serde::Deserialize;

use crate::args::Args;
use crate::error::{self, Error};
use crate::{config, file, socket, start, wire};

/// 128 + SIGKILL: what a task is said to have ended with if nobody saw it.
const KILLED: u32 = 137;
const ADDRESS_LIMIT: u64 = 4096;

/// Answers with a `DeleteResponse`.
/// # Errors
/// Those of the clean-up; containerd logs them and goes on.
pub(crate) fn run(program: &str, args: &Args) -> Result<Vec<u8>, Error> {
    let bundle = Path::new(&args.bundle);
    let (sockets, daemon) = (sockets(bundle), start::daemon(bundle));
    // The records tell who made the pod, the bundle who was to make it. That its socket answers
    // does not mean that it lives: one that was killed just now keeps its socket until the kernel
    // has taken down all that it held.
    let exit = clean(program, args)?;
    let dead = exit.is_some() || daemon.is_some_and(|daemon| !daemon.is_at_work());
    for stale in &sockets {
        if dead || !socket::answers(stale) {
            // That it is gone already is the ordinary case.
            let _ = std::fs::remove_file(stale);
        }
    }
    let exit = exit.unwrap_or(Exit {
        pid: 0,
        status: KILLED,
        at: SystemTime::now(),
    });
    DeleteResponse {
        pid: wire::pid(exit.pid),
        exit_status: exit.status,
        exited_at: wire::time(exit.at),
        ..DeleteResponse::default()
    }
    .write_to_bytes()
    .map_err(|source| Error::Encode {
        what: "DeleteResponse",
        source,
    })
}

fn clean(program: &str, args: &Args) -> Result<Option<Exit>, Error> {
    let config = config::load(&config::path(program)).unwrap_or_else(|e| {
        // The pod was made before the file broke: it must go all the same. containerd logs this.
        eprintln!("{}; cleaning up with the defaults", error::chain(&e));
        berm_sandbox::Config::default()
    });
    Ok(berm_sandbox::cleanup(&config, &args.namespace, &args.id)?)
}

/// What containerd 2.1 and later keep of the answer to `start`.
#[derive(Deserialize)]
struct Bootstrap {
    address: String,
}

/// Where the pod's shim listened, as the bundle tells: `address` by the shim, `bootstrap.json`
/// by containerd, for grouped containers too. The directory is not told to `delete`.
fn sockets(bundle: &Path) -> Vec<PathBuf> {
    let text = |name| file::read(&bundle.join(name), ADDRESS_LIMIT).ok();
    let address = text("address").and_then(|bytes| String::from_utf8(bytes).ok());
    let bootstrap = text("bootstrap.json")
        .and_then(|bytes| serde_json::from_slice::<Bootstrap>(&bytes).ok())
        .map(|bootstrap| bootstrap.address);
    let mut paths: Vec<PathBuf> = [address, bootstrap]
        .into_iter()
        .flatten()
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .collect();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use std::fs;

    use berm_sandbox::Identity;

    use super::*;

    #[test]
    fn the_socket_is_found_in_every_generations_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let (address, bootstrap) = (
            dir.path().join("address"),
            dir.path().join("bootstrap.json"),
        );
        assert!(sockets(dir.path()).is_empty());
        fs::write(
            &bootstrap,
            r#"{"version":3,"address":"unix:///b","protocol":"ttrpc"}"#,
        )
        .unwrap();
        assert_eq!(sockets(dir.path()), [PathBuf::from("/b")]);
        fs::write(&address, "unix:///a\n").unwrap();
        assert_eq!(
            sockets(dir.path()),
            [PathBuf::from("/a"), PathBuf::from("/b")]
        );
        fs::write(&address, "unix:///b").unwrap();
        assert_eq!(sockets(dir.path()), [PathBuf::from("/b")]);
        fs::write(&address, "\0garbage").unwrap();
        fs::write(&bootstrap, "{").unwrap();
        assert!(sockets(dir.path()).is_empty());
    }

    #[test]
    fn with_a_living_shim_it_only_answers() {
        let me = Identity::of(std::process::id().cast_signed()).unwrap();
        assert!(answers_and_leaves_the_socket(None));
        assert!(answers_and_leaves_the_socket(Some(me)));
    }

    #[test]
    fn the_socket_of_a_shim_that_died_before_it_made_a_sandbox_goes_though_it_answers_still() {
        let me = Identity::of(std::process::id().cast_signed()).unwrap();
        let gone = Identity {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!answers_and_leaves_the_socket(Some(gone)));
    }

    fn answers_and_leaves_the_socket(daemon: Option<Identity>) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _shim = std::os::unix::net::UnixListener::bind(&path).unwrap();
        fs::write(
            dir.path().join("address"),
            format!("unix://{}", path.display()),
        )
        .unwrap();
        if let Some(daemon) = daemon {
            let json = serde_json::to_vec(&daemon).unwrap();
            fs::write(dir.path().join("shim.json"), json).unwrap();
        }
        let args = Args {
            namespace: "ns".into(),
            id: "a".into(),
            bundle: dir.path().display().to_string(),
            ..Args::default()
        };
        let answer = run("containerd-shim-berm-v1", &args).unwrap();
        let answer = DeleteResponse::parse_from_bytes(&answer).unwrap();
        assert_eq!((answer.pid, answer.exit_status), (0, 137));
        assert!(answer.exited_at.seconds > 1_700_000_000);
        path.exists()
    }
}
