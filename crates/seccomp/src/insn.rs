//! Instructions of classic BPF as seccomp takes them.
use serde::{Deserialize, Serialize};

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
pub(crate) const MAX_INSNS: usize = 4096;

/// `BPF_LD | BPF_W | BPF_ABS`: accumulator = word at `k` of `seccomp_data`.
pub(crate) const LD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`: accumulator &= `k`.
pub(crate) const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`: skip `k` instructions.
pub(crate) const JA: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`: skip `jt` if accumulator = `k`, else `jf`.
pub(crate) const JEQ: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`: skip `jt` if accumulator > `k`, else `jf`.
pub(crate) const JGT: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`: skip `jt` if accumulator ≥ `k`, else `jf`.
pub(crate) const JGE: u16 = 0x35;
/// `BPF_RET | BPF_K`: the verdict is `k`.
pub(crate) const RET: u16 = 0x06;

/// Offset of `seccomp_data.nr`.
pub(crate) const NR: u32 = 0;
/// Offset of `seccomp_data.arch`.
pub(crate) const ARCH: u32 = 4;

/// Offset of the low word of an argument; both architectures of Berm are little-endian.
pub(crate) const fn arg_low(index: u8) -> u32 {
    16 + 8 * index as u32
}

/// Offset of the high word of an argument.
pub(crate) const fn arg_high(index: u8) -> u32 {
    arg_low(index) + 4
}

/// One instruction, laid out as the kernel's `struct sock_filter` (8 bytes).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Insn {
    /// The bytes of the kernel's `struct sock_filter` in this machine's byte order.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        let [c0, c1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// A name for a program: equal programs have equal names, on every machine.
///
/// 64-bit FNV-1a over the instructions' bytes. It tells filters
/// apart in output for people; it is no protection against forgery.
#[must_use]
pub fn fingerprint(program: &[Insn]) -> u64 {
    let bytes = program.iter().flat_map(|insn| insn.to_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
