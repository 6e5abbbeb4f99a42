//! A pod that writes numbered lines while others, and containerd, are killed.

use std::path::PathBuf;
use std::time::Duration;

use super::life::Configs;
use crate::cri::Cri;
use crate::error::{Error, file};
use crate::node::Node;

/// About 1 MB/s, in lines of 1,000 bytes; a stop ends it after a whole line. It rests by a read
/// that times out: a `sleep` would be another process each time for the leak guard.
pub(super) const SCRIPT: &str = "x=$(head -c 990 /dev/zero | tr '\\0' x); n=0; \
    mkfifo /tmp/never; exec 3<>/tmp/never; trap 'echo end $n; exit 4' TERM; \
    while :; do for i in 1 2 3 4 5 6 7 8 9 10; do n=$((n+1)); printf '%08d %s\\n' $n $x || exit 9; \
    done; read -t 0.01 -u 3 none; done";

/// containerd reads at most so much of a fifo at a time, and has as much again in pipes of its
/// own before a line is in the log: what a `kill -9` of containerd takes away at most.
const IN_CONTAINERD: u64 = 128;

pub(super) struct Writer {
    pod: String,
    container: String,
    shim: u32,
    log: PathBuf,
    lines: u64,
    gaps: Vec<u64>,
    ended: bool,
}

impl Writer {
    pub(super) fn start(node: &Node, handler: &str, configs: &Configs) -> Result<Self, Error> {
        let cri = Cri::new(node);
        let pod = cri.run_pod(handler, &configs.writer_pod)?.ok()?;
        let pod = pod.stdout.trim().to_owned();
        let container = cri.create(&pod, &configs.writer, &configs.writer_pod)?;
        let container = container.ok()?.stdout.trim().to_owned();
        cri.start(&container)?.ok()?;
        let record = node.outside(&format!("/run/berm/k8s.io/{pod}/sandbox.json"));
        let text = std::fs::read(&record).map_err(file("read", &record))?;
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let shim = record["owner"]["pid"].as_u64().unwrap_or_default();
        Ok(Self {
            pod,
            container,
            shim: u32::try_from(shim).unwrap_or_default(),
            log: configs.logs.join("writer.log"),
            lines: 0,
            gaps: Vec::new(),
            ended: false,
        })
    }

    /// Id of its pod.
    pub(super) fn pod(&self) -> &str {
        &self.pod
    }

    /// Its ids.
    pub(super) fn ids(&self) -> [&str; 2] {
        [&self.pod, &self.container]
    }

    /// Pid of its shim.
    pub(super) fn shim(&self) -> u32 {
        self.shim
    }

    pub(super) fn lives(&self, node: &Node) -> bool {
        let status = Cri::new(node).inspect(&self.container);
        status.is_ok_and(|status| status["status"]["state"] == "CONTAINER_RUNNING")
    }

    /// Ends it in order, and says what was wrong with it or with its output.
    pub(super) fn finish(&mut self, node: &Node) -> Result<Vec<String>, Error> {
        let cri = Cri::new(node);
        cri.stop(&self.container, 50)?.ok()?;
        let status = cri.wait(&self.container, Duration::from_secs(60))?;
        let mut wrong = Vec::new();
        let code = &status["status"]["exitCode"];
        if *code != 4 {
            wrong.push(format!("the writer's exit code is {code}, not 4"));
        }
        cri.call(&["rmp", "--force", &self.pod])?.ok()?;
        let text = std::fs::read_to_string(&self.log).map_err(file("read", &self.log))?;
        wrong.extend(self.read(&text));
        Ok(wrong)
    }

    /// Reads the log: each line is `<time> stdout F <number> xxx`.
    fn read(&mut self, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for line in text.lines() {
            let Some((_, said)) = line.split_once(" stdout ") else {
                wrong.push(format!("no line of CRI: {}", short(line)));
                continue;
            };
            let said = said.get(2..).unwrap_or_default();
            if let Some(last) = said.strip_prefix("end ") {
                self.ended = true;
                if last.parse() != Ok(self.lines) {
                    wrong.push(format!("it wrote {last} lines, the last is {}", self.lines));
                }
                continue;
            }
            let number = said
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok());
            // A line of which containerd took a part with it begins in the middle.
            let Some(number): Option<u64> = number.filter(|_| said.len() >= 9) else {
                continue;
            };
            match number.checked_sub(self.lines + 1) {
                Some(0) => {}
                Some(missing) => self.gaps.push(missing),
                None => wrong.push(format!("{number} after {}", self.lines)),
            }
            self.lines = number;
        }
        if !self.ended {
            wrong.push("its last line is missing".into());
        }
        let large = self.gaps.iter().filter(|gap| **gap > IN_CONTAINERD);
        wrong.extend(large.map(|gap| format!("{gap} lines are missing in one place")));
        wrong
    }

    /// What its log holds.
    pub(super) fn story(&self) -> String {
        let lost: u64 = self.gaps.iter().sum();
        format!(
            "{} lines of 1,000 bytes, in order, none twice; {lost} of them in {} places were read \
             by a containerd that was killed before it had written them (none by the shim)",
            self.lines,
            self.gaps.len()
        )
    }
}

fn short(line: &str) -> &str {
    line.get(..80).unwrap_or(line)
}
