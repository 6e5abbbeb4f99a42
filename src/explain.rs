//! `berm explain`: what isolates a pod, and what was refused.

use berm_sandbox::{
    Config, ContainerExplained, Explanation, InForce, MountExplained, MountHint,
    NamespaceExplained, RefusedTask,
};
use serde_json::json;

use crate::error::Error;
use crate::find::Target;
use crate::table::table;

/// Tells what isolates a pod or container, what its spec asked for, and what was refused
///
/// Everything is read from the kernel, on the host's side: it works on a pod whose shim hangs.
/// A pod or container that was refused is found by its id or by the pod's name as well.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm explain shop/web
  berm explain 3f2a --json | jq .refused";

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let refused = RefusedTask::load_all(&config.state_dir)?;
    let (explained, refused) = match Target::find(config, &args.id) {
        Ok(target) => {
            let sandbox = target.pod.record.id.clone();
            let mut explained = Explanation::of(target.pod.record)?;
            if let Some(id) = &target.container {
                explained.containers.retain(|c| c.record.id == *id);
            }
            let of_pod = refused.into_iter().filter(|r| r.sandbox == sandbox);
            (Some(explained), of_pod.collect())
        }
        Err(e @ Error::NotFound { .. }) => {
            let named: Vec<_> = refused.into_iter().filter(|r| names(r, &args.id)).collect();
            if named.is_empty() {
                return Err(e);
            }
            (None, named)
        }
        Err(e) => return Err(e),
    };
    if args.json {
        let all = json!({"explained": explained, "refused": refused});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let parts = explained.iter().map(pod).chain(refused.iter().map(refusal));
    print!("{}", parts.collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// An id, a beginning of one, a pod's name or `namespace/name`.
fn names(refused: &RefusedTask, name: &str) -> bool {
    let pod = format!("{}/{}", refused.namespace, refused.pod_name);
    let whole = !refused.pod_name.is_empty() && (refused.pod_name == name || pod == name);
    !name.is_empty() && (whole || refused.id.starts_with(name) || refused.sandbox.starts_with(name))
}

fn refusal(refused: &RefusedTask) -> String {
    let mut lines = vec![("refused", format!("{} of {}", refused.call, refused.id))];
    if refused.sandbox != refused.id {
        lines.push(("sandbox", refused.sandbox.clone()));
    }
    if !refused.pod_name.is_empty() {
        lines.push(("pod", format!("{}/{}", refused.namespace, refused.pod_name)));
    }
    lines.push(("kind", refused.kind.clone()));
    lines.push(("error", refused.error.clone()));
    aligned(&lines)
}

fn aligned(lines: &[(&str, String)]) -> String {
    let line = |(key, value): &(&str, String)| format!("{key:<14} {value}\n");
    lines.iter().map(line).collect()
}

fn pod(explained: &Explanation) -> String {
    let record = &explained.record;
    let isolation = &record.isolation;
    let boundary = match (explained.boundary, &isolation.because) {
        (true, _) => format!("user namespace ({})", isolation.userns),
        (false, because) => format!(
            "NOT A SECURITY BOUNDARY: no user namespace, because of {}",
            because.as_deref().unwrap_or("an unknown reason")
        ),
    };
    let capabilities = match isolation.owns_netns {
        true => "every network capability works",
        false => "network capabilities are dead: its network belongs to the host's user namespace",
    };
    let mut lines = vec![("sandbox", record.id.clone())];
    if !record.pod_name.is_empty() {
        lines.push(("pod", format!("{}/{}", record.namespace, record.pod_name)));
    }
    lines.push((
        "running",
        match explained.running {
            true => format!("yes, PID 1 is {} on the host", record.pid),
            false => "no".to_owned(),
        },
    ));
    lines.push(("boundary", boundary));
    if !isolation.host_namespaces.is_empty() {
        lines.push(("the host's", isolation.host_namespaces.join(" ")));
    }
    lines.push(("user ids", extents(&isolation.ids.uids)));
    lines.push(("group ids", extents(&isolation.ids.gids)));
    if explained.boundary {
        lines.push(("network", capabilities.to_owned()));
    }
    lines.push(("namespaces", namespaces(&explained.namespaces)));
    let hints = record.mount_hints.mounts.values();
    lines.extend(hints.map(|h| ("mount hint", hint(h, &explained.containers))));
    let containers = explained.containers.iter().map(container);
    let parts = std::iter::once(aligned(&lines)).chain(containers);
    parts.collect::<Vec<_>>().join("\n")
}

/// `cache: tmpfs (pod) size=1m for /volumes/cache, mounted in a b`
fn hint(hint: &MountHint, containers: &[ContainerExplained]) -> String {
    let mounts = |c: &&ContainerExplained| {
        let asked = c.asked.as_ref();
        asked.is_some_and(|asked| asked.mount_hints.contains(&hint.name))
    };
    let ids: Vec<_> = containers.iter().filter(mounts).collect();
    let ids: Vec<_> = ids.iter().map(|c| c.record.id.as_str()).collect();
    let mount = &hint.mount;
    let mut words = vec![format!("({})", hint.share.as_str())];
    words.extend(mount.options.iter().map(|o| o.escape_debug().to_string()));
    format!(
        "{}: {} {} for {:?}, mounted in {}",
        hint.name,
        mount.kind.as_str(),
        words.join(" "),
        mount.source,
        if ids.is_empty() {
            "no container of the pod".to_owned()
        } else {
            ids.join(" ")
        },
    )
}

fn extents(map: &berm_sandbox::IdMap) -> String {
    let extent = |e: &berm_sandbox::Extent| match e.count {
        1 => format!("{} = {}", e.inside, e.outside),
        count => {
            let last = |first: u32| u64::from(first) + u64::from(count) - 1;
            let (inside, outside) = (last(e.inside), last(e.outside));
            format!(
                "{}-{inside} = {}-{outside} on the host",
                e.inside, e.outside
            )
        }
    };
    match map.0.is_empty() {
        true => "as on the host".to_owned(),
        false => map.0.iter().map(extent).collect::<Vec<_>>().join(", "),
    }
}

/// `host: cgroup time; pod: ipc net user uts; own: mnt pid`
fn namespaces(all: &[NamespaceExplained]) -> String {
    let of = |owner: &str| {
        let names = all.iter().filter(|n| n.of == owner);
        let names: Vec<_> = names.map(|n| n.name.as_str()).collect();
        (!names.is_empty()).then(|| format!("{owner}: {}", names.join(" ")))
    };
    let parts: Vec<_> = ["own", "pod", "host"].into_iter().filter_map(of).collect();
    parts.join("; ")
}

fn container(explained: &ContainerExplained) -> String {
    let record = &explained.record;
    let mut lines = vec![("container", record.id.clone())];
    let Some(in_force) = &explained.in_force else {
        lines.push(("state", "ended".to_owned()));
        return aligned(&lines);
    };
    lines.extend(process(in_force, record.init.pid));
    let upper = record.rootfs_upper.as_ref();
    lines.extend(upper.map(|upper| ("root writes to", upper.to_string())));
    lines.push(("seccomp", seccomp(explained, in_force)));
    lines.extend(explained.differs.iter().map(|d| ("DIFFERS", d.clone())));
    let limits = in_force.limits.iter();
    lines.extend(limits.map(|l| ("limit", format!("{} {}", l.file, l.value))));
    if !record.steps.is_empty() {
        lines.push(("made by", record.steps.join(" ")));
    }
    let rows: Vec<_> = in_force.mounts.iter().map(row).collect();
    let mounts = table(["MOUNT", "TYPE", "ACCESS", "IDS", "LOCKED", "FLAGS"], &rows);
    format!("{}\n{mounts}", aligned(&lines))
}

fn process(in_force: &InForce, pid: i32) -> Vec<(&'static str, String)> {
    let credentials = &in_force.credentials;
    let listed = |names: &[String]| match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(" "),
    };
    let mut lines = vec![
        ("pid", pid.to_string()),
        (
            "user",
            format!("{}, {} on the host", credentials.uid, credentials.host_uid),
        ),
        ("namespaces", namespaces(&in_force.namespaces)),
        ("capabilities", listed(&in_force.capabilities)),
    ];
    if !in_force.dead_capabilities.is_empty() {
        let dead = in_force.dead_capabilities.join(" ");
        lines.push(("of them dead", dead));
    }
    let set = if credentials.no_new_privs {
        "set"
    } else {
        "not set"
    };
    lines.push(("no_new_privs", set.to_owned()));
    if !credentials.label.is_empty() {
        lines.push(("label", credentials.label.clone()));
    }
    lines.push(("oom score", credentials.oom_score_adj.to_string()));
    lines
}

fn seccomp(explained: &ContainerExplained, in_force: &InForce) -> String {
    let filters = in_force.credentials.seccomp_filters;
    if filters == 0 {
        return "NO FILTER: every system call of the kernel can be reached".to_owned();
    }
    let asked = explained.asked.as_ref();
    match asked.and_then(|asked| asked.seccomp.as_ref()) {
        Some(survey) => format!(
            "filter {:016x}, {} instructions: {} calls allowed, {} with conditions ({}), \
             {} forbidden ({})",
            survey.fingerprint,
            survey.instructions,
            survey.allowed,
            survey.conditional.len(),
            survey.conditional.join(" "),
            survey.forbidden.len(),
            survey.forbidden.join(" "),
        ),
        None => format!("{filters} filters that the spec does not have"),
    }
}

fn row(mount: &MountExplained) -> [String; 6] {
    let mut flags = mount.flags.clone();
    if mount.propagation != "private" {
        flags.push(mount.propagation.clone());
    }
    let text = |is: bool, yes: &str, no: &str| if is { yes } else { no }.to_owned();
    [
        mount.target.clone(),
        mount.fs.clone(),
        text(mount.ro, "ro", "rw"),
        text(mount.idmapped, "idmapped", "-"),
        text(mount.locked, "locked", "-"),
        flags.join(","),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(id: &str, pod: &str) -> RefusedTask {
        RefusedTask {
            id: id.into(),
            sandbox: "sandbox-1".into(),
            containerd_namespace: "k8s.io".into(),
            pod_name: pod.into(),
            namespace: "shop".into(),
            call: "Create".into(),
            kind: "NotSupported".into(),
            error: "mounts[1]: no; drop it".into(),
            at_ms: 0,
        }
    }

    #[test]
    fn a_refusal_is_found_by_the_names_that_people_know() {
        let one = refused("abcd", "web");
        for name in ["abcd", "ab", "web", "shop/web", "sandbox-1"] {
            assert!(names(&one, name), "{name}");
        }
        for name in ["", "we", "shop", "b"] {
            assert!(!names(&one, name), "{name}");
        }
        let nameless = RefusedTask {
            namespace: String::new(),
            ..refused("abcd", "")
        };
        assert!(!names(&nameless, "/"));
    }

    #[test]
    fn a_pod_of_the_host_is_told_to_be_no_boundary() {
        let explained = json!({
            "record": {
                "version": 1, "engine": "native", "id": "s", "containerdNamespace": "k8s.io",
                "podName": "web", "namespace": "shop", "pid": 7, "startTime": 0, "uid": 0,
                "gid": 0, "cgroup": "", "controlSocketPath": "/x", "bundle": "/x",
                "owner": {"pid": 1, "startTime": 0},
                "isolation": {
                    "userns": "none", "because": "hostNetwork", "hostNamespaces": ["net", "uts"],
                    "ids": {"uids": [], "gids": []}, "range": null, "ownsNetns": true,
                },
                "mountHints": {"mounts": {"cache": {"name": "cache", "share": 2, "mount":
                    {"type": "tmpfs", "source": "/x", "options": ["size=1m"]}}}},
            },
            "running": true, "boundary": false, "namespaces": [], "containers": [],
        });
        let text = pod(&serde_json::from_value(explained).unwrap());
        for line in [
            "NOT A SECURITY BOUNDARY: no user namespace, because of hostNetwork\n",
            "the host's     net uts\n",
            "user ids       as on the host\n",
            "mount hint     cache: tmpfs (pod) size=1m for \"/x\", mounted in no container of",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }

    #[test]
    fn namespaces_are_told_by_their_owner() {
        let one = |name: &str, of: &str| NamespaceExplained {
            name: name.into(),
            inode: 1,
            of: of.into(),
        };
        let all = [
            one("mnt", "own"),
            one("net", "pod"),
            one("time", "host"),
            one("pid", "own"),
        ];
        assert_eq!(namespaces(&all), "own: mnt pid; pod: net; host: time");
    }
}
