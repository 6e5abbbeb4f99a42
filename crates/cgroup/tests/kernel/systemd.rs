//! Scopes of a real systemd, where it runs (`make test-guest`).

use std::path::Path;
use std::process::{Child, Command};

use berm_cgroup::{Cgroup, Cpu, DeviceRule, Host, Memory, Mode, Place, Resources, Unit};
use berm_sys::Kind;

use super::{soon, until};

/// A process to build a scope around.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn place(name: &str) -> Place {
    let pid = std::process::id();
    Place::parse(&format!("berm-test{pid}.slice:berm:{name}")).unwrap()
}

fn limits(memory: i64, quota: i64) -> Resources {
    Resources {
        memory: Memory {
            limit: Some(memory),
            ..Memory::default()
        },
        cpu: Cpu {
            quota: Some(quota),
            period: Some(100_000),
            shares: Some(1024),
            ..Cpu::default()
        },
        pids: Some(50),
        devices: Some(DeviceRule::defaults()),
        ..Resources::default()
    }
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_scope_is_started_limited_updated_and_stopped() {
    if !Path::new("/run/systemd/system").is_dir() {
        let unit = place("none").unit.unwrap();
        let error = unit.start(1, &Resources::default(), soon()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotSupported, "{error}");
        assert!(error.to_string().contains("cgroupfs"), "{error}");
        unit.stop(soon()).unwrap();
        return;
    }
    let host = Host::detect().unwrap();
    if host.mode() != Mode::V2 {
        assert_eq!(host.refuse_scopes().unwrap_err().kind(), Kind::NotSupported);
        return;
    }
    let place = place("one");
    let unit = place.unit.unwrap();
    let sleeper = Sleeper::new();
    let first = limits(64 << 20, 50_500);
    unit.start(sleeper.0.id(), &first, soon()).unwrap();
    let cgroup = Cgroup::adopt(&host, &place.path, &unit).unwrap();
    cgroup.limit(&first).unwrap();
    let dir = host.views(&place.path).remove(0).host_dir;
    let read = |file: &str| {
        std::fs::read_to_string(dir.join(file))
            .unwrap()
            .trim()
            .to_owned()
    };
    let figures = || ["memory.max", "cpu.max", "cpu.weight", "pids.max"].map(read);
    assert_eq!(figures(), ["67108864", "51000 100000", "100", "50"]);
    assert!(
        read("cgroup.controllers").contains("hugetlb"),
        "systemd hands that down not itself"
    );

    let again = unit.start(sleeper.0.id(), &first, soon()).unwrap_err();
    assert_eq!(again.kind(), Kind::AlreadyExists, "{again}");

    cgroup.update(&limits(32 << 20, 20_000), soon()).unwrap();
    assert_eq!(figures(), ["33554432", "20000 100000", "100", "50"]);
    systemctl(&["daemon-reload"]);
    assert_eq!(
        figures(),
        ["33554432", "20000 100000", "100", "50"],
        "after a reload"
    );
    let shown = systemctl(&[
        "show",
        &unit.to_string(),
        "-p",
        "MemoryMax",
        "-p",
        "Delegate",
    ]);
    assert!(
        shown.contains("MemoryMax=33554432") && shown.contains("Delegate=yes"),
        "{shown}"
    );

    let mut refused = limits(16 << 20, 30_000);
    refused.unified = vec![("memory.high".into(), "nonsense".into())];
    cgroup.update(&refused, soon()).unwrap_err();
    assert_eq!(
        figures(),
        ["33554432", "20000 100000", "100", "50"],
        "nothing stays"
    );

    assert_eq!(cgroup.pids().unwrap(), [sleeper.0.id().cast_signed()]);
    unit.stop(soon()).unwrap();
    until("the directory is gone", || !dir.exists());
    Unit::of(&place.path).unwrap().stop(soon()).unwrap();
    assert_eq!(
        cgroup.update(&first, soon()).unwrap_err().kind(),
        Kind::NotFound
    );
    assert!(!systemctl(&["list-units", "--all", "--no-legend"]).contains(&unit.to_string()));
    systemctl(&["stop", &format!("berm-test{}.slice", std::process::id())]);
}
