//! `linux.netDevices`: network devices of the node that move into the network namespace of a pod.

use std::collections::BTreeMap;

use oci_spec::runtime::Linux;

use crate::refusal::{Error, invalid, quoted, unsupported};
use crate::step::NetDevice;

/// Longest name of a network device (`IFNAMSIZ` without its NUL byte).
const MAX_NAME: usize = 15;

/// Reads them, in the order of their names because the spec's map has none; `shared`: the network
/// namespace is the host's.
pub(crate) fn parse(linux: Option<&Linux>, shared: bool) -> Result<Vec<NetDevice>, Error> {
    let map = linux.and_then(|l| l.net_devices().as_ref());
    let given: BTreeMap<_, _> = map.into_iter().flatten().collect();
    if shared && !given.is_empty() {
        return Err(unsupported(
            "linux.netDevices",
            "the network namespace is the host's, where the devices are already",
            "add a namespace of type \"network\", or drop them",
        ));
    }
    let mut taken = BTreeMap::new();
    let mut devices = Vec::with_capacity(given.len());
    for (name, device) in given {
        let field = format!("linux.netDevices[{}]", quoted(name));
        valid(&field, name)?;
        let inside = device.name().as_ref().filter(|name| !name.is_empty());
        let inside = inside.unwrap_or(name);
        valid(&format!("{field}.name"), inside)?;
        if let Some(other) = taken.insert(inside, name) {
            let reason = format!("{} gets the name {} too", quoted(other), quoted(inside));
            return Err(invalid(field, reason, "give each a name of its own"));
        }
        devices.push(NetDevice {
            name: name.clone(),
            inside: inside.clone(),
        });
    }
    Ok(devices)
}

/// The kernel's `dev_valid_name`; and `%`, where it would pick a number by itself.
fn valid(field: &str, name: &str) -> Result<(), Error> {
    let wrong = |c: u8| matches!(c, b'/' | b':' | b'%' | 0 | b'\t'..=b'\r' | b' ' | 0xa0);
    if name.is_empty()
        || name.len() > MAX_NAME
        || matches!(name, "." | "..")
        || name.bytes().any(wrong)
    {
        let reason = format!("{} is no name of a network device", quoted(name));
        let way_out = "use 1 to 15 bytes without blanks and without / : %";
        return Err(invalid(field, reason, way_out));
    }
    Ok(())
}
