//! `linux.seccomp` → crate `seccomp`'s profile.

use std::path::PathBuf;

use berm_seccomp::{Action, Arch, ArgCmp, Flags, Op, Profile, Rule};
use oci_spec::runtime::{
    self, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use serde::{Deserialize, Serialize};

use crate::hooks::OciState;
use crate::refusal::{Error, invalid, no_nul};

/// The errno of SCMP_ACT_ERRNO, and the message of SCMP_ACT_TRACE, where the spec gives none.
const EPERM: u32 = 1;

/// Reads `linux.seccomp`.
pub(crate) fn profile(seccomp: &LinuxSeccomp) -> Result<Profile, Error> {
    let default = (seccomp.default_action(), seccomp.default_errno_ret());
    let architectures = seccomp.architectures().as_deref().unwrap_or_default();
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    let profile = Profile {
        default: action("linux.seccomp.defaultAction", default.0, default.1)?,
        architectures: architectures.iter().filter_map(|a| arch(*a)).collect(),
        rules: rules
            .iter()
            .enumerate()
            .map(|(n, r)| rule(n, r))
            .collect::<Result<_, _>>()?,
        flags: flags(seccomp.flags().as_deref()),
    };
    notify(seccomp, &profile)?;
    Ok(profile)
}

/// What notification asks of a profile, as runc asks it.
fn notify(seccomp: &LinuxSeccomp, profile: &Profile) -> Result<(), Error> {
    if profile.default == Action::Notify {
        return Err(invalid(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY cannot be the default: whoever hands over the listener would wait",
            "name the calls to be notified of",
        ));
    }
    if !profile.notifies() {
        return match profile.flags.wait_killable_recv {
            true => Err(invalid(
                "linux.seccomp.flags",
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for notification, and no rule notifies",
                "drop the flag",
            )),
            false => Ok(()),
        };
    }
    let writes = |rule: &Rule| {
        rule.action == Action::Notify && rule.names.iter().any(|name| name == "write")
    };
    if let Some(index) = profile.rules.iter().position(writes) {
        return Err(invalid(
            format!("linux.seccomp.syscalls[{index}]"),
            "SCMP_ACT_NOTIFY cannot be used for write, which hands over the listener",
            "leave write out",
        ));
    }
    let path = seccomp.listener_path().clone().unwrap_or_default();
    let field = "linux.seccomp.listenerPath";
    no_nul(field, &path.to_string_lossy())?;
    match path.is_absolute() {
        true => Ok(()),
        false => Err(invalid(
            field,
            "no absolute path, and a rule has SCMP_ACT_NOTIFY",
            "name the socket of the agent that answers",
        )),
    }
}

/// Who is told of system calls, and what of the process that makes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its socket, a path of the host.
    pub path: PathBuf,
    metadata: String,
    state: OciState,
}

impl Listener {
    /// The listener of a profile that notifies.
    pub(crate) fn of(
        seccomp: &LinuxSeccomp,
        profile: &Profile,
        state: impl FnOnce() -> OciState,
    ) -> Option<Box<Self>> {
        profile.notifies().then(|| {
            Box::new(Self {
                path: seccomp.listener_path().clone().unwrap_or_default(),
                metadata: seccomp.listener_metadata().clone().unwrap_or_default(),
                state: state(),
            })
        })
    }

    /// The container process state of the OCI runtime spec: of the process `pid` in the container
    /// whose first process is `init`, all pids as the host sees them.
    pub fn json(&self, status: &str, init: i32, pid: i32) -> String {
        let state = self.state.value(status, Some(init));
        let mut document = serde_json::json!({
            "ociVersion": state["ociVersion"],
            "fds": ["seccompFd"],
            "pid": pid,
            "state": state,
        });
        if !self.metadata.is_empty() {
            document["metadata"] = self.metadata.as_str().into();
        }
        document.to_string()
    }
}

fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, Error> {
    use LinuxSeccompAction as Oci;
    if errno.is_some() && !matches!(action, Oci::ScmpActErrno | Oci::ScmpActTrace) {
        return Err(invalid(
            field,
            "has an errnoRet that the action does not take",
            "drop it",
        ));
    }
    let data = || {
        u16::try_from(errno.unwrap_or(EPERM)).map_err(|_| {
            let reason = format!("errnoRet {} is above 65535", errno.unwrap_or_default());
            invalid(field, reason, "use an errno")
        })
    };
    Ok(match action {
        Oci::ScmpActKill | Oci::ScmpActKillThread => Action::KillThread,
        Oci::ScmpActKillProcess => Action::KillProcess,
        Oci::ScmpActTrap => Action::Trap,
        Oci::ScmpActErrno => Action::Errno(data()?),
        Oci::ScmpActTrace => Action::Trace(data()?),
        Oci::ScmpActLog => Action::Log,
        Oci::ScmpActAllow => Action::Allow,
        Oci::ScmpActNotify => Action::Notify,
    })
}

fn rule(number: usize, rule: &LinuxSyscall) -> Result<Rule, Error> {
    let field = format!("linux.seccomp.syscalls[{number}]");
    if rule.names().is_empty() || rule.names().iter().any(String::is_empty) {
        return Err(invalid(
            format!("{field}.names"),
            "no name, or an empty one",
            "name the calls",
        ));
    }
    let args = rule.args().as_deref().unwrap_or_default();
    Ok(Rule {
        names: rule.names().clone(),
        action: action(&field, rule.action(), rule.errno_ret())?,
        args: args
            .iter()
            .map(|a| condition(&field, a))
            .collect::<Result<_, _>>()?,
    })
}

fn condition(field: &str, arg: &LinuxSeccompArg) -> Result<ArgCmp, Error> {
    let index = u8::try_from(arg.index()).ok().filter(|index| *index < 6);
    let Some(index) = index else {
        let reason = format!("index {} is not within 0 to 5", arg.index());
        return Err(invalid(
            format!("{field}.args"),
            reason,
            "a system call has six arguments",
        ));
    };
    let op = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Op::Ne,
        LinuxSeccompOperator::ScmpCmpLt => Op::Lt,
        LinuxSeccompOperator::ScmpCmpLe => Op::Le,
        LinuxSeccompOperator::ScmpCmpEq => Op::Eq,
        LinuxSeccompOperator::ScmpCmpGe => Op::Ge,
        LinuxSeccompOperator::ScmpCmpGt => Op::Gt,
        LinuxSeccompOperator::ScmpCmpMaskedEq => Op::MaskedEq,
    };
    Ok(ArgCmp {
        index,
        op,
        value: arg.value(),
        value_two: arg.value_two().unwrap_or(0),
    })
}

/// `None` for the native one, which is implied, and for those of machines that Berm has no tables
/// for: no process on this machine can make their system calls.
fn arch(arch: runtime::Arch) -> Option<Arch> {
    match arch {
        runtime::Arch::ScmpArchX86_64 => Some(Arch::X86_64),
        runtime::Arch::ScmpArchX86 => Some(Arch::X86),
        runtime::Arch::ScmpArchX32 => Some(Arch::X32),
        runtime::Arch::ScmpArchAarch64 => Some(Arch::Aarch64),
        runtime::Arch::ScmpArchArm => Some(Arch::Arm),
        _ => None,
    }
}

/// No list at all is runc's default: speculation as on the host.
fn flags(list: Option<&[LinuxSeccompFilterFlag]>) -> Flags {
    let mut flags = Flags {
        spec_allow: list.is_none(),
        ..Flags::default()
    };
    for flag in list.unwrap_or_default() {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flags.tsync = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags.log = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags.spec_allow = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                flags.wait_killable_recv = true;
            }
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Result<Profile, Error> {
        profile(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn actions_carry_their_errno_and_eperm_is_the_default() {
        let cases = [
            ("SCMP_ACT_KILL", None, Action::KillThread),
            ("SCMP_ACT_KILL_THREAD", None, Action::KillThread),
            ("SCMP_ACT_KILL_PROCESS", None, Action::KillProcess),
            ("SCMP_ACT_TRAP", None, Action::Trap),
            ("SCMP_ACT_ERRNO", None, Action::Errno(1)),
            ("SCMP_ACT_ERRNO", Some(38), Action::Errno(38)),
            ("SCMP_ACT_TRACE", None, Action::Trace(1)),
            ("SCMP_ACT_TRACE", Some(7), Action::Trace(7)),
            ("SCMP_ACT_LOG", None, Action::Log),
            ("SCMP_ACT_ALLOW", None, Action::Allow),
        ];
        for (name, errno, want) in cases {
            let rule = serde_json::json!({"names": ["read"], "action": name, "errnoRet": errno});
            let got = parse(
                serde_json::json!({"defaultAction": name, "defaultErrnoRet": errno,
                "syscalls": [rule]}),
            )
            .unwrap();
            assert_eq!((got.default, got.rules[0].action), (want, want), "{name}");
        }
    }

    #[test]
    fn a_profile_is_read_whole() {
        let got = parse(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"],
            "syscalls": [{"names": ["clone", "nosuchcall"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 7, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"},
                {"index": 5, "value": 38, "op": "SCMP_CMP_LT"}]}]
        }))
        .unwrap();
        assert_eq!(got.architectures, [Arch::X86_64, Arch::X86, Arch::X32]);
        assert_eq!(
            got.flags,
            Flags {
                tsync: true,
                log: true,
                spec_allow: true,
                wait_killable_recv: false
            }
        );
        assert_eq!(got.rules[0].names, ["clone", "nosuchcall"]);
        assert_eq!(
            got.rules[0].args,
            [
                ArgCmp {
                    index: 0,
                    op: Op::MaskedEq,
                    value: 7,
                    value_two: 3
                },
                ArgCmp {
                    index: 5,
                    op: Op::Lt,
                    value: 38,
                    value_two: 0
                },
            ]
        );
    }

    #[test]
    fn what_cannot_be_applied_is_refused_by_its_field() {
        let allow = "SCMP_ACT_ALLOW";
        let with = |key: &str, value: serde_json::Value| {
            let mut json = serde_json::json!({"defaultAction": allow});
            json[key] = value;
            json
        };
        let rule = |rule| with("syscalls", serde_json::json!([rule]));
        let cases = [
            (
                with("defaultAction", "SCMP_ACT_NOTIFY".into()),
                "defaultAction: SCMP_ACT_NOTIFY cannot be the default",
            ),
            (
                with(
                    "flags",
                    serde_json::json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]),
                ),
                "flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for notification",
            ),
            (
                rule(serde_json::json!({"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"})),
                "syscalls[0]: SCMP_ACT_NOTIFY cannot be used for write",
            ),
            (
                with("defaultErrnoRet", 1.into()),
                "defaultAction: has an errnoRet",
            ),
            (
                rule(serde_json::json!({"names": [], "action": allow})),
                "syscalls[0].names: no name",
            ),
            (
                rule(serde_json::json!({"names": [""], "action": allow})),
                "syscalls[0].names: no name",
            ),
            (
                rule(serde_json::json!({"names": ["x"], "action": "SCMP_ACT_NOTIFY"})),
                "listenerPath: no absolute path",
            ),
            (
                rule(
                    serde_json::json!({"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65536}),
                ),
                "syscalls[0]: errnoRet 65536",
            ),
            (
                rule(
                    serde_json::json!({"names": ["x"], "action": allow, "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}),
                ),
                "syscalls[0].args: index 6",
            ),
        ];
        for (json, want) in cases {
            let error = parse(json).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("linux.seccomp.{want}")),
                "{want}: {error}"
            );
        }
    }
}
