//! Whose ids a volume shows.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use crate::options::{tmpfs, umount};
use crate::world::{World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_mount_of_its_own_map_shows_the_ids_of_that,
    an_own_map_is_of_the_top_mount_alone_unless_it_is_ridmap,
    a_device_and_a_socket_of_the_host_are_mounted_on_files,
    a_tree_with_kernel_file_systems_in_it_is_mapped_mount_by_mount,
    a_file_system_without_idmapped_mounts_is_refused_by_its_name_and_its_mount,
    an_overlay_as_volume_shows_all_its_layers_read_only_with_the_pods_ids,
    a_directory_and_a_file_of_an_overlay_are_volumes_too,
];

fn map(host: u32) -> Value {
    json!([{"containerID": 0, "hostID": host, "size": 1000}])
}

fn owned(dir: &Path, name: &str, id: u32) {
    fs::write(dir.join(name), "").unwrap();
    chown(dir.join(name), Some(id), Some(id)).unwrap();
}

fn a_mount_of_its_own_map_shows_the_ids_of_that() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        owned(&volume, "zero", 0);
        owned(&volume, "seven", 7);
        let base = pod.sandbox.record().uid;
        let script = "stat -c %u:%g /data/zero /data/seven; touch /data/new; stat -c %u /data/new";
        // On disk 0..1000, in the pod 500..1500.
        let mut container = pod.sh(script).user(503);
        container = container.mount("/data", "bind", &volume, &["rbind"]);
        container.spec["mounts"][7]["uidMappings"] = map(base + 500);
        container.spec["mounts"][7]["gidMappings"] = map(base + 500);
        chown(&volume, Some(3), Some(3)).unwrap();
        let want = "500:500\n507:507\n503\n";
        assert_eq!(container.output().await, (0, want.into()));
        assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 3);
    });
}

fn an_own_map_is_of_the_top_mount_alone_unless_it_is_ridmap() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        tmpfs(&volume.join("sub"));
        owned(&volume.join("sub"), "file", 7);
        let base = pod.sandbox.record().uid;
        for (option, want) in [("idmap", "65534\n"), ("ridmap", "107\n")] {
            let mut container = pod.sh("stat -c %u /data/sub/file");
            container = container.mount("/data", "bind", &volume, &["rbind", option]);
            container.spec["mounts"][7]["uidMappings"] = map(base + 100);
            container.spec["mounts"][7]["gidMappings"] = map(base + 100);
            assert_eq!(container.output().await, (0, want.into()), "{option}");
        }
        umount(&volume.join("sub"));
    });
}

fn a_device_and_a_socket_of_the_host_are_mounted_on_files() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = w.dir("run");
        let socket = std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap();
        let script = "test -S /run/s && test -c /etc/zero && head -c 3 /etc/zero | wc -c; \
            test -c /dev/null && echo x > /dev/null && echo null";
        let container = pod
            .sh(script)
            .mount("/run/s", "bind", &dir.join("s"), &["rbind"])
            .mount("/etc/zero", "bind", Path::new("/dev/zero"), &["bind"])
            .mount("/dev/null", "bind", Path::new("/dev/null"), &["bind"]);
        fs::write(container.root.join("etc/zero"), "").unwrap();
        assert_eq!(container.output().await, (0, "3\nnull\n".into()));
        drop(socket);
    });
}

fn a_tree_with_kernel_file_systems_in_it_is_mapped_mount_by_mount() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        owned(&volume, "mine", 0);
        for (at, fs) in [("proc", "proc"), ("sub", "tmpfs"), ("sub/sys", "sysfs")] {
            fs::create_dir_all(volume.join(at)).unwrap();
            mount(fs, volume.join(at), fs, MountFlags::empty(), None).unwrap();
        }
        owned(&volume.join("sub"), "file", 7);
        // Under another mount: not to be seen.
        tmpfs(&volume.join("sub/sys/kernel"));
        tmpfs(&volume.join("hidden/deep"));
        tmpfs(&volume.join("hidden"));
        let script = "stat -c %u /data/mine /data/sub/file /data/proc/version; \
            ls /data/sub/sys/kernel /data/hidden; test -d /data/sub/sys/class && echo sys; \
            touch /data/sub/new && umount /data/proc 2>/dev/null || echo locked";
        let options = ["rbind", "rslave", "rnosuid"];
        let container = pod.sh(script).mount("/data", "bind", &volume, &options);
        let (_, text) = container.output().await;
        let want = "0\n7\n65534\n/data/hidden:\n\n/data/sub/sys/kernel:\nsys\nlocked\n";
        assert_eq!(text, want);
        assert_eq!(fs::metadata(volume.join("sub/new")).unwrap().uid(), 0);
        for at in [
            "hidden",
            "hidden/deep",
            "sub/sys/kernel",
            "sub/sys",
            "sub",
            "proc",
        ] {
            umount(&volume.join(at));
        }
    });
}

fn a_file_system_without_idmapped_mounts_is_refused_by_its_name_and_its_mount() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        let sub = volume.join("sub");
        fs::create_dir(&sub).unwrap();
        mount("ramfs", &sub, "ramfs", MountFlags::empty(), None).unwrap();
        for source in [&volume, &sub] {
            let container = pod.sh("true").mount("/data", "bind", source, &["rbind"]);
            let error = container.refused().await;
            assert_eq!(error.kind(), Kind::NotSupported);
            let text = error.chain();
            let want = format!(
                "mounts[7] \"/data\": {sub:?} is on ramfs, which cannot be idmapped here; use a \
                 volume of another file system, or a pod without a user namespace"
            );
            assert!(text.contains(&want), "{text}");
        }
        // The mount below is not asked for.
        let container = pod
            .sh("ls /data")
            .mount("/data", "bind", &volume, &["bind"]);
        assert_eq!(container.output().await, (0, "sub\n".into()));
        umount(&sub);
    });
}

/// Three layers and an upper directory, mounted as containerd mounts an image volume.
fn overlay(w: &World) -> (PathBuf, PathBuf) {
    let (upper, work, at) = (w.dir("upper"), w.dir("work"), w.dir("merged"));
    let layers: Vec<_> = (0..3).map(|_| w.dir("layer")).collect();
    for (n, layer) in layers.iter().enumerate() {
        fs::create_dir(layer.join("dir")).unwrap();
        fs::write(layer.join("dir/all"), format!("{n}\n")).unwrap();
        owned(layer, &format!("of-{n}"), u32::try_from(n).unwrap() + 1);
    }
    let lower: Vec<_> = layers.iter().map(|l| l.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    mount("overlay", &at, "overlay", MountFlags::empty(), &*options).unwrap();
    (at, upper)
}

fn an_overlay_as_volume_shows_all_its_layers_read_only_with_the_pods_ids() {
    world(async |w| {
        let pod = w.pod().await;
        let (volume, upper) = overlay(w);
        let script = "cd /data; stat -c %n:%u of-*; cat dir/all; echo x 2>/dev/null > new || echo ro; \
            ls upper 2>/dev/null; mount -o remount,bind,rw /data 2>/dev/null || echo locked";
        let want = "of-0:1\nof-1:2\nof-2:3\n0\nro\n";
        let run = async || {
            let container = pod.sh(script);
            container
                .mount("/data", "bind", &volume, &["rbind", "ro"])
                .output()
                .await
                .1
        };
        assert_eq!(run().await, format!("{want}locked\n"));
        // What was written to it on the node is there as well.
        fs::write(volume.join("upper"), "").unwrap();
        fs::remove_file(volume.join("of-1")).unwrap();
        assert!(upper.join("upper").exists());
        let want = "of-0:1\nof-2:3\n0\nro\nupper\nlocked\n";
        assert_eq!(run().await, want);
        umount(&volume);
    });
}

fn a_directory_and_a_file_of_an_overlay_are_volumes_too() {
    world(async |w| {
        let pod = w.pod().await;
        let (volume, _) = overlay(w);
        let bound = w.dir("bound");
        rustix::mount::mount_bind(volume.join("dir"), &bound).unwrap();
        let container = pod
            .sh("cat /dir/all /etc/file /bound/all; ls /dir /bound; stat -c %u /etc/owned")
            .mount("/dir", "bind", &volume.join("dir"), &["rbind", "ro"])
            .mount(
                "/etc/file",
                "bind",
                &volume.join("dir/all"),
                &["bind", "ro"],
            )
            .mount("/etc/owned", "bind", &volume.join("of-2"), &["bind", "ro"])
            .mount("/bound", "bind", &bound, &["rbind", "ro"]);
        let want = "0\n0\n0\n/bound:\nall\n\n/dir:\nall\n3\n";
        assert_eq!(container.output().await, (0, want.into()));
        umount(&bound);
        umount(&volume);
    });
}
