//! A file system on a block device, or in a file that a loop device shows as one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berm_plan::{DeviceFs, Image};
use berm_sys::loopdev;
use berm_sys::mount::{SetAttr, attr, set_attr};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::source::{attr_bits, kernel_fs};
use crate::{Error, Owner};

/// As often as containerd tries to get a loop device that others get at the same time.
const TRIES: u64 = 100;

/// Mounts it detached, with the ids of the pod.
pub(crate) fn mount(fs: &DeviceFs, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    make(fs, owner).map_err(|source| Error::Root {
        fs: fs.fs.clone(),
        path: fs.source.clone(),
        source: Box::new(source),
    })
}

fn make(fs: &DeviceFs, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let attach = |image: Image| Loop::attach(&fs.source, image, fs.attr.ro);
    let shown = fs.image.map(attach).transpose()?;
    let path = shown.as_ref().map_or(&fs.source, |shown| &shown.path);
    let path = path.to_string_lossy();
    // Files of an image have labels of their own, as those of layers have.
    let unlabelled = Owner {
        label: None,
        ..owner
    };
    let what = (&*fs.fs, &*path, &*fs.options);
    let mount = kernel_fs(what, attr_bits(fs.attr), unlabelled)?;
    drop(shown);
    idmap(&mount, &fs.fs, owner)?;
    Ok(mount)
}

/// The ext4 in a file that has no name, mounted detached, with ids as they are on it.
pub(crate) fn in_file(file: BorrowedFd<'_>, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let name = Path::new("a file without a name");
    let shown = Loop::show((name, file), loopdev::Flags::default())?;
    let path = shown.path.to_string_lossy();
    // Or the kernel fills the file with zeros in the background.
    let options = [("noinit_itable".to_owned(), String::new())];
    kernel_fs(("ext4", &path, &options), 0, owner)
}

/// Gives a new mount the pod's id map.
fn idmap(mount: &OwnedFd, fs: &str, owner: Owner<'_>) -> Result<(), Error> {
    let Some(userns) = owner.userns else {
        return Ok(());
    };
    let change = SetAttr {
        set: attr::IDMAP,
        ..SetAttr::default()
    };
    set_attr(mount.as_fd(), false, change, Some(userns)).map_err(|source| Error::IdmapFs {
        fs: fs.to_owned(),
        source,
    })
}

/// A loop device that shows a file. The kernel frees it with its last user, who is this value or
/// a mount.
#[derive(Debug)]
struct Loop {
    path: PathBuf,
    #[expect(
        dead_code,
        reason = "open for as long as the device is to show the file"
    )]
    device: File,
}

impl Loop {
    /// Others may take the device that was free a moment ago: then it is tried again, as mount(8)
    /// and containerd do it.
    fn attach(file: &Path, image: Image, ro: bool) -> Result<Self, Error> {
        let backing = regular(file, ro)?;
        let flags = loopdev::Flags {
            ro,
            direct: image.direct,
        };
        Self::show((file, backing.as_fd()), flags)
    }

    fn show(
        (file, backing): (&Path, BorrowedFd<'_>),
        flags: loopdev::Flags,
    ) -> Result<Self, Error> {
        let mut tries = 1..TRIES;
        loop {
            let taken = match Self::take((file, backing), flags) {
                Err(Error::Loop { source, .. }) if is_taken(&source) => source,
                done => return done,
            };
            let Some(tried) = tries.next() else {
                return Err(failed("ioctl(LOOP_CONFIGURE)", file)(taken));
            };
            std::thread::sleep(Duration::from_millis(tried.min(20)));
        }
    }

    fn take(
        (file, backing): (&Path, BorrowedFd<'_>),
        flags: loopdev::Flags,
    ) -> Result<Self, Error> {
        let control = Path::new("/dev/loop-control");
        let number = loopdev::free().map_err(failed("ioctl(LOOP_CTL_GET_FREE)", control))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options()
            .read(true)
            .write(!flags.ro)
            .open(&path)
            .map_err(failed("open", &path))?;
        loopdev::configure(&device, backing, file, flags)
            .map_err(failed("ioctl(LOOP_CONFIGURE)", file))?;
        Ok(Self { path, device })
    }
}

/// The file, which is no fifo whose other end nobody opens, nor anything else but a file.
fn regular(path: &Path, ro: bool) -> Result<File, Error> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options()
        .read(true)
        .write(!ro)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(failed("open", path))?;
    let meta = file.metadata().map_err(failed("fstat", path))?;
    if meta.is_file() {
        Ok(file)
    } else {
        Err(Error::NoImage { path: path.into() })
    }
}

fn failed<'p>(call: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |source| Error::Loop {
        call,
        path: path.to_owned(),
        source,
    }
}

/// Somebody else has got that device, or has removed it, since it was free.
fn is_taken(error: &io::Error) -> bool {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    is(Errno::BUSY) || is(Errno::NXIO) || is(Errno::NODEV)
}
