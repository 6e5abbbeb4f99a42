//! `process.rlimits`

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

use crate::refusal::{Error, invalid};
use crate::step::Rlimit;

/// Reads the list.
pub(crate) fn parse(limits: &[PosixRlimit]) -> Result<Vec<Rlimit>, Error> {
    let mut parsed: Vec<Rlimit> = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let name = limit.typ().to_string();
        let wrong = |reason: String, way_out: &str| {
            Err(invalid(
                format!("process.rlimits[{index}]"),
                reason,
                way_out,
            ))
        };
        if parsed.iter().any(|p| p.name == name) {
            return wrong(format!("{name} is there twice"), "keep one of the two");
        }
        if limit.soft() > limit.hard() {
            let reason = format!(
                "{name} has soft {} above hard {}",
                limit.soft(),
                limit.hard()
            );
            return wrong(reason, "lower the soft limit");
        }
        let resource = number(limit.typ());
        parsed.push(Rlimit {
            name,
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    Ok(parsed)
}

/// The kernel's number (include/uapi/asm-generic/resource.h).
fn number(limit: PosixRlimitType) -> u32 {
    match limit {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: serde_json::Value) -> Result<Vec<Rlimit>, Error> {
        let limits: Vec<PosixRlimit> = serde_json::from_value(json).unwrap();
        parse(&limits)
    }

    #[test]
    fn every_limit_has_its_name_and_the_kernels_number() {
        let names = [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ];
        for (number, name) in (0..).zip(names) {
            let name = format!("RLIMIT_{name}");
            let got = limits(serde_json::json!([{"type": name, "soft": 1, "hard": u64::MAX}]));
            assert_eq!(
                got.unwrap(),
                [Rlimit {
                    name,
                    resource: number,
                    soft: 1,
                    hard: u64::MAX
                }]
            );
        }
    }

    #[test]
    fn a_limit_that_is_there_twice_or_upside_down_is_refused() {
        let one = serde_json::json!({"type": "RLIMIT_CORE", "soft": 1, "hard": 2});
        let error = limits(serde_json::json!([one, one]))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("process.rlimits[1]: RLIMIT_CORE is there twice"),
            "{error}"
        );
        let error = limits(serde_json::json!([{"type": "RLIMIT_CORE", "soft": 3, "hard": 2}]));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("soft 3 above hard 2")
        );
    }
}
