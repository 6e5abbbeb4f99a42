//! A pod without containerd: a sandbox, two containers that share a volume, an exec, and the end.
//!
//! ```sh
//! mkdir -p /tmp/root/bin && cp /bin/busybox /tmp/root/bin/sh && ln -s sh /tmp/root/bin/cat
//! cargo run -p berm-sandbox --example pod -- /tmp/root        # as root
//! ```
//! It prints what the containers printed and how each process ended, and leaves nothing behind.

use std::error::Error;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use berm_sandbox::{Args, Config, ContainerArgs, Host, Record, Sandbox, Spec, Stdio};
use serde_json::{Value, json};

/// In the place of containerd's namespace.
const NAMESPACE: &str = "example";

fn main() -> Result<(), Box<dyn Error>> {
    let rootfs = std::env::args().nth(1).ok_or("usage: pod ROOTFS")?;
    let rootfs = std::path::absolute(rootfs)?;
    // The library forks: its caller has one thread, and makes all calls in one LocalSet.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, pod(&rootfs))
}

async fn pod(rootfs: &Path) -> Result<(), Box<dyn Error>> {
    let host = Rc::new(Host::detect(Config::default())?);
    let id = format!("pod-{}", std::process::id());
    let bundle = host.config().state_dir.join(NAMESPACE).join(&id);
    let (events, mut happenings) = tokio::sync::mpsc::unbounded_channel();
    let args = Args {
        // Nothing of the pod outlives this process, even if it is killed.
        attached: true,
        ..Args::new(&id, NAMESPACE, &bundle, parse(&sandbox(&id))?)
    };
    let sandbox = Sandbox::create(host, args, events).await?;
    let record = sandbox.record();
    println!("sandbox {}/{} runs", record.namespace, record.pod_name);
    let done = containers(&sandbox, rootfs, &bundle).await;
    // Whatever went wrong: nothing of the pod outlives this.
    sandbox.destroy().await;
    while let Ok(event) = happenings.try_recv() {
        println!("{event:?}");
    }
    done
}

async fn containers(sandbox: &Sandbox, rootfs: &Path, bundle: &Path) -> Result<(), Box<dyn Error>> {
    let volume = bundle.join("volume");
    std::fs::create_dir(&volume)?;
    let run = async |name: &str, script: &str| {
        let (reader, writer) = std::io::pipe()?;
        let spec = container(sandbox.record(), name, script, rootfs, &volume);
        let args = ContainerArgs {
            stdio: stdout(writer.into()),
            ..ContainerArgs::new(name, bundle, parse(&spec)?)
        };
        sandbox.create_container(args).await?;
        sandbox.start(name).await?;
        Ok::<_, Box<dyn Error>>(reader)
    };
    let _server = run(
        "server",
        "echo hello > /data/word; read never < /proc/self/fd/1",
    )
    .await?;
    let mut client = run("client", "until cat /data/word; do :; done; exit 3").await?;
    let exit = sandbox.wait("client", None).await?;
    print!("client, which ended with {}: ", exit.status);
    std::io::copy(&mut client, &mut std::io::stdout())?;
    sandbox.delete("client", None).await?;

    let (mut reader, writer) = std::io::pipe()?;
    let process = json!({"args": ["/bin/sh", "-c", "cat /data/word"], "cwd": "/",
        "user": {"uid": 0, "gid": 0}});
    sandbox.add_exec("server", "look", process.to_string().as_bytes(), false)?;
    let stdio = stdout(writer.into());
    let looking = sandbox.start_exec("server", "look", stdio).await?;
    let exit = sandbox.wait("server", Some("look")).await?;
    print!(
        "exec of pid {}, which ended with {}: ",
        looking.pid, exit.status
    );
    std::io::copy(&mut reader, &mut std::io::stdout())?;
    sandbox.delete("server", Some("look")).await?;

    // 9 is SIGKILL, `true`: to every process of the container.
    sandbox.kill("server", None, 9, true).await?;
    let exit = sandbox.wait("server", None).await?;
    println!("server ended with {}", exit.status);
    sandbox.delete("server", None).await?;
    Ok(std::io::stdout().flush()?)
}

fn stdout(writer: OwnedFd) -> Stdio {
    Stdio {
        stdout: Some(writer),
        ..Stdio::default()
    }
}

fn parse(spec: &Value) -> Result<Spec, Box<dyn Error>> {
    Ok(Spec::parse(spec.to_string().as_bytes())?)
}

/// What containerd would write for the pod itself: names, namespaces, and a cgroup.
fn sandbox(id: &str) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "example",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/pause"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": true},
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": id,
            "io.kubernetes.cri.sandbox-name": "a-pod",
            "io.kubernetes.cri.sandbox-namespace": "default",
        },
        "linux": {
            "cgroupsPath": format!("/{id}-sandbox"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"},
            ],
        },
    })
}

/// A container of the pod: a script in a root file system, and the volume. It is in the network,
/// IPC and UTS namespaces of the sandbox, as containerd has it.
fn container(pod: &Record, name: &str, script: &str, rootfs: &Path, volume: &Path) -> Value {
    let mount = |kind: &str, destination: &str| json!({"destination": destination, "type": kind, "source": kind});
    let shared = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", pod.pid)});
    let id = &pod.id;
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": rootfs, "readonly": true},
        "mounts": [
            mount("proc", "/proc"),
            mount("tmpfs", "/dev"),
            {"destination": "/data", "source": volume, "type": "bind", "options": ["rbind"]},
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": id,
            "io.kubernetes.cri.container-name": name,
        },
        "linux": {
            "cgroupsPath": format!("/{id}-{name}"),
            "namespaces": [
                {"type": "pid"}, {"type": "mount"},
                shared("network", "net"), shared("ipc", "ipc"), shared("uts", "uts"),
            ],
            "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 20}},
        },
    })
}
