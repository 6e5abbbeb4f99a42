//! The arrows of the design: which room may know which, and which outside crate is whose.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot read the graph fails.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// shim → sandbox → {plan, stage → mount, cgroup, urpc} → sys. Types may be shared downwards:
/// a plan is made of cgroup's and seccomp's, stage and mount carry it out.
const ROOMS: &[(&str, &[&str])] = &[
    ("berm", &["berm-sandbox", "berm-shim", "berm-sys"]),
    ("berm-shim", &["berm-sandbox", "berm-sys"]),
    (
        "berm-sandbox",
        &[
            "berm-plan",
            "berm-stage",
            "berm-mount",
            "berm-cgroup",
            "berm-metrics",
            "berm-urpc",
            "berm-sys",
        ],
    ),
    ("berm-plan", &["berm-cgroup", "berm-seccomp", "berm-sys"]),
    (
        "berm-stage",
        &[
            "berm-plan",
            "berm-mount",
            "berm-cgroup",
            "berm-seccomp",
            "berm-sys",
        ],
    ),
    ("berm-mount", &["berm-plan", "berm-sys"]),
    ("berm-seccomp", &["berm-sys"]),
    ("berm-cgroup", &["berm-sys"]),
    ("berm-urpc", &["berm-sys"]),
    ("berm-metrics", &["berm-sys"]),
    ("berm-init", &[]),
    ("berm-sys", &[]),
    ("berm-testkit", &["berm-sys"]),
];

/// Outside crates that only these rooms may know.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("ttrpc", &["berm-shim", "berm-testkit"]),
    ("containerd-shim", &["berm-shim", "berm-testkit"]),
    ("containerd-shim-protos", &["berm-shim", "berm-testkit"]),
    ("oci-spec", &["berm-plan", "berm-testkit"]),
    ("clap", &["berm", "berm-testkit"]),
    ("anyhow", &[]),
];

/// Each package of the workspace with what it depends on, but for its tests.
fn graph() -> BTreeMap<String, Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--manifest-path",
            manifest,
        ])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata");
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let depends = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dep| dep["kind"] != "dev").map(name).collect()
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| (name(package), depends(package)))
        .collect()
}

#[test]
fn rooms_depend_only_on_the_rooms_that_the_design_names() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (room, depends) in graph() {
        let Some(may) = allowed.get(room.as_str()) else {
            wrong.push(format!("{room} is not in the design"));
            continue;
        };
        let rooms = depends.iter().filter(|dep| dep.starts_with("berm-"));
        wrong.extend(
            rooms
                .filter(|dep| !may.contains(&dep.as_str()))
                .map(|dep| format!("{room} → {dep}")),
        );
    }
    assert!(
        wrong.is_empty(),
        "arrows that the design does not have: {wrong:#?}"
    );
}

#[test]
fn outside_crates_are_known_only_to_their_rooms() {
    let mut wrong = Vec::new();
    for (room, depends) in graph() {
        for (outside, may) in OUTSIDE {
            if depends.iter().any(|dep| dep == outside) && !may.contains(&room.as_str()) {
                wrong.push(format!("{room} → {outside}"));
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside their room: {wrong:#?}");
}
