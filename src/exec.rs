//! `berm exec`: one more process in a running container, through the control socket.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berm_sandbox::urpc::{Client, Empty};
use berm_sandbox::{Config, ConsoleSocket, Donated};
use serde_json::{Value, json};

use crate::donate::Donate;
use crate::error::{COULD_NOT_START, Error};
use crate::find::Target;
use crate::signals::Signals;
use crate::terminal;

/// Runs a command in a running container
///
/// User, directory and environment are those of the container's own process unless given.
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT go on to the command. Its exit code becomes berm's: 128 +
/// signal if it was killed, 125 if it could not be started.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Give the command a terminal, connected to this one
    #[arg(long, short)]
    tty: bool,
    /// Working directory inside
    #[arg(long)]
    cwd: Option<String>,
    /// NAME=VALUE for the command's environment; may be given several times
    #[arg(long, short)]
    env: Vec<String>,
    /// User inside: UID or UID:GID
    #[arg(long, short, value_parser = user)]
    user: Option<(u32, u32)>,
    #[command(flatten)]
    donate: Donate,
    /// Print the host pid and the exit code as JSON on stderr at the end
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  berm exec -t shop/web -- sh
  berm exec 3f2a -- cat /etc/hostname
  berm exec -u 1000:1000 --cwd /srv -e DEBUG=1 3f2a -- ./check";

pub(crate) fn main(args: Args, config: &Config) -> ExitCode {
    let donated = args.donate.take();
    let ended = donated.and_then(|donated| {
        let runtime = crate::runtime()?;
        let local = tokio::task::LocalSet::new();
        let ended = local.block_on(&runtime, exec(args, config, donated));
        // A wait that was given up may still be blocked.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("berm: {}", e.text());
            ExitCode::from(COULD_NOT_START)
        }
    }
}

async fn exec(args: Args, config: &Config, donated: Donated) -> Result<u8, Error> {
    let target = Target::find(config, &args.id)?;
    let container = target.container()?;
    args.donate.require_terminal(args.tty)?;
    let console = match &donated.console_socket {
        Some(path) => Some(ConsoleSocket::connect(path, config.stage_deadline).await?),
        None => None,
    };
    let record = target.pod.containers.iter().find(|c| c.id == container);
    let process = record.map_or(Value::Null, |record| process_of(&record.bundle));
    let mut client = target.pod.connect()?;
    let mut signals = Signals::new()?;
    let mut request = request(&args, &container, &process);
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut files = vec![(0, stdin.as_fd()), (1, stdout.as_fd()), (2, stderr.as_fd())];
    if args.tty {
        files.clear();
    }
    let passed = donated.pass_files.iter();
    files.extend(passed.map(|pass| (pass.guest, pass.file.as_fd())));
    let (guests, mut files): (Vec<i32>, Vec<_>) = files.into_iter().unzip();
    request["GuestFDs"] = json!(guests);
    if let Some(program) = &donated.exec_file {
        files.push(program.as_fd());
        request["ExecFile"] = json!(true);
    }
    let (pid, fds): (i32, _) = client.call("containerManager.ExecuteAsync", &request, &files)?;
    drop(donated);
    let mut second = target.pod.connect()?;
    let mut signal = |signal: u32| -> Result<(), Error> {
        let signal = json!({"CID": container, "Signo": signal, "PID": pid, "Mode": 0});
        let sent: Result<(Empty, _), _> = second.call("containerManager.Signal", &signal, &[]);
        sent.map(drop).map_err(Error::from)
    };
    let mut master = fds.into_iter().next();
    if let Some(console) = console {
        let given = match master.take() {
            Some(master) => console.send(master).map_err(Error::from),
            None => Err(Error::Argument {
                what: "--console-socket".into(),
                reason: "the sandbox has sent no terminal",
            }),
        };
        // A command whose terminal nobody has is of no use to anybody.
        if given.is_err() {
            signal(KILL)?;
        }
        given?;
    }
    let wait = json!({"PID": pid, "CID": container});
    let wait = ("containerManager.WaitPID", wait);
    // It may have ended just now: its exit code tells.
    let signal = |number| drop(signal(number));
    let code = code(attend(client, wait, master, &mut signals, signal).await?);
    if args.json {
        eprintln!(
            "{}",
            json!({"container": container, "hostPid": pid, "exitCode": code})
        );
    }
    Ok(code)
}

const KILL: u32 = 9;

async fn attach(master: Option<OwnedFd>) -> Result<(), Error> {
    match master {
        Some(master) => terminal::attach(master).await,
        None => Ok(()),
    }
}

/// Waits for the end of a command by a method and its argument, with the terminal connected and
/// the signals passed on; gives wait(2)'s word.
pub(crate) async fn attend(
    client: Client,
    (method, arg): (&'static str, Value),
    master: Option<OwnedFd>,
    signals: &mut Signals,
    mut signal: impl FnMut(u32),
) -> Result<u32, Error> {
    let mut waiting = tokio::task::spawn_blocking(move || wait_for(client, method, &arg));
    let mut attached = std::pin::pin!(attach(master));
    let mut open = true;
    let word = loop {
        tokio::select! {
            word = &mut waiting => break word,
            attached = &mut attached, if open => {
                open = false;
                attached?;
            }
            number = signals.next() => signal(number),
        }
    };
    // What the terminal still holds is shown before the end is.
    if open {
        attached.await?;
    }
    word.unwrap_or(Ok(255 << 8))
}

fn wait_for(mut client: Client, method: &str, arg: &Value) -> Result<u32, Error> {
    client.set_deadline(None);
    match client.call(method, arg, &[]) {
        Ok((word, _)) => Ok(word),
        // The sandbox ended, and the command with it: killed.
        Err(berm_sandbox::urpc::Error::Closed { .. }) => Ok(9),
        Err(e) => Err(e.into()),
    }
}

/// wait(2)'s word as a shell shows it.
pub(crate) fn code(word: u32) -> u8 {
    let (signal, code) = (word & 0x7f, word >> 8);
    let code = if signal == 0 { code } else { 128 + signal };
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// The `process` of the container's spec; `null` if the bundle has none any more.
fn process_of(bundle: &Path) -> Value {
    let path: PathBuf = bundle.join("config.json");
    let mut json = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(16 << 20).read_to_end(&mut json));
    let spec = read
        .ok()
        .and_then(|_| serde_json::from_slice::<Value>(&json).ok());
    spec.map_or(Value::Null, |mut spec| spec["process"].take())
}

/// gVisor's `ExecArgs`.
fn request(args: &Args, container: &str, process: &Value) -> Value {
    let number = |key: &str| process["user"][key].as_u64().unwrap_or(0);
    let (uid, gid, groups) = match args.user {
        Some((uid, gid)) => (json!(uid), json!(gid), Value::Null),
        None => (
            json!(number("uid")),
            json!(number("gid")),
            process["user"]["additionalGids"].clone(),
        ),
    };
    let mut env: Vec<String> = match &process["env"] {
        Value::Array(env) => env
            .iter()
            .filter_map(|e| e.as_str().map(str::to_owned))
            .collect(),
        _ => vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
    };
    if args.tty {
        env.extend(std::env::var("TERM").map(|term| format!("TERM={term}")));
    }
    env.extend(args.env.iter().cloned());
    let cwd = args.cwd.as_deref().or(process["cwd"].as_str());
    json!({
        "argv": args.command,
        "envv": env,
        "wd": cwd.unwrap_or("/"),
        "KUID": uid,
        "KGID": gid,
        "ExtraKGIDs": groups,
        "NoNewPrivileges": process["noNewPrivileges"].as_bool().unwrap_or(false),
        "StdioIsPty": args.tty,
        "ContainerID": container,
    })
}

/// `UID` or `UID:GID`; the group is the user's number if it is not given.
pub(crate) fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| format!("{text:?} is no number"))
    };
    Ok((number(uid)?, number(gid)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(
            (code(7 << 8), code(0), code(9), code(139)),
            (7, 0, 137, 139)
        );
        // With a core dump.
        assert_eq!(code(0x80 | 11), 139);
    }

    #[test]
    fn a_user_is_one_number_or_two() {
        assert_eq!(user("5"), Ok((5, 5)));
        assert_eq!(user("5:6"), Ok((5, 6)));
        assert!(user("root").is_err() && user("5:").is_err());
    }

    #[test]
    fn an_exec_is_like_its_containers_process_but_for_what_is_given() {
        let process = json!({
            "env": ["PATH=/bin", "A=1"], "cwd": "/srv", "noNewPrivileges": true,
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
        });
        let args = Args {
            id: "c".into(),
            tty: false,
            cwd: None,
            env: vec!["A=2".into()],
            user: None,
            donate: Donate::default(),
            json: false,
            command: vec!["true".into()],
        };
        let request = request(&args, "c", &process);
        assert_eq!(request["envv"], json!(["PATH=/bin", "A=1", "A=2"]));
        assert_eq!(request["wd"], "/srv");
        assert_eq!(request["ExtraKGIDs"], json!([7]));
        assert_eq!(request["NoNewPrivileges"], true);
    }
}
