//! Where what a container writes to its root file system goes.
//!
//! | Medium | Writes go to | They end with | Counted as |
//! |---|---|---|---|
//! | `none` | the snapshot that containerd has made | the snapshot | its disk |
//! | `memory` | a tmpfs of the container | the container | its memory |
//! | `self` | a file without a name in the file system of the snapshot | the container | disk |
//! | `dir=PATH` | such a file in the file system of PATH | the container | disk |
//!
//! The names are those of gVisor's `--overlay2=root:MEDIUM[,size=SIZE]`. All but `none` lie over
//! the snapshot, which stays as it was; a file holds an ext4 of its own, whose size is a limit
//! that the kernel keeps, and since it has no name nobody has to clean up after a crash.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::refusal::{Error, quoted, unsupported};
use crate::step::{DeviceFs, Rootfs, UpperFs};

/// Smallest file system that is worth a file.
const SMALLEST_FILE: u64 = 1 << 20;

/// Where what containers write to their root file systems goes: `MEDIUM[,size=SIZE]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RootfsUpper {
    /// What it lies on.
    pub medium: Medium,
    /// How much fits; `None`: as much as a tmpfs of the kernel's takes (half of the node's
    /// memory), or as the file system of the file has free when the container is made.
    pub size_bytes: Option<u64>,
}

/// What a writable layer lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// What containerd made.
    #[default]
    None,
    /// A tmpfs.
    Memory,
    /// A file in the file system of the snapshot.
    Rootfs,
    /// A file in the file system of this directory.
    Dir(PathBuf),
}

/// A file that the host makes for a container, empty file system included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpperFile {
    /// Directory of the host in whose file system it is made; it gets no name there.
    pub dir: PathBuf,
    /// Its size; `None`: what is free there.
    pub size_bytes: Option<u64>,
}

/// What is wrong with a text that should say where writes go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUpper {
    /// No medium of that name.
    #[error("not one of none, memory, self, dir=/PATH, with ,size=SIZE behind it")]
    Medium,
    /// The size cannot be read.
    #[error("size: not a number above zero, with k, m or g behind it")]
    Size,
    /// There is nothing to limit.
    #[error("size: \"none\" has no layer that could have one")]
    Pointless,
    /// No file system fits into it.
    #[error("size: a layer in a file has 1m at least")]
    Small,
}

impl FromStr for RootfsUpper {
    type Err = BadUpper;

    fn from_str(text: &str) -> Result<Self, BadUpper> {
        let (medium, size) = match text.rsplit_once(",size=") {
            Some((medium, size)) => (medium, Some(bytes(size).ok_or(BadUpper::Size)?)),
            None => (text, None),
        };
        let medium = match (medium, medium.strip_prefix("dir=")) {
            ("none", _) => Medium::None,
            ("memory", _) => Medium::Memory,
            ("self", _) => Medium::Rootfs,
            (_, Some(dir)) if dir.starts_with('/') && !dir.contains(['\0', ',']) => {
                Medium::Dir(dir.into())
            }
            _ => return Err(BadUpper::Medium),
        };
        match (&medium, size) {
            (Medium::None, Some(_)) => Err(BadUpper::Pointless),
            (Medium::Rootfs | Medium::Dir(_), Some(size)) if size < SMALLEST_FILE => {
                Err(BadUpper::Small)
            }
            _ => Ok(Self {
                medium,
                size_bytes: size,
            }),
        }
    }
}

/// `4096`, `64k`, `512m`, `2G`
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // The kernel's file sizes are signed.
    (bytes > 0 && i64::try_from(bytes).is_ok()).then_some(bytes)
}

impl Display for RootfsUpper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.medium {
            Medium::None => write!(f, "none"),
            Medium::Memory => write!(f, "memory"),
            Medium::Rootfs => write!(f, "self"),
            Medium::Dir(dir) => write!(f, "dir={}", dir.display()),
        }?;
        match self.size_bytes {
            Some(bytes) => write!(f, ",size={bytes}"),
            None => Ok(()),
        }
    }
}

impl From<RootfsUpper> for String {
    fn from(upper: RootfsUpper) -> Self {
        upper.to_string()
    }
}

impl TryFrom<String> for RootfsUpper {
    type Error = BadUpper;

    fn try_from(text: String) -> Result<Self, BadUpper> {
        text.parse()
    }
}

/// A writable layer over a root file system, and the file that it needs.
pub(crate) type Layer = (UpperFs, Option<UpperFile>);

impl RootfsUpper {
    /// What lies over `rootfs`; `None`: nothing. A read-only root has no use for it.
    pub(crate) fn over(&self, rootfs: &Rootfs, readonly: bool) -> Result<Option<Layer>, Error> {
        let size_bytes = self.size_bytes;
        let file = |dir| {
            let file = UpperFile { dir, size_bytes };
            Ok(Some((UpperFs::File, Some(file))))
        };
        match &self.medium {
            _ if readonly => Ok(None),
            Medium::None => Ok(None),
            Medium::Memory => Ok(Some((UpperFs::Memory { size_bytes }, None))),
            Medium::Dir(dir) => file(dir.clone()),
            Medium::Rootfs => file(beside(rootfs)?),
        }
    }
}

/// A directory in the file system of the root's own files.
fn beside(rootfs: &Rootfs) -> Result<PathBuf, Error> {
    match rootfs {
        Rootfs::Overlay { lower, upper, .. } => {
            let own = upper.as_ref().map(|(upper, _)| upper);
            Ok(own.or(lower.first()).cloned().unwrap_or_default())
        }
        Rootfs::Bind { path, .. } => Ok(path.clone()),
        Rootfs::Fs(DeviceFs { fs, .. }) => Err(unsupported(
            "rootfs_upper self",
            format!(
                "the root is a {} that is mounted in the pod alone",
                quoted(fs)
            ),
            "use memory or dir=PATH",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RootfsUpper, BadUpper> {
        text.parse()
    }

    #[test]
    fn what_gvisor_calls_a_medium_is_read_and_written_the_same() {
        let dir = || Medium::Dir("/var/x".into());
        let cases = [
            ("none", Medium::None, None, "none"),
            ("memory", Medium::Memory, None, "memory"),
            (
                "memory,size=64m",
                Medium::Memory,
                Some(64 << 20),
                "memory,size=67108864",
            ),
            (
                "memory,size=4096",
                Medium::Memory,
                Some(4096),
                "memory,size=4096",
            ),
            (
                "self,size=2G",
                Medium::Rootfs,
                Some(2 << 30),
                "self,size=2147483648",
            ),
            ("dir=/var/x", dir(), None, "dir=/var/x"),
            (
                "dir=/var/x,size=1024K",
                dir(),
                Some(1 << 20),
                "dir=/var/x,size=1048576",
            ),
        ];
        for (text, medium, size_bytes, again) in cases {
            let want = RootfsUpper { medium, size_bytes };
            let got = read(text).unwrap();
            assert_eq!((&got, got.to_string().as_str()), (&want, again), "{text}");
            assert_eq!(read(again).unwrap(), want);
            let json = serde_json::to_string(&want).unwrap();
            assert_eq!(serde_json::from_str::<RootfsUpper>(&json).unwrap(), want);
        }
    }

    #[test]
    fn a_text_that_says_nowhere_is_refused_with_what_is_wrong() {
        use BadUpper::{Medium, Pointless, Size, Small};
        let cases = [
            ("", Medium),
            ("disk", Medium),
            ("root:memory", Medium),
            ("dir=", Medium),
            ("dir=rel", Medium),
            ("dir=/a\0b", Medium),
            ("dir=/a,foo=1", Medium),
            ("memory,foo=1", Medium),
            ("memory,size=", Size),
            ("memory,size=0", Size),
            ("memory,size=50%", Size),
            ("memory,size=+1m", Size),
            ("memory,size=-1", Size),
            ("memory,size=1t", Size),
            ("memory,size=m", Size),
            ("memory,size=9999999999g", Size),
            ("memory,size=9223372036854775808", Size),
            ("memory,size=1m,size=é", Size),
            ("none,size=1m", Pointless),
            ("self,size=1023k", Small),
            ("dir=/x,size=1", Small),
        ];
        for (text, want) in cases {
            assert_eq!(read(text), Err(want), "{text:?}");
        }
    }

    #[test]
    fn a_file_for_self_is_made_where_the_roots_own_files_are() {
        let rootfs = |upper: Option<(&str, &str)>| Rootfs::Overlay {
            lower: vec!["/l/2".into(), "/l/1".into()],
            upper: upper.map(|(u, w)| (u.into(), w.into())),
            shifted_upper: false,
            options: Vec::new(),
        };
        let bind = Rootfs::Bind {
            path: "/b".into(),
            recursive: true,
            ro: false,
        };
        let device = Rootfs::Fs(DeviceFs {
            fs: "ext4".into(),
            source: "/dev/x".into(),
            image: None,
            options: Vec::new(),
            attr: crate::step::Attr::default(),
        });
        let own = read("self,size=1m").unwrap();
        for (rootfs, want) in [
            (rootfs(Some(("/s/fs", "/s/work"))), "/s/fs"),
            (rootfs(None), "/l/2"),
            (bind.clone(), "/b"),
        ] {
            let (fs, file) = own.over(&rootfs, false).unwrap().unwrap();
            let dir = want.into();
            let size_bytes = Some(1 << 20);
            assert_eq!(
                (fs, file),
                (UpperFs::File, Some(UpperFile { dir, size_bytes }))
            );
            assert_eq!(own.over(&rootfs, true).unwrap(), None);
        }
        let error = own.over(&device, false).unwrap_err().to_string();
        assert!(
            error.starts_with("rootfs_upper self: the root is a \"ext4\""),
            "{error}"
        );
        let memory = read("memory").unwrap().over(&device, false).unwrap();
        let want = UpperFs::Memory { size_bytes: None };
        assert_eq!(memory, Some((want, None)));
        assert_eq!(read("none").unwrap().over(&bind, false).unwrap(), None);
    }
}
