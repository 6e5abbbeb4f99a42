//! An interpreter of the part of classic BPF that seccomp programs are made of.
use berm_seccomp::Insn;

/// A system call as a filter sees it (`struct seccomp_data`; the instruction pointer is 0).
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub nr: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.arch,
            8 | 12 => 0,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) {
                    arg as u32
                } else {
                    (arg >> 32) as u32
                }
            }
            _ => panic!("load at {offset}"),
        }
    }
}

/// What `program` returns for `call`. Panics at what the kernel's checker refuses.
pub fn run(program: &[Insn], call: &Call) -> u32 {
    let (mut at, mut acc) = (0, 0);
    loop {
        let insn = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { insn.jt } else { insn.jf });
        match insn.code {
            0x20 => acc = call.word(insn.k),
            0x54 => acc &= insn.k,
            0x05 => at += insn.k as usize,
            0x15 => at += jump(acc == insn.k),
            0x25 => at += jump(acc > insn.k),
            0x35 => at += jump(acc >= insn.k),
            0x45 => at += jump(acc & insn.k != 0),
            0x06 => return insn.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}
