//! `/dev`: nodes and links, as runc makes them.

use std::path::{Path, PathBuf};

use berm_cgroup::DeviceRule;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxResources};

use crate::ids::Ids;
use crate::mounts::Mounts;
use crate::paths::clean;
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::resources::device_number;
use crate::step::{Device, DeviceKind, Source};

/// Name, major and minor number of what every container has.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/core", "/proc/kcore"),
];

/// The nodes to make: the defaults, then the spec's. None, and no links, if `/dev` is a bind mount.
pub(crate) fn nodes(
    spec: &[LinuxDevice],
    mounts: &Mounts,
    ids: &Ids,
) -> Result<Option<Vec<Device>>, Error> {
    let wanted = spec
        .iter()
        .enumerate()
        .map(|(index, device)| node(index, device, ids));
    let wanted: Vec<_> = wanted.collect::<Result<_, _>>()?;
    if let Some(Source::Bind { path, .. }) = mounts.at("/dev").map(|m| &m.source) {
        // The host's own /dev has the nodes already; in another one Berm makes none, as runc.
        let there = |d: &Device| path == Path::new("/dev") && d.path.starts_with("/dev");
        return match wanted.iter().position(|d| !there(d)) {
            None => Ok(None),
            Some(index) => Err(unsupported(
                format!("linux.devices[{index}]"),
                "/dev is a bind mount, in which no nodes are made",
                "drop the device, or the mount",
            )),
        };
    }
    let default = |&(path, major, minor): &(&str, u32, u32)| Device {
        path: path.into(),
        kind: DeviceKind::Char,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut nodes: Vec<Device> = DEFAULT.iter().map(default).collect();
    nodes.retain(|d| !wanted.iter().any(|w| w.path == d.path));
    nodes.extend(wanted);
    Ok(Some(nodes))
}

/// True for rules that allow every device of the node, as those of a privileged container do.
pub(crate) fn allow_every(resources: &LinuxResources) -> bool {
    let rules = resources.devices().as_deref().unwrap_or_default();
    rules.iter().any(|rule| {
        let all = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
        let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
        rule.allow() && all && any(rule.major()) && any(rule.minor())
    })
}

/// Those that everybody may use: what is left of the node's devices to a privileged container in
/// a user namespace. Berm's nodes belong to root of the pod, who must not have the node's disks;
/// with runc they belong to the host's root, so that only these can be opened.
pub(crate) fn open_to_all(spec: &[LinuxDevice]) -> Vec<LinuxDevice> {
    let open = |device: &&LinuxDevice| device.file_mode().is_some_and(|mode| mode & 0o6 == 0o6);
    spec.iter().filter(open).cloned().collect()
}

/// The links of `/dev`.
pub(crate) fn links() -> Vec<(PathBuf, PathBuf)> {
    LINKS
        .iter()
        .map(|(path, to)| (path.into(), to.into()))
        .collect()
}

/// What every container may use, without those that the spec replaces by a device of its own.
pub(crate) fn default_rules(spec: &[LinuxDevice]) -> Vec<DeviceRule> {
    let replaced = |rule: &DeviceRule| {
        let is_it = |path, major, minor| {
            rule.major == Some(major)
                && rule.minor == Some(minor)
                && spec.iter().any(|d| clean(d.path()) == Path::new(path))
        };
        DEFAULT
            .iter()
            .any(|&(path, major, minor)| is_it(path, major, minor))
    };
    DeviceRule::defaults()
        .into_iter()
        .filter(|rule| !replaced(rule))
        .collect()
}

fn node(index: usize, device: &LinuxDevice, ids: &Ids) -> Result<Device, Error> {
    let field = format!("linux.devices[{index}]");
    let path = device.path().to_string_lossy();
    no_nul(&field, &path)?;
    if !device.path().is_absolute() || clean(device.path()) == Path::new("/") {
        let reason = format!("{} is no absolute path of a node", quoted(&path));
        return Err(invalid(
            format!("{field}.path"),
            reason,
            "use a path below /dev",
        ));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            return Err(invalid(
                format!("{field}.type"),
                "\"a\" is no node",
                "use c, u, b or p",
            ));
        }
    };
    let (major, minor) = match kind {
        DeviceKind::Fifo => (0, 0),
        _ => (
            device_number(&field, device.major())?,
            device_number(&field, device.minor())?,
        ),
    };
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    if ids.uids.to_host(uid).is_none() || ids.gids.to_host(gid).is_none() {
        let reason = format!("owner {uid}:{gid} is outside the id map of the pod");
        return Err(unsupported(
            field,
            reason,
            "give it an owner that the pod has",
        ));
    }
    // File type bits may be there (runc masks them likewise).
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    Ok(Device {
        path: clean(device.path()),
        kind,
        major,
        minor,
        mode,
        uid,
        gid,
    })
}
