//! Why a profile cannot be compiled.
use berm_sys::Kind;

/// Why a profile cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A condition names an argument that no system call has.
    #[error("seccomp.syscalls[{rule}].args: index {index} is not 0 to 5")]
    ArgIndex {
        /// Position of the rule in the profile.
        rule: usize,
        /// The index found.
        index: u8,
    },
    /// A rule without a name, or with an empty one.
    #[error("seccomp.syscalls[{rule}].names: no name, or an empty one")]
    NoName {
        /// Position of the rule in the profile.
        rule: usize,
    },
    /// Two rules with the same conditions want different things of the same system call.
    #[error(
        "seccomp.syscalls[{rule}]: same system call and args as syscalls[{other}], another action"
    )]
    Conflict {
        /// Position of the later rule in the profile.
        rule: usize,
        /// Position of the earlier rule.
        other: usize,
    },
    /// Every call would wait for an answer, the one that hands over the listener too.
    #[error("seccomp.{field}: SCMP_ACT_NOTIFY cannot be the default")]
    Notify {
        /// Where it asks.
        field: String,
    },
    /// The program would be longer than the kernel takes.
    #[error("seccomp.syscalls: {insns} BPF instructions, the kernel takes {max}", max = crate::insn::MAX_INSNS)]
    TooLong {
        /// Instructions needed.
        insns: usize,
    },
}

impl Error {
    /// What the caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::ArgIndex { .. }
            | Self::NoName { .. }
            | Self::Conflict { .. }
            | Self::TooLong { .. }
            | Self::Notify { .. } => Kind::InvalidArgument,
        }
    }
}
