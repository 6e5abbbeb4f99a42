//! Which CPUs this process may use.

use rustix::io;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The calling thread, and so what it starts, has few CPUs; it has its own ones again after drop.
#[must_use]
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    /// To the first `count` of those that it has.
    pub(crate) fn to(count: usize) -> io::Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut few = CpuSet::new();
        (0..CpuSet::MAX_CPU)
            .filter(|cpu| all.is_set(*cpu))
            .take(count)
            .for_each(|cpu| few.set(cpu));
        sched_setaffinity(None, &few)?;
        Ok(Self(all))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(e) = sched_setaffinity(None, &self.0) {
            eprintln!("sched_setaffinity: {e}");
        }
    }
}
