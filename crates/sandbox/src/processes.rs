//! What runs in a container, read on the host.
//!
//! Nothing inside is asked: pids come from the cgroup, the rest from `/proc/<pid>`, each read
//! bounded and all text escaped, because a pod chooses its names.

use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berm_plan::{HostShares, IdMap};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::api::Pid;
use crate::error::Error;
use crate::live::Sandbox;
use crate::procfs::{MAX_FILE, ProcDir, Stat, escape, field, innermost_pid};

/// Of a command line that is shown.
const MAX_CMDLINE: u64 = 4 << 10;
/// Of one process.
const MAX_THREADS: usize = 4096;

/// A process as gVisor's `control.Process` describes it, with the host's pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// In the pod's numbers; 4294967295 for an id that the pod has not.
    pub uid: u32,
    /// In the numbers of the process's own PID namespace.
    pub pid: i32,
    /// Likewise; 0 if the parent is outside.
    pub ppid: i32,
    /// The threads' numbers, likewise.
    pub threads: Vec<i32>,
    /// CPU use since the start, in percent.
    pub c: u64,
    /// `pts/0`; `?` without one.
    pub tty: String,
    /// Start, in UTC: `15:58` within a day, `Nov24` later.
    pub stime: String,
    /// CPU time, as Go writes durations.
    pub time: String,
    /// Command line, or the thread's name where there is none.
    pub cmd: String,
    /// Its number on the host.
    pub host_pid: i32,
}

impl Sandbox {
    /// The processes of a container, or PID 1 of the sandbox task, by pid on the host.
    ///
    /// Read by a child with a deadline: a process can hold back its own command line.
    /// # Errors
    /// `NotFound` for an unknown id; `FailedPrecondition` once it has ended; `DeadlineExceeded`.
    pub async fn processes(&self, id: &str) -> Result<Vec<ProcessEntry>, Error> {
        let pids = self.pids(id)?;
        let (uids, shares) = (&self.0.ids.uids, self.0.shares);
        let look = |proc: BorrowedFd<'_>| list(proc, &pids, uids, shares);
        self.0.aside(look).await
    }
}

/// What is there of these processes; those that end meanwhile are left out.
fn list(proc: BorrowedFd<'_>, pids: &[Pid], uids: &IdMap, shares: HostShares) -> Vec<ProcessEntry> {
    let now = Now::read();
    let seen = pids
        .iter()
        .filter_map(|pid| Seen::read(proc, pid.pid, shares));
    let seen: Vec<_> = seen.collect();
    seen.iter().map(|s| s.process(&seen, uids, &now)).collect()
}

/// The table of ps(1) over containers: their ids, and the columns of [`ProcessEntry`].
pub(crate) fn table(containers: &[(String, Vec<ProcessEntry>)]) -> String {
    let head = [
        "CONTAINER",
        "UID",
        "PID",
        "PPID",
        "C",
        "TTY",
        "STIME",
        "TIME",
        "CMD",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for (id, processes) in containers {
        rows.extend(processes.iter().map(|p| {
            let (uid, pid, ppid) = (p.uid.to_string(), p.pid.to_string(), p.ppid.to_string());
            let (tty, stime, time) = (p.tty.clone(), p.stime.clone(), p.time.clone());
            let c = p.c.to_string();
            [
                id.clone(),
                uid,
                pid,
                ppid,
                c,
                tty,
                stime,
                time,
                p.cmd.clone(),
            ]
        }));
    }
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len() - 1).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$} "));
        }
        text.push_str(&row[head.len() - 1]);
        text.push('\n');
    }
    text
}

/// What `/proc` says of one process.
#[derive(Debug, Default)]
struct Seen {
    host_pid: i32,
    host_ppid: i32,
    pid: i32,
    host_uid: u32,
    threads: Vec<i32>,
    tty: u64,
    cpu_ticks: u64,
    start_ticks: u64,
    cmd: String,
}

/// The clocks at one moment.
pub(crate) struct Now {
    since_boot: Duration,
    wall: SystemTime,
    hertz: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        Self {
            since_boot: Duration::try_from(boot).unwrap_or_default(),
            wall: SystemTime::now(),
            hertz: rustix::param::clock_ticks_per_second().max(1),
        }
    }

    /// Nanoseconds since 1970 of what began so many ticks after boot.
    pub(crate) fn since_1970(&self, ticks: u64) -> i64 {
        let age = self.since_boot.saturating_sub(self.ticks(ticks));
        let at = self.wall.checked_sub(age).unwrap_or(UNIX_EPOCH);
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn ticks(&self, ticks: u64) -> Duration {
        Duration::from_millis(ticks.saturating_mul(1000) / self.hertz)
    }
}

impl Seen {
    /// `None` for a process that ends meanwhile.
    fn read(proc: BorrowedFd<'_>, host_pid: i32, shares: HostShares) -> Option<Self> {
        let dir = ProcDir::open(proc, &host_pid.to_string())?;
        let mut seen = Self::parse_stat(&dir.text("stat", MAX_FILE)?)?;
        seen.host_pid = host_pid;
        let status = dir.text("status", MAX_FILE)?;
        seen.host_uid = field(&status, "Uid:")?.next()?.parse().ok()?;
        seen.pid = innermost_pid(&status, shares)?;
        seen.threads = match threads(&dir, shares) {
            threads if threads.is_empty() => vec![seen.pid],
            threads => threads,
        };
        let cmdline = dir.read("cmdline", MAX_CMDLINE)?;
        if !cmdline.is_empty() {
            seen.cmd = command_line(&cmdline);
        }
        Some(seen)
    }

    fn parse_stat(stat: &str) -> Option<Self> {
        let stat = Stat::parse(stat)?;
        let ticks = |field| stat.field::<u64>(field);
        Some(Self {
            host_ppid: stat.field(4)?,
            tty: ticks(7)?,
            cpu_ticks: ticks(14)?.saturating_add(ticks(15)?),
            start_ticks: ticks(22)?,
            cmd: escape(&format!("[{}]", stat.name)),
            ..Self::default()
        })
    }

    fn process(&self, all: &[Self], uids: &IdMap, now: &Now) -> ProcessEntry {
        let parent = all.iter().find(|p| p.host_pid == self.host_ppid);
        let used = now.ticks(self.cpu_ticks);
        let age = now.since_boot.saturating_sub(now.ticks(self.start_ticks));
        ProcessEntry {
            uid: inside(uids, self.host_uid),
            pid: self.pid,
            ppid: parent.map_or(0, |p| p.pid),
            threads: self.threads.clone(),
            c: percent(used, age),
            tty: tty(self.tty),
            stime: start(now.wall, age),
            time: duration(used),
            cmd: self.cmd.clone(),
            host_pid: self.host_pid,
        }
    }
}

/// The threads' numbers inside; empty if there is only one.
fn threads(dir: &ProcDir, shares: HostShares) -> Vec<i32> {
    let Some(task) = ProcDir::open(dir, "task") else {
        return Vec::new();
    };
    let threads = task.numbers(MAX_THREADS);
    if threads.len() < 2 {
        return Vec::new();
    }
    let number = |tid: &i32| {
        let status = task.text(&format!("{tid}/status"), MAX_FILE)?;
        innermost_pid(&status, shares)
    };
    threads.iter().filter_map(number).collect()
}

/// Arguments with spaces between them.
fn command_line(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    escape(&String::from_utf8_lossy(bytes).replace('\0', " "))
}

/// An id in the pod's numbers; 4294967295 if it has none.
pub(crate) fn inside(map: &IdMap, host: u32) -> u32 {
    if map.0.is_empty() {
        return host;
    }
    let inside = |e: &berm_plan::Extent| {
        let offset = host.checked_sub(e.outside)?;
        (offset < e.count).then(|| e.inside.checked_add(offset))?
    };
    map.0.iter().find_map(inside).unwrap_or(u32::MAX)
}

fn percent(used: Duration, age: Duration) -> u64 {
    let age = age.as_millis().max(1);
    u64::try_from(used.as_millis() * 100 / age).unwrap_or(u64::MAX)
}

/// A device number: 136 and up are pseudo terminals (Documentation/admin-guide/devices.txt).
fn tty(number: u64) -> String {
    let (major, minor) = (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xfff00),
    );
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

fn start(now: SystemTime, age: Duration) -> String {
    const DAY: u64 = 86_400;
    let at = now.checked_sub(age).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH);
    // `2024-02-29T11:59:00Z`
    let text = humantime::format_rfc3339_seconds(at).to_string();
    match age.as_secs() < DAY {
        true => text.get(11..16).unwrap_or("?").to_owned(),
        false => month_and_day(&text),
    }
}

/// `Feb29`
fn month_and_day(rfc3339: &str) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let number = rfc3339
        .get(5..7)
        .and_then(|month| month.parse::<usize>().ok());
    let month = number.and_then(|number| MONTHS.get(number.checked_sub(1)?));
    let day = rfc3339.get(8..10).unwrap_or("?");
    format!("{}{day}", month.unwrap_or(&"?"))
}

/// As Go's `Duration.String`, to the millisecond: `0s`, `10ms`, `1.5s`, `2m3s`, `1h0m0.01s`.
fn duration(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        0 => return "0s".to_owned(),
        1..1000 => return format!("{millis}ms"),
        _ => {}
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, fraction) = (millis / 1000 % 60, millis % 1000);
    let fraction = format!(".{fraction:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_numbers_behind_it() {
        let stat = "42 (a) S 99 (b\x1b) R 7 42 42 34817 42 0 0 0 0 0 150 50 0 0 20 0 1 0 12345 0";
        let seen = Seen::parse_stat(stat).unwrap();
        assert_eq!(
            (seen.host_ppid, seen.cpu_ticks, seen.start_ticks),
            (7, 200, 12345)
        );
        assert_eq!(seen.cmd, "[a) S 99 (b\\u{1b}]");
        assert_eq!(tty(seen.tty), "pts/1");
        assert!(Seen::parse_stat("42 (a) S 1").is_none());
    }

    #[test]
    fn durations_read_as_gos() {
        let cases = [
            (0, "0s"),
            (10, "10ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (61_010, "1m1.01s"),
            (3_600_010, "1h0m0.01s"),
        ];
        for (millis, want) in cases {
            assert_eq!(duration(Duration::from_millis(millis)), want);
        }
    }

    #[test]
    fn a_start_is_a_time_within_a_day_and_a_date_before() {
        let now = UNIX_EPOCH + Duration::from_secs(1_709_208_000); // 2024-02-29 12:00
        assert_eq!(start(now, Duration::from_secs(60)), "11:59");
        assert_eq!(start(now, Duration::from_secs(86_400)), "Feb28");
        let now = now + Duration::from_secs(86_400);
        assert_eq!(start(now, Duration::from_secs(86_400)), "Feb29");
        let day = Duration::from_secs(86_400);
        assert_eq!(start(UNIX_EPOCH + day, day), "Jan01");
        assert_eq!(start(UNIX_EPOCH + 365 * day, day), "Dec31");
    }

    #[test]
    fn ids_outside_the_pods_map_are_shown_as_none() {
        let map = IdMap(vec![berm_plan::Extent {
            inside: 0,
            outside: 1000,
            count: 10,
        }]);
        assert_eq!((inside(&map, 1005), inside(&map, 0)), (5, u32::MAX));
        assert_eq!(inside(&IdMap::default(), 7), 7);
    }

    #[test]
    fn a_command_line_is_words_without_control_characters() {
        assert_eq!(command_line(b"sh\0-c\0a\nb\0"), "sh -c a\\nb");
    }
}
