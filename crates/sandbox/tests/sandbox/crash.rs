//! What is left of a pod whose owner died, at each stage of its making.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use berm_sandbox::{Error, Identity, Record, cleanup, sweep_dead};
use berm_testkit::cases::Case;
use serde_json::json;

use crate::world::{NAMESPACE, World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_half_made_sandbox_is_cleaned_by_its_intent,
    a_half_made_sandbox_of_a_living_owner_is_left_alone,
    a_damaged_intent_means_that_nothing_was_made,
    cleaning_up_beside_a_living_owner_touches_nothing,
    several_sweeps_at_once_take_a_name_from_its_dead_owner_and_not_from_the_next,
    what_another_boot_left_is_swept_once_and_no_process_of_this_one_is_touched,
    a_name_that_another_boot_left_is_free_at_once,
    a_name_that_a_dead_owner_left_is_free_and_who_has_its_pid_now_lives,
];

/// Pids end below 2^22.
const NOBODY: Identity = Identity {
    pid: 0x40_0001,
    start_time: 1,
};

fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    id.trim().to_owned()
}

/// A process that is none of Berm's.
struct Foreign(Child);

impl Foreign {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn identity(&self) -> Identity {
        Identity::of(self.0.id().cast_signed()).unwrap()
    }

    /// Nobody has ended it until now.
    fn end(mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "it was killed");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A whole pod with one container, as a record in another time: every process is `who`.
fn leave(w: &World, id: &str, boot: &str, who: Identity) -> PathBuf {
    let state = w.host.config().state_dir.clone();
    let dir = state.join(NAMESPACE).join(id);
    fs::create_dir_all(dir.join("containers")).unwrap();
    let record = json!({
        "version": 1, "engine": "native", "id": id, "containerdNamespace": NAMESPACE,
        "podName": "", "namespace": "", "pid": who.pid, "startTime": who.start_time,
        "uid": 0, "gid": 0, "cgroup": "", "controlSocketPath": dir.join("control.sock"),
        "bundle": "/", "owner": who, "boot": boot,
        "isolation": {
            "userns": "auto", "ids": {"uids": [], "gids": []}, "range": 7, "ownsNetns": true,
        },
    });
    fs::write(dir.join("sandbox.json"), record.to_string()).unwrap();
    let intent = json!({ "owner": who, "boot": boot, "cgroup": "" });
    fs::write(dir.join("sandbox.intent"), intent.to_string()).unwrap();
    let container = json!({
        "version": 1, "id": "c", "init": who, "cgroup": "", "bundle": "/",
    });
    fs::write(dir.join("containers/c.json"), container.to_string()).unwrap();
    let ids = state.join("ids");
    fs::create_dir_all(&ids).unwrap();
    let entry = json!({ "namespace": NAMESPACE, "id": id, "owner": who, "boot": boot });
    fs::write(ids.join("7"), entry.to_string()).unwrap();
    dir
}

fn what_another_boot_left_is_swept_once_and_no_process_of_this_one_is_touched() {
    world(async |w| {
        let foreign = Foreign::new();
        let config = w.host.config();
        let state = config.state_dir.clone();
        let dir = leave(w, "left", "another boot", foreign.identity());
        assert!(Record::load(&state, NAMESPACE, "left").is_err());
        assert!(Record::load_all(&state).unwrap().is_empty());
        // In this boot it was swept already.
        w.host.prepare().unwrap();
        assert!(dir.exists());
        fs::write(state.join(".boot"), "another boot").unwrap();
        let own = leave(w, "own", &boot(), foreign.identity());
        leave(w, "left", "another boot", foreign.identity());
        w.host.prepare().unwrap();
        assert!(!dir.exists() && !state.join("ids/7").exists());
        assert!(own.exists(), "it is of this boot");
        fs::remove_dir_all(own).unwrap();
        foreign.end();
    });
}

fn a_name_that_another_boot_left_is_free_at_once() {
    world(async |w| {
        let foreign = Foreign::new();
        let dir = leave(w, "left", "another boot", foreign.identity());
        let exit = cleanup(w.host.config(), NAMESPACE, "left").unwrap();
        assert_eq!(exit.map(|exit| exit.pid), Some(0));
        assert!(!dir.exists());
        leave(w, "left", "another boot", foreign.identity());
        let pod = w.sandbox("left", &w.sandbox_spec("left")).await.unwrap();
        assert_ne!(pod.sandbox.record().pid, foreign.identity().pid);
        foreign.end();
    });
}

fn a_name_that_a_dead_owner_left_is_free_and_who_has_its_pid_now_lives() {
    world(async |w| {
        let foreign = Foreign::new();
        let mut gone = foreign.identity();
        gone.start_time -= 1;
        leave(w, "left", &boot(), gone);
        w.sandbox("left", &w.sandbox_spec("left")).await.unwrap();
        // The owner of one that lives is not dead.
        let again = w.sandbox("left", &w.sandbox_spec("left")).await;
        assert!(matches!(again.err(), Some(Error::SandboxExists { .. })));
        foreign.end();
    });
}

struct Half {
    dir: PathBuf,
    range: PathBuf,
    others_range: PathBuf,
    cgroups: Vec<PathBuf>,
}

impl Half {
    /// What a shim leaves that dies before PID 1 is in the record.
    fn make(w: &World, id: &str, owner: Identity) -> Self {
        let state = w.host.config().state_dir.clone();
        let (dir, ids) = (state.join(NAMESPACE).join(id), state.join("ids"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(&ids).unwrap();
        let cgroup = format!("{}/{id}", w.cgroup);
        let intent = json!({ "owner": owner, "cgroup": cgroup });
        fs::write(dir.join("sandbox.intent"), intent.to_string()).unwrap();
        let entry = |id: &str| {
            let boot = boot();
            json!({ "namespace": NAMESPACE, "id": id, "owner": owner, "boot": boot }).to_string()
        };
        let (range, others_range) = (ids.join("7"), ids.join("8"));
        fs::write(&range, entry(id)).unwrap();
        fs::write(&others_range, entry("another")).unwrap();
        let cgroups = ["pids", "memory"].map(|c| Path::new("/sys/fs/cgroup").join(c).join(&cgroup));
        let cgroups: Vec<_> = cgroups
            .into_iter()
            .filter(|dir| dir.ancestors().nth(2).is_some_and(Path::is_dir))
            .collect();
        cgroups
            .iter()
            .for_each(|dir| fs::create_dir_all(dir).unwrap());
        Self {
            dir,
            range,
            others_range,
            cgroups,
        }
    }

    fn stands(&self) -> bool {
        self.dir.exists() && self.range.exists() && self.cgroups.iter().all(|dir| dir.exists())
    }

    fn is_gone(&self) -> bool {
        !self.dir.exists() && !self.range.exists() && !self.cgroups.iter().any(|dir| dir.exists())
    }

    fn remove_the_rest(self) {
        fs::remove_file(self.others_range).unwrap();
    }
}

fn a_half_made_sandbox_is_cleaned_by_its_intent() {
    world(async |w| {
        let half = Half::make(w, "half", NOBODY);
        assert!(half.stands());
        let exit = cleanup(w.host.config(), NAMESPACE, "half")
            .unwrap()
            .unwrap();
        assert_eq!((exit.pid, exit.status), (0, 137));
        assert!(half.is_gone());
        assert!(half.others_range.exists(), "another sandbox's ids");
        assert_eq!(cleanup(w.host.config(), NAMESPACE, "half").unwrap(), None);
        half.remove_the_rest();
    });
}

fn a_half_made_sandbox_of_a_living_owner_is_left_alone() {
    world(async |w| {
        let own = Identity::of(std::process::id().cast_signed()).unwrap();
        let half = Half::make(w, "half", own);
        assert_eq!(cleanup(w.host.config(), NAMESPACE, "half").unwrap(), None);
        assert!(half.stands());
        fs::write(
            half.dir.join("sandbox.intent"),
            json!({ "owner": NOBODY, "cgroup": "" }).to_string(),
        )
        .unwrap();
        half.cgroups
            .iter()
            .for_each(|dir| fs::remove_dir(dir).unwrap());
        assert!(
            cleanup(w.host.config(), NAMESPACE, "half")
                .unwrap()
                .is_some()
        );
        assert!(!half.dir.exists());
        assert!(half.range.exists(), "its taker lives");
        fs::remove_file(&half.range).unwrap();
        half.remove_the_rest();
    });
}

fn a_damaged_intent_means_that_nothing_was_made() {
    world(async |w| {
        for cut in ["", "{\"owner\":"] {
            let dir = w
                .host
                .config()
                .state_dir
                .clone()
                .join(NAMESPACE)
                .join("half");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("sandbox.intent"), cut).unwrap();
            assert!(
                cleanup(w.host.config(), NAMESPACE, "half")
                    .unwrap()
                    .is_some()
            );
            assert!(!dir.exists());
        }
    });
}

fn cleaning_up_beside_a_living_owner_touches_nothing() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        for id in [pod.id(), &c.id] {
            assert_eq!(cleanup(w.host.config(), NAMESPACE, id).unwrap(), None);
        }
        assert_eq!(c.exec_sh("exit 5").await.0, 5);
    });
}

fn several_sweeps_at_once_take_a_name_from_its_dead_owner_and_not_from_the_next() {
    world(async |w| {
        let config = w.host.config();
        let dir = config.state_dir.join(NAMESPACE).join("pod1");
        let me = Identity::of(std::process::id().cast_signed()).unwrap();
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        for round in 0..100 {
            fs::create_dir(&dir).unwrap();
            intend(&dir, NOBODY);
            let swept = std::thread::scope(|scope| {
                let sweep = || (0..10).flat_map(|_| sweep_dead(config, NAMESPACE).unwrap());
                let sweeps: Vec<_> = (0..3)
                    .map(|_| scope.spawn(move || sweep().count()))
                    .collect();
                take(&dir);
                intend(&dir, me);
                sweeps.into_iter().map(|s| s.join().unwrap()).sum::<usize>()
            });
            assert_eq!(swept, 1, "round {round}");
            fs::remove_file(dir.join("sandbox.intent")).expect("the next owner's");
            fs::remove_dir(&dir).unwrap();
        }
    });
}

/// Waits for the name and takes it.
fn take(dir: &Path) {
    let limit = Instant::now() + Duration::from_secs(60);
    while let Err(e) = fs::create_dir(dir) {
        assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists);
        assert!(Instant::now() < limit, "nobody sweeps");
        std::thread::yield_now();
    }
}

/// As the making of a sandbox does it: whole or not at all.
fn intend(dir: &Path, owner: Identity) {
    let intent = json!({ "owner": owner, "boot": boot(), "cgroup": "" });
    fs::write(dir.join("sandbox.new"), intent.to_string()).unwrap();
    fs::rename(dir.join("sandbox.new"), dir.join("sandbox.intent")).unwrap();
}
