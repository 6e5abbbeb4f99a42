//! Memory that this process has touched and needs no more.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// Below the caller's frame as much of the stack stays: this call's own frames lie there.
const KEPT: usize = 16 << 10;

/// Gives back to the kernel what is free of the heap, and of the stack what lies below the caller.
///
/// For a process of one thread that has nothing to do for a while: what it touches next is zeroed
/// anew, a page fault for each page. On a stack that the kernel did not make for the process
/// (another thread's) only the heap is trimmed.
/// # Errors
/// The errno of reading `/proc/self/maps`, or of madvise(2).
pub fn release() -> io::Result<()> {
    trim_heap();
    let here = std::hint::black_box(0_u8);
    let here = (&raw const here).addr();
    let maps = BufReader::new(File::open("/proc/self/maps")?);
    let Some(unused) = unused_stack(maps, here)? else {
        return Ok(());
    };
    let start = std::ptr::with_exposed_provenance_mut(unused.start);
    // SAFETY: madvise(MADV_DONTNEED) makes these pages read as zeros. They are whole pages of the
    // main thread's stack, and all of them lie `KEPT` below a live frame of this very thread, which
    // is the only one to use them: no frame that returns, no red zone and no reference is there.
    unsafe { madvise(start, unused.len(), Advice::LinuxDontNeed) }?;
    Ok(())
}

fn trim_heap() {
    // Other C libraries have no such call.
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim(3) has no precondition: it locks the heap and frees only what is free.
        unsafe { libc::malloc_trim(0) };
    }
}

/// The whole pages of the main thread's stack below `here`, less those that are kept; `None` if
/// `here` is not on it.
fn unused_stack(maps: impl BufRead, here: usize) -> io::Result<Option<Range<usize>>> {
    for line in maps.lines() {
        let line = line?;
        let Some(range) = line.strip_suffix("[stack]").and_then(range) else {
            continue;
        };
        let end = here.saturating_sub(KEPT) / page_size() * page_size();
        let ours = range.contains(&here) && range.start < end;
        return Ok(ours.then_some(range.start..end));
    }
    Ok(None)
}

/// `7ffd60614000-7ffd60640000 rw-p …`
fn range(line: &str) -> Option<Range<usize>> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
        00200000-00355000 r--p 00000000 fe:00 1041     /bin/x [stack]y\n\
        7ffd60614000-7ffd60640000 rw-p 00000000 00:00 0                          [stack]\n\
        7ffd60650000-7ffd60652000 r--p 00000000 00:00 0                          [vvar]\n";

    #[test]
    fn of_the_stack_only_whole_pages_far_below_the_caller_are_unused() {
        let unused = |here| unused_stack(MAPS.as_bytes(), here).unwrap();
        assert_eq!(
            unused(0x7ffd_6063_aae8),
            Some(0x7ffd_6061_4000..0x7ffd_6063_6000)
        );
        assert_eq!(unused(0x7ffd_6061_8010), None, "nothing is left of it");
        assert_eq!(unused(0x7ffd_6065_0010), None, "no frame is there");
    }

    #[test]
    fn what_lives_is_as_before() {
        let heap: Vec<u64> = (0..100_000).collect();
        let stack = std::hint::black_box([7_u8; 4096]);
        release().unwrap();
        assert!(heap.iter().copied().eq(0..100_000) && stack.iter().all(|byte| *byte == 7));
    }
}
