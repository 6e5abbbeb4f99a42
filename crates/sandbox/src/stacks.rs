//! What every thread of a pod is doing, as the host's kernel sees it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::os::fd::BorrowedFd;

use berm_plan::HostShares;

use crate::error::Error;
use crate::live::Sandbox;
use crate::open_calls;
use crate::procfs::{MAX_FILE, ProcDir, Stat, escape, innermost_pid};

/// Of the whole text, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// Of one thread's stack.
const MAX_STACK: u64 = 8 << 10;
/// Children of this process that are none of the pod's.
const MAX_CHILDREN: usize = 64;
/// Threads of one process.
const MAX_THREADS: usize = 4096;

impl Sandbox {
    /// What this process is busy with: its calls that are not answered yet and its stage children,
    /// each with its age. Then for each container of the pod, and for the children of this process
    /// that are none of the pod's, each process and each of its threads: state, what it waits
    /// for, its system call by name with six arguments, whether it takes so many or not
    /// (proc_pid_syscall(5)), and the kernel's stack. Where the kernel does not tell, the text says
    /// so. About 1 MiB at most.
    /// # Errors
    /// As [`Sandbox::procfs_dump`].
    pub async fn stacks(&self) -> Result<String, Error> {
        let mut containers = Vec::new();
        for id in self.tasks() {
            containers.push((self.state_of(&id)?, id));
        }
        let all = self.pids_of_all()?;
        let shares = self.0.shares;
        let (own, open) = (std::process::id().cast_signed(), open_calls::all());
        let known = self.own_children();
        let look = |proc: BorrowedFd<'_>| {
            let mut text = String::new();
            line(
                &mut text,
                &format!("shim (host {own}), open calls: {}", open.len()),
            );
            for (what, age) in &open {
                line(
                    &mut text,
                    &format!("  {:.3} s {}", age.as_secs_f64(), escape(what)),
                );
            }
            children(&mut text, proc, own, &known);
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

    /// Host pids of the children of this process that are the pod's.
    fn own_children(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::from([self.0.record.pid]);
        for task in self.0.tasks.borrow().values() {
            pids.insert(task.process.pid());
            pids.extend(task.execs.borrow().values().map(|exec| exec.process.pid()));
        }
        pids
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

/// The children of the process `own` that are not `known`: stage children, hooks, loggers.
fn children(text: &mut String, proc: BorrowedFd<'_>, own: i32, known: &BTreeSet<i32>) {
    const ANY: HostShares = HostShares {
        net: true,
        ipc: true,
        uts: true,
        pid: true,
    };
    let list = ProcDir::open(proc, &format!("{own}/task/{own}"))
        .and_then(|dir| dir.text("children", MAX_FILE));
    let list = list.unwrap_or_default();
    let pids = list.split_ascii_whitespace().flat_map(str::parse);
    // This code runs in one of them.
    let here = std::process::id().cast_signed();
    let others = pids.filter(|pid: &i32| *pid != here && !known.contains(pid));
    for pid in others.take(MAX_CHILDREN) {
        process(text, proc, pid, ANY);
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
        system_call(&word("syscall")),
    );
    line(text, &head);
    match dir.text("stack", MAX_STACK) {
        Some(stack) => stack
            .lines()
            .for_each(|frame| line(text, &format!("      {}", escape(frame)))),
        None => line(text, "      (this kernel does not tell its stack)"),
    }
}

/// `0 0x0 0x7ffc… 0x1000 0x0 0x0 0x0 0x7ffc… 0x7f3a…`, number, arguments, stack pointer and
/// program counter, as `read(0x0, …)`. Other words (`running`) stay as they are.
fn system_call(told: &str) -> String {
    let words: Vec<&str> = told.split_ascii_whitespace().collect();
    let [number, args @ .., stack, _counter] = words.as_slice() else {
        return told.to_owned();
    };
    let (Ok(number), 6) = (number.parse::<u32>(), args.len()) else {
        // -1: it waits elsewhere than in a system call.
        return if *number == "-1" { "none" } else { told }.to_owned();
    };
    // A program of 64 bits has its stacks above what one of 32 can have.
    let stack = stack.strip_prefix("0x").unwrap_or(stack);
    let is_32_bit = u64::from_str_radix(stack, 16).is_ok_and(|stack| stack <= u32::MAX.into());
    match berm_plan::syscall_name(number, is_32_bit) {
        Some(name) => format!("{name}({})", args.join(", ")),
        None => format!("{number}({})", args.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_have_names_and_what_is_none_stays() {
        let read = berm_plan::syscall_name(0, false).unwrap();
        let told = "0 0x3 0x7ffc0 0x1000 0x0 0x0 0x0 0x7ffc12345678 0x7f3a00000000";
        assert_eq!(
            system_call(told),
            format!("{read}(0x3, 0x7ffc0, 0x1000, 0x0, 0x0, 0x0)")
        );
        let told = "1 0x3 0x0 0x0 0x0 0x0 0x0 0xffc12345 0xf7000000";
        assert_eq!(system_call(told), "exit(0x3, 0x0, 0x0, 0x0, 0x0, 0x0)");
        let told = "99999 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffc12345678 0x7f3a00000000";
        assert_eq!(system_call(told), "99999(0x3, 0x0, 0x0, 0x0, 0x0, 0x0)");
        assert_eq!(system_call("-1 0x7ffc12345678 0x7f3a00000000"), "none");
        for word in ["running", "not told", "", "1 2"] {
            assert_eq!(system_call(word), word);
        }
    }

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
