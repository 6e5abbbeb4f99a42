//! From a profile to a program.
use crate::arch::X32_BIT;
use crate::assembler::{Assembler, Target};
use crate::insn::{AND, ARCH, Insn, JEQ, JGE, JGT, LD, MAX_INSNS, NR, arg_high, arg_low};
use crate::profile::{Action, ArgCmp, Op, Profile};
use crate::rules::{Clause, Listed, Rules, Verdict};
use crate::{Arch, Error};

/// `ENOSYS`, the same number on all architectures of Berm.
const ENOSYS: Action = Action::Errno(38);
/// What libseccomp does with calls of an architecture that the profile does not list.
const BAD_ARCH: Action = Action::KillThread;

/// Compiles `profile` for a kernel of architecture `native`.
///
/// Several rules on one system call: a rule without conditions decides alone, whatever its
/// position (the first, if there are several). Otherwise a call gets the action of the rule that
/// matches it. Where rules with different actions match, the order is libseccomp's: by the
/// lowest argument that they compare, a higher argument first; then `Eq`, `Ne` and `MaskedEq`
/// before `Lt` and `Le` before `Ge` and `Gt`; then the narrower bound (for equality the larger
/// value) first; then the same for the next argument, fewer conditions first.
///
/// # Errors
/// `InvalidArgument`: [`Error::ArgIndex`], [`Error::NoName`], [`Error::Conflict`],
/// [`Error::TooLong`], and [`Error::Notify`] for a default of [`Action::Notify`].
pub fn compile(profile: &Profile, native: Arch) -> Result<Vec<Insn>, Error> {
    if profile.default == Action::Notify {
        return Err(Error::Notify {
            field: "defaultAction".to_owned(),
        });
    }
    let mut architectures = vec![native];
    for &arch in &profile.architectures {
        if !architectures.contains(&arch) {
            architectures.push(arch);
        }
    }
    let rules = Rules::new(profile, &architectures)?;
    let program = program(profile.default, &rules)?;
    if program.len() > MAX_INSNS {
        return Err(Error::TooLong {
            insns: program.len(),
        });
    }
    Ok(program)
}

/// Emits the check of the architecture and behind it one search tree for each.
fn program(default: Action, rules: &Rules) -> Result<Vec<Insn>, Error> {
    let mut audits: Vec<u32> = Vec::new();
    for listed in &rules.listed {
        if !audits.contains(&listed.arch.audit()) {
            audits.push(listed.arch.audit());
        }
    }
    let mut code = Assembler::default();
    let mut doors = Vec::new();
    // Backwards, so that the native architecture comes first and its tree right behind the check.
    for &audit in audits.iter().rev() {
        let ranges = Ranges::new(default, rules, audit)?;
        let tree = code.tree(default, &ranges.0);
        let door = if let Target::At(_) = tree {
            code.prefix(LD, NR)
        } else {
            tree
        };
        doors.push((audit, door));
    }
    let mut next = Target::Return(BAD_ARCH.ret());
    for (audit, door) in doors {
        next = code.branch(JEQ, audit, door, next);
    }
    code.prefix(LD, ARCH);
    Ok(code.finish())
}

/// What happens from a system call number on.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    verdict: Verdict<'a>,
}

/// All system call numbers in order, neighbours with the same verdict as one.
#[derive(Debug)]
struct Ranges<'a>(Vec<Range<'a>>);

impl<'a> Ranges<'a> {
    /// The ranges of the architectures that the kernel reports as `audit`.
    fn new(default: Action, rules: &'a Rules, audit: u32) -> Result<Self, Error> {
        let find = |arch| rules.listed.iter().find(|listed| listed.arch == arch);
        let mut ranges = Self(Vec::with_capacity(128));
        if audit == Arch::X86_64.audit() {
            ranges.x86_64(default, rules, find(Arch::X86_64), find(Arch::X32))?;
        } else {
            for listed in rules
                .listed
                .iter()
                .filter(|listed| listed.arch.audit() == audit)
            {
                ranges.listed(0, default, rules, listed)?;
            }
        }
        Ok(ranges)
    }

    /// x86_64 and x32 share one number space: bit 30 tells them apart.
    ///
    /// The upper half is no ABI at all. There runc's stub looks at bit 30 too, and libseccomp
    /// takes everything from bit 30 upwards for x32, but -1 where x32 is not listed: with that a
    /// tracer skips a call.
    fn x86_64(
        &mut self,
        default: Action,
        rules: &'a Rules,
        wide: Option<&Listed>,
        x32: Option<&Listed>,
    ) -> Result<(), Error> {
        let above = |listed: Option<&Listed>| listed?.last.map(|_| ENOSYS);
        for (start, listed) in [(0, wide), (X32_BIT, x32)] {
            match listed {
                Some(listed) => self.listed(start, default, rules, listed)?,
                None => self.push(start, Verdict::Always(BAD_ARCH)),
            }
        }
        let rest = if x32.is_some() { default } else { BAD_ARCH };
        self.push(2 * X32_BIT, Verdict::Always(above(wide).unwrap_or(rest)));
        self.push(3 * X32_BIT, Verdict::Always(above(x32).unwrap_or(rest)));
        self.push(u32::MAX, Verdict::Always(above(x32).unwrap_or(default)));
        Ok(())
    }

    /// The numbers of one architecture, from `start` on: what its rules say, the default between
    /// them, `ENOSYS` above what the profile knows.
    fn listed(
        &mut self,
        start: u32,
        default: Action,
        rules: &'a Rules,
        listed: &Listed,
    ) -> Result<(), Error> {
        let mut next = start;
        for (number, verdict) in rules.verdicts(listed)? {
            if number > next {
                self.push(next, Verdict::Always(default));
            }
            self.push(number, verdict);
            next = number + 1;
        }
        match listed.last {
            Some(last) if last < next => self.push(next, Verdict::Always(ENOSYS)),
            Some(last) => {
                self.push(next, Verdict::Always(default));
                self.push(last + 1, Verdict::Always(ENOSYS));
            }
            None => self.push(next, Verdict::Always(default)),
        }
        Ok(())
    }

    /// Adds what holds from `start` on.
    fn push(&mut self, start: u32, verdict: Verdict<'a>) {
        if let (
            Some(Range {
                verdict: Verdict::Always(last),
                ..
            }),
            Verdict::Always(this),
        ) = (self.0.last(), &verdict)
            && last == this
        {
            return;
        }
        self.0.push(Range { start, verdict });
    }
}

impl Assembler {
    /// Emits the search of the accumulator in `ranges`.
    fn tree(&mut self, default: Action, ranges: &[Range<'_>]) -> Target {
        match ranges {
            [] => Target::Return(default.ret()),
            [one] => self.verdict(default, &one.verdict),
            _ => {
                let (left, right) = ranges.split_at(ranges.len() / 2);
                let start = right[0].start;
                let right = self.tree(default, right);
                let left = self.tree(default, left);
                self.branch(JGE, start, right, left)
            }
        }
    }

    /// Emits what happens at one system call.
    fn verdict(&mut self, default: Action, verdict: &Verdict<'_>) -> Target {
        match verdict {
            Verdict::Always(action) => Target::Return(action.ret()),
            Verdict::First(clauses) => {
                let mut next = Target::Return(default.ret());
                for clause in clauses.iter().rev() {
                    next = self.clause(clause, next);
                }
                next
            }
        }
    }

    /// Emits a clause that goes on at `otherwise` where one of its conditions does not hold.
    fn clause(&mut self, clause: &Clause, otherwise: Target) -> Target {
        let mut then = Target::Return(clause.action.ret());
        for arg in clause.args.iter().rev() {
            then = self.condition(clause.wide, arg, then, otherwise);
        }
        then
    }

    /// Emits the comparison of an argument.
    fn condition(&mut self, wide: bool, arg: &ArgCmp, yes: Target, no: Target) -> Target {
        match arg.op {
            Op::Eq => self.equal(wide, arg.index, u64::MAX, arg.value, yes, no),
            Op::Ne => self.equal(wide, arg.index, u64::MAX, arg.value, no, yes),
            Op::MaskedEq => self.equal(wide, arg.index, arg.value, arg.value_two, yes, no),
            Op::Gt => self.ordered(wide, JGT, arg, yes, no),
            Op::Ge => self.ordered(wide, JGE, arg, yes, no),
            Op::Le => self.ordered(wide, JGT, arg, no, yes),
            Op::Lt => self.ordered(wide, JGE, arg, no, yes),
        }
    }

    /// Emits argument & `mask` = `value`.
    fn equal(
        &mut self,
        wide: bool,
        index: u8,
        mask: u64,
        value: u64,
        yes: Target,
        no: Target,
    ) -> Target {
        let yes = self.word_equal(arg_low(index), low(mask), low(value), yes, no);
        if wide {
            self.word_equal(arg_high(index), high(mask), high(value), yes, no)
        } else {
            yes
        }
    }

    fn word_equal(&mut self, at: u32, mask: u32, value: u32, yes: Target, no: Target) -> Target {
        if mask == 0 {
            return yes;
        }
        self.branch(JEQ, value, yes, no);
        if mask != u32::MAX {
            self.prefix(AND, mask);
        }
        self.prefix(LD, at)
    }

    /// Emits argument > value (`JGT`) or argument ≥ value (`JGE`).
    fn ordered(&mut self, wide: bool, code: u16, arg: &ArgCmp, yes: Target, no: Target) -> Target {
        self.branch(code, low(arg.value), yes, no);
        let low_word = self.prefix(LD, arg_low(arg.index));
        if !wide {
            return low_word;
        }
        let same = self.branch(JEQ, high(arg.value), low_word, no);
        self.branch(JGT, high(arg.value), yes, same);
        self.prefix(LD, arg_high(arg.index))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low word is what is asked for"
)]
const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    low(value >> 32)
}
