//! `linux.netDevices`

use berm_plan::{NetDevice, Step};
use serde_json::{Value, json};

use crate::given::{Given, facts, names, only, root_facts};

const FIELD: &str = "/linux/netDevices";

fn device(name: &str, inside: &str) -> NetDevice {
    NetDevice {
        name: name.into(),
        inside: inside.into(),
    }
}

#[test]
fn devices_move_in_the_order_of_their_names_before_the_netns_is_joined() {
    let devices = json!({"eth1": {"name": "net0"}, "eth0": {}, "eth2": {"name": ""}});
    for (given, facts) in [
        (Given::cri_container(), facts()),
        (Given::ctr_run(), root_facts()),
    ] {
        let plan = given.set(FIELD, devices.clone()).container(&facts).unwrap();
        let got = only(&plan.steps, |step| match step {
            Step::NetDevices(devices) => Some(devices.clone()),
            _ => None,
        });
        let want = [
            device("eth0", "eth0"),
            device("eth1", "net0"),
            device("eth2", "eth2"),
        ];
        assert_eq!(got, want);
        let names = names(&plan.steps);
        let at = |name| names.iter().position(|n| *n == name).unwrap();
        assert_eq!(at("NetDevices") + 1, at("JoinNetIpc"));
    }
}

#[test]
fn the_devices_of_a_sandbox_are_its_own_and_those_of_a_root_container_come_with_its_steps() {
    let devices = json!({"eth1": {}});
    let plan = Given::cri_sandbox()
        .set(FIELD, devices.clone())
        .pod()
        .unwrap();
    assert_eq!(plan.net_devices, [device("eth1", "eth1")]);
    let plan = Given::ctr_run().set(FIELD, devices).pod().unwrap();
    assert_eq!(plan.net_devices, []);
}

#[test]
fn devices_in_the_hosts_network_are_refused() {
    let want = "linux.netDevices: the network namespace is the host's, where the devices are \
        already; add a namespace of type \"network\", or drop them";
    let host = Given::ctr_run().namespaces(&[("pid", ""), ("ipc", ""), ("uts", ""), ("mount", "")]);
    let error = host.set(FIELD, json!({"eth1": {}})).pod().unwrap_err();
    assert_eq!(error.to_string(), want);
    let mut shared = facts();
    shared.shares.net = true;
    let given = Given::cri_container().set(FIELD, json!({"eth1": {}}));
    assert_eq!(given.container(&shared).unwrap_err().to_string(), want);
    let given = Given::cri_container().set(FIELD, json!({}));
    given.container(&shared).unwrap();
}

#[test]
fn a_name_is_one_that_the_kernel_takes_and_given_once() {
    let error = |devices: Value| {
        let given = Given::cri_container().set(FIELD, devices);
        given.container(&facts()).unwrap_err().to_string()
    };
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\u{b}",
        "eth%d",
        "a234567890123456",
        "\u{a0}",
    ] {
        let text = error(json!({(name): {}}));
        assert!(text.starts_with("linux.netDevices[\""), "{text}");
        assert!(
            text.contains("is no name of a network device; use 1 to 15"),
            "{text}"
        );
        if !name.is_empty() {
            let text = error(json!({"eth0": {"name": name}}));
            assert!(
                text.starts_with("linux.netDevices[\"eth0\"].name: "),
                "{text}"
            );
        }
    }
    let text = error(json!({"a": {"name": "x"}, "b": {"name": "x"}}));
    let want =
        "linux.netDevices[\"b\"]: \"a\" gets the name \"x\" too; give each a name of its own";
    assert_eq!(text, want);
}
