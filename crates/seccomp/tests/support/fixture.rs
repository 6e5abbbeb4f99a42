//! Profiles in the form of the OCI runtime specification.
use berm_seccomp::{Action, Arch, ArgCmp, Flags, Op, Profile, Rule};
use serde_json::Value;

/// What containerd 2.3.4 gives a container with the default capabilities, on x86_64.
pub fn containerd_default() -> Profile {
    let json = serde_json::from_str(include_str!("../data/containerd-default.json")).unwrap();
    profile(&json)
}

fn profile(json: &Value) -> Profile {
    Profile {
        default: action(json, "defaultAction", "defaultErrnoRet"),
        architectures: list(json, "architectures").iter().map(arch).collect(),
        rules: list(json, "syscalls").iter().map(rule).collect(),
        flags: Flags::default(),
    }
}

fn list<'a>(json: &'a Value, key: &str) -> &'a [Value] {
    json[key].as_array().map_or(&[], Vec::as_slice)
}

fn arch(json: &Value) -> Arch {
    match json.as_str().unwrap() {
        "SCMP_ARCH_X86_64" => Arch::X86_64,
        "SCMP_ARCH_X86" => Arch::X86,
        "SCMP_ARCH_X32" => Arch::X32,
        other => panic!("architecture {other}"),
    }
}

fn rule(json: &Value) -> Rule {
    Rule {
        names: list(json, "names")
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect(),
        action: action(json, "action", "errnoRet"),
        args: list(json, "args").iter().map(arg).collect(),
    }
}

fn action(json: &Value, key: &str, errno: &str) -> Action {
    let errno = json[errno]
        .as_u64()
        .map_or(1, |errno| errno.try_into().unwrap());
    match json[key].as_str().unwrap() {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno),
        other => panic!("action {other}"),
    }
}

fn arg(json: &Value) -> ArgCmp {
    ArgCmp {
        index: json["index"].as_u64().unwrap().try_into().unwrap(),
        op: match json["op"].as_str().unwrap() {
            "SCMP_CMP_LT" => Op::Lt,
            "SCMP_CMP_EQ" => Op::Eq,
            "SCMP_CMP_GT" => Op::Gt,
            "SCMP_CMP_MASKED_EQ" => Op::MaskedEq,
            other => panic!("operator {other}"),
        },
        value: json["value"].as_u64().unwrap(),
        value_two: json["valueTwo"].as_u64().unwrap_or(0),
    }
}
