//! The memory of a pod, compared with the kernel's files and with what a workload did.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::Made;
use crate::control::{Client, golden};
use crate::figures::{near, value};
use crate::world::world;

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    usage_splits_the_pods_memory_as_memory_stat_does,
    usage_files_are_read_with_no_call_while_the_pod_is_frozen,
    usage_refuses_what_it_does_not_know,
];

const MIB: u64 = 1 << 20;
/// 32 MiB of anonymous memory, 24 of tmpfs, 16 of page cache.
const HOLD: &str = "dd if=/dev/zero of=/dev/shm/t bs=1M count=24 2>/dev/null
    dd if=/dev/zero of=/tmp/f bs=1M count=16 2>/dev/null
    x=0123456789abcdef; while [ ${#x} -lt 33554432 ]; do x=$x$x; done
    echo ready; read a; echo ${#x}";

fn total(dir: &std::path::Path) -> u64 {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let text = read("memory.current").or_else(|| read("memory.usage_in_bytes"));
    text.unwrap().trim().parse().unwrap()
}

async fn holder<'p>(pod: &'p crate::world::Pod<'p>) -> Made<'p> {
    let mut c = pod.sh(HOLD).run().await;
    assert_eq!(c.line().await, "ready");
    c
}

fn usage_splits_the_pods_memory_as_memory_stat_does() {
    world(async |w| {
        let pod = w.pod().await;
        let all = [holder(&pod).await, holder(&pod).await];
        pod.sandbox.pause_all().await.unwrap();
        let client = Client::to(&pod).await;
        let (reply, _) = client
            .call_with("Usage.Collect", json!({"Full": true}), &[])
            .await;
        let used = &reply["result"];
        golden("Usage.Collect", used);
        let of = |key: &str| used[key].as_u64().unwrap();
        let (mut sum, mut anon, mut shmem) = (0, 0, 0);
        for c in &all {
            let dir = w.cgroup_dir("memory", &c.id);
            let text = fs::read_to_string(dir.join("memory.stat")).unwrap();
            sum += total(&dir);
            anon += value(&text, &["total_rss", "anon"]);
            shmem += value(&text, &["total_shmem", "shmem"]);
        }
        near(of("Anonymous"), anon, "anon of memory.stat");
        near(of("Tmpfs"), shmem, "shmem of memory.stat");
        near(of("Tmpfs"), 2 * 24 * MIB, "what was written to tmpfs");
        assert!(of("Anonymous") >= 2 * 32 * MIB, "{used}");
        assert!(of("PageCache") + of("Mapped") >= 2 * 16 * MIB, "{used}");
        near(of("Total") - of("Sandbox"), sum, "memory.current");
        near(
            of("Sandbox"),
            total(&w.cgroup_dir("memory", pod.id())),
            "the sandbox's own",
        );
        let parts = [
            "Unknown",
            "System",
            "Anonymous",
            "PageCache",
            "Mapped",
            "Tmpfs",
            "Sandbox",
        ];
        let parts: u64 = parts.into_iter().map(of).sum();
        assert_eq!(parts, of("Total"));
        let (reply, _) = client
            .call_with("Usage.Collect", json!({"Full": false}), &[])
            .await;
        let brief = &reply["result"];
        near(brief["Unknown"].as_u64().unwrap(), sum, "all in Unknown");
        assert_eq!(brief["Anonymous"], 0);
        pod.sandbox.resume_all().await.unwrap();
        for c in &all {
            c.end().await;
        }
    });
}

fn usage_files_are_read_with_no_call_while_the_pod_is_frozen() {
    world(async |w| {
        let pod = w.pod().await;
        let c = holder(&pod).await;
        let client = Client::to(&pod).await;
        let (reply, fds) = client
            .call_with("Usage.UsageFD", json!({"Version": 1}), &[])
            .await;
        assert_eq!(
            reply["result"],
            json!({"cgroups": [pod.id(), c.id]}),
            "{reply}"
        );
        let files: Vec<File> = fds.into_iter().map(File::from).collect();
        assert_eq!(files.len(), 4);
        let read = |at: usize| {
            let mut bytes = vec![0; 16384];
            let len = files[at].read_at(&mut bytes, 0).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        let used = |at: usize| read(at).trim().parse::<u64>().unwrap();
        pod.sandbox.pause_all().await.unwrap();
        near(
            used(2),
            total(&w.cgroup_dir("memory", &c.id)),
            "the container's",
        );
        near(
            value(&read(3), &["total_shmem", "shmem"]),
            24 * MIB,
            "tmpfs",
        );
        assert!(used(0) < 8 * MIB, "the sandbox's");
        pod.sandbox.resume_all().await.unwrap();
        let before = used(2);
        assert_eq!(
            c.exec_sh("dd if=/dev/zero of=/dev/shm/u bs=1M count=20")
                .await
                .0,
            0
        );
        assert!(
            used(2) >= before + 19 * MIB,
            "the same file tells what came since"
        );
        c.end().await;
    });
}

fn usage_refuses_what_it_does_not_know() {
    world(async |w| {
        let pod = w.pod().await;
        let client = Client::to(&pod).await;
        let cases = [
            (
                "Usage.Collect",
                json!({"full": true}),
                "InvalidArgument",
                "full",
            ),
            ("Usage.Collect", json!("c1"), "InvalidArgument", "string"),
            (
                "Usage.UsageFD",
                json!({"Version": 2}),
                "InvalidArgument",
                "Version: 2",
            ),
            ("Usage.UsageFD", Value::Null, "InvalidArgument", "null"),
            ("Usage.Nope", Value::Null, "NotSupported", "unknown method"),
        ];
        for (method, arg, kind, word) in cases {
            let (reply, _) = client.call_with(method, arg, &[]).await;
            assert_eq!(reply["kind"], kind, "{method}: {reply}");
            assert!(reply["err"].as_str().unwrap().contains(word), "{reply}");
        }
    });
}
