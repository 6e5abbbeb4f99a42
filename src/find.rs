//! From what people type to a sandbox and one of its containers.

use berm_sandbox::urpc::Client;
use berm_sandbox::{Config, ContainerRecord, Identity, Record};
use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;
use crate::table::short;

/// A sandbox by its records.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) record: Record,
    pub(crate) containers: Vec<ContainerRecord>,
}

/// A sandbox, and the container in it if one was named.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) pod: Pod,
    pub(crate) container: Option<String>,
}

impl Pod {
    /// Every sandbox of the node that has a record.
    pub(crate) fn all(config: &Config) -> Result<Vec<Self>, Error> {
        let records = Record::load_all(&config.state_dir)?;
        let pod = |record: Record| {
            let mut containers = record.containers()?;
            containers.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(Self { record, containers })
        };
        records.into_iter().map(pod).collect()
    }

    /// `namespace/name`; empty for a sandbox that is no pod.
    pub(crate) fn name(&self) -> String {
        match self.record.pod_name.as_str() {
            "" => String::new(),
            name => format!("{}/{name}", self.record.namespace),
        }
    }

    /// `running`, `orphaned` if nobody serves it any more, `gone` if only the record is left.
    pub(crate) fn state(&self) -> &'static str {
        match (self.record.init().is_alive(), self.record.owner.is_alive()) {
            (true, true) => "running",
            (true, false) => "orphaned",
            (false, _) => "gone",
        }
    }

    /// Seconds since PID 1 was started; `None` if it is gone.
    pub(crate) fn uptime(&self) -> Option<u64> {
        let Identity { start_time, .. } = Identity::of(self.record.pid)?;
        let now = u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).ok()?;
        let started = start_time / rustix::param::clock_ticks_per_second().max(1);
        (self.state() != "gone").then(|| now.saturating_sub(started))
    }

    /// A connection to its control socket.
    pub(crate) fn connect(&self) -> Result<Client, Error> {
        let id = || self.record.id.clone();
        match self.state() {
            "gone" => Err(Error::Gone { id: id() }),
            "orphaned" => Err(Error::Orphaned {
                id: id(),
                owner: self.record.owner.pid,
            }),
            _ => Ok(Client::connect(&self.record.control_socket_path)?),
        }
    }

    /// The container that a command without one is about: the only one.
    fn only_container(&self) -> Option<String> {
        match self.containers.as_slice() {
            [one] => Some(one.id.clone()),
            _ => None,
        }
    }
}

/// A name that a target answers to.
struct Candidate {
    pod: usize,
    container: Option<String>,
    names: Vec<String>,
    /// Whether a beginning of the name will do.
    by_prefix: bool,
}

fn candidates(pods: &[Pod]) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (at, pod) in pods.iter().enumerate() {
        let own = pod.containers.iter().any(|c| c.id == pod.record.id);
        if !own {
            all.push(Candidate {
                pod: at,
                container: None,
                names: vec![pod.record.id.clone()],
                by_prefix: true,
            });
        }
        if !pod.record.pod_name.is_empty() {
            all.push(Candidate {
                pod: at,
                container: None,
                names: vec![pod.name(), pod.record.pod_name.clone()],
                by_prefix: false,
            });
        }
        all.extend(pod.containers.iter().map(|container| Candidate {
            pod: at,
            container: Some(container.id.clone()),
            names: vec![container.id.clone()],
            by_prefix: true,
        }));
    }
    all
}

/// Picks what `name` names: an id, a beginning of one, a pod's name or `namespace/name`. A whole
/// name wins over beginnings.
fn pick(pods: &[Pod], name: &str) -> Result<(usize, Option<String>), Error> {
    let all = candidates(pods);
    let whole: Vec<_> = all
        .iter()
        .filter(|c| c.names.iter().any(|n| n == name))
        .collect();
    let begins = |c: &&Candidate| c.by_prefix && c.names.iter().any(|n| n.starts_with(name));
    let matching = match whole.is_empty() {
        false => whole,
        true => all.iter().filter(begins).collect(),
    };
    match matching.as_slice() {
        [] => Err(Error::NotFound { name: name.into() }),
        [one] => Ok((one.pod, one.container.clone())),
        several => Err(Error::Ambiguous {
            name: name.into(),
            candidates: several.iter().map(|c| describe(pods, c)).collect(),
        }),
    }
}

fn describe(pods: &[Pod], candidate: &Candidate) -> String {
    let pod = &pods[candidate.pod];
    let of = match pod.name() {
        name if name.is_empty() => String::new(),
        name => format!(" (pod {name})"),
    };
    match &candidate.container {
        Some(id) => format!("container {id}{of}"),
        None => format!("sandbox {}{of}", pod.record.id),
    }
}

impl Target {
    /// Finds what `name` names.
    pub(crate) fn find(config: &Config, name: &str) -> Result<Self, Error> {
        let mut pods = Pod::all(config)?;
        if name.is_empty() {
            return Err(Error::NotFound { name: name.into() });
        }
        let (at, container) = pick(&pods, name)?;
        let pod = pods.swap_remove(at);
        Ok(Self { pod, container })
    }

    /// Id of the container that was named, or else of the sandbox.
    pub(crate) fn id(&self) -> &str {
        self.container.as_ref().unwrap_or(&self.pod.record.id)
    }

    /// The pod, for what is about all of it: a container in it, named by its own id, is refused.
    pub(crate) fn whole_pod(self) -> Result<Pod, Error> {
        match self.container {
            Some(id) if id != self.pod.record.id => Err(Error::NotAPod {
                id,
                pod: self.pod.record.id,
            }),
            _ => Ok(self.pod),
        }
    }

    /// The container that was named, or the only one of the pod.
    pub(crate) fn container(&self) -> Result<String, Error> {
        let named = self.container.clone().or_else(|| self.pod.only_container());
        named.ok_or_else(|| {
            let containers = self.pod.containers.iter();
            let candidates: Vec<_> = containers.map(|c| format!("container {}", c.id)).collect();
            let name = short(&self.pod.record.id).to_owned();
            match candidates.is_empty() {
                true => Error::NotFound { name },
                false => Error::Ambiguous { name, candidates },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, name: &str, containers: &[&str]) -> Pod {
        let record = serde_json::json!({
            "version": 1, "engine": "native", "id": id, "containerdNamespace": "k8s.io",
            "podName": name, "namespace": "shop", "pid": 1, "startTime": 0, "uid": 0, "gid": 0,
            "cgroup": "", "controlSocketPath": "/x", "bundle": "/x",
            "owner": {"pid": 1, "startTime": 0}, "boot": "",
            "isolation": {"userns": "auto", "ids": {"uids": [], "gids": []}, "range": null,
                "ownsNetns": true},
        });
        let container = |id: &&str| {
            let record = serde_json::json!({
                "version": 1, "id": id, "init": {"pid": 1, "startTime": 0}, "cgroup": "",
                "bundle": "/x",
            });
            serde_json::from_value(record).unwrap()
        };
        Pod {
            record: serde_json::from_value(record).unwrap(),
            containers: containers.iter().map(container).collect(),
        }
    }

    #[test]
    fn names_are_found_whole_first_then_by_their_beginnings() {
        let pods = [
            pod("ab12", "web", &["cd34", "ab"]),
            pod("ab99", "db", &["ef56"]),
            pod("run-1", "", &["run-1"]),
        ];
        let found = |name| pick(&pods, name).ok();
        assert_eq!(found("ab12"), Some((0, None)));
        assert_eq!(
            found("ab"),
            Some((0, Some("ab".into()))),
            "a whole name wins"
        );
        assert_eq!(found("cd"), Some((0, Some("cd34".into()))));
        assert_eq!(found("shop/db"), Some((1, None)));
        assert_eq!(found("web"), Some((0, None)));
        assert_eq!(found("we"), None, "a pod's name is given whole");
        assert_eq!(found("run"), Some((2, Some("run-1".into()))));
        assert!(matches!(pick(&pods, "zz"), Err(Error::NotFound { .. })));
        let Err(Error::Ambiguous { candidates, .. }) = pick(&pods, "a") else {
            panic!("several begin with it");
        };
        assert_eq!(
            candidates,
            [
                "sandbox ab12 (pod shop/web)",
                "container ab (pod shop/web)",
                "sandbox ab99 (pod shop/db)"
            ]
        );
    }

    #[test]
    fn two_pods_of_one_name_are_ambiguous() {
        let pods = [pod("a", "web", &[]), pod("b", "web", &[])];
        assert!(matches!(pick(&pods, "web"), Err(Error::Ambiguous { .. })));
    }
}
