/// A kernel controller, in the words of v1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is the controller of that name
pub enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Devices,
    Freezer,
    /// `io` on v2
    Blkio,
    Pids,
    Hugetlb,
    NetCls,
    NetPrio,
    Rdma,
    PerfEvent,
    Misc,
}

impl Controller {
    const ALL: [Self; 14] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Devices,
        Self::Freezer,
        Self::Blkio,
        Self::Pids,
        Self::Hugetlb,
        Self::NetCls,
        Self::NetPrio,
        Self::Rdma,
        Self::PerfEvent,
        Self::Misc,
    ];

    /// The name as v1 mounts it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Blkio => "blkio",
            Self::Pids => "pids",
            Self::Hugetlb => "hugetlb",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::Rdma => "rdma",
            Self::PerfEvent => "perf_event",
            Self::Misc => "misc",
        }
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|controller| controller.name() == name)
    }

    /// The controller that v2 calls `name`.
    pub(crate) fn by_v2_name(name: &str) -> Option<Self> {
        Self::by_name(if name == "io" { "blkio" } else { name })
    }
}

/// A set of controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Controllers(u16);

impl Controllers {
    pub(crate) fn contains(self, controller: Controller) -> bool {
        self.0 & (1 << controller as u16) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl<'a> FromIterator<&'a str> for Controllers {
    /// Names that are no controllers (mount options) are skipped.
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        let known = names.into_iter().filter_map(Controller::by_v2_name);
        Self(known.fold(0, |set, controller| set | 1 << controller as u16))
    }
}
