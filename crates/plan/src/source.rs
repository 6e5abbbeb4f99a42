//! One entry of the spec's `mounts` → what is mounted, with its options checked.

use std::path::PathBuf;

use oci_spec::runtime;

use crate::container::ContainerFacts;
use crate::ids::Ids;
use crate::mounts::never_shared;
use crate::options::{self, Options, refuse};
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::step::{Idmap, Mount, Propagation, Source};
use crate::{hints, idmap};

/// Options of a tmpfs that have a value, and those that have none (`shmem_fs_parameters`).
const TMPFS_VALUES: [&str; 8] = [
    "size",
    "mode",
    "nr_inodes",
    "nr_blocks",
    "uid",
    "gid",
    "huge",
    "mpol",
];
const TMPFS_FLAGS: [&str; 3] = ["inode32", "inode64", "noswap"];

/// Reads `mounts[index]`, which is no proc.
pub(crate) fn read(
    index: usize,
    mount: &runtime::Mount,
    target: PathBuf,
    mut options: Options,
    facts: &ContainerFacts,
) -> Result<Mount, Error> {
    let hinted = hints::source(index, mount, &mut options, facts)?;
    let source = match hinted {
        Some(hinted) => hinted,
        None => of_spec(index, mount, &options, facts)?,
    };
    Ok(Mount {
        index,
        target,
        source,
        attr: options.attr,
        all: options.all,
        propagation: options.propagation,
    })
}

/// What the spec itself mounts.
fn of_spec(
    index: usize,
    mount: &runtime::Mount,
    options: &Options,
    facts: &ContainerFacts,
) -> Result<Source, Error> {
    let given = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind || given == "bind";
    if !bind {
        only_for_bind(index, mount, options)?;
    }
    let shared = |kind: &Propagation| *kind == Propagation::Shared;
    if facts.userns() && options.propagation.iter().any(|p| shared(&p.kind)) {
        return Err(never_shared(format!("mounts[{index}].options \"shared\"")));
    }
    let kernels = !matches!(
        given,
        "tmpfs" | "devpts" | "mqueue" | "sysfs" | "cgroup" | "cgroup2"
    );
    if bind || !(kernels || given == "tmpfs") {
        no_superblock_flags(index, options)?;
    }
    if options.copy_up && given != "tmpfs" {
        let reason = "copies what a tmpfs covers into it";
        return Err(refuse(index, "tmpcopyup", reason, "use it with a tmpfs"));
    }
    match given {
        _ if bind => bind_source(index, mount, options, facts),
        "tmpfs" => tmpfs(index, options, facts),
        "devpts" => devpts(index, options, facts),
        "mqueue" => no_data(index, options).map(|()| Source::Mqueue),
        "sysfs" => sysfs(index, options, facts),
        "cgroup" | "cgroup2" => cgroup(index, options, facts),
        other => kernel_fs(index, other, mount, options, facts),
    }
}

fn only_for_bind(index: usize, mount: &runtime::Mount, options: &Options) -> Result<(), Error> {
    let mapped = has_mappings(mount.uid_mappings()) || has_mappings(mount.gid_mappings());
    if mapped || options.idmap {
        let reason = "id mappings are for bind mounts";
        return Err(invalid(
            format!("mounts[{index}].uidMappings"),
            reason,
            "drop them",
        ));
    }
    Ok(())
}

/// They belong to a file system as a whole, and the kernel would ignore them on one more mount
/// of it.
pub(crate) fn no_superblock_flags(index: usize, options: &Options) -> Result<(), Error> {
    match options.superblock.first() {
        None => Ok(()),
        Some(flag) => Err(refuse(
            index,
            flag,
            "belongs to the whole file system, not to one mount of it",
            "drop it, or mount the source with it on the node",
        )),
    }
}

fn bind_source(
    index: usize,
    mount: &runtime::Mount,
    options: &Options,
    facts: &ContainerFacts,
) -> Result<Source, Error> {
    no_data(index, options)?;
    let field = format!("mounts[{index}].source");
    let path = mount.source().clone().unwrap_or_default();
    no_nul(&field, &path.to_string_lossy())?;
    if !path.is_absolute() {
        let reason = format!(
            "{} is not an absolute path",
            quoted(&path.to_string_lossy())
        );
        return Err(invalid(field, reason, "use a path that begins with /"));
    }
    Ok(Source::Bind {
        path,
        recursive: options.recursive,
        idmap: id_map(index, mount, options, facts)?,
    })
}

/// The mount's own mappings, else the pod's.
pub(crate) fn id_map(
    index: usize,
    mount: &runtime::Mount,
    options: &Options,
    facts: &ContainerFacts,
) -> Result<Idmap, Error> {
    let ids = Ids {
        uids: idmap::extents(mount.uid_mappings().as_deref()),
        gids: idmap::extents(mount.gid_mappings().as_deref()),
    };
    let (uids, gids) = (
        format!("mounts[{index}].uidMappings"),
        format!("mounts[{index}].gidMappings"),
    );
    match (ids.uids.0.is_empty(), ids.gids.0.is_empty()) {
        (true, true) if facts.userns() => return Ok(Idmap::Pod),
        (true, true) if options.idmap => {
            let reason = "\"idmap\" without mappings is for a pod with a user namespace";
            return Err(invalid(uids, reason, "give the mount mappings"));
        }
        (true, true) => return Ok(Idmap::None),
        (true, false) => return Err(invalid(uids, "missing beside gidMappings", "give both")),
        (false, true) => return Err(invalid(gids, "missing beside uidMappings", "give both")),
        (false, false) => {}
    }
    idmap::check_extents(&uids, &ids.uids)?;
    idmap::check_extents(&gids, &ids.gids)?;
    let pods = idmap::same(&ids.uids, &facts.ids.uids) && idmap::same(&ids.gids, &facts.ids.gids);
    Ok(if pods {
        Idmap::Pod
    } else {
        let recursive = options.idmap_recursive;
        Idmap::Own { ids, recursive }
    })
}

fn has_mappings(list: &Option<Vec<runtime::LinuxIdMapping>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn tmpfs(index: usize, options: &Options, facts: &ContainerFacts) -> Result<Source, Error> {
    let field = |option: &str| options::field(index, option);
    let mut given = tmpfs_data(&options.data, &facts.ids, &field)?;
    given.extend(superblock(options));
    Ok(Source::Tmpfs {
        mode_of_target: !given.iter().any(|(key, _)| key == "mode"),
        options: given,
        copy_up: options.copy_up,
    })
}

/// Options of a tmpfs, ids as the host's numbers; `field` is what an error about one begins with.
pub(crate) fn tmpfs_data(
    data: &[(String, String)],
    ids: &Ids,
    field: &dyn Fn(&str) -> String,
) -> Result<Vec<(String, String)>, Error> {
    let mut given = data.to_vec();
    for (key, value) in &mut given {
        let option = spelled(key, value);
        let name = key.as_str();
        if TMPFS_FLAGS.contains(&name) && value.is_empty() {
            continue;
        }
        if !TMPFS_VALUES.contains(&name) {
            let way_out = "a tmpfs takes size, mode, uid, gid, nr_inodes, nr_blocks, huge, mpol";
            let reason = "no option of a tmpfs that Berm knows";
            return Err(unsupported(field(&option), reason, way_out));
        }
        if value.is_empty() || value.contains('\0') {
            return Err(needs_value(field(&option)));
        }
        if name == "uid" || name == "gid" {
            let map = if name == "uid" { &ids.uids } else { &ids.gids };
            let inside = value.parse().map_err(|_| needs_value(field(&option)))?;
            let host = map.to_host(inside);
            *value = host
                .ok_or_else(|| outside_the_map(field(&option)))?
                .to_string();
        }
    }
    Ok(given)
}

pub(crate) fn superblock(options: &Options) -> impl Iterator<Item = (String, String)> {
    let flags = options.superblock.iter();
    flags.map(|&flag| (flag.to_owned(), String::new()))
}

fn devpts(index: usize, options: &Options, facts: &ContainerFacts) -> Result<Source, Error> {
    // The kernel's defaults (devpts_fs_info in fs/devpts/inode.c).
    let (mut gid, mut mode, mut ptmxmode) = (None, "600".to_owned(), "000".to_owned());
    for (key, value) in &options.data {
        let option = spelled(key, value);
        let octal = || match u32::from_str_radix(value, 8) {
            Ok(bits) if bits <= 0o777 => Ok(value.clone()),
            _ => Err(needs_value(options::field(index, &option))),
        };
        match key.as_str() {
            // Every devpts is an instance of its own.
            "newinstance" => {}
            "mode" => mode = octal()?,
            "ptmxmode" => ptmxmode = octal()?,
            "gid" => {
                let inside = value
                    .parse()
                    .map_err(|_| needs_value(options::field(index, &option)))?;
                let host = facts.ids.gids.to_host(inside);
                gid = Some(host.ok_or_else(|| outside_the_map(options::field(index, &option)))?);
            }
            _ => {
                let way_out = "devpts takes newinstance, mode, ptmxmode and gid";
                return Err(refuse(index, &option, "not applied by Berm", way_out));
            }
        }
    }
    Ok(Source::Devpts {
        gid,
        mode,
        ptmxmode,
    })
}

fn sysfs(index: usize, options: &Options, facts: &ContainerFacts) -> Result<Source, Error> {
    no_data(index, options)?;
    // The kernel lets the owner of a network namespace mount it writable, and nobody else.
    let allowed = !facts.userns() || facts.owns_netns;
    if !options.attr.ro && !allowed {
        return Err(unsupported(
            format!("mounts[{index}].options"),
            "a writable sysfs is for a privileged pod, or one that owns its network namespace",
            "add \"ro\"",
        ));
    }
    Ok(Source::Sysfs)
}

fn cgroup(index: usize, options: &Options, facts: &ContainerFacts) -> Result<Source, Error> {
    // They are the host's, for the whole hierarchy; containerd repeats what it finds there.
    const OF_THE_HIERARCHY: [&str; 4] = [
        "nsdelegate",
        "memory_recursiveprot",
        "memory_localevents",
        "favordynmods",
    ];
    for (key, value) in &options.data {
        if !value.is_empty() || !OF_THE_HIERARCHY.contains(&key.as_str()) {
            let way_out = "drop it: a container sees its own groups as the node has them";
            return Err(refuse(
                index,
                &spelled(key, value),
                "not applied by Berm",
                way_out,
            ));
        }
    }
    Ok(Source::Cgroup(facts.cgroup_views.clone()))
}

/// Any file system of the kernel, for a pod that has the host's ids.
fn kernel_fs(
    index: usize,
    fs: &str,
    mount: &runtime::Mount,
    options: &Options,
    facts: &ContainerFacts,
) -> Result<Source, Error> {
    let field = format!("mounts[{index}].type {}", quoted(fs));
    if facts.userns() {
        return Err(unsupported(
            field,
            "a pod with a user namespace mounts bind, tmpfs, devpts, mqueue, sysfs, cgroup, proc",
            "mount it on the node and bind it",
        ));
    }
    if fs.is_empty() || fs == "none" {
        return Err(invalid(
            field,
            "no file system",
            "name one, or use \"bind\"",
        ));
    }
    let source = mount.source().clone().unwrap_or_default();
    let source = source.to_string_lossy().into_owned();
    no_nul(&field, fs)?;
    no_nul(&format!("mounts[{index}].source"), &source)?;
    let mut given = options.data.clone();
    for (key, value) in &given {
        no_nul(&format!("mounts[{index}].options"), &spelled(key, value))?;
    }
    given.extend(superblock(options));
    given.extend(options.attr.ro.then(|| ("ro".to_owned(), String::new())));
    Ok(Source::Fs {
        fs: fs.to_owned(),
        source,
        options: given,
    })
}

pub(crate) fn no_data(index: usize, options: &Options) -> Result<(), Error> {
    match options.data.first() {
        None => Ok(()),
        Some((key, value)) => Err(refuse(
            index,
            &spelled(key, value),
            "not known for this type of mount",
            "drop it",
        )),
    }
}

fn needs_value(field: String) -> Error {
    invalid(
        field,
        "not a value that the file system takes",
        "correct it",
    )
}

fn outside_the_map(field: String) -> Error {
    let way_out = "use an id that the pod's map holds";
    unsupported(field, "outside the id map of the pod", way_out)
}

fn spelled(key: &str, value: &str) -> String {
    if value.is_empty() {
        key.to_owned()
    } else {
        format!("{key}={value}")
    }
}
