//! Compiles a seccomp profile into a classic BPF program, shaped as a balanced search tree.
//!
//! A [`Profile`] says the same as the `linux.seccomp` object of the OCI runtime specification, in
//! plain types. [`compile`] turns it into instructions that the kernel takes as they are
//! (`seccomp(SECCOMP_SET_MODE_FILTER, flags, &sock_fprog)`). What the program decides is what
//! runc decides with libseccomp, its `ENOSYS` stub included; `tests/oracle.rs` compares the two
//! over every system call number. What differs from libseccomp is the shape:
//!
//! - Each architecture is one sorted list of ranges of system call numbers, and one tree of
//!   `JGE` over it. The kernel runs a filter once per system call number when it is installed, so
//!   short paths are what makes installing cheap.
//! - The check for x32 numbers and the `ENOSYS` answer for unknown system calls are ranges of the
//!   same list and cost no instruction of their own.
//!
//! No thread, no I/O, no global state: it is safe to call between fork and exec of a
//! single-threaded process. It allocates a few tens of kB.
//!
//! | Question | Answer, as libseccomp 2.5 and runc give it |
//! |---|---|
//! | Architecture not listed in the profile | `KillThread`; the native one is always listed |
//! | x32 number where x32 is not listed | `KillThread`, but -1 (a tracer's "skip") gets the default |
//! | Name unknown on an architecture | the rule is left out there |
//! | Rule with the default's action | left out |
//! | Number above every one that the profile names | `ENOSYS`, unless the default lets calls pass |
//! | Same call, one rule without arguments | that one decides, the first such one if several |
//! | Same call, several rules with arguments | any that matches; on a conflict see [`compile`] |
//! | Two conditions on one argument in one rule | each is a rule of its own |
#![forbid(unsafe_code)]

mod arch;
mod assembler;
mod compile;
mod error;
mod insn;
mod profile;
mod rules;
mod survey;
mod syscalls;

pub use arch::Arch;
pub use compile::compile;
pub use error::Error;
pub use insn::{Insn, fingerprint};
pub use profile::{Action, ArgCmp, Flags, Op, Profile, Rule};
pub use survey::{Survey, survey};
pub use syscalls::syscall_name;
