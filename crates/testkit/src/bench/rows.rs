//! The rows that measure time.

use std::time::Instant;

use super::peer::Peer;
use super::report::{Report, Unit};
use super::{Bed, Error};
use crate::shimclient::{self, Container, Pod};

/// Containers of the pod whose teardown is measured.
const CONTAINERS: usize = 5;
/// Pods that start at the same time.
const AT_ONCE: usize = 4;
/// How many times that many pods start.
const ROUNDS: u32 = 6;

const SLEEP: [&str; 2] = ["/bin/sleep", "infinity"];

/// Whole lives of pods with one container: five rows from one loop.
pub(super) async fn life(
    bed: &Bed,
    peers: &[Peer],
    n: u32,
    report: &mut Report,
) -> Result<(), Error> {
    for round in 0..n {
        for peer in turns(peers, round) {
            one_life(bed, peer, report)
                .await
                .map_err(peer.failed("a pod's life"))?;
        }
    }
    Ok(())
}

async fn one_life(bed: &Bed, peer: &Peer, report: &mut Report) -> Result<(), shimclient::Error> {
    let mut pod = peer.prepare(bed)?;
    let start = pod.start_shim().await?;
    report.time("shim start", peer.name(), start);
    let begin = Instant::now();
    pod.run().await?;
    report.time("pod ready", peer.name(), start + begin.elapsed());

    let mut container = pod.prepare_container(&bed.image, &SLEEP).await?;
    let begin = Instant::now();
    container.start().await?;
    report.time("container Create+Start", peer.name(), begin.elapsed());
    let begin = Instant::now();
    container.remove().await?;
    report.time("Kill+Wait+Delete", peer.name(), begin.elapsed());

    pod.forget(&mut container).await?;
    let begin = Instant::now();
    pod.stop_sandbox().await?;
    report.time("teardown, empty pod", peer.name(), begin.elapsed());
    pod.shim_exited().await
}

/// Calls to a running container: execs, `State`, `Stats`; `counts` for execs and for reads.
pub(super) async fn calls(
    bed: &Bed,
    peers: &[Peer],
    counts: [u32; 2],
    report: &mut Report,
) -> Result<(), Error> {
    let mut running = Vec::new();
    for peer in peers {
        running.push((
            peer,
            pod_with(bed, peer, 1)
                .await
                .map_err(peer.failed("a pod for calls"))?,
        ));
    }
    for number in 0..counts[0] {
        for (peer, (_, containers)) in turns(&running, number) {
            exec(peer, &containers[0], number, report)
                .await
                .map_err(peer.failed("exec"))?;
        }
    }
    for round in 0..counts[1] {
        for (peer, (_, containers)) in turns(&running, round) {
            reads(peer, &containers[0], report)
                .await
                .map_err(peer.failed("State and Stats"))?;
        }
    }
    for (peer, (pod, containers)) in running {
        pod.stop(containers)
            .await
            .map_err(peer.failed("the end of a pod"))?;
    }
    Ok(())
}

async fn exec(
    peer: &Peer,
    container: &Container,
    number: u32,
    report: &mut Report,
) -> Result<(), shimclient::Error> {
    let exec_id = format!("exec-{number}");
    let mut fifos = container.exec_fifos(&exec_id)?;
    let begin = Instant::now();
    container.exec_on(&exec_id, &["/bin/true"], &fifos).await?;
    report.time("exec", peer.name(), begin.elapsed());
    fifos
        .output(std::time::Duration::from_secs(10))
        .await
        .map(drop)
}

async fn reads(
    peer: &Peer,
    container: &Container,
    report: &mut Report,
) -> Result<(), shimclient::Error> {
    let task = container.task()?;
    let begin = Instant::now();
    task.state(container.id(), "").await?;
    report.time("State", peer.name(), begin.elapsed());
    let begin = Instant::now();
    task.stats(container.id()).await?;
    report.time("Stats", peer.name(), begin.elapsed());
    Ok(())
}

/// The end of a pod with five containers, until `delete` of the last id has answered.
pub(super) async fn teardown(
    bed: &Bed,
    peers: &[Peer],
    n: u32,
    report: &mut Report,
) -> Result<(), Error> {
    for round in 0..n {
        for peer in turns(peers, round) {
            let pod = pod_with(bed, peer, CONTAINERS).await;
            let (mut pod, containers) = pod.map_err(peer.failed("a pod of five"))?;
            let begin = Instant::now();
            end(&mut pod, containers)
                .await
                .map_err(peer.failed("teardown"))?;
            report.time("teardown, 5 containers", peer.name(), begin.elapsed());
            pod.shim_exited()
                .await
                .map_err(peer.failed("exit of the shim"))?;
        }
    }
    Ok(())
}

async fn end(pod: &mut Pod<'_>, containers: Vec<Container>) -> Result<(), shimclient::Error> {
    // Bundles and snapshots are removed when this returns, for every peer alike.
    pod.remove(containers).await?;
    pod.stop_sandbox().await
}

/// Pods that become ready per second when four are started at a time.
pub(super) async fn throughput(
    bed: &Bed,
    peers: &[Peer],
    report: &mut Report,
) -> Result<(), Error> {
    for round in 0..ROUNDS {
        for peer in turns(peers, round) {
            let pods: Result<Vec<Pod<'_>>, _> = (0..AT_ONCE).map(|_| peer.prepare(bed)).collect();
            let mut pods = pods.map_err(peer.failed("four pods"))?;
            let begin = Instant::now();
            let [a, b, c, d] = pods.as_mut_slice() else {
                continue;
            };
            tokio::try_join!(ready(a), ready(b), ready(c), ready(d))
                .map_err(peer.failed("four pods at once"))?;
            let seconds = begin.elapsed().as_secs_f64();
            #[allow(clippy::cast_precision_loss, reason = "four")]
            report.add(
                "pods per second, 4 at once",
                Unit::PerSecond,
                peer.name(),
                AT_ONCE as f64 / seconds,
            );
            for pod in pods {
                pod.stop(Vec::new())
                    .await
                    .map_err(peer.failed("the end of four pods"))?;
            }
        }
    }
    Ok(())
}

/// All of them, another first each round, so that none always follows the same other.
fn turns<T>(all: &[T], round: u32) -> impl Iterator<Item = &T> {
    let (late, early) = all.split_at(round as usize % all.len().max(1));
    early.iter().chain(late)
}

async fn ready(pod: &mut Pod<'_>) -> Result<(), shimclient::Error> {
    pod.start_shim().await?;
    pod.run().await.map(drop)
}

/// A running pod with that many running containers.
pub(super) async fn pod_with<'b>(
    bed: &'b Bed,
    peer: &Peer,
    containers: usize,
) -> Result<(Pod<'b>, Vec<Container>), shimclient::Error> {
    let pod = peer.pod(bed).await?;
    let mut running = Vec::new();
    for _ in 0..containers {
        let mut container = pod.prepare_container(&bed.image, &SLEEP).await?;
        container.start().await?;
        running.push(container);
    }
    Ok((pod, running))
}
