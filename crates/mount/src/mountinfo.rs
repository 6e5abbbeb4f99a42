//! What the host has mounted (proc_pid_mountinfo(5)), read where a mount cannot be idmapped as a
//! whole.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, readlinkat, statx};
use rustix::io::Errno;

use crate::Error;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    /// Which directory of its file system is mounted.
    pub(crate) root: PathBuf,
    pub(crate) mountpoint: PathBuf,
    pub(crate) fs: String,
    /// Options of the file system, as it shows them.
    pub(crate) options: String,
}

/// The mounts of the caller's mount namespace.
#[derive(Debug)]
pub(crate) struct Host(Vec<Entry>);

/// A mount, its path below another one, and its root.
pub(crate) type Below = (Entry, PathBuf, OwnedFd);

impl Host {
    pub(crate) fn read() -> Result<Self, Error> {
        let text = std::fs::read(MOUNTINFO).map_err(|source| Error::MountInfo { source })?;
        let lines = text.split(|byte| *byte == b'\n');
        Ok(Self(lines.filter_map(parse).collect()))
    }

    /// The mount that a path is on, and the path itself, opened; the mount point is then that of
    /// the path, and `root` what is there.
    pub(crate) fn at(&self, path: &Path) -> Result<(Entry, OwnedFd), Error> {
        let fd = open(path)?;
        let id = mount_id(&fd, path)?;
        let missing = || Error::Resolve {
            path: path.into(),
            source: Errno::NOENT,
        };
        let real = real_path(&fd, path)?;
        let mut entry = self
            .0
            .iter()
            .find(|e| e.id == id)
            .ok_or_else(missing)?
            .clone();
        let inside = real
            .strip_prefix(&entry.mountpoint)
            .unwrap_or(Path::new(""));
        entry.root = join(&entry.root, inside);
        entry.mountpoint = real;
        Ok((entry, fd))
    }

    /// What can be seen below a path, in the order in which it was mounted.
    pub(crate) fn below(&self, top: &Entry) -> Result<Vec<Below>, Error> {
        let mut found = Vec::new();
        for entry in &self.0 {
            let Ok(at) = entry.mountpoint.strip_prefix(&top.mountpoint) else {
                continue;
            };
            if at.as_os_str().is_empty() {
                continue;
            }
            let fd = match open(&entry.mountpoint) {
                Ok(fd) => fd,
                // Under another mount, or gone meanwhile.
                Err(Error::Resolve {
                    source: Errno::NOENT | Errno::NOTDIR,
                    ..
                }) => continue,
                Err(e) => return Err(e),
            };
            if mount_id(&fd, &entry.mountpoint)? == entry.id {
                found.push((entry.clone(), at.to_owned(), fd));
            }
        }
        Ok(found)
    }
}

fn join(root: &Path, inside: &Path) -> PathBuf {
    if inside.as_os_str().is_empty() {
        return root.to_owned();
    }
    root.join(inside)
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|source| {
        Error::Resolve {
            path: path.into(),
            source,
        }
    })
}

fn mount_id(fd: &OwnedFd, path: &Path) -> Result<u64, Error> {
    let stat = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    stat.map(|s| s.stx_mnt_id).map_err(|source| Error::Stat {
        path: path.into(),
        source,
    })
}

fn real_path(fd: &OwnedFd, path: &Path) -> Result<PathBuf, Error> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let real = readlinkat(CWD, link, Vec::new()).map_err(|source| Error::Resolve {
        path: path.into(),
        source,
    })?;
    Ok(PathBuf::from(OsString::from_vec(real.into_bytes())))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let root = path(fields.nth(2)?);
    let mountpoint = path(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let fs = text(fields.next()?);
    // Not unescaped: what the options' own escapes are is up to the file system.
    let options = text(fields.nth(1)?);
    Some(Entry {
        id,
        root,
        mountpoint,
        fs,
        options,
    })
}

/// Spaces, tabs, newlines and backslashes stand as three octal digits.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let value = octal.and_then(|digits| {
            digits.iter().try_fold(0u32, |value, digit| {
                (b'0'..=b'7')
                    .contains(digit)
                    .then(|| value * 8 + u32::from(digit - b'0'))
            })
        });
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                text.push(byte);
                at += 4;
            }
            None => {
                text.push(field[at]);
                at += 1;
            }
        }
    }
    text
}

/// A path of the host as text of mountinfo has it.
pub(crate) fn path_of(text: &str) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes() {
        let line =
            br"36 35 98:0 /a\040b /mnt/\134x rw,noatime master:1 shared:3 - ext4 /dev/r rw,x=1";
        let want = Entry {
            id: 36,
            root: "/a b".into(),
            mountpoint: r"/mnt/\x".into(),
            fs: "ext4".into(),
            options: "rw,x=1".into(),
        };
        assert_eq!(parse(line), Some(want));
        let bare = b"1 0 0:2 / / rw - tmpfs none rw";
        assert_eq!(parse(bare).map(|e| e.fs), Some("tmpfs".into()));
    }

    #[test]
    fn what_is_no_line_of_mountinfo_is_none() {
        let lines: [&[u8]; 5] = [
            b"",
            b"x",
            b"1 2 3 / /",
            b"1 2 3 / / rw -",
            b"1 2 3 / / rw - ext4",
        ];
        for line in lines {
            assert_eq!(parse(line), None);
        }
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\777"), br"\777");
    }
}
