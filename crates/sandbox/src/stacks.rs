//! What every thread of a pod is doing, as the host's kernel sees it.

use std::fmt::Write;
use std::os::fd::BorrowedFd;

use berm_plan::HostShares;

use crate::error::Error;
use crate::live::Sandbox;
use crate::procfs::{MAX_FILE, ProcDir, Stat, escape, innermost_pid};

/// Of the whole text, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// Of one thread's stack.
const MAX_STACK: u64 = 8 << 10;
/// Threads of one process.
const MAX_THREADS: usize = 4096;

impl Sandbox {
    /// For each container of the pod, each process and each of its threads: state, what it waits
    /// for, its system call with the arguments (as numbers, proc_pid_syscall(5)), and the kernel's
    /// stack. Where the kernel does not tell, the text says so. About 1 MiB at most.
    /// # Errors
    /// As [`Sandbox::procfs_dump`].
    pub async fn stacks(&self) -> Result<String, Error> {
        let mut containers = Vec::new();
        for id in self.tasks() {
            containers.push((self.state_of(&id)?, id));
        }
        let all = self.pids_of_all()?;
        let shares = self.0.shares;
        let look = |proc: BorrowedFd<'_>| {
            let mut text = String::new();
            for (state, id) in &containers {
                let pids = all.iter().filter(|(of, _)| of == id);
                let pids: Vec<i32> = pids.map(|(_, pid)| *pid).collect();
                line(
                    &mut text,
                    &format!("container {id} ({state}), processes: {}", pids.len()),
                );
                for pid in pids {
                    process(&mut text, proc, pid, shares);
                }
            }
            text
        };
        self.0.aside(look).await
    }

    fn state_of(&self, id: &str) -> Result<&'static str, Error> {
        Ok(self.0.task(id)?.process.state().word())
    }
}

/// Adds a line unless the text is long enough.
fn line(text: &mut String, line: &str) {
    const CUT: &str = "(more is left out)\n";
    if text.len() + line.len() < MAX_TEXT {
        text.push_str(line);
        text.push('\n');
    } else if !text.ends_with(CUT) {
        text.push_str(CUT);
    }
}

/// A process that ends meanwhile says nothing.
fn process(text: &mut String, proc: BorrowedFd<'_>, host_pid: i32, shares: HostShares) {
    let Some(dir) = ProcDir::open(proc, &host_pid.to_string()) else {
        return;
    };
    let status = dir.text("status", MAX_FILE).unwrap_or_default();
    let (Some(pid), Some(task)) = (innermost_pid(&status, shares), ProcDir::open(&dir, "task"))
    else {
        return;
    };
    let stat = dir.text("stat", MAX_FILE).unwrap_or_default();
    let name = Stat::parse(&stat).map_or_else(String::new, |stat| escape(stat.name));
    line(text, &format!("  process {pid} (host {host_pid}) {name:?}"));
    for tid in task.numbers(MAX_THREADS) {
        thread(text, &task, tid, shares);
    }
}

fn thread(text: &mut String, task: &ProcDir, host_tid: i32, shares: HostShares) {
    let Some(dir) = ProcDir::open(task, &host_tid.to_string()) else {
        return;
    };
    let status = dir.text("status", MAX_FILE).unwrap_or_default();
    let stat = dir.text("stat", MAX_FILE).unwrap_or_default();
    let (Some(tid), Some(stat)) = (innermost_pid(&status, shares), Stat::parse(&stat)) else {
        return;
    };
    let word = |file: &str| {
        let found = dir.text(file, MAX_FILE).unwrap_or_default();
        match found.trim_end() {
            "" | "0" => "not told".to_owned(),
            found => escape(found),
        }
    };
    let mut head = format!("    thread {tid} (host {host_tid}) {:?}", escape(stat.name));
    // Writing to a String cannot fail.
    let _ = write!(
        head,
        ": state {}, waits in {}, system call {}",
        stat.field::<char>(3).unwrap_or('?'),
        word("wchan"),
        word("syscall"),
    );
    line(text, &head);
    match dir.text("stack", MAX_STACK) {
        Some(stack) => stack
            .lines()
            .for_each(|frame| line(text, &format!("      {}", escape(frame)))),
        None => line(text, "      (this kernel does not tell its stack)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_ends_with_that_word_once() {
        let (mut text, long) = (String::new(), "x".repeat(1000));
        for _ in 0..3000 {
            line(&mut text, &long);
        }
        assert!(text.len() < MAX_TEXT + 100);
        assert_eq!(text.matches("left out").count(), 1);
    }
}
