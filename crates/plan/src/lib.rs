//! OCI spec + facts of the host → a plan, or a refusal that names field, reason and way out.
//!
//! Pure: no file descriptor, no I/O. The only room that knows the OCI runtime spec; everything
//! below it sees [`Step`]s, whose order is data. It trusts containerd that the spec is meant, and
//! nothing else: documents are bounded, unknown keys are refused, texts in errors are escaped.
//!
//! ```
//! use berm_plan::{Namespace, PodFacts, Policy, Spec, TaskKind, UserNs, pod};
//!
//! let spec = Spec::parse(br#"{"ociVersion": "1.3.0", "linux": {"namespaces": [
//!     {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
//! ]}}"#)?;
//! assert_eq!(spec.kind(), &TaskKind::Root);
//! let plan = pod(&spec, &Policy::default(), &PodFacts::default())?;
//! assert_eq!((plan.userns, plan.netns), (UserNs::Auto, Namespace::New));
//!
//! let error = Spec::parse(br#"{"linux": {"netDevice": {}}}"#).unwrap_err();
//! assert!(error.to_string().starts_with("linux.netDevice: not known to Berm"));
//! # Ok::<(), berm_plan::Error>(())
//! ```
#![forbid(unsafe_code)]

mod annotations;
mod asked;
mod attributes;
mod caps;
mod container;
mod decode;
mod devices;
mod exec;
mod extra_ids;
mod hints;
mod hooks;
mod idmap;
mod ids;
mod mount;
mod mounts;
mod namespaces;
mod netdevices;
mod options;
mod paths;
mod pod;
mod process;
mod refusal;
mod resources;
mod rlimit;
mod rootfs;
mod seccomp;
mod source;
mod spec;
mod step;
mod sysctl;
mod unbuilt;
mod upper;

pub use asked::{capability_names, dead_capabilities};
pub use attributes::Attributes;
pub use berm_seccomp::{Survey, syscall_name};
pub use container::{
    ContainerFacts, ContainerPlan, ExecBase, ExecPlan, HostShares, PidNs, PodNamespaces, container,
};
pub use exec::exec;
pub use hints::{HintType, HintedMount, MountHint, MountHints, Share};
pub use hooks::{Hook, Hooks, OciState, StartHook};
pub use ids::{Extent, IdMap, Ids};
pub use mount::{MountAsked, mount};
pub use pod::{HostUsers, Namespace, PodFacts, PodPlan, Policy, Sysctl, SysctlWriter, UserNs, pod};
pub use refusal::Error;
pub use resources::resources;
pub use rootfs::{RootfsMount, rootfs};
pub use seccomp::Listener;
pub use spec::{Spec, TaskKind};
pub use step::{
    Atime, Attr, CapSets, CgroupNs, CgroupView, Clock, Device, DeviceFs, DeviceKind, Idmap, Image,
    Label, Lsm, MemoryPolicy, Mount, NetDevice, PodTmpfs, Propagate, Propagation, Recursive,
    Rlimit, Rootfs, Scheduling, Source, Step, TimeOffset, UpperFs,
};
pub use upper::{BadUpper, Medium, RootfsUpper, UpperFile};
