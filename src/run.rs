//! `berm run`: a container in a sandbox, without containerd.

mod in_pod;

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use berm_sandbox::{
    Args as SandboxArgs, Config, ContainerArgs, Donated, Host, RootfsUpper, Sandbox, Spec, Stdio,
    UserLog,
};
use serde_json::{Value, json};

use crate::donate::Donate;
use crate::error::{COULD_NOT_START, Error};
use crate::progress::Progress;
use crate::signals::Signals;
use crate::terminal;

/// Runs a command in a new sandbox and ends the sandbox with it
///
/// The sandbox ends with berm, too, even if berm is killed.
///
/// With --pod it is a container in a sandbox that runs, beside its own ones, with their network,
/// IPC and host name but its own file system and processes: tools for an image that has none.
/// containerd is not told of it; it is deleted at its end.
///
/// The root file system is a directory; its files show the ids that they have on disk, whatever
/// the ids of the sandbox are on the host. SIGINT, SIGTERM, SIGHUP and SIGQUIT go on to the
/// command; the second one kills it. Its exit code becomes berm's: 128 + signal if it was killed,
/// 125 if it could not be started.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directory that becomes the root file system
    #[arg(long)]
    rootfs: PathBuf,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Where writes to the root file system go: none, memory, self or dir=PATH, with ,size=SIZE
    /// behind it; all but none end with the sandbox
    #[arg(long, value_name = "MEDIUM")]
    rootfs_upper: Option<RootfsUpper>,
    /// Run it in this sandbox: its id, or the beginning; or a pod: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "hostname", "user_log", "pass_fd", "exec_file", "console_socket", "rootfs_upper",
    ])]
    pod: Option<String>,
    /// Name of the sandbox; with --pod, of the container
    #[arg(long, default_value_t = format!("run-{}", std::process::id()))]
    name: String,
    /// Give the command a terminal, connected to this one
    #[arg(long, short)]
    tty: bool,
    /// Host name inside
    #[arg(long, default_value = "berm")]
    hostname: String,
    /// Working directory inside
    #[arg(long, default_value = "/")]
    cwd: String,
    /// NAME=VALUE for the command's environment; may be given several times
    #[arg(long, short)]
    env: Vec<String>,
    /// User inside: UID or UID:GID
    #[arg(long, short, default_value = "0", value_parser = crate::exec::user)]
    user: (u32, u32),
    /// `HOST:CONTAINER[:ro]`, a directory or file of the host; may be given several times
    #[arg(long, short, value_parser = volume)]
    volume: Vec<Volume>,
    /// Memory limit in bytes, or with K, M, G
    #[arg(long, value_parser = bytes)]
    memory: Option<i64>,
    /// Most processes and threads
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    pids: Option<i64>,
    /// File to which a line is added whenever the sandbox, the command or an exec cannot run
    #[arg(long, value_name = "FILE")]
    user_log: Option<PathBuf>,
    #[command(flatten)]
    donate: Donate,
    /// Print the sandbox's name and the exit code as JSON on stderr at the end
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  berm run -t --rootfs /srv/alpine -- sh
  berm run --rootfs /srv/alpine --read-only --memory 64M --pids 20 -- ls -l /
  berm run -t --pod shop/web --rootfs /srv/debug-tools -- tcpdump -ni eth0
  berm run --rootfs /srv/alpine --name build -v /srv/code:/code:ro -e LANG=C -- make -C /code

A root file system, from any image:
  mkdir /srv/alpine; docker export $(docker create alpine) | tar -x -C /srv/alpine";

/// A directory or file of the host to be seen inside.
#[derive(Clone, Debug, PartialEq)]
struct Volume {
    host: PathBuf,
    inside: String,
    read_only: bool,
}

fn volume(text: &str) -> Result<Volume, String> {
    let (text, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        _ => (text, false),
    };
    let (host, inside) = text.rsplit_once(':').ok_or("not HOST:CONTAINER[:ro]")?;
    if !Path::new(inside).is_absolute() {
        return Err(format!("{inside:?} is not an absolute path"));
    }
    let host = std::path::absolute(host).map_err(|e| format!("{host:?}: {e}"))?;
    Ok(Volume {
        host,
        inside: inside.to_owned(),
        read_only,
    })
}

/// `1048576`, `64K`, `512M`, `2G`
fn bytes(text: &str) -> Result<i64, String> {
    let upper = text.to_ascii_uppercase();
    let (digits, unit) = match upper.as_bytes().last() {
        Some(b'K') => (&upper[..upper.len() - 1], 1 << 10),
        Some(b'M') => (&upper[..upper.len() - 1], 1 << 20),
        Some(b'G') => (&upper[..upper.len() - 1], 1 << 30),
        _ => (upper.as_str(), 1),
    };
    let number: i64 = digits
        .parse()
        .map_err(|_| "not a number with K, M or G behind it".to_owned())?;
    let bytes = number.checked_mul(unit).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "not within 1 byte to 8 EiB".to_owned())
}

pub(crate) fn main(args: Args, config: Config) -> ExitCode {
    let own = || match &args.pod {
        // Its sandbox has root already, if only one of its own.
        Some(_) => Ok(()),
        None => crate::as_root(&config),
    };
    let ended = own().and_then(|()| {
        berm_sandbox::set_cloexec_on_all_fds().map_err(crate::error::io("close_range(CLOEXEC)"))?;
        let donated = args.donate.take()?;
        let runtime = crate::runtime()?;
        let ended = tokio::task::LocalSet::new().block_on(&runtime, async {
            match &args.pod {
                Some(pod) => in_pod::run(&args, &config, pod).await,
                None => run(&args, config, donated).await,
            }
        });
        // A wait that was given up may still be blocked.
        runtime.shutdown_background();
        ended
    });
    let code = match ended {
        Ok(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Err(e) => {
            eprintln!("berm: {}", e.text());
            COULD_NOT_START
        }
    };
    if args.json {
        eprintln!("{}", json!({"id": args.name, "exitCode": code}));
    }
    ExitCode::from(code)
}

/// In containerd's place.
const NAMESPACE: &str = "berm";

async fn run(args: &Args, config: Config, donated: Donated) -> Result<u32, Error> {
    args.donate.require_terminal(args.tty)?;
    let host = Rc::new(Host::detect(config)?);
    let (events, _nobody_listens) = tokio::sync::mpsc::unbounded_channel();
    let spec = serde_json::to_vec(&spec(args))?;
    // The directory of the records: made and removed with the sandbox.
    let bundle = host.config().state_dir.join(NAMESPACE).join(&args.name);
    let parsed = Spec::parse(&spec).map_err(berm_sandbox::Error::from)?;
    let sandbox = SandboxArgs {
        attached: true,
        user_log: args.user_log.as_deref().map(user_log).transpose()?,
        rootfs_upper: args.rootfs_upper.clone(),
        ..SandboxArgs::new(&args.name, NAMESPACE, &bundle, parsed)
    };
    // What runs leave that were killed: nobody else looks for it.
    berm_sandbox::sweep_dead(host.config(), NAMESPACE)?;
    // Before there is anything that a signal could leave behind.
    let mut signals = Signals::new()?;
    let mut progress = Progress::new(args.json);
    progress.show(&format!("preparing sandbox {}", args.name));
    let sandbox = Sandbox::create(host, sandbox, events).await?;
    let watch = (&mut signals, progress);
    let ended = run_in(&sandbox, args, (bundle, donated), &spec, watch).await;
    sandbox.destroy().await;
    ended
}

fn user_log(path: &Path) -> Result<UserLog, Error> {
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let file = file.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    });
    file.map(|file| UserLog::File(file.into()))
}

async fn run_in(
    sandbox: &Sandbox,
    args: &Args,
    (bundle, donated): (PathBuf, Donated),
    spec: &[u8],
    (signals, mut progress): (&mut Signals, Progress),
) -> Result<u32, Error> {
    let path = bundle.join("config.json");
    // `berm exec` looks there for the environment.
    std::fs::write(&path, spec).map_err(|source| Error::File { path, source })?;
    let parsed = Spec::parse(spec).map_err(berm_sandbox::Error::from)?;
    let container = ContainerArgs {
        terminal: args.tty,
        stdio: stdio(args.tty)?,
        donated,
        ..ContainerArgs::new(&args.name, bundle, parsed)
    };
    let created = sandbox.create_container(container).await?;
    // The terminal is the command's from here.
    progress.clear();
    if std::io::stderr().is_terminal() {
        eprintln!("berm: sandbox {0} (berm exec -t {0} -- sh)", args.name);
    }
    sandbox.start(&args.name).await?;
    let terminal = created.terminal;
    let mut attached = std::pin::pin!(async {
        match terminal {
            Some(master) => terminal::attach(master).await,
            None => Ok(()),
        }
    });
    let mut open = true;
    let mut told = false;
    let mut wait = std::pin::pin!(sandbox.wait(&args.name, None));
    let exit = loop {
        tokio::select! {
            exit = &mut wait => break exit?,
            attached = &mut attached, if open => {
                open = false;
                attached?;
            }
            signal = signals.next() => {
                let signal = if told { KILL } else { signal };
                told = true;
                match sandbox.kill(&args.name, None, signal, false).await {
                    // Its end is told in a moment.
                    Err(e) if e.kind() == berm_sys::Kind::NotFound => {}
                    sent => sent?,
                }
            }
        }
    };
    // What the terminal still holds is shown before the end is.
    if open {
        attached.await?;
    }
    sandbox.delete(&args.name, None).await?;
    Ok(exit.status)
}

const KILL: u32 = 9;

/// The caller's own streams; none where the command gets a terminal.
fn stdio(tty: bool) -> Result<Stdio, Error> {
    if tty {
        return Ok(Stdio::default());
    }
    let own = |fd: std::os::fd::BorrowedFd<'_>| -> Result<Option<OwnedFd>, Error> {
        let fd = fd.try_clone_to_owned();
        fd.map(Some).map_err(crate::error::io("fcntl(F_DUPFD)"))
    };
    Ok(Stdio {
        stdin: own(std::io::stdin().as_fd())?,
        stdout: own(std::io::stdout().as_fd())?,
        stderr: own(std::io::stderr().as_fd())?,
    })
}

/// What containerd would write for such a container.
fn spec(args: &Args) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
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
    let mut env = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        format!(
            "TERM={}",
            std::env::var("TERM").unwrap_or_else(|_| "xterm".into())
        ),
    ];
    env.extend(args.env.iter().cloned());
    let rootfs = std::path::absolute(&args.rootfs).unwrap_or_else(|_| args.rootfs.clone());
    let mut mounts = mounts();
    mounts.extend(args.volume.iter().map(|volume| {
        let access = if volume.read_only { "ro" } else { "rw" };
        json!({
            "destination": volume.inside, "type": "bind", "source": volume.host,
            "options": ["rbind", "rprivate", access],
        })
    }));
    let mut resources = json!({});
    if let Some(bytes) = args.memory {
        resources["memory"] = json!({"limit": bytes});
    }
    if let Some(most) = args.pids {
        resources["pids"] = json!({"limit": most});
    }
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": args.tty,
            "user": {"uid": args.user.0, "gid": args.user.1},
            "args": args.command,
            "env": env,
            "cwd": args.cwd,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": args.read_only},
        "hostname": args.hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "resources": resources,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    })
}

/// What every container has.
fn mounts() -> Vec<Value> {
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_two_paths_and_may_be_read_only() {
        let want = |read_only| Volume {
            host: "/a".into(),
            inside: "/b".into(),
            read_only,
        };
        assert_eq!(volume("/a:/b"), Ok(want(false)));
        assert_eq!(volume("/a:/b:ro"), Ok(want(true)));
        assert_eq!(volume("/a:/b:rw"), Ok(want(false)));
        for bad in ["/a", "/a:b", "/a:ro", ""] {
            assert!(volume(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("64K"), Ok(65_536));
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "G", "0", "-1", "1T", "9999999999G"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }
}
