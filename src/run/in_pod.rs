//! `berm run --pod`: a container of one's own beside those of a pod that runs.

use std::os::fd::AsFd;

use berm_sandbox::Config;
use berm_sandbox::urpc::Empty;
use serde_json::{Value, json};

use super::{Args, KILL};
use crate::error::Error;
use crate::exec::{attend, code};
use crate::find::{Pod, Target};
use crate::progress::Progress;
use crate::signals::Signals;

/// A container that is destroyed with the value.
struct Made<'a> {
    pod: &'a Pod,
    id: &'a str,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // With the pod it is gone already.
        if let Ok(mut client) = self.pod.connect() {
            let done =
                client.call::<_, Empty>("containerManager.DestroySubcontainer", self.id, &[]);
            if let Err(e) = done
                && self.pod.record.init().is_alive()
            {
                eprintln!("berm: {}", Error::from(e).text());
            }
        }
    }
}

pub(super) async fn run(args: &Args, config: &Config, name: &str) -> Result<u32, Error> {
    args.donate.require_terminal(args.tty)?;
    let pod = Target::find(config, name)?.whole_pod()?;
    let mut signals = Signals::new()?;
    let mut progress = Progress::new(args.json);
    progress.show(&format!("preparing container {}", args.name));
    let mut client = pod.connect()?;
    let mut second = pod.connect()?;
    let create = json!({"CID": args.name, "Bundle": "/"});
    let (Empty {}, _) = client.call("containerManager.CreateSubcontainer", &create, &[])?;
    let _made = Made {
        pod: &pod,
        id: &args.name,
    };
    let start = json!({"CID": args.name, "Spec": spec(args, &pod)});
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let stdio = if args.tty { &[][..] } else { &stdio[..] };
    let (Empty {}, fds) = client.call("containerManager.StartSubcontainer", &start, stdio)?;
    progress.clear();
    let wait = ("containerManager.Wait", json!(args.name));
    let mut told = false;
    let signal = |signal: u32| {
        let signal = if std::mem::replace(&mut told, true) {
            KILL
        } else {
            signal
        };
        let arg = json!({"CID": args.name, "Signo": signal, "PID": 0, "Mode": 0});
        // It may have ended just now: its exit code tells.
        let _ = second.call::<_, Empty>("containerManager.Signal", &arg, &[]);
    };
    let word = attend(client, wait, fds.into_iter().next(), &mut signals, signal).await?;
    Ok(code(word).into())
}

/// The spec of a container of the pod: it has the pod's network, IPC and host name.
fn spec(args: &Args, pod: &Pod) -> Value {
    let mut spec = super::spec(args);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("hostname");
    }
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": pod.record.id,
    });
    let of_pod = |kind: &str, file: &str| {
        let path = format!("/proc/{}/ns/{file}", pod.record.pid);
        json!({"type": kind, "path": path})
    };
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
        of_pod("ipc", "ipc"), of_pod("uts", "uts"), of_pod("network", "net"),
    ]);
    if let Some(path) = cgroups_path(&pod.record.cgroup, &args.name) {
        spec["linux"]["cgroupsPath"] = json!(path);
    }
    spec
}

/// Beside the sandbox's cgroup, where the pod's limits hold: a path, or a scope of systemd's.
fn cgroups_path(sandbox: &str, id: &str) -> Option<String> {
    let (parent, own) = sandbox.rsplit_once('/')?;
    match own.ends_with(".scope") {
        true => {
            let slice = parent.rsplit('/').next().unwrap_or(parent);
            Some(format!("{slice}:berm:{id}"))
        }
        false => Some(format!("/{}/{id}", parent.trim_start_matches('/'))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_beside_its_sandbox() {
        let cases = [
            ("kubepods/pod1/abc", Some("/kubepods/pod1/new")),
            ("/berm/run-1", Some("/berm/new")),
            (
                "kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope",
                Some("kubepods-pod1.slice:berm:new"),
            ),
            // Without root there are none.
            ("", None),
        ];
        for (sandbox, want) in cases {
            assert_eq!(cgroups_path(sandbox, "new").as_deref(), want);
        }
    }
}
