//! Where what a container writes to its root file system goes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use berm_sandbox::{Config, RootfsUpper};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::json;

use crate::container::Container;
use crate::device_rootfs::ext4;
use crate::options::{tmpfs, umount};
use crate::rootfs::Layers;
use crate::world::{Pod, World, pods_get_user_namespaces, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    what_is_written_over_a_directory_ends_with_the_container,
    what_is_written_over_layers_ends_with_the_container,
    what_is_written_over_a_device_ends_with_the_container,
    a_pod_without_a_user_namespace_has_layers_of_its_own_too,
    layers_that_carry_the_pods_ids_show_them_below_a_layer,
    a_view_of_the_snapshotter_is_writable_below_a_layer,
    a_layer_holds_no_more_than_its_size,
    a_layer_in_memory_is_counted_as_its_containers,
    a_layer_has_mode_and_owner_of_the_root_below,
    a_read_only_root_gets_no_layer,
    the_word_of_a_pod_wins_where_the_node_allows_it,
    a_layer_that_cannot_be_is_refused_with_its_reason,
    a_node_without_mkfs_has_layers_in_memory,
    a_container_that_fails_leaves_no_layer,
    a_directory_for_layers_has_no_name_of_what_a_container_writes,
];

const USERNS: &str = "dev.berm.userns";
const UPPER: &str = "dev.berm.rootfs_upper";
const MEDIA: [&str; 4] = ["memory", "memory,size=16m", "self,size=16m", "self"];

fn upper(text: &str) -> RootfsUpper {
    text.parse().unwrap()
}

fn allow(config: &mut Config) {
    config.policy.allow_annotations.push(UPPER.to_owned());
}

/// A pod whose containers write there.
async fn pod_on<'w>(w: &'w World, medium: &str) -> Pod<'w> {
    w.pod_with(|spec| spec["annotations"][UPPER] = json!(medium))
        .await
}

/// Names, sizes, owners and modes of everything below a directory.
fn state(dir: &Path) -> BTreeMap<PathBuf, (u64, u32, u32)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        let size = if meta.is_dir() { 0 } else { meta.size() };
        found.insert(entry.path(), (size, meta.uid(), meta.mode()));
        if meta.is_dir() {
            found.extend(state(&entry.path()));
        }
    }
    found
}

/// Writes all that a root can be written, and tells what it looks like then.
const WRITE: &str = "ls /new 2>/dev/null && echo stale; cat /etc/group | wc -l; \
    echo x > /new && chown 1000:2000 /new && chmod 600 /new && stat -c %u:%g:%a /new; \
    echo more >> /etc/group; cat /etc/group | wc -l; rm /etc/passwd; ls /etc/passwd 2>/dev/null; \
    mkdir -p /etc/sub/dir && mv /etc/sub /moved && ls /moved; rm -r /root && mkdir /root && \
    ls -A /root; ln -s /new /link && cat /link; mkdir /tmp/a && touch /tmp/a/b && echo done";
const WROTE: &str = "3\n1000:2000:600\n4\ndir\nx\ndone\n";

async fn ends_with_the_container<'p>(
    pod: &'p Pod<'p>,
    rooted: impl Fn(Container<'p>) -> Container<'p>,
    left: impl Fn() -> BTreeMap<PathBuf, (u64, u32, u32)>,
) {
    // Directories that mounts need are made in the layer as well.
    let before = left();
    for _ in 0..2 {
        let container = rooted(pod.sh(WRITE));
        assert_eq!(container.output().await, (0, WROTE.into()));
        assert_eq!(left(), before);
    }
}

fn what_is_written_over_a_directory_ends_with_the_container() {
    world_with(allow, async |w| {
        for medium in MEDIA {
            let pod = pod_on(w, medium).await;
            let root = w.rootfs();
            fs::write(root.join("root/old"), "old").unwrap();
            let rooted = json!(root);
            let left = || state(&root);
            ends_with_the_container(&pod, |c| c.set("/root/path", rooted.clone()), left).await;
        }
    });
}

fn what_is_written_over_layers_ends_with_the_container() {
    world_with(allow, async |w| {
        for medium in MEDIA {
            let pod = pod_on(w, medium).await;
            let layers = Layers::new(w, 3);
            // What somebody has written to the snapshot already.
            fs::write(layers.upper.join("written"), "mine").unwrap();
            let left = || {
                let mut all = state(&layers.upper);
                layers.lower.iter().for_each(|l| all.extend(state(l)));
                all
            };
            ends_with_the_container(&pod, |c| layers.on(c), left).await;
            let script =
                "cat /written /only-0 /only-2 /everywhere; echo x > /written; cat /written";
            let container = layers.on(pod.sh(script));
            assert_eq!(container.output().await, (0, "mine020x\n".into()));
            // And removed from it, and put in the place of what was removed.
            let none = w.pod().await;
            let script =
                "rm /only-1; rm -r /root /etc/group; mkdir /root /etc/group; touch /root/in";
            let container = layers.on(none.sh(script));
            assert_eq!(container.output().await, (0, String::new()));
            let script = "ls -A /only-1 2>/dev/null; ls -A /root /etc/group; rm -r /root; ls /root";
            let shown = layers.on(pod.sh(script)).output().await.1;
            assert!(shown.starts_with("/etc/group:\n\n/root:\nin\n"), "{shown}");
            assert!(shown.contains("No such file"), "{shown}");
            let written = fs::read_to_string(layers.upper.join("written")).unwrap();
            assert_eq!(written, "mine");
        }
    });
}

fn what_is_written_over_a_device_ends_with_the_container() {
    world_with(allow, async |w| {
        let pod = pod_on(w, "memory,size=16m").await;
        let file = ext4(w);
        let options = ["loop".to_owned(), "rw".to_owned()];
        for _ in 0..2 {
            let container = pod.sh(WRITE).rootfs("ext4", &file, &options);
            assert_eq!(container.output().await, (0, WROTE.into()));
        }
        let pod = pod_on(w, "self,size=16m").await;
        let container = pod.sh("true").rootfs("ext4", &file, &options);
        let error = container.refused().await;
        assert_eq!(error.kind(), Kind::NotSupported);
        let want = "rootfs_upper self: the root is a \"ext4\" that is mounted in the pod alone";
        assert!(error.to_string().starts_with(want), "{error}");
    });
}

fn a_pod_without_a_user_namespace_has_layers_of_its_own_too() {
    let both = |c: &mut Config| {
        c.policy.allow_annotations = vec![USERNS.into()];
        c.policy.rootfs_upper = upper("memory,size=16m");
    };
    world_with(both, async |w| {
        let host = |spec: &mut serde_json::Value| spec["annotations"][USERNS] = json!("host");
        let pod = w.pod_with(host).await;
        assert_eq!(pod.sandbox.record().uid, 0);
        let layers = Layers::new(w, 3);
        let left = || state(&layers.upper);
        ends_with_the_container(&pod, |c| layers.on(c), left).await;
    });
}

fn layers_that_carry_the_pods_ids_show_them_below_a_layer() {
    if !pods_get_user_namespaces() {
        return;
    }
    world_with(allow, async |w| {
        let pod = pod_on(w, "memory").await;
        let base = pod.sandbox.record().uid;
        let mut layers = Layers::new(w, 2);
        // As containerd's snapshotter leaves it for `uidmap=`.
        for (name, id) in [("", 0), ("mine", 1000)] {
            let path = layers.upper.join(name);
            if !name.is_empty() {
                fs::write(&path, "").unwrap();
            }
            chown(&path, Some(base + id), Some(base + id)).unwrap();
        }
        let map = |key: &str| format!("{key}=0:{base}:65536");
        layers.more = vec![map("uidmap"), map("gidmap")];
        let container = layers.on(pod.sh("stat -c %u:%g / /mine /only-1 && echo x > /mine"));
        let want = "0:0\n1000:1000\n0:0\n";
        assert_eq!(container.output().await, (0, want.into()));
        assert_eq!(fs::read(layers.upper.join("mine")).unwrap(), b"");
    });
}

fn a_view_of_the_snapshotter_is_writable_below_a_layer() {
    world_with(allow, async |w| {
        for (count, medium) in [(1, "memory"), (3, "memory"), (2, "self,size=4m")] {
            let pod = pod_on(w, medium).await;
            let layers = Layers::new(w, count);
            let lower = layers.lower.iter().map(|l| l.to_str().unwrap());
            let view = [format!("lowerdir={}", lower.collect::<Vec<_>>().join(":"))];
            let container = pod.sh("cat /everywhere; echo x > /new; cat /new");
            let container = container.rootfs("overlay", Path::new("overlay"), &view);
            assert_eq!(container.output().await, (0, "0x\n".into()));
        }
    });
}

fn a_layer_holds_no_more_than_its_size() {
    world_with(allow, async |w| {
        for medium in ["memory,size=4m", "self,size=4m"] {
            let pod = pod_on(w, medium).await;
            let script = "dd if=/dev/zero of=/big bs=64k count=256 2>/dev/null || echo full; \
                [ $(stat -c %s /big) -le 4194304 ] && [ $(stat -c %s /big) -gt 2097152 ] && echo fits; \
                rm /big && echo x > /small && cat /small";
            let container = pod.sh(script);
            let want = "full\nfits\nx\n";
            assert_eq!(container.output().await, (0, want.into()), "{medium}");
        }
    });
}

fn a_layer_in_memory_is_counted_as_its_containers() {
    world_with(allow, async |w| {
        let pod = pod_on(w, "memory").await;
        let script = "dd if=/dev/zero of=/big bs=1M count=24 2>/dev/null; echo written; sleep 1000";
        let mut container = pod.sh(script).run().await;
        assert_eq!(container.line().await, "written");
        let dir = w.cgroup_dir("memory", &container.id);
        let files = ["memory.usage_in_bytes", "memory.current"].map(|name| dir.join(name));
        let file = files.into_iter().find(|path| path.exists()).unwrap();
        let bytes: u64 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        assert!(bytes >= 24 << 20, "{bytes}");
        container.kill(9).await.unwrap();
        container.wait().await;
        container.delete().await.unwrap();
        // Its limit is the layer's, too.
        let container = pod.container(&["/bin/dd", "if=/dev/zero", "of=/big", "bs=1M", "count=64"]);
        let limit = json!({"limit": 16 << 20});
        let container = container.set("/linux/resources/memory", limit);
        assert_eq!(container.output().await.0, 137);
    });
}

fn a_layer_has_mode_and_owner_of_the_root_below() {
    world_with(allow, async |w| {
        for medium in ["memory", "self,size=4m"] {
            let pod = pod_on(w, medium).await;
            let container = pod.sh("stat -c %u:%g:%a /");
            chown(&container.root, Some(5), Some(6)).unwrap();
            let mode = fs::Permissions::from_mode(0o1751);
            fs::set_permissions(&container.root, mode).unwrap();
            assert_eq!(container.output().await, (0, "5:6:1751\n".into()));
        }
    });
}

fn a_read_only_root_gets_no_layer() {
    world_with(allow, async |w| {
        for (readonly, medium) in [(true, None), (false, Some(upper("memory")))] {
            let pod = pod_on(w, "memory").await;
            let container = pod.sh("touch /new; sleep 1000");
            let container = container.set("/root/readonly", json!(readonly)).run().await;
            let records = pod.sandbox.record().containers().unwrap();
            assert_eq!(records[0].rootfs_upper, medium);
            let steps = records[0].steps.iter();
            assert_eq!(
                steps.filter(|s| *s == "RootfsUpper").count(),
                usize::from(!readonly)
            );
            container.kill(9).await.unwrap();
            container.wait().await;
            container.delete().await.unwrap();
        }
    });
}

fn the_word_of_a_pod_wins_where_the_node_allows_it() {
    let configure = |c: &mut Config| {
        allow(c);
        c.policy.rootfs_upper = upper("memory,size=1m");
    };
    let of = async |pod: &Pod<'_>, word: Option<&str>| {
        let mut container = pod.sh("sleep 1000");
        if let Some(word) = word {
            container.spec["annotations"][UPPER] = json!(word);
        }
        let made = container.create().await.unwrap();
        let records = pod.sandbox.record().containers().unwrap();
        made.delete().await.unwrap();
        records[0].rootfs_upper.as_ref().map(ToString::to_string)
    };
    world_with(configure, async |w| {
        let pod = w.pod().await;
        assert_eq!(of(&pod, None).await.unwrap(), "memory,size=1048576");
        assert_eq!(of(&pod, Some("none")).await, None);
        assert_eq!(of(&pod, Some("memory")).await.unwrap(), "memory");
        let pod = pod_on(w, "self,size=2m").await;
        assert_eq!(of(&pod, None).await.unwrap(), "self,size=2097152");
        assert_eq!(of(&pod, Some("none")).await, None);
    });
    world(async |w| {
        let error = w
            .try_pod(|spec| spec["annotations"][UPPER] = json!("memory"))
            .await;
        let error = error.map(drop).unwrap_err().to_string();
        assert!(error.contains("not allowed on this node"), "{error}");
        let pod = w.pod().await;
        assert_eq!(of(&pod, None).await, None);
    });
}

fn a_layer_that_cannot_be_is_refused_with_its_reason() {
    world_with(allow, async |w| {
        for (word, want) in [
            ("disk", "\"disk\": not one of none, memory"),
            ("memory,size=0", "\"memory,size=0\": size: not a number"),
            ("self,size=1k", "size: a layer in a file has 1m at least"),
            (
                "dir=/var,size=1m",
                "directories of the node are its operator's",
            ),
        ] {
            let error = w
                .try_pod(|spec| spec["annotations"][UPPER] = json!(word))
                .await;
            let error = error.map(drop).unwrap_err().to_string();
            let field = format!("annotations[\"{UPPER}\"]: ");
            assert!(error.starts_with(&field) && error.contains(want), "{error}");
            assert!(error.len() <= 200, "{error}");
        }
        // An overlay of it would not show that mount.
        let pod = pod_on(w, "memory").await;
        let container = pod.sh("true");
        let below = container.root.join("tmp");
        tmpfs(&below);
        let error = container.refused().await;
        assert_eq!(error.kind(), Kind::NotSupported);
        let want = "rootfs_upper: \"tmp\" is mounted below";
        assert!(error.chain().contains(want), "{}", error.chain());
        umount(&below);
        // No file of ext4 can be that large.
        let pod = pod_on(w, "self,size=9000000g").await;
        let container = pod.sh("true");
        let error = container.refused().await.chain();
        assert!(error.contains("rootfs_upper: ftruncate in"), "{error}");
    });
    for (dir, kind, want) in [
        ("/missing", Kind::NotFound, "O_TMPFILE in \"/missing\""),
        ("/proc", Kind::NotSupported, "O_TMPFILE in \"/proc\""),
        (
            "/etc/passwd",
            Kind::InvalidArgument,
            "O_TMPFILE in \"/etc/passwd\"",
        ),
    ] {
        let medium = upper(&format!("dir={dir},size=1m"));
        world_with(
            |c| c.policy.rootfs_upper = medium,
            async |w| {
                let pod = w.pod().await;
                let error = pod.sh("true").refused().await;
                assert_eq!(error.kind(), kind, "{error}");
                assert!(error.to_string().contains(want), "{error}");
            },
        );
    }
}

fn a_node_without_mkfs_has_layers_in_memory() {
    world_with(allow, async |w| {
        tmpfs(Path::new("/usr/sbin"));
        let pod = pod_on(w, "self,size=4m").await;
        let error = pod.sh("true").refused().await;
        assert_eq!(error.kind(), Kind::NotSupported);
        let want = "rootfs_upper: mkfs.ext4 is not on this node";
        assert!(error.to_string().starts_with(want), "{error}");
        let pod = pod_on(w, "memory").await;
        let container = pod.sh("echo x > /new && cat /new");
        assert_eq!(container.output().await, (0, "x\n".into()));
        // One that fails says why.
        let mkfs = Path::new("/usr/sbin/mkfs.ext4");
        fs::write(mkfs, "#!/bin/sh\necho no luck >&2\nexit 3\n").unwrap();
        fs::set_permissions(mkfs, fs::Permissions::from_mode(0o755)).unwrap();
        let pod = pod_on(w, "self,size=4m").await;
        let error = pod.sh("true").refused().await.to_string();
        assert!(error.ends_with("ended with 3: no luck"), "{error}");
        umount(Path::new("/usr/sbin"));
    });
}

fn a_container_that_fails_leaves_no_layer() {
    world_with(allow, async |w| {
        let volume = w.dir("volume");
        for medium in ["memory", "self,size=4m"] {
            let pod = pod_on(w, medium).await;
            let container = pod.sh("true");
            let container = container.mount("/etc/passwd/x", "bind", &volume, &["rbind"]);
            let before = state(&container.root);
            let root = container.root.clone();
            container.refused().await;
            assert_eq!(state(&root), before);
        }
    });
}

fn a_directory_for_layers_has_no_name_of_what_a_container_writes() {
    let configure = |c: &mut Config| {
        let dir = c.state_dir.with_file_name("layers");
        c.policy.rootfs_upper = upper(&format!("dir={},size=8m", dir.display()));
    };
    world_with(configure, async |w| {
        let dir = w.dir.join("layers");
        fs::create_dir(&dir).unwrap();
        let pod = w.pod().await;
        let container = pod.sh("echo x > /new; cat /new; sleep 1000");
        let root = container.root.clone();
        let mut container = container.run().await;
        assert_eq!(container.line().await, "x");
        assert_eq!(container.exec_sh("cat /new").await, (0, "x\n".into()));
        assert!(state(&dir).is_empty() && !root.join("new").exists());
        container.kill(9).await.unwrap();
        container.wait().await;
        container.delete().await.unwrap();
        assert!(state(&dir).is_empty());
    });
}
