//! Hooks: what is read, and how they change the order of a container's steps.

use std::time::Duration;

use berm_plan::Step;
use serde_json::json;

use crate::given::{Given, facts, names};

#[test]
fn a_hook_is_read_whole_and_its_path_is_its_first_argument() {
    let hooks = json!({
        "createRuntime": [
            {"path": "/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 7}, {"path": "/b"}],
        "poststop": [{"path": "/c"}]});
    let plan = Given::cri_container()
        .set("/hooks", hooks)
        .container(&facts())
        .unwrap();
    let hooks = plan.hooks.unwrap();
    let [first, second] = &hooks.create_runtime[..] else {
        panic!("{hooks:?}")
    };
    assert_eq!(first.field, "hooks.createRuntime[0]");
    assert_eq!(
        (&first.args[..], &first.env[..]),
        (&["a".into(), "b".into()][..], &["X=1".into()][..])
    );
    assert_eq!(first.timeout, Some(Duration::from_secs(7)));
    assert_eq!(
        (&second.args[..], &second.env[..], second.timeout),
        (&["/b".into()][..], &[][..], None)
    );
    assert_eq!(hooks.poststop[0].field, "hooks.poststop[0]");
}

#[test]
fn only_hooks_that_look_at_the_tree_change_the_order() {
    let plain = Given::cri_container().set("/root/readonly", true);
    let steps = |given: Given| given.container(&facts()).unwrap().steps;
    let usual = steps(plain.clone());
    assert!(names(&usual).contains(&"Assemble"));
    for kind in ["startContainer", "poststart", "poststop"] {
        let given = plain.clone().set("/hooks", json!({kind: [{"path": "/a"}]}));
        assert_eq!(steps(given), usual, "{kind}");
    }
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let given = plain.clone().set("/hooks", json!({kind: [{"path": "/a"}]}));
        let steps = steps(given);
        assert!(
            steps.contains(&Step::AssembleAt("/bundle/rootfs".into())),
            "{steps:?}"
        );
        let names = names(&steps);
        assert!(
            !names.contains(&"Pivot") && !names.contains(&"Assemble"),
            "{names:?}"
        );
        let tail: Vec<_> = names
            .iter()
            .skip_while(|name| **name != "CloneInit")
            .take(5)
            .copied()
            .collect();
        assert_eq!(
            tail,
            [
                "CloneInit",
                "Session",
                "Hooks",
                "PivotLocked",
                "ReadonlyRoot"
            ]
        );
    }
}

#[test]
fn an_unbindable_mount_is_refused_where_hooks_look_at_the_tree() {
    let given = |kind: &str| {
        Given::cri_container()
            .mount("/v", "bind", "/src", &["bind", "unbindable"])
            .set("/hooks", json!({kind: [{"path": "/a"}]}))
            .container(&facts())
    };
    given("poststart").unwrap();
    let error = given("createRuntime").unwrap_err().to_string();
    assert!(error.contains("].options: an unbindable mount"), "{error}");
}

#[test]
fn a_start_hook_is_confined_as_the_workload_is() {
    let given = Given::cri_container()
        .set("/process/user", json!({"uid": 7, "gid": 8}))
        .set(
            "/hooks",
            json!({"startContainer": [{"path": "/h", "args": ["h", "x"]}]}),
        );
    let plan = given.container(&facts()).unwrap();
    let hook = &plan.hooks.unwrap().start_container[0].exec.steps;
    let end = |steps: &[Step]| {
        let from = steps.iter().position(|s| s.name() == "Bounding").unwrap();
        steps[from..steps.len() - 1].to_vec()
    };
    assert_eq!(end(hook), end(&plan.steps));
    let Some(Step::Exec { args, env }) = hook.last() else {
        panic!("{hook:?}")
    };
    assert_eq!(
        (&args[..], &env[..]),
        (&["h".into(), "x".into()][..], &[][..])
    );
}
