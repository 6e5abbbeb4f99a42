//! What a process knows of its host once, before its first sandbox.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use berm_cgroup::CgroupPath;
use berm_plan::{PodNamespaces, Spec, TaskKind};
use berm_stage::{PidNs, Scratch};
use rustix::fs::{
    AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, memfd_create,
    openat, statat, statfs,
};
use rustix::io::Errno;

use berm_sys::Kernel;
use berm_sys::argv::Argv;

use crate::config::Config;
use crate::error::{Error, call};
use crate::namespace;
use crate::rootless::Nested;

/// linux/magic.h
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// `berm-init`, compiled by build.rs.
static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/berm-init"));

/// The host side of every sandbox of this process.
#[derive(Debug)]
pub struct Host {
    pub(crate) config: Config,
    pub(crate) cgroup: Arc<berm_cgroup::Host>,
    /// What the kernel can.
    pub(crate) kernel: Kernel,
    /// The host's `/proc`, O_PATH.
    pub(crate) proc: OwnedFd,
    /// The PID namespace of this process.
    pub(crate) pidns: OwnedFd,
    /// The namespaces of this process: the host's.
    pub(crate) namespaces: PodNamespaces,
    /// Set where this process is in a user namespace itself: it is not root of the host.
    pub(crate) nested: Option<Nested>,
    /// The command line of this process.
    pub(crate) argv: Option<Argv>,
    empty: OnceCell<OwnedFd>,
    init: OnceCell<OwnedFd>,
}

impl Host {
    /// Looks at the host. A caller that is root only in a user namespace makes pods without
    /// cgroups, inside that namespace's ids: see [`crate::rootless`].
    /// # Errors
    /// Where `/proc` or the cgroup hierarchies cannot be opened.
    pub fn detect(config: Config) -> Result<Self, Error> {
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, "/proc", path, Mode::empty()).map_err(call("open(\"/proc\")"))?;
        let pidns = openat(
            &proc,
            "self/ns/pid",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(call("open(\"/proc/self/ns/pid\")"))?;
        let nested = Nested::detect()?;
        let cgroup = match nested {
            Some(_) => berm_cgroup::Host::without(),
            None => berm_cgroup::Host::detect()?,
        };
        let kernel = config
            .kernel
            .unwrap_or_else(|| Kernel::probe(|| crate::check::user_namespace(&config)));
        let namespaces = namespace::all_of(std::process::id().cast_signed())?;
        Ok(Self {
            config,
            namespaces,
            nested,
            cgroup,
            kernel,
            proc,
            pidns,
            argv: Argv::find(),
            empty: OnceCell::new(),
            init: OnceCell::new(),
        })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the kernel can.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Those of `paths` that are this process's own namespaces.
    pub(crate) fn own_among(&self, paths: Vec<PathBuf>) -> Vec<PathBuf> {
        let PodNamespaces {
            net,
            ipc,
            uts,
            pid,
            user: _,
        } = self.namespaces;
        let own = |path: &PathBuf| {
            let inode = statat(CWD, path, AtFlags::empty()).map(|stat| stat.st_ino);
            inode.is_ok_and(|inode| [net, ipc, uts, pid].contains(&inode))
        };
        paths.into_iter().filter(own).collect()
    }

    /// True where the kernel cannot idmap a tmpfs and the pod will have volumes on one: a CRI pod,
    /// whose containers come later, or a pod of one whose spec binds some.
    pub(crate) fn lacks_idmaps_for(&self, spec: &Spec) -> bool {
        if self.kernel.idmapped_tmpfs {
            return false;
        }
        let on_tmpfs = |path: &PathBuf| statfs(path).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC);
        *spec.kind() == TaskKind::Sandbox || spec.bind_sources().iter().any(on_tmpfs)
    }

    /// Refuses what only a cgroup can give where there are none.
    pub(crate) fn need_cgroups(&self, what: &'static str) -> Result<(), Error> {
        match self.nested {
            Some(_) => Err(Error::NoCgroups { what }),
            None => Ok(()),
        }
    }

    /// What a record says of a cgroup: without root there is none to be found and removed.
    pub(crate) fn recorded<'a>(&self, path: &'a CgroupPath) -> Option<&'a CgroupPath> {
        self.nested.is_none().then_some(path)
    }

    /// For a stage child that is born in another PID namespace.
    pub(crate) fn born_in<'a>(&'a self, target: BorrowedFd<'a>) -> PidNs<'a> {
        PidNs {
            target,
            own: self.nested.is_none().then(|| self.pidns.as_fd()),
            argv: self.argv,
        }
    }

    /// Makes what the first sandbox needs and no spec decides, so that its Create finds it ready.
    /// # Errors
    /// As [`crate::Sandbox::create`] would meet them.
    pub fn prepare(&self) -> Result<(), Error> {
        crate::record::sweep(&self.config)?;
        self.empty().map(drop)?;
        self.init().map(drop)
    }

    /// A mount namespace with an empty directory: made once, its copies cost the same however
    /// many mounts the host has.
    pub(crate) fn empty(&self) -> Result<BorrowedFd<'_>, Error> {
        if self.empty.get().is_none() {
            // A second value cannot be set: nothing else runs between the check and here.
            let _: Result<(), OwnedFd> = self.empty.set(berm_stage::empty_mount_namespace()?);
        }
        self.empty.get().map(AsFd::as_fd).ok_or(Error::Died {
            last: "EmptyMountNamespace",
        })
    }

    /// What mounts are made with that the pod's hints have no part in.
    pub(crate) fn scratch(&self) -> Result<Scratch<'_>, Error> {
        Ok(Scratch {
            kernel: self.kernel,
            proc: self.proc.as_fd(),
            empty: self.empty()?,
            hinted: None,
        })
    }

    /// `berm-init` in a sealed memfd that nobody may read: the kernel then keeps root of the pod
    /// from looking into the process that runs it.
    pub(crate) fn init(&self) -> Result<BorrowedFd<'_>, Error> {
        if self.init.get().is_none() {
            let _: Result<(), OwnedFd> = self.init.set(init_memfd()?);
        }
        self.init
            .get()
            .map(AsFd::as_fd)
            .ok_or(Error::Died { last: "InitMemfd" })
    }
}

fn init_memfd() -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match memfd_create("berm-init", flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 have no such flag, and no need of it.
        Err(Errno::INVAL) => memfd_create("berm-init", flags),
        made => made,
    }
    .map_err(call("memfd_create()"))?;
    let mut rest = INIT;
    while !rest.is_empty() {
        let written = rustix::io::write(&memfd, rest).map_err(call("write(memfd)"))?;
        rest = &rest[written..];
    }
    fchmod(&memfd, Mode::from_raw_mode(0o111)).map_err(call("fchmod(memfd)"))?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&memfd, all).map_err(call("fcntl(F_ADD_SEALS)"))?;
    // execve wants a file that nobody has open for writing.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memfd));
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(call("open(memfd)"))
}
