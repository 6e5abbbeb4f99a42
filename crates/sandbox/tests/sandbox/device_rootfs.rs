//! Root file systems, and volumes, that the kernel mounts from a block device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berm_sandbox::Error;
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::Made;
use crate::devices::Loop;
use crate::figures::until;
use crate::world::{Pod, SOON, World, loop_devices_of, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    what_root_writes_to_an_image_by_loop_is_0_based_on_disk_and_there_for_the_next_pod,
    a_read_only_image_is_not_written_to_at_all,
    an_erofs_image_is_a_root_whose_directories_are_there_to_be_mounted_on,
    a_block_device_is_a_root_where_the_rules_of_the_container_deny_the_device,
    a_process_with_a_root_on_a_device_is_in_the_same_cgroups_as_any_other,
    containers_that_are_created_at_the_same_time_get_a_loop_device_each,
    a_volume_on_a_block_device_is_mounted_where_the_rules_deny_the_device,
    what_is_no_image_is_refused_with_its_path,
    a_file_system_that_cannot_be_idmapped_is_no_root_of_a_pod_with_a_user_namespace,
    an_image_that_does_not_answer_fails_its_container_alone,
];

/// A directory with what a container needs of its root.
fn tree(w: &World) -> PathBuf {
    let root = w.rootfs();
    for dir in ["dev/pts", "dev/shm", "dev/mqueue", "sys/fs", "data"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    root
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file that holds a file system with busybox in it.
pub(crate) fn ext4(w: &World) -> PathBuf {
    ext4_of(w, &tree(w), "16m")
}

fn ext4_of(w: &World, root: &Path, size: &str) -> PathBuf {
    let file = w.dir("disk").join("image");
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", text(root), text(&file), size],
    );
    file
}

/// Each is freed with its last user: who has failed may just be dying, and others of the host look
/// at any device.
async fn no_loop_device(w: &World) {
    let none = || loop_devices_of(&w.dir).is_empty();
    until("a loop device is left", none).await;
}

fn options(list: &[&str]) -> Vec<String> {
    list.iter().map(|&o| o.to_owned()).collect()
}

fn host_pods(config: &mut berm_sandbox::Config) {
    config.policy.allow_annotations = vec!["dev.berm.userns".into()];
}

async fn host_pod(w: &World) -> Pod<'_> {
    w.pod_with(|spec| spec["annotations"]["dev.berm.userns"] = json!("host"))
        .await
}

/// A node of the loop device in the container, which no rule allows.
fn node_of(disk: &Loop) -> Value {
    json!([{"path": "/dev/disk", "type": "b", "major": 7, "minor": disk.minor(), "fileMode": 438}])
}

const DENIED: &str = "/bin/sh: can't open /dev/disk: Operation not permitted\n";

fn what_root_writes_to_an_image_by_loop_is_0_based_on_disk_and_there_for_the_next_pod() {
    world(async |w| {
        let (first, second) = (w.pod().await, w.pod().await);
        let file = ext4(w);
        let by_loop = options(&["loop", "rw"]);
        let script = "echo hello > /mine && chown 1000:1000 /mine; stat -c %u:%g / /bin /mine; \
            grep ' / / ' /proc/self/mountinfo | cut -d' ' -f7- | grep -c 'ext4 /dev/loop'";
        let container = first.sh(script).rootfs("ext4", &file, &by_loop);
        let want = "0:0\n0:0\n1000:1000\n1\n";
        assert_eq!(container.output().await, (0, want.into()));
        no_loop_device(w).await;
        let on_disk = Command::new("debugfs")
            .args(["-R", "stat /mine", text(&file)])
            .output()
            .unwrap();
        let on_disk = String::from_utf8_lossy(&on_disk.stdout).into_owned();
        let ids = "User:  1000   Group:  1000";
        assert!(on_disk.contains(ids), "{on_disk}");
        let script = "cat /mine; stat -c %u:%g /mine";
        let container = second.sh(script).rootfs("ext4", &file, &by_loop);
        assert_eq!(container.output().await, (0, "hello\n1000:1000\n".into()));
    });
}

fn a_read_only_image_is_not_written_to_at_all() {
    world(async |w| {
        let pod = w.pod().await;
        let file = ext4(w);
        let before = fs::read(&file).unwrap();
        fs::set_permissions(&file, perm(0o444)).unwrap();
        let script = "echo x > /file; mount -o remount,rw / ; echo x > /file; echo x > /dev/shm/y \
            && echo shm";
        let container = pod
            .sh(script)
            .rootfs("ext4", &file, &options(&["loop", "ro"]));
        let (status, said) = container.output().await;
        assert_eq!(status, 0, "{said}");
        assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
        assert!(fs::read(&file).unwrap() == before, "the image has changed");
    });
}

fn perm(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

fn an_erofs_image_is_a_root_whose_directories_are_there_to_be_mounted_on() {
    world(async |w| {
        let pod = w.pod().await;
        let file = w.dir("disk").join("image");
        run("mkfs.erofs", &[text(&file), text(&tree(w))]);
        let script = "echo x > /file; stat -c %u:%g /bin; \
            grep -c ' / / .* erofs /dev/loop' /proc/self/mountinfo";
        for with in [&["loop", "ro"][..], &["loop", "ro", "direct-io"]] {
            let container = pod.sh(script).rootfs("erofs", &file, &options(with));
            let want = "/bin/sh: can't create /file: Read-only file system\n0:0\n1\n";
            assert_eq!(container.output().await, (0, want.into()), "{with:?}");
        }
    });
}

fn a_block_device_is_a_root_where_the_rules_of_the_container_deny_the_device() {
    world_with(host_pods, async |w| {
        for pod in [w.pod().await, host_pod(w).await] {
            let disk = Loop::of(&ext4(w));
            let script =
                "echo x > /file; ( : < /dev/disk ) 2>&1; ( : > /dev/disk ) 2>&1; cat /file";
            let container = pod.sh(script).set("/linux/devices", node_of(&disk)).rootfs(
                "ext4",
                disk.path(),
                &[],
            );
            let (_, said) = container.output().await;
            let create = DENIED.replace("open", "create");
            assert_eq!(said, format!("{DENIED}{create}x\n"));
        }
    });
}

fn cgroups(made: &Made<'_>) -> String {
    let lines = fs::read_to_string(format!("/proc/{}/cgroup", made.pid)).unwrap();
    lines.replace(&made.id, "ID")
}

fn a_process_with_a_root_on_a_device_is_in_the_same_cgroups_as_any_other() {
    world(async |w| {
        let pod = w.pod().await;
        let plain = pod.sh("read x").run().await;
        let by_loop = options(&["loop"]);
        let device = pod.sh("read x").rootfs("ext4", &ext4(w), &by_loop);
        let device = device.run().await;
        assert!(cgroups(&plain).contains("/ID"), "{}", cgroups(&plain));
        assert_eq!(cgroups(&device), cgroups(&plain));
        plain.end().await;
        device.end().await;
    });
}

fn containers_that_are_created_at_the_same_time_get_a_loop_device_each() {
    world(async |w| {
        let pod = w.pod().await;
        let root = tree(w);
        let files: Vec<_> = (0..4).map(|_| ext4_of(w, &root, "16m")).collect();
        let one = async |n: usize| {
            let script = format!("echo {n} > /mine; sync; cat /mine; read x");
            let by_loop = options(&["loop"]);
            let mut made = pod
                .sh(&script)
                .rootfs("ext4", &files[n], &by_loop)
                .run()
                .await;
            assert_eq!(made.line().await, n.to_string());
            made
        };
        let (a, b, c, d) = tokio::join!(one(0), one(1), one(2), one(3));
        assert_eq!(loop_devices_of(&w.dir).len(), 4);
        for made in [a, b, c, d] {
            made.end().await;
        }
    });
}

fn a_volume_on_a_block_device_is_mounted_where_the_rules_deny_the_device() {
    world_with(host_pods, async |w| {
        let pod = host_pod(w).await;
        let disk = Loop::of(&ext4(w));
        let container = pod
            .sh("ls /data/bin/busybox; echo x > /data/file; ( : < /dev/disk ) 2>&1; cat /data/file")
            .set("/linux/devices", node_of(&disk))
            .mount("/data", "ext4", disk.path(), &["noatime"]);
        let (_, said) = container.output().await;
        assert_eq!(said, format!("/data/bin/busybox\n{DENIED}x\n"));
    });
}

/// The container is refused within the time that every call has.
async fn refused(pod: &Pod<'_>, fs: &str, source: &Path, with: &[&str]) -> Error {
    let container = pod.sh("true").rootfs(fs, source, &options(with));
    container.refused().await
}

fn what_is_no_image_is_refused_with_its_path() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = w.dir("disk");
        let (zeros, fifo) = (dir.join("zeros"), dir.join("fifo"));
        fs::write(&zeros, vec![0; 1 << 20]).unwrap();
        run("mkfifo", &[text(&fifo)]);
        let image = ext4(w);
        let cases = [
            ("ext4", &zeros, &["loop"][..], "CMD_CREATE"),
            ("xfs", &zeros, &["loop"], "CMD_CREATE"),
            ("erofs", &zeros, &["loop", "ro"], "CMD_CREATE"),
            ("ext4", &image, &["loop", "nosuchoption"], "nosuchoption"),
            ("ext4", &image, &[], "Block device required"),
            ("ext4", &fifo, &["loop"], "no regular file"),
            ("ext4", &fifo, &[], "Block device required"),
            ("ext4", &dir, &["loop", "ro"], "no regular file"),
            ("ext4", &dir.join("missing"), &["loop"], "No such file"),
            ("nosuchfs", &image, &["loop"], "nosuchfs"),
        ];
        for (fs, source, with, want) in cases {
            let error = refused(&pod, fs, source, with).await.chain();
            let name = format!("rootfs[0] {fs} on {source:?}");
            assert!(error.contains(&name) && error.contains(want), "{error}");
        }
        let error = refused(&pod, "nosuchfs", &image, &["loop"]).await;
        assert_eq!(error.kind(), Kind::NotSupported);
        no_loop_device(w).await;
        assert_eq!(pod.sh("exit 5").output().await.0, 5);
    });
}

fn a_file_system_that_cannot_be_idmapped_is_no_root_of_a_pod_with_a_user_namespace() {
    world(async |w| {
        let pod = w.pod().await;
        let error = refused(&pod, "ramfs", Path::new("/dev/null"), &[]).await;
        assert_eq!(error.kind(), Kind::NotSupported);
        let error = error.chain();
        assert!(error.contains("ramfs cannot be idmapped here"), "{error}");
    });
}

/// A file system that is frozen: who writes to a file of it waits.
struct Frozen(PathBuf);

impl Frozen {
    fn new(w: &World, file: &Path) -> Self {
        let at = w.dir("frozen");
        run("mount", &["-o", "loop", text(file), text(&at)]);
        let frozen = Self(at);
        run("fsfreeze", &["-f", text(&frozen.0)]);
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
        let until = Instant::now() + SOON;
        // What waited for it lets go of it once it has died.
        let umount = || Command::new("umount").arg(&self.0).output();
        while !umount().is_ok_and(|out| out.status.success()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn an_image_that_does_not_answer_fails_its_container_alone() {
    let impatient = |c: &mut berm_sandbox::Config| c.stage_deadline = Duration::from_secs(4);
    world_with(impatient, async |w| {
        let pod = w.pod().await;
        let inner = w.dir("inner");
        fs::rename(ext4(w), inner.join("image")).unwrap();
        let frozen = Frozen::new(w, &ext4_of(w, &inner, "32m"));
        let container = pod.sh("true").rootfs(
            "ext4",
            &frozen.0.join("image"),
            &options(&["loop", "noatime"]),
        );
        let error = container.refused().await;
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{}", error.chain());
        assert_eq!(pod.sh("exit 5").output().await.0, 5);
        drop(frozen);
    });
}
