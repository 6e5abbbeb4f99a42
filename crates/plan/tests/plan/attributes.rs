//! Scheduling, I/O priority, CPUs, memory nodes, personality, labels.

use berm_plan::{Label, Lsm, MemoryPolicy, Scheduling, Step, exec};
use serde_json::{Value, json};

use crate::given::{Given, facts};

fn given() -> Given {
    Given::cri_container()
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 7}),
        )
        .set(
            "/process/execCPUAffinity",
            json!({"initial": "0-1", "final": "1"}),
        )
        .set("/process/apparmorProfile", "a-profile")
        .set("/process/selinuxLabel", "a_u:b_r:c_t:s0")
        .set(
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 3,
            "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]}),
        )
        .set(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0,2-3",
            "flags": ["MPOL_F_STATIC_NODES"]}),
        )
        .set("/linux/personality", json!({"domain": "LINUX32"}))
}

const FIFO: Scheduling = Scheduling {
    policy: 1,
    flags: 5,
    nice: 0,
    priority: 3,
    runtime_ns: 0,
    deadline_ns: 0,
    period_ns: 0,
};

#[test]
fn a_container_gets_what_its_spec_says_and_its_execs_inherit_it() {
    let plan = given().container(&facts()).unwrap();
    assert_eq!(plan.scheduling, Some(FIFO));
    let label = |lsm, label: &str| {
        let label = label.to_owned();
        Step::ExecLabel(Label { lsm, label })
    };
    let policy = MemoryPolicy {
        mode: 2 | 1 << 15,
        nodes: vec![0, 2, 3],
    };
    let both = [
        Step::IoPriority(2 << 13 | 7),
        label(Lsm::AppArmor, "a-profile"),
        label(Lsm::SeLinux, "a_u:b_r:c_t:s0"),
        Step::MemoryPolicy(policy),
        Step::Personality(8),
    ];
    for step in &both {
        assert!(plan.steps.contains(step), "{step:?}");
    }
    assert!(!plan.steps.contains(&Step::Cpus(vec![1])));
    let bare = exec(br#"{"user":{},"cwd":"/","args":["id"]}"#, false, &plan.exec).unwrap();
    assert_eq!(bare.initial_cpus, Some(vec![0, 1]));
    for step in both
        .iter()
        .chain(&[Step::Cpus(vec![1]), Step::Scheduling(FIFO)])
    {
        assert!(bare.steps.contains(step), "{step:?}");
    }
}

#[test]
fn an_execs_own_word_wins() {
    let plan = given().container(&facts()).unwrap();
    let process = json!({"user": {}, "cwd": "/", "args": ["id"],
        "scheduler": {"policy": "SCHED_OTHER", "nice": 5},
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
        "execCPUAffinity": {"final": "0"}, "apparmorProfile": "unconfined"});
    let own = exec(process.to_string().as_bytes(), false, &plan.exec).unwrap();
    let other = Scheduling {
        nice: 5,
        ..Scheduling::default()
    };
    assert_eq!(own.initial_cpus, None);
    let unconfined = Step::ExecLabel(Label {
        lsm: Lsm::AppArmor,
        label: "unconfined".into(),
    });
    for step in [
        Step::Scheduling(other),
        Step::IoPriority(3 << 13),
        Step::Cpus(vec![0]),
        unconfined,
    ] {
        assert!(own.steps.contains(&step), "{step:?}");
    }
}

#[test]
fn each_policy_and_flag_has_the_kernels_number() {
    let of = |scheduler: Value| {
        let given = Given::cri_container().set("/process/scheduler", scheduler);
        given.container(&facts()).unwrap().scheduling.unwrap()
    };
    let policies = ["OTHER", "FIFO", "RR", "BATCH", "IDLE", "DEADLINE"];
    for (name, number) in policies.iter().zip([0, 1, 2, 3, 5, 6]) {
        assert_eq!(
            of(json!({"policy": format!("SCHED_{name}")})).policy,
            number,
            "{name}"
        );
    }
    let flags = [
        "SCHED_RESET_ON_FORK",
        "SCHED_FLAG_RECLAIM",
        "SCHED_FLAG_DL_OVERRUN",
        "SCHED_FLAG_KEEP_POLICY",
        "SCHED_FLAG_KEEP_PARAMS",
        "SCHED_FLAG_UTIL_CLAMP_MIN",
        "SCHED_FLAG_UTIL_CLAMP_MAX",
    ];
    for (bit, name) in flags.iter().enumerate() {
        let got = of(json!({"policy": "SCHED_OTHER", "flags": [name]}));
        assert_eq!(got.flags, 1 << bit, "{name}");
    }
    let deadline =
        of(json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}));
    assert_eq!(
        (
            deadline.runtime_ns,
            deadline.deadline_ns,
            deadline.period_ns
        ),
        (1, 2, 3)
    );
}

#[test]
fn a_mount_label_holds_for_all_that_is_mounted_new() {
    let label = "a_u:b_r:c_t:s0:c1,c2";
    let given = Given::cri_container().set("/linux/mountLabel", label);
    let plan = given.container(&facts()).unwrap();
    assert_eq!(plan.steps[1], Step::MountLabel(label.to_owned()));
    let error = Given::cri_sandbox()
        .set("/linux/mountLabel", label)
        .pod()
        .unwrap_err();
    let want = "linux.mountLabel: the sandbox of a pod runs no process and mounts no file system \
        of its spec; put it into the specs of the containers";
    assert_eq!(error.to_string(), want);
}
