//! A root file system that is one of the kernel's on a block device, or in a file.

use crate::ids::Ids;
use crate::options::Options;
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::source::superblock;
use crate::step::{DeviceFs, Image, Recursive, Rootfs};

use super::{RootfsMount, absolute, check_idmap, is_idmap, unknown};

/// The kernel's limit for the value of an option (fsconfig(2)).
const MAX_VALUE: usize = 255;

/// Reads the mount of blockfile, devmapper and the like. What containerd's own `mount` takes for a
/// flag is one here; the rest is for the file system.
pub(super) fn fs(mount: &RootfsMount, ids: &Ids) -> Result<Rootfs, Error> {
    of_the_kernel(&mount.fstype)?;
    let source = absolute("rootfs[0].source", &mount.source)?;
    let mut known = Options::default();
    let (mut image, mut direct, mut options) = (false, false, Vec::new());
    for option in &mount.options {
        resolved("options", option)?;
        match option.as_str() {
            "loop" => image = true,
            "direct-io" => direct = true,
            other if is_idmap(other) => check_idmap(other, ids)?,
            other if known.take(other) => only_flags(&known, other)?,
            other => options.push(data(other)?),
        }
    }
    if direct && !image {
        return Err(invalid(
            "rootfs[0].options \"direct-io\"",
            "is for a loop device",
            "add \"loop\", or drop it",
        ));
    }
    options.extend(superblock(&known));
    options.extend(known.attr.ro.then(|| ("ro".to_owned(), String::new())));
    Ok(Rootfs::Fs(DeviceFs {
        fs: mount.fstype.clone(),
        source,
        image: image.then_some(Image { direct }),
        options,
        attr: known.attr,
    }))
}

/// A type that a program mounts, or that is none yet, is refused.
fn of_the_kernel(fstype: &str) -> Result<(), Error> {
    resolved("type", fstype)?;
    no_nul("rootfs[0].type", fstype)?;
    let refuse = |reason, way_out| {
        let field = format!("rootfs[0].type {}", quoted(fstype));
        Err(unsupported(field, reason, way_out))
    };
    match fstype.split('.').next().unwrap_or_default() {
        "" | "none" => refuse(
            "no file system",
            "this is the snapshotter's error, not the pod's",
        ),
        "fuse" | "fuse3" | "fuseblk" => refuse(
            "mounted by a program, which Berm does not start",
            "use a snapshotter that mounts it itself, or overlayfs",
        ),
        _ => Ok(()),
    }
}

/// Nothing in it is a template, a type to be made or an option of containerd's mount manager.
fn resolved(field: &str, text: &str) -> Result<(), Error> {
    let made = field == "type" && text.contains('/');
    if made || text.contains("{{") || text.starts_with("X-containerd.") {
        return Err(unsupported(
            format!("rootfs[0].{field} {}", quoted(text)),
            "is for containerd's mount manager, which has not resolved it",
            "use containerd 2.2 or newer with its plugin io.containerd.mount-manager.v1.bolt",
        ));
    }
    Ok(())
}

/// Of the options that Berm knows, those of a new mount alone.
fn only_flags(known: &Options, option: &str) -> Result<(), Error> {
    let more = known.idmap || known.copy_up || known.all != Recursive::default();
    let moved = known
        .propagation
        .iter()
        .any(|p| p.kind != crate::step::Propagation::Private);
    if more || moved {
        return Err(unknown(option));
    }
    Ok(())
}

fn data(option: &str) -> Result<(String, String), Error> {
    no_nul("rootfs[0].options", option)?;
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    let wrong = |reason: &str| {
        let field = format!("rootfs[0].options {}", quoted(option));
        let way_out = "this is the snapshotter's error, not the pod's";
        Err(invalid(field, reason, way_out))
    };
    match key {
        "" => wrong("no option"),
        "remount" | "iversion" => Err(unknown(option)),
        _ if key.len() > MAX_VALUE || value.len() > MAX_VALUE => {
            wrong("longer than the 255 bytes that the kernel takes")
        }
        _ => Ok((key.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use berm_sys::Kind;

    use super::*;
    use crate::rootfs::rootfs;
    use crate::step::{Atime, Attr};

    fn read(fstype: &str, source: &str, options: &[&str]) -> Result<Rootfs, Error> {
        let mount = RootfsMount {
            fstype: fstype.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        };
        rootfs(&[mount], Path::new("/b/rootfs"), &Ids::default())
    }

    #[test]
    fn the_mounts_of_blockfile_devmapper_and_erofs_are_read() {
        let want = |fs: &str, source: &str, image, options: &[(&str, &str)], attr| {
            Rootfs::Fs(DeviceFs {
                fs: fs.into(),
                source: source.into(),
                image,
                options: options.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
                attr,
            })
        };
        let (rw, ro) = (
            Attr::default(),
            Attr {
                ro: true,
                ..Attr::default()
            },
        );
        let file = "/s/blockfile/snapshots/7";
        let buffered = Some(Image { direct: false });
        let direct = Some(Image { direct: true });
        let flags = ["nosuid", "noatime", "lazytime", "sync", "async", "defaults"];
        let attr = Attr {
            nosuid: true,
            atime: Atime::Noatime,
            ..rw
        };
        let cases = [
            (
                read("ext4", file, &["loop", "rw"]),
                want("ext4", file, buffered, &[], rw),
            ),
            (
                read("ext4", file, &["loop", "direct-io", "ro", "noload"]),
                want("ext4", file, direct, &[("noload", ""), ("ro", "")], ro),
            ),
            (
                read("xfs", "/dev/mapper/p-snap-4", &["nouuid"]),
                want("xfs", "/dev/mapper/p-snap-4", None, &[("nouuid", "")], rw),
            ),
            (
                read("btrfs", "/dev/vdb", &["subvol=a=b", "rw", "private"]),
                want("btrfs", "/dev/vdb", None, &[("subvol", "a=b")], rw),
            ),
            (
                read("erofs", "/s/1/layer.erofs", &["ro"]),
                want("erofs", "/s/1/layer.erofs", None, &[("ro", "")], ro),
            ),
            (
                read("ext4", "/dev/vdb", &flags),
                want("ext4", "/dev/vdb", None, &[("lazytime", "")], attr),
            ),
            (
                read("ext4", "/dev/vdb", &["ro", "rw"]),
                want("ext4", "/dev/vdb", None, &[], rw),
            ),
        ];
        for (got, want) in cases {
            assert_eq!(got.unwrap(), want);
        }
    }

    #[test]
    fn what_no_kernel_mounts_is_refused_with_its_field() {
        let long = format!("a={}", "x".repeat(256));
        let unresolved = [
            read("format/mkdir/overlay", "overlay", &[]),
            read("mkfs/ext4", "/f", &["loop"]),
            read("ext4", "/f", &["X-containerd.mkfs.size=64m"]),
            read("erofs", "/f", &["device={{ mount 0 }}"]),
        ];
        for got in unresolved {
            let error = got.unwrap_err();
            assert_eq!(error.kind(), Kind::NotSupported);
            assert!(error.to_string().contains("mount-manager"), "{error}");
        }
        let cases = [
            (read("tmpfs", "tmpfs", &[]), "rootfs[0].source: \"tmpfs\""),
            (read("nfs", "h:/e", &[]), "rootfs[0].source: \"h:/e\""),
            (
                read("fuse3.fuse-overlayfs", "overlay", &[]),
                "rootfs[0].type \"fuse3.fuse-overlayfs\": mounted by a program",
            ),
            (read("fuseblk", "/dev/x", &[]), "rootfs[0].type \"fuseblk\""),
            (
                read("", "/dev/x", &[]),
                "rootfs[0].type \"\": no file system",
            ),
            (read("a\0b", "/dev/x", &[]), "rootfs[0].type: holds a NUL"),
            (
                read("ext4", "/dev/x", &["a\0b"]),
                "rootfs[0].options: holds a NUL",
            ),
            (
                read("ext4", "/dev/x", &["direct-io"]),
                "rootfs[0].options \"direct-io\": is for a loop device",
            ),
            (
                read("ext4", "/dev/x", &["rro"]),
                "rootfs[0].options \"rro\": not applied",
            ),
            (
                read("ext4", "/dev/x", &["rshared"]),
                "rootfs[0].options \"rshared\": not applied",
            ),
            (
                read("ext4", "/dev/x", &["remount"]),
                "rootfs[0].options \"remount\": not applied",
            ),
            (
                read("ext4", "/dev/x", &["uidmap=0:5:65536"]),
                "rootfs[0].options \"uidmap=0:5:65536\": not the id map",
            ),
            (
                read("ext4", "/dev/x", &["=1"]),
                "rootfs[0].options \"=1\": no option",
            ),
            (
                read("ext4", "/dev/x", &[&long]),
                "rootfs[0].options \"a=xxx",
            ),
        ];
        for (got, want) in cases {
            let error = got.unwrap_err().to_string();
            assert!(error.starts_with(want), "{want}: {error}");
        }
    }
}
