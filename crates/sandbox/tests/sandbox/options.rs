//! Mount options: attributes of one mount and of a tree, propagation.

use std::fs;
use std::path::Path;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::world::world;

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    rro_makes_the_mounts_below_a_volume_read_only_and_ro_does_not,
    options_for_a_tree_reach_every_mount_of_it_and_others_the_top_alone,
    every_attribute_of_a_mount_can_be_asked_for,
    nosymfollow_stops_at_links,
    propagation_without_an_option_is_that_of_the_root,
    shared_mounts_and_a_shared_root_are_refused_with_a_user_namespace,
];

pub(crate) fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

pub(crate) fn umount(at: &Path) {
    unmount(at, UnmountFlags::empty()).unwrap();
}

fn rro_makes_the_mounts_below_a_volume_read_only_and_ro_does_not() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        tmpfs(&volume.join("sub"));
        let script = "for f in /data/x /data/sub/x; do echo x 2>/dev/null > $f && echo $f; done; \
            mount -o remount,bind,rw /data/sub; rm /data/sub/x 2>/dev/null && echo removed";
        for (options, want) in [
            (&["rbind", "ro"][..], "/data/sub/x\nremoved\n"),
            (&["rbind", "rro"], ""),
            (&["rbind", "ro", "rrw"], "/data/x\n/data/sub/x\nremoved\n"),
        ] {
            fs::write(volume.join("sub/x"), "").unwrap();
            let container = pod.sh(script).mount("/data", "bind", &volume, options);
            let (_, text) = container.output().await;
            let lines = text.lines().filter(|l| !l.contains(": "));
            let text: String = lines.map(|l| format!("{l}\n")).collect();
            assert_eq!(text, want, "{options:?}");
        }
        umount(&volume.join("sub"));
    });
}

fn options_for_a_tree_reach_every_mount_of_it_and_others_the_top_alone() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        tmpfs(&volume.join("sub"));
        let script = "grep ' /data' /proc/self/mountinfo | cut -d' ' -f5,6 | sed s/,idmapped//";
        let cases = [
            (
                &["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime"][..],
                ["rw,nosuid,nodev,noexec,noatime"; 2],
            ),
            (
                &["rbind", "nosuid", "nodev", "noexec", "noatime"],
                ["rw,nosuid,nodev,noexec,noatime", "rw,relatime"],
            ),
            (
                &["rbind", "rnosymfollow", "rnodiratime", "rstrictatime"],
                ["rw,nodiratime,nosymfollow"; 2],
            ),
            (&["rbind", "noatime", "ratime"], ["rw,relatime"; 2]),
        ];
        for (options, want) in cases {
            let container = pod.sh(script).mount("/data", "bind", &volume, options);
            let want = format!("/data {}\n/data/sub {}\n", want[0], want[1]);
            assert_eq!(container.output().await, (0, want), "{options:?}");
        }
        umount(&volume.join("sub"));
    });
}

fn every_attribute_of_a_mount_can_be_asked_for() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        // The host's own mount may be noatime, which a bind mount takes over.
        rustix::mount::mount_bind(&volume, &volume).unwrap();
        let relatime = MountFlags::BIND | MountFlags::RELATIME;
        rustix::mount::mount_remount(&volume, relatime, c"").unwrap();
        for (option, want) in [
            ("nodiratime", "rw,nodiratime,relatime"),
            ("nosymfollow", "rw,relatime,nosymfollow"),
            ("strictatime", "rw"),
            ("noatime", "rw,noatime"),
            ("relatime", "rw,relatime"),
        ] {
            let script = "grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6 | sed s/,idmapped//; \
                grep ' /scratch ' /proc/self/mountinfo | cut -d' ' -f6 | sed s/,idmapped//";
            let container = pod
                .sh(script)
                .mount("/data", "bind", &volume, &["rbind", option])
                .mount("/scratch", "tmpfs", Path::new("tmpfs"), &[option]);
            let want = format!("{want}\n{want}\n");
            assert_eq!(container.output().await, (0, want), "{option}");
        }
        unmount(&volume, UnmountFlags::empty()).unwrap();
    });
}

fn nosymfollow_stops_at_links() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        fs::write(volume.join("file"), "x\n").unwrap();
        std::os::unix::fs::symlink("file", volume.join("link")).unwrap();
        let options = ["rbind", "nosymfollow"];
        let container = pod.sh("cat /data/file; readlink /data/link; cat /data/link");
        let container = container.mount("/data", "bind", &volume, &options);
        let (code, text) = container.output().await;
        assert_eq!(code, 1, "{text}");
        assert!(text.starts_with("x\nfile\ncat: "), "{text}");
    });
}

fn propagation_without_an_option_is_that_of_the_root() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        tmpfs(&volume);
        mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
        fs::create_dir(volume.join("later")).unwrap();
        for (root, options, want) in [
            ("", &["rbind"][..], "there\n"),
            ("rslave", &["rbind"], "there\n"),
            ("rprivate", &["rbind"], ""),
            ("rprivate", &["rbind", "rslave"], "there\n"),
            ("rslave", &["rbind", "unbindable"], ""),
            ("rslave", &["rbind", "rslave", "private"], ""),
        ] {
            let mut container = pod
                .sh("read x; cat /data/later/file 2>/dev/null")
                .set("/linux/rootfsPropagation", root.into())
                .mount("/data", "bind", &volume, options)
                .run()
                .await;
            tmpfs(&volume.join("later"));
            fs::write(volume.join("later/file"), "there\n").unwrap();
            container.say("go\n");
            container.wait().await;
            assert_eq!(container.text().await, want, "{root} {options:?}");
            container.delete().await.unwrap();
            umount(&volume.join("later"));
        }
        umount(&volume);
    });
}

fn shared_mounts_and_a_shared_root_are_refused_with_a_user_namespace() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        let mount = pod.sh("true");
        let mount = mount.mount("/data", "bind", &volume, &["rbind", "rshared"]);
        let root = pod.sh("true");
        let root = root.set("/linux/rootfsPropagation", "rshared".into());
        for (container, field) in [
            (mount, "mounts[7].options \"shared\""),
            (root, "linux.rootfsPropagation"),
        ] {
            let error = container.refused().await;
            assert_eq!(error.kind(), Kind::NotSupported);
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("{field}: mounts of a pod with a user namespace")),
                "{text}"
            );
        }
    });
}
