//! The daemon's log: logfmt lines into the bundle's fifo `log`, which containerd copies to its
//! own.
//!
//! A line is one write of less than `PIPE_BUF` bytes, so lines never mix. While the fifo is full
//! or containerd is away, lines are dropped and counted; the next one that goes through tells how
//! many.

use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use berm_sandbox::LogChange;
use log::kv::{Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::{Mode, OFlags};

use crate::error::Error;

/// Below `PIPE_BUF` (4096), so that a write to the fifo is whole or does not happen.
const LINE_LIMIT: usize = 4000;

/// Opens the fifo without waiting for a reader.
/// # Errors
/// The errno of open(2); `ENXIO` if containerd does not hold it open.
pub(crate) fn open(fifo: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(
        fifo,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Error::Io {
        call: "open",
        what: format!("{fifo:?}, O_WRONLY|O_NONBLOCK"),
        source: e.into(),
    })
}

static LOG: OnceLock<Logfmt> = OnceLock::new();

/// Makes `fd` the process's log. Without one the process is silent.
pub(crate) fn init(fd: Option<OwnedFd>, level: LevelFilter, fields: &str) {
    let Some(fd) = fd else { return };
    // A second call could only come from a test; the first log stays then.
    let logfmt = LOG.get_or_init(|| Logfmt::new(fd, level, fields));
    if log::set_logger(logfmt).is_ok() {
        log::set_max_level(level);
    }
}

/// Changes what is logged from the next line on; false if the process is silent.
pub(crate) fn change(change: &LogChange) -> bool {
    let Some(logfmt) = LOG.get() else {
        return false;
    };
    log::set_max_level(logfmt.change(change));
    true
}

/// Which lines are written.
#[derive(Debug)]
struct Filter {
    level: LevelFilter,
    /// The longest first.
    targets: Vec<(String, LevelFilter)>,
}

impl Filter {
    fn of(&self, target: &str) -> LevelFilter {
        let below = |name: &str| {
            let rest = target.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        match self.targets.iter().find(|(name, _)| below(name)) {
            Some((_, level)) => *level,
            None if target.starts_with("berm") => self.level,
            // Libraries tell what they see, not what it means: only their warnings count.
            None => self.level.min(LevelFilter::Warn),
        }
    }
}

struct Logfmt {
    fd: OwnedFd,
    /// ` key=value` pairs that every line ends with.
    fields: String,
    filter: RwLock<Filter>,
    dropped: AtomicU64,
}

impl Logfmt {
    fn new(fd: OwnedFd, level: LevelFilter, fields: &str) -> Self {
        let targets = Vec::new();
        Self {
            fd,
            fields: fields.to_owned(),
            filter: RwLock::new(Filter { level, targets }),
            dropped: AtomicU64::new(0),
        }
    }

    /// Gives back the highest level that any target has.
    fn change(&self, change: &LogChange) -> LevelFilter {
        let mut filter = self.filter.write().unwrap_or_else(PoisonError::into_inner);
        filter.level = change.level.unwrap_or(filter.level);
        if let Some(targets) = &change.targets {
            filter.targets.clone_from(targets);
            let longest = |(name, _): &(String, LevelFilter)| std::cmp::Reverse(name.len());
            filter.targets.sort_by_key(longest);
        }
        let levels = filter.targets.iter().map(|(_, level)| *level);
        levels.fold(filter.level, Ord::max)
    }
}

impl Log for Logfmt {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let filter = self.filter.read().unwrap_or_else(PoisonError::into_inner);
        metadata.level() <= filter.of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let dropped = self.dropped.load(Ordering::Relaxed);
        let line = line(record, SystemTime::now(), &self.fields, dropped);
        if rustix::io::write(&self.fd, line.as_bytes()).is_ok() {
            self.dropped.fetch_sub(dropped, Ordering::Relaxed);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// One line, as containerd's own shims write it.
fn line(record: &Record<'_>, now: SystemTime, fields: &str, dropped: u64) -> String {
    let level = match record.level() {
        log::Level::Error => "error",
        log::Level::Warn => "warning",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    };
    let mut line = format!("time=\"{}\" level={level} msg=", rfc3339(now));
    push_value(&mut line, &record.args().to_string());
    // The visitor below never fails.
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    line.push_str(fields);
    if dropped > 0 {
        // Writing to a String cannot fail.
        let _ = write!(line, " dropped={dropped}");
    }
    let mut end = line.len().min(LINE_LIMIT);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    line
}

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        self.0.push(' ');
        self.0.push_str(key.as_str());
        self.0.push('=');
        push_value(self.0, &value.to_string());
        Ok(())
    }
}

/// Bare if it is a plain word, quoted and escaped otherwise.
fn push_value(line: &mut String, value: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+:".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        line.push_str(value);
    } else {
        // Writing to a String cannot fail.
        let _ = write!(line, "{value:?}");
    }
}

/// UTC with nanoseconds; a clock that stands before 1970 shows its beginning.
fn rfc3339(at: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_nanos(at.max(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_are_right_in_leap_years_too() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (seconds, want) in cases {
            assert_eq!(rfc3339(at(seconds)).to_string(), want);
        }
    }

    #[test]
    fn a_line_is_logfmt() {
        let pairs = [
            ("call", "Create"),
            ("err", "open(\"/x\"): no\nfile"),
            ("empty", ""),
        ];
        let record = Record::builder()
            .level(log::Level::Warn)
            .args(format_args!("two words"))
            .key_values(&pairs)
            .build();
        assert_eq!(
            line(&record, at(0), " sandbox=ab", 3),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warning msg=\"two words\" call=Create \
             err=\"open(\\\"/x\\\"): no\\nfile\" empty=\"\" sandbox=ab dropped=3\n"
        );
    }

    #[test]
    fn a_line_stays_below_what_a_pipe_takes_at_once() {
        let long = "ä".repeat(5000);
        let args = format_args!("{long}");
        let line = line(&Record::builder().args(args).build(), at(0), "", 0);
        assert!(line.len() <= LINE_LIMIT + 1 && line.ends_with('\n'));
    }

    #[test]
    fn what_a_full_fifo_loses_is_counted_and_told() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let logfmt = Logfmt::new(write, LevelFilter::Info, "");
        let say = |text: &str| {
            logfmt.log(
                &Record::builder()
                    .level(log::Level::Info)
                    .target("berm_shim")
                    .args(format_args!("{text}"))
                    .build(),
            );
        };
        let filler = "x".repeat(3000);
        while logfmt.dropped.load(Ordering::Relaxed) < 2 {
            say(&filler);
        }
        let mut pipe = std::fs::File::from(read);
        let mut all = vec![0; 1 << 20];
        while pipe.read(&mut all).is_ok_and(|n| n > 0) {}
        say("back");
        let n = pipe.read(&mut all).unwrap();
        let line = String::from_utf8_lossy(&all[..n]).into_owned();
        assert!(
            line.contains("msg=back") && line.ends_with(" dropped=2\n"),
            "{line}"
        );
        assert_eq!(logfmt.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn libraries_are_heard_from_warnings_up() {
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let logfmt = Logfmt::new(write, LevelFilter::Debug, "");
        let enabled = |target, level| {
            logfmt.enabled(&Metadata::builder().target(target).level(level).build())
        };
        assert!(enabled("berm_sandbox::exec", log::Level::Debug));
        assert!(!enabled("ttrpc::asynchronous", log::Level::Info));
        assert!(enabled("ttrpc::asynchronous", log::Level::Error));
    }

    #[test]
    fn a_change_holds_from_the_next_line_on_and_the_longest_target_counts() {
        use LevelFilter::{Debug, Info, Off, Trace, Warn};
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let logfmt = Logfmt::new(write, Info, "");
        let level = |target: &str| logfmt.filter.read().unwrap().of(target);
        let named = [
            ("berm_sandbox", Warn),
            ("berm_sandbox::exec", Trace),
            ("ttrpc", Debug),
        ];
        let change = LogChange {
            level: None,
            targets: Some(named.map(|(name, level)| (name.to_owned(), level)).to_vec()),
        };
        assert_eq!(logfmt.change(&change), Trace);
        assert_eq!(level("berm_sandbox::exec::fork"), Trace);
        assert_eq!(level("berm_sandbox::exits"), Warn);
        assert_eq!(level("berm_sandboxes"), Info);
        assert_eq!(level("ttrpc::asynchronous"), Debug);
        let change = LogChange {
            level: Some(Off),
            targets: Some(Vec::new()),
        };
        assert_eq!(logfmt.change(&change), Off);
        assert_eq!((level("berm_sandbox"), level("ttrpc")), (Off, Off));
    }
}
