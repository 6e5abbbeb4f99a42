//! Specs and facts that the tests start from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berm_plan::{
    Attributes, CapSets, CgroupView, ContainerFacts, ContainerPlan, Error, ExecBase, Extent, IdMap,
    Ids, PodNamespaces, Rootfs, Spec, Step, container,
};
use serde_json::Value;

/// Filled-in placeholders of the captured specs.
const SANDBOX_PID: &str = "4711";

/// A spec that can be changed before it is parsed.
#[derive(Clone, Debug)]
pub(crate) struct Given(pub(crate) Value);

impl Given {
    /// A container of a CRI pod (captured from containerd 2.3.4).
    pub(crate) fn cri_container() -> Self {
        Self::captured(include_str!("../../../testkit/data/cri-container.json"))
    }

    /// The sandbox of a CRI pod (captured from containerd 2.3.4).
    pub(crate) fn cri_sandbox() -> Self {
        Self::captured(include_str!("../../../testkit/data/cri-sandbox.json"))
    }

    /// `ctr run --rootfs --seccomp` (captured from containerd 2.3.4).
    pub(crate) fn ctr_run() -> Self {
        Self::captured(include_str!("../data/ctr-run.json"))
    }

    fn captured(text: &str) -> Self {
        let text = text
            .replace("@SANDBOX_PID@", SANDBOX_PID)
            .replace("@POD_DIR@", "/pods/p1")
            .replace("@NETNS@", "/run/netns/cni-1")
            .replace("@SANDBOX_ID@", "s1")
            .replace("@CONTAINER_ID@", "c1")
            .replace("@CGROUP_PARENT@", "/kubepods/pod1");
        Self(serde_json::from_str(&text).unwrap())
    }

    /// Sets what a JSON pointer names; `-` at its end appends to a list.
    pub(crate) fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/");
        match self
            .0
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("no {parent}"))
        {
            Value::Object(map) => drop(map.insert(key, value.into())),
            Value::Array(list) if key == "-" => list.push(value.into()),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.into(),
            other => panic!("{parent} is {other}"),
        }
        self
    }

    /// Removes the key that a JSON pointer names.
    pub(crate) fn without(mut self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match self.0.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.remove(key).unwrap()),
            Value::Array(list) => drop(list.remove(key.parse().unwrap())),
            other => panic!("{parent} is {other}"),
        }
        self
    }

    /// Appends a mount.
    pub(crate) fn mount(
        self,
        destination: &str,
        typ: &str,
        source: &str,
        options: &[&str],
    ) -> Self {
        let mount = serde_json::json!({
            "destination": destination, "type": typ, "source": source, "options": options});
        self.set("/mounts/-", mount)
    }

    /// Replaces the namespaces, given as (type, path or "").
    pub(crate) fn namespaces(self, list: &[(&str, &str)]) -> Self {
        let one = |(typ, path): &(&str, &str)| serde_json::json!({"type": typ, "path": path});
        self.set(
            "/linux/namespaces",
            list.iter().map(one).collect::<Vec<_>>(),
        )
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec::parse(self.0.to_string().as_bytes()).unwrap()
    }

    pub(crate) fn parse(&self) -> Result<Spec, Error> {
        Spec::parse(self.0.to_string().as_bytes())
    }

    pub(crate) fn pod(&self) -> Result<berm_plan::PodPlan, Error> {
        berm_plan::pod(
            &self.parse()?,
            &berm_plan::Policy::default(),
            &berm_plan::PodFacts::default(),
        )
    }

    pub(crate) fn container(&self, facts: &ContainerFacts) -> Result<ContainerPlan, Error> {
        container(&self.parse()?, facts)
    }
}

/// The map of an `auto` pod.
pub(crate) fn auto_ids() -> Ids {
    let map = || {
        IdMap(vec![Extent {
            inside: 0,
            outside: 0x7000_0000,
            count: 65_536,
        }])
    };
    Ids {
        uids: map(),
        gids: map(),
    }
}

/// Path of a namespace of the sandbox.
pub(crate) fn ns(name: &str) -> String {
    format!("/proc/{SANDBOX_PID}/ns/{name}")
}

/// What the host says about a container of an `auto` pod.
pub(crate) fn facts() -> ContainerFacts {
    let pod = PodNamespaces {
        net: 1,
        ipc: 2,
        uts: 3,
        pid: 4,
        user: 5,
    };
    let mut inodes: BTreeMap<PathBuf, Option<u64>> = BTreeMap::new();
    for (name, inode) in [("net", 1), ("ipc", 2), ("uts", 3), ("pid", 4), ("user", 5)] {
        inodes.insert(ns(name).into(), Some(inode));
    }
    inodes.insert("/proc/1/ns/net".into(), Some(77));
    inodes.insert("/proc/1/ns/pid".into(), Some(78));
    inodes.insert("/proc/9/ns/ipc".into(), None);
    ContainerFacts {
        id: "c1".into(),
        bundle: "/bundle".into(),
        ids: auto_ids(),
        pod,
        inodes,
        owns_netns: false,
        shares: berm_plan::HostShares::default(),
        pidns_of_containers: BTreeMap::new(),
        hints: berm_plan::MountHints::default(),
        allow_annotations: Vec::new(),
        root: false,
        hostname: Some("bench".into()),
        domainname: None,
        rootfs: Rootfs::Bind {
            path: "/bundle/rootfs".into(),
            recursive: true,
            ro: false,
        },
        rootfs_upper: berm_plan::RootfsUpper::default(),
        cgroup_views: vec![CgroupView {
            name: "memory".into(),
            links: Vec::new(),
            host_dir: "/sys/fs/cgroup/memory/kubepods/pod1/c1".into(),
        }],
        terminal: false,
        allow_dead_capabilities: false,
    }
}

/// The facts of a pod of one, whose network namespace is its own.
pub(crate) fn root_facts() -> ContainerFacts {
    ContainerFacts {
        root: true,
        owns_netns: true,
        ..facts()
    }
}

/// What execs of a container without filter inherit.
pub(crate) fn base() -> ExecBase {
    ExecBase {
        seccomp: None,
        listener: None,
        capabilities: CapSets::default(),
        rlimits: Vec::new(),
        attributes: Attributes::default(),
        ids: auto_ids(),
        timens: false,
        keyring: "_ses.c1".to_owned(),
        owns_netns: false,
        allow_dead_capabilities: false,
    }
}

/// The names of steps, in order.
pub(crate) fn names(steps: &[Step]) -> Vec<&'static str> {
    steps.iter().map(Step::name).collect()
}

/// Finds the only step that `pick` takes.
pub(crate) fn only<'a, T>(steps: &'a [Step], pick: impl Fn(&'a Step) -> Option<T>) -> T {
    let mut found: Vec<T> = steps.iter().filter_map(pick).collect();
    assert_eq!(found.len(), 1);
    found.remove(0)
}
