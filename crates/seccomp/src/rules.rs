//! What a profile decides for each system call, in the way of libseccomp and runc.
use std::cmp::{Ordering, Reverse};

use crate::profile::{Action, ArgCmp, Op, Profile, Rule};
use crate::syscalls::{Syscall, multiplexed};
use crate::{Arch, Error};

/// One action under conditions that must all hold; none: it always applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clause {
    /// By argument, each argument once; values and masks cut to the architecture's width.
    pub(crate) args: Vec<ArgCmp>,
    pub(crate) action: Action,
    /// Whether 64 bits of an argument are compared, or the low 32.
    pub(crate) wide: bool,
    /// Position of its rule in the profile.
    rule: usize,
}

/// What the rules of a profile say about the system calls of one architecture.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) arch: Arch,
    /// System call number and position of a clause, in this order.
    entries: Vec<(u32, usize)>,
    /// Calls above this number are unknown to the profile: the largest one that any rule names,
    /// even a rule that changes nothing. `None`: no rule names one, or unknown calls may pass.
    pub(crate) last: Option<u32>,
}

/// The clauses of a profile and which system calls they are for.
#[derive(Debug)]
pub(crate) struct Rules {
    clauses: Vec<Clause>,
    pub(crate) listed: Vec<Listed>,
}

/// What happens at one system call.
#[derive(Debug)]
pub(crate) enum Verdict<'a> {
    /// The same at every call.
    Always(Action),
    /// What the first clause that matches says, else the profile's default.
    First(Vec<&'a Clause>),
}

impl Rules {
    /// Sorts the rules of `profile` by architecture and system call.
    pub(crate) fn new(profile: &Profile, architectures: &[Arch]) -> Result<Self, Error> {
        let listed = architectures
            .iter()
            .map(|&arch| Listed::new(arch))
            .collect();
        let mut rules = Self {
            clauses: Vec::new(),
            listed,
        };
        for (position, rule) in profile.rules.iter().enumerate() {
            check(position, rule)?;
            rules.add(position, rule, rule.action == profile.default);
        }
        for listed in &mut rules.listed {
            listed.entries.sort_unstable();
            if profile.default.lets_pass() {
                listed.last = None;
            }
        }
        Ok(rules)
    }

    /// Adds one rule. One that repeats the default only counts for `last`.
    fn add(&mut self, position: usize, rule: &Rule, redundant: bool) {
        let mut wide = 0..0;
        let mut narrow = 0..0;
        if !redundant {
            wide = self.store(clauses(position, rule, true));
            narrow = self.store(clauses(position, rule, false));
        }
        for name in &rule.names {
            let Some(syscall) = Syscall::named(name) else {
                continue;
            };
            for listed in &mut self.listed {
                let clauses = if listed.arch.is_64_bit() {
                    &wide
                } else {
                    &narrow
                };
                if let Some(number) = syscall.number(listed.arch) {
                    listed.name(number);
                    listed
                        .entries
                        .extend(clauses.clone().map(|at| (number, at)));
                }
                if listed.arch == Arch::X86
                    && let Some((door, call)) = multiplexed(name)
                    && let Some(number) = Syscall::named(door).and_then(|s| s.number(Arch::X86))
                {
                    for at in clauses.clone() {
                        let clause = self.clauses[at].through_door(call);
                        listed.entries.push((number, self.clauses.len()));
                        self.clauses.push(clause);
                    }
                }
            }
        }
    }

    /// Keeps `clauses`; returns where.
    fn store(&mut self, clauses: Vec<Clause>) -> std::ops::Range<usize> {
        let start = self.clauses.len();
        self.clauses.extend(clauses);
        start..self.clauses.len()
    }

    /// What happens at each system call that the rules name on one architecture, by number.
    pub(crate) fn verdicts(&self, listed: &Listed) -> Result<Vec<(u32, Verdict<'_>)>, Error> {
        listed
            .entries
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| {
                let clauses = group.iter().map(|&(_, at)| &self.clauses[at]);
                Ok((group[0].0, verdict(clauses)?))
            })
            .collect()
    }
}

impl Listed {
    const fn new(arch: Arch) -> Self {
        Self {
            arch,
            entries: Vec::new(),
            last: None,
        }
    }

    /// Notes that a rule names `number`. Number 0 alone counts as nothing named, as in runc.
    fn name(&mut self, number: u32) {
        if number != 0 {
            self.last = self.last.max(Some(number));
        }
    }
}

impl Clause {
    /// The same for `socketcall(2)` or `ipc(2)`, whose first argument is the number of the call.
    ///
    /// libseccomp leaves the conditions on the other arguments as they are, although these calls
    /// pass the arguments by pointer; a condition on the first one is lost.
    fn through_door(&self, call: u32) -> Self {
        let door = ArgCmp {
            index: 0,
            op: Op::Eq,
            value: u64::from(call),
            value_two: 0,
        };
        let others = self.args.iter().filter(|arg| arg.index != 0).copied();
        Self {
            args: std::iter::once(door).chain(others).collect(),
            ..self.clone()
        }
    }

    /// libseccomp's order of the clauses of one system call: that of its search tree's levels.
    fn cmp_precedence(&self, other: &Self) -> Ordering {
        let rank = |arg: &ArgCmp| {
            let (class, value) = match arg.op {
                Op::Eq | Op::Ne => (3, arg.value),
                Op::MaskedEq => (3, arg.value_two),
                Op::Lt | Op::Le => (2, !arg.value),
                Op::Ge | Op::Gt => (1, arg.value),
            };
            Reverse((arg.index, class, value))
        };
        self.args.iter().map(rank).cmp(other.args.iter().map(rank))
    }
}

/// Refuses what no kernel could do.
fn check(position: usize, rule: &Rule) -> Result<(), Error> {
    if rule.names.is_empty() || rule.names.iter().any(String::is_empty) {
        return Err(Error::NoName { rule: position });
    }
    match rule.args.iter().find(|arg| arg.index > 5) {
        Some(arg) => Err(Error::ArgIndex {
            rule: position,
            index: arg.index,
        }),
        None => Ok(()),
    }
}

/// A rule's clauses: one, or one per condition where two name the same argument.
fn clauses(position: usize, rule: &Rule, wide: bool) -> Vec<Clause> {
    let width = if wide { u64::MAX } else { u64::from(u32::MAX) };
    let clause = |args: &[ArgCmp]| {
        let mut args: Vec<_> = args.iter().filter_map(|arg| cut(*arg, width)).collect();
        args.sort_by_key(|arg| arg.index);
        Clause {
            args,
            action: rule.action,
            wide,
            rule: position,
        }
    };
    let twice = (0..6).any(|index| rule.args.iter().filter(|arg| arg.index == index).count() > 1);
    if twice {
        rule.args.chunks(1).map(clause).collect()
    } else {
        vec![clause(&rule.args)]
    }
}

/// Cuts a condition to the bits that are compared; `None` if it then always holds.
fn cut(arg: ArgCmp, width: u64) -> Option<ArgCmp> {
    let value = arg.value & width;
    match arg.op {
        Op::MaskedEq if value == 0 => None,
        Op::MaskedEq => Some(ArgCmp {
            value,
            value_two: arg.value_two & value,
            ..arg
        }),
        _ => Some(ArgCmp {
            value,
            value_two: 0,
            ..arg
        }),
    }
}

/// Joins the clauses of one system call, given in the order of the profile.
fn verdict<'a>(clauses: impl Iterator<Item = &'a Clause> + Clone) -> Result<Verdict<'a>, Error> {
    if let Some(always) = clauses.clone().find(|clause| clause.args.is_empty()) {
        return Ok(Verdict::Always(always.action));
    }
    let mut clauses: Vec<_> = clauses.collect();
    if clauses
        .iter()
        .any(|clause| clause.action != clauses[0].action)
    {
        clauses.sort_by(|a, b| a.cmp_precedence(b));
        for (at, clause) in clauses.iter().enumerate() {
            let same =
                |other: &&&Clause| other.args == clause.args && other.action != clause.action;
            if let Some(other) = clauses[..at].iter().find(same) {
                return Err(Error::Conflict {
                    rule: clause.rule,
                    other: other.rule,
                });
            }
        }
    }
    Ok(Verdict::First(clauses))
}
