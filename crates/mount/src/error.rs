//! What can go wrong when a tree is built.

use std::io;
use std::path::PathBuf;

use berm_sys::Kind;
use rustix::io::Errno;

/// A failed operation in syscall notation, or a refusal that names its way out.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("mounts[{index}] {target:?}")]
    Entry {
        index: usize,
        target: PathBuf,
        source: Box<Self>,
    },
    #[error("mount hint {name:?}")]
    Hint { name: String, source: Box<Self> },
    #[error("the tmpfs of mount hint {name:?} was not made with the pod")]
    NotMade { name: String },
    #[error("rootfs_upper")]
    Upper { source: Box<Self> },
    #[error("without root there is no loop device for a layer in a file; use \"memory\"")]
    NoLoop,
    #[error(
        "rootfs_upper memory: a tmpfs of this kernel has no attributes that somebody without root \
         may set (Linux 6.6); run it as root"
    )]
    NoUserXattrs,
    #[error("the host has made no file for it")]
    NoUpperFile,
    #[error(
        "rootfs_upper: {mount:?} is mounted below {path:?}, and a layer over that would not show \
         it; unmount it, or use \"none\""
    )]
    MountedBelow { path: PathBuf, mount: PathBuf },
    #[error("fsopen({fs:?})")]
    FsOpen { fs: String, source: Errno },
    #[error("fsconfig({fs:?}, {key:?}, {value:?})")]
    FsConfig {
        fs: String,
        key: String,
        value: String,
        source: Errno,
    },
    #[error("fsconfig({fs:?}, CMD_CREATE){hint}")]
    FsCreate {
        fs: String,
        hint: String,
        source: Errno,
    },
    #[error("linux.mountLabel: SELinux does not take {label:?} as the context of a {fs}")]
    Label {
        fs: String,
        label: String,
        source: Errno,
    },
    #[error("fsmount({fs:?})")]
    FsMount { fs: String, source: Errno },
    #[error("open_tree({path:?}, CLONE)")]
    OpenTree { path: PathBuf, source: Errno },
    #[error("mount_setattr({path:?}, {set:#x})")]
    SetAttr {
        path: PathBuf,
        set: u64,
        source: io::Error,
    },
    #[error(
        "{path:?} is on {fs}, which cannot be idmapped here; use a volume of another file system, \
         or a pod without a user namespace"
    )]
    Idmap {
        path: PathBuf,
        fs: String,
        source: io::Error,
    },
    #[error(
        "{fs} cannot be idmapped here; use a snapshotter with ext4, xfs, btrfs or erofs, or a pod \
         without a user namespace"
    )]
    IdmapFs { fs: String, source: io::Error },
    #[error("rootfs[0] {fs} on {path:?}")]
    Root {
        fs: String,
        path: PathBuf,
        source: Box<Self>,
    },
    #[error("{call}({path:?}) for a loop device")]
    Loop {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path:?} is no regular file; \"loop\" is for an image in a file, a device needs none")]
    NoImage { path: PathBuf },
    #[error(
        "{path:?} is on an overlay whose layers cannot be told; mount them elsewhere, or use a \
         pod without a user namespace"
    )]
    Layers { path: PathBuf },
    #[error("read(\"/proc/self/mountinfo\")")]
    MountInfo { source: io::Error },
    #[error("{call} for an id map")]
    UserNs {
        call: &'static str,
        source: io::Error,
    },
    #[error("copy of {path:?} into its tmpfs")]
    CopyUp { path: PathBuf, source: Errno },
    #[error("move_mount({path:?})")]
    MoveMount { path: PathBuf, source: Errno },
    #[error("openat2(rootfs, {path:?}, RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS)")]
    Resolve { path: PathBuf, source: Errno },
    #[error("{path:?} is a {found} in the rootfs, but a {wanted} is mounted there")]
    Shape {
        path: PathBuf,
        found: &'static str,
        wanted: &'static str,
    },
    #[error("mkdirat({path:?})")]
    MakeDir { path: PathBuf, source: Errno },
    #[error("mknodat({path:?})")]
    MakeNode { path: PathBuf, source: Errno },
    #[error("symlinkat({path:?})")]
    Link { path: PathBuf, source: Errno },
    #[error("{path:?} is not the device {major}:{minor} that was asked for")]
    OtherDevice {
        path: PathBuf,
        major: u32,
        minor: u32,
    },
    #[error("linux.devices {path:?}: {reason}; without root a device can only be the host's own")]
    HostDevice { path: PathBuf, reason: String },
    #[error("fchownat({path:?}, {uid}, {gid})")]
    Chown {
        path: PathBuf,
        uid: u32,
        gid: u32,
        source: Errno,
    },
    #[error("fstat({path:?})")]
    Stat { path: PathBuf, source: Errno },
    #[error(
        "the overlay came up read-only: its upper directory is not writable for the pod's root"
    )]
    ReadOnlyOverlay,
    #[error("setfsuid({uid}), setfsgid({gid})")]
    FsIds {
        uid: u32,
        gid: u32,
        source: io::Error,
    },
    #[error("mount(\"overlay\", {data:?})")]
    MountOverlay { data: String, source: Errno },
    #[error("setns(empty mount namespace)")]
    EnterEmpty { source: io::Error },
    #[error("setns(container, CLONE_NEWNS)")]
    EnterContainer { source: io::Error },
    #[error("setns(own mount namespace)")]
    LeaveEmpty { source: io::Error },
    #[error("unshare(CLONE_NEWNS)")]
    Unshare { source: io::Error },
    #[error("mount(\"/\", MS_REC|MS_SLAVE)")]
    Propagation { source: Errno },
    #[error("pivot_root(\".\", \".\")")]
    Pivot { source: Errno },
}

impl Error {
    /// The same failure, as one of an entry of the spec's `mounts`.
    pub(crate) fn of(self, index: usize, target: &std::path::Path) -> Self {
        Self::Entry {
            index,
            target: target.into(),
            source: Box::new(self),
        }
    }

    /// The same failure, as one of what a hint asks for.
    pub(crate) fn of_hint(self, name: &str) -> Self {
        Self::Hint {
            name: name.to_owned(),
            source: Box::new(self),
        }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Entry { source, .. } | Self::Root { source, .. } | Self::Hint { source, .. } => {
                source.kind()
            }
            Self::Upper { source } => source.kind(),
            Self::Idmap { .. }
            | Self::IdmapFs { .. }
            | Self::Layers { .. }
            | Self::MountedBelow { .. }
            | Self::NoLoop
            | Self::NoUserXattrs
            | Self::HostDevice { .. } => Kind::NotSupported,
            Self::NoImage { .. } | Self::Shape { .. } | Self::OtherDevice { .. } => {
                Kind::InvalidArgument
            }
            Self::FsOpen { source, .. } if *source == Errno::NODEV => Kind::NotSupported,
            Self::OpenTree { source, .. } | Self::Resolve { source, .. } => {
                Kind::of_errno(source.raw_os_error())
            }
            Self::Label { .. }
            | Self::FsConfig { .. }
            | Self::FsCreate { .. }
            | Self::MountOverlay { .. } => Kind::InvalidArgument,
            other => other.errno().map_or(Kind::Internal, Kind::of_errno),
        }
    }

    /// An overlay may have been refused because of what its layers are: by descriptor, or not
    /// attached anywhere.
    pub(crate) fn may_mean_detached(&self) -> bool {
        match self {
            Self::FsConfig { source, .. } => {
                matches!(*source, Errno::BADF | Errno::OPNOTSUPP | Errno::INVAL)
            }
            Self::FsCreate { source, .. } => *source == Errno::INVAL,
            _ => false,
        }
    }

    /// Which of two failures of the same overlay says more: a kernel that took the layers and
    /// refused the whole gave its reason.
    pub(crate) fn or(self, second: Self) -> Self {
        match self {
            Self::FsCreate { .. } => self,
            _ => second,
        }
    }

    fn errno(&self) -> Option<i32> {
        use std::error::Error as _;
        let source = self.source()?;
        if let Some(errno) = source.downcast_ref::<Errno>() {
            return Some(errno.raw_os_error());
        }
        source.downcast_ref::<io::Error>()?.raw_os_error()
    }
}
