//! The five capability sets, and which capabilities the kernel honours in a pod.

use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use crate::refusal::{Error, invalid, unsupported};
use crate::step::CapSets;

/// Names in the kernel's order (include/uapi/linux/capability.h); the last one is number 40.
pub(crate) const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The kernel asks for these with `capable()`, so in no user namespace but the first they work.
/// Left out: those that do something in a pod as well (SYS_NICE, SYS_BOOT, CHECKPOINT_RESTORE).
const DEAD: u64 = mask(&[
    "LINUX_IMMUTABLE",
    "IPC_LOCK",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_PACCT",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
]);

/// Dead as well where the network namespace belongs to another user namespace.
const DEAD_NET: u64 = mask(&["NET_BROADCAST", "NET_ADMIN", "NET_RAW"]);

/// What every container has unless it says otherwise (containerd's `defaultUnixCaps`): nobody
/// asked for these, so a dead one among them is no reason to refuse.
const DEFAULT: u64 = mask(&[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]);

/// With it, root of the pod could raise limits that hold for the pod, such as
/// `max_user_namespaces` (measured).
const SYS_RESOURCE: u64 = mask(&["SYS_RESOURCE"]);

/// What the pod is, as far as capabilities go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Powers {
    /// The pod has a user namespace of its own.
    pub(crate) userns: bool,
    /// Its network namespace belongs to that one.
    pub(crate) owns_netns: bool,
    /// Run it all the same.
    pub(crate) allow_dead: bool,
}

/// Reads `process.capabilities`.
pub(crate) fn sets(capabilities: &LinuxCapabilities, powers: Powers) -> Result<CapSets, Error> {
    let bits = |set: &Option<Capabilities>| set.as_ref().map_or(0, bits);
    let mut sets = CapSets {
        bounding: bits(capabilities.bounding()),
        effective: bits(capabilities.effective()),
        permitted: bits(capabilities.permitted()),
        inheritable: bits(capabilities.inheritable()),
        ambient: bits(capabilities.ambient()),
    };
    within("effective", sets.effective, "permitted", sets.permitted)?;
    within("inheritable", sets.inheritable, "bounding", sets.bounding)?;
    refuse_dead(&sets, powers)?;
    if powers.userns {
        let all = [
            &mut sets.bounding,
            &mut sets.effective,
            &mut sets.permitted,
            &mut sets.inheritable,
            &mut sets.ambient,
        ];
        all.into_iter().for_each(|set| *set &= !SYS_RESOURCE);
    }
    // The kernel raises in the ambient set only what is permitted and inheritable; runc warns and
    // runs the process without the others.
    sets.ambient &= sets.permitted & sets.inheritable;
    Ok(sets)
}

/// capset(2) would fail with a bare EPERM.
fn within(name: &str, set: u64, outer_name: &str, outer: u64) -> Result<(), Error> {
    match set & !outer {
        0 => Ok(()),
        beyond => Err(invalid(
            format!("process.capabilities.{name}"),
            format!("{} not in {outer_name}", listed(beyond)),
            format!("add it to {outer_name}, or drop it here"),
        )),
    }
}

/// What the kernel ignores in a pod with a user namespace.
pub(crate) const fn dead(owns_netns: bool) -> u64 {
    if owns_netns { DEAD } else { DEAD | DEAD_NET }
}

fn refuse_dead(sets: &CapSets, powers: Powers) -> Result<(), Error> {
    if !powers.userns || powers.allow_dead {
        return Ok(());
    }
    let dead = dead(powers.owns_netns);
    let asked = sets.bounding | sets.effective | sets.permitted | sets.inheritable | sets.ambient;
    let refused = asked & dead & !DEFAULT;
    if refused == 0 {
        return Ok(());
    }
    let way_out = if refused & DEAD == 0 {
        "set hostUsers: false, drop it, or configure dead_capabilities = \"warn\""
    } else {
        "drop it, or configure dead_capabilities = \"warn\""
    };
    Err(unsupported(
        "process.capabilities",
        format!(
            "{} without effect in the pod's user namespace",
            listed(refused)
        ),
        way_out,
    ))
}

/// "CAP_A, CAP_B and 3 more are", for the texts of refusals.
fn listed(set: u64) -> String {
    let names: Vec<_> = (0..NAMES.len()).filter(|n| set & (1 << n) != 0).collect();
    let shown: Vec<_> = names
        .iter()
        .take(3)
        .map(|&n| format!("CAP_{}", NAMES[n]))
        .collect();
    let rest = match names.len().saturating_sub(3) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{}{rest} {verb}", shown.join(", "))
}

pub(crate) fn bits(set: &Capabilities) -> u64 {
    // `Display` of the OCI type is the kernel's name without CAP_.
    let bit = |name: String| NAMES.iter().position(|n| *n == name).map_or(0, |n| 1 << n);
    set.iter()
        .fold(0, |bits, capability| bits | bit(capability.to_string()))
}

const fn mask(names: &[&str]) -> u64 {
    let mut bits = 0;
    let mut i = 0;
    while i < names.len() {
        let mut n = 0;
        while !equal(names[i].as_bytes(), NAMES[n].as_bytes()) {
            n += 1;
        }
        bits |= 1 << n;
        i += 1;
    }
    bits
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut same = a.len() == b.len();
    let mut i = 0;
    while same && i < a.len() {
        same = a[i] == b[i];
        i += 1;
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: Powers = Powers {
        userns: true,
        owns_netns: false,
        allow_dead: false,
    };
    const OWNER: Powers = Powers {
        owns_netns: true,
        ..AUTO
    };
    const WARN: Powers = Powers {
        allow_dead: true,
        ..AUTO
    };
    const HOST: Powers = Powers {
        userns: false,
        ..AUTO
    };

    fn all(names: &[&str]) -> LinuxCapabilities {
        let json = serde_json::json!({"bounding": names, "effective": names, "permitted": names});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn every_name_of_the_oci_type_has_the_kernels_number() {
        for (number, name) in NAMES.iter().enumerate() {
            let got = sets(&all(&[&format!("CAP_{name}")]), HOST).unwrap();
            assert_eq!(got.bounding, 1 << number, "{name}");
        }
        assert_eq!(NAMES.len() - 1, 40);
        assert_eq!(
            sets(&all(&["CAP_NET_ADMIN"]), HOST).unwrap().bounding,
            1 << 12
        );
    }

    #[test]
    fn a_capability_that_the_kernel_ignores_is_refused_unless_nobody_asked_for_it() {
        let runs = [
            ("CAP_NET_RAW", AUTO),
            ("CAP_MKNOD", AUTO),
            ("CAP_AUDIT_WRITE", AUTO),
            ("CAP_SYS_ADMIN", AUTO),
            ("CAP_SYS_PTRACE", AUTO),
            ("CAP_NET_ADMIN", OWNER),
            ("CAP_NET_ADMIN", WARN),
            ("CAP_SYS_TIME", WARN),
            ("CAP_SYS_TIME", HOST),
        ];
        for (name, powers) in runs {
            sets(&all(&[name]), powers).unwrap_or_else(|e| panic!("{name} {powers:?}: {e}"));
        }
        let refused = [
            ("CAP_NET_ADMIN", AUTO, "hostUsers: false"),
            ("CAP_NET_BROADCAST", AUTO, "hostUsers: false"),
            ("CAP_SYS_TIME", AUTO, "; drop it"),
            ("CAP_SYS_TIME", OWNER, "; drop it"),
            ("CAP_SYS_RESOURCE", OWNER, "; drop it"),
            ("CAP_SYS_MODULE", AUTO, "; drop it"),
            ("CAP_SYSLOG", AUTO, "; drop it"),
            ("CAP_BPF", AUTO, "; drop it"),
            ("CAP_IPC_LOCK", AUTO, "; drop it"),
        ];
        for (name, powers, way_out) in refused {
            let error = sets(&all(&[name]), powers).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), berm_sys::Kind::NotSupported);
            assert!(
                text.starts_with("process.capabilities: ") && text.contains(name),
                "{text}"
            );
            assert!(text.contains(way_out) && text.len() <= 200, "{text}");
        }
        let every: Vec<_> = NAMES.iter().map(|n| format!("CAP_{n}")).collect();
        let every: Vec<_> = every.iter().map(String::as_str).collect();
        let text = sets(&all(&every), AUTO).unwrap_err().to_string();
        assert!(
            text.contains("CAP_LINUX_IMMUTABLE, CAP_NET_BROADCAST, CAP_NET_ADMIN and "),
            "{text}"
        );
    }

    #[test]
    fn sys_resource_is_in_no_set_of_a_pod_with_a_user_namespace() {
        let names = ["CAP_CHOWN", "CAP_SYS_RESOURCE"];
        let json = serde_json::json!({"bounding": names, "effective": names, "permitted": names,
            "inheritable": names, "ambient": names});
        let capabilities = serde_json::from_value(json).unwrap();
        let one = |bits| CapSets {
            bounding: bits,
            effective: bits,
            permitted: bits,
            inheritable: bits,
            ambient: bits,
        };
        assert_eq!(sets(&capabilities, WARN).unwrap(), one(1));
        assert_eq!(sets(&capabilities, HOST).unwrap(), one(1 | SYS_RESOURCE));
    }

    #[test]
    fn sets_that_the_kernel_would_refuse_are_refused_and_ambient_is_cut() {
        let parse = |json| sets(&serde_json::from_value(json).unwrap(), AUTO);
        let error = parse(serde_json::json!({"effective": ["CAP_CHOWN"]}))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("process.capabilities.effective: CAP_CHOWN is not in permitted"),
            "{error}"
        );
        let error =
            parse(serde_json::json!({"inheritable": ["CAP_CHOWN", "CAP_KILL"]})).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("inheritable: CAP_CHOWN, CAP_KILL are not in bounding"),
            "{error}"
        );
        let cut = parse(serde_json::json!({"permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]}));
        assert_eq!(cut.unwrap().ambient, 0);
    }
}
