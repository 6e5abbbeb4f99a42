//! How the kernel treats a process beyond its credentials: scheduling, I/O priority, CPUs, memory
//! nodes, personality, labels.

use oci_spec::runtime::{
    self, IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};
use serde::{Deserialize, Serialize};

use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::step::{Label, Lsm, MemoryPolicy, Scheduling};

/// More CPUs or memory nodes than any machine has.
const MAX_NUMBER: u32 = 8191;

/// What a process is started with; an exec inherits what it does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attributes {
    pub(crate) scheduling: Option<Scheduling>,
    /// Class and level, as ioprio_set(2) takes them.
    pub(crate) io_priority: Option<u16>,
    /// CPUs of an exec until it is in its cgroup, and from then on.
    pub(crate) initial_cpus: Option<Vec<u32>>,
    pub(crate) final_cpus: Option<Vec<u32>>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    pub(crate) personality: Option<u32>,
    pub(crate) apparmor: Option<Label>,
    pub(crate) selinux: Option<Label>,
}

impl Attributes {
    /// Reads them of a process.
    pub(crate) fn of_process(process: &Process) -> Result<Self, Error> {
        let affinity = process.exec_cpu_affinity().as_ref();
        let cpus = |key: &str, list: Option<&String>| {
            list.map(|list| numbers(&format!("process.execCPUAffinity.{key}"), list))
                .transpose()
        };
        Ok(Self {
            scheduling: process.scheduler().as_ref().map(scheduling).transpose()?,
            io_priority: io_priority(process)?,
            initial_cpus: cpus("initial", affinity.and_then(|a| a.initial().as_ref()))?,
            final_cpus: cpus(
                "final",
                affinity.and_then(|a| a.cpu_affinity_final().as_ref()),
            )?,
            memory_policy: None,
            personality: None,
            apparmor: label(Lsm::AppArmor, process.apparmor_profile().as_deref())?,
            selinux: label(Lsm::SeLinux, process.selinux_label().as_deref())?,
        })
    }

    /// Adds those that the container's spec has outside its process.
    pub(crate) fn add(&mut self, linux: Option<&Linux>) -> Result<(), Error> {
        let Some(linux) = linux else { return Ok(()) };
        self.memory_policy = linux
            .memory_policy()
            .as_ref()
            .map(memory_policy)
            .transpose()?;
        if let Some(personality) = linux.personality() {
            let flags = personality.flags().as_deref().unwrap_or_default();
            if let Some(flag) = flags.first() {
                let reason = format!("{}: the specification has none so far", quoted(flag));
                return Err(unsupported(
                    "linux.personality.flags",
                    reason,
                    "leave them out",
                ));
            }
            self.personality = Some(match personality.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => 8,
            });
        }
        Ok(())
    }

    /// Puts those of the container where an exec's process says nothing.
    pub(crate) fn inherit(&mut self, container: &Self) {
        fn or<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
            if own.is_none() {
                own.clone_from(other);
            }
        }
        if self.initial_cpus.is_none() && self.final_cpus.is_none() {
            self.initial_cpus.clone_from(&container.initial_cpus);
            self.final_cpus.clone_from(&container.final_cpus);
        }
        or(&mut self.scheduling, &container.scheduling);
        or(&mut self.io_priority, &container.io_priority);
        or(&mut self.memory_policy, &container.memory_policy);
        or(&mut self.personality, &container.personality);
        or(&mut self.apparmor, &container.apparmor);
        or(&mut self.selinux, &container.selinux);
    }
}

/// Refuses what a pod's sandbox, which runs no process of its spec, could not give to one.
pub(crate) fn refuse_in_sandbox(oci: &runtime::Spec) -> Result<(), Error> {
    let mut all = match oci.process() {
        Some(process) => Attributes::of_process(process)?,
        None => Attributes::default(),
    };
    all.add(oci.linux().as_ref())?;
    let unconfined = |label: &Option<Label>| label.as_ref().is_none_or(|l| l.label == UNCONFINED);
    let asked = [
        ("process.scheduler", all.scheduling.is_some()),
        ("process.ioPriority", all.io_priority.is_some()),
        ("process.apparmorProfile", !unconfined(&all.apparmor)),
        ("process.selinuxLabel", all.selinux.is_some()),
        ("linux.memoryPolicy", all.memory_policy.is_some()),
        ("linux.personality", all.personality.is_some()),
        (
            "linux.mountLabel",
            mount_label(oci.linux().as_ref())?.is_some(),
        ),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(unsupported(
            *field,
            "the sandbox of a pod runs no process and mounts no file system of its spec",
            "put it into the specs of the containers",
        )),
        None => Ok(()),
    }
}

/// The profile that is none.
const UNCONFINED: &str = "unconfined";

fn scheduling(scheduler: &Scheduler) -> Result<Scheduling, Error> {
    use LinuxSchedulerFlag as Flag;
    use LinuxSchedulerPolicy as Policy;
    let wrong = |key: &str, reason: String, way_out: &str| {
        Err(invalid(format!("process.scheduler.{key}"), reason, way_out))
    };
    let policy = scheduler.policy();
    let (number, fair, realtime, deadline) = match policy {
        Policy::SchedOther => (0, true, false, false),
        Policy::SchedFifo => (1, false, true, false),
        Policy::SchedRr => (2, false, true, false),
        Policy::SchedBatch => (3, true, false, false),
        Policy::SchedIso => {
            let reason = "SCHED_ISO is in no kernel".to_owned();
            return wrong("policy", reason, "use SCHED_RR or SCHED_OTHER");
        }
        Policy::SchedIdle => (5, false, false, false),
        Policy::SchedDeadline => (6, false, false, true),
    };
    let nice = scheduler.nice().unwrap_or(0);
    if fair && !(-20..=19).contains(&nice) {
        let reason = format!("{nice} is not within -20 to 19");
        return wrong("nice", reason, "use a nice value that the kernel takes");
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !realtime {
        let reason = format!("{policy} has none");
        return wrong("priority", reason, "drop it, or use SCHED_FIFO or SCHED_RR");
    }
    let Ok(priority) = u32::try_from(priority) else {
        let reason = format!("{priority} is not within 1 to 99");
        return wrong("priority", reason, "use a priority that the kernel takes");
    };
    let times = [
        ("runtime", scheduler.runtime()),
        ("deadline", scheduler.deadline()),
        ("period", scheduler.period()),
    ];
    if let Some((key, _)) = times.iter().find(|(_, time)| time.unwrap_or(0) != 0)
        && !deadline
    {
        let reason = format!("{policy} has none");
        return wrong(key, reason, "drop it, or use SCHED_DEADLINE");
    }
    let flags = scheduler.flags().as_deref().unwrap_or_default();
    let bit = |flag: &Flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    };
    Ok(Scheduling {
        policy: number,
        flags: flags.iter().map(bit).fold(0, |all, one| all | one),
        nice,
        priority,
        runtime_ns: scheduler.runtime().unwrap_or(0),
        deadline_ns: scheduler.deadline().unwrap_or(0),
        period_ns: scheduler.period().unwrap_or(0),
    })
}

fn io_priority(process: &Process) -> Result<Option<u16>, Error> {
    let Some(given) = process.io_priority() else {
        return Ok(None);
    };
    let class = match given.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(given.priority()) {
        Ok(level @ 0..=7) => Ok(Some(class << 13 | level)),
        _ => Err(invalid(
            "process.ioPriority.priority",
            format!("{} is not within 0 to 7", given.priority()),
            "use a level that the kernel takes",
        )),
    }
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicy, Error> {
    use MemoryPolicyFlagType as Flag;
    use MemoryPolicyModeType as Mode;
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().as_deref().unwrap_or_default();
    let bit = |flag: &Flag| match flag {
        Flag::MpolFStaticNodes => 1 << 15,
        Flag::MpolFRelativeNodes => 1 << 14,
        Flag::MpolFNumaBalancing => 1 << 13,
    };
    let nodes = policy.nodes().as_deref().unwrap_or_default();
    Ok(MemoryPolicy {
        mode: flags.iter().map(bit).fold(mode, |all, one| all | one),
        nodes: match nodes.trim() {
            "" => Vec::new(),
            nodes => numbers("linux.memoryPolicy.nodes", nodes)?,
        },
    })
}

/// `linux.mountLabel`
pub(crate) fn mount_label(linux: Option<&Linux>) -> Result<Option<String>, Error> {
    let label = linux.and_then(|l| l.mount_label().clone());
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    no_nul("linux.mountLabel", &label)?;
    Ok(Some(label))
}

fn label(lsm: Lsm, label: Option<&str>) -> Result<Option<Label>, Error> {
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    no_nul(lsm.field(), label)?;
    Ok(Some(Label {
        lsm,
        label: label.to_owned(),
    }))
}

/// Reads a list such as `0-3,7`.
fn numbers(field: &str, list: &str) -> Result<Vec<u32>, Error> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n <= MAX_NUMBER);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => all.extend(first..=last),
            _ => {
                let reason = format!("{} is neither a number nor a range", quoted(part));
                return Err(invalid(field, reason, "write it like 0-3,7"));
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_numbers_is_read_and_bounded() {
        assert_eq!(numbers("f", "0-2,7,1").unwrap(), [0, 1, 2, 7]);
        for bad in ["", "a", "3-1", "0-9999999", "1,,2", "-1"] {
            assert!(numbers("f", bad).is_err(), "{bad:?}");
        }
    }
}
