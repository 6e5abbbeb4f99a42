//! How long the parts of a call took, for the one line that is logged at its end.
//!
//! The caller runs a verb inside [`Phases::of`]; what the verb passes through is marked with
//! [`done`]. Outside of it marks cost nothing and go nowhere.

use std::cell::RefCell;
use std::future::Future;
use std::time::{Duration, Instant};

tokio::task_local! {
    static PHASES: RefCell<Phases>;
}

/// The parts of one call, in the order in which they ended.
#[derive(Clone, Debug)]
pub struct Phases {
    parts: Vec<(&'static str, Duration)>,
    last: Instant,
}

impl Phases {
    /// Runs `call` and gives back what it says, and its parts.
    pub async fn of<T>(call: impl Future<Output = T>) -> (T, Self) {
        let new = RefCell::new(Self {
            parts: Vec::new(),
            last: Instant::now(),
        });
        PHASES
            .scope(new, async {
                let said = call.await;
                (said, PHASES.with(|phases| phases.borrow_mut().take()))
            })
            .await
    }

    fn take(&mut self) -> Self {
        Self {
            parts: std::mem::take(&mut self.parts),
            last: self.last,
        }
    }

    /// Name and length of each; the rest of the call came after the last.
    pub fn parts(&self) -> &[(&'static str, Duration)] {
        &self.parts
    }
}

/// Ends a part of the call that runs now: it began where the one before it ended.
pub fn done(name: &'static str) {
    let mark = |phases: &RefCell<Phases>| {
        let mut phases = phases.borrow_mut();
        let now = Instant::now();
        let length = now.duration_since(phases.last);
        phases.parts.push((name, length));
        phases.last = now;
    };
    // Without a scope nobody wants to know.
    let _ = PHASES.try_with(mark);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_its_own_parts_although_calls_run_interleaved() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let call = |names: [&'static str; 2]| async move {
            for name in names {
                done(name);
                tokio::task::yield_now().await;
            }
        };
        let ((), ((), one), ((), two)) = runtime.block_on(async {
            tokio::join!(
                call(["nowhere", "at all"]),
                Phases::of(call(["plan", "cgroup"])),
                Phases::of(call(["gate", "exec"])),
            )
        });
        let names = |phases: &Phases| phases.parts().iter().map(|p| p.0).collect::<Vec<_>>();
        assert_eq!(names(&one), ["plan", "cgroup"]);
        assert_eq!(names(&two), ["gate", "exec"]);
    }
}
