//! Device nodes and who may use them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::world::{World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    nodes_have_type_mode_and_owner_and_0666_without_a_mode,
    a_node_on_a_tmpfs_of_the_pod_opens_where_the_rules_allow_it,
    a_wildcard_allows_every_device_of_a_major_number,
    a_raw_block_volume_is_read_and_written_by_the_pod,
];

fn allow(rules: &Value) -> Value {
    let mut all = vec![json!({"allow": false, "access": "rwm"})];
    all.extend(rules.as_array().unwrap().iter().cloned());
    json!({"devices": all})
}

fn nodes_have_type_mode_and_owner_and_0666_without_a_mode() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod
            .sh("stat -c '%F %a %u:%g %t,%T' /dev/m /dev/b /opt/deep/p /dev/u")
            .set(
                "/linux/devices",
                json!([
                    {"path": "/dev/m", "type": "c", "major": 1, "minor": 1},
                    {"path": "/dev/b", "type": "b", "major": 7, "minor": 3, "fileMode": 432,
                     "uid": 1000, "gid": 2000},
                    {"path": "/opt/deep/p", "type": "p", "fileMode": 4516, "uid": 1000},
                    {"path": "/dev/u", "type": "u", "major": 1, "minor": 5, "fileMode": 0},
                ]),
            );
        let want = "character special file 666 0:0 1,1\nblock special file 660 1000:2000 7,3\n\
            fifo 644 1000:0 0,0\ncharacter special file 0 0:0 1,5\n";
        assert_eq!(container.output().await, (0, want.into()));
    });
}

fn a_node_on_a_tmpfs_of_the_pod_opens_where_the_rules_allow_it() {
    world(async |w| {
        let pod = w.pod().await;
        let zero = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5},
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
        let script = "head -c 2 /dev/mine | wc -c; head -c 1 /dev/fuse 2>&1; \
            head -c 2 /etc/dev/mine | wc -c";
        let rule = json!([{"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}]);
        let mut devices = zero.clone();
        let in_image = json!({"path": "/etc/dev/mine", "type": "c", "major": 1, "minor": 5});
        devices.as_array_mut().unwrap().push(in_image);
        let container = pod
            .sh(script)
            .set("/linux/devices", devices)
            .set("/linux/resources", allow(&rule));
        let (_, text) = container.output().await;
        let refused = "head: /dev/fuse: Operation not permitted\n";
        assert_eq!(text, format!("2\n{refused}2\n"));
    });
}

fn a_wildcard_allows_every_device_of_a_major_number() {
    world(async |w| {
        let pod = w.pod().await;
        // Of its own: that of somebody else may go while it is opened.
        let (disk, _) = Loop::new(w);
        let nodes = json!([{"path": "/dev/misc1", "type": "c", "major": 10, "minor": 229, "fileMode": 438},
            {"path": "/dev/misc2", "type": "c", "major": 10, "minor": 237, "fileMode": 438},
            {"path": "/dev/other", "type": "b", "major": 7, "minor": disk.minor(), "fileMode": 438}]);
        let script = "for d in misc1 misc2 other; do ( : < /dev/$d ) && echo $d; done; :";
        for (rule, want) in [
            (
                json!([{"allow": true, "type": "c", "major": 10, "access": "rw"}]),
                "misc1\nmisc2\n/bin/sh: can't open /dev/other: Operation not permitted\n",
            ),
            (
                json!([{"allow": true, "access": "rwm"}]),
                "misc1\nmisc2\nother\n",
            ),
        ] {
            let container = pod
                .sh(script)
                .set("/linux/devices", nodes.clone())
                .set("/linux/resources", allow(&rule));
            assert_eq!(container.output().await, (0, want.into()), "{rule}");
        }
    });
}

/// A loop device, detached when it is dropped.
pub(crate) struct Loop(PathBuf);

impl Loop {
    fn new(w: &World) -> (Self, PathBuf) {
        let file = w.dir("disk").join("image");
        fs::write(&file, vec![0; 1 << 20]).unwrap();
        (Self::of(&file), file)
    }

    /// One that shows this file.
    pub(crate) fn of(file: &Path) -> Self {
        let out = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        Self(String::from_utf8(out.stdout).unwrap().trim().into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn minor(&self) -> u32 {
        let path = self.0.to_str().unwrap();
        path.trim_start_matches("/dev/loop").parse().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

fn a_raw_block_volume_is_read_and_written_by_the_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let (disk, file) = Loop::new(w);
        let minor = disk.minor();
        let node = json!([{"path": "/dev/xvda", "type": "b", "major": 7, "minor": minor,
            "fileMode": 432, "gid": 6}]);
        let rule =
            json!([{"allow": true, "type": "b", "major": 7, "minor": minor, "access": "rwm"}]);
        let script = "echo hello | dd of=/dev/xvda bs=512 seek=1 conv=notrunc,fsync 2>/dev/null; \
            dd if=/dev/xvda bs=512 skip=1 count=1 2>/dev/null | head -n1";
        let container = pod
            .sh(script)
            .set("/linux/devices", node)
            .set("/linux/resources", allow(&rule));
        assert_eq!(container.output().await, (0, "hello\n".into()));
        drop(disk);
        assert_eq!(&fs::read(file).unwrap()[512..518], b"hello\n");
    });
}
