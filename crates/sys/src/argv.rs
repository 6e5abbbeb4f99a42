//! The command line of this process, as others read it in `/proc/<pid>/cmdline`.

use std::fs;
use std::ptr;

/// Where the kernel finds the command line: part of the initial stack (proc_pid_stat(5), fields
/// 48 and 49).
#[derive(Clone, Copy, Debug)]
pub struct Argv {
    start: usize,
    len: usize,
}

impl Argv {
    /// Looks it up; `None` where the kernel does not tell.
    pub fn find() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        // Field 3 comes first in what is left.
        let mut fields = rest.split_ascii_whitespace().skip(45);
        let start: usize = fields.next()?.parse().ok()?;
        let end: usize = fields.next()?.parse().ok()?;
        let len = end.checked_sub(start)?;
        (start != 0).then_some(Self { start, len })
    }

    /// Overwrites it with zeros.
    ///
    /// For a forked child that never looks at its arguments again: `cmdline` is readable for
    /// whoever sees the process, dumpable or not, and a stage child is seen by its pod.
    pub fn blank(self) {
        let start = ptr::with_exposed_provenance_mut::<u8>(self.start);
        // SAFETY: the kernel laid these bytes out in the initial stack of this process, which
        // stays mapped and writable; a child has a copy of its own. The standard library reads
        // them through raw pointers in `args()` alone, which no child calls.
        unsafe { ptr::write_bytes(start, 0, self.len) };
    }
}
