//! The `linux.seccomp` object of the OCI runtime specification in plain types.
use serde::{Deserialize, Serialize};

use crate::Arch;

/// Which system calls a process may make, and what happens at the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What happens where no rule matches (`defaultAction` with `defaultErrnoRet`).
    pub default: Action,
    /// ABIs that the rules hold for; the native one is implied.
    #[serde(default)]
    pub architectures: Vec<Arch>,
    /// The rules; see [`compile`](crate::compile) for what several on one system call mean.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// How the program is to be installed.
    #[serde(default)]
    pub flags: Flags,
}

/// One action for some system calls, perhaps only where arguments match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names of system calls. Unknown ones are skipped, because profiles name calls that newer
    /// kernels and other architectures have.
    pub names: Vec<String>,
    /// What happens where the rule matches.
    pub action: Action,
    /// Conditions; all of them must hold, except where two name the same argument: then each is
    /// a rule of its own, as in runc.
    #[serde(default)]
    pub args: Vec<ArgCmp>,
}

/// What the kernel does with a system call (`SCMP_ACT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Kills the process (`SCMP_ACT_KILL_PROCESS`).
    KillProcess,
    /// Kills the thread (`SCMP_ACT_KILL_THREAD` and its old name `SCMP_ACT_KILL`).
    KillThread,
    /// Sends `SIGSYS` (`SCMP_ACT_TRAP`).
    Trap,
    /// Fails the call with this errno (`SCMP_ACT_ERRNO`). Where the specification gives no
    /// `errnoRet` the caller puts 1 (`EPERM`) here.
    Errno(u16),
    /// Asks the tracer, telling it this number (`SCMP_ACT_TRACE`); 1 without an `errnoRet`.
    Trace(u16),
    /// Lets the call pass (`SCMP_ACT_ALLOW`).
    Allow,
    /// Lets the call pass and logs it (`SCMP_ACT_LOG`).
    Log,
    /// Asks whoever holds the filter's listener (`SCMP_ACT_NOTIFY`).
    Notify,
}

/// A condition on one argument (`args` of a rule).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgCmp {
    /// Number of the argument, 0 to 5.
    pub index: u8,
    /// How to compare.
    pub op: Op,
    /// What to compare with; the mask for [`Op::MaskedEq`].
    pub value: u64,
    /// What the masked argument must be, for [`Op::MaskedEq`] only.
    #[serde(default)]
    pub value_two: u64,
}

/// How a condition compares (`SCMP_CMP_*`), always unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// Argument ≠ value.
    Ne,
    /// Argument < value.
    Lt,
    /// Argument ≤ value.
    Le,
    /// Argument = value.
    Eq,
    /// Argument ≥ value.
    Ge,
    /// Argument > value.
    Gt,
    /// Argument & value = `value_two` & value.
    MaskedEq,
}

/// How the program is to be installed (`SECCOMP_FILTER_FLAG_*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// Same filter on all threads. Already true of a process with one thread, so it sets no bit.
    pub tsync: bool,
    /// Log every action but Allow.
    pub log: bool,
    /// Leave speculative store bypass alone.
    pub spec_allow: bool,
    /// Only a kill ends the wait for a notified call's answer once it was read. The kernel takes
    /// it together with a listener only.
    pub wait_killable_recv: bool,
}

impl Profile {
    /// Whether some calls ask the filter's listener.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.rules.iter().any(|rule| rule.action == Action::Notify)
    }

    /// The `flags` argument of `seccomp(SECCOMP_SET_MODE_FILTER, flags, prog)`: those of the
    /// profile, and the wish for a listener where it notifies.
    #[must_use]
    pub fn install_flags(&self) -> u32 {
        const NEW_LISTENER: u32 = 1 << 3;
        let listener = if self.notifies() { NEW_LISTENER } else { 0 };
        self.flags.bits() | listener
    }
}

impl Flags {
    /// The `flags` argument of `seccomp(SECCOMP_SET_MODE_FILTER, flags, prog)` (`linux/seccomp.h`).
    #[must_use]
    pub const fn bits(self) -> u32 {
        let mut bits = 0;
        if self.log {
            bits |= 1 << 1;
        }
        if self.spec_allow {
            bits |= 1 << 2;
        }
        if self.wait_killable_recv {
            bits |= 1 << 5;
        }
        bits
    }
}

impl Action {
    /// The filter's return value: `SECCOMP_RET_*` with its 16 bits of data.
    pub(crate) fn ret(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Notify => 0x7fc0_0000,
            Self::Trace(message) => 0x7ff0_0000 | u32::from(message),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }

    /// Whether the call may happen: such a default lets calls pass that the profile's author did
    /// not know, so they need no `ENOSYS` (runc's list; a tracer answers for itself).
    pub(crate) const fn lets_pass(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace(_))
    }
}
