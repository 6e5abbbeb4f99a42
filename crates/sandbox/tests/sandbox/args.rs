//! What few callers ask for: that a sandbox dies with them.

use std::time::Instant;

use berm_sandbox::{Error, Record, sweep_dead};
use berm_sys::Kind;
use berm_testkit::cases::Case;

use crate::dead::{MINUTE, Shim, assert_dead, clean, fill};
use crate::world::{NAMESPACE, Place, Pod, World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    every_process_of_an_attached_sandbox_dies_with_its_caller_and_a_sweep_removes_the_rest,
    an_attached_sandbox_whose_caller_is_killed_at_any_moment_leaves_no_process,
    a_sandbox_that_is_not_attached_outlives_its_caller,
    a_pod_without_a_pid_namespace_of_its_own_cannot_be_attached,
];

async fn attached(w: &World) -> Result<Pod<'_>, Error> {
    let spec = w.sandbox_spec("pod1");
    w.sandbox_of("pod1", &spec, |args| args.attached = true)
        .await
}

fn every_process_of_an_attached_sandbox_dies_with_its_caller_and_a_sweep_removes_the_rest() {
    let place = Place::new();
    let config = place.config();
    let shim = Shim::start(&place, async |w| {
        let pod = attached(w).await.unwrap();
        pod.sandbox.start("pod1").await.unwrap();
        fill(pod).await;
    });
    assert!(shim.wait(MINUTE));
    assert_eq!(
        sweep_dead(&config, NAMESPACE).unwrap(),
        Vec::<String>::new()
    );
    shim.kill();
    // Nobody cleans up: the kernel alone has ended them, the paused ones too.
    assert_dead();
    assert_eq!(sweep_dead(&config, NAMESPACE).unwrap(), ["pod1"]);
    assert_eq!(
        sweep_dead(&config, NAMESPACE).unwrap(),
        Vec::<String>::new()
    );
    place.assert_clean(&config.state_dir);
}

fn an_attached_sandbox_whose_caller_is_killed_at_any_moment_leaves_no_process() {
    const ROUNDS: u32 = 40;
    let mut whole = MINUTE;
    for round in 0..ROUNDS {
        let place = Place::new();
        let begin = Instant::now();
        let shim = Shim::start(&place, async |w| {
            let pod: &Pod<'_> = Box::leak(Box::new(attached(w).await.unwrap()));
            let c = pod.container(&["/bin/sleep", "1000"]).create().await;
            std::mem::forget(c);
        });
        // The first is killed at its end; the others at moments spread over its time.
        if round == 0 {
            assert!(shim.wait(MINUTE));
            whole = begin.elapsed();
        } else {
            shim.wait(whole * round / ROUNDS);
        }
        shim.kill();
        assert_dead();
        clean(&place.config(), "pod1");
        clean(&place.config(), "c1");
        place.assert_clean(&place.config().state_dir);
    }
}

fn a_sandbox_that_is_not_attached_outlives_its_caller() {
    let place = Place::new();
    let shim = Shim::start(&place, async |w| std::mem::forget(w.pod().await));
    assert!(shim.wait(MINUTE));
    shim.kill();
    let record = Record::load(&place.config().state_dir, NAMESPACE, "pod1").unwrap();
    assert!(record.init().is_alive());
    assert!(clean(&place.config(), "pod1"));
    assert_dead();
    place.assert_clean(&place.config().state_dir);
}

fn a_pod_without_a_pid_namespace_of_its_own_cannot_be_attached() {
    world(async |w| {
        let mut spec = w.sandbox_spec("pod1");
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|entry| entry["type"] != "pid");
        let made = w
            .sandbox_of("pod1", &spec, |args| args.attached = true)
            .await;
        let error = made.err().unwrap();
        assert_eq!(error.kind(), Kind::NotSupported);
        assert!(error.to_string().starts_with("attached: "), "{error}");
    });
}
