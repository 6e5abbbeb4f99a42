//! The answer to `-info`: name, version, and the features that CRI and containerd look at.
//!
//! Nothing is probed: containerd asks before each Create of a container with idmapped volumes.
//! What stands here is what this version does on a kernel that `berm check` accepts.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use serde_json::{Value, json};

use crate::error::Error;
use crate::{REVISION, RUNTIME, VERSION};

const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The options of `mounts[]` that are applied.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];
const ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The whole answer, as protobuf.
/// # Errors
/// `Internal` if protobuf fails.
pub(crate) fn encode() -> Result<Vec<u8>, Error> {
    let features = Any {
        type_url: FEATURES.into(),
        value: features().to_string().into_bytes(),
        ..Any::default()
    };
    RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.into(),
            revision: REVISION.into(),
            ..RuntimeVersion::default()
        }),
        features: MessageField::some(features),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
    .map_err(|source| Error::Encode {
        what: "RuntimeInfo",
        source,
    })
}

/// `features.md` of the OCI runtime spec. `linux` must be there: containerd reads it unchecked.
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": [],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": { "enabled": true, "actions": ACTIONS, "operators": OPERATORS },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_what_cri_and_containerd_look_for() {
        let info = RuntimeInfo::parse_from_bytes(&encode().unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.berm.v1");
        assert_eq!(info.version.version, VERSION);
        assert_eq!(info.features.type_url, FEATURES);
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
        let has = |list: &Value, word: &str| list.as_array().unwrap().contains(&word.into());
        assert!(has(&features["linux"]["namespaces"], "user"));
        // Without it CRI refuses recursive read-only volumes.
        assert!(has(&features["mountOptions"], "rro"));
    }

    #[test]
    fn lists_are_sorted_and_without_doubles() {
        for list in [MOUNT_OPTIONS, &NAMESPACES, &ACTIONS, &OPERATORS] {
            assert!(list.windows(2).all(|pair| pair[0] < pair[1]), "{list:?}");
        }
    }
}
