//! Mounts: flags, targets, links of the image that lead elsewhere, masks.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use serde_json::json;

use crate::world::world;

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    flags_of_bind_and_rbind_are_in_force,
    a_file_is_mounted_on_a_file_and_missing_targets_are_made_as_root_of_the_pod,
    a_link_of_the_image_leads_a_mount_to_a_place_inside_it,
    a_link_of_the_image_that_leads_nowhere_leads_a_mount_to_a_new_place_inside_it,
    targets_behind_circles_and_magic_links_are_refused_and_nothing_outside_is_touched,
    a_mount_covers_what_the_spec_names_before_it_and_stands_in_what_it_names_before,
    files_of_proc_can_be_shown_otherwise_and_stay_locked,
    a_writable_cgroup_mount_is_writable_for_whom_its_files_belong_to,
    a_directory_on_a_file_is_refused,
    masked_and_read_only_paths_hide_and_protect,
    tmpfs_shm_and_mqueue_have_their_size_and_mode,
    sub_mounts_of_an_rbind_volume_are_there_and_those_of_a_bind_are_not,
    a_volume_with_rslave_shows_what_the_host_mounts_later,
    a_container_sees_its_own_cgroup_directories_read_only,
];

fn flags_of_bind_and_rbind_are_in_force() {
    world(async |w| {
        let pod = w.pod().await;
        for bind in ["bind", "rbind"] {
            let volume = w.dir("volume");
            let options = [bind, "ro", "nosuid", "nodev", "noexec"];
            let script = "grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6; echo x > /data/x; \
                mount -o remount,rw,bind /data; echo x > /data/x; \
                mount -o remount,bind,exec,suid,dev /data; umount /data";
            let container = pod.sh(script).mount("/data", "bind", &volume, &options);
            let (_, text) = container.output().await;
            let (flags, rest) = text.split_once('\n').unwrap();
            assert!(
                flags.starts_with("ro,nosuid,nodev,noexec"),
                "{bind}: {text}"
            );
            assert_eq!(
                rest.matches("Read-only file system").count(),
                2,
                "{bind}: {text}"
            );
            assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
        }
        let rw = w.dir("volume");
        let script = "echo x > /data/x; stat -c %u /data/x";
        let container = pod.sh(script).mount("/data", "bind", &rw, &["rbind", "rw"]);
        assert_eq!(container.output().await, (0, "0\n".into()));
        assert_eq!(fs::metadata(rw.join("x")).unwrap().uid(), 0);
    });
}

fn a_file_is_mounted_on_a_file_and_missing_targets_are_made_as_root_of_the_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let source = w.dir("volume");
        fs::write(source.join("hosts"), "hosts\n").unwrap();
        let file = source.join("hosts");
        let container = pod
            .sh("cat /etc/hosts /new/dir/hosts; ls -d /a/b/c")
            .mount("/etc/hosts", "bind", &file, &["bind", "ro"])
            .mount("/new/dir/hosts", "bind", &file, &["bind", "ro"])
            .mount("/a/b/c", "bind", &source, &["rbind", "ro"]);
        let root = container.root.clone();
        assert_eq!(
            container.output().await,
            (0, "hosts\nhosts\n/a/b/c\n".into())
        );
        for made in ["new", "new/dir", "new/dir/hosts", "a/b/c", "etc/hosts"] {
            let meta = fs::symlink_metadata(root.join(made)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (0, 0), "{made}");
        }
        assert_eq!(fs::metadata(root.join("new/dir/hosts")).unwrap().len(), 0);
    });
}

fn a_link_of_the_image_leads_a_mount_to_a_place_inside_it() {
    world(async |w| {
        let pod = w.pod().await;
        let outside = w.dir("outside");
        let volume = w.dir("volume");
        fs::write(volume.join("file"), "volume\n").unwrap();
        let links = [
            ("evil", "/../../../../etc".to_owned()),
            ("climb", "../../../../../../etc".to_owned()),
            ("abs", outside.to_string_lossy().into_owned()),
        ];
        for (name, to) in links {
            let container = pod.sh(&format!("cat /{name}/vol/file")).mount(
                &format!("/{name}/vol"),
                "bind",
                &volume,
                &["rbind", "ro"],
            );
            let root = container.root.clone();
            symlink(&to, root.join(name)).unwrap();
            // What the absolute link names exists in the image as well.
            fs::create_dir_all(root.join(to.trim_start_matches(['/', '.']))).unwrap();
            assert_eq!(container.output().await, (0, "volume\n".into()), "{name}");
            assert!(!Path::new("/etc/vol").exists(), "{name}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}");
        }
        let container = pod.sh("cat /etc/vol/file");
        let container = container.mount("/x/../../../etc/vol", "bind", &volume, &["rbind"]);
        assert_eq!(container.output().await, (0, "volume\n".into()));
        assert!(!Path::new("/etc/vol").exists());
    });
}

fn a_link_of_the_image_that_leads_nowhere_leads_a_mount_to_a_new_place_inside_it() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        fs::write(volume.join("file"), "volume\n").unwrap();
        let outside = w.dir("outside");
        let nowhere = outside.join("a/nowhere");
        let inside = |root: &Path, path: &Path| root.join(path.strip_prefix("/").unwrap());
        for (link, to, target, source) in [
            ("data", nowhere.to_str().unwrap(), "/data", "file"),
            ("data", "../../../run/x/../y", "/data/sub", ""),
            ("etc/resolv.conf", "../run/stub", "/etc/resolv.conf", "file"),
        ] {
            let from = if source.is_empty() {
                volume.clone()
            } else {
                volume.join(source)
            };
            let read = if source.is_empty() {
                format!("{target}/file")
            } else {
                target.to_owned()
            };
            let container = pod.sh(&format!("cat {read}"));
            let container = container.mount(target, "bind", &from, &["rbind", "ro"]);
            let root = container.root.clone();
            symlink(to, root.join(link)).unwrap();
            assert_eq!(container.output().await, (0, "volume\n".into()), "{to}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
            let made = match link {
                "data" if source.is_empty() => root.join("run/y/sub"),
                "data" => inside(&root, &nowhere),
                _ => root.join("run/stub"),
            };
            let meta = fs::symlink_metadata(made).unwrap();
            assert_eq!((meta.uid(), meta.is_dir()), (0, source.is_empty()));
        }
    });
}

fn targets_behind_circles_and_magic_links_are_refused_and_nothing_outside_is_touched() {
    world(async |w| {
        let pod = w.pod().await;
        let neighbour = pod.container(&["/bin/sleep", "1000"]).run().await;
        let volume = w.dir("volume");
        let container = pod.sh("true").mount("/deep", "bind", &volume, &["rbind"]);
        symlink("/deep", container.root.join("deep")).unwrap();
        let error = container.refused().await;
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        assert!(error.chain().contains("\"/deep\""), "{}", error.chain());
        // A proc that the host bound there: its links are doors to other processes' roots.
        let proc = Path::new("/proc");
        let container = pod
            .sh("true")
            .mount("/evil", "bind", proc, &["rbind", "ro"])
            .mount("/evil/self/root/tmp/vol", "bind", &volume, &["rbind"]);
        let error = container.refused().await;
        let text = error.chain();
        assert!(text.contains("/evil/self/root/tmp"), "{text}");
        assert!(!Path::new("/tmp/vol").exists());
        assert_eq!(neighbour.exec_sh("echo unharmed").await.1, "unharmed\n");
    });
}

fn a_directory_on_a_file_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        let container = pod
            .sh("true")
            .mount("/etc/passwd", "bind", &volume, &["rbind"]);
        let error = container.refused().await;
        assert_eq!(error.kind(), Kind::InvalidArgument);
        let text = error.to_string();
        assert!(
            text.contains("\"/etc/passwd\" is a file in the rootfs"),
            "{text}"
        );
    });
}

fn masked_and_read_only_paths_hide_and_protect() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "cat /secret/file /proc/kcore | wc -c; ls /hidden | wc -l; echo x > /hidden/x; \
            echo x > /kept/x; echo 1 > /proc/sys/kernel/msgmax; echo x > /secret/file; \
            umount /hidden; umount /proc/kcore; umount /proc/sys; mount -o remount,rw /kept; \
            mount -o remount,rw /proc/sys; ls /hidden | wc -l; cat /kept/file";
        let container = pod
            .sh(script)
            .set(
                "/linux/maskedPaths",
                json!(["/secret/file", "/hidden", "/proc/kcore", "/absent"]),
            )
            .set(
                "/linux/readonlyPaths",
                json!(["/kept", "/proc/sys", "/absent"]),
            );
        let root = container.root.clone();
        for (path, text) in [
            ("secret/file", "secret"),
            ("hidden/file", ""),
            ("kept/file", "kept\n"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        }
        let (_, text) = container.output().await;
        let lines: Vec<_> = text.lines().filter(|l| !l.contains(": ")).collect();
        assert_eq!(lines, ["0", "0", "0", "kept"], "{text}");
        assert!(text.matches("Read-only file system").count() >= 3, "{text}");
        assert_eq!(
            fs::read_to_string(root.join("secret/file")).unwrap(),
            "secret"
        );
        assert_eq!(fs::read_dir(root.join("hidden")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.join("kept")).unwrap().count(), 1);
    });
}

fn tmpfs_shm_and_mqueue_have_their_size_and_mode() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "stat -c %a:%u:%g /scratch /dev/shm; stat -f -c %b*%s /scratch; \
            dd if=/dev/zero of=/scratch/x bs=64k count=100 2>&1 | tail -n1; \
            stat -c %s /scratch/x; grep -c ' /dev/mqueue .* mqueue ' /proc/self/mountinfo; \
            touch /dev/mqueue/q && echo queue";
        let options = ["nosuid", "nodev", "mode=750", "size=1m"];
        let container = pod
            .sh(script)
            .mount("/scratch", "tmpfs", Path::new("tmpfs"), &options);
        let (_, text) = container.output().await;
        let mut lines: Vec<_> = text.lines().collect();
        lines.retain(|line| !line.starts_with("dd:") && !line.contains("records"));
        assert_eq!(
            lines,
            ["750:0:0", "1777:0:0", "256*4096", "1048576", "1", "queue"],
            "{text}"
        );
    });
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

fn sub_mounts_of_an_rbind_volume_are_there_and_those_of_a_bind_are_not() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        tmpfs(&volume.join("sub"));
        fs::write(volume.join("sub/file"), "x").unwrap();
        for (bind, want) in [("rbind", "file 0\n"), ("bind", "")] {
            let script = "for f in /data/sub/*; do [ -e $f ] && echo ${f##*/} $(stat -c %u $f); \
                done; umount /data/sub; ls /data/sub >/dev/null";
            let container = pod
                .sh(script)
                .mount("/data", "bind", &volume, &[bind, "rw"]);
            let (_, text) = container.output().await;
            let lines = text.lines().filter(|l| !l.starts_with("umount:"));
            let text: String = lines.map(|l| format!("{l}\n")).collect();
            assert_eq!(text, want, "{bind}");
        }
        unmount(volume.join("sub"), UnmountFlags::empty()).unwrap();
    });
}

fn a_volume_with_rslave_shows_what_the_host_mounts_later() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        tmpfs(&volume);
        mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
        fs::create_dir(volume.join("later")).unwrap();
        for (propagation, want) in [("rslave", "there\n"), ("rprivate", "")] {
            let options = ["rbind", "rw", propagation];
            let mut container = pod
                .sh("read x; cat /data/later/file 2>/dev/null")
                .mount("/data", "bind", &volume, &options)
                .run()
                .await;
            tmpfs(&volume.join("later"));
            fs::write(volume.join("later/file"), "there\n").unwrap();
            container.say("go\n");
            container.wait().await;
            assert_eq!(container.text().await, want, "{propagation}");
            container.delete().await.unwrap();
            unmount(volume.join("later"), UnmountFlags::empty()).unwrap();
        }
        unmount(&volume, UnmountFlags::empty()).unwrap();
    });
}

fn a_container_sees_its_own_cgroup_directories_read_only() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "cut -d: -f3 /proc/self/cgroup | tr -d '\\n'; echo; cd /sys/fs/cgroup; \
            cat memory/cgroup.procs cgroup.procs 2>/dev/null | head -n1; \
            echo 0 > memory/cgroup.procs; mkdir memory/sub || mkdir sub; umount memory";
        let (_, text) = pod.sh(script).output().await;
        let (cgroups, rest) = text.split_once('\n').unwrap();
        assert!(cgroups.chars().all(|c| c == '/'), "{text}");
        assert!(rest.starts_with("1\n"), "{text}");
        assert!(rest.contains("Read-only file system"), "{text}");
    });
}

fn a_mount_covers_what_the_spec_names_before_it_and_stands_in_what_it_names_before() {
    world(async |w| {
        let pod = w.pod().await;
        let (outer, inner) = (w.dir("outer"), w.dir("inner"));
        fs::write(outer.join("file"), "outer\n").unwrap();
        fs::write(inner.join("file"), "inner\n").unwrap();
        let script = "cat /a/file /a/b/file /c/file; ls /c; cat /d/file";
        let container = pod
            .sh(script)
            .mount("/a", "bind", &outer, &["rbind"])
            .mount("/a/b", "bind", &inner, &["rbind"])
            // Child before parent: covered.
            .mount("/c/b", "bind", &inner, &["rbind"])
            .mount("/c", "bind", &outer, &["rbind"])
            // Twice at one place: the later one counts.
            .mount("/d", "bind", &outer, &["rbind"])
            .mount("/d", "bind", &inner, &["rbind"]);
        let want = "outer\ninner\nouter\nb\nfile\ninner\n";
        assert_eq!(container.output().await, (0, want.into()));
        assert!(outer.join("b").is_dir());
    });
}

fn files_of_proc_can_be_shown_otherwise_and_stay_locked() {
    world(async |w| {
        let pod = w.pod().await;
        let lxcfs = w.dir("lxcfs");
        fs::write(lxcfs.join("meminfo"), "MemTotal: 1 kB\n").unwrap();
        fs::write(lxcfs.join("pid"), "7\n").unwrap();
        let script = "cat /proc/meminfo /proc/sys/kernel/ns_last_pid; test -d /proc/1 && echo proc; \
            mount -o remount,bind,rw /proc/meminfo; echo x > /proc/meminfo; \
            umount /proc/meminfo 2>/dev/null; cat /proc/meminfo";
        let options = ["bind", "ro"];
        let last = "/proc/sys/kernel/ns_last_pid";
        let container = pod
            .sh(script)
            .set("/linux/readonlyPaths", json!([]))
            .mount("/proc/meminfo", "bind", &lxcfs.join("meminfo"), &options)
            .mount(last, "bind", &lxcfs.join("pid"), &options);
        let (_, text) = container.output().await;
        assert!(text.starts_with("MemTotal: 1 kB\n7\nproc\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
        let on_host = fs::read_to_string(lxcfs.join("meminfo")).unwrap();
        assert_eq!(on_host, "MemTotal: 1 kB\n");
    });
}

fn a_writable_cgroup_mount_is_writable_for_whom_its_files_belong_to() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "d=/sys/fs/cgroup; [ ! -d $d/memory ] || d=$d/memory; \
            grep \" $d \" /proc/self/mountinfo | cut -d' ' -f6; \
            mkdir $d/sub 2>&1 && rmdir $d/sub && echo made";
        let options = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
        let container = pod.sh(script).set("/mounts/5/options", options);
        let (_, text) = container.output().await;
        assert!(
            text.starts_with("rw,nosuid,nodev,noexec,relatime\n"),
            "{text}"
        );
        // On v1 there is no delegation: runc's container in a user namespace may not either.
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let want = if v2 { "made" } else { "Permission denied" };
        assert!(text.contains(want), "{text}");
    });
}
