//! OCI `linux.resources` → what crate `cgroup` writes.

use std::collections::HashMap;

use berm_cgroup::{
    Access, BlockIo, Cpu, DeviceRule, DeviceType, HugetlbLimit, Memory, Network, RdmaLimit,
    Resources, Throttle, WeightDevice,
};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory,
    LinuxNetwork, LinuxRdma, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice,
};

use crate::decode::decode;
use crate::refusal::{Error, invalid, quoted, unsupported};

const FIELD: &str = "linux.resources";

/// Reads an OCI `linux.resources` object, as Update brings it. Its `devices` are `None`, which
/// leaves the rules alone, unless the object lists some; `device_rules`, those of the plan, then
/// go behind them as at the creation.
/// # Errors
/// As [`crate::container`].
pub fn resources(json: &[u8], device_rules: &[DeviceRule]) -> Result<Resources, Error> {
    let oci: LinuxResources = decode("resources", FIELD, json)?;
    let mut resources = convert(&oci)?;
    if let Some(rules) = &mut resources.devices {
        rules.extend_from_slice(device_rules);
    }
    Ok(resources)
}

/// Reads the limits of a new cgroup. Every device is denied but those that the spec allows and
/// `defaults`, which go last, as in runc.
pub(crate) fn at_creation(
    oci: Option<&LinuxResources>,
    defaults: &[DeviceRule],
) -> Result<Resources, Error> {
    let mut resources = oci.map(convert).transpose()?.unwrap_or_default();
    let rules = resources.devices.get_or_insert_default();
    rules.extend_from_slice(defaults);
    Ok(resources)
}

fn convert(oci: &LinuxResources) -> Result<Resources, Error> {
    let devices = oci.devices().as_deref().filter(|rules| !rules.is_empty());
    let rules = |rules: &[LinuxDeviceCgroup]| {
        rules
            .iter()
            .enumerate()
            .map(|(n, r)| device_rule(n, r))
            .collect::<Result<_, _>>()
    };
    let pages = oci.hugepage_limits().as_deref().unwrap_or_default();
    Ok(Resources {
        cpu: oci.cpu().as_ref().map(cpu).unwrap_or_default(),
        memory: oci
            .memory()
            .as_ref()
            .map(memory)
            .transpose()?
            .unwrap_or_default(),
        pids: oci.pids().as_ref().map(|p| p.limit()),
        block_io: oci
            .block_io()
            .as_ref()
            .map(block_io)
            .transpose()?
            .unwrap_or_default(),
        hugetlb: pages
            .iter()
            .enumerate()
            .map(|(n, l)| hugetlb(n, l))
            .collect::<Result<_, _>>()?,
        network: oci.network().as_ref().map(network).unwrap_or_default(),
        rdma: oci.rdma().as_ref().map(rdma).unwrap_or_default(),
        unified: sorted(oci.unified().as_ref()),
        devices: devices.map(rules).transpose()?,
    })
}

fn cpu(oci: &LinuxCpu) -> Cpu {
    Cpu {
        shares: oci.shares(),
        quota: oci.quota(),
        burst: oci.burst(),
        period: oci.period(),
        realtime_runtime: oci.realtime_runtime(),
        realtime_period: oci.realtime_period(),
        cpus: oci.cpus().clone(),
        mems: oci.mems().clone(),
        idle: oci.idle(),
    }
}

fn memory(oci: &LinuxMemory) -> Result<Memory, Error> {
    // `kernel` and `kernelTCP` are passed over, as by runc: the kernel has no such limit any more
    // (5.16), and what they bounded counts as memory of the group.
    if oci.use_hierarchy() == Some(false) {
        let reason = "cgroups without hierarchy are gone from the kernel";
        return Err(unsupported(
            format!("{FIELD}.memory.useHierarchy"),
            reason,
            "drop it",
        ));
    }
    let swappiness = match oci.swappiness() {
        Some(value) if value > 100 => {
            let reason = format!("{value} is not within 0 to 100");
            return Err(invalid(
                format!("{FIELD}.memory.swappiness"),
                reason,
                "correct it",
            ));
        }
        value => value.and_then(|v| i64::try_from(v).ok()),
    };
    Ok(Memory {
        limit: oci.limit(),
        reservation: oci.reservation(),
        swap: oci.swap(),
        swappiness,
        disable_oom_killer: oci.disable_oom_killer(),
        check_before_update: oci.check_before_update().unwrap_or(false),
    })
}

fn block_io(oci: &LinuxBlockIo) -> Result<BlockIo, Error> {
    let weights = oci.weight_device().as_deref().unwrap_or_default();
    Ok(BlockIo {
        weight: oci.weight(),
        leaf_weight: oci.leaf_weight(),
        weight_device: weights
            .iter()
            .map(weight_device)
            .collect::<Result<_, _>>()?,
        read_bps: throttles("throttleReadBpsDevice", oci.throttle_read_bps_device())?,
        write_bps: throttles("throttleWriteBpsDevice", oci.throttle_write_bps_device())?,
        read_iops: throttles("throttleReadIOPSDevice", oci.throttle_read_iops_device())?,
        write_iops: throttles("throttleWriteIOPSDevice", oci.throttle_write_iops_device())?,
    })
}

fn weight_device(oci: &LinuxWeightDevice) -> Result<WeightDevice, Error> {
    let field = format!("{FIELD}.blockIO.weightDevice");
    Ok(WeightDevice {
        major: device_number(&field, oci.major())?,
        minor: device_number(&field, oci.minor())?,
        weight: oci.weight(),
        leaf_weight: oci.leaf_weight(),
    })
}

fn throttles(key: &str, list: &Option<Vec<LinuxThrottleDevice>>) -> Result<Vec<Throttle>, Error> {
    let field = format!("{FIELD}.blockIO.{key}");
    let throttle = |oci: &LinuxThrottleDevice| {
        let major = device_number(&field, oci.major())?;
        let minor = device_number(&field, oci.minor())?;
        Ok(Throttle {
            major,
            minor,
            rate: oci.rate(),
        })
    };
    list.as_deref()
        .unwrap_or_default()
        .iter()
        .map(throttle)
        .collect()
}

fn hugetlb(number: usize, oci: &LinuxHugepageLimit) -> Result<HugetlbLimit, Error> {
    let limit = u64::try_from(oci.limit()).map_err(|_| {
        let field = format!("{FIELD}.hugepageLimits[{number}].limit");
        invalid(
            field,
            format!("{} is below 0", oci.limit()),
            "give it in bytes",
        )
    })?;
    Ok(HugetlbLimit {
        page_size: oci.page_size().clone(),
        limit,
    })
}

fn network(oci: &LinuxNetwork) -> Network {
    let priorities = oci.priorities().as_deref().unwrap_or_default();
    Network {
        class_id: oci.class_id(),
        priorities: priorities
            .iter()
            .map(|p| (p.name().clone(), p.priority()))
            .collect(),
    }
}

fn rdma(oci: &HashMap<String, LinuxRdma>) -> Vec<RdmaLimit> {
    let limit = |(device, limit): (String, LinuxRdma)| RdmaLimit {
        device,
        hca_handles: limit.hca_handles(),
        hca_objects: limit.hca_objects(),
    };
    sorted(Some(oci)).into_iter().map(limit).collect()
}

/// A map of the spec as a list whose order does not depend on the hasher.
fn sorted<V: Clone>(map: Option<&HashMap<String, V>>) -> Vec<(String, V)> {
    let entries = map.into_iter().flatten();
    let mut list: Vec<_> = entries.map(|(k, v)| (k.clone(), v.clone())).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

fn device_rule(number: usize, oci: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    let field = format!("{FIELD}.devices[{number}]");
    let node = match oci.typ().unwrap_or_default() {
        LinuxDeviceType::A => DeviceType::All,
        LinuxDeviceType::B => DeviceType::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceType::Char,
        LinuxDeviceType::P => {
            return Err(invalid(
                format!("{field}.type"),
                "a fifo is no device",
                "drop the rule",
            ));
        }
    };
    let letters = oci.access().as_deref().unwrap_or_default();
    let Some(access) = Access::parse(letters).filter(|access| !access.is_empty()) else {
        let reason = format!("{} is not made of r, w and m", quoted(letters));
        return Err(invalid(
            format!("{field}.access"),
            reason,
            "use one or more of the three",
        ));
    };
    Ok(DeviceRule {
        allow: oci.allow(),
        node,
        major: any_or_number(&field, oci.major())?,
        minor: any_or_number(&field, oci.minor())?,
        access,
    })
}

/// -1 is runc's way to write "any".
fn any_or_number(field: &str, number: Option<i64>) -> Result<Option<u32>, Error> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => device_number(field, number).map(Some),
    }
}

/// A major or minor number, which the kernel keeps in 32 bits.
pub(crate) fn device_number(field: &str, number: i64) -> Result<u32, Error> {
    u32::try_from(number)
        .map_err(|_| invalid(field, format!("{number} is no device number"), "correct it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Result<Resources, Error> {
        resources(json.to_string().as_bytes(), &DeviceRule::defaults())
    }

    #[test]
    fn every_field_of_the_spec_reaches_the_cgroup() {
        let dev = serde_json::json!([{"major": 8, "minor": 16, "rate": 5}]);
        let got = parse(serde_json::json!({
            "cpu": {"shares": 1, "quota": -1, "burst": 3, "period": 4, "realtimeRuntime": 5,
                "realtimePeriod": 6, "cpus": "0-1", "mems": "0", "idle": 1},
            "memory": {"limit": 1, "reservation": 2, "swap": -1, "swappiness": 60,
                "disableOOMKiller": true, "useHierarchy": true, "checkBeforeUpdate": true},
            "pids": {"limit": 7},
            "blockIO": {"weight": 10, "leafWeight": 11,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 12, "leafWeight": 13}],
                "throttleReadBpsDevice": dev, "throttleWriteBpsDevice": dev,
                "throttleReadIOPSDevice": dev, "throttleWriteIOPSDevice": dev},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
            "network": {"classID": 3, "priorities": [{"name": "eth0", "priority": 4}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}, "a": {}},
            "unified": {"memory.high": "1", "cpu.weight": "2"}
        }))
        .unwrap();
        let throttle = || {
            vec![Throttle {
                major: 8,
                minor: 16,
                rate: 5,
            }]
        };
        let want = Resources {
            cpu: Cpu {
                shares: Some(1),
                quota: Some(-1),
                burst: Some(3),
                period: Some(4),
                realtime_runtime: Some(5),
                realtime_period: Some(6),
                cpus: Some("0-1".into()),
                mems: Some("0".into()),
                idle: Some(1),
            },
            memory: Memory {
                limit: Some(1),
                reservation: Some(2),
                swap: Some(-1),
                swappiness: Some(60),
                disable_oom_killer: Some(true),
                check_before_update: true,
            },
            pids: Some(7),
            block_io: BlockIo {
                weight: Some(10),
                leaf_weight: Some(11),
                weight_device: vec![WeightDevice {
                    major: 8,
                    minor: 0,
                    weight: Some(12),
                    leaf_weight: Some(13),
                }],
                read_bps: throttle(),
                write_bps: throttle(),
                read_iops: throttle(),
                write_iops: throttle(),
            },
            hugetlb: vec![HugetlbLimit {
                page_size: "2MB".into(),
                limit: 9,
            }],
            network: Network {
                class_id: Some(3),
                priorities: vec![("eth0".into(), 4)],
            },
            rdma: vec![
                RdmaLimit {
                    device: "a".into(),
                    hca_handles: None,
                    hca_objects: None,
                },
                RdmaLimit {
                    device: "mlx5_1".into(),
                    hca_handles: Some(3),
                    hca_objects: Some(4),
                },
            ],
            unified: vec![
                ("cpu.weight".into(), "2".into()),
                ("memory.high".into(), "1".into()),
            ],
            devices: None,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn a_new_cgroup_denies_every_device_but_the_listed_and_the_defaults() {
        let oci = serde_json::from_value(serde_json::json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"},
            {"allow": true, "type": "u", "major": -1, "minor": -1, "access": "m"},
            {"allow": true, "type": "b", "major": 8, "access": "r"}]}))
        .unwrap();
        let rules = at_creation(Some(&oci), &DeviceRule::defaults())
            .unwrap()
            .devices
            .unwrap();
        let rule = |allow, node, major, minor, access| DeviceRule {
            allow,
            node,
            major,
            minor,
            access: Access::parse(access).unwrap(),
        };
        let want = [
            rule(false, DeviceType::All, None, None, "rwm"),
            rule(true, DeviceType::Char, Some(10), Some(200), "rw"),
            rule(true, DeviceType::Char, None, None, "m"),
            rule(true, DeviceType::Block, Some(8), None, "r"),
        ];
        assert_eq!(rules[..4], want);
        assert_eq!(rules[4..], DeviceRule::defaults());
        let bare = at_creation(None, &DeviceRule::defaults()).unwrap();
        assert_eq!(bare.devices.unwrap(), DeviceRule::defaults());
    }

    #[test]
    fn an_update_leaves_device_rules_alone_unless_it_lists_some() {
        assert_eq!(
            parse(serde_json::json!({"devices": []})).unwrap().devices,
            None
        );
        let some = serde_json::json!({"devices": [{"allow": false, "access": "rwm"}]});
        assert_eq!(
            parse(some).unwrap().devices.unwrap().len(),
            1 + DeviceRule::defaults().len()
        );
    }

    #[test]
    fn a_limit_of_kernel_memory_is_passed_over_as_by_runc() {
        let kernel = serde_json::json!({"memory": {"kernel": 1, "kernelTCP": 2}});
        assert_eq!(parse(kernel).unwrap(), Resources::default());
    }

    #[test]
    fn a_bad_value_is_refused_by_its_field() {
        let cases = [
            (
                serde_json::json!({"memory": {"useHierarchy": false}}),
                "memory.useHierarchy: ",
            ),
            (
                serde_json::json!({"memory": {"swappiness": 101}}),
                "memory.swappiness: 101",
            ),
            (
                serde_json::json!({"devices": [{"allow": true, "access": ""}]}),
                "devices[0].access: \"\"",
            ),
            (
                serde_json::json!({"devices": [{"allow": true}]}),
                "devices[0].access: \"\"",
            ),
            (
                serde_json::json!({"devices": [{"allow": true, "access": "rx"}]}),
                "devices[0].access: \"rx\"",
            ),
            (
                serde_json::json!({"devices": [{"allow": true, "access": "r", "type": "p"}]}),
                "devices[0].type: ",
            ),
            (
                serde_json::json!({"devices": [{"allow": true, "access": "r", "major": -2}]}),
                "devices[0]: -2",
            ),
            (
                serde_json::json!({"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 0, "rate": 1}]}}),
                "blockIO.throttleReadBpsDevice: -1",
            ),
            (
                serde_json::json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}),
                "hugepageLimits[0].limit: -1",
            ),
            (serde_json::json!({"turbo": 1}), "turbo: not known"),
        ];
        for (json, want) in cases {
            let error = parse(json).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("linux.resources.{want}")),
                "{want}: {error}"
            );
        }
    }
}
