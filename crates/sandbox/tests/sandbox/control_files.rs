//! Files of a container's cgroup by name, over the control socket.

use std::fs;
use std::path::PathBuf;

use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::control::{Client, golden, until_counted};
use crate::world::{World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    control_files_are_read_and_written_by_name,
    control_files_are_none_but_those_of_the_cgroups_directory,
    control_files_that_move_or_stop_processes_are_not_written,
    control_files_of_bad_arguments_are_refused,
];

fn file(controller: &str, path: &str, name: &str) -> Value {
    json!({"controller": controller, "path": path, "name": name})
}

fn pids_max(w: &World, id: &str) -> PathBuf {
    w.cgroup_dir("pids", id).join("pids.max")
}

async fn results(client: &Client, write: bool, args: Value) -> Vec<Value> {
    let method = ["Cgroups.ReadControlFiles", "Cgroups.WriteControlFiles"][usize::from(write)];
    let (reply, _) = client.call_with(method, json!({"args": args}), &[]).await;
    assert_eq!(reply["success"], true, "{reply}");
    golden("Cgroups.ControlFiles", &reply["result"]);
    reply["result"]["results"].as_array().unwrap().clone()
}

fn control_files_are_read_and_written_by_name() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let path = format!("/{}", c.id);
        let pids = file("pids", &path, "pids.max");
        let done = results(&client, true, json!([{"file": pids, "value": "77"}])).await;
        assert_eq!(done[0], json!({"value": "", "is_error": false}));
        assert_eq!(fs::read_to_string(pids_max(w, &c.id)).unwrap(), "77\n");
        until_counted(w, &c.id, 1).await;
        until_counted(w, pod.id(), 1).await;
        let read = json!([
            {"file": pids},
            {"file": file("pids", &path, "pids.current")},
            {"file": file("pids", "/", "pids.current")},
        ]);
        let values = results(&client, false, read).await;
        let values: Vec<_> = values.iter().map(|v| v["value"].clone()).collect();
        assert_eq!(values, ["77", "1", "1"]);
        // The kernel's refusal of one file is that file's alone.
        let bad = json!([
            {"file": pids, "value": "many"},
            {"file": pids, "value": "78"},
        ]);
        let done = results(&client, true, bad).await;
        assert_eq!(
            (&done[0]["is_error"], &done[1]["is_error"]),
            (&json!(true), &json!(false))
        );
        let text = done[0]["value"].as_str().unwrap();
        assert!(text.contains("pids.max") && text.contains("many"), "{text}");
        c.end().await;
    });
}

fn control_files_are_none_but_those_of_the_cgroups_directory() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let path = format!("/{}", c.id);
        let outside = format!("../{}/pids.current", pod.id());
        let cases = [
            (file("pids", &path, "pids.nope"), "pids.nope"),
            (file("pids", &path, &outside), "pids.current"),
            (file("pids", &path, ".."), ".."),
            (file("pids", &path, ""), ""),
            (file("pids", "/nope", "pids.max"), "\"nope\" not found"),
            (file("pids", "/..", "pids.max"), "not found"),
            (file("pids", &format!("{path}/.."), "pids.max"), "not found"),
            (file("nope", &path, "pids.max"), "controller"),
        ];
        for (file, word) in cases {
            let found = results(&client, false, json!([{"file": file}])).await;
            assert_eq!(found[0]["is_error"], true, "{file}: {found:?}");
            let text = found[0]["value"].as_str().unwrap();
            assert!(text.contains(word), "{file}: {text}");
        }
        c.end().await;
        let gone = results(
            &client,
            false,
            json!([{"file": file("pids", &path, "pids.max")}]),
        )
        .await;
        assert_eq!(gone[0]["is_error"], true);
    });
}

fn control_files_that_move_or_stop_processes_are_not_written() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let path = format!("/{}", c.id);
        let (controller, names) = match w.v1("freezer", "").is_some() {
            true => ("freezer", ["freezer.state", "cgroup.procs", "tasks"]),
            false => ("cgroup", ["cgroup.freeze", "cgroup.procs", "cgroup.kill"]),
        };
        for name in names {
            let write = json!([{"file": file(controller, &path, name), "value": "1"}]);
            let done = results(&client, true, write).await;
            assert_eq!(done[0]["is_error"], true, "{name}");
            let text = done[0]["value"].as_str().unwrap();
            assert!(text.contains(name) && text.contains("Pause"), "{text}");
        }
        assert_eq!(client.ok("ContainerRuntimeState", json!(c.id)).await, 2);
        c.end().await;
    });
}

fn control_files_of_bad_arguments_are_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let client = Client::to(&pod).await;
        let one = file("pids", "/", "pids.max");
        let many: Vec<Value> = (0..257).map(|_| json!({"file": one})).collect();
        let cases = [
            ("Cgroups.ReadControlFiles", json!({"args": many}), "257"),
            (
                "Cgroups.ReadControlFiles",
                json!({"args": [{"file": one, "value": "1"}]}),
                "args[0]",
            ),
            (
                "Cgroups.WriteControlFiles",
                json!({"args": [{"file": one}]}),
                "args[0].value",
            ),
            ("Cgroups.WriteControlFiles", json!({}), "args"),
            (
                "Cgroups.ReadControlFiles",
                json!({"args": [{"file": "pids.max"}]}),
                "string",
            ),
        ];
        for (method, arg, word) in cases {
            let (reply, _) = client.call_with(method, arg, &[]).await;
            assert_eq!(reply["kind"], "InvalidArgument", "{reply}");
            assert!(reply["err"].as_str().unwrap().contains(word), "{reply}");
        }
        let long = json!([{"file": one, "value": "1".repeat(5000)}]);
        let done = results(&client, true, long).await;
        assert_eq!(done[0]["is_error"], true);
        assert!(done[0]["value"].as_str().unwrap().contains("4096"));
    });
}
