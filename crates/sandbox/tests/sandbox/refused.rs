//! Bad input: the right kind, the field and the reason, nothing left, the others unharmed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berm_sandbox::{Args, Error, Sandbox, Spec};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::container::{Container, Made, process};
use crate::world::{NAMESPACE, Pod, World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_broken_config_json_is_refused_with_line_and_column,
    a_missing_rootfs_is_refused,
    an_unknown_mount_type_is_refused,
    a_missing_mount_source_is_refused,
    a_missing_command_has_the_words_that_users_know,
    a_command_that_is_not_executable_is_refused,
    an_id_outside_the_map_is_refused,
    bad_ids_are_refused,
    a_container_without_its_sandbox_is_refused,
    a_full_disk_at_the_sandboxs_record_fails_its_creation,
    a_full_disk_at_a_containers_record_fails_its_creation_alone,
    a_reached_limit_of_descriptors_fails_the_call_alone,
    a_missing_sandbox_namespace_is_refused,
    a_working_directory_that_is_a_file_is_refused,
    an_unknown_sysctl_fails_the_sandbox,
    a_pool_without_a_free_range_refuses_the_next_pod,
];

/// A pod with a container that must not notice what happens to others.
async fn neighbour<'p>(pod: &'p Pod<'_>) -> Made<'p> {
    pod.container(&["/bin/sleep", "1000"]).run().await
}

async fn unharmed(neighbour: &Made<'_>) {
    assert_eq!(
        neighbour.exec_sh("echo unharmed").await,
        (0, "unharmed\n".into())
    );
    assert_eq!(neighbour.pod.sh("exit 3").output().await.0, 3);
}

/// Refuses a container in a pod with a neighbour.
fn refuses(
    make: impl Fn(&World, Container<'_>) -> serde_json::Value,
    check: impl Fn(&Error, &str),
) {
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        let mut container = pod.sh("true");
        let spec = make(w, pod.sh("true"));
        container.spec = spec;
        let id = container.id.clone();
        container.spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", w.cgroup));
        let error = container.refused().await;
        check(&error, &error.chain());
        unharmed(&other).await;
    });
}

fn a_broken_config_json_is_refused_with_line_and_column() {
    for (json, want) in [
        ("{\n \"process\": [", "line 2"),
        ("", "line 1"),
        ("{\"process\": 3}", "line 1"),
    ] {
        let error = Spec::parse(json.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        let text = error.to_string();
        assert!(
            text.contains("config.json") && text.contains(want),
            "{text}"
        );
    }
}

fn a_missing_rootfs_is_refused() {
    refuses(
        |w, c| c.set("/root/path", json!(w.dir.join("nowhere"))).spec,
        |error, text| {
            assert_eq!(error.kind(), Kind::NotFound, "{text}");
            assert!(text.contains("nowhere"), "{text}");
        },
    );
}

fn an_unknown_mount_type_is_refused() {
    refuses(
        |_, c| c.mount("/x", "zfs", Path::new("pool"), &[]).spec,
        |error, text| {
            assert_eq!(error.kind(), Kind::NotSupported, "{text}");
            assert!(text.contains("mounts[7].type \"zfs\""), "{text}");
        },
    );
}

fn a_missing_mount_source_is_refused() {
    refuses(
        |w, c| {
            c.mount("/x", "bind", &w.dir.join("nowhere"), &["rbind"])
                .spec
        },
        |error, text| {
            assert_eq!(error.kind(), Kind::NotFound, "{text}");
            assert!(text.contains("nowhere"), "{text}");
        },
    );
}

fn a_missing_command_has_the_words_that_users_know() {
    refuses(
        |_, c| c.set("/process/args", json!(["not-there", "x"])).spec,
        |error, text| {
            assert_eq!(error.kind(), Kind::NotFound, "{text}");
            assert_eq!(
                text,
                "exec: \"not-there\": executable file not found in $PATH"
            );
        },
    );
    refuses(
        |_, c| c.set("/process/args", json!(["/no/such/file"])).spec,
        |error, text| {
            assert_eq!(error.kind(), Kind::NotFound, "{text}");
            assert_eq!(
                text,
                "exec: \"/no/such/file\": stat /no/such/file: no such file or directory"
            );
        },
    );
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        let error = other.exec_of(&process(&["not-there"])).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(
            error.to_string(),
            "exec: \"not-there\": executable file not found in $PATH"
        );
        unharmed(&other).await;
    });
}

fn a_command_that_is_not_executable_is_refused() {
    for (args, kind, want) in [
        (
            json!(["/etc/passwd"]),
            Kind::Denied,
            "exec: \"/etc/passwd\": permission denied",
        ),
        (
            json!(["/etc"]),
            Kind::InvalidArgument,
            "exec: \"/etc\": is a directory",
        ),
    ] {
        refuses(
            |_, c| c.set("/process/args", args.clone()).spec,
            |error, text| {
                assert_eq!(error.kind(), kind, "{text}");
                assert_eq!(text, want);
            },
        );
    }
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        let container = pod.container(&["/odd"]);
        let odd = container.root.join("odd");
        fs::write(&odd, "\u{7f}ELF, not really").unwrap();
        fs::set_permissions(&odd, fs::Permissions::from_mode(0o755)).unwrap();
        let error = container.refused().await;
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("exec format error"), "{error}");
        unharmed(&other).await;
    });
}

fn an_id_outside_the_map_is_refused() {
    for (pointer, user) in [
        ("process.user.uid", json!({"uid": 70000, "gid": 0})),
        ("process.user.gid", json!({"uid": 0, "gid": 65536})),
        (
            "process.user.additionalGids[1]",
            json!({"uid": 0, "gid": 0, "additionalGids": [1, 99999]}),
        ),
    ] {
        refuses(
            |_, c| c.set("/process/user", user.clone()).spec,
            |error, text| {
                assert_eq!(error.kind(), Kind::NotSupported, "{text}");
                assert!(text.starts_with(pointer), "{text}");
            },
        );
    }
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        let mut p = process(&["/bin/true"]);
        p["user"]["uid"] = json!(70000);
        let error = other.exec_of(&p).await.unwrap_err();
        assert!(error.to_string().starts_with("process.user.uid"), "{error}");
        unharmed(&other).await;
    });
}

fn bad_ids_are_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        for id in ["", "..", "a/b", "a b"] {
            let mut container = pod.sh("true");
            container.id = id.to_owned();
            let error = container.create().await.err().unwrap();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            let error = w.sandbox(id, &w.sandbox_spec("x")).await.err().unwrap();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            let p = process(&["/bin/true"]).to_string();
            let error = pod.sandbox.add_exec(&other.id, id, p.as_bytes(), false);
            assert_eq!(error.unwrap_err().kind(), Kind::InvalidArgument);
        }
        unharmed(&other).await;
    });
}

fn a_container_without_its_sandbox_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        let spec = pod.sh("true").spec;
        let error = w.sandbox("alone", &spec).await.err().unwrap();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("\"alone\""), "{error}");
        unharmed(&other).await;
    });
}

fn tiny(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
}

/// Leaves not one byte.
fn fill(dir: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(dir.join("filler")).unwrap();
    while file.write(&[0; 4096]).is_ok() {}
}

fn a_full_disk_at_the_sandboxs_record_fails_its_creation() {
    let disk = std::env::temp_dir().join(format!("berm-disk-{}", std::process::id()));
    tiny(&disk);
    let state_dir = disk.join("state");
    world_with(
        |config| config.state_dir.clone_from(&state_dir),
        async |w| {
            let pod = w.pod().await;
            let other = neighbour(&pod).await;
            fill(&disk);
            let error = w.try_pod(|_| {}).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
            assert!(error.chain().contains("No space left"), "{}", error.chain());
            fs::remove_file(disk.join("filler")).unwrap();
            unharmed(&other).await;
            w.pod().await.end().await;
        },
    );
    unmount(&disk, UnmountFlags::empty()).unwrap();
    fs::remove_dir(&disk).unwrap();
}

fn a_full_disk_at_a_containers_record_fails_its_creation_alone() {
    let disk = std::env::temp_dir().join(format!("berm-disk-{}", std::process::id()));
    tiny(&disk);
    let state_dir = disk.join("state");
    world_with(
        |config| config.state_dir.clone_from(&state_dir),
        async |w| {
            let pod = w.pod().await;
            let other = neighbour(&pod).await;
            fill(&disk);
            let id = {
                let container = pod.sh("true");
                let id = container.id.clone();
                let error = container.create().await.err().unwrap();
                assert!(error.chain().contains("No space left"), "{}", error.chain());
                id
            };
            let story = pod.story(&id);
            assert!(story.is_empty(), "{story:?}");
            fs::remove_file(disk.join("filler")).unwrap();
            unharmed(&other).await;
        },
    );
    unmount(&disk, UnmountFlags::empty()).unwrap();
    fs::remove_dir(&disk).unwrap();
}

fn a_reached_limit_of_descriptors_fails_the_call_alone() {
    world(async |w| {
        let pod = w.pod().await;
        let other = neighbour(&pod).await;
        let before = getrlimit(Resource::Nofile);
        let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        // From no room at all to enough: every place where it may run out is met.
        let (mut failed, mut made) = (0, 0);
        for room in 0..60 {
            let container = pod.sh("exit 3");
            let spec = w.sandbox_spec("more");
            let parsed = Spec::parse(spec.to_string().as_bytes()).unwrap();
            let id = container.id.clone();
            let limit = Rlimit {
                current: Some(open + 4 + room),
                ..before
            };
            setrlimit(Resource::Nofile, limit).unwrap();
            let pod_made = {
                let (events, _told) = tokio::sync::mpsc::unbounded_channel();
                let args = Args::new("more", NAMESPACE, &w.dir, parsed);
                Sandbox::create(w.host.clone(), args, events).await
            };
            let exec = other.pod.sandbox.add_exec(
                &other.id,
                &format!("e{room}"),
                process(&["/bin/true"]).to_string().as_bytes(),
                false,
            );
            exec.unwrap();
            let name = format!("e{room}");
            let exec = pod
                .sandbox
                .start_exec(&other.id, &name, berm_sandbox::Stdio::default())
                .await;
            let spec = Spec::parse(container.spec.to_string().as_bytes()).unwrap();
            let args = berm_sandbox::ContainerArgs::new(&id, &w.dir, spec);
            let container = pod.sandbox.create_container(args).await;
            setrlimit(Resource::Nofile, before).unwrap();
            for error in [
                pod_made.as_ref().err(),
                exec.as_ref().err(),
                container.as_ref().err(),
            ]
            .into_iter()
            .flatten()
            {
                failed += 1;
                let text = error.chain();
                assert_eq!(error.kind(), Kind::Unavailable, "{room}: {text}");
            }
            made += [pod_made.is_ok(), exec.is_ok(), container.is_ok()]
                .iter()
                .filter(|made| **made)
                .count();
            if let Ok(more) = pod_made {
                more.destroy().await;
            }
            pod.sandbox.wait(&other.id, Some(&name)).await.unwrap();
            pod.sandbox.delete(&other.id, Some(&name)).await.unwrap();
            if container.is_ok() {
                pod.sandbox.delete(&id, None).await.unwrap();
            }
            assert_eq!(pod.sandbox.tasks().len(), 2);
        }
        assert!(failed > 3 && made > 3, "{failed} {made}");
        unharmed(&other).await;
    });
}

fn a_missing_sandbox_namespace_is_refused() {
    world(async |w| {
        let error = w
            .try_pod(|s| s["linux"]["namespaces"][4]["path"] = json!("/run/netns/nowhere"))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
        assert!(
            error.chain().contains("/run/netns/nowhere"),
            "{}",
            error.chain()
        );
    });
}

fn a_working_directory_that_is_a_file_is_refused() {
    refuses(
        |_, c| c.set("/process/cwd", json!("/etc/passwd")).spec,
        |error, text| {
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
            assert!(text.contains("/etc/passwd"), "{text}");
        },
    );
}

fn an_unknown_sysctl_fails_the_sandbox() {
    world(async |w| {
        let error = w
            .try_pod(|s| s["linux"]["sysctl"] = json!({"net.ipv4.no_such_thing": "1"}))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
        assert!(error.chain().contains("no_such_thing"), "{}", error.chain());
        w.pod().await.end().await;
    });
}

fn a_pool_without_a_free_range_refuses_the_next_pod() {
    world_with(
        |config| config.id_pool_end = config.id_pool_start + 2 * 65_536 - 1,
        async |w| {
            let (first, second) = (w.pod().await, w.pod().await);
            let error = w.try_pod(|_| {}).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(
                error.to_string().contains("all 2 of the pool are in use"),
                "{error}"
            );
            first.end().await;
            let third = w.pod().await;
            assert_ne!(third.sandbox.record().uid, second.sandbox.record().uid);
        },
    );
}
