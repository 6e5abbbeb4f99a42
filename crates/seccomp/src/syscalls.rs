//! Names of system calls and their numbers on each architecture.
mod table;

use crate::Arch;
use crate::arch::X32_BIT;

/// Slots of [`INDEX`]: a power of two, four times the names, so that most are found at once.
const SLOTS: usize = 2048;

/// A slot of [`INDEX`] that no name hashes to.
const EMPTY: u16 = u16::MAX;

/// Positions in the table by the hash of the name, built by the compiler: a profile has hundreds
/// of names, and looking each up by binary search was half of the time that compiling took.
static INDEX: [u16; SLOTS] = {
    assert!(
        table::TABLE.len() < SLOTS / 2,
        "SLOTS must grow with the table"
    );
    let mut index = [EMPTY; SLOTS];
    let mut at: u16 = 0;
    while (at as usize) < table::TABLE.len() {
        let mut slot = slot_of(table::TABLE[at as usize].0);
        while index[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = at;
        at += 1;
    }
    index
};

/// Where the search for `name` starts: 32-bit FNV-1a.
const fn slot_of(name: &str) -> usize {
    let bytes = name.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 16)) as usize % SLOTS
}

/// A system call's numbers on all architectures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Syscall(&'static [u32; 5]);

impl Syscall {
    /// Looks a name up; `None` if no architecture has it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let start = slot_of(name);
        let slots = INDEX[start..].iter().chain(&INDEX[..start]);
        slots
            .take_while(|at| **at != EMPTY)
            .map(|at| &table::TABLE[usize::from(*at)])
            .find(|(known, _)| *known == name)
            .map(|(_, numbers)| Self(numbers))
    }

    /// Its number as found in `seccomp_data.nr`; `None` if `arch` has no such system call.
    pub(crate) const fn number(self, arch: Arch) -> Option<u32> {
        match (self.0[arch as usize], arch) {
            (table::NONE, _) => None,
            (number, Arch::X32) => Some(number | X32_BIT),
            (number, _) => Some(number),
        }
    }
}

/// The name of a system call that a process of this machine is in, by its number as the kernel
/// tells it (`/proc/<pid>/syscall`); `is_32_bit`: the process is a 32-bit one. `None` for a number
/// without a name.
pub fn syscall_name(number: u32, is_32_bit: bool) -> Option<&'static str> {
    let arch = match (Arch::native()?, is_32_bit) {
        (Arch::X86_64, false) if number & X32_BIT != 0 => Arch::X32,
        (Arch::X86_64, true) => Arch::X86,
        (Arch::Aarch64, true) => Arch::Arm,
        (native, _) => native,
    };
    let mut all = named_on(arch);
    all.find_map(|(name, known)| (known == number).then_some(name))
}

/// Every system call of an architecture with its number, by name.
pub(crate) fn named_on(arch: Arch) -> impl Iterator<Item = (&'static str, u32)> {
    let numbered = move |(name, numbers): &'static (&'static str, [u32; 5])| {
        Some((*name, Syscall(numbers).number(arch)?))
    };
    table::TABLE.iter().filter_map(numbered)
}

/// The call of `socketcall(2)` or `ipc(2)` that does what the named system call does.
///
/// 32-bit x86 has both ways for these; numbers of `linux/net.h` and `linux/ipc.h`.
pub(crate) fn multiplexed(name: &str) -> Option<(&'static str, u32)> {
    let call = match name {
        "socket" => ("socketcall", 1),
        "bind" => ("socketcall", 2),
        "connect" => ("socketcall", 3),
        "listen" => ("socketcall", 4),
        "accept" => ("socketcall", 5),
        "getsockname" => ("socketcall", 6),
        "getpeername" => ("socketcall", 7),
        "socketpair" => ("socketcall", 8),
        "send" => ("socketcall", 9),
        "recv" => ("socketcall", 10),
        "sendto" => ("socketcall", 11),
        "recvfrom" => ("socketcall", 12),
        "shutdown" => ("socketcall", 13),
        "setsockopt" => ("socketcall", 14),
        "getsockopt" => ("socketcall", 15),
        "sendmsg" => ("socketcall", 16),
        "recvmsg" => ("socketcall", 17),
        "accept4" => ("socketcall", 18),
        "recvmmsg" => ("socketcall", 19),
        "sendmmsg" => ("socketcall", 20),
        "semop" => ("ipc", 1),
        "semget" => ("ipc", 2),
        "semctl" => ("ipc", 3),
        "semtimedop" => ("ipc", 4),
        "msgsnd" => ("ipc", 11),
        "msgrcv" => ("ipc", 12),
        "msgget" => ("ipc", 13),
        "msgctl" => ("ipc", 14),
        "shmat" => ("ipc", 21),
        "shmdt" => ("ipc", 22),
        "shmget" => ("ipc", 23),
        "shmctl" => ("ipc", 24),
        _ => return None,
    };
    Some(call)
}

#[cfg(test)]
mod tests {
    use libseccomp::{ScmpArch, ScmpSyscall};

    use super::*;

    const ARCHES: [(Arch, ScmpArch); 5] = [
        (Arch::X86_64, ScmpArch::X8664),
        (Arch::X86, ScmpArch::X86),
        (Arch::X32, ScmpArch::X32),
        (Arch::Aarch64, ScmpArch::Aarch64),
        (Arch::Arm, ScmpArch::Arm),
    ];

    #[test]
    fn names_are_sorted_and_none_is_double() {
        assert!(table::TABLE.is_sorted_by(|a, b| a.0 < b.0));
    }

    /// libseccomp may be older than the table and lack calls, but never says something else.
    #[test]
    fn libseccomp_knows_no_other_number() {
        for (arch, scmp) in ARCHES {
            for (name, _) in table::TABLE {
                let Ok(theirs) = ScmpSyscall::from_name_by_arch(name, scmp) else {
                    continue;
                };
                let ours = Syscall::named(name).unwrap().number(arch);
                if ["map_shadow_stack", "uprobe", "uretprobe"].contains(name) {
                    // libseccomp 2.6 gives them to x32; the kernel does not.
                    continue;
                }
                match u32::try_from(theirs.as_raw_syscall()) {
                    Ok(theirs) => assert_eq!(ours, Some(theirs), "{name} on {arch:?}"),
                    Err(_) if arch == Arch::X86 && multiplexed(name).is_some() => {}
                    Err(_) => assert_eq!(ours, None, "{name} on {arch:?}"),
                }
            }
        }
    }

    #[test]
    fn every_number_of_libseccomp_is_known() {
        for (arch, scmp) in ARCHES {
            for nr in (0..600).chain(0xf_0000..0xf_0010) {
                let nr = if arch == Arch::X32 { nr | X32_BIT } else { nr };
                let Ok(name) = ScmpSyscall::from(nr.cast_signed()).get_name_by_arch(scmp) else {
                    continue;
                };
                if arch == Arch::X32 && [335, 336, 453].contains(&(nr ^ X32_BIT)) {
                    continue;
                }
                let ours = Syscall::named(&name).and_then(|syscall| syscall.number(arch));
                assert_eq!(ours, Some(nr), "{name} on {arch:?}");
            }
        }
    }

    #[test]
    fn every_number_of_this_machine_has_its_name() {
        let native = Arch::native().unwrap();
        for name in [
            "read",
            "futex",
            "clone3",
            "listmount",
            "execve",
            "pidfd_open",
        ] {
            let number = Syscall::named(name).unwrap().number(native).unwrap();
            assert_eq!(syscall_name(number, false), Some(name));
        }
        assert_eq!(syscall_name(100_000, false), None);
        // exit(2) has the number 1 in both 32-bit tables.
        assert_eq!(syscall_name(1, true), Some("exit"));
    }
}
