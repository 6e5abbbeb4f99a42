//! Device rules, observed by a process that opens real nodes.

use berm_cgroup::{Access, DeviceRule, DeviceType, Host, Resources};
use rustix::fs::{FileType, Mode, makedev, mknodat};

use super::child::Child;
use super::{Scratch, host_with};

/// Nodes of /dev/null's and /dev/zero's numbers under names of our own.
struct Nodes(std::path::PathBuf);

impl Nodes {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("berm-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        for (name, minor) in [("null", 3), ("zero", 5)] {
            let (at, mode) = (dir.join(name), Mode::from_raw_mode(0o666));
            mknodat(
                rustix::fs::CWD,
                at,
                FileType::CharacterDevice,
                mode,
                makedev(1, minor),
            )
            .unwrap();
        }
        Self(dir)
    }

    fn at(&self, how: &str, name: &str) -> String {
        format!("{how}={}", self.0.join(name).display())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn rule(allow: bool, minor: Option<u32>, access: &str) -> DeviceRule {
    let access = Access::parse(access).unwrap();
    DeviceRule {
        allow,
        node: DeviceType::Char,
        major: Some(1),
        minor,
        access,
    }
}

fn all(allow: bool) -> DeviceRule {
    let (node, access) = (DeviceType::All, Access::ALL);
    DeviceRule {
        allow,
        node,
        major: None,
        minor: None,
        access,
    }
}

/// Sets rules one after the other on the same cgroup and lets a child try each time.
fn observe(host: &std::sync::Arc<Host>, name: &str) {
    let nodes = Nodes::new(name);
    let scratch = Scratch::new(host, name);
    let tries = ["null", "zero"].map(|node| ["r", "w", "rw"].map(|how| nodes.at(how, node)));
    let job = format!("open {}", tries.concat().join(" "));
    let mut defaults = vec![all(false)];
    defaults.extend(DeviceRule::defaults());
    type Row = (Vec<DeviceRule>, [bool; 6]);
    let rows: [Row; 6] = [
        (
            vec![all(false), rule(true, Some(3), "rw")],
            [true, true, true, false, false, false],
        ),
        (
            vec![all(false), rule(true, Some(3), "r")],
            [true, false, false, false, false, false],
        ),
        (vec![all(true)], [true; 6]),
        (
            vec![all(true), rule(false, Some(5), "w")],
            [true, true, true, true, false, false],
        ),
        (vec![], [false; 6]),
        (defaults, [true; 6]),
    ];
    for (rules, want) in rows {
        let shown = format!("{rules:?}");
        scratch
            .cgroup
            .limit(&Resources {
                devices: Some(rules),
                ..Resources::default()
            })
            .unwrap();
        let mut child = Child::join(&scratch.cgroup, &job);
        child.go();
        let got = [(); 6].map(|()| child.expect("opened") == "true");
        assert_eq!(got, want, "{shown}");
    }
}

#[test]
fn v1_rules_decide_what_a_process_may_open() {
    let host = super::host();
    observe(&host, "devices-v1");
}

/// A cgroup2 enforces device programs even if it has no controller; without the devices
/// hierarchy of v1 the program is what is used.
#[test]
fn a_device_program_on_cgroup2_decides_what_a_process_may_open() {
    observe(&host_with(|line| !line.ends_with(",devices")), "devices-v2");
}
