//! Mounts into containers that run.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use berm_sandbox::Error;
use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::container::{Made, process};
use crate::control::Client;
use crate::world::{Pod, SOON, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_directory_comes_to_a_running_container_with_the_ids_of_its_pod,
    a_file_comes_to_a_running_container_over_a_file_of_its_image,
    a_tmpfs_comes_to_a_running_container_with_its_options_and_the_mode_of_what_it_covers,
    mounts_below_a_source_come_along_with_rbind_alone,
    what_is_missing_of_a_destination_is_made_by_root_of_the_pod,
    a_destination_behind_links_is_inside_the_container,
    a_destination_that_walks_out_of_the_container_is_refused_and_nothing_outside_is_touched,
    flags_of_a_mount_into_a_running_container_hold_against_root_of_the_pod,
    a_mount_into_a_paused_container_is_there_when_it_goes_on,
    a_mount_goes_with_its_container_and_is_seen_by_no_other,
    a_mount_into_what_is_not_there_or_does_not_run_is_refused_by_name,
    a_mount_that_cannot_be_is_refused_by_its_field_and_leaves_nothing,
    a_mount_over_the_socket_is_gvisors_with_options,
    a_pod_without_a_user_namespace_is_mounted_into_with_ids_as_they_are,
];

async fn sleeper<'p>(pod: &'p Pod<'p>) -> Made<'p> {
    pod.container(&["/bin/sleep", "1000"]).run().await
}

/// Runs a script as root of the pod with capabilities that few containers have.
async fn strongly(c: &Made<'_>, script: &str) -> (u32, String) {
    let mut process = process(&["/bin/sh", "-c", script]);
    let caps = json!([
        "CAP_SYS_ADMIN",
        "CAP_DAC_OVERRIDE",
        "CAP_CHOWN",
        "CAP_FOWNER"
    ]);
    for set in ["bounding", "effective", "permitted"] {
        process["capabilities"][set] = caps.clone();
    }
    c.exec_of(&process).await.unwrap()
}

async fn bind(c: &Made<'_>, source: &Path, to: &str, options: &[&str]) -> Result<(), Error> {
    mount_in(c, "bind", source, to, options).await
}

async fn mount_in(
    c: &Made<'_>,
    fstype: &str,
    source: &Path,
    to: &str,
    options: &[&str],
) -> Result<(), Error> {
    let options: Vec<_> = options.iter().map(|&o| o.to_owned()).collect();
    let sandbox = &c.pod.sandbox;
    sandbox
        .mount(&c.id, fstype, source, Path::new(to), &options)
        .await
}

/// Hears of the end of the file system that is mounted at a place.
fn watch(at: &Path) -> OwnedFd {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let hears = inotify::init(flags).unwrap();
    // IN_UNMOUNT comes unasked.
    inotify::add_watch(&hears, at, inotify::WatchFlags::DELETE_SELF).unwrap();
    hears
}

/// Unmounts it here; nobody else has it, in whatever mount namespace: it comes to its end.
async fn unmount_the_last(at: &Path, hears: OwnedFd) {
    unmount(at, UnmountFlags::empty()).unwrap();
    let mut room = [MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(&hears, &mut room);
    let until = Instant::now() + SOON;
    loop {
        match events.next() {
            Ok(event) if event.events().contains(inotify::ReadFlags::UNMOUNT) => return,
            // The kernel takes down in its own time what a mount namespace leaves.
            Err(Errno::AGAIN) => sleep(Duration::from_millis(2)).await,
            other => drop(other.unwrap()),
        }
        assert!(Instant::now() < until, "somebody has {at:?}");
    }
}

/// The mounts of this process: the host's.
fn hosts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// The flags of the mount at `path`, as the container sees them.
async fn flags(c: &Made<'_>, path: &str) -> String {
    let script = format!("grep ' {path} ' /proc/self/mountinfo | cut -d' ' -f6");
    c.exec_sh(&script).await.1
}

fn a_directory_comes_to_a_running_container_with_the_ids_of_its_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        fs::write(source.join("roots"), "of the host\n").unwrap();
        fs::write(source.join("alices"), "").unwrap();
        chown(source.join("alices"), Some(1000), Some(1000)).unwrap();
        let before = hosts();
        fs::create_dir(c.root.join("data")).unwrap();
        bind(&c, &source, "/data", &["rw"]).await.unwrap();
        assert_eq!(hosts(), before);
        let script = "cat /data/roots; stat -c %u:%g /data/roots /data/alices; echo new > /data/n";
        assert_eq!(
            c.exec_sh(script).await,
            (0, "of the host\n0:0\n1000:1000\n".into())
        );
        // What root of the pod writes is root's, as with every volume.
        let made = fs::metadata(source.join("n")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
        // It is the directory itself, not a copy.
        fs::write(source.join("late"), "late\n").unwrap();
        assert_eq!(c.exec_sh("cat /data/late").await.1, "late\n");
        c.end().await;
        assert_eq!(fs::read_to_string(source.join("n")).unwrap(), "new\n");
        // What it covered is as it was.
        assert_eq!(fs::read_dir(c.root.join("data")).unwrap().count(), 0);
    });
}

fn a_file_comes_to_a_running_container_over_a_file_of_its_image() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let file = w.dir("volume").join("file");
        fs::write(&file, "hosts\n").unwrap();
        bind(&c, &file, "/etc/passwd", &["ro"]).await.unwrap();
        bind(&c, &file, "/new/file", &[]).await.unwrap();
        assert_eq!(
            c.exec_sh("cat /etc/passwd /new/file").await.1,
            "hosts\nhosts\n"
        );
        c.end().await;
        let image = fs::read_to_string(c.root.join("etc/passwd")).unwrap();
        assert!(image.starts_with("root:"), "{image}");
    });
}

fn a_tmpfs_comes_to_a_running_container_with_its_options_and_the_mode_of_what_it_covers() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        c.exec_sh("mkdir /t /u; chmod 751 /t").await;
        let none = Path::new("");
        let options = ["size=1m", "uid=1000", "nosuid", "nodev", "noexec"];
        mount_in(&c, "tmpfs", none, "/t", &options).await.unwrap();
        mount_in(&c, "tmpfs", none, "/u", &["mode=1777"])
            .await
            .unwrap();
        let script = "stat -c %a:%u:%g /t /u; dd if=/dev/zero of=/t/x bs=1M count=2 2>&1 | grep -c 'No space'; \
            cat /bin/busybox > /u/busybox; chmod 755 /u/busybox; /u/busybox echo runs";
        assert_eq!(c.exec_sh(script).await.1, "751:1000:0\n1777:0:0\n1\nruns\n");
        let at_t = flags(&c, "/t").await;
        assert!(at_t.contains("nosuid,nodev,noexec"), "{at_t}");
        c.end().await;
        assert_eq!(fs::read_dir(c.root.join("u")).unwrap().count(), 0);
    });
}

fn mounts_below_a_source_come_along_with_rbind_alone() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        let below = source.join("below");
        fs::create_dir(&below).unwrap();
        mount("tmpfs", &below, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        let hears = watch(&below);
        fs::write(below.join("file"), "deep\n").unwrap();
        bind(&c, &source, "/plain", &["bind"]).await.unwrap();
        match bind(&c, &source, "/whole", &["rbind"]).await {
            Ok(()) => assert_eq!(c.exec_sh("cat /whole/below/file").await.1, "deep\n"),
            // A kernel that cannot idmap a tmpfs.
            Err(e) => assert_eq!(e.kind(), Kind::NotSupported, "{e}"),
        }
        assert_eq!(c.exec_sh("ls /plain/below | wc -l").await.1.trim(), "0");
        c.end().await;
        // Nothing of the container holds it.
        unmount_the_last(&below, hears).await;
    });
}

fn what_is_missing_of_a_destination_is_made_by_root_of_the_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        bind(&c, &source, "/a/b/c", &[]).await.unwrap();
        assert_eq!(
            c.exec_sh("stat -c %u:%g:%a /a /a/b").await.1,
            "0:0:755\n0:0:755\n"
        );
        c.end().await;
        let made = fs::metadata(c.root.join("a/b")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
    });
}

fn a_destination_behind_links_is_inside_the_container() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        fs::write(source.join("mark"), "x").unwrap();
        let outside = w.dir("outside");
        let before = hosts();
        // Absolute, and further up than there is to go: as the container itself would walk it.
        symlink("/var", c.root.join("absolute")).unwrap();
        symlink(
            format!("../../../../../..{}", outside.display()),
            c.root.join("up"),
        )
        .unwrap();
        bind(&c, &source, "/absolute/in", &[]).await.unwrap();
        bind(&c, &source, "/up/in", &[]).await.unwrap();
        assert_eq!(c.exec_sh("ls /var/in").await.1, "mark\n");
        let inside = format!("ls {}/in", outside.display());
        assert_eq!(c.exec_sh(&inside).await.1, "mark\n");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(hosts(), before);
        c.end().await;
    });
}

fn a_destination_that_walks_out_of_the_container_is_refused_and_nothing_outside_is_touched() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        let before = hosts();
        c.exec_sh("ln -s /proc/self/root /magic; ln -s /proc/1/cwd /cwd; ln -s circle /circle")
            .await;
        let refused: &[(&str, Option<Kind>)] = &[
            ("/../etc", Some(Kind::InvalidArgument)),
            ("/data/../../etc", Some(Kind::InvalidArgument)),
            ("etc", Some(Kind::InvalidArgument)),
            ("/", Some(Kind::InvalidArgument)),
            ("/magic/etc", None),
            ("/magic", None),
            ("/cwd/tmp", None),
            ("/proc/1/root/tmp", None),
            ("/circle/x", None),
        ];
        for (to, kind) in refused {
            let e = bind(&c, &source, to, &[]).await.unwrap_err();
            assert!(kind.is_none_or(|kind| e.kind() == kind), "{to}: {e}");
            assert!(e.to_string().contains(to), "{to}: {e}");
        }
        assert_eq!(hosts(), before);
        let seen = c.exec_sh("grep -c volume /proc/self/mountinfo").await.1;
        assert_eq!(seen, "0\n");
        c.end().await;
    });
}

fn flags_of_a_mount_into_a_running_container_hold_against_root_of_the_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        fs::write(source.join("file"), "host's\n").unwrap();
        fs::create_dir(c.root.join("ro")).unwrap();
        let options = ["ro", "nosuid", "nodev", "noexec"];
        bind(&c, &source, "/ro", &options).await.unwrap();
        let at = flags(&c, "/ro").await;
        assert!(at.starts_with("ro,nosuid,nodev,noexec"), "{at}");
        let script = "echo x > /ro/file; mount -o remount,rw,bind /ro; echo x > /ro/file; \
            mount -o remount,bind,exec,suid,dev /ro; mkdir /again; \
            mount -o bind /ro /again && mount -o remount,rw,bind /again; echo x > /again/file";
        let (_, text) = strongly(&c, script).await;
        assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
        for path in ["/ro", "/again"] {
            let at = flags(&c, path).await;
            assert!(
                at.starts_with("ro,nosuid,nodev,noexec"),
                "{path}: {at}\n{text}"
            );
        }
        // It cannot be taken away either, by nobody's trick.
        let script = "umount /ro; umount -l /ro; mkdir /aside; mount --move /ro /aside; ls /ro";
        let (_, text) = strongly(&c, script).await;
        assert!(text.ends_with("file\n"), "{text}");
        assert_eq!(text.matches("Invalid argument").count(), 3, "{text}");
        // But a file can: there is no place for a second mount under it.
        bind(&c, &source.join("file"), "/etc/passwd", &["ro"])
            .await
            .unwrap();
        let script = "echo x > /etc/passwd; mount -o remount,rw,bind /etc/passwd; \
            echo x > /etc/passwd; umount /etc/passwd && head -c 5 /etc/passwd";
        let (_, text) = strongly(&c, script).await;
        assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
        assert!(text.ends_with("root:"), "{text}");
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "host's\n");
        c.end().await;
    });
}

fn a_mount_into_a_paused_container_is_there_when_it_goes_on() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "read a; cat /data/file; read a; cat /all/file; read a";
        let mut c = pod.sh(script).run().await;
        let source = w.dir("volume");
        fs::write(source.join("file"), "there\n").unwrap();
        pod.sandbox.pause(&c.id).await.unwrap();
        bind(&c, &source, "/data", &["ro"]).await.unwrap();
        pod.sandbox.resume(&c.id).await.unwrap();
        c.say("go\n");
        assert_eq!(c.line().await, "there");
        pod.sandbox.pause_all().await.unwrap();
        bind(&c, &source, "/all", &["ro"]).await.unwrap();
        pod.sandbox.resume_all().await.unwrap();
        c.say("go\n");
        assert_eq!(c.line().await, "there");
        c.end().await;
    });
}

fn a_mount_goes_with_its_container_and_is_seen_by_no_other() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let other = sleeper(&pod).await;
        let source = w.dir("volume");
        mount("tmpfs", &source, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        let hears = watch(&source);
        let before = hosts();
        let options = ["ro", "rprivate"];
        match bind(&c, &source, "/data", &options).await {
            // The kernel cannot idmap a tmpfs.
            Err(e) => assert_eq!(e.kind(), Kind::NotSupported, "{e}"),
            Ok(()) => {
                let count = "grep -c ' /data ' /proc/self/mountinfo";
                let seen = c.exec_sh(count).await.1;
                assert_ne!(seen, "0\n");
                assert_eq!(other.exec_sh(count).await.1, "0\n");
                assert_eq!(hosts(), before);
            }
        }
        c.end().await;
        unmount_the_last(&source, hears).await;
        other.end().await;
    });
}

fn a_mount_into_what_is_not_there_or_does_not_run_is_refused_by_name() {
    world(async |w| {
        let pod = w.pod().await;
        let source = w.dir("volume");
        let into = async |id: &str| {
            let to = Path::new("/data");
            let e = pod
                .sandbox
                .mount(id, "bind", &source, to, &[])
                .await
                .unwrap_err();
            (e.kind(), e.to_string())
        };
        let nobody = (Kind::NotFound, "container \"nobody\" not found".to_owned());
        assert_eq!(into("nobody").await, nobody);
        let created = pod.container(&["/bin/true"]).create().await.unwrap();
        let stopped = pod.container(&["/bin/true"]).run().await;
        stopped.wait().await;
        for (id, word) in [
            (created.id.as_str(), "created"),
            (&stopped.id, "stopped"),
            (pod.id(), "sandbox"),
        ] {
            let (kind, text) = into(id).await;
            assert_eq!(kind, Kind::FailedPrecondition, "{text}");
            assert!(text.contains(id) && text.contains(word), "{text}");
        }
        created.delete().await.unwrap();
        stopped.delete().await.unwrap();
    });
}

/// Type, source, destination, options; kind and a word of the refusal.
type Row<'a> = (&'a str, &'a Path, &'a str, &'a [&'a str], Kind, &'a str);

fn a_mount_that_cannot_be_is_refused_by_its_field_and_leaves_nothing() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let source = w.dir("volume");
        let file = source.join("file");
        fs::write(&file, "x").unwrap();
        let missing = source.join("missing");
        let (before, inside) = (hosts(), c.exec_sh("cat /proc/self/mountinfo").await.1);
        let cases: &[Row<'_>] = &[
            ("bind", &missing, "/data", &[], Kind::NotFound, "missing"),
            ("bind", &file, "/etc", &[], Kind::InvalidArgument, "/etc"),
            (
                "bind",
                &source,
                "/etc/passwd",
                &[],
                Kind::InvalidArgument,
                "/etc/passwd",
            ),
            (
                "bind",
                Path::new("volume"),
                "/data",
                &[],
                Kind::InvalidArgument,
                "source",
            ),
            (
                "proc",
                &source,
                "/data",
                &[],
                Kind::NotSupported,
                "type \"proc\"",
            ),
            (
                "ext4",
                &source,
                "/data",
                &[],
                Kind::NotSupported,
                "type \"ext4\"",
            ),
            (
                "bind",
                &source,
                "/data",
                &["remount"],
                Kind::NotSupported,
                "remount",
            ),
            (
                "tmpfs",
                &source,
                "/data",
                &["size=much"],
                Kind::InvalidArgument,
                "much",
            ),
            (
                "tmpfs",
                &source,
                "/data",
                &["surprise"],
                Kind::NotSupported,
                "surprise",
            ),
        ];
        for (fstype, source, to, options, kind, word) in cases {
            let e = mount_in(&c, fstype, source, to, options).await.unwrap_err();
            assert_eq!(e.kind(), *kind, "{e}");
            assert!(e.to_string().contains(word), "{e}");
        }
        assert_eq!(hosts(), before);
        assert_eq!(c.exec_sh("cat /proc/self/mountinfo").await.1, inside);
        assert!(!c.root.join("data").exists());
        // A root that is read-only has no place for what is not there.
        let ro = pod
            .container(&["/bin/sleep", "1000"])
            .set("/root/readonly", json!(true));
        let ro = ro.run().await;
        let e = bind(&ro, &source, "/data", &[]).await.unwrap_err();
        assert!(e.to_string().contains("/data"), "{e}");
        bind(&ro, &source, "/tmp", &[]).await.unwrap();
        assert_eq!(ro.exec_sh("ls /tmp").await.1, "file\n");
        ro.end().await;
        c.end().await;
    });
}

fn a_mount_over_the_socket_is_gvisors_with_options() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        let source = w.dir("volume");
        fs::write(source.join("file"), "there\n").unwrap();
        let arg = |key: &str, value: Value| {
            let mut arg = json!({"ContainerID": c.id, "Source": source,
                "Destination": "/data", "FsType": "bind"});
            arg[key] = value;
            arg
        };
        let done = client.ok("Mount", arg("Options", json!(["ro"]))).await;
        assert_eq!(done, json!({}));
        let script = "cat /data/file; echo x > /data/x";
        let (status, text) = c.exec_sh(script).await;
        assert!(status != 0 && text.starts_with("there\n"), "{text}");
        assert!(text.contains("Read-only"), "{text}");
        let none = json!({"ContainerID": c.id, "Destination": "/t", "FsType": "tmpfs"});
        client.ok("Mount", none).await;
        let refused = [
            (arg("ContainerID", json!("nobody")), "NotFound", "nobody"),
            (arg("FsType", json!("erofs")), "NotSupported", "erofs"),
            (
                arg("Destination", json!("/../x")),
                "InvalidArgument",
                "destination",
            ),
            (arg("Surprise", json!(1)), "InvalidArgument", "Surprise"),
            (arg("Options", json!("ro")), "InvalidArgument", "ro"),
        ];
        for (arg, want, word) in refused {
            let (kind, text) = client.refused("Mount", arg).await;
            assert_eq!(kind, want, "{text}");
            assert!(text.contains(word), "{text}");
        }
        c.end().await;
    });
}

fn a_pod_without_a_user_namespace_is_mounted_into_with_ids_as_they_are() {
    world_with(
        |config| config.policy.host_users = true,
        async |w| {
            let nothing_said = |spec: &mut Value| {
                spec["annotations"]
                    .as_object_mut()
                    .unwrap()
                    .remove("dev.berm.userns");
            };
            let pod = w.pod_with(nothing_said).await;
            let c = sleeper(&pod).await;
            let source = w.dir("volume");
            fs::write(source.join("file"), "").unwrap();
            chown(source.join("file"), Some(70_000), Some(0)).unwrap();
            bind(&c, &source, "/data", &["ro"]).await.unwrap();
            let script = "stat -c %u /data/file; echo x > /data/x";
            let (_, text) = c.exec_sh(script).await;
            assert!(
                text.starts_with("70000\n") && text.contains("Read-only"),
                "{text}"
            );
            mount_in(&c, "tmpfs", Path::new(""), "/t", &[])
                .await
                .unwrap();
            assert_eq!(c.exec_sh("echo x > /t/x; stat -c %u /t/x").await.1, "0\n");
            c.end().await;
        },
    );
}
