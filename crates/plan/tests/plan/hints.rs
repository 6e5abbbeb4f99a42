//! Mount hints: what is read, what is refused, and what becomes of a mount.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berm_plan::{
    Atime, Attr, ContainerFacts, Error, HintType, Ids, Mount, MountHints, PodFacts, PodPlan,
    Policy, Share, Source, Step, pod,
};
use serde_json::json;

use crate::given::{Given, auto_ids, facts, only};

const DIR: &str = "/pods/p1/cache";

fn annotated(list: &[(&str, &str)]) -> Given {
    let annotate = |given: Given, (key, value): &(&str, &str)| {
        given.set(&format!("/annotations/{key}"), *value)
    };
    list.iter().fold(Given::cri_sandbox(), annotate)
}

fn planned(given: &Given) -> Result<PodPlan, Error> {
    let facts = PodFacts {
        volumes: BTreeMap::from([("found".to_owned(), PathBuf::from("/kubelet/found"))]),
        ..PodFacts::default()
    };
    pod(&given.parse()?, &Policy::default(), &facts)
}

/// A hint of this type for [`DIR`].
fn hint(kind: &str, options: &str) -> MountHints {
    let given = annotated(&[
        ("dev.berm.mount.cache.source", DIR),
        ("dev.berm.mount.cache.type", kind),
        ("dev.berm.mount.cache.share", "pod"),
        ("dev.berm.mount.cache.options", options),
    ]);
    planned(&given).unwrap().hints
}

fn with(hints: MountHints) -> ContainerFacts {
    ContainerFacts { hints, ..facts() }
}

fn mount_of(given: &Given, facts: &ContainerFacts) -> Result<Mount, Error> {
    let plan = given.container(facts)?;
    Ok(only(&plan.steps, |step| match step {
        Step::Mount(mount) if mount.target == std::path::Path::new("/cache") => Some(mount.clone()),
        _ => None,
    }))
}

fn volume(options: &[&str]) -> Given {
    Given::cri_container().mount("/cache", "bind", DIR, options)
}

#[test]
fn hints_are_read_of_both_prefixes_and_kept_with_gvisors_keys() {
    let given = annotated(&[
        ("dev.gvisor.spec.mount.a.source", "/x"),
        ("dev.gvisor.spec.mount.a.type", "tmpfs"),
        ("dev.gvisor.spec.mount.a.share", "container"),
        ("dev.gvisor.spec.mount.a.options", "size=1m,noexec"),
        ("dev.berm.mount.b.source", "/y/"),
        ("dev.berm.mount.b.type", "bind"),
        ("dev.gvisor.spec.mount.b.share", "shared"),
        ("dev.berm.mount.b.share", "shared"),
        ("dev.gvisor.spec.mount.found.type", "tmpfs"),
        ("dev.gvisor.spec.mount.found.share", "pod"),
    ]);
    let hints = planned(&given).unwrap().hints;
    let want = json!({"mounts": {
        "a": {"name": "a", "share": 1,
            "mount": {"type": "tmpfs", "source": "/x", "options": ["size=1m", "noexec"]}},
        "b": {"name": "b", "share": 3, "mount": {"type": "bind", "source": "/y/"}},
        "found": {"name": "found", "share": 2,
            "mount": {"type": "tmpfs", "source": "/kubelet/found"}},
    }});
    assert_eq!(serde_json::to_value(&hints).unwrap(), want);
    assert_eq!(
        serde_json::from_value::<MountHints>(want).unwrap(),
        hints,
        "what is written is read"
    );
    let b = hints.find("/y".as_ref()).unwrap();
    assert_eq!((b.mount.kind, b.share), (HintType::Bind, Share::Shared));
    assert_eq!(given.spec().volumes_to_find(), ["found"]);
    assert!(planned(&Given::cri_sandbox()).unwrap().hints.is_empty());
}

#[test]
fn the_uid_of_a_pod_is_its_annotation_or_in_the_name_of_its_logs() {
    let given = Given::cri_sandbox();
    assert_eq!(
        given.spec().pod_uid(),
        Some("4b1c0f7e-1111-2222-3333-000000000001")
    );
    let key = "/annotations/io.kubernetes.cri.sandbox-uid";
    let logs = "/annotations/io.kubernetes.cri.sandbox-log-directory";
    let given = given
        .without(key)
        .set(logs, "/var/log/pods/default_web_12-34");
    assert_eq!(given.spec().pod_uid(), Some("12-34"));
    assert_eq!(given.set(logs, "/var/log/x").spec().pod_uid(), None);
}

#[test]
fn what_is_wrong_with_a_hint_is_refused_by_its_field() {
    let whole = |field: &'static str, value: &'static str| {
        let all = [
            ("dev.berm.mount.a.source", "/x"),
            ("dev.berm.mount.a.type", "tmpfs"),
            ("dev.berm.mount.a.share", "pod"),
            ("dev.berm.mount.a.options", ""),
        ];
        let changed = |(key, old): (&'static str, &'static str)| match key.ends_with(field) {
            true => (key, value),
            false => (key, old),
        };
        all.map(changed).to_vec()
    };
    let but = |field: &str| {
        let mut all = whole("-", "");
        all.retain(|(key, _)| !key.ends_with(field));
        all
    };
    let and = |key: &'static str, value: &'static str| {
        let mut all = whole("-", "");
        all.push((key, value));
        all
    };
    let long: &'static str = Box::leak(format!("dev.berm.mount.{}.type", "x".repeat(64)).into());
    let cases = [
        (
            whole(".type", "ext4"),
            "mount.a.type\"]: \"ext4\" is neither",
        ),
        (
            whole(".share", "all"),
            "mount.a.share\"]: \"all\" is neither",
        ),
        (
            whole(".share", "shared"),
            "mount.a.share\"]: a tmpfs is the pod's",
        ),
        (
            whole(".source", "x"),
            "mount.a.source\"]: \"x\" is not an abs",
        ),
        (
            whole(".source", ""),
            "mount.a.source\"]: \"\" is not an abs",
        ),
        (whole(".source", "/a\0b"), "mount.a.source\"]: holds a NUL"),
        (
            but(".source"),
            "mount.a.source\"]: missing, and kubelet has no volume \"a\" here",
        ),
        (but(".type"), "mount.a.type\"]: missing"),
        (but(".share"), "mount.a.share\"]: missing"),
        (
            whole(".options", "size=1m,foo=1"),
            "mount.a.options\"] \"foo=1\": no option of a tmpfs",
        ),
        (
            whole(".options", "uid=root"),
            "mount.a.options\"] \"uid=root\": not a value",
        ),
        (
            whole(".options", "size="),
            "mount.a.options\"] \"size\": not a value",
        ),
        (
            whole(".options", "ro,rslave"),
            "mount.a.options\"] \"rslave\": no option of such a hint",
        ),
        (
            whole(".options", "remount"),
            "mount.a.options\"] \"remount\": changes a mount",
        ),
        (
            and("dev.berm.mount.a.size", "1m"),
            "mount.a.size\"]: a hint has no \"size\"",
        ),
        (
            and("dev.gvisor.spec.mount.a.directfs", "off"),
            "mount.a.directfs\"]: of gVisor's file proxy",
        ),
        (
            and("dev.gvisor.spec.mount.a.type", "bind"),
            "mount.a.type\"]: says otherwise than \"dev.berm.mount.a.type\"",
        ),
        (
            vec![("dev.berm.mount.type", "bind")],
            "mount.type\"]: not of the form NAME.FIELD",
        ),
        (
            vec![("dev.berm.mount.a.b.type", "bind")],
            "mount.a.b.type\"]: not of the form NAME.FIELD",
        ),
        (
            vec![("dev.berm.mount..type", "bind")],
            "mount..type\"]: \"\" is no name",
        ),
        (
            vec![("dev.gvisor.spec.mount.a b.type", "bind")],
            "mount.a b.type\"]: \"a b\" is no name",
        ),
        (vec![(long, "bind")], " is no name of letters"),
        (
            [
                whole("-", ""),
                vec![
                    ("dev.gvisor.spec.mount.b.source", "/x/"),
                    ("dev.gvisor.spec.mount.b.type", "bind"),
                    ("dev.gvisor.spec.mount.b.share", "pod"),
                ],
            ]
            .concat(),
            "mount.b.source\"]: the source of hint \"a\" as well",
        ),
    ];
    for (annotations, want) in cases {
        let error = planned(&annotated(&annotations)).unwrap_err().to_string();
        assert!(error.starts_with("annotations[\"dev."), "{error}");
        assert!(error.contains(want), "{want}: {error}");
        // A name as long as it may be quoted makes the one exception.
        assert!(error.len() <= 200 || error.contains("xxxx"), "{error}");
    }
    let bind = [
        ("dev.berm.mount.a.source", "/x"),
        ("dev.berm.mount.a.type", "bind"),
        ("dev.berm.mount.a.share", "pod"),
        ("dev.berm.mount.a.options", "size=1m"),
    ];
    let error = planned(&annotated(&bind)).unwrap_err().to_string();
    let want = "mount.a.options\"] \"size=1m\": no option of such a hint";
    assert!(error.contains(want), "{error}");
}

#[test]
fn a_tmpfs_of_the_pod_has_the_hosts_numbers_and_what_it_names_itself() {
    let made = hint("tmpfs", "size=1m,uid=7,ro")
        .tmpfs(&auto_ids())
        .unwrap();
    let [made] = &made[..] else {
        panic!("{made:?}")
    };
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        made.options,
        [option("size", "1m"), option("uid", "1879048199")]
    );
    assert_eq!(made.name, "cache");
    assert!(made.mode_of_source && !made.owner_of_source);
    let named = hint("tmpfs", "mode=700").tmpfs(&Ids::default()).unwrap();
    assert!(!named[0].mode_of_source && named[0].owner_of_source);
    assert!(hint("bind", "ro").tmpfs(&auto_ids()).unwrap().is_empty());
    let error = hint("tmpfs", "gid=70000").tmpfs(&auto_ids()).unwrap_err();
    let want = "mount hint \"cache\" options \"gid=70000\": outside the id map of the pod";
    assert!(error.to_string().starts_with(want), "{error}");
}

#[test]
fn a_mount_of_the_hints_source_becomes_it_and_has_all_its_restrictions() {
    let hinted = Source::Hinted {
        name: "cache".into(),
    };
    let tmpfs = with(hint("tmpfs", "size=1m,nosuid,noexec,noatime"));
    let want = Attr {
        nosuid: true,
        noexec: true,
        nodev: true,
        atime: Atime::Noatime,
        ..Attr::default()
    };
    let given = volume(&["rbind", "rprivate", "rw", "nodev"]);
    let mount = mount_of(&given, &tmpfs).unwrap();
    assert_eq!((mount.source, mount.attr), (hinted.clone(), want));
    // Also where the spec itself wants a tmpfs, and for no other source.
    let given = Given::cri_container().mount("/cache", "tmpfs", DIR, &["nodev"]);
    let mount = mount_of(&given, &tmpfs).unwrap();
    assert_eq!((mount.source, mount.attr), (hinted, want));
    let below = format!("{DIR}/sub");
    let given = Given::cri_container().mount("/cache", "bind", &below, &["rbind"]);
    let mount = mount_of(&given, &tmpfs).unwrap();
    assert!(matches!(mount.source, Source::Bind { .. }) && mount.attr == Attr::default());
    // A bind stays what it is.
    let bind = with(hint("bind", "ro,nosuid"));
    let mount = mount_of(&volume(&["rbind", "ro"]), &bind).unwrap();
    assert!(matches!(mount.source, Source::Bind { .. }));
    assert!(mount.attr.ro && mount.attr.nosuid);
}

#[test]
fn a_mount_that_does_not_fit_its_hint_is_refused_by_its_field() {
    let looser = |word: &str| {
        format!("mounts[13].options: looser than mount hint \"cache\"; add \"{word}\"")
    };
    let tmpfs = |options: &str| with(hint("tmpfs", options));
    let bind = |options: &str| with(hint("bind", options));
    let own = volume(&["rbind"])
        .set(
            "/mounts/13/uidMappings",
            json!([{"containerID": 0, "hostID": 9, "size": 1}]),
        )
        .set(
            "/mounts/13/gidMappings",
            json!([{"containerID": 0, "hostID": 9, "size": 1}]),
        );
    let as_tmpfs = |options: &[&str]| Given::cri_container().mount("/cache", "tmpfs", DIR, options);
    let label = volume(&["rbind"]).set("/linux/mountLabel", "system_u:object_r:x:s0");
    let cases = [
        (volume(&["rbind", "rw"]), tmpfs("ro"), looser("ro")),
        (volume(&["rbind"]), bind("ro"), looser("ro")),
        (
            volume(&["rbind", "suid"]),
            tmpfs("nosuid"),
            looser("nosuid"),
        ),
        (volume(&["rbind", "dev"]), tmpfs("nodev"), looser("nodev")),
        (volume(&["rbind", "exec"]), bind("noexec"), looser("noexec")),
        (
            volume(&["rbind", "strictatime"]),
            tmpfs("noatime"),
            looser("noatime"),
        ),
        // It would be another directory of the node than those that the spec mounts.
        (
            as_tmpfs(&[]),
            bind(""),
            "mounts[13].type \"tmpfs\": mount hint \"cache\" makes a bind of it".into(),
        ),
        (
            as_tmpfs(&["size=2m"]),
            tmpfs("size=1m"),
            "mounts[13].options \"size\": mount hint \"cache\": the tmpfs is".into(),
        ),
        (
            as_tmpfs(&["tmpcopyup"]),
            tmpfs(""),
            "mounts[13].options \"tmpcopyup\": mount hint \"cache\"".into(),
        ),
        (
            as_tmpfs(&["sync"]),
            tmpfs(""),
            "mounts[13].options \"sync\": mount hint \"cache\"".into(),
        ),
        (
            volume(&["rbind", "rshared"]),
            tmpfs(""),
            "mounts[13].options \"shared\": mount hint \"cache\"".into(),
        ),
        (
            own,
            tmpfs(""),
            "mounts[13].uidMappings: mount hint \"cache\"".into(),
        ),
        (
            label,
            tmpfs(""),
            "linux.mountLabel: the tmpfs of mount hint \"cache\" has no label".into(),
        ),
    ];
    for (given, facts, want) in cases {
        let error = mount_of(&given, &facts).unwrap_err().to_string();
        assert!(error.starts_with(&want), "{want}: {error}");
        assert!(error.len() <= 200, "{error}");
    }
}

#[test]
fn a_container_may_repeat_the_hints_of_its_pod_and_no_others() {
    let facts = with(hint("tmpfs", "size=1m"));
    let repeated = [
        ("dev.berm.mount.cache.source", DIR),
        ("dev.gvisor.spec.mount.cache.type", "tmpfs"),
        ("dev.berm.mount.cache.share", "pod"),
        ("dev.berm.mount.cache.options", "size=1m"),
    ];
    let annotate = |list: &[(&str, &str)]| {
        let one = |given: Given, (key, value): &(&str, &str)| {
            given.set(&format!("/annotations/{key}"), *value)
        };
        list.iter().fold(Given::cri_container(), one)
    };
    annotate(&repeated).container(&facts).unwrap();
    for other in [
        ("dev.berm.mount.cache.source", "/etc"),
        ("dev.gvisor.spec.mount.cache.type", "bind"),
        ("dev.berm.mount.cache.share", "container"),
        ("dev.berm.mount.cache.options", "size=2m"),
        ("dev.berm.mount.cache.size", "2m"),
        ("dev.gvisor.spec.mount.mine.type", "bind"),
    ] {
        let error = annotate(&[other]).container(&facts).unwrap_err();
        let want = format!(
            "annotations[\"{}\"]: not what the pod's sandbox says",
            other.0
        );
        assert!(error.to_string().starts_with(&want), "{error}");
    }
}

#[test]
fn a_pod_has_no_more_hints_than_its_record_can_keep() {
    let many = |count: usize, length: usize| {
        let one = |given: Given, n: usize| {
            let source = format!("/{n}/{}", "x".repeat(length));
            given
                .set(&format!("/annotations/dev.berm.mount.v{n}.type"), "bind")
                .set(&format!("/annotations/dev.berm.mount.v{n}.share"), "pod")
                .set(&format!("/annotations/dev.berm.mount.v{n}.source"), source)
        };
        planned(&(0..count).fold(Given::cri_sandbox(), one))
    };
    assert_eq!(many(64, 900).unwrap().hints.mounts.len(), 64);
    let error = many(65, 1).unwrap_err().to_string();
    assert!(
        error.starts_with("annotations: 65 mount hints, Berm takes 64"),
        "{error}"
    );
    let error = many(64, 1000).unwrap_err().to_string();
    assert!(
        error.contains("bytes of mount hints, Berm takes 65536"),
        "{error}"
    );
}
