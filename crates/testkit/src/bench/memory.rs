//! What an idle pod costs in memory.

use std::fs;
use std::time::Duration;

use super::peer::Peer;
use super::report::{Report, Unit};
use super::rows::pod_with;
use super::{Bed, Error};
use crate::shimclient::{self, Container, Pod};

/// Pods at once in the second row.
const PODS: usize = 10;
/// A pod that nobody has called for so long is idle: Berm's shim gives memory back after a second,
/// Go's runtime in the background.
const REST: Duration = Duration::from_secs(3);

/// PSS of shim and pause process of a pod whose one container has had an exec; the container's
/// own processes do not count. Pages shared between the pods are shared out, so the figure falls
/// with their number.
pub(super) async fn pss(bed: &Bed, peers: &[Peer], report: &mut Report) -> Result<(), Error> {
    for peer in peers {
        let mut pods = Vec::new();
        for number in 1..=PODS {
            let pod = idle_pod(bed, peer)
                .await
                .map_err(peer.failed("an idle pod"))?;
            pods.push(pod);
            if number == 1 {
                tokio::time::sleep(REST).await;
                record("PSS of an idle pod, alone", &pods, peer, report)?;
            }
        }
        tokio::time::sleep(REST).await;
        record("PSS of an idle pod, one of 10", &pods, peer, report)?;
        for (pod, container) in pods {
            pod.stop(vec![container])
                .await
                .map_err(peer.failed("the end of an idle pod"))?;
        }
    }
    Ok(())
}

async fn idle_pod<'b>(
    bed: &'b Bed,
    peer: &Peer,
) -> Result<(Pod<'b>, Container), shimclient::Error> {
    let (pod, mut containers) = pod_with(bed, peer, 1).await?;
    let container = containers.remove(0);
    container.exec("warm", &["/bin/true"]).await?;
    Ok((pod, container))
}

fn record(
    row: &'static str,
    pods: &[(Pod<'_>, Container)],
    peer: &Peer,
    report: &mut Report,
) -> Result<(), Error> {
    for (pod, _) in pods {
        let shim = pod.shim().map_err(peer.failed(row))?.process().pid();
        let mut kib = 0;
        for pid in std::iter::once(shim).chain(pod.pid()) {
            kib += pss_of(pid).map_err(peer.failed(row))?;
        }
        report.add(row, Unit::KiB, peer.name(), f64::from(kib));
    }
    Ok(())
}

/// The proportional set size of a process in KiB.
fn pss_of(pid: u32) -> Result<u32, shimclient::Error> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let failed = |source| shimclient::Error::File {
        op: "read",
        path: path.clone().into(),
        source,
    };
    let text = fs::read_to_string(&path).map_err(failed)?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = pss.and_then(|pss| pss.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))
}
