//! The root file system, from the mounts that containerd hands over.

mod device;

use std::path::{Path, PathBuf};

use crate::idmap;
use crate::ids::{Extent, IdMap, Ids};
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::step::Rootfs;

/// As many as containerd's own tests and Docker's limit of 125 leave room for.
const MAX_LAYERS: usize = 120;

/// Options of overlayfs that change nothing of who may do what.
const OVERLAY_OPTIONS: [&str; 8] = [
    "index",
    "metacopy",
    "redirect_dir",
    "xino",
    "nfs_export",
    "uuid",
    "userxattr",
    "volatile",
];

/// One mount of a task's `rootfs`, as containerd sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system type.
    pub fstype: String,
    /// Source.
    pub source: String,
    /// Where below the root; empty: the root itself.
    pub target: String,
    /// Options.
    pub options: Vec<String>,
}

/// Reads the mount list of a task. Without mounts the root is `root`, an absolute path, where
/// somebody has mounted it already.
/// # Errors
/// As [`crate::container`].
pub fn rootfs(mounts: &[RootfsMount], root: &Path, ids: &Ids) -> Result<Rootfs, Error> {
    let mount = match mounts {
        [] => {
            let path = absolute("root.path", root.to_string_lossy().as_ref())?;
            return Ok(Rootfs::Bind {
                path,
                recursive: true,
                ro: false,
            });
        }
        [mount] => mount,
        more => {
            return Err(unsupported(
                "rootfs",
                format!("{} mounts, Berm takes one", more.len()),
                "use containerd 2.2 or newer, whose mount manager puts them together",
            ));
        }
    };
    if !matches!(mount.target.as_str(), "" | "/") {
        let reason = format!("target {} is below the root", quoted(&mount.target));
        return Err(unsupported(
            "rootfs[0]",
            reason,
            "let the mount manager resolve it",
        ));
    }
    match mount.fstype.as_str() {
        "overlay" => overlay(mount, ids),
        "bind" => bind(mount, ids),
        _ if mount.options.iter().any(|o| o == "bind" || o == "rbind") => bind(mount, ids),
        _ => device::fs(mount, ids),
    }
}

fn bind(mount: &RootfsMount, ids: &Ids) -> Result<Rootfs, Error> {
    let path = absolute("rootfs[0].source", &mount.source)?;
    let (mut recursive, mut ro) = (false, false);
    for option in &mount.options {
        match option.as_str() {
            "bind" | "rw" | "private" | "rprivate" => {}
            "rbind" => recursive = true,
            "ro" => ro = true,
            other if is_idmap(other) => check_idmap(other, ids)?,
            other => return Err(unknown(other)),
        }
    }
    Ok(Rootfs::Bind {
        path,
        recursive,
        ro,
    })
}

fn overlay(mount: &RootfsMount, ids: &Ids) -> Result<Rootfs, Error> {
    let mut lower = Vec::new();
    let (mut upperdir, mut workdir, mut ro, mut shifted_upper) = (None, None, false, false);
    let mut options = Vec::new();
    for option in &mount.options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("lowerdir", list) => lower = layers(list)?,
            ("upperdir", dir) => upperdir = Some(absolute("rootfs[0].options upperdir", dir)?),
            ("workdir", dir) => workdir = Some(absolute("rootfs[0].options workdir", dir)?),
            ("ro", "") => ro = true,
            ("rw", "") => ro = false,
            ("uidmap" | "gidmap", _) => {
                check_idmap(option, ids)?;
                shifted_upper = true;
            }
            // What containerd makes of `linux.mountLabel`, quoted for mount(2).
            ("context", label) => {
                no_nul("rootfs[0].options", label)?;
                options.push(("context".to_owned(), label.trim_matches('"').to_owned()));
            }
            (key, value) if OVERLAY_OPTIONS.contains(&key) => {
                no_nul("rootfs[0].options", value)?;
                options.push((key.to_owned(), value.to_owned()));
            }
            _ => return Err(unknown(option)),
        }
    }
    let wrong = |reason: &str| {
        Err(invalid(
            "rootfs[0].options",
            reason,
            "this is the snapshotter's error, not the pod's",
        ))
    };
    let upper = match (upperdir, workdir) {
        (Some(_), Some(_)) if ro => return wrong("\"ro\" beside an upperdir"),
        (Some(upper), Some(work)) => Some((upper, work)),
        (None, None) => None,
        _ => return wrong("upperdir and workdir go together"),
    };
    if lower.is_empty() {
        return wrong("no lowerdir");
    }
    Ok(Rootfs::Overlay {
        lower,
        upper,
        shifted_upper,
        options,
    })
}

/// The layers of `lowerdir=`, topmost first; `\:` and `\\` are escapes.
fn layers(list: &str) -> Result<Vec<PathBuf>, Error> {
    let mut layers = vec![String::new()];
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match (c, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(layer)) => layer.extend(chars.next()),
            (c, Some(layer)) => layer.push(c),
            (_, None) => {}
        }
    }
    if layers.len() > MAX_LAYERS {
        let reason = format!("{} layers, Berm takes {MAX_LAYERS}", layers.len());
        return Err(unsupported(
            "rootfs[0].options lowerdir",
            reason,
            "squash the image",
        ));
    }
    layers
        .iter()
        .map(|layer| absolute("rootfs[0].options lowerdir", layer))
        .collect()
}

fn is_idmap(option: &str) -> bool {
    option.starts_with("uidmap=") || option.starts_with("gidmap=")
}

/// containerd's way to say which ids the lower layers are to show: `uidmap=0:1000000:65536`,
/// several by commas. Berm maps every layer by the pod's own map, so it must be that one.
fn check_idmap(option: &str, ids: &Ids) -> Result<(), Error> {
    let (key, list) = option.split_once('=').unwrap_or((option, ""));
    let pod = if key == "uidmap" {
        &ids.uids
    } else {
        &ids.gids
    };
    let extent = |text: &str| {
        let mut numbers = text.split(':').map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok);
        Some(Extent {
            inside: next()?,
            outside: next()?,
            count: next()?,
        })
    };
    let map = list
        .split(',')
        .map(extent)
        .collect::<Option<Vec<_>>>()
        .map(IdMap);
    match map {
        Some(map) if idmap::same(&map, pod) => Ok(()),
        Some(_) => Err(unsupported(
            format!("rootfs[0].options {}", quoted(option)),
            "not the id map of the pod",
            "give container and sandbox the same mappings",
        )),
        None => Err(invalid(
            format!("rootfs[0].options {}", quoted(option)),
            "not of the form inside:outside:count",
            "this is the snapshotter's error, not the pod's",
        )),
    }
}

fn absolute(field: &str, path: &str) -> Result<PathBuf, Error> {
    no_nul(field, path)?;
    if !path.starts_with('/') {
        let reason = format!("{} is not an absolute path", quoted(path));
        return Err(invalid(field, reason, "use a path that begins with /"));
    }
    Ok(PathBuf::from(path))
}

fn unknown(option: &str) -> Error {
    let field = format!("rootfs[0].options {}", quoted(option));
    unsupported(
        field,
        "not applied by Berm",
        "configure the snapshotter without it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Ids {
        let map = || {
            IdMap(vec![Extent {
                inside: 0,
                outside: 1_000_000,
                count: 65_536,
            }])
        };
        Ids {
            uids: map(),
            gids: map(),
        }
    }

    fn read(fstype: &str, source: &str, options: &[&str]) -> Result<Rootfs, Error> {
        let mount = RootfsMount {
            fstype: fstype.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        };
        rootfs(&[mount], Path::new("/b/rootfs"), &ids())
    }

    #[test]
    fn the_mounts_of_containerds_snapshotters_are_read() {
        let work = [
            "workdir=/s/9/work",
            "upperdir=/s/9/fs",
            "lowerdir=/s/2/fs:/s/1/fs",
            "index=off",
        ];
        let overlay = |upper, shifted_upper, options: &[(&str, &str)]| Rootfs::Overlay {
            lower: vec!["/s/2/fs".into(), "/s/1/fs".into()],
            upper,
            shifted_upper,
            options: options.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
        };
        let upper = || Some(("/s/9/fs".into(), "/s/9/work".into()));
        let bind = |recursive, ro| Rootfs::Bind {
            path: "/s/1/fs".into(),
            recursive,
            ro,
        };
        let mut mapped = vec!["uidmap=0:1000000:65536", "gidmap=0:1000000:65536"];
        mapped.extend(work);
        let view = [
            "lowerdir=/s/2/fs:/s/1/fs",
            "ro",
            "userxattr",
            "volatile",
            "metacopy=on",
        ];
        let cases = [
            (
                read("overlay", "overlay", &work),
                overlay(upper(), false, &[("index", "off")]),
            ),
            (
                read("overlay", "overlay", &mapped),
                overlay(upper(), true, &[("index", "off")]),
            ),
            (
                read("overlay", "overlay", &view),
                overlay(
                    None,
                    false,
                    &[("userxattr", ""), ("volatile", ""), ("metacopy", "on")],
                ),
            ),
            (read("bind", "/s/1/fs", &["rw", "rbind"]), bind(true, false)),
            (read("bind", "/s/1/fs", &["ro", "rbind"]), bind(true, true)),
            (read("", "/s/1/fs", &["bind"]), bind(false, false)),
            (read("bind", "/s/1/fs", &mapped[..2]), bind(false, false)),
            (
                rootfs(&[], Path::new("/b/rootfs"), &ids()),
                Rootfs::Bind {
                    path: "/b/rootfs".into(),
                    recursive: true,
                    ro: false,
                },
            ),
        ];
        for (got, want) in cases {
            assert_eq!(got.unwrap(), want);
        }
    }

    #[test]
    fn colons_and_backslashes_of_a_layers_path_are_escaped() {
        let Rootfs::Overlay { lower, .. } =
            read("overlay", "o", &[r"lowerdir=/a\:b:/c\\d"]).unwrap()
        else {
            panic!("not an overlay")
        };
        assert_eq!(lower, [PathBuf::from("/a:b"), PathBuf::from(r"/c\d")]);
    }

    #[test]
    fn up_to_120_layers_are_taken() {
        let list = |n: usize| format!("lowerdir={}", vec!["/l"; n].join(":"));
        assert!(read("overlay", "o", &[&list(120)]).is_ok());
        let error = read("overlay", "o", &[&list(121)]).unwrap_err().to_string();
        assert!(error.contains("121 layers, Berm takes 120"), "{error}");
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_with_its_option() {
        let lower = "lowerdir=/l";
        let cases = [
            (
                read("overlay", "o", &[lower, "foo=1"]),
                "rootfs[0].options \"foo=1\": not applied",
            ),
            (
                read("overlay", "o", &[lower, "lowerdir+=/x"]),
                "rootfs[0].options \"lowerdir+=/x\"",
            ),
            (
                read("overlay", "o", &[lower, "uidmap=0:5:65536"]),
                "rootfs[0].options \"uidmap=0:5:65536\": not the id map",
            ),
            (
                read("overlay", "o", &[lower, "gidmap=x"]),
                "rootfs[0].options \"gidmap=x\": not of the form",
            ),
            (
                read("overlay", "o", &[lower, "upperdir=/u"]),
                "rootfs[0].options: upperdir and workdir",
            ),
            (
                read("overlay", "o", &[lower, "upperdir=/u", "workdir=/w", "ro"]),
                "rootfs[0].options: \"ro\"",
            ),
            (
                read("overlay", "o", &["index=off"]),
                "rootfs[0].options: no lowerdir",
            ),
            (
                read("overlay", "o", &["lowerdir=/a::/data"]),
                "rootfs[0].options lowerdir: \"\" is not",
            ),
            (
                read("overlay", "o", &["lowerdir=a"]),
                "rootfs[0].options lowerdir: \"a\" is not",
            ),
            (read("bind", "rel", &[]), "rootfs[0].source: \"rel\" is not"),
            (read("bind", "/a\0b", &[]), "rootfs[0].source: holds a NUL"),
            (
                read("bind", "/a", &["nodev"]),
                "rootfs[0].options \"nodev\"",
            ),
            (
                rootfs(&[], Path::new("rootfs"), &ids()),
                "root.path: \"rootfs\" is not",
            ),
            (
                rootfs(
                    &[RootfsMount::default(), RootfsMount::default()],
                    Path::new("/r"),
                    &ids(),
                ),
                "rootfs: 2 mounts",
            ),
            (
                rootfs(
                    &[RootfsMount {
                        target: "/sub".into(),
                        ..RootfsMount::default()
                    }],
                    Path::new("/r"),
                    &ids(),
                ),
                "rootfs[0]: target \"/sub\"",
            ),
        ];
        for (got, want) in cases {
            let error = got.unwrap_err().to_string();
            assert!(error.starts_with(want), "{want}: {error}");
        }
    }
}
