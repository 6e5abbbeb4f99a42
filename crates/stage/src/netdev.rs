//! Moves network devices of the node into the network namespace of a pod.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_plan::NetDevice;
use berm_sys::Kind;
use berm_sys::process::{flags, setns};
use berm_sys::rtnetlink::{Address, Route};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{Error, sys};
use crate::join::warn;

/// A network namespace, and a conversation about it.
struct Side {
    route: Route,
    netns: OwnedFd,
}

impl Side {
    /// That of the caller.
    fn own(proc: BorrowedFd<'_>) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = "self/ns/net";
        let netns = openat(proc, path, flags, Mode::empty()).map_err(|source| Error::OpenProc {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            route: Route::open().map_err(sys("socket(AF_NETLINK, NETLINK_ROUTE)"))?,
            netns,
        })
    }
}

/// What a device loses on its way.
struct Kept {
    up: bool,
    addresses: Vec<Address>,
}

/// Moves the devices from the caller's network namespace into that of `pod`, which the caller is
/// in from then on. If one cannot be moved, those before it are moved back.
pub(crate) fn give(
    proc: BorrowedFd<'_>,
    pod: BorrowedFd<'_>,
    devices: &[NetDevice],
    report: BorrowedFd<'_>,
) -> Result<(), Error> {
    let node = Side::own(proc)?;
    setns(pod, flags::NEWNET).map_err(sys("setns(pod, CLONE_NEWNET)"))?;
    let pod = Side::own(proc)?;
    let mut begun: Vec<(&NetDevice, Kept)> = Vec::with_capacity(devices.len());
    for device in devices {
        let moved = look(&node, &pod, device).and_then(|(index, kept)| {
            let moved = give_one(&node, &pod, device, index, &kept);
            begun.push((device, kept));
            moved
        });
        let Err(error) = moved else { continue };
        for (device, kept) in begun.iter().rev() {
            if let Err(e) = take_back(&node, &pod, device, kept) {
                let name = &device.name;
                let text = format!("linux.netDevices[{name:?}]: not moved back: {e}");
                warn(report, text)?;
            }
        }
        return Err(error);
    }
    Ok(())
}

/// Finds a device on the node, and a place for it in the pod: its number and what it would lose.
fn look(node: &Side, pod: &Side, device: &NetDevice) -> Result<(i32, Kept), Error> {
    let failed = |e: io::Error| refused(device, LOOK, &e);
    let found = node.route.device(&device.name).map_err(failed)?;
    if pod.route.device(&device.inside).is_ok() {
        return Err(refused(device, MOVE, &Errno::EXIST.into()));
    }
    let mut addresses = node.route.addresses(found.index).map_err(failed)?;
    addresses.retain(Address::is_permanent);
    let kept = Kept {
        up: found.up,
        addresses,
    };
    Ok((found.index, kept))
}

fn give_one(
    node: &Side,
    pod: &Side,
    device: &NetDevice,
    index: i32,
    kept: &Kept,
) -> Result<(), Error> {
    let failed = |what: &'static str| move |e: io::Error| refused(device, what, &e);
    node.route
        .give(index, pod.netns.as_fd(), &device.inside)
        .map_err(failed(MOVE))?;
    let global = kept.addresses.iter().filter(|a| a.is_global());
    configure(&pod.route, &device.inside, global, true).map_err(failed("cannot be set up"))
}

/// Gives a device its addresses again, and sets it up.
fn configure<'a>(
    route: &Route,
    name: &str,
    addresses: impl Iterator<Item = &'a Address>,
    up: bool,
) -> io::Result<()> {
    let index = route.device(name)?.index;
    for address in addresses {
        match route.add_address(index, address) {
            // The kernel gives some by itself.
            Err(e) if is(&e, Errno::EXIST) => {}
            added => added?,
        }
    }
    if up { route.set_up(index) } else { Ok(()) }
}

fn take_back(node: &Side, pod: &Side, device: &NetDevice, kept: &Kept) -> io::Result<()> {
    let NetDevice { name, inside } = device;
    if node.route.device(name).is_ok() {
        return Ok(());
    }
    // It may have moved and not got its new name.
    let there = pod.route.device(inside).or_else(|_| pod.route.device(name));
    pod.route.give(there?.index, node.netns.as_fd(), name)?;
    configure(&node.route, name, kept.addresses.iter(), kept.up)
}

const LOOK: &str = "cannot be looked at";
const MOVE: &str = "cannot be moved";

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn refused(device: &NetDevice, what: &'static str, error: &io::Error) -> Error {
    let NetDevice { name, inside } = device;
    let (reason, kind) = match what {
        LOOK if is(error, Errno::NODEV) => (
            "the node's network namespace has no device of this name; name one that it has".into(),
            Kind::FailedPrecondition,
        ),
        MOVE if is(error, Errno::EXIST) => (
            format!("the pod has a network device {inside:?} already; give it another name"),
            Kind::FailedPrecondition,
        ),
        MOVE if is(error, Errno::INVAL) => (
            "the kernel does not move this device between network namespaces; leave it out".into(),
            Kind::NotSupported,
        ),
        _ => {
            let kind = error.raw_os_error().map_or(Kind::Internal, Kind::of_errno);
            (format!("{what}: {error}"), kind)
        }
    };
    Error::NetDevice {
        name: name.clone(),
        reason,
        kind,
    }
}
