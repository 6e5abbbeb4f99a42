//! A tree with a block device in it is built before its container's cgroup is joined.

use std::path::PathBuf;

use berm_plan::{Attr, ContainerFacts, DeviceFs, Ids, Image, Rootfs};

use crate::given::{Given, facts, names};

/// Facts of a pod with the host's ids.
fn host() -> ContainerFacts {
    ContainerFacts {
        ids: Ids::default(),
        ..facts()
    }
}

pub(crate) fn on_a_device(image: Option<Image>) -> Rootfs {
    Rootfs::Fs(DeviceFs {
        fs: "ext4".into(),
        source: PathBuf::from("/s/1"),
        image,
        options: Vec::new(),
        attr: Attr::default(),
    })
}

fn volume(fs: &str, source: &str) -> Given {
    Given::cri_container().mount("/data", fs, source, &[])
}

#[test]
fn it_joins_after_the_last_mount_and_is_not_born_there() {
    let facts_of = |rootfs| ContainerFacts { rootfs, ..facts() };
    let upper = |text: &str| ContainerFacts {
        rootfs_upper: text.parse().unwrap(),
        ..facts()
    };
    let readonly = Given::cri_container().set("/root/readonly", true);
    let cases = [
        (
            Given::cri_container(),
            facts_of(on_a_device(Some(Image::default()))),
            true,
        ),
        (Given::cri_container(), facts_of(on_a_device(None)), true),
        (volume("ext4", "/dev/vdb"), host(), true),
        (volume("xfs", "/srv/disk"), host(), true),
        // A layer of the container's own in a file.
        (Given::cri_container(), upper("self,size=1m"), true),
        (Given::cri_container(), upper("dir=/x"), true),
        // These open no device.
        (Given::cri_container(), upper("memory"), false),
        (readonly, upper("self"), false),
        (volume("nfs", "server:/export"), host(), false),
        (volume("cifs", "//server/share"), host(), false),
        (volume("9p", "tag"), host(), false),
        (Given::cri_container(), host(), false),
        (Given::cri_container(), facts(), false),
    ];
    for (given, facts, late) in cases {
        let plan = given.container(&facts).unwrap();
        assert_eq!(plan.joins_late, late, "{:?}", facts.rootfs);
        let names = names(&plan.steps);
        let at = |name: &str| names.iter().position(|n| *n == name).unwrap();
        let last_mount = names.iter().rposition(|n| *n == "Mount").unwrap();
        let want = if late { last_mount + 1 } else { 1 };
        assert_eq!(at("JoinCgroups"), want, "{names:?}");
    }
}
