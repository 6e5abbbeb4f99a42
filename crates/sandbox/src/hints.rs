//! What a pod's mount hints ask of the host: to find volumes, and to make tmpfses.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use berm_plan::Spec;
use berm_stage::PodTmpfsJob;

use crate::aside::Aside;
use crate::error::Error;
use crate::live::{Live, Sandbox};

/// kubelet's directory of pods, with its default `--root-dir`; gVisor looks nowhere else either.
const PODS: &str = "/var/lib/kubelet/pods";

/// Where kubelet has the volumes of hints that name no source, as far as it has them:
/// `/var/lib/kubelet/pods/<uid>/volumes/<plugin>/<name>`.
///
/// Names of directories alone are read: what a volume is mounted from may hang.
pub(crate) fn volumes(spec: &Spec) -> BTreeMap<String, PathBuf> {
    let wanted = spec.volumes_to_find();
    let one_component = |uid: &&str| uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match spec.pod_uid().filter(one_component) {
        Some(uid) if !wanted.is_empty() => {
            let found = find(&Path::new(PODS).join(uid).join("volumes"), &wanted);
            // A hint whose volume is not found is refused by its name.
            found.unwrap_or_else(|e| {
                log::warn!("call=FindVolumes uid={uid:?} err={:?}", e.to_string());
                BTreeMap::new()
            })
        }
        _ => BTreeMap::new(),
    }
}

fn find(dir: &Path, wanted: &[String]) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for plugin in entries(dir)? {
        for volume in entries(&plugin)? {
            let name = volume.file_name().and_then(|name| name.to_str());
            let name = name.filter(|name| wanted.iter().any(|wanted| wanted == name));
            if let Some(name) = name.map(str::to_owned) {
                found.insert(name, volume);
            }
        }
    }
    Ok(found)
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

impl Sandbox {
    /// Makes the tmpfses that the pod's hints ask for; nothing for a pod without.
    pub(crate) async fn make_hinted(&self) -> Result<(), Error> {
        let live = &self.0;
        let all = live.record.mount_hints.tmpfs(&live.ids)?;
        if all.is_empty() {
            return Ok(());
        }
        let scratch = live.host.scratch()?;
        let making = Aside::begin("MountHints", live.host.config.stage_deadline, |report| {
            berm_stage::spawn_pod_tmpfs(&PodTmpfsJob {
                all: &all,
                report,
                scratch,
                pod: live.pod(),
            })
        })?;
        let made = making.end().await?.made;
        let made = made.ok_or(Error::Died { last: "MountHints" })?;
        *live.hinted.borrow_mut() = Some(Rc::new(made));
        Ok(())
    }
}

impl Live {
    /// Gives up the pod's tmpfses, whose pages a child frees: they may be many.
    pub(crate) fn free_hinted(&self) {
        let Some(hinted) = self.hinted.take() else {
            return;
        };
        let freeing = Aside::begin("FreeHinted", self.host.config.stage_deadline, |report| {
            berm_stage::spawn_aside("MountHints", report, &[hinted.as_fd()], || Ok(()))
        });
        match freeing {
            Ok(freeing) => freeing.reap(),
            Err(e) => log::warn!("call=FreeHinted err={:?}", e.chain()),
        }
    }
}
