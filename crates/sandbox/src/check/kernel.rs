//! Probes of the kernel.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::{Extent, IdMap, Ids};
use berm_sys::mount::{SetAttr, attr, set_attr};
use berm_sys::process::{Fork, clone3, exit, flags, fork, install_seccomp, unshare};
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_fd, fsmount, fsopen, mount, mount_change,
    move_mount, open_tree,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, chdir, getpid, waitid, waitpid};
use rustix::thread::set_no_new_privs;

use super::{Finding, Verdict};
use crate::config::Config;
use crate::ids::RANGE;
use crate::process::open_pidfd;

type Probed = Result<String, String>;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let userns = user_namespace(config);
    let user = userns.as_ref().map(AsFd::as_fd).map_err(Clone::clone);
    let missing = Verdict::Missing;
    let mut all = namespaces(user.clone());
    all.push(Finding::new(
        "idmapped tmpfs",
        "pods run without a user namespace, unless they bring their own (hostUsers: false): \
         kubelet's secrets and tokens lie in memory. Root in such a pod is root of the node: \
         not a security boundary. hostUsers: false pods with volumes in memory are refused \
         (Linux 6.3)",
        Verdict::Degraded,
        user.clone().and_then(idmapped_tmpfs),
    ));
    let images = existing(Path::new("/var/lib/containerd"));
    for path in [existing(&config.state_dir), images.clone()] {
        let probed = user.clone().and_then(|user| idmapped(&path, user));
        all.push(Finding::new(
            format!("idmapped mounts of {}", path.display()),
            "images and volumes on that file system are refused",
            Verdict::Degraded,
            probed,
        ));
    }
    all.extend([
        Finding::new(
            "overlay on idmapped layers",
            "images of containerd's overlay snapshotter are refused (Linux 5.19)",
            missing,
            user.clone()
                .and_then(|user| attached_overlay(&images, user)),
        ),
        Finding::new(
            "detached overlay layers",
            "up to 0.1 ms at the creation of a container: its layers are attached in a mount \
             namespace for a moment (Linux 6.15)",
            Verdict::Degraded,
            user.and_then(overlay),
        ),
    ]);
    all.extend(processes());
    all
}

/// What a caller needs that is root only in a user namespace: nothing is idmapped there.
pub(super) fn check_rootless(ids: &Ids) -> Vec<Finding> {
    let userns = user_namespace_of(ids);
    let mut all = namespaces(userns.as_ref().map(AsFd::as_fd).map_err(Clone::clone));
    all.extend(processes());
    all
}

fn namespaces(user: Result<BorrowedFd<'_>, String>) -> Vec<Finding> {
    vec![
        Finding::new(
            "user namespaces",
            "no sandbox can be made: each has a user namespace of its own",
            Verdict::Missing,
            user.map(|_| "made one".to_owned()),
        ),
        Finding::new(
            "mount API",
            "no container can be made: mounts are built detached (fsopen, fsmount; Linux 5.2)",
            Verdict::Missing,
            tmpfs().map(|_| "detached tmpfs".to_owned()),
        ),
    ]
}

fn processes() -> Vec<Finding> {
    vec![
        Finding::new(
            "pidfd",
            "no process can be watched (pidfd_open, waitid(P_PIDFD); Linux 5.4)",
            Verdict::Missing,
            pidfd(),
        ),
        Finding::new(
            "seccomp",
            "no container with a seccomp profile can be started",
            Verdict::Missing,
            seccomp(),
        ),
    ]
}

fn text(call: &'static str) -> impl Fn(rustix::io::Errno) -> String {
    move |errno| format!("{call}: {errno}")
}

fn io_text(call: &'static str) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{call}: {error}")
}

/// The nearest directory above that exists.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|path| path.exists());
    found.unwrap_or(Path::new("/")).to_owned()
}

/// A user namespace with a map of the pool's first ids; its only process ends at once.
pub(crate) fn user_namespace(config: &Config) -> Result<OwnedFd, String> {
    let map = IdMap(vec![Extent {
        inside: 0,
        outside: config.id_pool_start,
        count: RANGE,
    }]);
    user_namespace_of(&Ids {
        uids: map.clone(),
        gids: map,
    })
}

fn user_namespace_of(ids: &Ids) -> Result<OwnedFd, String> {
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(text("pipe2"))?;
    let (side, pidfd) = clone3(flags::NEWUSER).map_err(io_text("clone3(CLONE_NEWUSER)"))?;
    let pid = match side {
        Fork::Child => {
            drop(go);
            // Ends with the parent's end of the pipe.
            let _ = rustix::io::read(&wait, &mut [0]);
            exit(0)
        }
        Fork::Parent(pid) => pid,
    };
    let opened = map_ids(ids, pid);
    drop(go);
    let pidfd = pidfd.ok_or("clone3: no pidfd")?;
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).map_err(text("waitid"))?;
    opened
}

fn map_ids(ids: &Ids, pid: i32) -> Result<OwnedFd, String> {
    for (file, map) in [("uid_map", &ids.uids), ("gid_map", &ids.gids)] {
        fs::write(format!("/proc/{pid}/{file}"), map.to_kernel())
            .map_err(|e| format!("write(/proc/<pid>/{file}): {e}"))?;
    }
    let ns = fs::File::open(format!("/proc/{pid}/ns/user"));
    Ok(ns.map_err(io_text("open(/proc/<pid>/ns/user)"))?.into())
}

fn mounted(context: &OwnedFd, name: &str) -> Result<OwnedFd, String> {
    fsconfig_create(context).map_err(|e| format!("fsconfig({name}, CMD_CREATE): {e}"))?;
    let attributes = MountAttrFlags::empty();
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| format!("fsmount({name}): {e}"))
}

fn open_fs(name: &str) -> Result<OwnedFd, String> {
    fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| format!("fsopen({name}): {e}"))
}

fn tmpfs() -> Result<OwnedFd, String> {
    mounted(&open_fs("tmpfs")?, "tmpfs")
}

fn idmap(mount: &OwnedFd, userns: BorrowedFd<'_>) -> Result<(), String> {
    let change = SetAttr {
        set: attr::IDMAP,
        clear: 0,
        propagation: 0,
    };
    set_attr(mount.as_fd(), false, change, Some(userns))
        .map_err(io_text("mount_setattr(MOUNT_ATTR_IDMAP)"))
}

fn idmapped_tmpfs(userns: BorrowedFd<'_>) -> Probed {
    idmap(&tmpfs()?, userns).map(|()| "works".to_owned())
}

fn idmapped(path: &Path, userns: BorrowedFd<'_>) -> Probed {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(text("open_tree(OPEN_TREE_CLONE)"))?;
    idmap(&tree, userns).map(|()| "works".to_owned())
}

fn overlay(userns: BorrowedFd<'_>) -> Probed {
    let context = open_fs("overlay")?;
    // Without an upper layer the overlay wants two lower ones.
    let layers = [tmpfs()?, tmpfs()?];
    for layer in &layers {
        idmap(layer, userns)?;
        fsconfig_set_fd(&context, "lowerdir+", layer.as_fd())
            .map_err(text("fsconfig(overlay, lowerdir+, fd)"))?;
    }
    mounted(&context, "overlay").map(|_| "idmapped layers by descriptor".to_owned())
}

/// Layers that are attached, as they are for an overlay on older kernels, in a child.
fn attached_overlay(images: &Path, userns: BorrowedFd<'_>) -> Probed {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let layer = open_tree(CWD, images, flags).map_err(text("open_tree(OPEN_TREE_CLONE)"))?;
    idmap(&layer, userns)?;
    let scratch = tmpfs()?;
    in_child("mount(overlay)", || {
        unshare(flags::NEWNS).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        let fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&scratch, "", CWD, images, fd)?;
        chdir(images)?;
        for name in ["idmapped", "plain", "overlay"] {
            mkdirat(CWD, name, Mode::from_raw_mode(0o755))?;
        }
        move_mount(&layer, "", CWD, "idmapped", fd)?;
        let lower = Some(c"lowerdir=idmapped:plain");
        mount("overlay", "overlay", "overlay", MountFlags::empty(), lower)
    })
}

fn pidfd() -> Probed {
    open_pidfd(getpid().as_raw_nonzero().get()).map_err(|e| e.chain())?;
    Ok("works".to_owned())
}

/// A filter that allows everything, in a child.
fn seccomp() -> Probed {
    // BPF_RET | BPF_K with SECCOMP_RET_ALLOW (linux/seccomp.h).
    const ALLOW: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
    in_child("seccomp(SECCOMP_SET_MODE_FILTER)", || {
        set_no_new_privs(true)?;
        let installed = install_seccomp(&[ALLOW], 0);
        installed
            .map(drop)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    })
}

/// Runs `probe` in a child, which ends with it.
fn in_child(call: &'static str, probe: impl FnOnce() -> rustix::io::Result<()>) -> Probed {
    match fork().map_err(io_text("fork"))? {
        // An errno is less than 134, an exit code than 256.
        Fork::Child => exit(probe().err().map_or(0, Errno::raw_os_error)),
        Fork::Parent(pid) => {
            let pid = Pid::from_raw(pid).ok_or("fork: no pid")?;
            let ended = waitpid(Some(pid), WaitOptions::empty()).map_err(text("waitpid"))?;
            match ended.and_then(|(_, status)| status.exit_status()) {
                Some(0) => Ok("works".to_owned()),
                Some(errno) => Err(text(call)(Errno::from_raw_os_error(errno))),
                None => Err(format!("{call}: the child died")),
            }
        }
    }
}
