//! Puts a program together from its end to its start.
//!
//! Classic BPF jumps forward only, so whoever emits the last instruction first knows the distance
//! to every target. A conditional jump skips at most 255 instructions; for a target farther away
//! a nearer copy is put in between: of the verdict, or a jump without condition and limit.
use crate::insn::{Insn, JA, RET};

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// To this verdict.
    Return(u32),
    /// To an instruction that is already emitted.
    At(Label),
}

/// An emitted instruction: its distance from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program under construction.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// Last instruction first.
    reversed: Vec<Insn>,
    /// The nearest instruction that returns each verdict.
    verdicts: Vec<(u32, Label)>,
}

impl Assembler {
    /// Emits what is executed right before the instruction that was emitted last.
    pub(crate) fn prefix(&mut self, code: u16, k: u32) -> Target {
        Target::At(self.emit(Insn {
            code,
            jt: 0,
            jf: 0,
            k,
        }))
    }

    /// Emits a comparison of the accumulator that goes on at `yes` or at `no`.
    pub(crate) fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        // Reaching `no` may put one more instruction between this one and `yes`.
        let yes = self.reach(yes, 1);
        let no = self.reach(no, 0);
        let (jt, jf) = (self.skip(yes, 0), self.skip(no, 0));
        debug_assert!(jt <= 255 && jf <= 255, "reach() keeps targets near");
        let near = |skip: usize| u8::try_from(skip).unwrap_or(u8::MAX);
        Target::At(self.emit(Insn {
            code,
            jt: near(jt),
            jf: near(jf),
            k,
        }))
    }

    /// The program, first instruction first.
    pub(crate) fn finish(mut self) -> Vec<Insn> {
        self.reversed.reverse();
        self.reversed
    }

    /// A label for `target` that a jump emitted after `slack` more instructions still reaches.
    fn reach(&mut self, target: Target, slack: usize) -> Label {
        let known = match target {
            Target::At(label) => Some(label),
            Target::Return(verdict) => self
                .verdicts
                .iter()
                .find(|(known, _)| *known == verdict)
                .map(|(_, label)| *label),
        };
        match (known, target) {
            (Some(label), _) if self.skip(label, slack) <= usize::from(u8::MAX) => label,
            (_, Target::At(label)) => {
                // No program comes near 2^32 instructions: compile() refuses more than 4,096.
                let k = u32::try_from(self.skip(label, 0)).unwrap_or(u32::MAX);
                self.emit(Insn {
                    code: JA,
                    jt: 0,
                    jf: 0,
                    k,
                })
            }
            (_, Target::Return(verdict)) => {
                let label = self.emit(Insn {
                    code: RET,
                    jt: 0,
                    jf: 0,
                    k: verdict,
                });
                self.verdicts.retain(|(known, _)| *known != verdict);
                self.verdicts.push((verdict, label));
                label
            }
        }
    }

    /// Instructions between `label` and one that is emitted after `slack` more.
    fn skip(&self, label: Label, slack: usize) -> usize {
        self.reversed.len() + slack - label.0 - 1
    }

    fn emit(&mut self, insn: Insn) -> Label {
        self.reversed.push(insn);
        Label(self.reversed.len() - 1)
    }
}
