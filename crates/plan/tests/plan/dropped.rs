//! Nothing of a spec is silently dropped, and no spec makes the planner panic.

use berm_plan::{Error, RootfsMount, Spec, resources, rootfs};
use serde_json::Value;

use crate::given::{Given, auto_ids, facts, root_facts};

/// Every object key of a document, as JSON pointers; those of maps with free keys are left out.
fn keys(value: &Value, at: &str, found: &mut Vec<String>) {
    const FREE: [&str; 2] = ["/annotations", "/linux/sysctl"];
    match value {
        Value::Object(_) if FREE.contains(&at) => {}
        Value::Object(map) => {
            for (key, value) in map {
                let pointer = format!("{at}/{key}");
                keys(value, &pointer, found);
                found.push(pointer);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                keys(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// `/mounts/3/type` as errors spell it: `mounts[3].type`.
fn spelled(pointer: &str) -> String {
    pointer
        .split('/')
        .skip(1)
        .fold(String::new(), |at, part| match part.parse::<usize>() {
            Ok(index) => format!("{at}[{index}]"),
            Err(_) if at.is_empty() => part.to_owned(),
            Err(_) => format!("{at}.{part}"),
        })
}

#[test]
fn no_key_of_a_real_spec_is_dropped_when_its_name_is_wrong() {
    for given in [
        Given::cri_container(),
        Given::cri_sandbox(),
        Given::ctr_run(),
    ] {
        let mut found = Vec::new();
        keys(&given.0, "", &mut found);
        assert!(found.len() > 50);
        for pointer in found {
            // Long lists of rules that are all alike need no row each.
            if pointer.contains("/syscalls/") && !pointer.contains("/syscalls/1/") {
                continue;
            }
            let value = given.0.pointer(&pointer).unwrap().clone();
            let wrong = format!("{pointer}X");
            let error = given
                .clone()
                .without(&pointer)
                .set(&wrong, value)
                .parse()
                .unwrap_err();
            let field = spelled(&wrong);
            let named = error
                .to_string()
                .starts_with(&format!("{field}: not known"));
            let missing =
                matches!(&error, Error::Json { reason, .. } if reason.contains("missing"));
            assert!(named || missing, "{field}: {error}");
        }
    }
}

#[test]
fn a_damaged_spec_is_an_error_or_a_plan_but_no_panic() {
    for given in [
        Given::cri_container(),
        Given::cri_sandbox(),
        Given::ctr_run(),
    ] {
        let json = given.0.to_string().into_bytes();
        for at in (0..json.len()).step_by(211) {
            for byte in [0, b'"', b'}', b'-', b'9', 0xff] {
                let mut damaged = json.clone();
                damaged[at] = byte;
                plan_all(&damaged);
            }
            plan_all(&json[..at]);
        }
    }
}

fn plan_all(json: &[u8]) {
    let Ok(spec) = Spec::parse(json) else { return };
    let results = [
        berm_plan::pod(
            &spec,
            &berm_plan::Policy::default(),
            &berm_plan::PodFacts::default(),
        )
        .err(),
        berm_plan::container(&spec, &facts()).err(),
        berm_plan::container(&spec, &root_facts()).err(),
    ];
    for error in results.into_iter().flatten() {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn a_hostile_mount_list_or_limit_is_an_error() {
    let mount = |options: &str| RootfsMount {
        fstype: "overlay".into(),
        options: options.split(',').map(str::to_owned).collect(),
        ..RootfsMount::default()
    };
    for options in [
        "",
        "lowerdir=",
        "lowerdir=\\",
        "lowerdir=:",
        "uidmap=,lowerdir=/a",
        "=",
        "\n",
    ] {
        let error = rootfs(&[mount(options)], "/r".as_ref(), &auto_ids()).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    for json in [
        "",
        "[]",
        "null",
        "{",
        "{\"cpu\":[]}",
        "{\"pids\":{\"limit\":1e99}}",
    ] {
        assert!(resources(json.as_bytes(), &[]).is_err(), "{json}");
    }
}
