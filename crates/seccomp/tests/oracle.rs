//! The programs decide what libseccomp's programs with runc's stub decide.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests may panic"
)]
#![allow(unreachable_pub, reason = "modules that several tests share")]

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/interpreter.rs"]
mod interpreter;
#[path = "support/reference.rs"]
mod reference;

use std::cell::RefCell;
use std::collections::HashMap;

use berm_seccomp::{Action, Arch, ArgCmp, Error, Flags, Op, Profile, Rule, compile, fingerprint};
use interpreter::{Call, run};
use libseccomp::ScmpSyscall;
use reference::{architectures, libseccomp, scmp};

const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 0x0005_0026;
const AUDIT: [(Arch, u32); 4] = [
    (Arch::X86_64, 0xc000_003e),
    (Arch::X86, 0x4000_0003),
    (Arch::Aarch64, 0xc000_00b7),
    (Arch::Arm, 0x4000_0028),
];

/// The fixed sequence that random profiles are drawn from (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        self.roll() as usize % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// runc's `ENOSYS` stub: the largest number that the profile names on each architecture.
struct Stub(Vec<(Arch, u32)>);

impl Stub {
    fn new(profile: &Profile, native: Arch) -> Self {
        if matches!(
            profile.default,
            Action::Allow | Action::Log | Action::Trace(_)
        ) {
            return Self(Vec::new());
        }
        let last = |arch| {
            let names = profile.rules.iter().flat_map(|rule| &rule.names);
            names
                .filter_map(|name| number(name, arch))
                .filter(|nr| *nr != 0)
                .max()
        };
        let listed = architectures(profile, native);
        Self(
            listed
                .into_iter()
                .filter_map(|arch| Some((arch, last(arch)?)))
                .collect(),
        )
    }

    fn refuses(&self, arch: Arch, nr: u32) -> bool {
        let arch = if arch == Arch::X86_64 && nr & X32_BIT != 0 {
            Arch::X32
        } else {
            arch
        };
        self.0
            .iter()
            .any(|&(listed, last)| listed == arch && nr > last)
    }
}

/// libseccomp's numbers for a name: the system call, and the one behind `socketcall` or `ipc`.
///
/// For 32-bit x86 it gives only the second for what goes both ways, so runc leaves those calls
/// out of its stub, which then answers `ENOSYS` to one that the profile allows; Berm counts them.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    direct: Option<u32>,
    behind: Option<(u32, u32)>,
}

impl Numbers {
    fn new(name: &str, arch: Arch) -> Self {
        let nr =
            ScmpSyscall::from_name_by_arch(name, scmp(arch)).map_or(-1, |nr| nr.as_raw_syscall());
        let behind = match (arch, nr) {
            (Arch::X86, -199..=-100) => Some((102, nr.unsigned_abs() - 100)),
            (Arch::X86, -299..=-200) => Some((117, nr.unsigned_abs() - 200)),
            _ => None,
        };
        let is_name = |nr: &u32| {
            let syscall = ScmpSyscall::from(nr.cast_signed());
            syscall
                .get_name_by_arch(scmp(arch))
                .is_ok_and(|known| known == name)
        };
        let direct = match behind {
            Some(_) => (300..450).find(is_name),
            None => u32::try_from(nr).ok(),
        };
        Self { direct, behind }
    }

    fn of(name: &str, arch: Arch) -> Self {
        thread_local! {
            static KNOWN: RefCell<HashMap<(String, Arch), Numbers>> = RefCell::default();
        }
        KNOWN.with_borrow_mut(|known| {
            *known
                .entry((name.to_owned(), arch))
                .or_insert_with(|| Self::new(name, arch))
        })
    }
}

fn number(name: &str, arch: Arch) -> Option<u32> {
    Numbers::of(name, arch).direct
}

/// What a profile means, read off directly: for profiles whose rules on one system call all have
/// the same action, and calls of listed ABIs.
fn meaning(profile: &Profile, arch: Arch, call: &Call) -> u32 {
    let arch = if arch == Arch::X86_64 && call.nr & X32_BIT != 0 {
        Arch::X32
    } else {
        arch
    };
    let matching = profile
        .rules
        .iter()
        .filter(|rule| rule.action != profile.default)
        .find(|rule| {
            rule.names.iter().any(|name| {
                let numbers = Numbers::of(name, arch);
                let direct = numbers.direct == Some(call.nr) && rule_holds(rule, arch, &call.args);
                direct
                    || numbers.behind.is_some_and(|(door, number)| {
                        let mut inner = (*rule).clone();
                        inner.args.retain(|arg| arg.index != 0);
                        let same = door == call.nr && call.args[0] as u32 == number;
                        same && rule_holds(&inner, arch, &call.args)
                    })
            })
        });
    value(matching.map_or(profile.default, |rule| rule.action))
}

fn rule_holds(rule: &Rule, arch: Arch, args: &[u64; 6]) -> bool {
    let holds = |arg: &ArgCmp| condition_holds(arg, arch, args);
    let twice = |arg: &ArgCmp| rule.args.iter().filter(|a| a.index == arg.index).count() > 1;
    if rule.args.iter().any(twice) {
        rule.args.iter().any(holds)
    } else {
        rule.args.iter().all(holds)
    }
}

fn condition_holds(arg: &ArgCmp, arch: Arch, args: &[u64; 6]) -> bool {
    let wide = matches!(arch, Arch::X86_64 | Arch::Aarch64);
    let width = if wide { u64::MAX } else { u64::from(u32::MAX) };
    let (found, value) = (args[usize::from(arg.index)] & width, arg.value & width);
    match arg.op {
        Op::Ne => found != value,
        Op::Lt => found < value,
        Op::Le => found <= value,
        Op::Eq => found == value,
        Op::Ge => found >= value,
        Op::Gt => found > value,
        Op::MaskedEq => found & value == arg.value_two & value,
    }
}

/// `SECCOMP_RET_*` of the actions that random profiles use.
fn value(action: Action) -> u32 {
    match action {
        Action::Allow => 0x7fff_0000,
        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
        Action::Trap => 0x0003_0000,
        other => panic!("{other:?}"),
    }
}

/// Arguments at the boundaries of every condition of `profile`.
fn vectors(profile: &Profile, dice: &mut Dice) -> Vec<[u64; 6]> {
    let mut conditions: Vec<_> = profile.rules.iter().flat_map(|rule| &rule.args).collect();
    // Of many conditions some, so that their number does not count twice.
    let step = conditions.len().div_ceil(16).max(1);
    conditions = conditions.into_iter().step_by(step).collect();
    let around = |value: u64| {
        let near = [value, value.wrapping_sub(1), value.wrapping_add(1), !value];
        near.into_iter()
            .chain([0, 31, 32, 33, 63].map(|bit| value ^ (1 << bit)))
    };
    let mut values: Vec<u64> = vec![0, u64::MAX, u64::from(u32::MAX), 1 << 32];
    values.extend(
        conditions
            .iter()
            .flat_map(|arg| around(arg.value).chain(around(arg.value_two))),
    );
    let mut all = vec![[0; 6], [u64::MAX; 6]];
    for arg in &conditions {
        for value in around(arg.value)
            .chain(around(arg.value_two))
            .chain([dice.roll()])
        {
            for _ in 0..2 {
                let mut args = [(); 6].map(|()| dice.pick(&values));
                args[usize::from(arg.index)] = value;
                all.push(args);
            }
        }
    }
    all
}

/// System call numbers worth a look on one architecture.
fn numbers() -> impl Iterator<Item = u32> {
    let edges = [1 << 30, 1 << 31, 3 << 30, 0_u32, 0xf_0005, 0xf_0000];
    let edges = edges
        .into_iter()
        .flat_map(|edge| (0..4).map(move |i| edge.wrapping_add(i).wrapping_sub(2)));
    (0..600).chain(X32_BIT..X32_BIT + 600).chain(edges)
}

/// Whether both decide the same; false where libseccomp refuses the profile.
fn same_decisions(profile: &Profile, native: Arch, dice: &mut Dice) -> bool {
    let Some(theirs) = libseccomp(profile, native) else {
        return false;
    };
    let ours = compile(profile, native).unwrap();
    let stub = Stub::new(profile, native);
    let vectors = vectors(profile, dice);
    let conditional = profile.rules.iter().filter(|rule| !rule.args.is_empty());
    let conditional: Vec<_> = conditional.flat_map(|rule| &rule.names).collect();
    for (arch, audit) in AUDIT.into_iter().chain([(Arch::X86_64, 0xdead_beef)]) {
        let named = |name: &&String| {
            let x32 = if arch == Arch::X86_64 {
                number(name, Arch::X32)
            } else {
                None
            };
            [number(name, arch), x32]
        };
        let mut with_args: Vec<_> = conditional.iter().flat_map(named).flatten().collect();
        with_args.extend([102, 117]);
        for nr in numbers() {
            let count = if with_args.contains(&nr) {
                vectors.len()
            } else {
                2
            };
            for args in &vectors[..count] {
                let call = Call {
                    nr,
                    arch: audit,
                    args: *args,
                };
                let refused = audit != 0xdead_beef && stub.refuses(arch, nr);
                let expected = if refused { ENOSYS } else { run(&theirs, &call) };
                let found = run(&ours, &call);
                assert_eq!(
                    found,
                    expected,
                    "{call:x?}: {found:#x}, libseccomp {expected:#x}, default {:?}, {:?}, {:?}",
                    profile.default,
                    profile.architectures,
                    rules_of(profile, arch, nr)
                );
            }
        }
    }
    true
}

/// The rules of one system call, for the message of a failed comparison.
fn rules_of(profile: &Profile, arch: Arch, nr: u32) -> Vec<(Action, &[ArgCmp])> {
    let name = |rule: &&Rule| rule.names.iter().any(|name| number(name, arch) == Some(nr));
    profile
        .rules
        .iter()
        .filter(name)
        .map(|rule| (rule.action, &*rule.args))
        .collect()
}

/// A profile without the names that the installed libseccomp is too old for, or that only some
/// versions of it give to x32.
fn known(mut profile: Profile) -> Profile {
    let disputed = ["map_shadow_stack", "uprobe", "uretprobe"];
    for rule in &mut profile.rules {
        rule.names
            .retain(|name| ScmpSyscall::from_name(name).is_ok() && !disputed.contains(&&**name));
    }
    profile.rules.retain(|rule| !rule.names.is_empty());
    profile
}

fn profile(default: Action, architectures: &[Arch], rules: Vec<Rule>) -> Profile {
    Profile {
        default,
        architectures: architectures.to_vec(),
        rules,
        flags: Flags::default(),
    }
}

fn rule(names: &[&str], action: Action, args: Vec<ArgCmp>) -> Rule {
    Rule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action,
        args,
    }
}

const OPS: [Op; 7] = [Op::Ne, Op::Lt, Op::Le, Op::Eq, Op::Ge, Op::Gt, Op::MaskedEq];
const X86: [Arch; 3] = [Arch::X86_64, Arch::X86, Arch::X32];

#[test]
fn containerds_default_profile_decides_as_with_libseccomp() {
    let profile = known(fixture::containerd_default());
    assert!(same_decisions(&profile, Arch::X86_64, &mut Dice(1)));
}

#[test]
fn containerds_default_profile_as_if_on_aarch64() {
    let mut profile = known(fixture::containerd_default());
    profile.architectures = vec![Arch::Arm, Arch::Aarch64];
    assert!(same_decisions(&profile, Arch::Aarch64, &mut Dice(2)));
}

#[test]
fn every_set_of_architectures_and_every_default() {
    let sets: [&[Arch]; 7] = [
        &[],
        &[Arch::X86],
        &[Arch::X32],
        &X86,
        &[Arch::X32, Arch::X86_64],
        &[Arch::Aarch64, Arch::Arm],
        &[Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm],
    ];
    let defaults = [
        Action::Allow,
        Action::Log,
        Action::Trace(7),
        Action::Errno(1),
        Action::Errno(38),
        Action::Trap,
        Action::KillThread,
        Action::KillProcess,
    ];
    let names = [
        "openat", "mmap2", "set_tls", "socket", "accept", "shmat", "clone3", "fstat64",
    ];
    for set in sets {
        for default in defaults {
            let rules = vec![
                rule(&names, Action::Errno(13), vec![]),
                rule(&["read", "execve", "ioctl", "recv"], Action::Allow, vec![]),
            ];
            assert!(same_decisions(
                &profile(default, set, rules),
                Arch::X86_64,
                &mut Dice(3)
            ));
            let few = vec![rule(&["read"], Action::KillProcess, vec![])];
            assert!(same_decisions(
                &profile(default, set, few),
                Arch::X86_64,
                &mut Dice(4)
            ));
        }
    }
}

#[test]
fn x32_alone_of_the_two_abis_of_x86_64() {
    let rules = vec![rule(&["read", "execve", "bind"], Action::Allow, vec![])];
    let profile = profile(Action::Errno(1), &[Arch::X32], rules);
    assert!(same_decisions(&profile, Arch::Aarch64, &mut Dice(5)));
}

#[test]
fn every_operator_at_every_boundary() {
    let mut dice = Dice(6);
    let values = [
        0,
        1,
        7,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        1 << 32,
        (5 << 32) | 9,
        1 << 63,
        u64::MAX,
    ];
    for op in OPS {
        for value in values {
            for value_two in [0, 1, value, 3 << 31] {
                for index in [0, 5] {
                    let arg = ArgCmp {
                        index,
                        op,
                        value,
                        value_two,
                    };
                    let rules = vec![rule(
                        &["prctl", "socket", "semctl"],
                        Action::Errno(5),
                        vec![arg],
                    )];
                    let profile = profile(Action::Allow, &X86, rules);
                    assert!(same_decisions(&profile, Arch::X86_64, &mut dice));
                }
            }
        }
    }
}

/// libseccomp's tree of conditions loses its way where several conditional rules on one system call
/// share a high word (`arg2 < 2` or `arg2 > 1 << 32` matches 2), so with those only what the rules
/// mean is compared.
#[test]
fn random_profiles_decide_what_their_rules_mean() {
    let mut dice = Dice(7);
    let mut compared = 0;
    for _ in 0..80 {
        let profile = random_profile(&mut dice);
        let single = profile.rules.iter().all(|rule| {
            let same = profile
                .rules
                .iter()
                .filter(|other| other.names == rule.names);
            same.map(|rule| rule.args.len()).sum::<usize>() <= 1
        });
        if single {
            compared += usize::from(same_decisions(&profile, Arch::X86_64, &mut dice));
        }
        decides_what_it_means(&profile, &mut dice);
    }
    assert!(compared > 5, "libseccomp took only {compared} profiles");
}

fn decides_what_it_means(profile: &Profile, dice: &mut Dice) {
    let program = compile(profile, Arch::X86_64).unwrap();
    let stub = Stub::new(profile, Arch::X86_64);
    let listed = architectures(profile, Arch::X86_64);
    let vectors = vectors(profile, dice);
    for (arch, audit) in AUDIT.into_iter().filter(|(arch, _)| listed.contains(arch)) {
        let x32 = arch == Arch::X86_64 && listed.contains(&Arch::X32);
        for nr in (0..480).chain((X32_BIT..X32_BIT + 560).filter(|_| x32)) {
            for _ in 0..8 {
                let args = dice.pick(&vectors);
                let call = Call {
                    nr,
                    arch: audit,
                    args,
                };
                let refused = stub.refuses(arch, nr);
                let expected = if refused {
                    ENOSYS
                } else {
                    meaning(profile, arch, &call)
                };
                let found = run(&program, &call);
                assert_eq!(
                    found,
                    expected,
                    "{call:x?} {:?}",
                    rules_of(profile, arch, nr)
                );
            }
        }
    }
}

/// A profile in which all rules of one system call have the same action.
fn random_profile(dice: &mut Dice) -> Profile {
    let actions = [
        Action::Allow,
        Action::Errno(1),
        Action::Errno(38),
        Action::Trap,
    ];
    let default = dice.pick(&actions);
    let most = dice.pick(&[4, 40]);
    let rules = (0..1 + dice.below(most))
        .map(|_| {
            let name = dice.pick(&NAMES);
            // The calls behind socketcall and ipc share a number with them.
            let door = [
                "socketcall",
                "socket",
                "connect",
                "recvfrom",
                "semctl",
                "shmat",
            ];
            let action = if door.contains(&name) {
                3
            } else {
                name.len() % actions.len()
            };
            rule(&[name], actions[action], random_args(dice))
        })
        .collect();
    let sets: [&[Arch]; 4] = [&[], &X86, &[Arch::X86], &[Arch::X32, Arch::Aarch64]];
    profile(default, dice.pick(&sets), rules)
}

/// Rules with different actions that match the same call: libseccomp's order.
#[test]
fn conflicting_rules_are_tried_in_libseccomps_order() {
    let arg = |index, op, value| ArgCmp {
        index,
        op,
        value,
        value_two: 0,
    };
    let conflicts = [
        [vec![arg(0, Op::Eq, 5)], vec![arg(0, Op::Ne, 7)]],
        [vec![arg(0, Op::Eq, 5)], vec![arg(1, Op::Eq, 5)]],
        [vec![arg(0, Op::Ge, 3)], vec![arg(0, Op::Ge, 5)]],
        [vec![arg(0, Op::Lt, 3)], vec![arg(0, Op::Lt, 5)]],
        [vec![arg(0, Op::Le, 5)], vec![arg(0, Op::Ge, 3)]],
        [vec![arg(0, Op::Eq, 4)], vec![arg(0, Op::Gt, 3)]],
        [vec![arg(0, Op::Eq, 4)], vec![]],
    ];
    for [a, b] in conflicts {
        for (first, second) in [(&a, &b), (&b, &a)] {
            let rules = vec![
                rule(&["prctl"], Action::Errno(1), first.clone()),
                rule(&["prctl"], Action::Errno(2), second.clone()),
            ];
            let profile = profile(Action::Allow, &[], rules);
            assert!(
                same_decisions(&profile, Arch::X86_64, &mut Dice(8)),
                "{profile:?}"
            );
        }
    }
}

#[test]
fn equal_conditions_with_different_actions_are_refused() {
    let arg = ArgCmp {
        index: 0,
        op: Op::Eq,
        value: 1,
        value_two: 0,
    };
    let rules = vec![
        rule(&["prctl"], Action::Errno(1), vec![arg]),
        rule(&["prctl"], Action::Errno(2), vec![arg]),
    ];
    let profile = profile(Action::Allow, &[], rules);
    assert_eq!(libseccomp(&profile, Arch::X86_64), None);
    assert_eq!(
        compile(&profile, Arch::X86_64),
        Err(Error::Conflict { rule: 1, other: 0 })
    );
}

#[test]
fn more_rules_than_a_jump_of_255_instructions_passes() {
    let args = |value| {
        vec![ArgCmp {
            index: 1,
            op: Op::Ge,
            value,
            value_two: 0,
        }]
    };
    let rules = (0..470_u16)
        .filter_map(|nr| {
            let name = ScmpSyscall::from(i32::from(nr))
                .get_name_by_arch(scmp(Arch::X86_64))
                .ok()?;
            Some(rule(&[&name], Action::Errno(nr), args(u64::from(nr) << 28)))
        })
        .collect();
    let profile = profile(Action::Allow, &[], rules);
    assert!(compile(&profile, Arch::X86_64).unwrap().len() > 2000);
    assert!(same_decisions(&profile, Arch::X86_64, &mut Dice(9)));
}

#[test]
fn more_instructions_than_the_kernel_takes_are_refused() {
    let conditions = (0..2000).map(|value| {
        let args = vec![ArgCmp {
            index: 0,
            op: Op::Eq,
            value,
            value_two: 0,
        }];
        rule(&["prctl"], Action::Errno(1), args)
    });
    let profile = profile(Action::Allow, &[], conditions.collect());
    assert!(matches!(
        compile(&profile, Arch::X86_64),
        Err(Error::TooLong { .. })
    ));
}

#[test]
fn what_cannot_be_done_is_refused_with_its_field() {
    let of = |rule| compile(&profile(Action::Allow, &[], vec![rule]), Arch::X86_64).unwrap_err();
    let error = compile(&profile(Action::Notify, &[], vec![]), Arch::X86_64).unwrap_err();
    assert_eq!(error.kind(), berm_sys::Kind::InvalidArgument);
    assert_eq!(
        error.to_string(),
        "seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default"
    );
    let arg = ArgCmp {
        index: 6,
        op: Op::Eq,
        value: 0,
        value_two: 0,
    };
    assert_eq!(
        of(rule(&["read"], Action::Trap, vec![arg])),
        Error::ArgIndex { rule: 0, index: 6 }
    );
    assert_eq!(
        of(rule(&[], Action::Trap, vec![])),
        Error::NoName { rule: 0 }
    );
}

#[test]
fn a_program_has_the_same_fingerprint_every_time() {
    let program = compile(&fixture::containerd_default(), Arch::X86_64).unwrap();
    let again = compile(&fixture::containerd_default(), Arch::X86_64).unwrap();
    assert_eq!(fingerprint(&program), fingerprint(&again));
    assert_ne!(fingerprint(&program), fingerprint(&program[1..]));
    assert_eq!(fingerprint(&[]), 0xcbf2_9ce4_8422_2325);
}

const NAMES: [&str; 24] = [
    "read",
    "write",
    "openat",
    "mmap",
    "socket",
    "connect",
    "clone",
    "clone3",
    "personality",
    "ioctl",
    "prctl",
    "fcntl",
    "semctl",
    "shmat",
    "ptrace",
    "futex",
    "execveat",
    "recvfrom",
    "getcpu",
    "mount",
    "kill",
    "pidfd_open",
    "socketcall",
    "rt_sigaction",
];

fn random_args(dice: &mut Dice) -> Vec<ArgCmp> {
    let values = [
        0,
        1,
        2,
        40,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 32,
        (1 << 32) | 2,
        u64::MAX,
    ];
    let count = dice.pick(&[0, 1, 1, 1, 2, 3]);
    (0..count)
        .map(|_| ArgCmp {
            index: dice.below(6) as u8,
            op: dice.pick(&OPS),
            value: dice.pick(&values),
            value_two: dice.pick(&values),
        })
        .collect()
}
