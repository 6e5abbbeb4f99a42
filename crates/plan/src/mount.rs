//! A mount for a container that runs already.

use std::path::{Component, Path};

use crate::ids::Ids;
use crate::mounts::{HOSTS, never_shared};
use crate::options::{self, Options, parse};
use crate::paths::clean;
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::source::{no_data, no_superblock_flags, superblock, tmpfs_data};
use crate::step::{Idmap, Mount, Propagation, Source};

/// What is asked for, in the words of mount(8).
#[derive(Clone, Copy, Debug)]
pub struct MountAsked<'a> {
    /// `bind` or `tmpfs`; with `bind` or `rbind` among the options it may be anything.
    pub fstype: &'a str,
    /// Path of the host; a tmpfs has none.
    pub source: &'a Path,
    /// Absolute path in the container.
    pub target: &'a Path,
    /// As in a spec's `mounts[].options`.
    pub options: &'a [String],
}

/// Plans a mount into a container of a pod with this id map; empty maps: no user namespace.
/// # Errors
/// [`Error::Invalid`] and [`Error::NotSupported`] with field, reason and way out. The fields are
/// `type`, `source`, `destination` and `options`.
pub fn mount(asked: &MountAsked<'_>, ids: &Ids) -> Result<Mount, Error> {
    plan(asked, ids).map_err(|e| e.outside_of("mounts[0]."))
}

fn plan(asked: &MountAsked<'_>, ids: &Ids) -> Result<Mount, Error> {
    let userns = !ids.uids.0.is_empty();
    walks_out(asked.target)?;
    let options = parse(0, asked.options)?;
    propagation(&options, userns)?;
    let bind = options.bind || asked.fstype == "bind";
    let source = match asked.fstype {
        _ if bind => bind_source(asked, &options, userns)?,
        "tmpfs" => tmpfs(&options, ids)?,
        other => return Err(no_type(other)),
    };
    let mut propagation = options.propagation;
    if bind && propagation.is_empty() {
        propagation.push(HOSTS);
    }
    Ok(Mount {
        index: 0,
        target: clean(asked.target),
        source,
        attr: options.attr,
        all: options.all,
        propagation,
    })
}

/// What of the path can be seen without a file system; links are walked below the root.
fn walks_out(target: &Path) -> Result<(), Error> {
    let given = target.to_string_lossy();
    no_nul("destination", &given)?;
    let reason = match target.components().next_back() {
        _ if !target.is_absolute() => "is not an absolute path",
        _ if target.components().any(|c| c == Component::ParentDir) => "walks up by \"..\"",
        Some(Component::RootDir) => "is the root itself",
        _ => return Ok(()),
    };
    Err(invalid(
        "destination",
        format!("{} {reason}", quoted(&given)),
        "use an absolute path below the container's root",
    ))
}

fn propagation(options: &Options, userns: bool) -> Result<(), Error> {
    let has = |kind| options.propagation.iter().any(|p| p.kind == kind);
    if userns && has(Propagation::Shared) {
        return Err(never_shared("options \"shared\""));
    }
    if has(Propagation::Unbindable) {
        let reason = "what is mounted into a running container is a clone";
        return Err(unsupported(
            "options \"unbindable\"",
            reason,
            "use \"private\"",
        ));
    }
    Ok(())
}

fn bind_source(asked: &MountAsked<'_>, options: &Options, userns: bool) -> Result<Source, Error> {
    no_data(0, options)?;
    no_superblock_flags(0, options)?;
    if options.copy_up {
        return Err(no_copy_up());
    }
    if options.idmap && !userns {
        let reason = "is for a pod with a user namespace";
        return Err(invalid("options \"idmap\"", reason, "drop it"));
    }
    let source = asked.source.to_string_lossy();
    no_nul("source", &source)?;
    if !asked.source.is_absolute() {
        let reason = format!("{} is not an absolute path", quoted(&source));
        return Err(invalid("source", reason, "use a path that begins with /"));
    }
    Ok(Source::Bind {
        path: asked.source.to_owned(),
        recursive: options.recursive,
        idmap: if userns { Idmap::Pod } else { Idmap::None },
    })
}

fn tmpfs(options: &Options, ids: &Ids) -> Result<Source, Error> {
    if options.copy_up {
        return Err(no_copy_up());
    }
    if options.idmap {
        let reason = "is for bind mounts";
        return Err(invalid("options \"idmap\"", reason, "drop it"));
    }
    let mut given = tmpfs_data(&options.data, ids, &|option| options::field(0, option))?;
    given.extend(superblock(options));
    Ok(Source::Tmpfs {
        mode_of_target: !given.iter().any(|(key, _)| key == "mode"),
        options: given,
        copy_up: false,
    })
}

fn no_copy_up() -> Error {
    unsupported(
        "options \"tmpcopyup\"",
        "copies what a tmpfs covers before the container runs",
        "give it to a mount of the spec",
    )
}

/// Kernel file systems show the namespaces of who mounts them, and are there from the start.
fn no_type(fstype: &str) -> Error {
    let field = format!("type {}", quoted(fstype));
    match fstype {
        "proc" | "sysfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2" => unsupported(
            field,
            "is made with the container",
            "give the container a mount in its spec",
        ),
        _ => unsupported(
            field,
            "a running container takes bind and tmpfs",
            "mount it on the node and bind it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use berm_sys::Kind;

    use super::*;
    use crate::ids::{Extent, IdMap};
    use crate::step::Attr;

    fn pod() -> Ids {
        let map = IdMap(vec![Extent {
            inside: 0,
            outside: 100_000,
            count: 65_536,
        }]);
        Ids {
            uids: map.clone(),
            gids: map,
        }
    }

    fn ask(fstype: &str, source: &str, target: &str, options: &[&str]) -> Result<Mount, Error> {
        ask_of(fstype, source, target, options, &pod())
    }

    fn ask_of(
        fstype: &str,
        source: &str,
        target: &str,
        options: &[&str],
        ids: &Ids,
    ) -> Result<Mount, Error> {
        let options: Vec<_> = options.iter().map(|&o| o.to_owned()).collect();
        let asked = MountAsked {
            fstype,
            source: Path::new(source),
            target: Path::new(target),
            options: &options,
        };
        mount(&asked, ids)
    }

    #[test]
    fn a_bind_has_the_map_of_its_pod_and_what_the_options_say() {
        let mount = ask(
            "bind",
            "/data",
            "/a//b/.",
            &["ro", "nosuid", "nodev", "rbind"],
        )
        .unwrap();
        let attr = Attr {
            ro: true,
            nosuid: true,
            nodev: true,
            ..Attr::default()
        };
        assert_eq!(
            (mount.target.as_path(), mount.attr),
            (Path::new("/a/b"), attr)
        );
        let source = |idmap| Source::Bind {
            path: "/data".into(),
            recursive: true,
            idmap,
        };
        assert_eq!(mount.source, source(Idmap::Pod));
        assert_eq!(mount.propagation, [HOSTS]);
        let host = ask_of("", "/data", "/b", &["rbind", "rprivate"], &Ids::default()).unwrap();
        assert_eq!(host.source, source(Idmap::None));
        assert_eq!(host.propagation[0].kind, Propagation::Private);
    }

    #[test]
    fn a_tmpfs_has_the_hosts_numbers_of_its_ids() {
        let mount = ask("tmpfs", "", "/t", &["size=1m", "uid=5", "noexec"]).unwrap();
        assert!(mount.attr.noexec && mount.propagation.is_empty());
        let options = [("size", "1m"), ("uid", "100005")].map(|(k, v)| (k.into(), v.into()));
        assert_eq!(
            mount.source,
            Source::Tmpfs {
                options: options.to_vec(),
                mode_of_target: true,
                copy_up: false
            }
        );
    }

    /// Type, source, destination, options; kind and beginning of the refusal.
    type Row<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], Kind, &'a str);

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let cases: &[Row<'_>] = &[
            (
                "bind",
                "/d",
                "d",
                &[],
                Kind::InvalidArgument,
                "destination: \"d\" is not",
            ),
            (
                "bind",
                "/d",
                "/a/../../d",
                &[],
                Kind::InvalidArgument,
                "destination: \"/a/../../d\" walks",
            ),
            (
                "bind",
                "/d",
                "/",
                &[],
                Kind::InvalidArgument,
                "destination: \"/\" is the root",
            ),
            (
                "bind",
                "/d",
                "/a\0",
                &[],
                Kind::InvalidArgument,
                "destination",
            ),
            (
                "bind",
                "d",
                "/d",
                &[],
                Kind::InvalidArgument,
                "source: \"d\" is not",
            ),
            (
                "bind",
                "/d",
                "/d",
                &["size=1m"],
                Kind::NotSupported,
                "options \"size=1m\": ",
            ),
            (
                "bind",
                "/d",
                "/d",
                &["sync"],
                Kind::NotSupported,
                "options \"sync\": ",
            ),
            (
                "bind",
                "/d",
                "/d",
                &["rshared"],
                Kind::NotSupported,
                "options \"shared\": ",
            ),
            (
                "bind",
                "/d",
                "/d",
                &["unbindable"],
                Kind::NotSupported,
                "options \"unbindable\": ",
            ),
            (
                "tmpfs",
                "",
                "/d",
                &["tmpcopyup"],
                Kind::NotSupported,
                "options \"tmpcopyup\": ",
            ),
            (
                "tmpfs",
                "",
                "/d",
                &["uid=70000"],
                Kind::NotSupported,
                "options \"uid=70000\": ",
            ),
            (
                "tmpfs",
                "",
                "/d",
                &["idmap"],
                Kind::InvalidArgument,
                "options \"idmap\": ",
            ),
            (
                "tmpfs",
                "",
                "/d",
                &["remount"],
                Kind::NotSupported,
                "options \"remount\": ",
            ),
            (
                "proc",
                "",
                "/d",
                &[],
                Kind::NotSupported,
                "type \"proc\": is made with",
            ),
            (
                "ext4",
                "/dev/sda",
                "/d",
                &[],
                Kind::NotSupported,
                "type \"ext4\": a running",
            ),
            (
                "",
                "/d",
                "/d",
                &[],
                Kind::NotSupported,
                "type \"\": a running",
            ),
        ];
        for (fstype, source, target, options, kind, words) in cases {
            let e = ask(fstype, source, target, options).unwrap_err();
            assert_eq!(e.kind(), *kind, "{e}");
            assert!(e.to_string().starts_with(words), "{e}\n  not {words}");
        }
    }
}
