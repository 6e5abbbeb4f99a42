//! Architectures: what the kernel calls them and how wide their arguments are.
use serde::{Deserialize, Serialize};

/// Set in every system call number of the x32 ABI (`__X32_SYSCALL_BIT`).
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// A system call ABI that a profile can list (`SCMP_ARCH_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// `SCMP_ARCH_X86_64`.
    X86_64,
    /// `SCMP_ARCH_X86`: 32-bit programs on x86.
    X86,
    /// `SCMP_ARCH_X32`: 32-bit pointers, 64-bit registers. The kernel reports it as x86_64.
    X32,
    /// `SCMP_ARCH_AARCH64`.
    Aarch64,
    /// `SCMP_ARCH_ARM`: 32-bit EABI programs.
    Arm,
}

impl Arch {
    /// The architecture that this program was built for; `None` where Berm has no tables for it.
    #[must_use]
    pub const fn native() -> Option<Self> {
        if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// `AUDIT_ARCH_*` as found in `seccomp_data.arch` (`linux/audit.h`).
    pub(crate) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether conditions compare 64 bits of an argument. The others compare the low word only.
    pub(crate) const fn is_64_bit(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }
}
