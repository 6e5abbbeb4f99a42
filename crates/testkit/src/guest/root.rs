//! The guest's root file system: the machine's own release with systemd, and one job.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::apt::{self, files, has_extension};
use super::cache;
use super::kernel::Kernel;
use crate::command;
use crate::error::{Error, file};

const JOB: &str = include_str!("../../data/guest/job");
const UNIT: &str = include_str!("../../data/guest/guest-job.service");

/// What is on it beside the essential packages.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,util-linux,bsdutils,mount,procps,\
    iproute2,e2fsprogs,erofs-utils,ca-certificates,busybox-static,runc,crun,containernetworking-plugins,\
    iptables,nftables,psmisc,apparmor,libseccomp2";

/// Written over what the packages bring.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "guest\n"),
    ("etc/hosts", "127.0.0.1 localhost guest\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ("etc/fstab", ""),
    (
        "etc/modules-load.d/guest.conf",
        "overlay\nbr_netfilter\nveth\nbridge\nnf_tables\n",
    ),
    ("etc/systemd/system/guest-job.service", UNIT),
];

/// Units that cost time under emulation and serve nothing here; so do the timers.
const MASKED: &[&str] = &[
    "apparmor.service",
    "console-getty.service",
    "e2scrub_reap.service",
    "getty.target",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
];

const SIZE: &str = "6G";
const LIMIT: Duration = Duration::from_secs(1800);

/// The disk with the modules of `kernel`, in the cache.
/// # Errors
/// What the tools say that make it.
pub(super) fn ensure(kernel: &Kernel) -> Result<PathBuf, Error> {
    let release = apt::release()?;
    let root_key = cache::key(&[PACKAGES, &release]);
    let root = cache::entry(&format!("root-{root_key}"), |dir| {
        bootstrap(&release, &dir.join("root"))
    })?;
    let mut parts = vec![root_key.as_str(), &kernel.version, SIZE];
    parts.extend(FILES.iter().flat_map(|(name, text)| [*name, *text]));
    parts.extend(MASKED);
    parts.push(JOB);
    let image = cache::entry(&format!("disk-{}", cache::key(&parts)), |dir| {
        build(&root.join("root"), kernel, dir)
    })?;
    Ok(image.join("root.ext4"))
}

fn bootstrap(release: &str, root: &Path) -> Result<(), Error> {
    eprintln!("building the guest's root file system");
    command::insist(|| bootstrap_once(release, root))
}

fn bootstrap_once(release: &str, root: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file("rm -r", root)(error));
        }
        _ => {}
    }
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={PACKAGES}"))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=Acquire::Retries \"5\"")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(release)
        .arg(root)
        .arg(apt::mirror()?);
    command::run(mmdebstrap, b"", LIMIT)?.ok().map(drop)
}

fn build(base: &Path, kernel: &Kernel, dir: &Path) -> Result<(), Error> {
    eprintln!("building the guest's disk for {}", kernel.version);
    let root = dir.join("root");
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(base).arg(&root);
    command::run(copy, b"", LIMIT)?.ok()?;
    dress(&root)?;
    let modules = root.join("usr/lib/modules");
    std::fs::create_dir_all(&modules).map_err(file("mkdir", &modules))?;
    let mut copy = Command::new("cp");
    copy.arg("-a")
        .arg(kernel.dir.join("lib/modules").join(&kernel.version))
        .arg(&modules);
    command::run(copy, b"", LIMIT)?.ok()?;
    filesystem(&root, &dir.join("root.ext4"), SIZE)?;
    std::fs::remove_dir_all(&root).map_err(file("rm -r", root))
}

/// Makes an ext4 file system of `size` with the files of `dir`, without a mount.
pub(super) fn filesystem(dir: &Path, image: &Path, size: &str) -> Result<(), Error> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
        .args(["-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
        .arg(dir)
        .arg(image)
        .arg(size);
    command::run(mke2fs, b"", LIMIT)?.ok().map(drop)
}

fn dress(root: &Path) -> Result<(), Error> {
    for (name, text) in FILES {
        let path = root.join(name);
        std::fs::write(&path, text).map_err(file("write", path))?;
    }
    let job = root.join("usr/local/sbin/guest-job");
    std::fs::write(&job, JOB).map_err(file("write", &job))?;
    std::fs::set_permissions(&job, PermissionsExt::from_mode(0o755))
        .map_err(file("chmod", &job))?;
    let units = root.join("etc/systemd/system");
    let wants = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wants).map_err(file("mkdir", &wants))?;
    link("../guest-job.service", &wants.join("guest-job.service"))?;
    for name in MASKED {
        link("/dev/null", &units.join(name))?;
    }
    let timers = files(&root.join("usr/lib/systemd/system"))?;
    for timer in timers.iter().filter(|path| has_extension(path, "timer")) {
        link(
            "/dev/null",
            &units.join(timer.file_name().unwrap_or_default()),
        )?;
    }
    let generators = units.join("../system-generators");
    std::fs::create_dir_all(&generators).map_err(file("mkdir", &generators))?;
    for generator in files(&root.join("usr/lib/systemd/system-generators"))? {
        let name = generator.file_name().unwrap_or_default();
        link("/dev/null", &generators.join(name))?;
    }
    Ok(())
}

fn link(target: &str, path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file("unlink", path)(error));
        }
        _ => {}
    }
    symlink(target, path).map_err(file("symlink", path))
}
