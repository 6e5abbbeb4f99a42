//! What this process is busy with: calls that have not been answered, stage children that have
//! not ended. For who looks for a hang.
//!
//! The process has one thread, so that a table of that thread is the process's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

thread_local! {
    static OPEN: RefCell<Open> = const { RefCell::new(Open::new()) };
}

#[derive(Debug)]
struct Open {
    next: u64,
    calls: BTreeMap<u64, (String, Instant)>,
}

impl Open {
    const fn new() -> Self {
        Self {
            next: 0,
            calls: BTreeMap::new(),
        }
    }
}

/// A call under way, for as long as the value lives; told by `debug.Stacks`.
#[derive(Debug)]
#[must_use]
pub struct OpenCall(u64);

impl OpenCall {
    /// Begins now; `what` names it and what it is about, as in `Task.Delete c1`.
    pub fn begin(what: String) -> Self {
        OPEN.with_borrow_mut(|open| {
            let number = open.next;
            open.next += 1;
            open.calls.insert(number, (what, Instant::now()));
            Self(number)
        })
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        // The thread may be ending, and its table with it.
        let _ = OPEN.try_with(|open| open.borrow_mut().calls.remove(&self.0));
    }
}

/// Every open call with its age, oldest first.
pub(crate) fn all() -> Vec<(String, Duration)> {
    let now = Instant::now();
    OPEN.with_borrow(|open| {
        let calls = open.calls.values();
        calls
            .map(|(what, begun)| (what.clone(), now.saturating_duration_since(*begun)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_open_until_its_value_is_dropped() {
        let names = || all().into_iter().map(|(what, _)| what).collect::<Vec<_>>();
        let first = OpenCall::begin("Task.Wait c1".into());
        let second = OpenCall::begin("stage Create".into());
        assert_eq!(names(), ["Task.Wait c1", "stage Create"]);
        drop(first);
        assert_eq!(names(), ["stage Create"]);
        drop(second);
        assert!(names().is_empty());
    }
}
