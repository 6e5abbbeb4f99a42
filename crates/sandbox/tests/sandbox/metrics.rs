//! Metrics of a living sandbox: registered at birth, exported, and as registered.

use std::time::Duration;

use berm_sandbox::metrics::{Snapshot, Type, Verifier};
use berm_sandbox::{Phases, Timed};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::control::{Client, until_counted};
use crate::world::{Pod, World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    metrics_that_nobody_asked_for_at_creation_are_refused_and_not_recorded,
    get_registered_metrics_answers_what_the_record_says,
    export_metrics_has_gvisors_keys,
    every_export_is_as_registered_and_its_figures_are_the_cgroups,
    export_metrics_is_filtered_and_a_bad_filter_is_refused_by_its_name,
    phases_of_starts_are_told_as_histograms,
];

fn with_metrics(body: impl AsyncFnOnce(&World)) {
    world_with(
        |config| config.metric_server = Some("127.0.0.1:9469".parse().unwrap()),
        body,
    );
}

/// Compares with a file beside this one, which is compiled in: the test may run on a machine that
/// has no sources.
fn assert_golden(want: &str, value: &Value) {
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    assert!(text == want, "it differs; now it is:\n{text}");
}

async fn call(pod: &Pod<'_>, method: &str, arg: Value) -> Value {
    let client = Client::to(pod).await;
    client.call_with(method, arg, &[]).await.0
}

async fn export(pod: &Pod<'_>, only: &str) -> Snapshot {
    let reply = call(pod, "Metrics.Export", json!({"only_metrics": only})).await;
    assert_eq!(reply["success"], true, "{reply}");
    serde_json::from_value(reply["result"]["snapshot"].clone()).unwrap()
}

/// How many rows are sound.
fn sound(verifier: &mut Verifier, snapshot: &Snapshot) -> usize {
    let json = serde_json::to_string(snapshot).unwrap();
    verifier.check(&serde_json::from_str(&json).unwrap())
}

fn metrics_that_nobody_asked_for_at_creation_are_refused_and_not_recorded() {
    world(async |w| {
        let pod = w.pod().await;
        for method in ["Metrics.GetRegisteredMetrics", "Metrics.Export"] {
            let reply = call(&pod, method, json!({})).await;
            assert_eq!(reply["kind"], "FailedPrecondition", "{reply}");
            let err = reply["err"].as_str().unwrap();
            assert!(
                err.contains(pod.id()) && err.contains("metric_server"),
                "{err}"
            );
        }
        let record = serde_json::to_value(pod.sandbox.record()).unwrap();
        for key in ["registeredMetrics", "metricMetadata", "metricServerAddress"] {
            assert_eq!(record.get(key), None, "{key}");
        }
    });
}

fn get_registered_metrics_answers_what_the_record_says() {
    with_metrics(async |w| {
        let pod = w.pod().await;
        let reply = call(&pod, "Metrics.GetRegisteredMetrics", json!({})).await;
        let registered = &reply["result"]["RegisteredMetrics"];
        let dir = pod.sandbox.record().control_socket_path.parent().unwrap();
        let record = std::fs::read(dir.join("sandbox.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(&record["registeredMetrics"], registered);
        assert_eq!(record["metricServerAddress"], "127.0.0.1:9469");
        assert_eq!(record["metricMetadata"]["engine"], "native");
        assert_golden(include_str!("golden/registered-metrics.json"), registered);
    });
}

fn export_metrics_has_gvisors_keys() {
    with_metrics(async |w| {
        let pod = w.pod().await;
        let c = pod.sh("exec sleep 1000").run().await;
        let only = "^berm_(containers|execs|container_(starts|exits)_total)$";
        let arg = json!({ "only_metrics": only });
        let reply = call(&pod, "Metrics.Export", arg).await;
        let mut result = reply["result"].clone();
        let when = result["snapshot"]["when"].take();
        assert!(when.as_str().unwrap().ends_with('Z'), "{when}");
        assert_golden(include_str!("golden/export.json"), &result);
        let _ = c;
    });
}

fn every_export_is_as_registered_and_its_figures_are_the_cgroups() {
    with_metrics(async |w| {
        let pod = w.pod().await;
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000";
        let mut c = pod.sh(script).run().await;
        assert_eq!(c.line().await, "done");
        until_counted(w, &c.id, 1).await;
        let registered = pod.sandbox.registered_metrics().unwrap();
        let mut verifier = Verifier::new(registered);
        for _ in 0..2 {
            let snapshot = export(&pod, "").await;
            let told = snapshot.data.len();
            assert_eq!(sound(&mut verifier, &snapshot), told);
        }
        let snapshot = export(&pod, "").await;
        let of = |name: &str| {
            let row = snapshot.data.iter().find(|row| row.metric.name == name);
            let row = row.unwrap_or_else(|| panic!("no {name}"));
            row.val.unwrap().value()
        };
        let labels = |name: &str, label: &str| {
            let row = snapshot.data.iter().find(|row| row.metric.name == name);
            row.unwrap().labels[label].clone()
        };
        assert!(of("berm_container_cpu_seconds_total") > 0.001);
        assert!(of("berm_container_memory_usage_bytes") > 4096.0);
        assert_eq!(of("berm_container_tasks"), 1.0);
        assert_eq!(of("berm_container_oom_kills_total"), 0.0);
        assert_eq!(labels("berm_container_tasks", "container"), c.id);
        assert_eq!(
            labels("berm_network_receive_bytes_total", "interface"),
            "lo"
        );
    });
}

fn export_metrics_is_filtered_and_a_bad_filter_is_refused_by_its_name() {
    with_metrics(async |w| {
        let pod = w.pod().await;
        let snapshot = export(&pod, "^berm_containers$").await;
        assert_eq!(snapshot.data.len(), 5);
        assert!(
            snapshot
                .data
                .iter()
                .all(|row| row.metric.r#type == Type::Gauge)
        );
        let refused = async |arg: Value| {
            let reply = call(&pod, "Metrics.Export", arg).await;
            let text = |key: &str| reply[key].as_str().unwrap().to_owned();
            (text("kind"), text("err"))
        };
        let (kind, err) = refused(json!({"only_metrics": "^berm_(x"})).await;
        assert!(
            kind == "InvalidArgument" && err.contains("^berm_(x"),
            "{kind} {err}"
        );
        let (kind, err) = refused(json!({"only_metrics": "^fs_opens$"})).await;
        assert!(
            kind == "NotFound" && err.contains("^fs_opens$"),
            "{kind} {err}"
        );
        let (kind, err) = refused(json!({"OnlyMetrics": "x"})).await;
        assert!(
            kind == "InvalidArgument" && err.contains("OnlyMetrics"),
            "{kind} {err}"
        );
        let e = pod.sandbox.export_metrics("(").unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument);
    });
}

fn phases_of_starts_are_told_as_histograms() {
    with_metrics(async |w| {
        let pod = w.pod().await;
        let ((), phases) = Phases::of(async { berm_sandbox::phase_done("plan") }).await;
        pod.sandbox
            .observe(Timed::Create, &phases, Duration::from_millis(3));
        let snapshot = export(&pod, "^berm_call_phase_seconds$").await;
        let phases: Vec<_> = snapshot
            .data
            .iter()
            .map(|row| row.labels["phase"].as_str())
            .collect();
        assert_eq!(phases, ["plan", "whole"]);
        let whole = snapshot.data[1].histogram.as_ref().unwrap();
        assert_eq!(whole.total.value(), 0.003);
        assert_eq!(whole.buckets.iter().map(|b| b.n).sum::<u64>(), 1);
        let mut verifier = Verifier::new(pod.sandbox.registered_metrics().unwrap());
        assert_eq!(sound(&mut verifier, &snapshot), 2);
    });
}
