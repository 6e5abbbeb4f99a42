//! `Logging.Change`: what the owner of the sandbox is told.

use std::cell::RefCell;

use berm_sandbox::LogChange;
use berm_testkit::cases::Case;
use log::LevelFilter;
use serde_json::{Value, json};

use crate::control::Client;
use crate::world::{Pod, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_change_of_logging_reaches_the_owner_of_the_sandbox,
    a_change_of_logging_without_an_owners_way_is_of_the_level_alone,
    a_change_of_logging_is_refused_by_what_is_wrong_with_it,
];

thread_local! {
    static TOLD: RefCell<Vec<LogChange>> = const { RefCell::new(Vec::new()) };
}

fn tell(change: &LogChange) -> bool {
    TOLD.with_borrow_mut(|told| told.push(change.clone()));
    change.level != Some(LevelFilter::Info)
}

async fn change(pod: &Pod<'_>, arg: Value) -> Value {
    let client = Client::to(pod).await;
    client.call_with("Logging.Change", arg, &[]).await.0
}

fn a_change_of_logging_reaches_the_owner_of_the_sandbox() {
    world_with(
        |config| config.change_logging = Some(tell),
        async |w| {
            let pod = w.pod().await;
            // As gVisor's client sends it.
            let sent = json!({"SetLevel": true, "Level": 2, "SetLogPackets": false,
                "LogPackets": false, "SetStrace": false, "EnableStrace": false,
                "StraceAllowlist": null, "SetEventStrace": false, "EnableEventStrace": false,
                "StraceEventAllowlist": null});
            assert_eq!(change(&pod, sent).await["result"], 0);
            let targets = json!({"berm_sandbox::exec": "trace", "ttrpc": "off"});
            let sent = json!({"SetTargets": true, "Targets": targets});
            assert_eq!(change(&pod, sent).await["result"], 0);
            let told = TOLD.take();
            assert_eq!(
                (told[0].level, &told[0].targets),
                (Some(LevelFilter::Debug), &None)
            );
            let targets = [
                ("berm_sandbox::exec".to_owned(), LevelFilter::Trace),
                ("ttrpc".to_owned(), LevelFilter::Off),
            ];
            assert_eq!(told[1].targets.as_deref(), Some(&targets[..]));
            // An owner without a log says so.
            let reply = change(&pod, json!({"SetLevel": true, "Level": 1})).await;
            assert_eq!(reply["kind"], "FailedPrecondition", "{reply}");
        },
    );
}

fn a_change_of_logging_without_an_owners_way_is_of_the_level_alone() {
    world(async |w| {
        let pod = w.pod().await;
        let before = log::max_level();
        assert_eq!(
            change(&pod, json!({"SetLevel": true, "Level": 0})).await["result"],
            0
        );
        assert_eq!(log::max_level(), LevelFilter::Warn);
        log::set_max_level(before);
        let reply = change(&pod, json!({"SetTargets": true, "Targets": {"a": "info"}})).await;
        assert_eq!(reply["kind"], "NotSupported", "{reply}");
    });
}

fn a_change_of_logging_is_refused_by_what_is_wrong_with_it() {
    world(async |w| {
        let pod = w.pod().await;
        let cases = [
            (
                json!({"SetLevel": true, "Level": 3}),
                "InvalidArgument",
                "Level: 3",
            ),
            (
                json!({"SetLevel": true, "level": 1}),
                "InvalidArgument",
                "level",
            ),
            (
                json!({"SetTargets": true, "Targets": {"a": "loud"}}),
                "InvalidArgument",
                "loud",
            ),
            (
                json!({"SetTargets": true, "Targets": {"": "info"}}),
                "InvalidArgument",
                "Targets",
            ),
            (json!({"SetStrace": true}), "NotSupported", "SetStrace"),
            (
                json!({"SetLogPackets": true}),
                "NotSupported",
                "SetLogPackets",
            ),
            (
                json!({"SetEventStrace": true}),
                "NotSupported",
                "SetEventStrace",
            ),
            (Value::Null, "InvalidArgument", "null"),
        ];
        for (arg, kind, word) in cases {
            let reply = change(&pod, arg).await;
            assert_eq!(reply["kind"], kind, "{reply}");
            assert!(reply["err"].as_str().unwrap().contains(word), "{reply}");
        }
    });
}
