//! Sysctls of the pod's own namespaces.
//!
//! Only what the kernel keeps per namespace may be set; everything else is the node's.

use crate::ids::Ids;
use crate::pod::{Namespace, Sysctl, SysctlWriter};
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};

/// Those of the IPC namespace (ipc_namespaces(7)); `fs/mqueue/` and `net/` are whole directories.
const IPC: [&str; 8] = [
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "shmall",
    "shmmax",
    "shmmni",
    "shm_rmid_forced",
];

const PING_GROUP_RANGE: &str = "net/ipv4/ping_group_range";
const LOW_PORTS: &str = "net/ipv4/ip_unprivileged_port_start";

/// Reads one entry of `linux.sysctl`.
pub(crate) fn parse(key: &str, value: &str) -> Result<Sysctl, Error> {
    let field = format!("linux.sysctl[{}]", quoted(key));
    no_nul(&field, value)?;
    let path = path(key);
    let odd = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if path.split('/').any(odd) {
        return Err(invalid(
            field,
            "no name of a sysctl",
            "name it as sysctl(8) does",
        ));
    }
    let writer = match path.split_once('/') {
        Some(("net", _)) => SysctlWriter::Host,
        Some(("kernel", name)) if IPC.contains(&name) => SysctlWriter::Pod,
        Some(("fs", name)) if name.starts_with("mqueue/") => SysctlWriter::Pod,
        Some(("kernel", "hostname" | "domainname")) => {
            return Err(invalid(
                field,
                "set by another field",
                "use hostname or domainname",
            ));
        }
        _ => {
            return Err(unsupported(
                field,
                "the kernel has one value of it for the whole node",
                "set it on the node, or drop it",
            ));
        }
    };
    Ok(Sysctl {
        path,
        value: value.to_owned(),
        writer,
    })
}

/// Refuses those of a namespace that the pod shares with the host, as runc does.
pub(crate) fn refuse_shared(
    sysctls: &[Sysctl],
    netns: &Namespace,
    ipcns: &Namespace,
) -> Result<(), Error> {
    let shared = |s: &&Sysctl| match s.writer {
        SysctlWriter::Host => *netns == Namespace::Host,
        SysctlWriter::Pod => *ipcns == Namespace::Host,
    };
    match sysctls.iter().find(shared) {
        None => Ok(()),
        Some(sysctl) => Err(unsupported(
            format!("linux.sysctl[{}]", quoted(&sysctl.path)),
            "the pod shares this namespace with the host, whose value it would change",
            "set it on the node, or drop it",
        )),
    }
}

/// The path below `/proc/sys`: as in sysctl(8), the first separator says which one is meant, so
/// that `net/ipv4/conf/eth0.100/forwarding` and `net.ipv4.conf.eth0/100.forwarding` are the same.
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('.') => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            key.chars().map(swap).collect()
        }
        _ => key.to_owned(),
    }
}

/// What makes up for capabilities that are dead in the network namespace of another owner: low
/// ports and ping sockets for everyone in the pod. What the spec sets itself is left alone.
pub(crate) fn open_low_ports_and_ping(sysctls: &mut Vec<Sysctl>) {
    for (path, value) in [(LOW_PORTS, "0"), (PING_GROUP_RANGE, "0 2147483647")] {
        if !sysctls.iter().any(|s| s.path == path) {
            let (path, value) = (path.to_owned(), value.to_owned());
            sysctls.push(Sysctl {
                path,
                value,
                writer: SysctlWriter::Host,
            });
        }
    }
}

impl Sysctl {
    /// The value as its writer writes it.
    ///
    /// `ping_group_range` holds group ids, which the kernel reads in the writer's user namespace:
    /// the host writes the pod's range as host ids (`ipv4_ping_group_range` in
    /// net/ipv4/sysctl_net_ipv4.c). What lies outside the pod's map is cut off.
    pub fn value_for(&self, ids: &Ids) -> String {
        let host = self.writer == SysctlWriter::Host;
        let range = if host && self.path == PING_GROUP_RANGE {
            ping_range(&self.value, ids)
        } else {
            None
        };
        range.map_or_else(
            || self.value.clone(),
            |(first, last)| format!("{first} {last}"),
        )
    }
}

fn ping_range(value: &str, ids: &Ids) -> Option<(u32, u32)> {
    let (first, last) = value.trim().split_once(char::is_whitespace)?;
    let (first, last): (u32, u32) = (first.parse().ok()?, last.trim().parse().ok()?);
    // "1 0" is the kernel's way to say "nobody".
    if first > last {
        return None;
    }
    // One range is all that the kernel takes: the part of the extent in which it begins.
    ids.gids.0.iter().filter(|e| e.count > 0).find_map(|e| {
        let start = first.max(e.inside);
        let end = last.min(e.inside.saturating_add(e.count - 1));
        (start <= end).then(|| (e.outside + (start - e.inside), e.outside + (end - e.inside)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Extent, IdMap};

    #[test]
    fn a_sysctl_goes_to_the_writer_that_the_kernel_asks_for() {
        let cases = [
            (
                "net.ipv4.ip_forward",
                "net/ipv4/ip_forward",
                SysctlWriter::Host,
            ),
            (
                "net/ipv4/conf/eth0.100/forwarding",
                "net/ipv4/conf/eth0.100/forwarding",
                SysctlWriter::Host,
            ),
            (
                "net.ipv4.conf.eth0/100.forwarding",
                "net/ipv4/conf/eth0.100/forwarding",
                SysctlWriter::Host,
            ),
            (
                "kernel.shm_rmid_forced",
                "kernel/shm_rmid_forced",
                SysctlWriter::Pod,
            ),
            ("kernel.sem", "kernel/sem", SysctlWriter::Pod),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max", SysctlWriter::Pod),
        ];
        for (key, path, writer) in cases {
            let got = parse(key, "1").unwrap();
            assert_eq!((got.path.as_str(), got.writer), (path, writer), "{key}");
        }
    }

    #[test]
    fn a_sysctl_of_the_node_or_without_a_name_is_refused() {
        let cases = [
            ("vm.max_map_count", "whole node"),
            ("kernel.panic", "whole node"),
            ("kernel.shmall.x", "whole node"),
            ("fs.file-max", "whole node"),
            ("net", "whole node"),
            ("user.max_user_namespaces", "whole node"),
            ("kernel.hostname", "use hostname"),
            ("net.ipv4..x", "no name"),
            ("net/../vm/overcommit_memory", "no name"),
            ("net.//.x", "no name"),
            ("", "no name"),
        ];
        for (key, want) in cases {
            let error = parse(key, "1").unwrap_err().to_string();
            assert!(
                error.starts_with("linux.sysctl[\"") && error.contains(want),
                "{key}: {error}"
            );
        }
        assert!(
            parse("net.x", "1\0")
                .unwrap_err()
                .to_string()
                .contains("NUL")
        );
    }

    #[test]
    fn a_ping_range_is_written_in_the_hosts_ids() {
        let extent = Extent {
            inside: 0,
            outside: 1_000_000,
            count: 65_536,
        };
        let ids = Ids {
            uids: IdMap(vec![extent]),
            gids: IdMap(vec![extent]),
        };
        let cases = [
            ("0 2147483647", "1000000 1065535"),
            ("5\t10", "1000005 1000010"),
            ("1 0", "1 0"),
            ("70000 80000", "70000 80000"),
            ("x", "x"),
        ];
        for (value, want) in cases {
            assert_eq!(
                parse("net.ipv4.ping_group_range", value)
                    .unwrap()
                    .value_for(&ids),
                want
            );
        }
        let plain = parse("net.ipv4.ping_group_range", "0 9").unwrap();
        assert_eq!(plain.value_for(&Ids::default()), "0 9");
    }

    #[test]
    fn low_ports_and_ping_do_not_override_the_spec() {
        let mut sysctls = vec![parse("net.ipv4.ip_unprivileged_port_start", "80").unwrap()];
        open_low_ports_and_ping(&mut sysctls);
        let got: Vec<_> = sysctls
            .iter()
            .map(|s| (s.path.as_str(), s.value.as_str()))
            .collect();
        assert_eq!(got, [(LOW_PORTS, "80"), (PING_GROUP_RANGE, "0 2147483647")]);
    }
}
