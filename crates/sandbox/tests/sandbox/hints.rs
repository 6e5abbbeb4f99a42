//! Mount hints: one tmpfs of a pod for the mounts of a source.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berm_sandbox::{Config, Error};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use berm_testkit::command::patient;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::container::Container;
use crate::options::{tmpfs, umount};
use crate::world::{Pod, SOON, World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_tmpfs_of_the_pod_is_one_in_every_container_that_mounts_its_source,
    a_pod_without_a_user_namespace_has_its_tmpfs_too,
    a_pod_of_one_has_what_its_own_spec_hints_at,
    a_tmpfs_of_the_pod_outlives_its_containers_and_is_counted_in_the_pod,
    a_container_with_a_hint_is_locked_and_no_looser_than_it,
    a_hint_is_for_mounts_of_its_source_alone,
    a_read_only_mount_of_the_pods_tmpfs_has_the_mounts_that_are_in_it,
    hooks_find_the_pods_tmpfs_and_the_containers_layer_in_the_tree,
    a_tmpfs_of_the_pod_has_mode_and_owner_of_the_directory_that_it_stands_for,
    a_hint_without_a_source_is_for_kubelets_volume_of_its_name,
    the_record_has_the_hints_with_gvisors_keys,
    a_pod_whose_tmpfs_the_kernel_refuses_leaves_nothing,
    a_container_that_its_hint_refuses_leaves_the_pods_tmpfs_as_it_was,
];

const USERNS: &str = "dev.berm.userns";
/// The mount of the case, after those of every container.
const INDEX: usize = 7;

/// Hints at `type` for mounts of `source`.
fn hint(spec: &mut Value, name: &str, kind: &str, source: &Path, options: &str) {
    let share = if name == "own" { "container" } else { "pod" };
    let mut set = |field: &str, value: &str| {
        let key = format!("dev.gvisor.spec.mount.{name}.{field}");
        spec["annotations"][key] = json!(value);
    };
    set("source", source.to_str().unwrap());
    set("type", kind);
    set("share", share);
    set("options", options);
}

fn with<'p>(pod: &'p Pod<'p>, script: &str, source: &Path, options: &[&str]) -> Container<'p> {
    let mut all = vec!["rbind", "rprivate"];
    all.extend(options);
    pod.sh(script).mount("/cache", "bind", source, &all)
}

async fn one_tmpfs_in_every_container(pod: &Pod<'_>, cache: &Path) {
    fs::write(cache.join("of-the-node"), "").unwrap();
    let base = pod.sandbox.record().uid;
    let script = "stat -f -c %T /cache; ls -A /cache; echo hers > /cache/file; sleep 1000";
    let first = with(pod, script, cache, &["rw"]).run().await;
    let script = "until [ -s /cache/file ]; do :; done; cat /cache/file; \
        chown 1000:1000 /cache/file; stat -c %u:%g /cache/file; \
        dd if=/dev/zero of=/cache/big bs=64k count=32 2>/dev/null || echo full; rm /cache/big";
    let second = with(pod, script, cache, &["rw"]);
    assert_eq!(second.output().await, (0, "hers\n1000:1000\nfull\n".into()));
    // On the host it has the pod's ids, and the directory of the node has nothing of it.
    let seen = PathBuf::from(format!("/proc/{}/root/cache/file", first.pid));
    assert_eq!(fs::metadata(&seen).unwrap().uid(), base + 1000);
    assert!(!cache.join("file").exists() && cache.join("of-the-node").exists());
    first.kill(9).await.unwrap();
    assert_eq!(first.wait().await.status, 137);
    let mut first = first;
    assert_eq!(first.text().await, "tmpfs\n");
    first.delete().await.unwrap();
    // The next start of a container finds it as it was left.
    let again = with(
        pod,
        "cat /cache/file; stat -c %u /cache/file",
        cache,
        &["rw"],
    );
    assert_eq!(again.output().await, (0, "hers\n1000\n".into()));
}

fn a_tmpfs_of_the_pod_is_one_in_every_container_that_mounts_its_source() {
    world(async |w| {
        for name in ["cache", "own"] {
            let cache = w.dir("volume");
            let pod = w
                .pod_with(|spec| hint(spec, name, "tmpfs", &cache, "size=1m"))
                .await;
            one_tmpfs_in_every_container(&pod, &cache).await;
            pod.end().await;
        }
    });
}

fn a_pod_without_a_user_namespace_has_its_tmpfs_too() {
    let allow = |c: &mut Config| c.policy.allow_annotations = vec![USERNS.into()];
    world_with(allow, async |w| {
        let cache = w.dir("volume");
        let pod = w
            .pod_with(|spec| {
                spec["annotations"][USERNS] = json!("host");
                hint(spec, "cache", "tmpfs", &cache, "size=1m");
            })
            .await;
        assert_eq!(pod.sandbox.record().uid, 0);
        one_tmpfs_in_every_container(&pod, &cache).await;
    });
}

fn a_pod_of_one_has_what_its_own_spec_hints_at() {
    world(async |w| {
        let cache = w.dir("volume");
        let id = w.name("one");
        let script = "echo x > /cache/file && stat -f -c %T /cache";
        // Its image and its mounts are those of any other.
        let any = w.pod().await;
        let spec = of_one(with(&any, script, &cache, &["rw"]), &id, &cache).spec;
        let pod = w.sandbox(&id, &spec).await.unwrap();
        let container = of_one(with(&pod, script, &cache, &["rw"]), &id, &cache);
        assert_eq!(container.output().await, (0, "tmpfs\n".into()));
        assert!(!cache.join("file").exists());
    });
}

/// The same container as the workload of a pod of one.
fn of_one<'p>(mut container: Container<'p>, id: &str, cache: &Path) -> Container<'p> {
    let asked = container.pod.world.sandbox_spec(id)["annotations"][USERNS].take();
    let spec = &mut container.spec;
    spec["annotations"] = json!({});
    if asked.is_string() {
        spec["annotations"][USERNS] = asked;
    }
    hint(spec, "cache", "tmpfs", cache, "size=1m");
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
        {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}]);
    let cgroup = &container.pod.world.cgroup;
    spec["linux"]["cgroupsPath"] = json!(format!("/{cgroup}/{id}"));
    id.clone_into(&mut container.id);
    container
}

/// Bytes of memory that are counted in the cgroup above those of the case.
fn counted(w: &World) -> u64 {
    let dir = w.cgroup_dir("memory", "x");
    let dir = dir.parent().unwrap();
    let file = ["memory.usage_in_bytes", "memory.current"]
        .map(|name| dir.join(name))
        .into_iter()
        .find(|path| path.exists());
    let text = fs::read_to_string(file.unwrap()).unwrap();
    text.trim().parse().unwrap()
}

fn a_tmpfs_of_the_pod_outlives_its_containers_and_is_counted_in_the_pod() {
    const MIB: u64 = 1 << 20;
    world(async |w| {
        let cache = w.dir("volume");
        let pod = w
            .pod_with(|spec| hint(spec, "cache", "tmpfs", &cache, ""))
            .await;
        let script =
            "dd if=/dev/zero of=/cache/big bs=1M count=32 2>/dev/null; cat /cache/big | wc -c";
        let container = with(&pod, script, &cache, &["rw"]);
        assert_eq!(container.output().await, (0, "33554432\n".into()));
        // Its container is gone with its cgroup, the pod is charged.
        assert!(counted(w) >= 32 * MIB, "{}", counted(w));
        let container = with(&pod, "cat /cache/big | wc -c", &cache, &["ro"]);
        assert_eq!(container.output().await, (0, "33554432\n".into()));
        pod.end().await;
        let until = Instant::now() + patient(SOON);
        while counted(w) >= 32 * MIB {
            assert!(Instant::now() < until, "{} are left", counted(w));
            sleep(Duration::from_millis(2)).await;
        }
    });
}

fn a_container_with_a_hint_is_locked_and_no_looser_than_it() {
    world(async |w| {
        let (cache, disk) = (w.dir("volume"), w.dir("volume"));
        let pod = w
            .pod_with(|spec| {
                hint(spec, "cache", "tmpfs", &cache, "nosuid,nodev,noexec");
                hint(spec, "disk", "bind", &disk, "ro,noexec");
            })
            .await;
        let flags = "grep ' /cache ' /proc/self/mountinfo | cut -d' ' -f6";
        let script = format!("{flags}; touch /cache/x || echo no; umount /cache && echo gone");
        let rw = with(&pod, &script, &cache, &["rw"]).output().await.1;
        assert!(rw.starts_with("rw,nosuid,nodev,noexec,relatime\n"), "{rw}");
        let ro = with(&pod, &script, &cache, &["ro"]).output().await.1;
        assert!(ro.starts_with("ro,nosuid,nodev,noexec,relatime\n"), "{ro}");
        assert!(ro.contains("no\n") && !ro.contains("gone"), "{ro}");
        let bind = with(&pod, flags, &disk, &["ro"]).output().await.1;
        assert!(bind.starts_with("ro,noexec,"), "{bind}");
        let error = with(&pod, "true", &disk, &["rw"]).refused().await;
        let want = format!("mounts[{INDEX}].options: looser than mount hint \"disk\"");
        assert!(error.to_string().contains(&want), "{error}");
    });
}

fn a_hint_is_for_mounts_of_its_source_alone() {
    world(async |w| {
        let (cache, other) = (w.dir("volume"), w.dir("volume"));
        for dir in [&cache, &other] {
            fs::create_dir(dir.join("sub")).unwrap();
        }
        let pod = w
            .pod_with(|spec| hint(spec, "cache", "tmpfs", &cache, ""))
            .await;
        for source in [&other, &cache.join("sub")] {
            let container = with(&pod, "echo x > /cache/new", source, &["rw"]);
            assert_eq!(container.output().await, (0, String::new()));
            assert!(source.join("new").exists());
        }
        // A bind is of what the spec mounts, never of what a hint names.
        let pod = w
            .pod_with(|spec| hint(spec, "etc", "bind", Path::new("/etc"), ""))
            .await;
        let container = pod.sh("ls /cache");
        let container = container.mount("/cache", "tmpfs", Path::new("/etc"), &[]);
        let error = container.refused().await;
        let want = format!("mounts[{INDEX}].type \"tmpfs\": mount hint \"etc\" makes a bind of it");
        assert!(error.to_string().contains(&want), "{error}");
    });
}

fn a_tmpfs_of_the_pod_has_mode_and_owner_of_the_directory_that_it_stands_for() {
    world(async |w| {
        let (cache, named, missing) = (w.dir("volume"), w.dir("volume"), w.dir.join("missing"));
        for dir in [&cache, &named] {
            // As kubelet leaves a volume to the group of the pod's fsGroup.
            chown(dir, Some(0), Some(3000)).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o2770)).unwrap();
        }
        let pod = w
            .pod_with(|spec| {
                hint(spec, "cache", "tmpfs", &cache, "");
                hint(spec, "named", "tmpfs", &named, "mode=700,uid=7");
                hint(spec, "missing", "tmpfs", &missing, "");
            })
            .await;
        for (source, want) in [
            (&cache, "0:3000:2770\n"),
            (&named, "7:0:700\n"),
            (&missing, "0:0:1777\n"),
        ] {
            let container = with(&pod, "stat -c %u:%g:%a /cache", source, &["rw"]);
            assert_eq!(container.output().await, (0, want.into()));
        }
    });
}

fn a_hint_without_a_source_is_for_kubelets_volume_of_its_name() {
    world(async |w| {
        // Where nothing of the node's is meant by it.
        tmpfs(Path::new("/var/lib"));
        let volumes = Path::new("/var/lib/kubelet/pods/12-34/volumes");
        let dir = volumes.join("kubernetes.io~empty-dir/cache");
        fs::create_dir_all(&dir).unwrap();
        let annotate = |spec: &mut Value, uid: &str| {
            let annotations = &mut spec["annotations"];
            annotations["io.kubernetes.cri.sandbox-uid"] = json!(uid);
            annotations["dev.berm.mount.cache.type"] = json!("tmpfs");
            annotations["dev.berm.mount.cache.share"] = json!("pod");
        };
        let pod = w.pod_with(|spec| annotate(spec, "12-34")).await;
        let container = with(
            &pod,
            "echo x > /cache/file; stat -f -c %T /cache",
            &dir,
            &["rw"],
        );
        assert_eq!(container.output().await, (0, "tmpfs\n".into()));
        assert!(!dir.join("file").exists());
        assert!(pod.sandbox.record().mount_hints.find(&dir).is_some());
        for uid in ["other", "../pods/12-34"] {
            let error = refused(w, |spec| annotate(spec, uid)).await;
            let want = "annotations[\"dev.berm.mount.cache.source\"]: missing, and kubelet has no";
            assert!(error.to_string().starts_with(want), "{error}");
            assert_eq!(error.kind(), Kind::InvalidArgument);
        }
        umount(Path::new("/var/lib"));
    });
}

async fn refused(w: &World, edit: impl FnOnce(&mut Value)) -> Error {
    w.try_pod(edit).await.map(drop).expect_err("refused")
}

fn the_record_has_the_hints_with_gvisors_keys() {
    world(async |w| {
        let cache = w.dir("volume");
        let pod = w
            .pod_with(|spec| hint(spec, "cache", "tmpfs", &cache, "size=1m"))
            .await;
        let read = |pod: &Pod<'_>| -> Value {
            let path = pod.sandbox.record().control_socket_path.clone();
            let json = fs::read(path.with_file_name("sandbox.json")).unwrap();
            serde_json::from_slice(&json).unwrap()
        };
        let want = json!({"mounts": {"cache": {
            "name": "cache", "share": 2,
            "mount": {"type": "tmpfs", "source": cache, "options": ["size=1m"]},
        }}});
        assert_eq!(read(&pod)["mountHints"], want);
        assert_eq!(read(&w.pod().await)["mountHints"], Value::Null);
    });
}

fn a_pod_whose_tmpfs_the_kernel_refuses_leaves_nothing() {
    world(async |w| {
        let cache = w.dir("volume");
        let cases = [
            (
                "size=much",
                "mount hint \"cache\": fsconfig(\"tmpfs\", \"size\", \"much\")",
            ),
            (
                "mode=9",
                "mount hint \"cache\": fsconfig(\"tmpfs\", \"mode\", \"9\")",
            ),
        ];
        for (options, want) in cases {
            let error = refused(w, |s| hint(s, "cache", "tmpfs", &cache, options)).await;
            assert!(error.chain().contains(want), "{}", error.chain());
            assert_eq!(error.kind(), Kind::InvalidArgument);
        }
        if crate::world::pods_get_user_namespaces() {
            let far = "gid=4000000000";
            let error = refused(w, |s| hint(s, "cache", "tmpfs", &cache, far)).await;
            assert!(error.to_string().contains("outside the id map"), "{error}");
        }
    });
}

fn a_container_that_its_hint_refuses_leaves_the_pods_tmpfs_as_it_was() {
    world(async |w| {
        let cache = w.dir("volume");
        let pod = w
            .pod_with(|spec| hint(spec, "cache", "tmpfs", &cache, ""))
            .await;
        let container = with(&pod, "echo kept > /cache/file", &cache, &["rw"]);
        assert_eq!(container.output().await, (0, String::new()));
        // Its tree is being built when it turns out that there is no such target.
        let container = with(&pod, "true", &cache, &["rw"]);
        let container = container.mount("/etc/passwd/x", "bind", &cache, &["rbind"]);
        container.refused().await;
        let other = with(&pod, "true", &cache, &["rw"]);
        let key = "/annotations/dev.gvisor.spec.mount.cache.type";
        let error = other.set(key, json!("bind")).refused().await;
        let want = "not what the pod's sandbox says";
        assert!(error.to_string().contains(want), "{error}");
        let container = with(&pod, "cat /cache/file", &cache, &["rw"]);
        assert_eq!(container.output().await, (0, "kept\n".into()));
    });
}

fn a_read_only_mount_of_the_pods_tmpfs_has_the_mounts_that_are_in_it() {
    world(async |w| {
        let (cache, volume) = (w.dir("volume"), w.dir("volume"));
        fs::write(volume.join("file"), "in it\n").unwrap();
        let pod = w
            .pod_with(|spec| hint(spec, "cache", "tmpfs", &cache, ""))
            .await;
        let script = "cat /cache/sub/file; touch /cache/sub/new && echo volume; touch /cache/new";
        let container = with(&pod, script, &cache, &["ro"]);
        let container = container.mount("/cache/sub", "bind", &volume, &["rbind"]);
        let (_, text) = container.output().await;
        assert!(text.starts_with("in it\nvolume\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
        // For the others it is as writable as before.
        let container = with(&pod, "ls /cache; touch /cache/new", &cache, &["rw"]);
        assert_eq!(container.output().await, (0, "sub\n".into()));
    });
}

fn hooks_find_the_pods_tmpfs_and_the_containers_layer_in_the_tree() {
    let in_memory = |c: &mut Config| c.policy.rootfs_upper = "memory".parse().unwrap();
    world_with(in_memory, async |w| {
        let cache = w.dir("volume");
        let pod = w
            .pod_with(|spec| hint(spec, "cache", "tmpfs", &cache, ""))
            .await;
        let mut container = with(&pod, "cat /cache/by /tmp/by", &cache, &["rw"]);
        let root = container.root.clone();
        let program = w.dir.join("hook");
        let at = root.display();
        let script = format!("#!/bin/sh\necho tmpfs > {at}/cache/by\necho layer > {at}/tmp/by\n");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        container.spec["hooks"]["createContainer"] = json!([{"path": program, "args": ["hook"]}]);
        assert_eq!(container.output().await, (0, "tmpfs\nlayer\n".into()));
        assert!(!root.join("tmp/by").exists() && !cache.join("by").exists());
    });
}
