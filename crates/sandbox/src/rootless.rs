//! Sandboxes without root.
//!
//! An ordinary user is root in a user namespace of its own, over the ids that the host lends it in
//! `/etc/subuid` and `/etc/subgid`: [`enter`] moves the caller there. Every sandbox that it makes
//! then has a user namespace below that one, with the same numbers, so that its mounts are locked
//! and it has no power over the caller; nothing has to be idmapped.
//!
//! What needs root of the host is refused by its field: limits (there are no cgroups, and with
//! them no figures, no pause, no OOM events), a PID namespace that containers share (only a cgroup
//! could end what they leave there), device nodes other than the host's own. What the kernel refuses
//! to whoever is not root of the host fails with its errno: file systems on block devices, `/sys` in
//! the host's network namespace.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use berm_plan::{Extent, IdMap, Ids};
use rustix::process::{getegid, geteuid};

use crate::error::{Error, io};

/// How long newuidmap(1) and newgidmap(1) may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The map of the host's own user namespace: every id (user_namespaces(7)).
const ALL_IDS: u32 = u32::MAX;

/// True if the caller is not root, here or in a user namespace: it makes sandboxes only after
/// [`enter`].
pub fn is_needed() -> bool {
    !geteuid().is_root()
}

/// Moves the calling process, which has one thread, into a user namespace in which it is root and
/// has the ids that the host lends its user, and a mount namespace that belongs to it; then starts
/// its program anew there, with the same arguments and one more variable in its environment: call
/// it first of all.
///
/// Anew, because whom the kernel lets look into a process is decided when its program starts: as
/// it was, what it forks would be a stranger to it. gVisor's counterpart, `ConfigureCmdForRootless`,
/// makes a child wait for its ids; here the child is the one that maps them.
///
/// After an error the caller should end: it may be in a namespace that maps no ids.
/// # Errors
/// [`Error::NoSubordinateIds`] where the host lends the user none; the stage's error where
/// newuidmap(1) is missing, or refuses a range, or where the kernel lets nobody but root make user
/// namespaces; the errno of execve(2).
pub fn enter(variable: (&str, &OsStr)) -> Result<Infallible, Error> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let ids = Ids {
        uids: lent("/etc/subuid", uid, uid)?,
        gids: lent("/etc/subgid", uid, gid)?,
    };
    berm_stage::enter_user_namespace(&ids, DEADLINE)?.map_err(Error::Step)?;
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let failed = Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .env(variable.0, variable.1)
        .exec();
    Err(io("execve(\"/proc/self/exe\")")(failed))
}

/// Where an ordinary user's sandboxes have their records: `$XDG_RUNTIME_DIR/berm`, or without one
/// `$XDG_STATE_HOME/berm` or `~/.local/state/berm`; `None` if there is no such variable.
pub fn state_dir() -> Option<PathBuf> {
    let dir = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.filter(|path| path.is_absolute())
    };
    let home = || Some(dir("HOME")?.join(".local/state"));
    let parent = dir("XDG_RUNTIME_DIR").or_else(|| dir("XDG_STATE_HOME"));
    Some(parent.or_else(home)?.join("berm"))
}

/// The user's own id as 0, and then what `file` lends it.
fn lent(file: &'static str, uid: u32, own: u32) -> Result<IdMap, Error> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let name = user_name(uid);
    let mut map = vec![Extent {
        inside: 0,
        outside: own,
        count: 1,
    }];
    for (first, count) in ranges_of(&text, uid, name.as_deref()) {
        let inside = map.last().map_or(0, |e| e.inside + e.count);
        map.push(Extent {
            inside,
            outside: first,
            count,
        });
    }
    if map.len() == 1 {
        let user = name.unwrap_or_else(|| uid.to_string());
        return Err(Error::NoSubordinateIds { file, user });
    }
    Ok(IdMap(map))
}

/// The ranges of the lines `user:first:count` (subuid(5)) of a user, by its name or number. Ids
/// that would not fit into a map are left out.
fn ranges_of(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let mut left = ALL_IDS - 1;
    let range = |line: &str| {
        let mut fields = line.split(':').map(str::trim);
        let user = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let whole = count > 0 && u32::checked_add(first, count).is_some();
        (whole && (user == number || Some(user) == name)).then_some((first, count))
    };
    let fits = |(_, count): &(u32, u32)| match left.checked_sub(*count) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    text.lines().filter_map(range).filter(fits).collect()
}

/// The user's name by `/etc/passwd`; users that only a directory service knows have their lines
/// by number.
fn user_name(uid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        (number == uid).then(|| name.to_owned())
    };
    text.lines().find_map(of)
}

/// The ids of a caller that is in a user namespace itself.
#[derive(Debug)]
pub(crate) struct Nested {
    /// Each with its own number: the map of every pod below.
    pub(crate) ids: Ids,
    /// With the number that it has outside.
    pub(crate) outside: Ids,
}

impl Nested {
    /// `None` in the host's user namespace, which has every id.
    pub(crate) fn detect() -> Result<Option<Self>, Error> {
        let read = |path| fs::read_to_string(path).map_err(io("read(/proc/self/uid_map)"));
        let outside = Ids {
            uids: parse(&read("/proc/self/uid_map")?),
            gids: parse(&read("/proc/self/gid_map")?),
        };
        let all = |map: &IdMap| matches!(&map.0[..], [only] if only.count == ALL_IDS);
        if all(&outside.uids) && all(&outside.gids) {
            return Ok(None);
        }
        let ids = Ids {
            uids: identity(&outside.uids),
            gids: identity(&outside.gids),
        };
        Ok(Some(Self { ids, outside }))
    }
}

/// A map as the kernel shows it (user_namespaces(7)).
fn parse(text: &str) -> IdMap {
    let extent = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some(Extent {
            inside: numbers.next()??,
            outside: numbers.next()??,
            count: numbers.next()??,
        })
    };
    IdMap(text.lines().filter_map(extent).collect())
}

/// Every id of a map, with the number that it has inside.
fn identity(map: &IdMap) -> IdMap {
    let extent = |e: &Extent| Extent {
        outside: e.inside,
        ..*e
    };
    IdMap(map.0.iter().map(extent).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_ranges_are_found_by_its_name_and_its_number() {
        let text = "ann:100000:65536\nbob:200000:10\n1000:300000:5\n\nann:x:1\nann:7:0\n\
                    ann:4294967295:2\n";
        assert_eq!(
            ranges_of(text, 1000, Some("ann")),
            [(100_000, 65_536), (300_000, 5)]
        );
        assert_eq!(ranges_of(text, 7, Some("eve")), []);
        assert_eq!(ranges_of(text, 1000, None), [(300_000, 5)]);
    }

    #[test]
    fn what_no_map_could_hold_is_left_out() {
        let text = "a:1:4294967290\na:9:100\na:9:3\n";
        assert_eq!(ranges_of(text, 5, Some("a")), [(1, 4_294_967_290), (9, 3)]);
    }

    #[test]
    fn every_id_of_the_callers_namespace_has_its_own_number() {
        let map = parse("         0       1000          1\n         1     100000      65536\n");
        let extent = |inside, outside, count| Extent {
            inside,
            outside,
            count,
        };
        let own = [extent(0, 1000, 1), extent(1, 100_000, 65_536)];
        assert_eq!(map, IdMap(own.to_vec()));
        let same = [extent(0, 0, 1), extent(1, 1, 65_536)];
        assert_eq!(identity(&map), IdMap(same.to_vec()));
    }
}
