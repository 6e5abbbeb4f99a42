//! `berm events -f`: what happens in a pod, or in all, as it happens.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use berm_sandbox::metrics::rfc3339;
use berm_sandbox::urpc::{AsyncClient, Empty, Limits};
use berm_sandbox::{Config, Records};
use berm_sys::Kind;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::task::{JoinSet, LocalSet, spawn_blocking};
use tokio::time::{interval, timeout};

use super::Args;
use crate::error::{Error, errno, io};
use crate::find::{Pod, Target};
use crate::signals::Signals;
use crate::table::{short, size};

/// How often sandboxes are looked for that are new.
const LOOK: Duration = Duration::from_millis(500);
/// How long a sandbox may take to tell its figures; they are left out then.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let runtime = crate::runtime()?;
    let done = LocalSet::new().block_on(&runtime, async {
        let mut signals = Signals::new()?;
        tokio::select! {
            done = follow(args, config) => done,
            _ = signals.next() => Ok(()),
        }
    });
    // A call that was not answered yet may still be blocked.
    runtime.shutdown_background();
    match done {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

async fn follow(args: &Args, config: &Config) -> Result<(), Error> {
    let out = Rc::new(Out::new(args));
    match &args.id {
        Some(name) => {
            let Target { pod, container } = Target::find(config, name)?;
            // A pod of one container: its end is the pod's.
            let container = container.filter(|id| *id != pod.record.id);
            follow_pod(Rc::new(pod), container, out).await
        }
        None => follow_all(config, out).await,
    }
}

/// Follows every sandbox that runs, and those that come.
async fn follow_all(config: &Config, out: Rc<Out>) -> Result<(), Error> {
    let mut records = Records::new(&config.state_dir);
    let mut followed = BTreeSet::new();
    let mut following = JoinSet::new();
    let mut look = interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let running = records.load()?;
                followed.retain(|key| running.iter().any(|r| (r.pid, r.start_time) == *key));
                for record in running.iter().filter(|r| r.init().is_alive() && r.owner.is_alive()) {
                    let key = (record.pid, record.start_time);
                    if followed.insert(key) {
                        let pod = Rc::new(Pod { record: (**record).clone(), containers: Vec::new() });
                        let following_it = follow_pod(pod, None, Rc::clone(&out));
                        following.spawn_local(async move { (key, following_it.await) });
                    }
                }
            }
            Some(ended) = following.join_next() => match ended {
                // It has ended, or does not serve its socket yet.
                Ok((key, Err(e))) if is_absent(&e) => drop(followed.remove(&key)),
                Ok((_, Err(e @ Error::Io { .. }))) => return Err(e),
                Ok((_, Err(e))) => eprintln!("berm: {}", e.text()),
                Ok((_, Ok(()))) | Err(_) => {}
            }
        }
    }
}

fn is_absent(error: &Error) -> bool {
    match error {
        Error::Gone { .. } | Error::Orphaned { .. } => true,
        Error::Control(e) => [Kind::NotFound, Kind::Unavailable].contains(&e.kind()),
        _ => false,
    }
}

/// Follows one pod, or one container of it, until it has ended.
async fn follow_pod(pod: Rc<Pod>, container: Option<String>, out: Rc<Out>) -> Result<(), Error> {
    let events = subscribe(&pod, container.clone()).await?;
    let mut lines = BufReader::new(events).lines();
    let mut client = AsyncClient::new(&pod.record.control_socket_path, Limits::REPLY);
    states(&mut client, &pod, container.as_deref(), &out).await?;
    let mut figures = interval(out.interval);
    loop {
        tokio::select! {
            line = lines.next_line() => match line.map_err(io("read(events)"))? {
                Some(line) => out.event(&pod, serde_json::from_str(&line)?)?,
                None => return Ok(()),
            },
            _ = figures.tick() => tell_figures(&mut client, &pod, container.as_deref(), &out).await?,
        }
    }
}

/// Has the sandbox write its events into a pipe.
async fn subscribe(pod: &Pod, container: Option<String>) -> Result<Receiver, Error> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(errno("pipe2()"))?;
    // Told apart here from a socket that nobody serves.
    let mut client = pod.connect()?;
    let arg = container.map_or(Value::Null, |id| json!({ "CID": id }));
    let asked = spawn_blocking(move || client.call("berm.Events", &arg, &[write.as_fd()]));
    let (Empty {}, _) = asked.await.map_err(|e| io("sendmsg()")(e.into()))??;
    Receiver::from_owned_fd(read).map_err(io("epoll_ctl(pipe)"))
}

/// Tells what each container is at the beginning, so that what follows is known to be a change.
async fn states(
    client: &mut AsyncClient,
    pod: &Pod,
    container: Option<&str>,
    out: &Out,
) -> Result<(), Error> {
    let Some(states) = ask(client, "berm.State", &Value::Null).await? else {
        return Ok(());
    };
    for mut state in states.as_array().into_iter().flatten().cloned() {
        if container.is_none_or(|id| state["id"] == id) {
            state["type"] = json!("state");
            state["time"] = json!(rfc3339(SystemTime::now()));
            state["sandbox"] = json!(pod.record.id);
            out.event(pod, state)?;
        }
    }
    Ok(())
}

async fn tell_figures(
    client: &mut AsyncClient,
    pod: &Pod,
    container: Option<&str>,
    out: &Out,
) -> Result<(), Error> {
    let ids = match container {
        Some(id) => vec![id.to_owned()],
        None => pod.record.containers()?.into_iter().map(|c| c.id).collect(),
    };
    for id in ids {
        if let Some(mut told) = ask(client, "containerManager.Event", &json!(id)).await? {
            let mut event = told["event"].take();
            event["time"] = json!(rfc3339(SystemTime::now()));
            event["sandbox"] = json!(pod.record.id);
            out.event(pod, event)?;
        }
    }
    Ok(())
}

/// `None` if it does not answer in time, or not with a result: the stream of events tells its end.
async fn ask(client: &mut AsyncClient, method: &str, arg: &Value) -> Result<Option<Value>, Error> {
    match timeout(PATIENCE, client.call(method, arg)).await {
        Ok(Ok(reply)) => Ok(reply.result().ok()),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// Where events go, for people or for programs.
struct Out {
    json: bool,
    interval: Duration,
    /// Of each container: when it was asked last, and its CPU time then.
    cpu: RefCell<BTreeMap<String, (Instant, u64)>>,
}

impl Out {
    fn new(args: &Args) -> Self {
        Self {
            json: args.json,
            interval: Duration::from_secs(args.interval.into()),
            cpu: RefCell::default(),
        }
    }

    fn event(&self, pod: &Pod, event: Value) -> Result<(), Error> {
        let line = match self.json {
            true => event.to_string(),
            false => self.text(pod, &event),
        };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}").map_err(io("write(stdout)"))
    }

    /// `15:58:01  shop/web  3f2a8c  started (pid 4242)`
    fn text(&self, pod: &Pod, event: &Value) -> String {
        let word = |key: &str| event[key].as_str().unwrap_or_default();
        let time = word("time").get(11..19).unwrap_or("?");
        let id = word("id");
        let what = match word("type") {
            "stats" => self.figures(id, &event["data"]),
            "state" => format!("is {}{}", word("status"), details(event)),
            "lost" => format!("{} events were lost: too slow a reader", event["count"]),
            kind => format!("{kind}{}", details(event)),
        };
        let of = match pod.name() {
            name if name.is_empty() => short(&pod.record.id).to_owned(),
            name => name,
        };
        match id == pod.record.id || id.is_empty() {
            true => format!("{time}  {of}  {what}"),
            false => format!("{time}  {of}  {}  {what}", short(id)),
        }
    }

    /// `cpu 12.3%  memory 3.2M of 512.0M  tasks 4`
    fn figures(&self, id: &str, data: &Value) -> String {
        let number = |pointer: &str| data.pointer(pointer).and_then(Value::as_u64);
        let mut parts = Vec::new();
        if let Some(used) = number("/cpu/usage/total") {
            let last = self
                .cpu
                .borrow_mut()
                .insert(id.to_owned(), (Instant::now(), used));
            parts.extend(
                last.map(|(at, before)| percent(at.elapsed(), used.saturating_sub(before))),
            );
        }
        if let Some(used) = number("/memory/usage/usage") {
            // Without a limit the kernel says a number that no host has.
            let limit = number("/memory/usage/limit").filter(|limit| (1..1 << 60).contains(limit));
            let of = limit.map_or_else(String::new, |limit| format!(" of {}", size(limit)));
            parts.push(format!("memory {}{of}", size(used)));
        }
        parts.extend(number("/pids/current").map(|count| format!("tasks {count}")));
        parts.join("  ")
    }
}

/// The exec, the pid and the exit code of an event, as far as it has them.
fn details(event: &Value) -> String {
    let mut all = Vec::new();
    all.extend(event["exec"].as_str().map(|exec| format!("exec {exec}")));
    match event["exitStatus"].as_u64() {
        Some(code) => all.push(format!("exit code {code}")),
        None => all.extend(event["pid"].as_i64().map(|pid| format!("pid {pid}"))),
    }
    match all.is_empty() {
        true => String::new(),
        false => format!(" ({})", all.join(", ")),
    }
}

/// CPU time within some time, in percent of one CPU.
fn percent(within: Duration, used_ns: u64) -> String {
    let tenths = u128::from(used_ns) * 1000 / within.as_nanos().max(1);
    format!("cpu {}.{}%", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_short() {
        assert_eq!(percent(Duration::from_secs(2), 250_000_000), "cpu 12.5%");
        assert_eq!(percent(Duration::ZERO, 0), "cpu 0.0%");
    }

    #[test]
    fn details_are_what_the_event_has() {
        assert_eq!(details(&json!({"type": "oom"})), "");
        assert_eq!(details(&json!({"pid": 7})), " (pid 7)");
        assert_eq!(
            details(&json!({"exec": "e1", "pid": 7, "exitStatus": 137})),
            " (exec e1, exit code 137)"
        );
    }
}
