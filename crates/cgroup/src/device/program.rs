//! The device program of cgroup2 (`BPF_PROG_TYPE_CGROUP_DEVICE`), assembled by hand.
//!
//! The kernel runs it at each open and mknod of a node with `struct bpf_cgroup_dev_ctx`
//! { `u32 access_type` = access << 16 | type, `u32 major`, `u32 minor` } and refuses at 0. It
//! tests the exceptions one by one, at most eight instructions each:
//! ```text
//! r2 = type; r3 = access; r4 = major; r5 = minor
//! for each exception:   if r2 != type goto next
//!                       if the access is not the exception's goto next
//!                       if r4 != major goto next; if r5 != minor goto next
//!                       return !default
//! return default
//! ```
//! As in v1's kernel, an exception that allows must allow all of the access that is asked for,
//! one that denies hits if it denies any of it. (runc demands all of it in both cases: there an
//! `O_RDWR` open slips past a rule that denies writing.)

use std::os::fd::{AsFd, OwnedFd};

use berm_sys::bpf::{self, Insn};
use rustix::io::Errno;

use super::{FIELD, Policy};
use crate::Error;
use crate::dir::Dir;
use crate::resources::{Access, DeviceType};

/// Loads a word from the context (`BPF_LDX | BPF_MEM | BPF_W`).
const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_ALU | BPF_MOV | BPF_X`
const MOVE: u8 = 0xbc;
/// `BPF_ALU | BPF_MOV | BPF_K`
const SET: u8 = 0xb4;
/// `BPF_JMP | BPF_JEQ | BPF_K`
const JUMP_IF_EQUAL: u8 = 0x15;
/// `BPF_JMP | BPF_JNE | BPF_K`
const JUMP_UNLESS_EQUAL: u8 = 0x55;
/// `BPF_JMP | BPF_JNE | BPF_X`
const JUMP_UNLESS_SAME: u8 = 0x5d;
/// `BPF_JMP | BPF_EXIT`
const EXIT: u8 = 0x95;

const VERDICT: u8 = 0;
/// The context at first, then scratch.
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Assembles the program of a policy.
fn assemble(policy: &Policy) -> Vec<Insn> {
    let mut program = vec![
        Insn::new(LOAD, TYPE, CONTEXT, 0, 0),
        Insn::new(AND, TYPE, 0, 0, 0xffff),
        Insn::new(LOAD, ACCESS, CONTEXT, 0, 0),
        Insn::new(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        Insn::new(LOAD, MAJOR, CONTEXT, 4, 0),
        Insn::new(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for (nodes, access) in &policy.exceptions {
        let mut block = vec![jump_unless(TYPE, type_bits(nodes.node))];
        if *access != Access::ALL {
            block.push(Insn::new(MOVE, CONTEXT, ACCESS, 0, 0));
            block.push(Insn::new(AND, CONTEXT, 0, 0, i32::from(access.bits())));
            block.push(if policy.allow {
                Insn::new(JUMP_IF_EQUAL, CONTEXT, 0, 0, 0)
            } else {
                Insn::new(JUMP_UNLESS_SAME, CONTEXT, ACCESS, 0, 0)
            });
        }
        block.extend(
            nodes
                .major
                .map(|major| jump_unless(MAJOR, major.cast_signed())),
        );
        block.extend(
            nodes
                .minor
                .map(|minor| jump_unless(MINOR, minor.cast_signed())),
        );
        block.extend(verdict(!policy.allow));
        to_next(&mut block);
        program.extend(block);
    }
    program.extend(verdict(policy.allow));
    program
}

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`. A policy has no exception of type `a`.
fn type_bits(node: DeviceType) -> i32 {
    match node {
        DeviceType::Block => 1,
        DeviceType::Char => 2,
        DeviceType::All => 0,
    }
}

fn jump_unless(register: u8, value: i32) -> Insn {
    Insn::new(JUMP_UNLESS_EQUAL, register, 0, 0, value)
}

fn verdict(allow: bool) -> [Insn; 2] {
    [
        Insn::new(SET, VERDICT, 0, 0, i32::from(allow)),
        Insn::new(EXIT, 0, 0, 0, 0),
    ]
}

/// Makes every jump of a block lead right behind it. A block has at most eight instructions.
fn to_next(block: &mut [Insn]) {
    for (behind, insn) in block
        .iter_mut()
        .rev()
        .zip(0i16..)
        .map(|(insn, behind)| (behind, insn))
    {
        if matches!(
            insn.code,
            JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL | JUMP_UNLESS_SAME
        ) {
            insn.off = behind;
        }
    }
}

/// Loads the program of `policy` and puts it in the place of what is attached to `dir`.
pub(super) fn attach(dir: &Dir, policy: &Policy) -> Result<(), Error> {
    let call = |call| move |source| Error::Call { call, source };
    let old = attached(dir).map_err(call("bpf(BPF_PROG_QUERY, BPF_CGROUP_DEVICE)"))?;
    let program = bpf::load_cgroup_device(&assemble(policy)).map_err(|source| match source {
        Errno::NOSYS | Errno::INVAL => Error::Unsupported {
            field: FIELD,
            reason: "this kernel loads no cgroup device programs (CONFIG_CGROUP_BPF)".to_owned(),
        },
        source => Error::Call {
            call: "bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE)",
            source,
        },
    })?;
    // One old program is replaced without a gap. Several (systemd leaves some) are joined by
    // the new one, and all must agree, until they are taken off.
    let replace = if let [old] = old.as_slice() {
        Some(old.as_fd())
    } else {
        None
    };
    bpf::attach_cgroup_device(dir.as_fd(), program.as_fd(), replace)
        .map_err(call("bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)"))?;
    if replace.is_none() {
        for old in &old {
            bpf::detach_cgroup_device(dir.as_fd(), old.as_fd())
                .map_err(call("bpf(BPF_PROG_DETACH, BPF_CGROUP_DEVICE)"))?;
        }
    }
    Ok(())
}

/// The device programs that are attached to `dir` itself. One that may not be had (an LSM's label)
/// can only forbid more, and stays.
fn attached(dir: &Dir) -> Result<Vec<OwnedFd>, Errno> {
    let mut programs = Vec::new();
    for id in bpf::cgroup_device_programs(dir.as_fd())? {
        match bpf::program_by_id(id) {
            Ok(program) => programs.push(program),
            Err(Errno::PERM | Errno::ACCESS | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::super::tests::policy;
    use super::*;

    /// Runs a program as the kernel would; panics at what its verifier would refuse.
    fn run(program: &[Insn], access: u8, node: i32, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | node.cast_unsigned(), major, minor];
        let mut registers = [0u64; 6];
        let mut pc = 0;
        loop {
            let insn = program[pc];
            let (dst, src) = (usize::from(insn.dst()), usize::from(insn.src()));
            let imm = i64::from(insn.imm).cast_unsigned();
            pc += 1;
            let mut jump_if = |taken: bool| {
                assert!(insn.off >= 0, "the verifier refuses loops");
                if taken {
                    pc += usize::try_from(insn.off).unwrap();
                }
            };
            match insn.code {
                LOAD => registers[dst] = context[usize::try_from(insn.off).unwrap() / 4].into(),
                AND => registers[dst] &= imm & 0xffff_ffff,
                SHIFT_RIGHT => registers[dst] >>= imm,
                MOVE => registers[dst] = registers[src],
                SET => registers[dst] = imm & 0xffff_ffff,
                JUMP_IF_EQUAL => jump_if(registers[dst] == imm),
                JUMP_UNLESS_EQUAL => jump_if(registers[dst] != imm),
                JUMP_UNLESS_SAME => jump_if(registers[dst] != registers[src]),
                EXIT => return registers[0] != 0,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn programs_decide_as_the_rules_say() {
        const R: u8 = 2;
        const W: u8 = 4;
        const M: u8 = 1;
        const BLOCK: i32 = 1;
        const CHAR: i32 = 2;
        type Row = (&'static [&'static str], u8, i32, u32, u32, bool);
        let rows: &[Row] = &[
            (&[], R, CHAR, 1, 3, false),
            (&["+a"], R | W | M, BLOCK, 8, 0, true),
            (&["+c 1:3 rwm"], R | W, CHAR, 1, 3, true),
            (&["+c 1:3 rwm"], R, BLOCK, 1, 3, false),
            (&["+c 1:3 rwm"], R, CHAR, 1, 5, false),
            (&["+c 1:3 rwm"], R, CHAR, 2, 3, false),
            (&["+c 1:3 r"], R, CHAR, 1, 3, true),
            (&["+c 1:3 r"], R | W, CHAR, 1, 3, false),
            (&["+c 136:* rw", "+c 1:3 r"], W, CHAR, 136, 77, true),
            (&["+c *:3 r"], R, CHAR, 9, 3, true),
            (&["+c *:* m", "+c 1:5 rw"], M, CHAR, 9, 9, true),
            (&["+c *:* m", "+c 1:5 rw"], R, CHAR, 9, 9, false),
            (&["+a", "-b 8:0 w"], R, BLOCK, 8, 0, true),
            (&["+a", "-b 8:0 w"], W, BLOCK, 8, 0, false),
            (&["+a", "-b 8:0 w"], R | W, BLOCK, 8, 0, false),
            (&["+a", "-b 8:* rwm"], M, BLOCK, 8, 5, false),
            (&["+a", "-b 8:* rwm"], M, BLOCK, 9, 5, true),
            (&["+c 4294967295:3 r"], R, CHAR, 0, 3, false),
        ];
        for (rules, access, node, major, minor, want) in rows {
            let program = assemble(&policy(rules).unwrap());
            let got = run(&program, *access, *node, *major, *minor);
            assert_eq!(got, *want, "{rules:?} {access} {node} {major}:{minor}");
        }
    }

    #[test]
    fn the_longest_program_fits_into_4096_instructions() {
        let rules: Vec<_> = (0..511).map(|minor| format!("+c 8:{minor} r")).collect();
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        assert_eq!(assemble(&policy(&rules).unwrap()).len(), 4096);
    }
}
