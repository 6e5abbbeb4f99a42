//! A kernel of the distribution, made ready to boot without a boot loader.
//!
//! qemu enters an uncompressed `vmlinux` by PVH, so nothing is unpacked under emulation; the
//! initrd holds busybox, the modules of the disk and one script.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::apt::{Lists, files, has_extension};
use super::cache;
use super::cpio::Cpio;
use crate::command;
use crate::error::{Error, file};

const INIT: &[u8] = include_bytes!("../../data/guest/init");
/// Longest time that unpacking may take.
const UNPACK: Duration = Duration::from_secs(300);

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// What `uname -r` says.
    pub(super) version: String,
    /// `vmlinux`, `initrd`, `lib/modules/VERSION`.
    pub(super) dir: PathBuf,
}

impl Kernel {
    /// The kernel of `line`, such as `6.12`: the newest that the distribution has when it is
    /// fetched the first time.
    /// # Errors
    /// [`Error::Missing`] when no package of that line is reached.
    pub(super) fn ensure(line: &str, busybox: &Path) -> Result<Self, Error> {
        let name = format!(
            "kernel-{line}-{}",
            cache::key(&[&String::from_utf8_lossy(INIT)])
        );
        let dir = cache::entry(&name, |dir| build(line, busybox, dir))?;
        let version = modules(&dir)?;
        Ok(Self { version, dir })
    }
}

fn build(line: &str, busybox: &Path, dir: &Path) -> Result<(), Error> {
    eprintln!("fetching a kernel {line}");
    fetch(line, dir)?;
    // Newer packages have no link from /lib, which depmod and modprobe are given.
    let (merged, lib) = (dir.join("usr/lib"), dir.join("lib"));
    if merged.join("modules").exists() {
        std::fs::rename(&merged, &lib).map_err(file("rename", merged))?;
    }
    let version = modules(dir)?;
    let image = [
        dir.join(format!("boot/vmlinuz-{version}")),
        dir.join(format!("lib/modules/{version}/vmlinuz")),
    ];
    let image = image.iter().find(|path| path.exists());
    let image = image.ok_or_else(|| Error::Data {
        path: dir.into(),
        why: "the packages hold no vmlinuz".into(),
    })?;
    extract(image, &dir.join("vmlinux"))?;
    plain_modules(dir, &version)?;
    write_initrd(dir, &version, busybox)
}

/// Packages of a line, the release's own first. From 6.19 on the image is in `linux-binary`.
fn fetch(line: &str, dir: &Path) -> Result<(), Error> {
    let number = line.replace('.', "[.]");
    let image = format!("^linux-image-{number}[.].*-cloud-amd64$");
    let binary = format!("^linux-binary-{number}[.].*-cloud-amd64$");
    let own = Lists::own()?;
    if let Some(package) = own.newest(&image)? {
        return own.unpack(&package, dir);
    }
    let apt = dir.join("apt");
    let backports = Lists::backports(&apt)?;
    if let Some(package) = backports.newest(&binary)? {
        for part in ["binary", "modules", "base"] {
            backports.unpack(&package.replace("-binary-", &format!("-{part}-")), dir)?;
        }
    } else if let Some(package) = backports.newest(&image)? {
        backports.unpack(&package, dir)?;
    } else {
        return Err(Error::Missing {
            what: format!("a package with a cloud kernel {line}"),
            way_out: "name another line: --kernel 6.12".into(),
        });
    }
    std::fs::remove_dir_all(&apt).map_err(file("rm -r", apt))
}

/// The one version below `lib/modules`.
fn modules(dir: &Path) -> Result<String, Error> {
    let dir = dir.join("lib/modules");
    let found = files(&dir)?;
    let name = found.first().and_then(|path| path.file_name());
    let name = name.ok_or_else(|| Error::Data {
        path: dir,
        why: "no kernel in here".into(),
    })?;
    Ok(name.to_string_lossy().into_owned())
}

/// Takes the `vmlinux` out of a bzImage: the header says where its payload lies
/// (Documentation/arch/x86/boot.rst), whose last four bytes are its size.
fn extract(image: &Path, vmlinux: &Path) -> Result<(), Error> {
    let bytes = std::fs::read(image).map_err(file("read", image))?;
    let payload = payload(&bytes).ok_or_else(|| Error::Data {
        path: image.into(),
        why: "no payload where a bzImage has it".into(),
    })?;
    let packed = vmlinux.with_extension("packed");
    std::fs::write(&packed, payload).map_err(file("write", &packed))?;
    let mut unpack = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Command::new("zstd"),
        [0x02, 0x21, 0x4c, 0x18, ..] => Command::new("lz4"),
        _ => {
            return Err(Error::Data {
                path: image.into(),
                why: "packed neither by zstd nor by lz4".into(),
            });
        }
    };
    unpack.args(["-d", "-q", "-f"]).arg(&packed);
    match unpack.get_program().to_str() {
        Some("zstd") => unpack.arg("-o").arg(vmlinux),
        _ => unpack.arg(vmlinux),
    };
    command::run(unpack, b"", UNPACK)?.ok()?;
    std::fs::remove_file(&packed).map_err(file("unlink", packed))
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = usize::from(*image.get(0x1f1)?);
    let start = (sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?.checked_sub(4)?)
}

/// Unpacks the modules: nothing in the guest need do it, and busybox cannot.
fn plain_modules(dir: &Path, version: &str) -> Result<(), Error> {
    let mut packed = Vec::new();
    let mut next = vec![dir.join("lib/modules").join(version)];
    while let Some(dir) = next.pop() {
        for path in files(&dir)? {
            if path.is_dir() && !path.is_symlink() {
                next.push(path);
            } else if has_extension(&path, "xz") {
                packed.push(path);
            }
        }
    }
    for some in packed.chunks(500) {
        let mut xz = Command::new("xz");
        xz.arg("-d").args(some);
        command::run(xz, b"", UNPACK)?.ok()?;
    }
    let mut depmod = Command::new("depmod");
    depmod.arg("-b").arg(dir).arg(version);
    command::run(depmod, b"", UNPACK)?.ok().map(drop)
}

/// The modules of the disk in the order in which they load: newer kernels have some built in.
fn write_initrd(dir: &Path, version: &str, busybox: &Path) -> Result<(), Error> {
    let mut initrd = Cpio::default();
    for name in ["bin", "dev", "proc", "mnt", "m"] {
        initrd.dir(name);
    }
    initrd.file("init", INIT);
    let busybox = std::fs::read(busybox).map_err(file("read", busybox))?;
    initrd.file("bin/busybox", &busybox);
    let mut loaded = Vec::new();
    for module in ["virtio_pci", "virtio_blk"] {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["-S", version, "--show-depends", module, "-d"]);
        modprobe.arg(dir);
        let lines = command::run(modprobe, b"", UNPACK)?.ok()?.stdout;
        for path in lines
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
        {
            let path = path.split(' ').next().unwrap_or(path).to_owned();
            if !loaded.contains(&path) {
                loaded.push(path);
            }
        }
    }
    for (number, path) in loaded.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(file("read", path))?;
        initrd.file(&format!("m/{number:02}"), &bytes);
    }
    let path = dir.join("initrd");
    std::fs::write(&path, initrd.finish()).map_err(file("write", path))
}
