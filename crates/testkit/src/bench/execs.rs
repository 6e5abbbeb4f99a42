//! `--check execs`: many execs at once, each with an exit code of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::events::task::TaskExit;
use tokio::task::JoinSet;

use super::peer::Peer;
use super::rows::pod_with;
use super::{Bed, Error};
use crate::shimclient::{self, Body, Container, Event, ExecOutput};

const EXECS: usize = 1_000;
const AT_ONCE: usize = 50;
const SEED: u64 = 0x6265_726d;

/// What went wrong; all zero is what is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    /// The code of `Wait` is not the one that the process ended with.
    wrong_codes: usize,
    /// The output is not what the process wrote.
    wrong_outputs: usize,
    /// Calls that failed.
    failed: usize,
    /// Exit events that did not come within 5 s of the last call.
    missing_events: usize,
    /// Exit events that came more than once.
    repeated_events: usize,
    /// Exit events with another code or pid than `Wait` and `Start` gave.
    wrong_events: usize,
}

/// Runs the load on every peer and prints a line for each; whether nothing was wrong anywhere.
pub(super) async fn check(bed: &Bed, peers: &[Peer]) -> Result<bool, Error> {
    let mut good = true;
    for peer in peers {
        let begin = Instant::now();
        let (pod, mut containers) = pod_with(bed, peer, 1)
            .await
            .map_err(peer.failed("a pod for execs"))?;
        let container = Arc::new(containers.remove(0));
        let ran = load(&container).await;
        let took = begin.elapsed();
        let faults = judge(bed, &container, &ran).await;
        println!(
            "{}: {EXECS} execs, {AT_ONCE} at a time, {took:.1?}: {faults:?}",
            peer.name()
        );
        if let Some(error) = ran.iter().find_map(|(_, result)| result.as_ref().err()) {
            println!("{}: the first error: {}", peer.name(), super::chain(error));
        }
        good &= faults == Faults::default();
        let containers = Arc::into_inner(container).into_iter().collect();
        pod.stop(containers)
            .await
            .map_err(peer.failed("the end of a pod"))?;
    }
    Ok(good)
}

type Ran = (usize, Result<ExecOutput, shimclient::Error>);

async fn load(container: &Arc<Container>) -> Vec<Ran> {
    let (mut running, mut ran) = (JoinSet::new(), Vec::with_capacity(EXECS));
    for number in 0..EXECS {
        if running.len() == AT_ONCE {
            ran.extend(running.join_next().await.and_then(Result::ok));
        }
        let container = Arc::clone(container);
        running.spawn(async move {
            let script = format!("echo {number}; exit {}", code(number));
            let done = container
                .exec(&exec_id(number), &["/bin/sh", "-c", &script])
                .await;
            (number, done)
        });
    }
    while let Some(done) = running.join_next().await {
        ran.extend(done.ok());
    }
    ran
}

async fn judge(bed: &Bed, container: &Container, ran: &[Ran]) -> Faults {
    let mut faults = Faults {
        failed: EXECS - ran.len(),
        ..Faults::default()
    };
    for (number, result) in ran {
        match result {
            Err(_) => faults.failed += 1,
            Ok(output) => {
                faults.wrong_codes += usize::from(output.status != code(*number));
                let want = format!("{number}\n").into_bytes();
                faults.wrong_outputs +=
                    usize::from(output.stdout != want || !output.stderr.is_empty());
            }
        }
    }
    judge_events(bed, container, ran, &mut faults).await;
    faults
}

/// Compares the events of every exec that worked; they may come after the answers.
async fn judge_events(bed: &Bed, container: &Container, ran: &[Ran], faults: &mut Faults) {
    let worked = ran
        .iter()
        .filter_map(|(number, result)| Some((*number, result.as_ref().ok()?)));
    let worked: HashMap<String, (u32, u32)> = worked
        .map(|(number, output)| (exec_id(number), (output.pid, code(number))))
        .collect();
    let exits = |events: &[Event]| -> Vec<TaskExit> {
        let exit_of_ours = |event: &Event| match &event.body {
            Body::Exit(exit) if exit.container_id == container.id() => Some(exit.clone()),
            _ => None,
        };
        let exits = events.iter().filter_map(exit_of_ours);
        exits.filter(|exit| worked.contains_key(&exit.id)).collect()
    };
    let all_came = |events: &[Event]| (exits(events).len() >= worked.len()).then_some(());
    // One that never comes is counted below.
    let _ = bed
        .node
        .events()
        .until("of every exit", Duration::from_secs(5), all_came)
        .await;

    let mut seen: HashMap<String, usize> = HashMap::new();
    for exit in exits(&bed.node.events().all()) {
        *seen.entry(exit.id.clone()).or_default() += 1;
        let differs = worked.get(&exit.id) != Some(&(exit.pid, exit.exit_status));
        faults.wrong_events += usize::from(differs);
    }
    faults.missing_events = worked.len() - seen.len();
    faults.repeated_events = seen.values().filter(|times| **times > 1).count();
}

fn exec_id(number: usize) -> String {
    format!("load-{number}")
}

/// The exit code of an exec, 0 to 255: splitmix64 of its number from a fixed seed.
fn code(number: usize) -> u32 {
    let mut z = SEED.wrapping_add((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::from((z ^ (z >> 31)).to_le_bytes()[0])
}
