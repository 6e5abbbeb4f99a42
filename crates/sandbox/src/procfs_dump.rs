//! Everything that `/proc` says of every process of a pod.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use berm_plan::HostShares;
use rustix::fs::{AtFlags, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::live::Sandbox;
use crate::processes::{Now, inside};
use crate::procfs::{MAX_FILE, ProcDir, Stat, depth, escape, field, innermost_pid, last};

/// Of arguments, of the environment and of the list of mappings of one process, in bytes.
const MAX_LIST: u64 = 128 << 10;
/// Descriptors of one process.
const MAX_FDS: usize = 1024;
/// Processes of a pod.
const MAX_PROCESSES: usize = 4096;
/// Of all processes together, in strings and numbers: a dump fits into a message, and the shim
/// stays small. What is over it is left out, and named by `truncated`.
const MAX_VALUES: usize = 128 << 10;
/// The same in bytes of text.
const MAX_BYTES: usize = 2 << 20;

/// One process, under gVisor's keys. A part that could not be read, or is empty, is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessDump {
    /// Target of `exe`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub exe: String,
    /// Arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment at its start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    /// Open files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fdlist: Vec<OpenFile>,
    /// Start in nanoseconds since 1970.
    pub clone_ts: i64,
    /// Root directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// Resource limits by their names for setrlimit(2).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Rlimit>,
    /// Its cgroups, as the host sees them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroup: Vec<CgroupEntry>,
    /// Of `status`.
    pub status: StatusDump,
    /// Of `stat`.
    pub stat: StatDump,
    /// Memory mappings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<Mapping>,
    /// Berm's addition: its container, or the sandbox.
    pub container: String,
    /// Berm's addition: its number on the host.
    pub host_pid: i32,
    /// Berm's addition: parts that are not complete, because there is more than a dump may hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<String>,
}

/// An open file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // as gVisor's keys
pub struct OpenFile {
    pub number: i32,
    pub path: String,
    /// `st_mode`, as far as the kernel knows it without asking a file server; else 0.
    pub mode: u16,
}

/// A resource limit; none is `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Rlimit {
    pub cur: u64,
    pub max: u64,
}

/// A line of `/proc/<pid>/cgroup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CgroupEntry {
    pub hierarchy_id: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub controllers: String,
    pub path: String,
}

/// Three ids, in the pod's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ThreeIds {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
}

/// Of `/proc/<pid>/status`; numbers of processes are those of their own PID namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StatusDump {
    pub comm: String,
    pub pid: i32,
    /// 0 if it is outside.
    pub ppid: i32,
    pub uid: ThreeIds,
    pub gid: ThreeIds,
    /// KiB.
    pub vm_size: u64,
    /// KiB.
    pub vm_rss: u64,
}

/// Of `/proc/<pid>/stat`, in the numbers of its own PID namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StatDump {
    pub pgid: i32,
    pub sid: i32,
}

/// A memory mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Mapping {
    pub address: AddressRange,
    pub permissions: Permissions,
    /// `p` private, `s` shared.
    pub private: String,
    pub offset: u64,
    pub device_major: u32,
    pub device_minor: u32,
    pub inode: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pathname: String,
}

/// From the first address to the one behind the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct AddressRange {
    pub start: u64,
    pub end: u64,
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Permissions {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

impl Sandbox {
    /// What `/proc` says of every process of the pod, container by container, PID 1 of the
    /// sandbox among them. Its text is the pod's, with control characters escaped.
    /// # Errors
    /// `Unavailable` for more than 4096 processes; `DeadlineExceeded` if a process holds back
    /// what only it can give.
    pub async fn procfs_dump(&self) -> Result<Vec<ProcessDump>, Error> {
        let all = self.pids_of_all()?;
        let (ids, shares) = (&self.0.ids, self.0.shares);
        let look = |proc: BorrowedFd<'_>| {
            let mut dumper = Dumper {
                proc,
                ids,
                shares,
                now: Now::read(),
                values: MAX_VALUES,
                bytes: MAX_BYTES,
            };
            let dump = |(id, pid): &(String, i32)| dumper.process(id, *pid);
            all.iter().filter_map(dump).collect::<Vec<_>>()
        };
        self.0.aside(look).await
    }

    /// Each task that runs with the host pids of its processes; at most 4096 in all.
    pub(crate) fn pids_of_all(&self) -> Result<Vec<(String, i32)>, Error> {
        let mut all = Vec::new();
        for id in self.tasks() {
            match self.pids(&id) {
                // It has not begun, or has ended.
                Err(Error::NotRunning { .. } | Error::NoContainer { .. }) => {}
                pids => all.extend(pids?.into_iter().map(|pid| (id.clone(), pid.pid))),
            }
        }
        if all.len() > MAX_PROCESSES {
            let max = MAX_PROCESSES;
            return Err(Error::TooManyProcesses {
                count: all.len(),
                max,
            });
        }
        Ok(all)
    }
}

/// Reads process by process, and counts what it has found.
struct Dumper<'a> {
    proc: BorrowedFd<'a>,
    ids: &'a berm_plan::Ids,
    shares: HostShares,
    now: Now,
    /// Left of the bounds.
    values: usize,
    bytes: usize,
}

impl Dumper<'_> {
    /// `None` for a process that ends meanwhile.
    fn process(&mut self, container: &str, host_pid: i32) -> Option<ProcessDump> {
        let dir = ProcDir::open(self.proc, &host_pid.to_string())?;
        let (stat, status) = (dir.text("stat", MAX_FILE)?, dir.text("status", MAX_FILE)?);
        let stat = Stat::parse(&stat)?;
        let mut dump = ProcessDump {
            clone_ts: self.now.since_1970(stat.field(22)?),
            status: self.status(&status, stat.name)?,
            stat: StatDump {
                pgid: last(&status, "NSpgid:")?,
                sid: last(&status, "NSsid:")?,
            },
            container: container.to_owned(),
            host_pid,
            ..ProcessDump::default()
        };
        let parent = stat.field::<i32>(4).unwrap_or(0).to_string();
        let parent = ProcDir::open(self.proc, &parent).and_then(|dir| dir.text("status", MAX_FILE));
        dump.status.ppid = parent
            .filter(|parent| depth(parent) == depth(&status))
            .and_then(|parent| innermost_pid(&parent, self.shares))
            .unwrap_or(0);
        self.texts(&dir, &mut dump);
        self.tables(&dir, &mut dump);
        Some(dump)
    }

    fn status(&self, status: &str, name: &str) -> Option<StatusDump> {
        let three = |key, map| {
            let mut ids = field(status, key)?.map_while(|id| id.parse().ok());
            let mut next = || Some(inside(map, ids.next()?));
            Some(ThreeIds {
                real: next()?,
                effective: next()?,
                saved: next()?,
            })
        };
        let kib = |key| field(status, key).and_then(|mut words| words.next()?.parse().ok());
        Some(StatusDump {
            comm: escape(name),
            pid: innermost_pid(status, self.shares)?,
            ppid: 0,
            uid: three("Uid:", &self.ids.uids)?,
            gid: three("Gid:", &self.ids.gids)?,
            // A process without memory, such as a zombie, has no such lines.
            vm_size: kib("VmSize:").unwrap_or(0),
            vm_rss: kib("VmRSS:").unwrap_or(0),
        })
    }

    fn texts(&mut self, dir: &ProcDir, dump: &mut ProcessDump) {
        dump.exe = dir.link("exe").unwrap_or_default();
        dump.cwd = dir.link("cwd").unwrap_or_default();
        dump.root = dir.link("root").unwrap_or_default();
        self.take(1, dump.exe.len() + dump.cwd.len() + dump.root.len());
        dump.args = self.strings(dir, "cmdline", "args", &mut dump.truncated);
        dump.env = self.strings(dir, "environ", "env", &mut dump.truncated);
    }

    fn tables(&mut self, dir: &ProcDir, dump: &mut ProcessDump) {
        let lines = |name| dir.text(name, MAX_LIST).unwrap_or_default();
        dump.limits = lines("limits").lines().filter_map(rlimit).collect();
        dump.cgroup = lines("cgroup").lines().filter_map(cgroup_entry).collect();
        self.take(64, 0);
        let numbers = ProcDir::open(dir, "fd").map(|fd| fd.numbers(MAX_FDS + 1));
        let numbers = numbers.unwrap_or_default();
        let files = numbers
            .iter()
            .take(MAX_FDS)
            .filter_map(|fd| open_file(dir, *fd));
        let cost = |file: &OpenFile| (4, file.path.len());
        dump.fdlist = self.within(files, cost, "fdlist", &mut dump.truncated);
        if numbers.len() > MAX_FDS {
            note(&mut dump.truncated, "fdlist");
        }
        let maps = lines("maps");
        if maps.len() as u64 >= MAX_LIST {
            note(&mut dump.truncated, "maps");
        }
        // The last line may have been cut.
        let whole = maps
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let cost = |map: &Mapping| (14, map.pathname.len());
        let maps = whole.filter_map(|line| mapping(line.trim_end_matches('\n')));
        dump.maps = self.within(maps, cost, "maps", &mut dump.truncated);
    }

    /// The strings of a file that ends each with a NUL.
    fn strings(
        &mut self,
        dir: &ProcDir,
        file: &str,
        part: &str,
        truncated: &mut Vec<String>,
    ) -> Vec<String> {
        let bytes = dir.read(file, MAX_LIST).unwrap_or_default();
        if bytes.len() as u64 >= MAX_LIST {
            note(truncated, part);
        }
        if bytes.is_empty() {
            return Vec::new();
        }
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        let strings = bytes.split(|byte| *byte == 0);
        let strings = strings.map(|bytes| escape(&String::from_utf8_lossy(bytes)));
        self.within(strings, |text| (1, text.len()), part, truncated)
    }

    /// As many as the bounds still allow.
    fn within<T>(
        &mut self,
        all: impl Iterator<Item = T>,
        cost: impl Fn(&T) -> (usize, usize),
        part: &str,
        truncated: &mut Vec<String>,
    ) -> Vec<T> {
        let mut kept = Vec::new();
        for one in all {
            let (values, bytes) = cost(&one);
            if !self.take(values, bytes) {
                note(truncated, part);
                break;
            }
            kept.push(one);
        }
        kept
    }

    fn take(&mut self, values: usize, bytes: usize) -> bool {
        let enough = values <= self.values && bytes <= self.bytes;
        if enough {
            self.values -= values;
            self.bytes -= bytes;
        }
        enough
    }
}

fn note(truncated: &mut Vec<String>, part: &str) {
    if !truncated.iter().any(|known| known == part) {
        truncated.push(part.to_owned());
    }
}

fn open_file(dir: &ProcDir, number: i32) -> Option<OpenFile> {
    let name = format!("fd/{number}");
    let path = dir.link(&name)?;
    // Whoever serves the file is not asked: it may be a process of the pod.
    let flags = AtFlags::STATX_DONT_SYNC;
    let found = statx(dir, &name, flags, StatxFlags::TYPE | StatxFlags::MODE);
    let mode = found.map_or(0, |found| found.stx_mode);
    Some(OpenFile { number, path, mode })
}

/// `Max open files            1024                 524288               files`
fn rlimit(line: &str) -> Option<(String, Rlimit)> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "RLIMIT_CPU"),
        ("Max file size", "RLIMIT_FSIZE"),
        ("Max data size", "RLIMIT_DATA"),
        ("Max stack size", "RLIMIT_STACK"),
        ("Max core file size", "RLIMIT_CORE"),
        ("Max resident set", "RLIMIT_RSS"),
        ("Max processes", "RLIMIT_NPROC"),
        ("Max open files", "RLIMIT_NOFILE"),
        ("Max locked memory", "RLIMIT_MEMLOCK"),
        ("Max address space", "RLIMIT_AS"),
        ("Max file locks", "RLIMIT_LOCKS"),
        ("Max pending signals", "RLIMIT_SIGPENDING"),
        ("Max msgqueue size", "RLIMIT_MSGQUEUE"),
        ("Max nice priority", "RLIMIT_NICE"),
        ("Max realtime priority", "RLIMIT_RTPRIO"),
        ("Max realtime timeout", "RLIMIT_RTTIME"),
    ];
    let (rest, name) = NAMES
        .iter()
        .find_map(|(words, name)| Some((line.strip_prefix(words)?, name)))?;
    let mut values = rest.split_ascii_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        value => value.parse().ok(),
    });
    let (cur, max) = (values.next()??, values.next()??);
    Some(((*name).to_owned(), Rlimit { cur, max }))
}

/// `4:memory:/kubepods/pod1/c1`
fn cgroup_entry(line: &str) -> Option<CgroupEntry> {
    let mut parts = line.splitn(3, ':');
    Some(CgroupEntry {
        hierarchy_id: parts.next()?.parse().ok()?,
        controllers: escape(parts.next()?),
        path: escape(parts.next()?),
    })
}

/// `7f00-7f10 r-xp 00001000 fe:00 1234    /lib/libc.so`
fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let allowed = words.next()?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = |text| u32::from_str_radix(text, 16).ok();
    Some(Mapping {
        address: AddressRange {
            start: hex(start)?,
            end: hex(end)?,
        },
        permissions: Permissions {
            read: allowed.contains('r'),
            write: allowed.contains('w'),
            execute: allowed.contains('x'),
        },
        private: if allowed.ends_with('p') { "p" } else { "s" }.to_owned(),
        offset,
        device_major: device(major)?,
        device_minor: device(minor)?,
        inode: words.next()?.parse().ok()?,
        pathname: words
            .next()
            .map_or_else(String::new, |path| escape(path.trim_start())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_tables_are_read() {
        let (name, limit) =
            rlimit("Max open files            1024                 unlimited            files")
                .unwrap();
        assert_eq!(
            (name.as_str(), limit.cur, limit.max),
            ("RLIMIT_NOFILE", 1024, u64::MAX)
        );
        let entry = cgroup_entry("4:cpu,cpuacct:/a:b").unwrap();
        assert_eq!((entry.hierarchy_id, entry.path.as_str()), (4, "/a:b"));
        let map = mapping("7f00-7f10 r-xs 00001000 fe:01 1234     /lib/a b (deleted)").unwrap();
        assert_eq!((map.address.start, map.address.end), (0x7f00, 0x7f10));
        assert_eq!(
            (map.device_major, map.device_minor, map.inode),
            (0xfe, 1, 1234)
        );
        assert_eq!(
            (map.private.as_str(), map.pathname.as_str()),
            ("s", "/lib/a b (deleted)")
        );
        assert!(map.permissions.execute && !map.permissions.write);
        assert_eq!(
            mapping("7f00-7f10 rw-p 00000000 00:00 0 ")
                .unwrap()
                .pathname,
            ""
        );
        assert!(mapping("7f00-7f10 rw-p").is_none());
    }

    #[test]
    fn what_is_over_the_bounds_is_left_out_and_named() {
        let ids = berm_plan::Ids::default();
        let proc = std::fs::File::open("/proc").unwrap();
        let mut dumper = Dumper {
            shares: HostShares::default(),
            proc: std::os::fd::AsFd::as_fd(&proc),
            ids: &ids,
            now: Now::read(),
            values: 2,
            bytes: 5,
        };
        let mut truncated = Vec::new();
        let words = ["abc", "defg", "h"].into_iter();
        let kept = dumper.within(words, |word| (1, word.len()), "args", &mut truncated);
        assert_eq!((kept, truncated), (vec!["abc"], vec!["args".to_owned()]));
    }
}
