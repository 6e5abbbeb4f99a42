//! Counts the exits that containerd tells.
//!
//! What can be known from outside: a stream of events ends with containerd, and what is told
//! before the next one is subscribed nobody hears. And when a shim is killed, containerd itself
//! tells the exit of each task that it started a shim for: of the sandbox and of a task of ctr,
//! not of the pod's containers and not of execs. If the shim had told that exit already, and
//! containerd had not forgotten the task yet, it is told again, with the time of the clean-up.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, call, file};
use crate::guard::pause;
use crate::node::Node;

/// What is told later than this is taken for not told.
const SOON: Duration = Duration::from_secs(30);

/// A container's first process, or an exec of it.
type Key = (String, String);

/// A subscription, by `ctr events`.
#[derive(Debug)]
pub(super) struct Told {
    ctr: Child,
    log: std::path::PathBuf,
}

impl Told {
    pub(super) fn subscribe(node: &Node) -> Result<Self, Error> {
        let log = node.dir().join("chaos-events.log");
        let out = std::fs::File::create(&log).map_err(file("open", &log))?;
        let mut command: Command = node.command("ctr", &["events"]);
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(Stdio::null());
        let ctr = command.spawn().map_err(|source| Error::Exec {
            program: "ctr".into(),
            source,
        })?;
        let told = Self { ctr, log };
        told.wait_until_it_hears(node)?;
        Ok(told)
    }

    /// Makes an event again and again until it is told.
    fn wait_until_it_hears(&self, node: &Node) -> Result<(), Error> {
        let end = Instant::now() + SOON;
        while self.text()?.is_empty() {
            if Instant::now() > end {
                let what = "a subscription to events".into();
                let limit = SOON;
                return Err(Error::Deadline { what, limit });
            }
            let (image, value) = (crate::image::BUSYBOX, format!("chaos={:?}", Instant::now()));
            let args = [
                "images",
                "label",
                image,
                &value.replace([' ', '{', '}'], ""),
            ];
            node.run("ctr", &args)?;
            pause(Duration::from_millis(10));
        }
        Ok(())
    }

    fn text(&self) -> Result<String, Error> {
        std::fs::read_to_string(&self.log).map_err(file("read", &self.log))
    }

    /// Ends it and gives all that it heard.
    pub(super) fn end(&mut self) -> Result<String, Error> {
        // It has ended by itself if containerd was killed.
        let _ = self.ctr.kill();
        self.ctr.wait().map_err(call("wait4"))?;
        self.text()
    }
}

/// What was told of one process.
#[derive(Debug, Default, Clone)]
struct Entry {
    started: bool,
    /// Whether containerd would tell the exit if the shim died.
    is_task: bool,
    exits: Vec<String>,
    /// A kill of its shim or of containerd came between.
    disturbed: bool,
}

/// The exits of all lives.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<Key, Entry>,
    /// How much of the present stream is booked.
    booked: usize,
}

impl Ledger {
    /// Books what was told so far of lives that nothing has disturbed.
    pub(super) fn undisturbed(&mut self, told: &Told) -> Result<(), Error> {
        let text = told.text()?;
        self.book(&text);
        Ok(())
    }

    /// Books what was told around the kill of a shim, and gives what was told wrongly of it.
    pub(super) fn shim_killed(&mut self, told: &Told) -> Result<Vec<String>, Error> {
        let mut concerned = Vec::new();
        until_empty(|| {
            concerned.extend(self.book(&told.text()?));
            let wrong = concerned.iter().filter_map(|key| self.of_killed(key));
            Ok(wrong.collect())
        })
    }

    /// What was told wrongly of a process whose shim was killed.
    fn of_killed(&mut self, key: &Key) -> Option<String> {
        let entry = self.entries.get_mut(key)?;
        entry.disturbed = true;
        let times = entry.exits.len();
        let most = 1 + usize::from(entry.is_task);
        let least = usize::from(entry.is_task && entry.started);
        let right = (least..=most).contains(&times);
        (!right).then(|| format!("the exit of {key:?} was told {times} times"))
    }

    /// Books what was told of sandboxes that lived through containerd's death and were then
    /// stopped: each exit once.
    pub(super) fn lived(&mut self, told: &Told, ids: &[String]) -> Result<Vec<String>, Error> {
        until_empty(|| {
            self.book(&told.text()?);
            Ok(ids.iter().filter_map(|id| self.of_lived(id)).collect())
        })
    }

    fn of_lived(&self, id: &str) -> Option<String> {
        let key = (id.to_owned(), id.to_owned());
        let times = self.entries.get(&key).map_or(0, |entry| entry.exits.len());
        let text =
            || format!("the exit of {id}, which outlived containerd, was told {times} times");
        (times != 1).then(text)
    }

    /// Books the last of a stream that containerd's death has cut.
    pub(super) fn cut(&mut self, text: &str) {
        self.book(text);
        self.booked = 0;
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.exits.is_empty())
        {
            entry.disturbed = true;
        }
    }

    /// Books the rest and gives all that was told wrongly. The tasks of `lived` lived through
    /// everything.
    pub(super) fn close(&mut self, text: &str, lived: [&str; 2]) -> Vec<String> {
        self.book(text);
        let mut wrong = Vec::new();
        for (key, entry) in &self.entries {
            let times = entry.exits.len();
            if (!entry.disturbed && times != 1) || (times > 1 && !entry.is_task) {
                wrong.push(format!(
                    "the exit of {key:?} was told {times} times: {entry:?}"
                ));
            }
        }
        wrong.extend(lived.iter().filter_map(|id| self.of_lived(id)));
        wrong
    }

    /// Counts.
    pub(super) fn story(&self) -> String {
        let times = |wanted: fn(usize) -> bool| {
            let all = self.entries.values();
            all.filter(|entry| wanted(entry.exits.len())).count()
        };
        let (once, unheard, again) = (times(|n| n == 1), times(|n| n == 0), times(|n| n > 1));
        format!(
            "{once} exits told once; {again} told a second time by containerd, whose clean-up of a \
             killed shim came after the shim's own word; {unheard} not heard: of execs and \
             containers whose shim was killed, or while no containerd ran"
        )
    }

    /// Books the lines that are new and gives whom they are about.
    fn book(&mut self, text: &str) -> Vec<Key> {
        let new = text.get(self.booked..).unwrap_or_default();
        // A line that is being written is booked the next time.
        let new = new.rfind('\n').map_or("", |end| &new[..=end]);
        self.booked += new.len();
        let mut keys = Vec::new();
        for line in new.lines() {
            if let Some(key) = self.book_line(line) {
                keys.push(key);
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// `<date> <time> … <namespace> <topic> {json}`
    fn book_line(&mut self, line: &str) -> Option<Key> {
        let (head, json) = line.split_once(" {")?;
        let topic = head.rsplit(' ').next()?.strip_prefix("/tasks/")?;
        let event: serde_json::Value = serde_json::from_str(&format!("{{{json}")).ok()?;
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let container = text("container_id")?;
        let process = match topic {
            "exit" => text("id")?,
            "exec-started" => text("exec_id")?,
            "start" | "create" => container.clone(),
            _ => return None,
        };
        let key = (container, process);
        let entry = self.entries.entry(key.clone()).or_default();
        match topic {
            "exit" => entry.exits.push(json.to_owned()),
            "create" => entry.is_task |= text("bundle").is_some_and(|b| is_task(&b, &event)),
            _ => entry.started = true,
        }
        Some(key)
    }
}

/// Asks until nothing is wrong: the last words may be on their way.
fn until_empty(mut ask: impl FnMut() -> Result<Vec<String>, Error>) -> Result<Vec<String>, Error> {
    let end = Instant::now() + SOON;
    loop {
        let wrong = ask()?;
        if wrong.is_empty() || Instant::now() > end {
            return Ok(wrong);
        }
        pause(Duration::from_millis(10));
    }
}

/// A sandbox and a task of ctr have a shim of their own; CRI's containers have a rootfs and its
/// sandboxes, for Berm, have one too, but only containers have stdio.
fn is_task(bundle: &str, event: &serde_json::Value) -> bool {
    let stdout = event["io"]["stdout"].as_str().unwrap_or_default();
    !bundle.contains("/k8s.io/") || stdout.is_empty()
}
