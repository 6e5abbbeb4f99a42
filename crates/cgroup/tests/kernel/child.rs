//! Processes inside a cgroup: this binary, running the ignored test `child::run` as a child.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use berm_cgroup::{Cgroup, CgroupPath, Host};

use super::{DEADLINE, readable};

/// A child that has joined a cgroup and does a job. Dropped, it is killed and reaped.
pub(crate) struct Child {
    process: std::process::Child,
    said: String,
}

impl Child {
    /// Starts the child and waits until it has joined.
    pub(crate) fn join(cgroup: &Cgroup, job: &str) -> Self {
        let process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child::run",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("BERM_CHILD_CGROUP", cgroup.path().to_string())
            .env("BERM_CHILD_JOB", job)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Self {
            process,
            said: String::new(),
        };
        child.expect("joined");
        child
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// Lets the child go on with its job.
    pub(crate) fn go(&mut self) {
        self.process
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"\n")
            .unwrap();
    }

    /// Waits until the child says `berm <word> <rest>` and returns the rest.
    pub(crate) fn expect(&mut self, word: &str) -> String {
        let start = format!("berm {word}");
        loop {
            while let Some((line, rest)) = self.said.split_once('\n') {
                let found = line.strip_prefix(&start).map(|rest| rest.trim().to_owned());
                self.said = rest.to_owned();
                if let Some(found) = found {
                    return found;
                }
            }
            let stdout = self.process.stdout.as_mut().unwrap();
            assert!(
                readable(&*stdout, DEADLINE),
                "the child did not say {word:?} in time"
            );
            let mut buf = [0; 4096];
            let len = stdout.read(&mut buf).unwrap();
            assert!(len > 0, "the child ended before it said {word:?}");
            self.said
                .push_str(std::str::from_utf8(&buf[..len]).unwrap());
        }
    }

    /// The signal that ended the child.
    pub(crate) fn ended_by(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        self.process.wait().unwrap().signal()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn say(line: &str) {
    // libtest's "test child::run ... " stands before it without a newline.
    println!("\nberm {line}");
    std::io::stdout().flush().unwrap();
}

/// How long this thread has run.
fn on_cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// Some hundred microseconds in user mode: beside it, a look at the clock is nothing, even where a tick only
/// samples what a CPU is at.
fn compute() {
    let sum = (0..200_000_u64).fold(0, |sum: u64, i| std::hint::black_box(sum.wrapping_add(i)));
    std::hint::black_box(sum);
}

#[test]
#[ignore = "a child of the other tests"]
fn run() {
    let Ok(path) = std::env::var("BERM_CHILD_CGROUP") else {
        return;
    };
    let job = std::env::var("BERM_CHILD_JOB").unwrap();
    // The whole process: this test harness has more threads than the one that runs the job.
    for view in Host::detect()
        .unwrap()
        .views(&CgroupPath::parse(&path).unwrap())
    {
        // Some tests make their cgroup in a part of the hierarchies.
        if view.host_dir.exists() {
            std::fs::write(view.host_dir.join("cgroup.procs"), "0").unwrap();
        }
    }
    say("joined");
    let mut go = [0];
    if std::io::stdin().read(&mut go).unwrap() == 0 {
        return;
    }
    match job.split_once(' ').unwrap_or((&job, "")) {
        ("echo", _) => loop {
            say("echo");
            if std::io::stdin().read(&mut go).unwrap() == 0 {
                return;
            }
        },
        ("burn", milliseconds) => {
            // Its start is not counted: emulated, that alone takes so long.
            let enough = on_cpu_ns() + milliseconds.parse::<u64>().unwrap() * 1_000_000;
            while on_cpu_ns() < enough {
                compute();
            }
            say("burnt");
        }
        ("eat", _) => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(vec![1; 1 << 20]);
            }
        }
        ("tree", _) => {
            // Three generations that fork for ever.
            let script =
                "while :; do sh -c 'while :; do sh -c :; done' & sh -c :; sleep 0.01; done";
            let mut shell = Command::new("sh").args(["-c", script]).spawn().unwrap();
            say("growing");
            shell.wait().unwrap();
        }
        ("open", nodes) => {
            for node in nodes.split(' ') {
                let mut open = std::fs::OpenOptions::new();
                let opened = match node.split_once('=').unwrap() {
                    ("r", node) => open.read(true).open(node),
                    ("rw", node) => open.read(true).write(true).open(node),
                    (_, node) => open.write(true).open(node),
                };
                say(&format!("opened {}", opened.is_ok()));
            }
        }
        (job, _) => panic!("no such job: {job}"),
    }
    let _ = std::io::stdin().read(&mut go);
}
