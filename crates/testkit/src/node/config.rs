//! containerd's configuration on a test node, and its CNI network.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::{Error, file};
use crate::image::PAUSE;
use crate::node::{CALL, Setup};
use crate::peers::Peers;

const SNAPSHOTTERS: &str = "'io.containerd.snapshotter.v1.btrfs', \
    'io.containerd.snapshotter.v1.devmapper', \
    'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.zfs', \
    'io.containerd.nri.v1.nri'";

/// What each layer of the snapshotter blockfile starts as.
const SCRATCH: &str = "scratch.ext4";

pub(super) fn write(peers: &Peers, dir: &Path, setup: &Setup) -> Result<(), Error> {
    let mut mkfs = Command::new("mke2fs");
    mkfs.args(["-q", "-t", "ext4"])
        .arg(dir.join(SCRATCH))
        .arg("16m");
    command::run(mkfs, b"", CALL)?.ok()?;
    let cni = dir.join("cni");
    std::fs::create_dir(&cni).map_err(file("mkdir", &cni))?;
    put(
        &dir.join("containerd.toml"),
        &containerd(peers, dir, &cni, setup),
    )?;
    let endpoint = "unix:///run/containerd/containerd.sock";
    let crictl = format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 60\n");
    put(&dir.join("crictl.yaml"), &crictl)?;
    put(&cni.join("10-test.conflist"), &network(dir))
}

fn containerd(peers: &Peers, dir: &Path, cni: &Path, setup: &Setup) -> String {
    let (more, systemd) = (&setup.config, setup.systemd);
    // Without CAP_SYS_RESOURCE no runtime can spare a container more than containerd is spared.
    let restricted = !may_spare();
    let (root, cni, plugins, bin) = (
        dir.join("root"),
        cni.display(),
        peers.cni().display(),
        dir.join("bin"),
    );
    let (root, bin) = (root.display(), bin.display());
    let scratch = dir.join(SCRATCH);
    let scratch = scratch.display();
    format!(
        "version = 4
root = '{root}'
disabled_plugins = [{SNAPSHOTTERS}]
[plugins.'io.containerd.snapshotter.v1.blockfile']
scratch_file = '{scratch}'
fs_type = 'ext4'
mount_options = ['loop']
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = {restricted}
netns_mounts_under_state_dir = true
drain_exec_sync_io_timeout = '5s'
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{plugins}']
conf_dir = '{cni}'
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.berm]
runtime_type = 'io.containerd.berm.v1'
pod_annotations = ['dev.berm.*', 'dev.gvisor.spec.mount.*']
container_annotations = ['dev.berm.*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{bin}/runc'
SystemdCgroup = {systemd}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
BinaryName = '{bin}/crun'
SystemdCgroup = {systemd}
{more}
"
    )
}

/// Whether this machine's root has CAP_SYS_RESOURCE, which lowers oom_score_adj.
fn may_spare() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    set.is_some_and(|set| set >> CAP_SYS_RESOURCE & 1 == 1)
}

/// A bridge without masquerading: pods reach each other and the node. Only a pod with a host port
/// needs iptables, for portmap.
fn network(dir: &Path) -> String {
    let leases = dir.join("leases");
    serde_json::json!({
        "cniVersion": "1.0.0", "name": "test", "plugins": [{
            "type": "bridge", "bridge": "berm0", "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": leases,
                "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }, {
            "type": "portmap", "capabilities": { "portMappings": true },
        }],
    })
    .to_string()
}

fn put(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(file("write", path))
}
