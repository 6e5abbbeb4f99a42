//! Session keyrings: what a container possesses of keys, and whose they are.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use berm_sandbox::Config;
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::json;
use tokio::time::sleep;

use crate::attack::program;
use crate::container::Container;
use crate::world::{Pod, SOON, World, world, world_with};

/// Compiled with the attacker, whose program they need.
pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_container_possesses_no_key_of_the_shims_session_nor_of_its_neighbours,
    an_exec_has_the_session_keyring_of_its_container,
    a_create_container_hook_has_the_session_keyring_of_its_container,
    a_pod_without_room_for_keys_gets_no_further_container_until_there_is_some,
];

/// What a process sees of the host's key and of one that a container has made.
const NEITHER: &str = "read: EACCES\nlink: EACCES\nsearch host: ENOKEY\nsearch inside: ENOKEY\n";
const ONLY_INSIDE: &str = "read: EACCES\nlink: EACCES\nsearch host: ENOKEY\nsearch inside: done\n";

/// Gives the case, which stands for the shim, a session keyring with a key in it: its serial
/// number.
fn key_of_the_host() -> String {
    berm_sys::keyring::join_session(None).unwrap();
    let run = |args: &[&str]| {
        let done = Command::new(program()).args(args).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    let serial = run(&["key", "host"]).trim().to_owned();
    let seen = run(&["keys", &serial]);
    assert!(seen.contains("read: done\n"), "{seen}");
    assert!(seen.contains("search host: done\n"), "{seen}");
    serial
}

/// A pod, with a user namespace or without.
async fn pod(w: &World, host: bool) -> Pod<'_> {
    w.pod_with(|spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|entry| !host || entry["type"] != "network");
    })
    .await
}

/// The container with the program in its image.
fn with_program(container: Container<'_>) -> Container<'_> {
    fs::copy(program(), container.root.join("attack")).unwrap();
    container
}

/// The serial number of the session keyring in what the program told, and the rest.
fn parts(text: &str) -> (&str, &str) {
    let rest = text.strip_prefix("session: ");
    rest.and_then(|rest| rest.split_once('\n'))
        .unwrap_or_else(|| panic!("{text}"))
}

fn a_container_possesses_no_key_of_the_shims_session_nor_of_its_neighbours() {
    for host in [false, true] {
        world(async |w| {
            let key = key_of_the_host();
            let pod = pod(w, host).await;
            let script = "/attack key inside; exec sleep 1000";
            let mut one = with_program(pod.sh(script)).run().await;
            assert!(one.line().await.parse::<i32>().unwrap() > 0);
            let (code, of_one) = one.exec(&["/attack", "keys", &key]).await;
            assert_eq!((code, parts(&of_one).1), (0, ONLY_INSIDE));
            for user in [0, 1000] {
                let other = with_program(pod.container(&["/attack", "keys", &key]));
                let (code, of_other) = other.user(user).output().await;
                assert_eq!((code, parts(&of_other).1), (0, NEITHER));
                assert_ne!(parts(&of_one).0, parts(&of_other).0);
            }
            one.end().await;
        });
    }
}

fn an_exec_has_the_session_keyring_of_its_container() {
    for host in [false, true] {
        world(async |w| {
            let pod = pod(w, host).await;
            let script = "/attack keys 0; exec sleep 1000";
            let mut made = with_program(pod.sh(script)).user(1000).run().await;
            let own = made.line().await;
            for user in [0, 1000] {
                let mut process = crate::container::process(&["/attack", "keys", "0"]);
                process["user"] = json!({"uid": user, "gid": user});
                let (_, text) = made.exec_of(&process).await.unwrap();
                assert_eq!(text.lines().next(), Some(own.as_str()));
            }
            made.end().await;
        });
    }
}

fn a_create_container_hook_has_the_session_keyring_of_its_container() {
    world(async |w| {
        let key = key_of_the_host();
        let pod = w.pod().await;
        // Root of the pod runs it, and has to get at it.
        let told = w.dir("told");
        let everybody: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&told, everybody).unwrap();
        let script = format!(
            "{} keys {key} > {}/keys",
            program().display(),
            told.display()
        );
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        let container = with_program(pod.container(&["/attack", "keys", &key]));
        let (_, of_container) = container.set("/hooks/createContainer", hook).output().await;
        let of_hook = fs::read_to_string(Path::new(&told).join("keys")).unwrap();
        assert_eq!(of_hook, of_container);
        assert_eq!(parts(&of_hook).1, NEITHER);
    });
}

/// Ids for two pods whose quota of keys nobody else uses: the kernel has one for each user id, and
/// sandboxes of one name have the same ids in every test that has a pool of its own.
fn ids_of_its_own(config: &mut Config) {
    const RANGE: u32 = 65_536;
    config.id_pool_start += std::process::id() % 2_000 * 2 * RANGE;
    config.id_pool_end = config.id_pool_start + 2 * RANGE - 1;
}

fn a_pod_without_room_for_keys_gets_no_further_container_until_there_is_some() {
    world_with(ids_of_its_own, async |w| {
        let pod = w.pod().await;
        let mut full = with_program(pod.container(&["/attack", "fill"]))
            .run()
            .await;
        assert_eq!(full.line().await, "full: EDQUOT");
        // The kernel frees dead keyrings in the background, also after it has refused the last key:
        // who gets that room keeps it.
        let mut made = Vec::new();
        let error = loop {
            match pod.sh("true").create().await {
                Ok(more) => made.push(more),
                Err(error) => break error,
            }
            assert!(made.len() < 32, "there is no end of room");
        };
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("kernel.keys.maxkeys"), "{error}");
        // Its own keyring is there already.
        assert_eq!(full.exec(&["/bin/true"]).await.0, 0);
        // Another pod has another root.
        let next = w.pod().await;
        assert_eq!(next.sh("exit 4").output().await.0, 4);
        full.end().await;
        let until = Instant::now() + SOON;
        while let Err(e) = pod.sh("true").create().await.map(drop) {
            // The kernel frees the keys of a dead keyring in the background.
            assert!(Instant::now() < until, "{e}");
            sleep(Duration::from_millis(5)).await;
        }
    });
}
