//! What runc makes of a profile with libseccomp: `libcontainer/seccomp` of runc, in Rust.
use berm_seccomp::{Action, Arch, ArgCmp, Insn, Op, Profile};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

/// libseccomp's program for `profile`; `None` where it refuses a rule (runc then fails).
pub fn libseccomp(profile: &Profile, native: Arch) -> Option<Vec<Insn>> {
    let mut filter = ScmpFilterContext::new(action(profile.default)).unwrap();
    for arch in architectures(profile, native) {
        filter.add_arch(scmp(arch)).unwrap();
    }
    if Arch::native() != Some(native) {
        filter.remove_arch(ScmpArch::native()).unwrap();
    }
    let rules = profile
        .rules
        .iter()
        .map(|rule| rule.names.len())
        .sum::<usize>();
    if rules > 32 {
        filter.set_ctl_optimize(2).unwrap();
    }
    for rule in profile
        .rules
        .iter()
        .filter(|rule| rule.action != profile.default)
    {
        let compares: Vec<_> = rule.args.iter().map(compare).collect();
        let twice = (0..6).any(|i| rule.args.iter().filter(|arg| arg.index == i).count() > 1);
        for name in &rule.names {
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            if compares.is_empty() {
                filter.add_rule(action(rule.action), syscall).ok()?;
            } else if twice {
                for one in compares.chunks(1) {
                    filter
                        .add_rule_conditional(action(rule.action), syscall, one)
                        .ok()?;
                }
            } else {
                filter
                    .add_rule_conditional(action(rule.action), syscall, &compares)
                    .ok()?;
            }
        }
    }
    Some(export(&filter))
}

fn export(filter: &ScmpFilterContext) -> Vec<Insn> {
    let (mut from, to) = std::io::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut from, &mut bytes).unwrap();
        bytes
    });
    filter.export_bpf(&to).unwrap();
    drop(to);
    let bytes = reader.join().unwrap();
    let insn = |insn: &[u8]| Insn {
        code: u16::from_ne_bytes([insn[0], insn[1]]),
        jt: insn[2],
        jf: insn[3],
        k: u32::from_ne_bytes([insn[4], insn[5], insn[6], insn[7]]),
    };
    bytes.chunks_exact(8).map(insn).collect()
}

/// The native architecture and what the profile adds to it.
pub fn architectures(profile: &Profile, native: Arch) -> Vec<Arch> {
    let mut all = vec![native];
    all.extend(profile.architectures.iter().filter(|arch| **arch != native));
    all
}

/// The name of an architecture in libseccomp.
pub fn scmp(arch: Arch) -> ScmpArch {
    match arch {
        Arch::X86_64 => ScmpArch::X8664,
        Arch::X86 => ScmpArch::X86,
        Arch::X32 => ScmpArch::X32,
        Arch::Aarch64 => ScmpArch::Aarch64,
        Arch::Arm => ScmpArch::Arm,
    }
}

fn action(action: Action) -> ScmpAction {
    match action {
        Action::KillProcess => ScmpAction::KillProcess,
        Action::KillThread => ScmpAction::KillThread,
        Action::Trap => ScmpAction::Trap,
        Action::Errno(errno) => ScmpAction::Errno(errno.into()),
        Action::Trace(message) => ScmpAction::Trace(message),
        Action::Allow => ScmpAction::Allow,
        Action::Log => ScmpAction::Log,
        Action::Notify => ScmpAction::Notify,
    }
}

fn compare(arg: &ArgCmp) -> ScmpArgCompare {
    let (op, datum) = match arg.op {
        Op::Ne => (ScmpCompareOp::NotEqual, arg.value),
        Op::Lt => (ScmpCompareOp::Less, arg.value),
        Op::Le => (ScmpCompareOp::LessOrEqual, arg.value),
        Op::Eq => (ScmpCompareOp::Equal, arg.value),
        Op::Ge => (ScmpCompareOp::GreaterEqual, arg.value),
        Op::Gt => (ScmpCompareOp::Greater, arg.value),
        Op::MaskedEq => (ScmpCompareOp::MaskedEqual(arg.value), arg.value_two),
    };
    ScmpArgCompare::new(arg.index.into(), op, datum)
}
